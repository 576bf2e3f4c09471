"""The formats that a student can be written in, each checked once it is written. Known without torch."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from export.artifact import Artifact, ModelCard
from export.errors import ExportError, FormatError
from export.openvino_export import read_onnx, save_ir
from export.parity import logits_of, tolerance
from export.quantize import quantize_onnx, quantize_openvino
from latency.runners.ov import explain
from models.language import nearest

CHECKED_IMAGES = 16


@dataclass(frozen=True)
class Source:
    """What all formats are made from: the f32 ONNX file. images: uint8 (n, size, size, 3), for calibration.
    saturates: the CPU that it will run on has no 8-bit dot products."""

    onnx: Path
    card: ModelCard
    images: np.ndarray | None = None
    saturates: bool = False


Writer = Callable[[Source, Path, Sequence[str]], None]


@dataclass(frozen=True)
class Format:
    """precisions: it can be run in. needs: packages that write and check it. write: from a source to a path; an INT8
    format leaves the layers named in f32."""

    file: str
    runtime: str
    precisions: tuple[str, ...]
    about: str
    needs: tuple[str, ...]
    write: Writer

    @property
    def quantized(self) -> bool:
        return self.precisions == ("int8",)

    @property
    def missing(self) -> list[str]:
        return [name for name in self.needs if find_spec(name) is None]


def _onnx(source: Source, path: Path, _keep: Sequence[str]) -> None:
    if path == source.onnx:
        return
    path.write_bytes(source.onnx.read_bytes())


def _ort(source: Source, path: Path, _keep: Sequence[str]) -> None:
    """ONNX Runtime's own format, by the runtime itself; graph optimizations that need this very CPU are left out."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(str(source.onnx), options, providers=["CPUExecutionProvider"])


def _onnx_int8(per_channel: bool, unsigned: bool) -> Writer:
    def write(source: Source, path: Path, keep: Sequence[str]) -> None:
        reduce_range = unsigned and source.saturates
        images = _calibration(source)
        quantize_onnx(source.onnx, images, source.card, path, per_channel, unsigned, reduce_range, keep)

    return write


def _openvino(f16: bool) -> Writer:
    return lambda source, path, _keep: save_ir(read_onnx(source.onnx), source.card, path, f16)


def _openvino_int8(fast: bool) -> Writer:
    return lambda source, path, keep: quantize_openvino(
        source.onnx, _calibration(source), source.card, path, fast, keep, source.saturates
    )


def _calibration(source: Source) -> np.ndarray:
    if source.images is None:
        raise ExportError("INT8 is calibrated on training images: give a folder of them with --images")
    return source.images


_ORT, _OV = ("onnx", "onnxruntime"), ("openvino",)
FORMATS: dict[str, Format] = {
    "onnx": Format("model.onnx", "onnxruntime", ("f32",), "ONNX, opset 18", _ORT, _onnx),
    "ort": Format(
        "model.ort", "onnxruntime", ("f32",), "ONNX Runtime's own format, for its minimal builds", _ORT, _ort
    ),
    "onnx-int8": Format(
        "model-int8.onnx", "onnxruntime", ("int8",), "QDQ, S8S8, weights by channel", _ORT, _onnx_int8(True, False)
    ),
    "onnx-int8-tensor": Format(
        "model-int8-tensor.onnx",
        "onnxruntime",
        ("int8",),
        "QDQ, S8S8, weights by tensor",
        _ORT,
        _onnx_int8(False, False),
    ),
    "onnx-int8-u8": Format(
        "model-int8-u8.onnx", "onnxruntime", ("int8",), "QDQ, U8S8, weights by channel", _ORT, _onnx_int8(True, True)
    ),
    "onnx-int8-u8-tensor": Format(
        "model-int8-u8-tensor.onnx",
        "onnxruntime",
        ("int8",),
        "QDQ, U8S8, weights by tensor",
        _ORT,
        _onnx_int8(False, True),
    ),
    "openvino": Format(
        "model.xml", "openvino", ("f32", "bf16"), "OpenVINO IR, weights in 32 bits", _OV, _openvino(False)
    ),
    "openvino-f16": Format(
        "model-f16.xml",
        "openvino",
        ("f32", "bf16"),
        "OpenVINO IR, weights in 16 bits: half the file",
        _OV,
        _openvino(True),
    ),
    "openvino-int8": Format(
        "model-int8.xml", "openvino", ("int8",), "NNCF, full bias correction", (*_OV, "nncf"), _openvino_int8(False)
    ),
    "openvino-int8-fast": Format(
        "model-int8-fast.xml", "openvino", ("int8",), "NNCF, fast bias correction", (*_OV, "nncf"), _openvino_int8(True)
    ),
}


@dataclass(frozen=True)
class Written:
    """status: passed, exported-but-invalid, or failed. reason: why, or how far from the f32 file it answers."""

    format: str
    status: str
    reason: str
    path: str | None = None
    size_bytes: int = 0


def write_formats(source: Source, names: Sequence[str], folder: Path) -> list[Written]:
    """Each into `folder`, and checked; one that fails does not stop the others."""
    folder.mkdir(parents=True, exist_ok=True)
    size = source.card.input_size
    images = np.random.default_rng(0).integers(0, 256, (CHECKED_IMAGES, size, size, 3), dtype=np.uint8)
    if source.images is not None:
        images = source.images[:CHECKED_IMAGES]
    reference = logits_of(Artifact(source.onnx, "onnxruntime", "f32"), images)
    return [_write(source, name, folder / FORMATS[name].file, images, reference) for name in names]


def _write(source: Source, name: str, path: Path, images: np.ndarray, reference: np.ndarray) -> Written:
    format = FORMATS[name]
    if format.missing:
        return Written(name, "failed", f"needs {', '.join(format.missing)}: pip install {' '.join(format.missing)}")
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        try:
            format.write(source, Path(scratch) / path.name, ())
        except Exception as error:  # the runtimes' own exceptions share no base class but this; one row fails, told why
            return Written(name, "failed", explain(error))
        for file in Path(scratch).iterdir():
            file.replace(path.parent / file.name)
    artifact = Artifact(path, format.runtime, format.precisions[0])
    try:
        logits = logits_of(artifact, images)
    except ExportError as error:
        return Written(name, "exported-but-invalid", str(error), str(path), artifact.size_bytes)
    difference = float(np.abs(logits - reference).max())
    agree = float((logits.argmax(1) == reference.argmax(1)).mean())
    told = f"largest difference of a logit to the f32 ONNX file {difference:.2g}, labels agree on {agree:.0%}"
    exact = not format.quantized and "f16" not in name
    valid = bool(np.isfinite(logits).all()) and (not exact or difference <= tolerance(reference))
    return Written(name, "passed" if valid else "exported-but-invalid", told, str(path), artifact.size_bytes)


def parse_formats(text: str) -> tuple[str, ...]:
    """Names separated by commas. Raises FormatError naming the known ones."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        near = nearest(unknown[0], FORMATS) if unknown else ""
        raise FormatError(
            f"--format {','.join(unknown) or 'nothing'}: expected some of {', '.join(FORMATS)}, with commas{near}"
        )
    return names


def table() -> list[dict[str, Any]]:
    """What `edgebuild export --list` prints."""
    return [
        {
            "format": name,
            "file": f.file,
            "precisions": list(f.precisions),
            "read_by": f.runtime,
            "needs": list(f.needs),
            "missing": f.missing,
            "about": f.about,
        }
        for name, f in FORMATS.items()
    ]
