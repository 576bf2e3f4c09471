"""Runtimes that can load a file and run it. A new one is one file beside this and one entry in RUNNERS."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from latency.errors import InputError
from latency.runners import ort, ov
from latency.runners.kernel import Kernel

PRECISIONS = ("f32", "bf16", "int8")
"""f32 and bf16: how layers that are not quantized are computed. int8: a quantized file as it is, the rest in f32."""


class Session(Protocol):
    """A loaded model. shape: of its one input, all dimensions fixed; dtype: numpy's name of its element type.

    effective_precision and settings are read back from the runtime, not repeated from the request (ONNX Runtime tells
    no precision: there it is that of the file's operators; `profile` tells it kernel by kernel).
    """

    shape: tuple[int, ...]
    dtype: str
    effective_precision: str
    settings: dict[str, Any]

    def infer(self, images: np.ndarray) -> np.ndarray:
        """One inference: an array of `shape` and `dtype` in, the first output out."""
        ...


@dataclass(frozen=True)
class Runner:
    """suffixes: of the files that are meant for it.

    load(path, precision, threads, batch): a Session; batch: for a file whose first dimension is open, else None.
    profile(path, precision, threads, batch, runs): what each kernel took, in ms of one inference, in the order of
    execution. Both raise InputError for the file or the precision, LatencyError for the runtime.
    """

    suffixes: tuple[str, ...]
    load: Callable[[Path, str, int, int | None], Session]
    profile: Callable[[Path, str, int, int | None, int], list[Kernel]]


RUNNERS: dict[str, Runner] = {
    "onnxruntime": Runner((".onnx", ".ort"), ort.load, ort.profile),
    "openvino": Runner((".xml",), ov.load, ov.profile),
}


def runner(name: str, path: Path, precision: str) -> Runner:
    """The runner of that name, once all that can be known without it is right. Raises InputError."""
    check_names(name, precision)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return RUNNERS[name]


def check_names(runtime: str, precision: str) -> None:
    """Raises InputError for a name that is not known."""
    for what, name, known in (("runtime", runtime, [*RUNNERS]), ("precision", precision, [*PRECISIONS])):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise InputError(f"unknown {what} {name!r}{meant}; known: {', '.join(known)}")


def open_session(path: Path, runtime: str, precision: str, threads: int, batch: int | None = None) -> Session:
    """Load `path` with the runner of that name. Raises LatencyError."""
    return runner(runtime, path, precision).load(path, precision, threads, batch)


def runtime_of(path: Path) -> str:
    """The runtime that a file is meant for, by its suffix."""
    known = {suffix: name for name, r in RUNNERS.items() for suffix in r.suffixes}
    if path.suffix not in known:
        raise InputError(f"{path}: no runtime for {path.suffix!r} files; known: {', '.join(known)}")
    return known[path.suffix]
