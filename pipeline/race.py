"""The stage `verify`: is every file the network that was trained, and which ships? The fastest that keeps its F1."""

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.artifact import Artifact, ModelCard
from export.errors import ExportError
from export.formats import FORMATS, Format, Source
from export.mixed import CannotReach, Mixture, keep_f1
from export.onnx_export import Deployable, deployable, export_onnx
from export.openvino_export import read_onnx, save_ir
from export.parity import Parity, compare, f1_per_class, logits_of, scores, tolerance
from export.portability import on_older_cpu, relies_on
from export.quantize import calibration_images
from latency.host import INT8_DOT, this_host
from latency.measure import measure
from latency.profile import profile as profile_kernels
from latency.records import Measurement
from latency.sampling import Plan
from pipeline import FORMAT
from pipeline.checkpoint import load_checkpoint, restore
from pipeline.files import write_json
from pipeline.images import decoded
from pipeline.learn import load_index
from pipeline.stages import Run, Stage

_PROCESSES = 3
_PLAN = Plan(samples=150, seconds=0.5)
_ALIKE = 1.03
"""p90s within 3 % of the fastest are not told apart by so few processes: among them the best F1 ships."""
_BATCHES = (2, 8)
_BATCH_IMAGES = 16
_QUICK_IMAGES = 32
"""Enough to rank the layers with."""
_COSTLY = 3
"""Findings of the profiler that are told of a slow INT8 file."""


@dataclass(frozen=True)
class Candidate:
    """A file in one precision. format: a key of FORMATS, or `mixed`. kept: layers that went back to f32."""

    format: str
    artifact: Artifact
    parity: Parity
    timed: Measurement | None = None
    kept: tuple[str, ...] = ()

    @property
    def p90_ms(self) -> float:
        assert self.timed is not None
        return float(self.timed.summary()["p90_ms"])

    @property
    def name(self) -> str:
        return f"{self.format} {self.artifact.precision}"


def race_formats(run: Run) -> dict[str, Format]:
    """The formats that the config lets race: f32 files of its runtimes, INT8 ones where it asks for them."""
    latency = run.config.latency
    wanted = [n for n in FORMATS if n in ("onnx", "openvino") or FORMATS[n].quantized]
    return {
        n: FORMATS[n]
        for n in wanted
        if FORMATS[n].runtime in latency.runtimes and (not FORMATS[n].quantized or "int8" in latency.precisions)
    }


def _artifacts(run: Run) -> list[tuple[str, Artifact]]:
    found = []
    # Every file is checked against torch on this machine too, wherever it is timed.
    bf16 = run.host.has_bf16 and this_host().has_bf16
    for name, form in race_formats(run).items():
        path = run.file("quantize" if form.quantized else "export", form.file)
        for precision in form.precisions:
            if precision in run.config.latency.precisions and (precision != "bf16" or bf16) and path.is_file():
                found.append((name, Artifact(path, form.runtime, precision)))
    return found


def _inputs(run: Run) -> dict[str, Any]:
    latency = run.config.latency
    return {
        "files": [m["outputs"] for s in ("export", "quantize") if (m := run.manifest(s))],
        "data": load_index(run).hash,
        "host": run.host.key,
        "runtimes": latency.runtimes,
        "precisions": latency.precisions,
        "threads": latency.threads,
        "quantize": run.config.quantize.model_dump(),
        "seed": run.config.seed,
    }


