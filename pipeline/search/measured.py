"""Latency of a candidate, measured in the forms in which it can ship, once for each graph, size, form and host."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np

from export.artifact import Artifact, ModelCard
from export.errors import ExportError
from export.formats import FORMATS, Source
from export.onnx_export import export_onnx
from latency.calm import calm_of, seen_in
from latency.errors import InputError
from latency.host import INT8_DOT, Host
from latency.machine import LOCAL, Machine
from latency.measure import WarmTimer, measure
from latency.records import Measurement, ProcessRun
from latency.sampling import BLOCK, Plan
from models.build import build
from models.spec import ModelSpec
from pipeline.errors import PipelineError
from pipeline.files import read_record, write_record

_PLAN = Plan(samples=80, seconds=0.2, warmup_seconds=0.2)
_PEAK_PLAN = Plan(samples=BLOCK, seconds=0.1, least=BLOCK, warmup_seconds=0.0)
_AGAIN = 2
"""So many more timings of a candidate whose p90 is near the limit, each of the form that is fastest by then."""
_NEAR = 1.2
"""Within this factor of the limit a candidate is timed again, before it is given up or trained."""
_LEARNT_FROM, _WINS = 4, 1.1
"""From so many candidates it is learnt which forms win: those that were within this factor of the fastest."""
_INT8_GAIN = 4.0
"""INT8 is at most so many times as fast as the fastest of the other forms, until it is learnt how much it is here."""
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
    """The p90 of a form, as it would be with this host at rest (`latency.calm`). p90_lower_ms: its lower bound, of
    which the constraint is made. control_p50_ms, control_p90_ms: of the control in the calmest blocks beside it,
    medians over the `timings`. rest_p90_ms: what the control's p90 at rest was taken to be. peak_mib: of a fresh
    process that runs it; None where no limit of memory is set.
    """

    form: str
    p90_ms: float
    p90_lower_ms: float
    control_p50_ms: float
    control_p90_ms: float
    rest_p90_ms: float
    timings: int
    effective_precision: str
    size_bytes: int
    peak_mib: float | None = None


def forms(
    runtimes: tuple[str, ...], precisions: tuple[str, ...], host: Host, asked: tuple[str, ...] | None = None
) -> list[Form]:
    """The forms that can ship and that this host can run; of these the ones asked for (`search.measure`), or all.
    Raises PipelineError where none is left."""
    able = [
        Form(runtime, precision)
        for runtime in runtimes
        for precision in precisions
        if precision != "bf16" or (runtime == "openvino" and host.has_bf16)
    ]
    found = [f for f in able if not asked or str(f) in asked]
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
    peak of a fresh process too. learns: after the first few candidates, time only the forms that win here."""

    def __init__(
        self,
        folder: Path,
        forms: list[Form],
        threads: int,
        limit_ms: float,
        machine: Machine = LOCAL,
        memory: bool = False,
        learns: bool = False,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._host, self._forms, self._threads = folder, machine.host(), forms, threads
        self._limit_ms, self._plan = limit_ms, replace(_PLAN, hopeless_ms=_HOPELESS * limit_ms)
        self._machine, self._timer, self._memory, self._learns = machine, WarmTimer(machine), memory, learns
        self._seen: dict[str, list[tuple[float, float]]] = {}
        self._found: dict[str, dict[Form, float]] = {}
        """p90 in ms at rest, by candidate and form."""
        paths = sorted(folder.glob(f"*-{threads}-{self._host.key}.json"))
        known = {path: record for path in paths if (record := read_record(path))}
        for record in known.values():
            self._learn(record)
        for path, record in known.items():
            if "size_bytes" in record:
                form = Form(record["runtime"], record["precision"])
                candidate = path.name.partition(f"-{form}-")[0]
                self._found.setdefault(candidate, {})[form] = self._timing(record, form).p90_ms

    def __enter__(self) -> "CandidateTimer":
        self._timer.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._timer.__exit__(*exc)

    def time(self, spec: ModelSpec, card: ModelCard, seed: int) -> list[Timing]:
        """Each form once; where the limit is near, the fastest again, up to _AGAIN times."""
        records: dict[Form, dict[str, Any]] = {}
        failed: dict[Form, Exception] = {}
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "candidate.onnx"
            made = cache(lambda form: write_form(spec, card, seed, form, file, self._host))
            for form in self._wanted():
                if form.precision == "int8" and self._too_slow_for_int8(records):
                    break
                try:
                    records[form] = self._timed(spec, form, made, least=1)
                except (ExportError, InputError) as error:  # a runtime that cannot take it; another one may
                    failed[form] = error
            if not records:
                raise next(iter(failed.values()))
            found = {form: self._timing(record, form) for form, record in records.items()}
            while sum(t.timings - 1 for t in found.values()) < _AGAIN:
                fastest = min(found, key=lambda f: found[f].p90_ms)
                if not self._limit_ms / _NEAR < found[fastest].p90_ms < self._limit_ms * _NEAR:
                    break
                records[fastest] = self._timed(spec, fastest, made, least=found[fastest].timings + 1)
                found = {form: self._timing(record, form) for form, record in records.items()}
        self._found[_name(spec)] = {form: timing.p90_ms for form, timing in found.items()}
        return sorted(found.values(), key=lambda t: t.p90_ms)

    def _too_slow_for_int8(self, records: dict[Form, dict[str, Any]]) -> bool:
        """Whether INT8 could not make up for what the other forms are over the limit."""
        fastest = min((self._timing(r, f).p90_ms for f, r in records.items()), default=0.0)
        return fastest > _NEAR * self._int8_gain() * self._limit_ms

    def _int8_gain(self) -> float:
        """How many times as fast as the fastest of the other forms INT8 was at most."""
        quick, int8 = ([f for f in self._forms if (f.precision == "int8") == is_int8] for is_int8 in (False, True))
        both = [found for found in self._found.values() if set(quick) <= set(found) and set(int8) <= set(found)]
        if len(both) < _LEARNT_FROM or not quick:
            return _INT8_GAIN
        return max(min(found[f] for f in quick) / min(found[f] for f in int8) for found in both)

    def _wanted(self) -> list[Form]:
        """All forms at first, and then those that were the fastest of some candidate, or nearly so. INT8, which takes
        long to make, comes last, behind one that is quick to make."""
        forms = self._forms
        whole = [found for found in self._found.values() if set(forms) <= set(found)]
        if self._learns and len(whole) >= _LEARNT_FROM:
            forms = [f for f in forms if any(found[f] <= _WINS * min(found.values()) for found in whole)]
            quick = [f for f in self._forms if f.precision != "int8"]
            if quick and not set(quick) & set(forms):
                forms = [min(quick, key=lambda f: median(found[f] for found in whole)), *forms]
        return sorted(forms, key=lambda f: f.precision == "int8")

    def _timed(self, spec: ModelSpec, form: Form, made: Callable[[Form], Artifact], least: int) -> dict[str, Any]:
        """The record of a form, with so many timings at least. made: its file. Raises ExportError, LatencyError."""
        path = self._folder / f"{_name(spec)}-{form}-{self._threads}-{self._host.key}.json"
        record = self._known(path)
        if record is None or len(record["runs"]) < least:
            artifact = made(form)
            subject = artifact.subject(self._threads)
            measured = self._timer.time(subject, self._plan)
            if _cut_short(measured.as_dict(), self._plan) and not self._far_over(measured):
                measured = self._timer.time(subject, replace(self._plan, hopeless_ms=None))  # it was the neighbours
            runs = [*(record["runs"] if record else ()), *measured.as_dict()["runs"]]
            record = {**measured.as_dict(), "runs": runs, "size_bytes": artifact.size_bytes}
            if self._memory:
                (fresh,) = measure([subject], 1, _PEAK_PLAN, self._machine)
                record["peak_mib"] = fresh.runs[0].peak_mib
            write_record(path, record)
            self._learn(measured.as_dict())
        return record

    def _far_over(self, measured: Measurement) -> bool:
        runtime = measured.subject.runtime
        calm = calm_of([*self._seen.get(runtime, ()), *seen_in(measured.runs)])
        return calm.estimate(measured.runs).p90_ms > _NEAR * self._limit_ms

    def _learn(self, record: dict[str, Any]) -> None:
        """What the control took beside this."""
        runs = [ProcessRun.from_dict(r) for r in record["runs"]]
        self._seen.setdefault(record["runtime"], []).extend(seen_in(runs))

    def _known(self, path: Path) -> dict[str, Any] | None:
        """A record that says all that is asked, and was not cut short as hopeless against a lower limit."""
        record = read_record(path)
        if record is None:
            return None
        samples = record["runs"][0]["samples_ms"]
        hopeless = self._plan.hopeless_ms is not None and min(samples) > self._plan.hopeless_ms
        lacks = "size_bytes" not in record or (self._memory and "peak_mib" not in record)
        return None if lacks or (_cut_short(record, self._plan) and not hopeless) else record

    def _timing(self, record: dict[str, Any], form: Form) -> Timing:
        runs = [ProcessRun.from_dict(r) for r in record["runs"]]
        calm = calm_of(self._seen[form.runtime])
        found = calm.estimate(runs)
        return Timing(
            str(form),
            found.p90_ms,
            found.low_ms,
            median(p50_ms for p50_ms, _ in seen_in(runs)),
            median(p90_ms for _, p90_ms in seen_in(runs)),
            calm.p90_ms,
            len(runs),
            runs[0].effective_precision,
            record["size_bytes"],
            record.get("peak_mib"),
        )


def _name(spec: ModelSpec) -> str:
    return f"{spec.hash}-{spec.input_size}"


def _cut_short(record: dict[str, Any], plan: Plan) -> bool:
    return len(record["runs"][0]["samples_ms"]) < plan.least
