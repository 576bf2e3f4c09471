"""The files that race: the same network as torch has, to the logit, and timed in turn."""

import math
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from export.artifact import Artifact, ModelCard
from export.errors import ExportError
from export.formats import FORMATS, Format, Source
from export.onnx_export import Deployable, export_onnx
from export.openvino_export import read_onnx, save_ir
from export.parity import Parity, logits_of, tolerance
from export.quantize import calibration_images
from latency.host import INT8_DOT, this_host
from latency.measure import measure
from latency.records import Measurement
from latency.sampling import Plan
from pipeline.data.images import decoded
from pipeline.data.stage import load_index
from pipeline.rest import p90s_at_rest_ms
from pipeline.show.live import bar
from pipeline.stages import Run
from pipeline.training.checkpoint import load_checkpoint

_PROCESSES = 3
_PLAN = Plan(samples=150, seconds=0.5)
_BATCHES = (2, 8)
_BATCH_IMAGES = 16


@dataclass(frozen=True)
class Candidate:
    """A file in one precision. format: a key of FORMATS, `trained` or `mixed`. kept: layers that went back to f32.
    p90_ms: with the host at rest, estimated from `timed`."""

    format: str
    artifact: Artifact
    parity: Parity
    timed: Measurement | None = None
    kept: tuple[str, ...] = ()
    p90_ms: float = math.nan

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


def artifacts(run: Run) -> list[tuple[str, Artifact]]:
    found = []
    # Every file is checked against torch on this machine too, wherever it is timed.
    bf16 = run.host.has_bf16 and this_host().has_bf16
    for name, form in race_formats(run).items():
        stage = "quantize" if form.quantized else "export"
        if not run.has(stage, form.file):
            continue
        path = run.model(stage, form.file)
        for precision in form.precisions:
            if precision in run.config.latency.precisions and (precision != "bf16" or bf16):
                found.append((name, Artifact(path, form.runtime, precision)))
    return found


def split_arrays(run: Run, card: ModelCard, split: str) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 (n, size, size, 3), labels) through the shipped Preprocess."""
    index = load_index(run)
    return decoded(index, split, card.preprocess, run.cache), np.array(index.labels(split))


def torch_logits(network: Deployable, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        batches = (torch.from_numpy(images[i : i + 64].copy()) for i in range(0, len(images), 64))
        return np.concatenate([network(batch).numpy() for batch in batches])


def check_f32(candidates: list[Candidate], reference: np.ndarray) -> None:
    allowed = tolerance(reference)
    for c in candidates:
        if c.artifact.precision == "f32" and (c.parity.max_diff > allowed or c.parity.flipped):
            raise ExportError(
                f"{c.artifact.path.name} with {c.artifact.runtime}: a logit differs from torch's by "
                f"{c.parity.max_diff:.3g} (allowed {allowed:.3g}) and {c.parity.flipped} labels differ: the export is "
                "wrong, do not ship it"
            )


def check_batches(network: Deployable, card: ModelCard, images: np.ndarray, runtimes: Iterable[str]) -> None:
    """The same network exported for other batch sizes answers as torch does, in these runtimes."""
    images = images[:_BATCH_IMAGES]
    reference = torch_logits(network, images)
    with tempfile.TemporaryDirectory() as folder:
        for batch in (b for b in _BATCHES if b <= len(images)):
            files = {
                "onnxruntime": Path(folder) / f"batch-{batch}.onnx",
                "openvino": Path(folder) / f"batch-{batch}.xml",
            }
            export_onnx(network.model, replace(card, batch=batch), files["onnxruntime"])
            if "openvino" in runtimes:
                save_ir(read_onnx(files["onnxruntime"]), card, files["openvino"])
            for runtime, path in ((r, files[r]) for r in runtimes):
                logits = logits_of(Artifact(path, runtime, "f32"), images)
                off = float(np.abs(logits - reference[: len(logits)]).max())
                if off > tolerance(reference):
                    raise ExportError(f"at batch {batch}, {runtime} differs from torch by {off:.3g} in a logit")


def time_in_turn(run: Run, candidates: list[Candidate]) -> list[Candidate]:
    """All in turn, and compared as they would be with the host at rest: in a busy minute some of so few processes are
    disturbed and others are not, and the control says which."""
    subjects = [c.artifact.subject(run.config.latency.threads) for c in candidates]
    with bar("timing in turn") as tick:
        timed = measure(subjects, _PROCESSES, _PLAN, run.machine, tick=tick)
    p90s_ms = p90s_at_rest_ms(run, timed)
    return [replace(c, timed=m, p90_ms=ms) for c, m, ms in zip(candidates, timed, p90s_ms, strict=True)]


def run_source(run: Run) -> Source:
    """What the formats of a finished student are made from."""
    card = load_checkpoint(run.file("distill", "student.safetensors"))[1]
    images = calibration_images(
        load_index(run).unchanged("train"), card.preprocess, run.config.quantize.images, run.config.seed
    )
    return Source(run.model("export", FORMATS["onnx"].file), card, images, not run.host.has_any(INT8_DOT))
