"""The verdict: does this file keep its limit on this host?

The claim: in a typical (the median) fresh process on this Host, one inference of this file takes at most X ms nine
times in ten. The unit of evidence is the process; see `latency.bounds` for the arithmetic and the planned looks. The
claim speaks of the host as it was while the gate ran: a regime that outlasts the whole run is not in it. Whoever tries
file after file, or the same file again, until one passes, counts the attempts: all of them share the error.
"""

from statistics import median
from typing import Any

from latency.bounds import LEAST_PROCESSES, Look, plan_looks, quantile_bounds
from latency.calm import Calm, calm_of, calm_runs, seen_in
from latency.machine import LOCAL, Machine
from latency.measure import Tick, extend, measure
from latency.records import Measurement, Subject, Verdict
from latency.sampling import Plan

CLOCK_SHARE = 0.01
"""The clock's smallest step may be this share of the limit. A file that is over it by more than a step fails anyway."""


def judge(measurement: Measurement, limit_ms: float, look: Look | None, calm: Calm | None = None) -> Verdict:
    """What the evidence says at this look, or, without a look, that the processes are too few to say anything.

    A pass counts every process. A fail counts only those in which the control was as fast as at rest (`calm`; None:
    its fastest processes here), for a disturbed host says nothing against a file.
    """
    count = len(measurement.runs)
    if look is None:
        reason = (
            f"{count} processes cannot bound the median process at 99 %: set latency.processes to "
            f"{LEAST_PROCESSES} or more (9 allow further looks)"
        )
        return Verdict("inconclusive", limit_ms, None, None, count, (reason,))
    calm = calm or calm_of(seen_in(measurement.runs))
    low, high = quantile_bounds(measurement.p90s_ms, 0.5, look.alpha)
    calm_low, _ = quantile_bounds([r.p90_ms for r in calm_runs(measurement.runs, calm)], 0.5, look.alpha)
    clock_ms = max(r.clock_ns for r in measurement.runs) / 1e6
    if measurement.unrest:
        verdict, reason = "inconclusive", f"{measurement.unrest}; end what else runs here and gate again"
    elif calm_low - clock_ms > limit_ms:
        verdict = "fail"
        reason = f"the median process's p90 is at least {calm_low:.3f} ms (99 %), over the limit of {limit_ms:g} ms"
    elif low - clock_ms > limit_ms:
        verdict = "inconclusive"
        typical = median(r.control_p50_ms for r in measurement.runs)
        reason = (
            f"the median process's p90 is at least {low:.3f} ms, over the limit of {limit_ms:g} ms, but the host was "
            f"disturbed: the control took {typical:.3f} ms, {calm.p50_ms:.3f} at rest; end what else runs here and "
            "gate again"
        )
    elif clock_ms > CLOCK_SHARE * limit_ms:
        verdict = "inconclusive"
        reason = (
            f"the clock moves in steps of {clock_ms:.3g} ms, too coarse for a limit of {limit_ms:g} ms: gate a larger "
            "batch, or on a host with a finer clock"
        )
    elif high <= limit_ms:
        return Verdict("pass", limit_ms, low, high, count)
    else:
        verdict = "inconclusive"
        reason = (
            f"the limit of {limit_ms:g} ms lies between the bounds {low:.3f} and {high:.3f} ms after {count} "
            "processes: too near to call on this host"
        )
    return Verdict(verdict, limit_ms, low, high, count, (reason,))


def gate(
    subject: Subject,
    limit_ms: float,
    processes: int,
    plan: Plan | None = None,
    machine: Machine = LOCAL,
    tick: Tick = lambda done, total: None,
    attempt: int = 1,
    calm: Calm | None = None,
) -> tuple[Verdict, Measurement]:
    """Measure and judge; where a look is inconclusive, go on to the next planned one.

    attempt: how many gates this limit has had on this host, this one included: whoever gates until something passes
    must give it, for all attempts share one error. calm: see `judge`. Raises LatencyError.
    """
    looks = plan_looks(processes, attempt)
    (measured,) = measure([subject], looks[0].processes if looks else max(processes, 1), plan, machine, tick=tick)
    verdict = judge(measured, limit_ms, looks[0] if looks else None, calm)
    for look in looks[1:]:
        if verdict.verdict != "inconclusive":
            break
        (more,) = measure([subject], look.processes - len(measured.runs), plan, machine, tick=tick)
        measured = extend(measured, more)
        verdict = judge(measured, limit_ms, look, calm)
    return verdict, measured


def claim(verdict: Verdict, measurement: Measurement) -> dict[str, Any]:
    """The numbers behind a verdict, in one place for whoever reads it: the summary, with the verdict's own bounds."""
    return {
        "subject": {
            "runtime": measurement.subject.runtime,
            "precision": measurement.subject.precision,
            "threads": measurement.subject.threads,
            "sha256": measurement.subject.sha256,
        },
        **measurement.summary(),
        "limit_ms": verdict.limit_ms,
        "p90_lower_ms": verdict.p90_lower_ms,
        "p90_upper_ms": verdict.p90_upper_ms,
        "effective_precision": measurement.effective_precision,
    }
