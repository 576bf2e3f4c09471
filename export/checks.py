"""What a rehearsal asks for and has found so far: one verdict a check, and none after one that ends it."""

from dataclasses import dataclass
from typing import NoReturn

PROCESSES = 7
"""Fresh ones, for the start and for the photos: the largest of 7 bounds the median process at 99 % (latency.bounds)."""
_DISK = 2**32
_RUN_S = 120
"""Where no limit is asked for."""


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

    @property
    def run_s(self) -> float:
        """How long one run may take."""
        return self.seconds or _RUN_S


class Ended(Exception):
    """Nothing further can be checked: the last check says why."""


class Checks:
    def __init__(self) -> None:
        self.found: list[Check] = []

    def say(self, name: str, verdict: str, told: str) -> None:
        self.found.append(Check(name, verdict, told))

    def stop(self, name: str, verdict: str, told: str) -> NoReturn:
        self.say(name, verdict, told)
        raise Ended
