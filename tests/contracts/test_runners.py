"""What every runtime promises, written once; each entry of RUNNERS runs it, and so does the fake of the tests."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from latency import runners
from latency.errors import InputError
from latency.machine import CONTROL
from latency.runners import RUNNERS, open_session, runtime_of
from latency.runners.kernel import random_input
from latency.sampling import Plan, take_turns, warm_up
from tests.fakes import SCRIPTED, write_scripted

KINDS = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


def onnx_file(path: Path, inputs, dtype: str) -> Path:
    """A file whose output is the sum of its inputs."""
    kind = KINDS[dtype]
    values = [helper.make_tensor_value_info(f"in{i}", kind, shape) for i, shape in enumerate(inputs)]
    out = helper.make_tensor_value_info("out", kind, inputs[0])
    operator = "Sum" if kind == TensorProto.FLOAT else "Add"
    nodes = [helper.make_node(operator, [v.name for v in values] * (2 // len(values)), ["out"])]
    graph = helper.make_graph(nodes, "g", values, [out])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.fixture(params=[*RUNNERS, "scripted"])
def runtime(request, monkeypatch):
    monkeypatch.setitem(RUNNERS, "scripted", SCRIPTED)
    return request.param


@pytest.fixture
def make(runtime, tmp_path):
    """A file of that runtime's kind with these inputs."""

    def file(*inputs, dtype="float32"):
        if runtime == "scripted":
            return write_scripted(tmp_path / "model.json", inputs, dtype)
        return onnx_file(tmp_path / "model.onnx", inputs, dtype)

    return file


@pytest.fixture
def network(runtime, tmp_path):
    return write_scripted(tmp_path / "network.json") if runtime == "scripted" else CONTROL


class TestRunner:
    def test_shape_and_type_of_the_input(self, runtime, network):
        session = open_session(network, runtime, "f32", 1)
        assert (session.shape, session.dtype) == ((1, 3, 112, 112), "float32")

    def test_effective_precision_and_settings_are_read_back(self, runtime, network):
        session = open_session(network, runtime, "f32", 2)
        assert session.effective_precision == "f32"
        assert session.settings["threads"] == 2

    def test_answers_alike_every_time(self, runtime, network):
        session = open_session(network, runtime, "f32", 1)
        images = random_input(session.shape, session.dtype)
        first = session.infer(images).copy()
        assert first.shape == (1, 64)
        np.testing.assert_array_equal(first, session.infer(images))

    def test_the_answer_is_of_the_image_given(self, runtime, network):
        session = open_session(network, runtime, "f32", 1)
        images = random_input(session.shape, session.dtype)
        first = session.infer(images).copy()
        assert not np.array_equal(first, session.infer(np.ascontiguousarray(images[..., ::-1])))

    def test_can_be_warmed_up_and_timed(self, runtime, network):
        session = open_session(network, runtime, "f32", 1)
        images = random_input(session.shape, session.dtype)
        plan, clock = Plan(samples=20), [session.clock] if runtime == "scripted" else []
        assert warm_up(lambda: session.infer(images), plan, *clock) >= 20
        (samples,) = take_turns([lambda: session.infer(images)], plan, *clock)
        assert len(samples) == 20
        assert min(samples) > 0

    def test_tells_what_its_kernels_took(self, runtime, network):
        kernels = RUNNERS[runtime].profile(network, "f32", 1, None, 3)
        assert sum(k.ms for k in kernels) > 0
        assert {k.precision for k in kernels if k.ms > 0.01} <= {"f32", "-"}

    def test_refuses_a_file_that_is_no_model(self, runtime, tmp_path):
        file = tmp_path / "model.onnx"
        file.write_text("not a model")
        with pytest.raises(InputError, match=r"model\.onnx.*cannot load it"):
            open_session(file, runtime, "f32", 1)

    def test_refuses_a_missing_file(self, runtime, tmp_path):
        with pytest.raises(InputError, match="no such file"):
            open_session(tmp_path / "none.onnx", runtime, "f32", 1)

    def test_refuses_two_inputs(self, runtime, make):
        with pytest.raises(InputError, match="expected one input, got 2"):
            open_session(make((1, 4), (1, 4)), runtime, "f32", 1)

    def test_refuses_a_dynamic_input(self, runtime, make):
        with pytest.raises(InputError, match=r"dynamic shape.*only the first dimension"):
            open_session(make((1, "h", 4)), runtime, "f32", 1, batch=1)

    def test_an_open_batch_is_asked_for(self, runtime, make):
        file = make(("n", 4))
        with pytest.raises(InputError, match=r"dynamic shape.*say how many images go in at once"):
            open_session(file, runtime, "f32", 1)
        session = open_session(file, runtime, "f32", 1, batch=3)
        assert session.shape == (3, 4)
        session.infer(random_input(session.shape, session.dtype))

    def test_refuses_another_batch_than_the_file_s(self, runtime, make):
        with pytest.raises(InputError, match="fixed at"):
            open_session(make((1, 4)), runtime, "f32", 1, batch=8)

    def test_refuses_an_integer_input(self, runtime, make):
        with pytest.raises(InputError, match="expected one of uint8, float32"):
            open_session(make((1, 4), dtype="int64"), runtime, "f32", 1)

    def test_refuses_an_unknown_precision(self, runtime, network):
        meant = r"unknown precision 'f16' \(did you mean 'bf16'\?\); known: f32, bf16, int8"
        with pytest.raises(InputError, match=meant):
            open_session(network, runtime, "f16", 1)


