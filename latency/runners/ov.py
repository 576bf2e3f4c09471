"""OpenVINO, CPU device. It would pick bf16 by itself where the CPU has it, so the precision is always set."""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from latency.errors import InputError, LatencyError
from latency.runners.kernel import Kernel, fixed_shape, random_input

_HINTS = {"f32": "f32", "bf16": "bf16", "int8": "f32"}
_DTYPES = {"u8": "uint8", "f32": "float32"}
_QUANTIZED = ("i8", "u8")
_NOTHING = ("Parameter", "Constant", "Result")


class OvSession:
    def __init__(self, compiled: Any) -> None:
        (only,) = compiled.inputs
        self.request = compiled.create_infer_request()
        self.shape, self.dtype = tuple(only.shape), _DTYPES[only.element_type.to_string()]
        # Bound once: handing the input over as a dict costs 45 us a call, 7 % of a small network.
        self._input = self.request.get_input_tensor().data
        fixed = compiled.outputs[0].partial_shape.is_static  # a view, which stays the same
        self._output = self.request.get_output_tensor(0).data if fixed else None
        hint = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        quantized = any(_runs_in_int8(op) for op in compiled.get_runtime_model().get_ops())
        self.effective_precision = "int8" if quantized else hint
        self.settings = {
            "threads": compiled.get_property("INFERENCE_NUM_THREADS"),
            "streams": int(compiled.get_property("NUM_STREAMS")),
            "precision_hint": hint,
            "pinning": compiled.get_property("ENABLE_CPU_PINNING"),
        }

    def infer(self, images: np.ndarray) -> np.ndarray:
        self._input[...] = images
        self.request.infer(share_outputs=True)
        return self._output if self._output is not None else self.request.get_output_tensor(0).data


def load(path: Path, precision: str, threads: int, batch: int | None) -> OvSession:
    return OvSession(_compile(path, precision, threads, batch, profiled=False))


_NO_KERNEL = ("undef", "unknown", "reorder_")
"""What is fused into others, or only gives memory another name. Time does not tell these from quick kernels: OpenVINO
gives it in whole microseconds, and none to those under one."""


def profile(path: Path, precision: str, threads: int, batch: int | None, runs: int) -> list[Kernel]:
    session = OvSession(_compile(path, precision, threads, batch, profiled=True))
    images = random_input(session.shape, session.dtype)
    for _ in range(runs):
        session.infer(images)
    took: defaultdict[str, float] = defaultdict(float)
    kernels = {}
    for _ in range(runs):
        session.infer(images)
        for p in session.request.profiling_info:
            kernels[p.node_name] = p
            took[p.node_name] += p.real_time.total_seconds() * 1e3 / runs
    ran = {n: p for n, p in kernels.items() if took[n] or not p.exec_type.startswith(_NO_KERNEL)}
    return [Kernel(n, p.node_type, p.exec_type, _precision(p.exec_type), took[n]) for n, p in ran.items()]


def _compile(path: Path, precision: str, threads: int, batch: int | None, profiled: bool) -> Any:
    try:
        import openvino as ov
    except ImportError as error:
        raise LatencyError(f"openvino is not installed ({error}); pip install openvino") from error
    core = ov.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise InputError("this CPU has no bf16 instructions; leave bf16 out of the precisions")
    settings = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "PERF_COUNT": profiled,
    }
    try:
        model = core.read_model(path)
    except Exception as error:  # OpenVINO raises plain RuntimeError and its own types alike
        raise InputError(f"{path}: OpenVINO cannot load it: {explain(error)}; export it again") from error
    empty = not model.outputs or all(op.get_type_name() in _NOTHING for op in model.get_ops())
    if not empty:
        _fix_input(model, path, batch)
    if empty or not _depends_on_input(model.outputs[0].get_node()):
        raise InputError(f"{path}: it computes nothing: its first output does not depend on its input; export it again")
    try:
        return core.compile_model(model, "CPU", settings)
    except Exception as error:
        raise InputError(f"{path}: OpenVINO cannot load it: {explain(error)}; export it again") from error


def _depends_on_input(output: Any) -> bool:
    """Whether the values of the input reach an operation. If not, OpenVINO folds it into a constant, which takes no
    time."""
    seen: set[str] = set()
    waiting = [output]
    while waiting:
        node = waiting.pop()
        if node.get_type_name() == "Parameter":
            return True
        known = node.get_type_name() == "ShapeOf" and node.input(0).get_partial_shape().is_static
        if not known and node.get_name() not in seen:
            seen.add(node.get_name())
            waiting += [value.get_node() for value in node.input_values()]
    return False


def _fix_input(model: Any, path: Path, batch: int | None) -> None:
    if len(model.inputs) != 1:
        names = ", ".join(i.any_name for i in model.inputs)
        raise InputError(f"{path}: expected one input, got {len(model.inputs)}: {names}")
    (only,) = model.inputs
    element = only.element_type.to_string()
    if element not in _DTYPES:
        raise InputError(f"{path}: the input is {element}; expected one of {', '.join(_DTYPES.values())}")
    if only.partial_shape.rank.is_dynamic:
        raise InputError(f"{path}: the input has the dynamic shape {only.partial_shape}; fix it when exporting")
    dimensions = [d.get_length() if d.is_static else str(d) for d in only.partial_shape]
    shape = fixed_shape(path, only.any_name, dimensions, batch)
    if only.partial_shape.is_dynamic:
        model.reshape(list(shape))


def explain(error: BaseException) -> str:
    """What OpenVINO says, without the places in its own sources."""
    text = str(error)
    lacking = re.search(r"No conversion rule found for operations: (.+)", text)
    failed = re.search(r"Conversion is failed for: (.+)", text)
    if lacking or failed:
        lacks = f"it lacks the operations {lacking[1]}" if lacking else ""
        fails = f"it cannot convert the operations {failed[1]}" if failed else ""
        return (
            f"{' and '.join(filter(None, (lacks, fails)))}; ONNX Runtime may run it (latency.runtimes: [onnxruntime])"
        )
    lines = [line.strip() for line in text.splitlines() if not re.match(r"Exception from |Check '", line)]
    told = " ".join(line for line in lines if line)
    if "externally stored data" in told:
        return f"its weights in a file beside it are missing or damaged: {told}"
    return told or "it gave no reason"


def _runs_in_int8(op: Any) -> bool:
    info = op.get_rt_info()
    kind = info["layerType"].astype(str) if "layerType" in info else ""
    precision = info["runtimePrecision"].astype(str) if "runtimePrecision" in info else ""
    return kind in ("Convolution", "FullyConnected", "MatMul") and precision in _QUANTIZED


def _precision(kind: str) -> str:
    """The end of a kernel's name: jit_avx512_FP32, brgconv_avx512_I8, jit_avx512_BF16."""
    found = re.search(r"_(i8|u8|i32|f32|fp32|f16|fp16|bf16|i64)$", kind.lower())
    return {"i8": "int8", "u8": "int8", "fp32": "f32", "fp16": "f16"}.get(found[1], found[1]) if found else "-"
