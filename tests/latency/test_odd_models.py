"""Files that compute nothing, nothing finite, or on nothing: refused, for their time would mean nothing."""

import os
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from latency.errors import InputError, LatencyError
from latency.files import file_hash, model_files
from latency.machine import CONTROL, Worker
from latency.measure import measure
from latency.profile import profile, summarize
from latency.records import Subject
from latency.runners import open_session
from latency.runners.kernel import Kernel, fixed_shape
from latency.sampling import Plan

FLOAT = TensorProto.FLOAT
QUICK = Plan(samples=10, seconds=0.1, least=10, warmup_seconds=0.0)


def saved(path, nodes, inputs, outputs, initializers=()):
    graph = helper.make_graph(list(nodes), "g", inputs, outputs, list(initializers))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def value(name, shape=(1, 8), kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


ONES = numpy_helper.from_array(np.ones((1, 8), np.float32), "c")


def no_nodes(path):
    return saved(path, [], [value("x")], [value("c")], [ONES])


def the_input_is_the_output(path):
    return saved(path, [], [value("x")], [value("x")])


def a_dimension_of_0(path):
    return saved(path, [helper.make_node("Relu", ["x"], ["y"])], [value("x", (1, 0, 8, 8))], [value("y", (1, 0, 8, 8))])


def a_batch_of_0(path):
    return saved(path, [helper.make_node("Relu", ["x"], ["y"])], [value("x", (0, 8))], [value("y", (0, 8))])


REFUSED = {
    no_nodes: "it computes nothing",
    the_input_is_the_output: "it computes nothing",
    a_dimension_of_0: "has no elements, its shape is",
    a_batch_of_0: "has no elements, its shape is",
}


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_a_file_that_computes_nothing_is_not_loaded(tmp_path, make, runtime):
    with pytest.raises(InputError, match=f"{REFUSED[make]}|cannot load it"):
        open_session(make(tmp_path / "model.onnx"), runtime, "f32", 1)


@pytest.mark.parametrize("shape", [(0,), (1, 0, 3), ("n", 0)])
def test_a_dimension_of_0_is_none(shape):
    with pytest.raises(InputError, match="has no elements"):
        fixed_shape("m.onnx", "x", shape, 1)


def test_a_negative_dimension_is_open():
    assert fixed_shape("m.onnx", "x", (-1, 8), 2) == (2, 8)
    with pytest.raises(InputError, match="only the first dimension"):
        fixed_shape("m.onnx", "x", (1, -1), None)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("operator", "constant", "told"),
    [("Div", 0.0, "not finite"), ("Mul", np.inf, "not finite"), ("Sub", np.nan, "not finite")],
)
def test_an_output_that_is_not_finite_is_not_timed(tmp_path, runtime, operator, constant, told):
    number = numpy_helper.from_array(np.full((1, 8), constant, np.float32), "c")
    path = saved(
        tmp_path / "m.onnx", [helper.make_node(operator, ["x", "c"], ["y"])], [value("x")], [value("y")], [number]
    )
    with Worker() as worker, pytest.raises(InputError, match=told):
        worker.time([Subject.of(path, runtime)], QUICK)


def folded(path):
    return saved(path, [helper.make_node("Relu", ["c"], ["y"])], [value("x")], [value("y")], [ONES])


def a_constant_beside_the_output(path):
    nodes = [helper.make_node("Relu", ["c"], ["y"]), helper.make_node("Relu", ["x"], ["z"])]
    return saved(path, nodes, [value("x")], [value("y"), value("z")], [ONES])


def the_shape_alone(path):
    node = helper.make_node("Shape", ["x"], ["y"])
    return saved(path, [node], [value("x")], [value("y", (2,), TensorProto.INT64)])


def text(path):
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING)
    return saved(path, [node], [value("x")], [value("y", (1, 8), TensorProto.STRING)])


def a_sequence(path):
    node = helper.make_node("SequenceConstruct", ["x", "x"], ["y"])
    return saved(path, [node], [value("x")], [helper.make_tensor_sequence_value_info("y", FLOAT, (1, 8))])


def no_nodes_under_another_name(path):
    return no_nodes(path.with_suffix(".onnx")).rename(path.with_suffix(".pb"))


