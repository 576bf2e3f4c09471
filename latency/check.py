"""Has a file become slower? A regression check that may stand in CI.

Head and base are timed in the same fresh processes on the same host, the base twice: what its two copies seem to
differ by is the host's own noise, and with the slowdown that is allowed it makes the threshold. A slowdown fails the
check only when a second set of fresh processes confirms it. Each of the two looks spends half of a 1 % error.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from latency import FORMAT
from latency.compare import LEAST_PROCESSES, PLAN, Interval, interval, log_ratios, unpaired, unrest
from latency.host import KEYS, Host
from latency.machine import LOCAL, Machine
from latency.measure import Tick, measure
from latency.records import Measurement, Subject

ALLOWED = 0.02
"""Slowdown that is let through, unless said otherwise."""
BETWEEN_RUNS = 0.03
"""Least threshold against a stored baseline: two runs of one file agree within this (ci/bench/latency_bench.py)."""
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
    """pass: the head is at most `threshold` times as slow as the base. fail: it is slower, twice. Else inconclusive.

    ratio, low, high: head/base and its bounds; threshold: 1 + the larger of what is allowed and the host's noise.
    """

    verdict: str
    ratio: float | None
    low: float | None
    high: float | None
    threshold: float | None
    processes: int
    reasons: tuple[str, ...] = field(default=())
    format: int = FORMAT


def threshold_of(noise: Sequence[float], allowed: float) -> float:
    """The larger of what is allowed and the outer bound of the ratio that two copies of one file seem to have."""
    found = interval(noise)
    return max(1 + allowed, found.high, 1 / found.low)


def decide(sets: Sequence[Interval], whole: Interval, threshold: float, processes: int) -> Check:
    """The verdict on head/base: `sets` holds its bounds from each set of processes so far, one or two; `whole` those
    of all together. With one set, a fail waits for the second."""
    reasons: tuple[str, ...] = ()
    if whole.high <= threshold:
        verdict = "pass"
    elif len(sets) > 1 and all(i.low > threshold for i in sets):
        verdict = "fail"
        reasons = (
            f"{whole.ratio - 1:.1%} slower than the base (99 % bounds {whole.low - 1:.1%} to {whole.high - 1:.1%}), "
            f"over the threshold of {threshold - 1:.1%}, and confirmed in fresh processes",
        )
    else:
        verdict = "inconclusive"
        bounds = " and ".join(f"{i.low:.3f} to {i.high:.3f}" for i in sets)
        reasons = (
            f"the bounds of the ratio ({bounds}) do not settle on one side of the threshold {threshold:.3f}: take more "
            "processes, on a quieter host",
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
    taken: list[Measurement] = []
    sets: list[Rounds] = []
    while True:
        arms = measure([base, head, base], processes, PLAN, machine, True, [0.0, slowdown, 0.0], tick)
        taken += arms
        sets.append(Rounds(tuple(log_ratios(arms[0], arms[1])), tuple(log_ratios(arms[0], arms[2]))))
        if disturbed := unrest(arms[0]):
            return _cannot(f"{disturbed}; the check says nothing of the file", len(sets) * processes), taken
        whole = sum(sets[1:], sets[0])
        bounds, threshold = interval(whole.head), threshold_of(whole.noise, allowed)
        verdict = decide([interval(s.head) for s in sets], bounds, threshold, len(whole.head))
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

    Inconclusive wherever the two cannot be compared: another host, runtime version, precision or threads.
    """
    if few := _too_few(min(processes, len(base.runs))):
        return few, []
    now, then = machine.host(), Host.from_dict(base.host)
    if now.key != then.key:
        differing = [k for k in KEYS if getattr(now, k) != getattr(then, k)]
        told = "; ".join(f"{k}: {getattr(then, k)} then, {getattr(now, k)} now" for k in differing)
        return _cannot(
            f"the baseline was measured on another host ({told}); it says nothing here: measure the base on this one",
            0,
        ), []
    for key in ("runtime", "precision", "threads", "batch", "pin"):
        stored, ours = getattr(base.subject, key), getattr(head, key)
        if stored != ours:
            return _cannot(f"the baseline was measured with {key} {stored}, the head would be with {ours}", 0), []
    taken: list[Measurement] = []
    while True:
        taken += measure([head], processes, base.plan, machine, tick=tick)
        if disturbed := base.unrest or taken[-1].unrest:
            return _cannot(f"{disturbed}; the check says nothing of the file", len(taken) * processes), taken
        runs = [m.runs for m in taken]
        whole = tuple(r for some in runs for r in some)
        verdict = decide(
            [unpaired(base.runs, some) for some in runs],
            unpaired(base.runs, whole),
            1 + max(allowed, BETWEEN_RUNS),
            len(whole),
        )
        if verdict.verdict == "pass" or len(taken) == 2:
            return verdict, taken
