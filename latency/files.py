"""The files that a model consists of, and their hash."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from latency.errors import InputError


def model_files(path: Path) -> list[Path]:
    """A model, and the files below its folder in which it keeps weights: OpenVINO's .bin, ONNX's external data. Raises
    InputError where there is no such file, or where weights lie in something else than a file."""
    if not path.is_file():
        raise InputError(f"{path}: {'a folder; give a file' if path.is_dir() else 'no such file'}")
    content = path.read_bytes()
    if content.lstrip()[:1] == b"<":  # OpenVINO's XML, whatever its suffix
        found = [path.with_suffix(".bin")]
    else:
        names = (os.path.normpath(name) for name in _locations(content))
        found = [path.parent / name for name in names if not name.startswith(("../", "/")) and name not in (".", "..")]
    for file in found:
        if file.exists() and not file.is_file():
            raise InputError(f"{path}: its weights are to be in {file}, which is no file")
    return [path, *dict.fromkeys(f for f in found if f.is_file())]


def _locations(model: bytes) -> list[str]:
    """The names of the files that an ONNX model keeps tensors in; none of what is no ONNX model."""
    import onnx
    from google.protobuf.message import DecodeError

    def tensors(message: Any) -> Iterator[Any]:
        if isinstance(message, onnx.TensorProto):
            yield message
            return
        for field_, value in message.ListFields():
            if field_.message_type:
                for inner in value if isinstance(value, Sequence) else [value]:
                    yield from tensors(inner)

    try:
        found = [t for t in tensors(onnx.load_model_from_string(model)) if t.data_location == t.EXTERNAL]
    except DecodeError:
        return []
    return sorted({e.value for t in found for e in t.external_data if e.key == "location" and "\0" not in e.value})


def file_hash(path: Path) -> str:
    """sha256 of a model, weights beside it included. Raises InputError."""
    digest = hashlib.sha256()
    for file in model_files(path):
        digest.update(file.read_bytes())
    return digest.hexdigest()


_QUANTIZED = (b"QuantizeLinear", b"QLinear", b"ConvInteger", b"MatMulInteger", b"FakeQuantize")
"""Operators of ONNX, whose names .ort files hold as well, and of OpenVINO's IR."""


def is_quantized(content: bytes) -> bool:
    """Return whether a model file names an operator that computes in 8 bits, or that a runtime turns into one."""
    return any(name in content for name in _QUANTIZED)