def the_shape_alone_in_a_function(path):
    """ConstantOfShape(Shape(x)), as a function of the model's own."""
    nodes = [helper.make_node("Shape", ["a"], ["s"]), helper.make_node("ConstantOfShape", ["s"], ["b"])]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    function = helper.make_function("own", "Blank", ["a"], ["b"], nodes, opsets[:1])
    graph = helper.make_graph([helper.make_node("Blank", ["x"], ["y"], domain="own")], "g", [value("x")], [value("y")])
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=9), path)
    return path


NOTHING = {
    the_shape_alone_in_a_function: "it computes nothing",
    folded: "it computes nothing",
    a_constant_beside_the_output: "it computes nothing",
    the_shape_alone: "it computes nothing",
    no_nodes_under_another_name: "it computes nothing",
    text: "is no array of numbers",
    a_sequence: "is no array of numbers",
}


@pytest.mark.parametrize("make", NOTHING, ids=lambda make: make.__name__)
def test_an_output_that_does_not_depend_on_the_input_is_not_timed(tmp_path, make):
    path = make(tmp_path / "m.onnx")
    with Worker() as worker, pytest.raises(LatencyError, match=NOTHING[make]):
        worker.time([Subject.of(path, "onnxruntime")], QUICK)


def a_huge_input(path):
    shape = (1, 3, 40_000, 40_000)
    return saved(path, [helper.make_node("Relu", ["x"], ["y"])], [value("x", shape)], [value("y", shape)])


def a_huge_constant(path):
    """12 GB of zeros, in a file of some hundred bytes."""
    size = numpy_helper.from_array(np.array([3_000_000_000], np.int64), "n")
    nodes = [helper.make_node("ConstantOfShape", ["n"], ["c"]), helper.make_node("ReduceSum", ["c"], ["s"])]
    nodes.append(helper.make_node("Add", ["x", "s"], ["y"]))
    return saved(path, nodes, [value("x")], [value("y")], [size])


def an_output_that_numpy_does_not_know(path):
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16)
    return saved(path, [node], [value("x")], [value("y", (1, 8), TensorProto.BFLOAT16)])


def an_input_whose_name_is_no_text(path):
    saved(path, [helper.make_node("Relu", ["xxxx"], ["y"])], [value("xxxx")], [value("y")])
    path.write_bytes(path.read_bytes().replace(b"xxxx", b"x\xff\xfex"))
    return path


ODD = [a_huge_input, a_huge_constant, an_output_that_numpy_does_not_know, an_input_whose_name_is_no_text]


@pytest.mark.parametrize("make", ODD, ids=lambda make: make.__name__)
def test_what_a_runtime_cannot_do_is_told_with_the_file_and_the_worker_lives_on(tmp_path, make):
    subject = Subject.of(make(tmp_path / "m.onnx"), "onnxruntime")
    with Worker() as worker:
        for ask in (lambda: worker.time([subject], QUICK), lambda: worker.profile(subject, 2)):
            with pytest.raises(LatencyError, match=r"m\.onnx|elements; give a smaller batch") as caught:
                ask()
            assert "died" not in str(caught.value)
        assert worker.time([Subject.of(CONTROL, "onnxruntime")], QUICK)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_network_that_answers_all_alike_is_timed_all_the_same(tmp_path, runtime):
    """As INT8 of a network that has learnt nothing does: it takes its time nevertheless."""
    low = numpy_helper.from_array(np.full((1, 8), -1e4, np.float32), "c")
    nodes = [helper.make_node("Add", ["x", "c"], ["s"]), helper.make_node("Relu", ["s"], ["y"])]
    path = saved(tmp_path / "m.onnx", nodes, [value("x")], [value("y")], [low])
    with Worker() as worker:
        (run,) = worker.time([Subject.of(path, runtime)], QUICK)
    assert len(run.samples_ms) >= 10


@pytest.mark.parametrize("make", [folded, a_constant_beside_the_output], ids=lambda make: make.__name__)
def test_the_same_in_openvino(tmp_path, make):
    with Worker() as worker, pytest.raises(InputError, match="it computes nothing"):
        worker.time([Subject.of(make(tmp_path / "m.onnx"), "openvino")], QUICK)


