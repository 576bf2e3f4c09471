"""Where the time goes, and what of an INT8 file did not run in INT8."""

import pytest

from latency.machine import CONTROL
from latency.profile import profile, summarize
from latency.records import Subject
from latency.runners.kernel import Kernel


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_kernels_of_a_real_file(runtime):
    found = profile(Subject.of(CONTROL, runtime))
    assert sum(r.share for r in found.rows) == pytest.approx(1.0)
    assert found.rows[0].ms >= found.rows[-1].ms
    convolutions = sum(r.count for r in found.rows if "Conv" in r.operator)
    assert convolutions == 13, "the control's convolutions, with their activations folded in"
    assert not found.not_int8, "not a quantized file"


def test_what_did_not_run_in_int8_is_told_with_what_to_do():
    kernels = [
        Kernel("a", "QLinearConv", "CPU", "int8", 0.5),
        Kernel("b", "Conv", "CPU", "f32", 0.3),
        Kernel("c", "DequantizeLinear", "CPU", "int8", 0.15),
        Kernel("d", "HardSigmoid", "CPU", "f32", 0.048),
        Kernel("e", "Flatten", "CPU", "f32", 0.002),
    ]
    found = summarize(Subject("m.onnx", "onnxruntime", "int8", 1, ""), kernels)
    assert found.precision == "int8"
    assert [(f.operator, round(f.share, 2)) for f in found.not_int8] == [
        ("Conv", 0.3),
        ("DequantizeLinear", 0.15),
        ("HardSigmoid", 0.05),
    ]
    conv, convert, activation = (f.advice for f in found.not_int8)
    assert "the quantizer left it out" in conv
    assert "from INT8 to f32 or back" in convert
    assert "ReLU and ReLU6 are folded" in activation
