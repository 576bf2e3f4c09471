"""Two files, timed in turn in the same fresh processes: the ratio of their times, and what can be said of it.

The unit of evidence is the process. Within one, blocks of both go forth and back (ABBA), each pair of blocks gives a
ratio of medians, and the median of those is the process's: what the host does to one it does to the other, so the
ratio moves by under 1 % from process to process where the times themselves move by 20 %. Over processes: the trimmed
mean of the logarithms, with a bootstrap interval (BCa, Efron & Tibshirani 1993, chapter 14; scipy's).
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from latency import FORMAT
from latency.errors import InputError
from latency.machine import LOCAL, Machine
from latency.measure import Tick, measure
from latency.records import Measurement, ProcessRun, Subject
from latency.sampling import Plan

CONFIDENCE = 0.99
PROCESSES = 16
LEAST_PROCESSES = 8
"""Fewer leave the bootstrap too little to draw from."""
BAND = 0.02
SAME = ("threads", "batch", "pin")
"""What two files must have in common to be compared."""
PLAN = Plan(samples=200, seconds=1.0)
_TRIM = 0.1
"""Share of the processes left out at each end: one that a neighbour hit must not decide."""
_RESAMPLES = 9999


@dataclass(frozen=True)
class Interval:
    """A ratio of times with its bounds (CONFIDENCE, two-sided)."""

    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """faster, slower: B against A, the bounds leave out 1. same: the bounds lie within the band. Else inconclusive."""

    verdict: str
    ratio: float | None
    low: float | None
    high: float | None
    band: float
    processes: int
    reasons: tuple[str, ...] = field(default=())
    format: int = FORMAT


def log_ratio(a: ProcessRun, b: ProcessRun) -> float:
    """log of B's time over A's in one process that timed both in turn."""
    size = 2 * a.block  # forth and back
    blocks_a, blocks_b = (
        np.median(np.reshape(r.samples_ms[: len(r.samples_ms) // size * size], (-1, size)), axis=1) for r in (a, b)
    )
    return float(np.median(np.log(blocks_b / blocks_a)))


def log_ratios(a: Measurement, b: Measurement) -> list[float]:
    """By process; both must have been measured together."""
    return [log_ratio(x, y) for x, y in zip(a.runs, b.runs, strict=True)]


def _typical(values: np.ndarray, axis: int = -1) -> np.ndarray:
    from scipy.stats import trim_mean

    return np.asarray(trim_mean(values, _TRIM, axis=axis))


def _expanded(n: int) -> float:
    """The level to ask of a bootstrap of n for CONFIDENCE to hold: plain bootstrap intervals are too short where n is
    small (Hesterberg 2015, 'What Teachers Should Know About the Bootstrap', section 5.3)."""
    from scipy.stats import norm, t

    tail = norm.cdf(math.sqrt(n / (n - 1)) * t.ppf((1 - CONFIDENCE) / 2, n - 1))
    return float(1 - 2 * tail)


def interval(logs: Sequence[float]) -> Interval:
    """The typical ratio behind `logs`, one for each process, with its bounds."""
    values = np.asarray(logs, dtype=float)
    return _bounds((values,), _typical, float(_typical(values)))


def unpaired(a: Sequence[ProcessRun], b: Sequence[ProcessRun]) -> Interval:
    """B against A, each timed in processes of its own, both in units of the control."""
    logs = tuple(np.log([r.normalised_p50 for r in runs]) for runs in (a, b))

    def difference(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        return _typical(y, axis) - _typical(x, axis)

    return _bounds(logs, difference, float(difference(logs[0], logs[1])))


def _bounds(samples: tuple[np.ndarray, ...], statistic: Callable[..., np.ndarray], point: float) -> Interval:
    from scipy.stats import bootstrap

    if all(np.ptp(values) == 0 for values in samples):  # nothing to draw from
        return Interval(*np.exp([point] * 3).tolist())
    level = _expanded(min(len(values) for values in samples))
    for method in ("BCa", "percentile"):  # BCa has no answer where all but one are equal
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = bootstrap(
                samples, statistic, confidence_level=level, n_resamples=_RESAMPLES, method=method, rng=0
            ).confidence_interval
        if math.isfinite(found.low) and math.isfinite(found.high):
            break
    return Interval(*np.exp([point, found.low, found.high]).tolist())


def conclude(found: Interval, band: float, processes: int, disturbed: str | None = None) -> Comparison:
    """The verdict of an interval of B/A."""
    reasons: tuple[str, ...] = ()
    if disturbed:
        verdict, reasons = "inconclusive", (f"{disturbed}; end what else runs here and compare again",)
    elif found.low >= 1 / (1 + band) and found.high <= 1 + band:
        verdict = "same"
    elif found.low > 1:
        verdict = "slower"
    elif found.high < 1:
        verdict = "faster"
    else:
        verdict = "inconclusive"
        reasons = (
            f"the bounds {found.low:.3f} to {found.high:.3f} hold 1 and reach out of the band of {band:.1%}: take more "
            "processes, or a wider band",
        )
    return Comparison(verdict, found.ratio, found.low, found.high, band, processes, reasons)


def compare(
    a: Subject,
    b: Subject,
    processes: int = PROCESSES,
    band: float = BAND,
    machine: Machine = LOCAL,
    tick: Tick = lambda done, total: None,
) -> tuple[Comparison, list[Measurement]]:
    """B against A, in `processes` fresh processes. Raises LatencyError, InputError where threads or CPUs differ."""
    must_agree(a, b)
    if processes < LEAST_PROCESSES:
        reason = f"{processes} processes are too few: take {LEAST_PROCESSES} or more"
        return Comparison("inconclusive", None, None, None, band, processes, (reason,)), []
    measured = measure([a, b], processes, PLAN, machine, together=True, tick=tick)
    logs = log_ratios(*measured)
    return conclude(interval(logs), band, processes, measured[0].unrest_within), measured


def must_agree(a: Subject, b: Subject) -> None:
    """Raises InputError where two files would not be run alike."""
    for name in SAME:
        ours, theirs = getattr(a, name), getattr(b, name)
        if ours != theirs:
            raise InputError(f"{a.path} with {name} {ours}, {b.path} with {theirs}: give both the same")
