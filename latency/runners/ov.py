"""OpenVINO, CPU device. It would pick bf16 by itself where the CPU has it, so the precision is always set."""

from pathlib import Path
from typing import Any

import numpy as np

from latency.errors import LatencyError

_HINTS = {"f32": "f32", "bf16": "bf16", "int8": "f32"}
_DTYPES = {"u8": "uint8", "f32": "float32"}


class OvSession:
    def __init__(self, compiled: Any, path: Path) -> None:
        if len(compiled.inputs) != 1:
            raise LatencyError(f"{path}: expected one input, got {len(compiled.inputs)}")
        (only,) = compiled.inputs
        if only.partial_shape.is_dynamic:
            raise LatencyError(f"{path}: the input has the dynamic shape {only.partial_shape}; fix it when exporting")
        element = only.element_type.to_string()
        if element not in _DTYPES:
            raise LatencyError(f"{path}: the input is {element}; expected one of {', '.join(_DTYPES.values())}")
        self._request = compiled.create_infer_request()
        self.shape, self.dtype = tuple(only.shape), _DTYPES[element]
        hint = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        quantized = any(_runs_in_int8(op) for op in compiled.get_runtime_model().get_ops())
        self.effective_precision = "int8" if quantized else hint
        self.settings = {
            "threads": compiled.get_property("INFERENCE_NUM_THREADS"),
            "streams": str(compiled.get_property("NUM_STREAMS")),
            "precision_hint": hint,
            "pinning": compiled.get_property("ENABLE_CPU_PINNING"),
        }

    def infer(self, images: np.ndarray) -> np.ndarray:
        output: np.ndarray = self._request.infer({0: images}, share_inputs=True, share_outputs=True)[0]
        return output


def load(path: Path, precision: str, threads: int) -> OvSession:
    try:
        import openvino as ov
    except ImportError as error:
        raise LatencyError(f"openvino is not installed ({error}); pip install openvino") from error
    core = ov.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise LatencyError("this CPU has no bf16 instructions; leave bf16 out of the precisions")
    settings = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    try:
        compiled = core.compile_model(core.read_model(path), "CPU", settings)
    except Exception as error:  # OpenVINO raises plain RuntimeError and its own types alike
        raise LatencyError(f"{path}: OpenVINO cannot load it: {error}") from error
    return OvSession(compiled, path)


def _runs_in_int8(op: Any) -> bool:
    info = op.get_rt_info()
    kind = info["layerType"].astype(str) if "layerType" in info else ""
    precision = info["runtimePrecision"].astype(str) if "runtimePrecision" in info else ""
    return kind in ("Convolution", "FullyConnected", "MatMul") and precision in ("i8", "u8")
