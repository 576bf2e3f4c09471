"""Has a file become slower? A regression check that may stand in CI.

Head and base are timed in the same fresh processes on the same host, the base twice: what its two copies seem to
differ by is the host's own noise, which raises the threshold where it is larger than what is allowed. A slowdown fails
the check only when a second set of fresh processes confirms it. Each of the two looks spends half of a 1 % error.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from latency import FORMAT
from latency.compare import LEAST_PROCESSES, PLAN, SAME, Interval, interval, log_ratios, must_agree, unpaired
from latency.host import KEYS, Host
from latency.machine import LOCAL, Machine
from latency.measure import Tick, measure
from latency.records import Measurement, Subject

ALLOWED = 0.02
"""Slowdown that is let through, unless said otherwise."""
BETWEEN_RUNS = 0.03
"""The least slowdown that fails against a stored baseline: two runs of one file agree within this
(ci/bench/latency_bench.py)."""
PROCESSES = 12


@dataclass(frozen=True)
class Rounds:
    """By process: log(head/base) and log(base again/base)."""

    head: tuple[float, ...]
    noise: tuple[float, ...]

    def __add__(self, more: "Rounds") -> "Rounds":
        return Rounds(self.head + more.head, self.noise + more.noise)


@dataclass(frozen=True)
class Check:
    """pass: the head is at most 1 + allowed times as slow as the base. fail: it is slower than the threshold, twice.
    Else inconclusive.

    ratio, low, high: head/base and its bounds; threshold: 1 + allowed, or the host's own noise where that is larger.
    """

    verdict: str
    ratio: float | None
    low: float | None
    high: float | None
    threshold: float | None
    processes: int
    reasons: tuple[str, ...] = field(default=())
    format: int = FORMAT


def threshold_of(noise: Interval, allowed: float) -> float:
    """The larger of what is allowed and the outer bound of the ratio that a file seems to have to itself."""
    return max(1 + allowed, noise.high, 1 / noise.low)


def decide(sets: Sequence[Interval], whole: Interval, threshold: float, allowed: float, processes: int) -> Check:
    """The verdict on head/base: `sets` holds its bounds from each set of processes so far, one or two; `whole` those
    of all together. With one set, a fail waits for the second. Noise never makes a pass: it raises the threshold of a
    fail, and a pass must keep what is allowed."""
    reasons: tuple[str, ...] = ()
    if whole.high <= 1 + allowed:
        verdict = "pass"
    elif len(sets) > 1 and all(i.low > threshold for i in sets):
        verdict = "fail"
        reasons = (
            f"{whole.ratio - 1:.1%} slower than the base (99 % bounds {whole.low - 1:.1%} to {whole.high - 1:.1%}), "
            f"over the threshold of {threshold - 1:.1%}, and confirmed in fresh processes",
        )
    elif threshold > 1 + allowed:
        verdict = "inconclusive"
        reasons = (
            f"on this host a file seems to differ from itself by up to {threshold - 1:.1%}, more than the "
            f"{allowed:.1%} that are allowed: take more processes, a quieter host, or allow more",
        )
    else:
        verdict = "inconclusive"
        bounds = " and ".join(f"{i.low:.3f} to {i.high:.3f}" for i in sets)
        reasons = (
            f"the bounds of the ratio ({bounds}) do not settle on one side of {1 + allowed:.3f}: take more processes",
        )
    return Check(verdict, whole.ratio, whole.low, whole.high, threshold, processes, reasons)


def _cannot(reason: str, processes: int) -> Check:
    return Check("inconclusive", None, None, None, None, processes, (reason,))


def _too_few(processes: int) -> Check | None:
    if processes >= LEAST_PROCESSES:
        return None
    return _cannot(f"{processes} processes are too few: take {LEAST_PROCESSES} or more", processes)


def check(
    head: Subject,
    base: Subject,
    allowed: float = ALLOWED,
    processes: int = PROCESSES,
    machine: Machine = LOCAL,
    slowdown: float = 0.0,
    tick: Tick = lambda done, total: None,
) -> tuple[Check, list[Measurement]]:
    """Time both, here and now. slowdown: a share of real work added to the head, for tests. The measurements are the
    base, the head and the base again, once or twice. Raises LatencyError."""
    if few := _too_few(processes):
        return few, []
    must_agree(head, base)
    taken: list[Measurement] = []
    sets: list[Rounds] = []
    while True:
        arms = measure([base, head, base], processes, PLAN, machine, True, [0.0, slowdown, 0.0], tick)
        taken += arms
        sets.append(Rounds(tuple(log_ratios(arms[0], arms[1])), tuple(log_ratios(arms[0], arms[2]))))
        if disturbed := arms[0].unrest_within:
            return _cannot(f"{disturbed}; the check says nothing of the file", len(sets) * processes), taken
        whole = sum(sets[1:], sets[0])
        threshold = threshold_of(interval(whole.noise), allowed)
        bounds = [interval(s.head) for s in sets]
        verdict = decide(bounds, interval(whole.head), threshold, allowed, len(whole.head))
        if verdict.verdict == "pass" or len(sets) == 2:
            return verdict, taken


def check_stored(
    head: Subject,
    base: Measurement,
    allowed: float = ALLOWED,
    processes: int = PROCESSES,
    machine: Machine = LOCAL,
    tick: Tick = lambda done, total: None,
) -> tuple[Check, list[Measurement]]:
    """The head, timed now, against a stored measurement, both in units of the control.

    A fail needs BETWEEN_RUNS at the least. Inconclusive wherever the two cannot be compared: another host, runtime
    version, precision or threads.
    """
    if few := _too_few(processes):
        return few, []
    if len(base.runs) < LEAST_PROCESSES:
        return _cannot(f"the baseline has {len(base.runs)} processes, too few: {LEAST_PROCESSES} or more", 0), []
    now, then = machine.host(), Host.from_dict(base.host)
    if now.key != then.key:
        differing = [k for k in KEYS if getattr(now, k) != getattr(then, k)]
        told = "; ".join(f"{k}: {getattr(then, k)} then, {getattr(now, k)} now" for k in differing)
        return _cannot(
            f"the baseline was measured on another host ({told}); it says nothing here: measure the base on this one",
            0,
        ), []
    for key in ("runtime", "precision", *SAME):
        stored, ours = getattr(base.subject, key), getattr(head, key)
        if stored != ours:
            return _cannot(f"the baseline was measured with {key} {stored}, the head would be with {ours}", 0), []
    if base.unrest:
        return _cannot(f"while the baseline was measured, {base.unrest}", 0), []
    taken: list[Measurement] = []
    while True:
        taken += measure([head], processes, base.plan, machine, tick=tick)
        if disturbed := taken[-1].unrest:
            return _cannot(f"{disturbed}; the check says nothing of the file", len(taken) * processes), taken
        sets = [unpaired(base.runs, m.runs) for m in taken]
        runs = tuple(r for m in taken for r in m.runs)
        threshold = 1 + max(allowed, BETWEEN_RUNS)
        if len(taken) == 2:  # what two runs of one file differ by
            threshold = max(threshold, threshold_of(unpaired(taken[0].runs, taken[1].runs), allowed))
        verdict = decide(sets, unpaired(base.runs, runs), threshold, allowed, len(runs))
        if verdict.verdict == "pass" or len(taken) == 2:
            return verdict, taken