def _verify(run: Run, work: Path) -> dict[str, Any]:
    index = load_index(run)
    checkpoint = run.file("distill", "student.safetensors")
    spec, card, state = load_checkpoint(checkpoint)
    images, labels = split_arrays(run, card, "val")
    network = deployable(restore(spec, state, checkpoint), card)
    reference = _torch_logits(network, images)
    torch_f1, torch_accuracy = scores(reference, labels)
    candidates = [Candidate(n, a, compare(reference, logits_of(a, images), labels)) for n, a in _artifacts(run)]
    if not candidates:
        raise ExportError("no file to race: latency.precisions and latency.runtimes leave none that can be run here")
    _check_f32(candidates, reference)
    _check_batches(network, card, images[:_BATCH_IMAGES])
    run.say(f"verify: the f32 files agree with torch; timing {len(candidates)} forms in turn")
    candidates = _time(run, candidates)
    floor = torch_f1 - run.config.quantize.max_f1_drop
    kept = [c for c in candidates if c.parity.f1_macro >= floor]
    candidates, control = _accuracy_control(run, work, candidates, kept, reference, images, labels, floor)
    kept = [c for c in candidates if c.parity.f1_macro >= floor]
    if not kept:
        raise ExportError(
            f"no file keeps F1 {floor:.4f} (torch {torch_f1:.4f} less quantize.max_f1_drop): "
            "add f32 to latency.precisions, or allow a larger drop"
        )
    fastest = min(kept, key=lambda c: c.p90_ms)
    alike = [c for c in kept if c.p90_ms <= _ALIKE * fastest.p90_ms]
    shipped = max(alike, key=lambda c: (c.parity.f1_macro, -c.p90_ms))
    split = index.final_split
    final_images, final_labels = (images, labels) if split == "val" else split_arrays(run, card, split)
    final = logits_of(shipped.artifact, final_images)
    f1, accuracy = scores(final, final_labels)
    portability = _portability(shipped.artifact, images, labels, floor)
    summary = {
        "torch": {"f1_macro": torch_f1, "accuracy": torch_accuracy},
        "race": [_row(c, shipped, kept, run.config.latency.threads) for c in candidates],
        "why": _why(shipped, fastest, kept, candidates, floor),
        "slow_int8": _slow_int8(run, candidates),
        "accuracy_control": control,
        "shipped": {
            "path": _shipped_path(run, shipped),
            "runtime": shipped.artifact.runtime,
            "precision": shipped.artifact.precision,
            "sha256": shipped.artifact.subject(run.config.latency.threads).sha256,
        },
        "portability": portability,
        "quality": {
            "f1_macro": f1,
            "accuracy": accuracy,
            "split": split,
            "selected_on": split == "val",
            "f1_per_class": f1_per_class(final, final_labels, index.classes),
        },
        "f1_macro_val": shipped.parity.f1_macro,
        "guesses": [index.classes[i] for i in final.argmax(1)],
    }
    write_json(work / "race.json", {"format": FORMAT, **summary})
    write_json(work / "measurements.json", [c.timed.as_dict() for c in candidates if c.timed])
    return {k: v for k, v in summary.items() if k != "guesses"}


def _shipped_path(run: Run, shipped: Candidate) -> str:
    """Relative to the run folder; a mixed file still lies in this stage's working folder, which will be `verify`."""
    path = shipped.artifact.path
    return f"verify/{path.name}" if shipped.format == "mixed" else str(path.relative_to(run.folder))


