"""The files that a model consists of, and their hash."""

import codecs
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from latency.errors import InputError


def model_files(path: Path) -> list[Path]:
    """A model, and the files below its folder in which it keeps weights: OpenVINO's .bin, ONNX's external data. Raises
    InputError where there is no such file, or where weights lie in something else than a file."""
    if not path.is_file():
        raise InputError(f"{path}: {'a folder; give a file' if path.is_dir() else 'no such file'}")
    if not is_utf8(path.absolute()):
        raise InputError(f"{str(path)!a}: this path is not UTF-8, and the runtimes take no other: rename it")
    content = path.read_bytes()
    if _is_xml(content):  # OpenVINO's, whatever its suffix
        found = [path.with_suffix(".bin")]
    else:
        names = (os.path.normpath(name) for name in _locations(content))
        found = [path.parent / name for name in names if not name.startswith(("../", "/")) and name not in (".", "..")]
    try:
        for file in found:
            if file.exists() and not file.is_file():
                raise InputError(f"{path}: its weights are to be in {file}, which is no file")
        return [path, *dict.fromkeys(f for f in found if f.is_file())]
    except OSError as error:  # a name too long for a file
        raise InputError(f"{path}: its weights are to be in a file that cannot be: {error.strerror}") from error


def is_utf8(path: Path) -> bool:
    """Whether the name of a path, which the system takes as bytes, is text."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_xml(content: bytes) -> bool:
    """Whether a file is XML, in any of the encodings that begin with a mark of their own."""
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            return content[len(mark) : 200].decode(encoding, "ignore").lstrip().startswith("<")
    return content.lstrip()[:1] == b"<"


_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


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
    places = {e.value for t in found for e in t.external_data if e.key == "location"}
    # What is not UTF-8, protobuf gives as bytes.
    return sorted(p for p in (p if isinstance(p, str) else os.fsdecode(p) for p in places) if "\0" not in p)


def file_hash(path: Path) -> str:
    """sha256 of a model, weights beside it included. Raises InputError."""
    digest = hashlib.sha256()
    for file in model_files(path):
        digest.update(file.read_bytes())
    return digest.hexdigest()


_QUANTIZED = (
    *("quantizelinear", "dynamicquantize", "quantizebfp", "qlinear", "qgemm", "qattention"),
    *("convinteger", "matmulinteger", "fakequantize"),
)
"""Parts of the names of operators, in lower case: of ONNX, and of OpenVINO's IR, whose reader ignores case."""


def is_quantized(operators: Iterable[str]) -> bool:
    """Whether one of these operators computes in 8 bits, or is turned into one that does by a runtime."""
    return any(name in operator.lower() for operator in operators for name in _QUANTIZED)
