"""Warm-up and measurement: two loops over functions, with a clock that tests can script."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

Clock = Callable[[], int]
Step = Callable[[], object]
Beat = Callable[[], None]
"""Called between blocks: a sign of life of a long timing."""
BLOCK = 10
"""Inferences in a row before the next one's turn."""
RESUMED = 3
"""Calls before a block that are not timed: the step before has emptied the caches. Measured: after none the first call
of a block is 5 % slower, after three the block is within 0.5 % of its end."""
_STEADY = 0.03
"""Two neighbouring blocks whose medians differ by less are taken as steady."""


@dataclass(frozen=True)
class Plan:
    """How much to time in one process. Samples are taken until there are `samples` of each file, or `seconds` have
    passed for each (at least `least`); `hopeless_ms`: stop early once the first ten are all over it."""

    samples: int = 200
    seconds: float = 1.0
    least: int = 30
    warmup_seconds: float = 1.0
    hopeless_ms: float | None = None


def time_once(step: Step, clock: Clock = time.perf_counter_ns) -> float:
    """Milliseconds of one call."""
    start = clock()
    step()
    return (clock() - start) / 1e6


def warm_up(step: Step, plan: Plan, clock: Clock = time.perf_counter_ns, beat: Beat = lambda: None) -> int:
    """Call `step` in blocks until two neighbouring ones take alike or the time is up; the number of calls."""
    deadline = clock() + int(plan.warmup_seconds * 1e9)
    previous, count = math.nan, 0  # nothing is near to nan
    while True:
        current = median(time_once(step, clock) for _ in range(BLOCK))
        count += BLOCK
        beat()
        if abs(current - previous) <= _STEADY * previous or clock() >= deadline:
            return count
        previous = current


def take_turns(
    steps: Sequence[Step], plan: Plan, clock: Clock = time.perf_counter_ns, beat: Beat = lambda: None
) -> list[list[float]]:
    """Milliseconds of each call of each step, in blocks that go forth and back (A B B A), so that a drift of the host
    falls on all alike."""
    samples: list[list[float]] = [[] for _ in steps]
    forth = list(range(len(steps)))
    first, deadline = samples[0], clock() + int(plan.seconds * len(steps) * 1e9)
    while len(first) < plan.samples and (len(first) < plan.least or clock() < deadline):
        for order in (forth, forth[::-1]):
            for i in order:
                beat()
                for _ in range(RESUMED):
                    steps[i]()
                samples[i].extend(time_once(steps[i], clock) for _ in range(BLOCK))
            if plan.hopeless_ms is not None and len(first) == BLOCK and min(first) > plan.hopeless_ms:
                return samples
    return samples


def slow_down(step: Step, share: float, beat: Beat = lambda: None) -> Step:
    """`step` with real work after it that takes `share` of its own time, for tests of what a comparison can see. The
    work is counted once, against the step as it is now; no clock is read while it is done."""
    count = 20_000

    def work() -> None:
        for _ in range(count):
            pass

    own, counted = take_turns([step, work], Plan(samples=40, seconds=1.0), beat=beat)
    count = round(count * share * median(own) / median(counted))

    def slowed() -> None:
        step()
        work()

    return slowed


def tick_ns(clock: Clock = time.perf_counter_ns) -> int:
    """The smallest step by which the clock was seen to move on."""
    steps = []
    for _ in range(50):
        start = now = clock()
        while now == start:
            now = clock()
        steps.append(now - start)
    return min(steps)
