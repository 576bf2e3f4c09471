"""What is stored of a measurement. Raw samples by process; every summary is computed from them."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from latency import FORMAT
from latency.bounds import ALPHA, percentile, quantile_bounds
from latency.errors import InputError
from latency.files import file_hash
from latency.runners import check_names, runtime_of
from latency.sampling import BLOCK, Plan

_CALM_BLOCK = 1.1
UNSTEADY = 1.25
"""The middle half of the control's medians may differ by this factor. Two frequency regimes of one host gave 1.27
between the extremes of eight processes, and less between their quartiles."""


@dataclass(frozen=True)
class Subject:
    """A file and how it is run. batch: for a file whose first dimension is open. pin: the CPUs that the process is
    held to. sha256 is of the file and of weights that lie beside it."""

    path: str
    runtime: str
    precision: str
    threads: int
    sha256: str
    batch: int | None = None
    pin: tuple[int, ...] | None = None

    @classmethod
    def of(
        cls,
        path: Path,
        runtime: str | None = None,
        precision: str = "f32",
        threads: int = 1,
        batch: int | None = None,
        pin: tuple[int, ...] | None = None,
    ) -> "Subject":
        """The runtime by the suffix where none is given. Raises InputError."""
        digest, runtime = file_hash(path), runtime or runtime_of(path)
        check_names(runtime, precision)
        return cls(str(path), runtime, precision, threads, digest, batch, pin)


@dataclass(frozen=True)
class ProcessRun:
    """What one process saw of a file, in milliseconds and MiB, in the order of time, in blocks of `block`; the
    control's blocks were taken in turn with the file's. load_ms: with the runtime's import where it was the first file.
    peak_mib: of the process before the control was loaded, with all files that it timed. clock_ns: the clock's
    smallest step."""

    load_ms: float
    cold_ms: float
    warmup: int
    samples_ms: tuple[float, ...]
    control_ms: tuple[float, ...]
    peak_mib: float
    effective_precision: str
    settings: dict[str, Any]
    clock_ns: int = 1
    block: int = BLOCK

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ProcessRun":
        tuples: dict[str, Any] = {k: tuple(values[k]) for k in ("samples_ms", "control_ms")}
        return cls(**{**values, **tuples})

    @property
    def p90_ms(self) -> float:
        return percentile(self.samples_ms, 90)

    @property
    def control_p50_ms(self) -> float:
        return percentile(self.control_ms, 50)

    @property
    def control_p90_ms(self) -> float:
        return percentile(self.control_ms, 90)

    @property
    def control_calmest_ms(self) -> tuple[float, float]:
        """(p50, p90) of the control in the calmest part of this process: in the blocks whose medians are within 10 % of
        their lowest tenth. A neighbour at work rarely slows down every block of ten inferences."""
        whole = len(self.control_ms) // self.block * self.block
        if not whole:
            return self.control_p50_ms, self.control_p90_ms
        blocks = np.reshape(self.control_ms[:whole], (-1, self.block))
        medians = np.median(blocks, axis=1)
        calm = blocks[medians <= _CALM_BLOCK * np.quantile(medians, 0.1, method="inverted_cdf")].ravel().tolist()
        return percentile(calm, 50), percentile(calm, 90)

    @property
    def controls(self) -> float:
        """How many controls one inference takes: the median, over pairs of neighbouring blocks, of the file's fastest
        inference over the control's. A neighbour at work slows both alike, and neither's fastest by much."""
        size = self.block
        count = min(len(self.samples_ms), len(self.control_ms)) // size * size
        if not count:
            return percentile(self.samples_ms, 50) / self.control_p50_ms
        own, control = (np.min(np.reshape(t[:count], (-1, size)), axis=1) for t in (self.samples_ms, self.control_ms))
        return float(np.median(own / control))

    @property
    def normalised_p50(self) -> float:
        """p50 in units of the control's."""
        return percentile(self.samples_ms, 50) / self.control_p50_ms

    @property
    def control_unrest(self) -> float:
        """How far the control moved within the process: upper over lower quartile of its blocks' medians."""
        whole = len(self.control_ms) // self.block * self.block
        if not whole:
            return 1.0
        return quartile_ratio(np.median(np.reshape(self.control_ms[:whole], (-1, self.block)), axis=1))


