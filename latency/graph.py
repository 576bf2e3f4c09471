"""Whether an output of an ONNX file depends on its input, read from the file's bytes: a target has no package `onnx`.

Field numbers are those of onnx.proto, the encoding that of protobuf. The runtime has parsed the file before.
"""

from collections.abc import Iterator

from latency.errors import InputError

_GRAPH, _FUNCTION, _NODE_OF_GRAPH = 7, 25, 1
"""`graph` and `functions` of ModelProto, `node` of GraphProto."""
_INPUT, _OUTPUT, _OPERATOR, _ATTRIBUTE = 1, 2, 4, 5
_NODE_NAMES = (7, _OPERATOR, 8)
"""In NodeProto; the names are `domain`, `op_type` and `overload`."""
_FUNCTION_INPUT, _FUNCTION_OUTPUT, _FUNCTION_NODE = 4, 5, 7
_FUNCTION_NAMES = (10, 1, 13)
"""In FunctionProto."""
_BODIES = (6, 11)
"""In AttributeProto: `g`, one graph, and `graphs`, several."""
_OF_THE_SHAPE = (b"Shape", b"Size")
"""Operators whose output depends on the shape of their input, not on its values."""
_SHAPE_OF_VALUES = tuple(b"NonZero Unique Compress NonMaxSuppression Range ConstantOfShape Loop If".split())
"""Operators whose output has a shape that depends on the values of their inputs."""
_SHAPE_OF_PARAMETERS = tuple(b"Reshape Expand Slice Tile Pad Resize Upsample TopK OneHot Split".split())
"""The same of the values of all inputs but the first."""
_MOST_CALLS = 10_000
_VARINT, _BYTES, _FIXED = 0, 2, {1: 8, 5: 4}
"""Wire types of protobuf; the fixed ones with their bytes."""
_CUT = "it ends within a field"

Operator = tuple[bytes, bytes, bytes]
"""(domain, name, overload)"""
Fact = tuple[str, bytes]
"""("values" or "shape", the name of what it is of)"""


def depends(model: bytes, output: str, source: str) -> bool:
    """Whether an output of an ONNX model depends on the values of an input, by the names in the file. If it does not, a
    runtime folds it into a constant, which takes no time."""
    flow = _Flow({_operator(f, _FUNCTION_NAMES): f for f in _fields(memoryview(model), _FUNCTION)})
    for graph in _fields(memoryview(model), _GRAPH):
        flow.add(_fields(graph, _NODE_OF_GRAPH), b"")
    seen: set[Fact] = set()
    waiting: list[Fact] = [("values", output.encode())]
    while waiting:
        fact = waiting.pop()
        if fact == ("values", source.encode()):
            return True
        if fact not in seen:
            seen.add(fact)
            waiting += flow.made_from.get(fact, [])
    return False


def operators(model: bytes) -> set[str]:
    """The kinds of operators of all nodes of an ONNX model, those in bodies and functions among them."""
    found: set[str] = set()
    waiting = [n for g in _fields(memoryview(model), _GRAPH) for n in _fields(g, _NODE_OF_GRAPH)]
    waiting += [n for f in _fields(memoryview(model), _FUNCTION) for n in _fields(f, _FUNCTION_NODE)]
    while waiting:
        node = waiting.pop()
        found.add(_text(node, _OPERATOR).decode(errors="replace"))
        waiting += _inner_nodes(node)
    return found


class _Flow:
    """made_from: fact -> the facts that it follows from. Names inside a function carry the number of its call."""

    def __init__(self, functions: dict[Operator, memoryview]) -> None:
        self.made_from: dict[Fact, list[Fact]] = {}
        self._functions, self._calls = functions, 0

    def add(self, nodes: Iterator[memoryview], scope: bytes) -> None:
        for node in nodes:
            function = self._functions.get(_operator(node, _NODE_NAMES))
            outputs = [scope + bytes(name) for name in _fields(node, _OUTPUT)]
            if function is not None and self._calls < _MOST_CALLS:
                self._call(node, function, outputs, scope)
            else:
                self._compute(_text(node, _OPERATOR), [scope + name for name in _names_used(node)], outputs)

    def _compute(self, operator: bytes, used: list[bytes], outputs: list[bytes]) -> None:
        """Record what the outputs of a runtime's operator follow from."""
        values: list[Fact] = [("values", name) for name in used]
        shape: list[Fact] = [("shape", name) for name in used]
        if operator in _SHAPE_OF_VALUES:
            shape += values
        elif operator in _SHAPE_OF_PARAMETERS:
            shape += values[1:]
        for name in outputs:
            self.made_from["values", name] = shape if operator in _OF_THE_SHAPE else [*values, *shape]
            self.made_from["shape", name] = shape

    def _call(self, node: memoryview, function: memoryview, outputs: list[bytes], scope: bytes) -> None:
        self._calls += 1
        inner = b"%d\0" % self._calls
        given = [scope + bytes(name) for name in _fields(node, _INPUT)]
        self._link([inner + bytes(name) for name in _fields(function, _FUNCTION_INPUT)], given)
        self.add(_fields(function, _FUNCTION_NODE), inner)
        self._link(outputs, [inner + bytes(name) for name in _fields(function, _FUNCTION_OUTPUT)])

    def _link(self, names: list[bytes], sources: list[bytes]) -> None:
        for name, source in zip(names, sources, strict=False):
            for kind in ("values", "shape"):
                self.made_from[kind, name] = [(kind, source)]


def _names_used(node: memoryview) -> Iterator[bytes]:
    """The inputs of a node, and those of the nodes in its body, which may use names of the graph around it."""
    yield from (bytes(name) for name in _fields(node, _INPUT))
    for inner in _inner_nodes(node):
        yield from _names_used(inner)


def _inner_nodes(node: memoryview) -> Iterator[memoryview]:
    for attribute in _fields(node, _ATTRIBUTE):
        for field, body in _parts(attribute):
            if field in _BODIES:
                yield from _fields(body, _NODE_OF_GRAPH)


def _operator(message: memoryview, names: tuple[int, int, int]) -> Operator:
    domain, name, overload = (_text(message, number) for number in names)
    return domain, name, overload


def _text(message: memoryview, number: int) -> bytes:
    """A field that stands once; of several, protobuf takes the last."""
    *_, last = (b"", *_fields(message, number))
    return bytes(last)


def _fields(message: memoryview, number: int) -> Iterator[memoryview]:
    return (content for field, content in _parts(message) if field == number)


def _parts(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(field number, content) of each field of a protobuf message, which the runtime has already parsed."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == _VARINT:
            _, end = _varint(message, at)
        elif kind == _BYTES:
            length, at = _varint(message, at)
            end = at + length
        elif kind in _FIXED:
            end = at + _FIXED[kind]
        else:  # a group, which no field of ONNX is
            raise InputError("it has fields that are not of ONNX")
        if end > len(message):
            raise InputError(_CUT)
        yield tag >> 3, message[at:end]
        at = end


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, and the position after it."""
    number = shift = 0
    while at < len(message):
        byte = message[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
    raise InputError(_CUT)
