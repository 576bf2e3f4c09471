"""Distribution-free bounds on a quantile from order statistics, and the planned looks of the gate.

With n independent samples the k-th smallest lies below the q-quantile with probability P(Bin(n, q) >= k), whatever the
distribution (David & Nagaraja, Order Statistics, 2003, section 7.1). For the median of processes (q = 0.5) the largest
of 9 bounds it from above with confidence 1 - 0.5^9 = 99.8 %.
"""

import math
from dataclasses import dataclass
from functools import cache

ALPHA = 0.01
"""One-sided error of a gate's verdict, over all its looks."""
LEAST_PROCESSES = 7
"""Fewer cannot bound the median at 99 %: 1 - 0.5^6 = 98.4 %."""
_LOOK_STEP = 6


@dataclass(frozen=True)
class Look:
    """A planned look at the evidence: after `processes` processes, spending `alpha` of the error."""

    processes: int
    alpha: float


def binomial_tail(n: int, k: int, q: float) -> float:
    """P(Bin(n, q) >= k), exact up to floating point."""
    return math.fsum(math.comb(n, i) * q**i * (1 - q) ** (n - i) for i in range(max(k, 0), n + 1))


@cache
def upper_rank(n: int, q: float, alpha: float) -> int | None:
    """Smallest rank k (1-based) whose order statistic is at least the q-quantile with confidence 1 - alpha."""
    return next((k for k in range(1, n + 1) if binomial_tail(n, k, q) <= alpha), None)


@cache
def lower_rank(n: int, q: float, alpha: float) -> int | None:
    """Largest rank k (1-based) whose order statistic is at most the q-quantile with confidence 1 - alpha."""
    return next((k for k in range(n, 0, -1) if 1 - binomial_tail(n, k, q) <= alpha), None)


def quantile_bounds(samples: list[float], q: float, alpha: float) -> tuple[float, float]:
    """(lower, upper), each one-sided at 1 - alpha; -inf or inf where the samples are too few."""
    ordered = sorted(samples)
    low, high = lower_rank(len(ordered), q, alpha), upper_rank(len(ordered), q, alpha)
    return (ordered[low - 1] if low else -math.inf, ordered[high - 1] if high else math.inf)


def percentile(samples: list[float] | tuple[float, ...], percent: float) -> float:
    """The smallest sample that at least `percent` % of the samples do not exceed."""
    ordered = sorted(samples)
    return ordered[max(1, math.ceil(len(ordered) * percent / 100)) - 1]


def plan_looks(processes: int) -> tuple[Look, ...]:
    """Looks for a gate that begins with `processes` processes; their alphas add up to at most ALPHA.

    Fewer than LEAST_PROCESSES: no look can give a verdict. 7 or 8: one look, which spends the whole error.
    From 9 on: three looks, 6 processes apart, at 20 %, 40 % and 40 % of it: each enough for one more
    process over the limit than the look before would allow.
    """
    if processes < LEAST_PROCESSES:
        return ()
    if upper_rank(processes, 0.5, 0.2 * ALPHA) is None:
        return (Look(processes, ALPHA),)
    shares = (0.2, 0.4, 0.4)
    return tuple(Look(processes + i * _LOOK_STEP, share * ALPHA) for i, share in enumerate(shares))
