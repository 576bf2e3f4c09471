"""What a rehearsal asks for and has found so far: one verdict a check, and none after one that ends it."""

from dataclasses import dataclass
from typing import NoReturn

PROCESSES = 7
"""Fresh ones, for the start and for the photos: the largest of 7 bounds the median process at 99 % (latency.bounds)."""
_DISK = 2**32
"""Where no limit is asked for."""
_TOLD = 1000
_FEW, _FEW_S, _MANY_S = 20, 30, 240
"""Seconds after which a run over so many images hangs, as far as this can be said."""


@dataclass(frozen=True)
class Check:
    """verdict: pass, fail or inconclusive. told: the numbers or the cause."""

    name: str
    verdict: str
    told: str


@dataclass(frozen=True)
class Limits:
    """What the place where it lands allows; None: not asked. seconds: for all images, all in."""

    disk_bytes: int | None = None
    memory_bytes: int | None = None
    seconds: float | None = None

    @property
    def disk(self) -> int:
        """The size of the sandbox's disk, in bytes."""
        return self.disk_bytes or _DISK

    def run_s(self, images: int) -> float:
        """When a run over so many images is ended: what is judged is its measured time, not this."""
        return max(_FEW_S if images < _FEW else _MANY_S, 3 * (self.seconds or 0))


class Ended(Exception):
    """Nothing further can be checked: the last check says why."""


class Checks:
    def __init__(self) -> None:
        self.found: list[Check] = []

    def say(self, name: str, verdict: str, told: str) -> None:
        printable = "".join(c if c.isprintable() else " " for c in told[:_TOLD])  # a stranger's text, on a terminal
        self.found.append(Check(name, verdict, printable))

    def stop(self, name: str, verdict: str, told: str) -> NoReturn:
        self.say(name, verdict, told)
        raise Ended
