"""The operators of a stranger's model file, read as the runtime that loads it reads them.

A runtime's parser and another one may read one file in two ways, and then what was examined is not what is run. So the
runtimes' own formats are read with their own libraries, and what these libraries might read otherwise is refused.
Operators that are not known to give the same answer to the same image, whatever came before, are refused too.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from latency.errors import InputError

RANDOM = frozenset(
    ["RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"]
)
"""Operators of ONNX that draw from a generator, whose state outlives an inference. Dropout does in training mode."""
_CONTRIBUTED = re.compile(
    r"com\.microsoft(\.nchwc)?:((Dynamic)?Quantize\w*|DequantizeLinear|QLinear\w+|QGemm|QAttention|MatMulIntegerToFloat"
    r"|Fused(Conv|Gemm|MatMul)|Nhwc\w+|(Quick|Fast|Bias)?Gelu|(Skip)?(Simplified)?LayerNormalization|Attention"
    r"|(Max|Average|GlobalMax|GlobalAverage)Pool|Conv|Upsample|Reorder(In|Out)put)"
)
"""domain:name of ONNX Runtime's own operators that its quantizer and its optimizer write."""
_KEEPING = frozenset(("readvalue", "assign", "randomuniform", "multinomial"))
"""Operators of OpenVINO that carry a value from one inference to the next, or draw from a generator."""
_IR_NAMES = {"if": "ifop", "const": "constant"}
"""Types of the IR whose constructors have other names in OpenVINO's API."""


def operators_of(path: Path) -> frozenset[str]:
    """The kinds of operators in a model file. Raises InputError for a file that cannot be read in one way only, and for
    operators that may keep a state or are not known."""
    readers = {".xml": _of_ir, ".ort": _of_ort, ".onnx": _of_onnx}
    found = frozenset(readers[path.suffix](path))
    if not found:
        raise InputError(f"{path.name}: it has no operators")
    return frozenset(name.rpartition(":")[2] for name in found)


def _of_onnx(path: Path) -> Iterator[str]:
    import onnx
    from google.protobuf.message import DecodeError, Message

    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except DecodeError as error:
        raise InputError(f"{path.name}: it is no ONNX model: {error}") from error
    if model.functions:  # whether one of them or the runtime's own operator of that name is run, the runtime decides
        raise InputError(f"{path.name}: it defines functions of its own; none of edgebuild's files does")
    waiting: list[Message] = [model.graph]
    while waiting:
        for node in waiting.pop().node:
            yield _known_to_onnx(f"{node.domain}:{node.op_type}", path)
            for attribute in node.attribute:
                waiting += [attribute.g, *attribute.graphs]


def _of_ort(path: Path) -> Iterator[str]:
    from onnxruntime.tools.ort_format_model import OrtFormatModelProcessor

    found: dict[str, dict[int, set[str]]] = {}
    try:
        OrtFormatModelProcessor(str(path), found, None).process()
    except Exception as error:  # of any type: it trusts the file
        raise InputError(f"{path.name}: it is no model in ONNX Runtime's format: {error}") from error
    for domain, by_version in found.items():
        for name in set().union(*by_version.values()):
            yield _known_to_onnx(f"{'' if domain == 'ai.onnx' else domain}:{name}", path)


def _known_to_onnx(name: str, path: Path) -> str:
    from onnx import defs

    domain, _, kind = name.partition(":")
    if domain == "ai.onnx":
        domain = ""
    known = defs.has(kind) and kind not in RANDOM if not domain else _CONTRIBUTED.fullmatch(name)
    if not known:
        raise InputError(
            f"{path.name}: the operator {kind!r}{f' of {domain!r}' if domain else ''} is not known to give the same "
            "answer to the same image, whatever came before"
        )
    return name


def _of_ir(path: Path) -> Iterator[str]:
    """Every layer. OpenVINO's parser knows no namespaces and no entities, and takes what is not well-formed."""
    content = path.read_bytes()
    try:
        if re.search(rb"<!|<\?(?!xml )|xmlns|encoding\s*=\s*[\"'](?!utf-8[\"'])", content, re.IGNORECASE):
            raise InputError(f"{path.name}: XML with declarations, comments or namespaces; OpenVINO writes none")
        root = ElementTree.fromstring(content.decode().removeprefix("\ufeff"))
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise InputError(f"{path.name}: its XML cannot be read: {error}") from error
    if root.tag != "net":
        raise InputError(f"{path.name}: its XML is of {root.tag!r}, not of a net")
    layers = [layer for group in root.iter("layers") for layer in group]
    if len(layers) != sum(1 for _ in root.iter("layer")) or any(layer.tag != "layer" for layer in layers):
        raise InputError(f"{path.name}: it has layers outside of its lists of layers")
    names = _openvino_names()
    for layer in layers:
        kind = layer.get("type", "")
        if _IR_NAMES.get(kind.lower(), kind.lower()) not in names:
            raise InputError(
                f"{path.name}: the operator {kind!r} is not known to give the same answer to the same image, whatever "
                "came before"
            )
        yield kind


def _openvino_names() -> set[str]:
    """The operators of all opsets, without case and underscores, but for those that keep something."""
    import pkgutil
    from importlib import import_module

    import openvino

    opsets = [m.name for m in pkgutil.iter_modules(openvino.__path__) if m.name.startswith("opset")]
    found = {name.replace("_", "").lower() for m in opsets for name in dir(import_module(f"openvino.{m}"))}
    return found - _KEEPING