@dataclass(frozen=True)
class Measurement:
    """plan: how much was timed in each process. host: `latency.host.Host` as a dict."""

    subject: Subject
    runs: tuple[ProcessRun, ...]
    plan: Plan
    host: dict[str, Any]
    format: int = FORMAT

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Measurement":
        """What `as_dict` wrote, of any format so far. Raises InputError for anything else."""
        if not isinstance(values, dict) or values.get("format") not in range(1, FORMAT + 1):
            raise InputError("no measurement of edgebuild, or one of a later version")
        subject = {f.name: values[f.name] for f in fields(Subject) if f.name in values}
        if subject.get("pin") is not None:
            subject["pin"] = tuple(subject["pin"])
        runs = tuple(ProcessRun.from_dict(r) for r in values["runs"])
        return cls(Subject(**subject), runs, Plan(**values.get("plan", {})), values["host"])

    @property
    def effective_precision(self) -> str:
        return self.runs[0].effective_precision

    @property
    def p90s_ms(self) -> list[float]:
        return [r.p90_ms for r in self.runs]

    @property
    def control_spread(self) -> float:
        """Upper over lower quartile of the control's medians by process."""
        return quartile_ratio([r.control_p50_ms for r in self.runs])

    @property
    def unrest(self) -> str | None:
        """What the control says of the host's rest while this was timed; None where it was steady."""
        if self.control_spread > UNSTEADY:
            quartiles = np.percentile([r.control_p50_ms for r in self.runs], [25, 75])
            return (
                f"the host was disturbed: the untouched control took {quartiles[0]:.3f} to {quartiles[1]:.3f} ms "
                "(quartiles of its processes): frequency regimes, or a neighbour at work"
            )
        return self.unrest_within

    @property
    def unrest_within(self) -> str | None:
        """The same of what moved within the processes alone: all that can disturb a ratio of files timed together, on
        which a regime that changes between processes falls alike."""
        within = median(r.control_unrest for r in self.runs)
        if within <= UNSTEADY:
            return None
        return (
            f"the host was disturbed: the untouched control moved by a factor of {within:.2f} within the typical "
            "process (quartiles of its blocks): a neighbour at work"
        )

    def summary(self) -> dict[str, Any]:
        """p50, p90, p99, min: medians over processes. p90_lower/upper: 99 % bounds of the median process's p90; null
        where the processes are too few. spread: largest over smallest p50 of a process. normalised_p50: in units of
        the control timed along, for comparison with another time on this host. peak_mib: before the control is
        loaded."""
        by_process = {p: [percentile(r.samples_ms, p) for r in self.runs] for p in (50, 90, 99)}
        low, high = quantile_bounds(by_process[90], 0.5, ALPHA)
        return {
            "p50_ms": median(by_process[50]),
            "p90_ms": median(by_process[90]),
            "p99_ms": median(by_process[99]),
            "min_ms": min(min(r.samples_ms) for r in self.runs),
            "p90_lower_ms": low if math.isfinite(low) else None,
            "p90_upper_ms": high if math.isfinite(high) else None,
            "cold_ms": median(r.cold_ms for r in self.runs),
            "load_ms": median(r.load_ms for r in self.runs),
            "spread": max(by_process[50]) / min(by_process[50]),
            "control_p50_ms": median(r.control_p50_ms for r in self.runs),
            "control_spread": self.control_spread,
            "normalised_p50": median(r.normalised_p50 for r in self.runs),
            "unrest": self.unrest,
            "peak_mib": max(r.peak_mib for r in self.runs),
            "samples": sum(len(r.samples_ms) for r in self.runs),
            "processes": len(self.runs),
        }

    def as_dict(self) -> dict[str, Any]:
        return {
            **asdict(self.subject),
            "effective_precision": self.effective_precision,
            "settings": self.runs[0].settings,
            "plan": asdict(self.plan),
            "summary": self.summary(),
            "runs": [asdict(r) for r in self.runs],
            "host": self.host,
            "format": self.format,
        }


@dataclass(frozen=True)
class Verdict:
    """pass: the upper bound is under the limit. fail: the lower bound is over it. Else inconclusive, with reasons."""

    verdict: str
    limit_ms: float
    p90_lower_ms: float | None
    p90_upper_ms: float | None
    processes: int
    reasons: tuple[str, ...] = field(default=())
    format: int = FORMAT


def quartile_ratio(values: Sequence[float] | np.ndarray) -> float:
    low, high = np.percentile(values, [25, 75])
    return float(high / low)
