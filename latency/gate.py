"""The verdict: does this file keep its limit on this host?

The claim: in a typical (the median) fresh process on this Host, one inference of this file takes at most X ms nine
times in ten. The unit of evidence is the process; see `latency.bounds` for the arithmetic and the planned looks.
"""

from collections.abc import Callable

import numpy as np

from latency.bounds import LEAST_PROCESSES, Look, plan_looks, quantile_bounds
from latency.measure import extend, measure
from latency.records import Measurement, Target, Verdict
from latency.sampling import Plan

DISTURBED = 1.25
"""The middle half of the control's medians may differ by this factor. Two frequency regimes of one host gave 1.27
between the extremes of eight processes, and less between their quartiles."""


def judge(measurement: Measurement, limit_ms: float, look: Look | None) -> Verdict:
    """What the evidence says at this look, or, without a look, that the processes are too few to say anything."""
    if look is None:
        reason = (
            f"{len(measurement.runs)} processes cannot bound the median process at 99 %: set latency.processes to "
            f"{LEAST_PROCESSES} or more (9 allow further looks)"
        )
        return Verdict("inconclusive", limit_ms, None, None, len(measurement.runs), (reason,))
    low, high = quantile_bounds(measurement.p90s_ms, 0.5, look.alpha)
    reasons = []
    quartiles = np.percentile([r.control_p50_ms for r in measurement.runs], [25, 75])
    if quartiles[1] > DISTURBED * quartiles[0]:
        reasons.append(
            f"the host was disturbed: the untouched control took {quartiles[0]:.3f} to {quartiles[1]:.3f} ms "
            "(quartiles of its processes); end what else runs here and gate again"
        )
    elif high <= limit_ms:
        return Verdict("pass", limit_ms, low, high, len(measurement.runs))
    elif low > limit_ms:
        reason = f"the median process's p90 is at least {low:.3f} ms (99 %), over the limit of {limit_ms:g} ms"
        return Verdict("fail", limit_ms, low, high, len(measurement.runs), (reason,))
    else:
        reasons.append(
            f"the limit of {limit_ms:g} ms lies between the bounds {low:.3f} and {high:.3f} ms after "
            f"{len(measurement.runs)} processes: too near to call on this host"
        )
    return Verdict("inconclusive", limit_ms, low, high, len(measurement.runs), tuple(reasons))


def gate(
    target: Target,
    limit_ms: float,
    processes: int,
    plan: Plan | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Verdict, Measurement]:
    """Measure and judge; where a look is inconclusive, go on to the next planned one. Raises LatencyError."""
    looks = plan_looks(processes)
    measured = measure([target], looks[0].processes if looks else max(processes, 1), plan, tick)[0]
    verdict = judge(measured, limit_ms, looks[0] if looks else None)
    for look in looks[1:]:
        if verdict.verdict != "inconclusive":
            break
        more = measure([target], look.processes - len(measured.runs), plan, tick)[0]
        measured = extend(measured, more)
        verdict = judge(measured, limit_ms, look)
    return verdict, measured