def split_arrays(run: Run, card: ModelCard, split: str) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 (n, size, size, 3), labels) through the shipped Preprocess."""
    index = load_index(run)
    return decoded(index, split, card.preprocess, run.cache), np.array(index.labels(split))


# --- parity -----------------------------------------------------------------------------------------------------------


def _torch_logits(network: Deployable, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        batches = (torch.from_numpy(images[i : i + 64].copy()) for i in range(0, len(images), 64))
        return np.concatenate([network(batch).numpy() for batch in batches])


def _check_f32(candidates: list[Candidate], reference: np.ndarray) -> None:
    allowed = tolerance(reference)
    for c in candidates:
        if c.artifact.precision == "f32" and (c.parity.max_diff > allowed or c.parity.flipped):
            raise ExportError(
                f"{c.artifact.path.name} with {c.artifact.runtime}: a logit differs from torch's by "
                f"{c.parity.max_diff:.3g} (allowed {allowed:.3g}) and {c.parity.flipped} labels differ: the export is "
                "wrong, do not ship it"
            )


def _check_batches(network: Deployable, card: ModelCard, images: np.ndarray) -> None:
    """The same network exported for other batch sizes answers as torch does, in both runtimes."""
    reference = _torch_logits(network, images)
    with tempfile.TemporaryDirectory() as folder:
        for batch in (b for b in _BATCHES if b <= len(images)):
            onnx_file, ir_file = (Path(folder) / f"batch-{batch}{s}" for s in (".onnx", ".xml"))
            export_onnx(network.model, replace(card, batch=batch), onnx_file)
            save_ir(read_onnx(onnx_file), card, ir_file)
            for path, runtime in ((onnx_file, "onnxruntime"), (ir_file, "openvino")):
                logits = logits_of(Artifact(path, runtime, "f32"), images)
                off = float(np.abs(logits - reference[: len(logits)]).max())
                if off > tolerance(reference):
                    raise ExportError(f"at batch {batch}, {runtime} differs from torch by {off:.3g} in a logit")


# --- the race ---------------------------------------------------------------------------------------------------------


def _time(run: Run, candidates: list[Candidate]) -> list[Candidate]:
    """All in turn, so that what the host does to one it does to the others."""
    subjects = [c.artifact.subject(run.config.latency.threads) for c in candidates]
    timed = measure(subjects, _PROCESSES, _PLAN, run.machine)
    return [replace(c, timed=m) for c, m in zip(candidates, timed, strict=True)]


def _accuracy_control(
    run: Run,
    work: Path,
    candidates: list[Candidate],
    kept: list[Candidate],
    reference: np.ndarray,
    images: np.ndarray,
    labels: np.ndarray,
    floor: float,
) -> tuple[list[Candidate], list[dict[str, Any]]]:
    """For a runtime whose INT8 is the fastest but loses too much: layers back to f32. Times all again with it."""
    told, found = [], list(candidates)
    best = min((c.p90_ms for c in kept), default=float("inf"))
    for runtime in run.config.latency.runtimes:
        int8 = [c for c in candidates if c.artifact.runtime == runtime and c.artifact.precision == "int8"]
        if not int8 or any(c in kept for c in int8):
            continue
        fastest = min(int8, key=lambda c: c.p90_ms)
        entry: dict[str, Any] = {"runtime": runtime, "budget_s": run.config.quantize.seconds}
        if fastest.p90_ms >= best:
            told.append(
                {**entry, "status": "not tried", "told": f"INT8 takes {fastest.p90_ms:.3f} ms, another {best:.3f}"}
            )
            continue
        run.say(f"verify: {runtime} INT8 loses too much F1; up to {entry['budget_s']:.0f} s for layers back in f32")
        path = work / f"model-int8-mixed{fastest.artifact.path.suffix}"
        try:
            mixture = _mix(run, fastest, path, images, labels, floor)
        except CannotReach as error:
            told.append({**entry, "status": "cannot be reached", "told": str(error)})
            continue
        artifact = Artifact(path, runtime, "int8")
        found.append(
            Candidate("mixed", artifact, compare(reference, logits_of(artifact, images), labels), kept=mixture.kept)
        )
        told.append(
            {
                **entry,
                "status": "reached",
                "told": f"{len(mixture.kept)} of {mixture.layers} layers in f32",
                **asdict(mixture),
            }
        )
    return (_time(run, found) if len(found) > len(candidates) else found), told


def _mix(run: Run, fastest: Candidate, path: Path, images: np.ndarray, labels: np.ndarray, floor: float) -> Mixture:
    """The fastest INT8 format of its runtime, with as few layers in f32 as it takes."""
    source = run_source(run)
    assert source.images is not None
    few = replace(source, images=source.images[:_QUICK_IMAGES])
    runtime = fastest.artifact.runtime
    full, quick = FORMATS[fastest.format], FORMATS["openvino-int8-fast" if runtime == "openvino" else fastest.format]
    return keep_f1(
        source.onnx,
        runtime,
        lambda file, keep: quick.write(few, file, keep),
        lambda file, keep: full.write(source, file, keep),
        source.images,
        lambda artifact: scores(logits_of(artifact, images), labels)[0],
        floor,
        path,
        run.config.quantize.seconds,
    )


def run_source(run: Run) -> Source:
    """What the formats of a finished student are made from."""
    card = load_checkpoint(run.file("distill", "student.safetensors"))[1]
    images = calibration_images(
        load_index(run).paths("train"), card.preprocess, run.config.quantize.images, run.config.seed
    )
    return Source(run.file("export", FORMATS["onnx"].file), card, images, not run.host.has_any(INT8_DOT))


def _row(c: Candidate, shipped: Candidate, kept: list[Candidate], threads: int) -> dict[str, Any]:
    assert c.timed is not None
    summary = c.timed.summary()
    verdict = "loses too much F1"
    if c in kept:
        verdict = "shipped" if c is shipped else "slower" if c.p90_ms > shipped.p90_ms else "as fast, lower F1"
    return {
        "format": c.format,
        **c.artifact.as_dict(),
        "sha256": c.timed.subject.sha256,
        "effective_precision": c.timed.effective_precision,
        **asdict(c.parity),
        **{k: summary[k] for k in ("p50_ms", "p90_ms", "cold_ms", "load_ms")},
        "verdict": verdict,
    }


def _why(shipped: Candidate, fastest: Candidate, kept: list[Candidate], all_of: list[Candidate], floor: float) -> str:
    """The winner's reason, in words."""
    told = f"{shipped.name}: of {len(all_of)} forms {len(kept)} keep F1 {floor:.4f}; "
    others = sorted((c for c in kept if c is not shipped), key=lambda c: c.p90_ms)
    if shipped is fastest:
        told += f"the fastest of these, p90 {shipped.p90_ms:.3f} ms"
        told += f", next {others[0].name} at {others[0].p90_ms:.3f} ms" if others else ""
    else:
        told += (
            f"p90 {shipped.p90_ms:.3f} ms is within {_ALIKE - 1:.0%} of the fastest ({fastest.name}, "
            f"{fastest.p90_ms:.3f} ms), and its F1 is higher: {shipped.parity.f1_macro:.4f}"
        )
    lost = [c for c in all_of if c not in kept and c.p90_ms < shipped.p90_ms]
    return told + (f"; faster but losing too much F1: {', '.join(c.name for c in lost)}" if lost else "")


