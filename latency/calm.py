"""The control at rest, which tells a calm host from a disturbed one.

The control is timed along with every file. What it takes when nothing else runs here is known only from experience: it
is the low end of everything that was seen of it. A neighbour makes it slower, or its slow tail longer, and never
faster. What is calm is decided by the control alone, never by a file's own times, so a file cannot choose its evidence.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from latency.machine import CONTROL, LOCAL, Machine, Worker
from latency.records import ProcessRun, Subject
from latency.sampling import Plan

_QUANTILE = 0.2
"""Of all timings of the control, from the fastest: at rest. One timing in five may be all that was calm."""
SLOWER, LONGER = 1.12, 1.35
"""A timing is calm if the control's p50 and p90 are within these factors of what they are at rest."""
_LOOK_PLAN = Plan(samples=200, seconds=0.5, warmup_seconds=0.3)
_PAUSE_S = 5.0


@dataclass(frozen=True)
class Calm:
    """What the control takes at rest, in ms, in the runtime and with the threads of the files it is to judge."""

    p50_ms: float
    p90_ms: float

    def disturbed(self, run: ProcessRun) -> bool:
        """Whether the control was slower in this process than at rest, or its tail longer."""
        return run.control_p50_ms > SLOWER * self.p50_ms or run.control_p90_ms > LONGER * self.p90_ms


def calm_of(runs: Iterable[ProcessRun]) -> Calm:
    """What the control takes at rest, from everything that was seen of it, which is at least one process."""
    seen = [(r.control_p50_ms, r.control_p90_ms) for r in runs]
    p50_ms, p90_ms = np.quantile(seen, _QUANTILE, axis=0, method="inverted_cdf")
    return Calm(float(p50_ms), float(p90_ms))


def wait_for_calm(
    calm: Calm,
    runtime: str,
    threads: int,
    seconds: float,
    machine: Machine = LOCAL,
    say: Callable[[str], None] = lambda text: None,
) -> bool:
    """Time the control alone, again and again, until it is as fast as at rest; False if that takes too long."""
    ends, told = time.monotonic() + seconds, False
    control = Subject.of(CONTROL, runtime, "f32", threads)
    while True:
        with machine.lock(), Worker(machine) as worker:
            (run,) = worker.time([control], _LOOK_PLAN)
        if not calm.disturbed(run):
            return True
        if time.monotonic() + _PAUSE_S >= ends:
            return False
        if not told:
            say(
                f"the host is disturbed: the control takes {run.control_p50_ms:.3f} ms, {calm.p50_ms:.3f} at rest; "
                f"waiting up to {seconds / 60:g} min for it to come to rest"
            )
            told = True
        time.sleep(_PAUSE_S)


def calm_runs(runs: Sequence[ProcessRun], calm: Calm) -> list[ProcessRun]:
    return [r for r in runs if not calm.disturbed(r)]
