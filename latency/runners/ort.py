"""ONNX Runtime, CPU provider."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latency.errors import InputError, LatencyError
from latency.files import is_quantized
from latency.graph import depends, operators
from latency.runners.kernel import Kernel, fixed_shape, random_input

_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
_PRECISION_OF = {"float": "f32", "float16": "f16", "bfloat16": "bf16", "int8": "int8", "uint8": "int8"}
_NODE = "_kernel_time"
_WITH_BODIES = ("Loop", "If", "Scan")


class OrtSession:
    def __init__(self, session: Any, path: Path, batch: int | None) -> None:
        inputs = session.get_inputs()
        if len(inputs) != 1:
            raise InputError(f"{path}: expected one input, got {len(inputs)}: {', '.join(i.name for i in inputs)}")
        (only,) = inputs
        if only.type not in _DTYPES:
            raise InputError(
                f"{path}: input {only.name!r} is {only.type}; expected one of {', '.join(_DTYPES.values())}"
            )
        outputs = session.get_outputs()
        content = path.read_bytes()
        first = outputs[0].name if outputs else only.name
        # ONNX Runtime's own format, as it decides itself. It is made from an .onnx file.
        is_ort = path.suffix.lower() == ".ort"
        if first == only.name or not (is_ort or depends(content, first, only.name)):
            raise InputError(
                f"{path}: it computes nothing: its first output does not depend on its input; export it again"
            )
        self.shape, self.dtype = fixed_shape(path, only.name, only.shape, batch), _DTYPES[only.type]
        self._session, self._input = session, only.name
        self._outputs = [first]
        # The session does not tell what its kernels compute in.
        names = {content.decode("latin-1")} if is_ort else operators(content)
        self.effective_precision = "int8" if is_quantized(names) else "f32"
        options = session.get_session_options()
        self.settings = {
            "threads": options.intra_op_num_threads,
            "inter_op_threads": options.inter_op_num_threads,
            "optimization": options.graph_optimization_level.name,
            "providers": session.get_providers(),
        }

    def infer(self, images: np.ndarray) -> np.ndarray:
        output: np.ndarray = self._session.run(self._outputs, {self._input: images})[0]
        return output


def load(path: Path, precision: str, threads: int, batch: int | None) -> OrtSession:
    return OrtSession(_open(path, precision, _options(threads)), path, batch)


def profile(path: Path, precision: str, threads: int, batch: int | None, runs: int) -> list[Kernel]:
    options = _options(threads)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        raw = _open(path, precision, options)
        session = OrtSession(raw, path, batch)
        images = random_input(session.shape, session.dtype)
        for _ in range(2 * runs):
            session.infer(images)
        events = json.loads(Path(raw.end_profiling()).read_text())
    nodes = [e for e in events if e["cat"] == "Node" and e["name"].endswith(_NODE)]
    warmed = nodes[len(nodes) // 2 :]  # the first half of the runs warms up
    took: dict[str, float] = {}
    for event, own_us in _own_times(warmed):
        took[event["name"]] = took.get(event["name"], 0.0) + own_us / 1e3 / runs
    first = {e["name"]: e["args"] for e in reversed(warmed)}
    return [
        Kernel(name.removesuffix(_NODE), args["op_name"], args["provider"], _precision(args), took[name])
        for name, args in reversed(first.items())
    ]


def _own_times(events: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], float]]:
    """Pair each event with its own time in microseconds. The time of a Loop, an If or a Scan includes the nodes of its
    body, which are events too, so their time is subtracted."""
    own = [float(e["dur"]) for e in events]
    around: list[int] = []
    for i in sorted(range(len(events)), key=lambda i: (events[i]["ts"], -events[i]["dur"])):
        event = events[i]
        while around and event["ts"] + event["dur"] > events[around[-1]]["ts"] + events[around[-1]]["dur"]:
            around.pop()
        if around and events[around[-1]]["args"]["op_name"] in _WITH_BODIES:
            own[around[-1]] -= event["dur"]
        around.append(i)
    return [(e, max(0.0, t)) for e, t in zip(events, own, strict=True)]


def _options(threads: int) -> Any:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise LatencyError(f"onnxruntime is not installed ({error}); pip install onnxruntime") from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def _open(path: Path, precision: str, options: Any) -> Any:
    import onnxruntime as ort

    if precision == "bf16":
        raise InputError("ONNX Runtime's CPU provider has no bf16 kernels; use the runtime openvino for bf16")
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own exceptions share no base class but Exception
        raise InputError(f"{path}: ONNX Runtime cannot load it: {error}; export it again") from error


def _precision(args: dict[str, Any]) -> str:
    """Of what a kernel computes in: its first input's element type, int8 for both kinds of QLinear operand."""
    kinds = [next(iter(t)) for t in args["input_type_shape"]] or [next(iter(t)) for t in args["output_type_shape"]]
    return _PRECISION_OF.get(kinds[0], kinds[0]) if kinds else "-"