def _slow_int8(run: Run, candidates: list[Candidate]) -> list[dict[str, Any]]:
    """For each runtime whose INT8 is no faster than its f32 file: the operators that cost it, costliest first."""
    told = []
    for runtime in run.config.latency.runtimes:
        own = [c for c in candidates if c.artifact.runtime == runtime]
        int8 = [c for c in own if c.artifact.precision == "int8" and c.format != "mixed"]
        f32 = [c for c in own if c.artifact.precision == "f32"]
        if not int8 or not f32:
            continue
        best = min(int8, key=lambda c: c.p90_ms)
        if best.p90_ms < f32[0].p90_ms:
            continue
        found = profile_kernels(best.artifact.subject(run.config.latency.threads), machine=run.machine)
        told.append(
            {
                "file": best.name,
                "p90_ms": best.p90_ms,
                "f32_p90_ms": f32[0].p90_ms,
                "operators": [{k: v for k, v in asdict(f).items() if k != "ms"} for f in found.not_int8[:_COSTLY]],
            }
        )
    return told


def _portability(artifact: Artifact, images: np.ndarray, labels: np.ndarray, floor: float) -> dict[str, Any]:
    """The shipped file with this CPU's newer instructions switched off."""
    if artifact.precision == "bf16":
        return {"how": "bf16 needs a CPU that has it", "images": 0, "relies_on": relies_on("bf16", False)}
    older = on_older_cpu(artifact, images, this_host())
    if older.logits is None:
        return {"how": older.how, "images": 0, "relies_on": relies_on(artifact.precision, older.is_this)}
    count = len(older.logits)
    here = logits_of(artifact, images[:count])
    parity = compare(here, older.logits, labels[:count])
    return {
        "how": older.how,
        "images": count,
        **asdict(parity),
        "relies_on": relies_on(artifact.precision, count == len(images) and parity.f1_macro >= floor),
    }


VERIFY = Stage("verify", ("export", "quantize"), _inputs, _verify)
