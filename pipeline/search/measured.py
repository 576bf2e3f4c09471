"""Latency of a candidate, measured in the forms in which it can ship, once for each graph, size, form and host."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from export.artifact import Artifact, ModelCard
from export.formats import FORMATS, Source
from export.onnx_export import export_onnx
from latency.bounds import ALPHA, percentile, quantile_bounds
from latency.host import INT8_DOT, Host
from latency.machine import CONTROL, LOCAL, Machine
from latency.measure import WarmTimer, measure
from latency.records import ProcessRun, Subject
from latency.sampling import BLOCK, Plan
from models.build import build
from models.spec import ModelSpec
from pipeline import FORMAT
from pipeline.errors import PipelineError
from pipeline.files import read_record, write_record

_PLAN = Plan(samples=150, seconds=0.4, warmup_seconds=0.3)
_CONTROL_PLAN = Plan(samples=400, seconds=1.0)
_PEAK_PLAN = Plan(samples=BLOCK, seconds=0.1, least=BLOCK, warmup_seconds=0.0)
_TRIES = 3
_NOISE = 2
"""Images that INT8 is calibrated on, for its time only."""
_HOPELESS = 2.0
"""A candidate whose first ten inferences are all over this many limits is timed no further."""


@dataclass(frozen=True)
class Form:
    """A way to ship: runtime x precision."""

    runtime: str
    precision: str

    def __str__(self) -> str:
        return f"{self.runtime}-{self.precision}"


@dataclass(frozen=True)
class Timing:
    """p90 of one warm process, as it would be with the control as fast as when this host was first timed in this run.

    p90_lower_ms: its 99 % lower bound, of which the constraint is made. drift: control now / control then. peak_mib: of
    a fresh process that runs it; None where no limit of memory is set.
    """

    form: str
    p90_ms: float
    p90_lower_ms: float
    drift: float
    effective_precision: str
    size_bytes: int
    peak_mib: float | None = None


def forms(
    runtimes: tuple[str, ...], precisions: tuple[str, ...], host: Host, asked: tuple[str, ...] | None = None
) -> list[Form]:
    """The forms that can ship and that this host can run; of these the ones asked for (`search.measure`), or all but
    INT8. Raises PipelineError where none is left."""
    able = [
        Form(runtime, precision)
        for runtime in runtimes
        for precision in precisions
        if precision != "bf16" or (runtime == "openvino" and host.has_bf16)
    ]
    found = [f for f in able if (str(f) in asked if asked else f.precision != "int8")]
    if not found and not asked:  # INT8 alone may ship: its f32 form is quick to make, and is what the search times
        found = [Form(runtime, "f32") for runtime in runtimes if any(f.runtime == runtime for f in able)]
    if not found:
        key, value = ("search.measure", asked) if asked else ("latency.precisions", precisions)
        raise PipelineError(
            f"{key}: {', '.join(value)}: none of them runs on this CPU and is among latency.runtimes and "
            "latency.precisions; add an f32 form"
        )
    return found


def write_form(spec: ModelSpec, card: ModelCard, seed: int, form: Form, onnx: Path, host: Host) -> Artifact:
    """The untrained network as it would ship; `onnx` is where its f32 file is, or is written. INT8 is calibrated on
    noise: as fast as the one that will ship, of no other use. Raises ExportError."""
    if not onnx.is_file():
        export_onnx(build(spec, seed), card, onnx)
    if form.precision != "int8" and form.runtime == "openvino":
        path = onnx.with_suffix(".xml")
        if not path.is_file():
            FORMATS["openvino"].write(Source(onnx, card), path, ())
        return Artifact(path, form.runtime, form.precision)
    if form.precision != "int8":
        return Artifact(onnx, form.runtime, form.precision)
    noise = np.random.default_rng(0).integers(0, 256, (_NOISE, card.input_size, card.input_size, 3), dtype=np.uint8)
    name = "openvino-int8-fast" if form.runtime == "openvino" else "onnx-int8"
    path = onnx.with_name(FORMATS[name].file)
    FORMATS[name].write(Source(onnx, card, noise, not host.has_any(INT8_DOT)), path, ())
    return Artifact(path, form.runtime, form.precision)


class Timer(Protocol):
    """Measures candidates, here or somewhere else."""

    def time(self, spec: ModelSpec, card: ModelCard, seed: int) -> list[Timing]:
        """One Timing a form, fastest first. Raises LatencyError, ExportError."""
        ...


class CandidateTimer:
    """Measures specs; records lie in `folder`, named by graph, input size, form, threads and host. memory: measure the
    peak of a fresh process too. references: the control's medians by runtime, in ms, when the target was first timed;
    None: they lie in the folder, or are taken when first needed."""

    def __init__(
        self,
        folder: Path,
        forms: list[Form],
        threads: int,
        limit_ms: float,
        machine: Machine = LOCAL,
        memory: bool = False,
        references: Mapping[str, float] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._host, self._forms, self._threads = folder, machine.host(), forms, threads
        self._plan = replace(_PLAN, hopeless_ms=_HOPELESS * limit_ms)
        self._machine, self._timer, self._memory = machine, WarmTimer(machine), memory
        self._references = dict(references or {})

    def __enter__(self) -> "CandidateTimer":
        self._timer.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._timer.__exit__(*exc)

    def time(self, spec: ModelSpec, card: ModelCard, seed: int) -> list[Timing]:
        timings = []
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "candidate.onnx"
            for form in self._forms:
                name = f"{spec.hash}-{spec.input_size}-{form}-{self._threads}-{self._host.key}.json"
                record = self._folder / name
                known = self._known(record)
                if known is None:
                    artifact = write_form(spec, card, seed, form, file, self._host)
                    known = self._measure(artifact.subject(self._threads), artifact.size_bytes)
                    write_record(record, known)
                timings.append(self._timing(known, form))
        return sorted(timings, key=lambda t: t.p90_ms)

    def _measure(self, subject: Subject, size_bytes: int) -> dict[str, Any]:
        """Again while the host is disturbed, a few times: no candidate shall be rejected for its neighbours."""
        for _ in range(_TRIES):
            measured = self._timer.time(subject, self._plan)
            if measured.unrest is None:
                break
        record = {**measured.as_dict(), "size_bytes": size_bytes}
        if self._memory:
            (fresh,) = measure([subject], 1, _PEAK_PLAN, self._machine)
            record["peak_mib"] = fresh.runs[0].peak_mib
        return record

    def _known(self, path: Path) -> dict[str, Any] | None:
        """A record that says all that is asked, and was not cut short as hopeless against a lower limit."""
        record = read_record(path)
        if record is None:
            return None
        samples = record["runs"][0]["samples_ms"]
        cut_short = len(samples) < self._plan.least
        hopeless = self._plan.hopeless_ms is not None and min(samples) > self._plan.hopeless_ms
        lacks = "size_bytes" not in record or (self._memory and "peak_mib" not in record)
        return None if lacks or (cut_short and not hopeless) else record

    def _timing(self, record: dict[str, Any], form: Form) -> Timing:
        run = ProcessRun.from_dict(record["runs"][0])
        drift = run.control_p50_ms / self._reference(form.runtime)
        lower, _ = quantile_bounds(list(run.samples_ms), 0.9, ALPHA)
        return Timing(
            str(form),
            run.p90_ms / drift,
            lower / drift,
            drift,
            run.effective_precision,
            record["size_bytes"],
            record.get("peak_mib"),
        )

    def references(self) -> dict[str, float]:
        """The control's median in ms by runtime, when this host was first timed in this run."""
        return {runtime: self._reference(runtime) for runtime in dict.fromkeys(f.runtime for f in self._forms)}

    def refer_to(self, references: Mapping[str, float]) -> None:
        """Those of a study that others take part in."""
        self._references |= references

    def _reference(self, runtime: str) -> float:
        if runtime in self._references:
            return self._references[runtime]
        path = self._folder / f"control-{runtime}-{self._threads}-{self._host.key}.json"
        known = read_record(path)
        if known is None:
            run = self._timer.time(Subject.of(CONTROL, runtime, "f32", self._threads), _CONTROL_PLAN).runs[0]
            known = {"p50_ms": percentile(run.samples_ms, 50), "format": FORMAT}
            write_record(path, known)
        p50_ms: float = known["p50_ms"]
        return p50_ms
