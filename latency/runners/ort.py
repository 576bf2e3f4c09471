"""ONNX Runtime, CPU provider."""

from pathlib import Path
from typing import Any

import numpy as np

from latency.errors import LatencyError

_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


class OrtSession:
    def __init__(self, session: Any, path: Path, threads: int) -> None:
        inputs = session.get_inputs()
        if len(inputs) != 1:
            raise LatencyError(f"{path}: expected one input, got {len(inputs)}: {', '.join(i.name for i in inputs)}")
        (only,) = inputs
        if not all(isinstance(d, int) for d in only.shape):
            raise LatencyError(f"{path}: input {only.name!r} has the dynamic shape {only.shape}; fix it when exporting")
        if only.type not in _DTYPES:
            raise LatencyError(
                f"{path}: input {only.name!r} is {only.type}; expected one of {', '.join(_DTYPES.values())}"
            )
        self._session, self._input = session, only.name
        self._outputs = [session.get_outputs()[0].name]
        self.shape, self.dtype = tuple(only.shape), _DTYPES[only.type]
        # The session does not tell what its kernels compute in; QuantizeLinear and its kin stand in the file by name.
        self.effective_precision = "int8" if b"QuantizeLinear" in path.read_bytes() else "f32"
        self.settings = {"threads": threads, "providers": session.get_providers()}

    def infer(self, images: np.ndarray) -> np.ndarray:
        output: np.ndarray = self._session.run(self._outputs, {self._input: images})[0]
        return output


def load(path: Path, precision: str, threads: int) -> OrtSession:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise LatencyError(f"onnxruntime is not installed ({error}); pip install onnxruntime") from error
    if precision == "bf16":
        raise LatencyError("ONNX Runtime's CPU provider has no bf16 kernels; use the runtime openvino for bf16")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own exceptions share no base class but Exception
        raise LatencyError(f"{path}: ONNX Runtime cannot load it: {error}") from error
    return OrtSession(session, path, threads)
