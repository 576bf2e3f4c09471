"""What can this host see? A/A rounds and an injected slowdown, here and now.

One file is timed three times over in each fresh process, the third with real work added that takes a known share of
its time (`latency.sampling.slow_down`). From the recorded rounds, comparisons are drawn again and again with the labels
exchanged at random, of which none may call the file different from itself; and checks with the slowdown, of which all
should fail.
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latency import FORMAT, compare
from latency.check import ALLOWED, PROCESSES, Rounds, threshold_of
from latency.compare import BAND, PLAN, Interval, conclude, interval, log_ratios
from latency.machine import LOCAL, Machine
from latency.measure import Tick, measure
from latency.records import Subject

INJECTED = 0.05
ROUNDS = 40
_DRAWS = 200
_GRID = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.10, 0.15, 0.20, 0.30)
_POWER = 0.95


@dataclass(frozen=True)
class SelfTest:
    """false_alarms: share of drawn comparisons of the file with itself that call it different. detected: share of
    drawn checks that find the injected slowdown. injected: its share as asked; seen: as measured, with bounds. power:
    share detected by slowdown. smallest: the least slowdown that at least 95 % of the checks find; None where none of
    the grid is. spread: standard deviation over processes of the A/A ratio."""

    path: str
    rounds: int
    draws: int
    false_alarms: float
    injected: float
    seen: Interval
    detected: float
    power: dict[str, float]
    smallest: float | None
    spread: float
    allowed: float
    unrest: str | None
    seconds: float
    when: str
    host: dict[str, Any]
    format: int = FORMAT


def false_alarms(noise: Sequence[float], draws: int, rng: np.random.Generator) -> float:
    """Share of comparisons, of processes drawn from A/A rounds with their two sides exchanged at random, that call the
    file slower or faster than itself. (A check asks for more: the allowance, the noise, and a second set.)"""
    flags = 0
    for _ in range(draws):
        drawn = rng.choice(noise, compare.PROCESSES) * rng.choice([-1, 1], compare.PROCESSES)
        flags += conclude(interval(drawn), BAND, len(drawn)).verdict in ("slower", "faster")
    return flags / draws


def margins(rounds: Rounds, draws: int, rng: np.random.Generator) -> np.ndarray:
    """For each of `draws` checks of processes drawn from the rounds: the smaller lower bound of its two sets over its
    threshold. Over 1, the check would have failed; a slowdown by s more multiplies it by 1 + s, since the bounds of a
    mean move with it."""
    found = np.empty(draws)
    for i in range(draws):
        drawn = rng.integers(0, len(rounds.head), (2, PROCESSES))
        lows = [interval(head).low for head in np.take(rounds.head, drawn)]
        noise = np.take(rounds.noise, drawn) * rng.choice([-1, 1], drawn.shape)
        found[i] = min(lows) / threshold_of(interval(noise.ravel()), ALLOWED)
    return found


def selftest(
    subject: Subject,
    rounds: int = ROUNDS,
    machine: Machine = LOCAL,
    tick: Tick = lambda done, total: None,
) -> SelfTest:
    """Raises LatencyError. About a second a round, and a few for the draws."""
    began = time.perf_counter()
    base, again, slowed = measure([subject] * 3, rounds, PLAN, machine, True, (0.0, 0.0, INJECTED), tick)
    alike, slower = log_ratios(base, again), log_ratios(base, slowed)
    rng = np.random.default_rng(0)
    untouched = Rounds(tuple(alike), tuple(alike))
    injected = margins(Rounds(tuple(slower), tuple(alike)), _DRAWS, rng)
    plain = margins(untouched, _DRAWS, rng)
    found = {share: float(np.mean(plain * (1 + share) > 1)) for share in _GRID}
    smallest = next((s for s in _GRID if all(p >= _POWER for t, p in found.items() if t >= s)), None)
    return SelfTest(
        path=subject.path,
        rounds=rounds,
        draws=_DRAWS,
        false_alarms=false_alarms(alike, _DRAWS, rng),
        injected=INJECTED,
        seen=interval(slower),
        detected=float(np.mean(injected > 1)),
        power={f"{s:.0%}": p for s, p in found.items()},
        smallest=smallest,
        spread=float(np.std(alike, ddof=1)),
        allowed=ALLOWED,
        unrest=base.unrest_within,
        seconds=round(time.perf_counter() - began, 1),
        when=time.strftime("%Y-%m-%d %H:%M:%S"),
        host=machine.host().as_dict(),
    )


def _record(host_key: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "edgebuild" / f"selftest-{host_key}.json"


def remember(result: SelfTest) -> Path:
    """Keep it for `doctor`; the file's path."""
    path = _record(result.host["key"])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(asdict(result), indent=1) + "\n")
    partial.replace(path)
    return path


def last(host_key: str) -> dict[str, Any] | None:
    """The last result on a host with this key."""
    try:
        found = json.loads(_record(host_key).read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