def test_an_output_without_elements_is_not_timed(tmp_path):
    """Slices away all that came in."""
    ends = [numpy_helper.from_array(np.array([0], np.int64), n) for n in ("a", "b")]
    node = helper.make_node("Slice", ["x", "a", "b"], ["y"])
    path = saved(tmp_path / "m.onnx", [node], [value("x")], [value("y", (0, 8))], ends)
    with Worker() as worker, pytest.raises(LatencyError):
        worker.time([Subject.of(path, "onnxruntime")], QUICK)


@pytest.mark.parametrize(
    "name", ["weights.bin", "sub/weights.bin", "w" * 127, "w" * 128, "ü" * 70, "d/" * 80 + "w.bin"]
)
def test_weights_in_another_file_are_part_of_the_hash(tmp_path, name):
    weights = numpy_helper.from_array(np.arange(2048, dtype=np.float32).reshape(8, 256), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    saved(tmp_path / "m.onnx", [node], [value("x")], [value("y", (1, 256))], [weights])
    model = onnx.load(tmp_path / "m.onnx")
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location=name, size_threshold=0)
    assert model_files(tmp_path / "m.onnx") == [tmp_path / "m.onnx", tmp_path / name]
    before = file_hash(tmp_path / "m.onnx")
    data = bytearray((tmp_path / name).read_bytes())
    data[7] ^= 1
    (tmp_path / name).write_bytes(data)
    assert file_hash(tmp_path / "m.onnx") != before


def with_weights_in(path, location):
    """Value before key, as protobuf allows and no writer does."""
    tensor = onnx.TensorProto(name="w", data_type=FLOAT, dims=[8, 8], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    saved(path, [helper.make_node("MatMul", ["x", "w"], ["y"])], [value("x")], [value("y")], [tensor])
    key, name = b"\x0a\x08location", b"\x12" + bytes([len(location)]) + location.encode()
    path.write_bytes(path.read_bytes().replace(key + name, name + key))


@pytest.mark.parametrize("location", ["w.bin", "sub/../w.bin", "./w.bin", "sub/w.bin"])
def test_weights_are_found_however_their_place_is_written(tmp_path, location):
    (tmp_path / "sub").mkdir()
    (tmp_path / location).write_bytes(np.eye(8, dtype=np.float32).tobytes())
    with_weights_in(tmp_path / "m.onnx", location)
    before = file_hash(tmp_path / "m.onnx")
    (tmp_path / location).write_bytes(np.ones((8, 8), np.float32).tobytes())
    assert file_hash(tmp_path / "m.onnx") != before


def test_weights_outside_of_the_folder_are_none_of_the_models(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(256))
    with_weights_in(tmp_path / "in/m.onnx", "../w.bin")
    assert model_files(tmp_path / "in/m.onnx") == [tmp_path / "in/m.onnx"]


@pytest.mark.parametrize("name", ["m.xml", "M.XML", "m.model"])
def test_the_weights_of_an_ir_are_beside_it_whatever_its_suffix(tmp_path, name):
    path = tmp_path / name
    path.write_text("<?xml version='1.0'?><net/>")
    path.with_suffix(".bin").write_bytes(b"weights")
    assert model_files(path) == [path, path.with_suffix(".bin")]
    path.with_suffix(".bin").unlink()
    os.mkfifo(path.with_suffix(".bin"))
    with pytest.raises(InputError, match="which is no file"):
        model_files(path)


def test_kernels_that_took_no_time_have_no_share():
    kernels = [Kernel("a", "Relu", "CPU", "f32", 0.0), Kernel("b", "Add", "CPU", "f32", 0.0)]
    found = summarize(Subject("m.onnx", "openvino", "f32", 1, ""), kernels)
    assert found.total_ms == 0
    assert [r.share for r in found.rows] == [0, 0]


def test_a_loop_is_counted_once(tmp_path):
    """Its own time holds that of its body, which the profiler lists as well."""
    side = 192
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["on"]),
            helper.make_node("MatMul", ["m", "m"], ["next"]),
        ],
        "body",
        [value("i", (), TensorProto.INT64), value("going", (), TensorProto.BOOL), value("m", (side, side))],
        [value("on", (), TensorProto.BOOL), value("next", (side, side))],
    )
    constants = [
        numpy_helper.from_array(np.array(20, np.int64), "count"),
        numpy_helper.from_array(np.array(True), "go"),
    ]
    path = saved(
        tmp_path / "m.onnx",
        [helper.make_node("Loop", ["count", "go", "x"], ["y"], body=body), helper.make_node("Relu", ["y"], ["z"])],
        [value("x", (side, side))],
        [value("z", (side, side))],
        constants,
    )
    images = np.zeros((side, side), np.float32)
    assert open_session(path, "onnxruntime", "f32", 1).infer(images).shape == (side, side)
    # Zeros, so that twenty products stay finite.
    found = profile(Subject.of(path, "onnxruntime"), runs=5)
    rows = {r.operator: r for r in found.rows}
    assert rows["Loop"].ms < rows["MatMul"].ms / 2, "the loop's own time is what it adds"
    assert found.total_ms == pytest.approx(sum(r.ms for r in found.rows))


