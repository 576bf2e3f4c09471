"""Runtimes that can load a file and run it. A new one is one file beside this and one entry in RUNNERS."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from latency.errors import LatencyError
from latency.runners import ort, ov

PRECISIONS = ("f32", "bf16", "int8")
"""f32 and bf16: how layers that are not quantized are computed. int8: a quantized file as it is, the rest in f32."""


class Session(Protocol):
    """A loaded model. shape: of its one input, all dimensions fixed; dtype: numpy's name of its element type."""

    shape: tuple[int, ...]
    dtype: str
    effective_precision: str
    settings: dict[str, Any]

    def infer(self, images: np.ndarray) -> np.ndarray:
        """One inference: an array of `shape` and `dtype` in, the first output out."""
        ...


class Runner(Protocol):
    def __call__(self, path: Path, precision: str, threads: int) -> Session:
        """Load a file. Raises LatencyError where the file, the precision or the runtime does not allow it."""
        ...


RUNNERS: dict[str, Runner] = {"onnxruntime": ort.load, "openvino": ov.load}


def open_session(path: Path, runtime: str, precision: str, threads: int) -> Session:
    """Load `path` with the runner of that name. Raises LatencyError."""
    if runtime not in RUNNERS:
        raise LatencyError(f"unknown runtime {runtime!r}; known: {', '.join(RUNNERS)}")
    if precision not in PRECISIONS:
        raise LatencyError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    if not path.is_file():
        raise LatencyError(f"{path}: no such file")
    return RUNNERS[runtime](path, precision, threads)


def runtime_of(path: Path) -> str:
    """The runtime that a file is meant for, by its suffix: .onnx or .ort, .xml."""
    known = {".onnx": "onnxruntime", ".ort": "onnxruntime", ".xml": "openvino"}
    if path.suffix not in known:
        raise LatencyError(f"{path}: no runtime for {path.suffix!r} files; known: {', '.join(known)}")
    return known[path.suffix]
