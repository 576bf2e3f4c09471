"""Whether an output of an ONNX file depends on its input, read from the file's bytes: a target has no package `onnx`.

Field numbers are those of onnx.proto, the encoding that of protobuf. The runtime has parsed the file before.
"""

from collections.abc import Iterator

_GRAPH, _FUNCTION, _NODE_OF_GRAPH = 7, 25, 1
"""`graph` and `functions` of ModelProto, `node` of GraphProto."""
_INPUT, _OUTPUT, _OPERATOR, _ATTRIBUTE, _DOMAIN = 1, 2, 4, 5, 7
"""In NodeProto."""
_FUNCTION_NAME, _FUNCTION_INPUT, _FUNCTION_OUTPUT, _FUNCTION_NODE, _FUNCTION_DOMAIN = 1, 4, 5, 7, 10
"""In FunctionProto."""
_BODIES = (6, 11)
"""In AttributeProto: `g`, one graph, and `graphs`, several."""
_OF_THE_SHAPE = (b"Shape", b"Size")
"""Operators whose output does not depend on the values of their input."""
_MOST_CALLS = 10_000

Operator = tuple[bytes, bytes]
"""(domain, name)"""


def depends(model: bytes, output: str, source: str) -> bool:
    """Whether an output of an ONNX model depends on the values of an input, by the names in the file. If it does not, a
    runtime folds it into a constant, which takes no time."""
    functions = {
        (_text(f, _FUNCTION_DOMAIN), _text(f, _FUNCTION_NAME)): f for f in _fields(memoryview(model), _FUNCTION)
    }
    flow = _Flow(functions)
    for graph in _fields(memoryview(model), _GRAPH):
        flow.add(_fields(graph, _NODE_OF_GRAPH), b"")
    seen: set[bytes] = set()
    waiting = [output.encode()]
    while waiting:
        name = waiting.pop()
        if name == source.encode():
            return True
        if name not in seen:
            seen.add(name)
            waiting += flow.made_from.get(name, [])
    return False


class _Flow:
    """made_from: name -> the names that it is computed from. Names inside a function carry the number of its call."""

    def __init__(self, functions: dict[Operator, memoryview]) -> None:
        self.made_from: dict[bytes, list[bytes]] = {}
        self._functions, self._calls = functions, 0

    def add(self, nodes: Iterator[memoryview], scope: bytes) -> None:
        for node in nodes:
            function = self._functions.get((_text(node, _DOMAIN), _text(node, _OPERATOR)))
            outputs = [scope + bytes(name) for name in _fields(node, _OUTPUT)]
            if function is not None and self._calls < _MOST_CALLS:
                self._call(node, function, outputs, scope)
                continue
            shape_alone = _text(node, _OPERATOR) in _OF_THE_SHAPE
            used = [] if shape_alone else [scope + name for name in _names_used(node)]
            self.made_from |= dict.fromkeys(outputs, used)

    def _call(self, node: memoryview, function: memoryview, outputs: list[bytes], scope: bytes) -> None:
        self._calls += 1
        inner = b"%d\0" % self._calls
        given = [scope + bytes(name) for name in _fields(node, _INPUT)]
        inputs = [inner + bytes(name) for name in _fields(function, _FUNCTION_INPUT)]
        self.made_from |= {name: [from_] for name, from_ in zip(inputs, given, strict=False)}
        self.add(_fields(function, _FUNCTION_NODE), inner)
        results = [inner + bytes(name) for name in _fields(function, _FUNCTION_OUTPUT)]
        self.made_from |= {name: [from_] for name, from_ in zip(outputs, results, strict=False)}


def _names_used(node: memoryview) -> Iterator[bytes]:
    """The inputs of a node, and those of the nodes in its body, which may use names of the graph around it."""
    yield from (bytes(name) for name in _fields(node, _INPUT))
    for attribute in _fields(node, _ATTRIBUTE):
        for field, body in _parts(attribute):
            if field in _BODIES:
                for inner in _fields(body, _NODE_OF_GRAPH):
                    yield from _names_used(inner)


def _text(message: memoryview, number: int) -> bytes:
    return bytes(next(_fields(message, number), b""))


def _fields(message: memoryview, number: int) -> Iterator[memoryview]:
    return (content for field, content in _parts(message) if field == number)


def _parts(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(field number, content) of each field of a protobuf message, which the runtime has already parsed."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind, length = tag & 7, 0
        if kind == 0:
            _, end = _varint(message, at)
        elif kind == 2:
            length, at = _varint(message, at)
            end = at + length
        else:
            end = at + (8 if kind == 1 else 4)
        yield tag >> 3, message[at:end]
        at = end


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, and the position after it."""
    number = shift = 0
    while True:
        byte = message[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