def of_values(path, *nodes, functions=()):
    """A model whose output hangs on the values of its input only by a shape."""
    graph = helper.make_graph(list(nodes), "g", [value("x")], [value("y", None)])
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=10, functions=list(functions)), path)
    return path


def cast(source):
    return helper.make_node("Cast", [source], ["y"], to=FLOAT)


def length_of_nonzero(path):
    nodes = [helper.make_node("NonZero", ["x"], ["n"]), helper.make_node("Shape", ["n"], ["s"]), cast("s")]
    return of_values(path, *nodes)


def nonzero(path):
    return of_values(path, helper.make_node("NonZero", ["x"], ["n"]), cast("n"))


@pytest.mark.parametrize("make", [length_of_nonzero, nonzero])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_shape_may_depend_on_values(tmp_path, make, runtime):
    session = open_session(make(tmp_path / "model.onnx"), runtime, "f32", 1)
    some = np.array([[1, 0, 0, 2, 0, 0, 0, 0]], np.float32)
    few, many = (np.array(session.infer(images)) for images in (some, np.ones((1, 8), np.float32)))
    assert few.shape != many.shape or few.tolist() != many.tolist()


def test_a_shape_that_is_known_depends_on_nothing(tmp_path):
    path = of_values(tmp_path / "model.onnx", helper.make_node("Shape", ["x"], ["s"]), cast("s"))
    for runtime in ("onnxruntime", "openvino"):
        with pytest.raises(InputError, match="does not depend on its input"):
            open_session(path, runtime, "f32", 1)


def overloaded(path, called):
    """Two functions of one name, of which the one is a constant."""
    domains = [helper.make_opsetid("", 18)]
    real = [helper.make_node("Relu", ["a"], ["b"])]
    constant = [helper.make_node("Constant", [], ["b"], value=ONES)]
    functions = [
        helper.make_function("own", "F", ["a"], ["b"], nodes, domains, overload=name)
        for name, nodes in (("real", real), ("constant", constant))
    ]
    return of_values(path, helper.make_node("F", ["x"], ["y"], domain="own", overload=called), functions=functions)


def test_functions_of_one_name_are_told_apart(tmp_path):
    assert open_session(overloaded(tmp_path / "real.onnx", "real"), "onnxruntime", "f32", 1)
    with pytest.raises(InputError, match="does not depend on its input"):
        open_session(overloaded(tmp_path / "constant.onnx", "constant"), "onnxruntime", "f32", 1)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_weights_of_an_ir_are_part_of_its_hash_in_any_encoding(tmp_path, encoding):
    path = tmp_path / "model.xml"
    path.write_text("<?xml version='1.0'?><net/>", encoding=encoding)
    path.with_suffix(".bin").write_bytes(b"a")
    before = file_hash(path)
    path.with_suffix(".bin").write_bytes(b"b")
    assert file_hash(path) != before


def test_a_file_that_is_changed_while_it_is_timed_has_no_time(tmp_path):
    path = shutil.copy(CONTROL, tmp_path / "model.onnx")

    def swap(done, total):
        if done == 1:
            nonzero(path)

    with pytest.raises(LatencyError, match="it was changed while it was timed"):
        measure([Subject.of(path)], 2, QUICK, tick=swap)


@pytest.mark.parametrize(("operator", "told"), [("Frobnicate", "it lacks the operations Frobnicate")])
def test_openvino_says_what_it_lacks(tmp_path, operator, told):
    path = of_values(tmp_path / "model.onnx", helper.make_node(operator, ["x"], ["y"]))
    with pytest.raises(InputError, match=told) as caught:
        open_session(path, "openvino", "f32", 1)
    assert "src/" not in str(caught.value)
