"""Warm-up and measurement: two loops over a function, with a clock that tests can script."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

Clock = Callable[[], int]
_BLOCK = 10
_STEADY = 0.03
"""Two neighbouring blocks whose medians differ by less are taken as steady."""


@dataclass(frozen=True)
class Plan:
    """How much to time in one process. samples are taken until there are `samples` of them or `seconds` have passed
    (at least `least`); `hopeless_ms`: stop early once ten samples are all over it."""

    samples: int = 200
    seconds: float = 1.0
    least: int = 30
    warmup_seconds: float = 1.0
    hopeless_ms: float | None = None


def time_once(step: Callable[[], object], clock: Clock = time.perf_counter_ns) -> float:
    """Milliseconds of one call."""
    start = clock()
    step()
    return (clock() - start) / 1e6


def warm_up(step: Callable[[], object], plan: Plan, clock: Clock = time.perf_counter_ns) -> int:
    """Call `step` in blocks until two neighbouring ones take alike or the time is up; the number of calls."""
    deadline = clock() + int(plan.warmup_seconds * 1e9)
    previous, count = math.nan, 0  # nothing is near to nan
    while True:
        current = median(time_once(step, clock) for _ in range(_BLOCK))
        count += _BLOCK
        if abs(current - previous) <= _STEADY * previous or clock() >= deadline:
            return count
        previous = current


def collect(step: Callable[[], object], plan: Plan, clock: Clock = time.perf_counter_ns) -> list[float]:
    """Milliseconds of each call, by the plan."""
    samples: list[float] = []
    deadline = clock() + int(plan.seconds * 1e9)
    while len(samples) < plan.samples:
        if len(samples) >= plan.least and clock() >= deadline:
            break
        samples.append(time_once(step, clock))
        if plan.hopeless_ms is not None and len(samples) == _BLOCK and min(samples) > plan.hopeless_ms:
            break
    return samples
