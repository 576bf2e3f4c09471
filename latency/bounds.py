"""Distribution-free bounds on a quantile from order statistics, and the planned looks of the gate.

With n independent samples the k-th smallest lies below the q-quantile with probability P(Bin(n, q) >= k), whatever the
distribution (David & Nagaraja, Order Statistics, 2003, section 7.1). For the median of processes (q = 0.5) the largest
of 9 bounds it from above with confidence 1 - 0.5^9 = 99.8 %.
"""

import math
from dataclasses import dataclass
from functools import cache

ALPHA = 0.01
"""One-sided error of the verdicts on one limit, over all attempts and all their looks."""
_LOOK_STEP = 6
_FIRST_ATTEMPT = 0.8
"""Share of the error that the first attempt may spend; all later ones together have the rest."""
_LOOKS = (0.25, 0.47, 0.28)
"""Shares of an attempt's error: at the first attempt each is enough for one more process over the limit than the look
before allows (of 9 processes none, of 15 two, of 21 three)."""


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


def attempt_alpha(attempt: int) -> float:
    """The error that the attempt-th gate of one limit may spend, counted from 1.

    The first has 80 % of ALPHA, the later ones share the rest: the k-th has 6 / (pi (k - 1))^2 of it. The sum of
    1 / k^2 is pi^2 / 6, so however many attempts there are, all of them together spend at most ALPHA.
    """
    if attempt == 1:
        return _FIRST_ATTEMPT * ALPHA
    return (1 - _FIRST_ATTEMPT) * ALPHA * 6 / (math.pi * (attempt - 1)) ** 2


def least_processes(attempt: int) -> int:
    """The fewest processes that can give a verdict at the attempt-th gate of a limit."""
    return _fewest(attempt_alpha(attempt))


def _fewest(alpha: float) -> int:
    """The fewest processes whose slowest bounds the median with confidence 1 - alpha: 0.5^n <= alpha."""
    return math.ceil(-math.log2(alpha))


LEAST_PROCESSES = least_processes(1)
"""Fewer cannot give a verdict at all."""


def plan_looks(processes: int, attempt: int = 1) -> tuple[Look, ...]:
    """Looks of the attempt-th gate of a limit, beginning with `processes` processes; their alphas add up to at most
    `attempt_alpha(attempt)`.

    Fewer than LEAST_PROCESSES: no look can give a verdict. Too few for three looks (at the first attempt 7 or 8): one
    look, which spends the whole error. Otherwise three looks, 6 processes apart. A later attempt, which may spend less
    error, begins with as many processes as its first look needs.
    """
    if processes < LEAST_PROCESSES:
        return ()
    alpha = attempt_alpha(attempt)
    fewest = _fewest(_LOOKS[0] * alpha)
    if attempt == 1 and processes < fewest:
        return (Look(processes, alpha),)
    first = max(processes, fewest)
    return tuple(Look(first + i * _LOOK_STEP, share * alpha) for i, share in enumerate(_LOOKS))
