"""What is stored of a measurement. Raw samples by process; every summary is computed from them."""

import hashlib
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from latency import FORMAT
from latency.bounds import ALPHA, percentile, quantile_bounds


@dataclass(frozen=True)
class Target:
    """A file and how it is run. sha256 is of the file itself, followed by that of its weights for OpenVINO's .xml."""

    path: str
    runtime: str
    precision: str
    threads: int
    sha256: str

    @classmethod
    def of(cls, path: Path, runtime: str, precision: str, threads: int) -> "Target":
        return cls(str(path), runtime, precision, threads, file_hash(path))


@dataclass(frozen=True)
class ProcessRun:
    """What one process saw, in milliseconds and MiB; the control was timed in the same process, afterwards."""

    load_ms: float
    cold_ms: float
    warmup: int
    samples_ms: tuple[float, ...]
    control_ms: tuple[float, ...]
    peak_mib: float
    effective_precision: str
    settings: dict[str, Any]

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


@dataclass(frozen=True)
class Measurement:
    target: Target
    runs: tuple[ProcessRun, ...]
    host: dict[str, Any]
    format: int = FORMAT

    @property
    def effective_precision(self) -> str:
        return self.runs[0].effective_precision

    @property
    def p90s_ms(self) -> list[float]:
        return [r.p90_ms for r in self.runs]

    def summary(self) -> dict[str, Any]:
        """p50, p90, p99, min: medians over processes. p90_lower/upper: 99 % bounds of the median process's p90; null
        where the processes are too few. spread: largest over smallest p50 of a process."""
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
            "peak_mib": max(r.peak_mib for r in self.runs),
            "samples": sum(len(r.samples_ms) for r in self.runs),
            "processes": len(self.runs),
        }

    def as_dict(self) -> dict[str, Any]:
        return {
            **asdict(self.target),
            "effective_precision": self.effective_precision,
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


def file_hash(path: Path) -> str:
    """sha256 of a file; an OpenVINO .xml counts together with the .bin of its weights."""
    digest = hashlib.sha256(path.read_bytes())
    weights = path.with_suffix(".bin")
    if path.suffix == ".xml" and weights.is_file():
        digest.update(weights.read_bytes())
    return digest.hexdigest()
