"""The control at rest, which tells a calm host from a disturbed one.

The control is timed along with every file. What it takes when nothing else runs here is known only from experience: it
is the low end of what was seen of its calmest blocks. A neighbour makes it slower, or its slow tail longer, and never
faster; but rarely does it slow down every block of ten inferences of a timing. (The p50 and p90 of whole timings are 5
to 40 % too high beside work, those of their calmest blocks 0 to 5 %.) What is calm is decided by the control alone,
never by a file's own times, so a file cannot choose its evidence.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from latency.machine import CONTROL, LOCAL, Machine, Worker
from latency.records import ProcessRun, Subject
from latency.sampling import Plan

_QUANTILE = 0.2
"""The control's p50 at rest is this quantile of the p50s that the timings show in their calmest blocks."""
_ALIKE = 1.1
"""The tail at rest is the typical one of the timings whose p50 is within this factor of that at rest."""
_SLOWER, _LONGER = 1.12, 1.35
"""A timing is calm if the control's p50 and p90 are within these factors of their values at rest."""
_NOISE = 0.15
"""Relative error of an estimate from one process that is rarely exceeded (ci/bench/busy_bench.py). That of the mean of
n processes falls with the square root of n."""
_LOOK_PLAN = Plan(samples=200, seconds=0.5, warmup_seconds=0.3)
_PAUSE_S = 5.0
_LOOKS = 3
"""Calm timings in a row before a host counts as at rest: a neighbour that works in bursts has pauses."""


@dataclass(frozen=True)
class Calm:
    """What the control takes at rest, in ms, in the runtime and with the threads of the files it is to judge."""

    p50_ms: float
    p90_ms: float

    def estimate(self, runs: Sequence[ProcessRun]) -> "Estimate":
        """Estimate the p90 of a file at rest from runs on a host in any state: its time in controls, multiplied by the
        control's p90 at rest. This assumes that the file's tail is as long as the control's."""
        p90_ms = math.exp(fmean(math.log(r.controls) for r in runs)) * self.p90_ms
        noise = _NOISE / math.sqrt(len(runs))
        return Estimate(p90_ms, p90_ms * (1 - noise), p90_ms * (1 + noise))

    def disturbed(self, run: ProcessRun) -> bool:
        """Whether the control was slower in this process than at rest, or its tail longer."""
        return run.control_p50_ms > _SLOWER * self.p50_ms or run.control_p90_ms > _LONGER * self.p90_ms


@dataclass(frozen=True)
class Estimate:
    """A p90 in ms with its bounds."""

    p90_ms: float
    low_ms: float
    high_ms: float


def calm_of(seen: Iterable[tuple[float, float]]) -> Calm:
    """What the control takes at rest, from its p50 and p90 in ms in the calmest blocks of every timing, of which there
    is one at least."""
    p50s, p90s = np.array(list(seen)).T
    p50_ms = float(np.quantile(p50s, _QUANTILE, method="inverted_cdf"))
    tails = (p90s / p50s)[p50s <= _ALIKE * p50_ms]
    return Calm(p50_ms, p50_ms * float(np.median(tails)))


def seen_in(runs: Iterable[ProcessRun]) -> list[tuple[float, float]]:
    """What `calm_of` asks of these runs."""
    return [r.control_calmest_ms for r in runs]


def wait_for_calm(
    calm: Calm,
    runtime: str,
    threads: int,
    seconds: float,
    machine: Machine = LOCAL,
    say: Callable[[str], None] = lambda text: None,
) -> bool:
    """Time the control alone, again and again, until it is as fast as at rest; False if that takes too long."""
    ends, told, calm_looks = time.monotonic() + seconds, False, 0
    control = Subject.of(CONTROL, runtime, "f32", threads)
    while True:
        with machine.lock(), Worker(machine) as worker:
            (run,) = worker.time([control], _LOOK_PLAN)
        calm_looks = 0 if calm.disturbed(run) else calm_looks + 1
        if calm_looks == _LOOKS:
            return True
        if calm_looks:
            continue
        if time.monotonic() + _PAUSE_S >= ends:
            return False
        if not told:
            say(
                f"the host is disturbed: the control takes {run.control_p50_ms:.3f} ms, {calm.p50_ms:.3f} at rest; "
                f"waiting up to {max(seconds, 60) / 60:.0f} min for it to come to rest"
            )
            told = True
        time.sleep(_PAUSE_S)


def calm_runs(runs: Sequence[ProcessRun], calm: Calm) -> list[ProcessRun]:
    return [r for r in runs if not calm.disturbed(r)]