@pytest.mark.parametrize("name", RUNNERS)
class TestRealRunner:
    def test_agrees_with_the_other_runtimes(self, name):
        sessions = [open_session(CONTROL, other, "f32", 1) for other in ("onnxruntime", name)]
        a, b = (s.infer(random_input(s.shape, s.dtype)).copy() for s in sessions)
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)

    def test_refuses_missing_external_data(self, name, tmp_path):
        file = tmp_path / "external.onnx"
        model = onnx.load(CONTROL)
        onnx.save(model, file, save_as_external_data=True, location="weights.bin", size_threshold=0)
        (tmp_path / "weights.bin").unlink()
        with pytest.raises(InputError, match=r"external\.onnx.*cannot load it.*weights\.bin"):
            open_session(file, name, "f32", 1)

    def test_refuses_an_unknown_operator(self, name, tmp_path):
        shape = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 4)) for n in ("in0", "out")]
        graph = helper.make_graph([helper.make_node("NoSuchOp", ["in0"], ["out"])], "g", shape[:1], shape[1:])
        file = tmp_path / "unknown.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), file)
        with pytest.raises(InputError, match=r"unknown\.onnx.*cannot load it.*NoSuchOp"):
            open_session(file, name, "f32", 1)

    def test_a_runtime_that_is_not_installed_is_named(self, name, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, name, None)
        with pytest.raises(runners.ort.LatencyError, match=f"{name} is not installed.*pip install {name}"):
            open_session(CONTROL, name, "f32", 1)


def test_an_unknown_runtime_names_the_known():
    with pytest.raises(InputError, match="unknown runtime 'tflite'; known: onnxruntime, openvino"):
        open_session(CONTROL, "tflite", "f32", 1)


def test_onnx_runtime_says_that_it_has_no_bf16():
    with pytest.raises(InputError, match="use the runtime openvino for bf16"):
        open_session(CONTROL, "onnxruntime", "bf16", 1)


def test_openvino_runs_bf16_where_the_cpu_has_it_and_never_by_itself():
    from latency.host import this_host

    assert open_session(CONTROL, "openvino", "f32", 1).settings["precision_hint"] == "f32"
    if not this_host().has_bf16:
        with pytest.raises(InputError, match="no bf16 instructions"):
            open_session(CONTROL, "openvino", "bf16", 1)
    else:
        assert open_session(CONTROL, "openvino", "bf16", 1).effective_precision == "bf16"


def test_the_runtime_follows_from_the_suffix():
    assert [runtime_of(Path(f)) for f in ("a.onnx", "a.ort", "a.xml")] == ["onnxruntime", "onnxruntime", "openvino"]
    with pytest.raises(InputError, match=r"no runtime for '\.pt' files"):
        runtime_of(Path("a.pt"))
