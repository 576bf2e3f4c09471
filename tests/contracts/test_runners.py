"""What every runtime promises, written once; each entry of RUNNERS runs it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from latency.errors import LatencyError
from latency.runners import RUNNERS, open_session, runtime_of
from latency.worker import CONTROL, random_input


def graph(path: Path, inputs, output_shape=(1, 4), kind=TensorProto.FLOAT):
    """A file whose output is the flattened sum of its inputs."""
    values = [helper.make_tensor_value_info(f"in{i}", kind, shape) for i, shape in enumerate(inputs)]
    out = helper.make_tensor_value_info("out", kind, output_shape)
    nodes = [
        helper.make_node(
            "Sum" if kind == TensorProto.FLOAT else "Add", [v.name for v in values] * (2 // len(values)), ["out"]
        )
    ]
    onnx.save(
        helper.make_model(
            helper.make_graph(nodes, "g", values, [out]), opset_imports=[helper.make_opsetid("", 18)], ir_version=9
        ),
        path,
    )
    return path


@pytest.mark.parametrize("runtime", RUNNERS)
class TestRunner:
    def test_shape_and_type_of_the_input(self, runtime):
        session = open_session(CONTROL, runtime, "f32", 1)
        assert (session.shape, session.dtype) == ((1, 3, 112, 112), "float32")

    def test_effective_precision_and_settings_are_read_back(self, runtime):
        session = open_session(CONTROL, runtime, "f32", 1)
        assert session.effective_precision == "f32"
        assert session.settings["threads"] == 1

    def test_answers_alike_every_time(self, runtime):
        session = open_session(CONTROL, runtime, "f32", 1)
        images = random_input(session)
        first = session.infer(images).copy()
        assert first.shape == (1, 64)
        np.testing.assert_array_equal(first, session.infer(images))

    def test_agrees_with_the_other_runtimes(self, runtime):
        sessions = [open_session(CONTROL, name, "f32", 1) for name in ("onnxruntime", runtime)]
        a, b = (s.infer(random_input(s)).copy() for s in sessions)
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)

    def test_refuses_a_file_that_is_no_model(self, runtime, tmp_path):
        file = tmp_path / "model.onnx"
        file.write_text("not a model")
        with pytest.raises(LatencyError, match=r"model\.onnx.*cannot load it"):
            open_session(file, runtime, "f32", 1)

    def test_refuses_a_missing_file(self, runtime, tmp_path):
        with pytest.raises(LatencyError, match="no such file"):
            open_session(tmp_path / "none.onnx", runtime, "f32", 1)

    def test_refuses_two_inputs(self, runtime, tmp_path):
        with pytest.raises(LatencyError, match="expected one input, got 2"):
            open_session(graph(tmp_path / "two.onnx", [(1, 4), (1, 4)]), runtime, "f32", 1)

    def test_refuses_a_dynamic_input(self, runtime, tmp_path):
        with pytest.raises(LatencyError, match="dynamic shape"):
            open_session(graph(tmp_path / "dynamic.onnx", [("n", 4)], ("n", 4)), runtime, "f32", 1)

    def test_refuses_an_integer_input(self, runtime, tmp_path):
        with pytest.raises(LatencyError, match="expected one of uint8, float32"):
            open_session(graph(tmp_path / "ints.onnx", [(1, 4)], kind=TensorProto.INT64), runtime, "f32", 1)

    def test_refuses_an_unknown_precision(self, runtime):
        with pytest.raises(LatencyError, match="unknown precision 'f16'; known: f32, bf16, int8"):
            open_session(CONTROL, runtime, "f16", 1)


def test_an_unknown_runtime_names_the_known():
    with pytest.raises(LatencyError, match="unknown runtime 'tflite'; known: onnxruntime, openvino"):
        open_session(CONTROL, "tflite", "f32", 1)


def test_onnx_runtime_says_that_it_has_no_bf16():
    with pytest.raises(LatencyError, match="use the runtime openvino for bf16"):
        open_session(CONTROL, "onnxruntime", "bf16", 1)


def test_the_runtime_follows_from_the_suffix():
    assert [runtime_of(Path(f)) for f in ("a.onnx", "a.xml")] == ["onnxruntime", "openvino"]
    with pytest.raises(LatencyError, match=r"no runtime for '\.pt' files"):
        runtime_of(Path("a.pt"))
