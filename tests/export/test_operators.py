"""The operators of a stranger's model: read as its runtime reads it, and refused where they may keep something."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import defs, helper

from export.formats import FORMATS, Source, write_formats
from export.operators import RANDOM, operators_of
from latency.errors import InputError
from latency.files import is_quantized
from latency.graph import operators

WITH_BODIES = {"If", "Loop", "Scan", "SequenceMap"}
"""They do what their bodies do, which are looked at as well."""
SOUND = {"AffineGrid"}
"""A function of onnx that draws nothing."""


def ir(layers="<layer id='0' type='Relu'/>", head="<?xml version='1.0'?>", more=""):
    return f"{head}<net name='n' version='11'><layers>{layers}</layers>{more}</net>"


def refused(path, content, text):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=text) as caught:
        operators_of(path)
    assert str(caught.value).startswith(path.name)


def test_what_we_export_is_known(exported, tmp_path):
    source = Source(exported.folder / "model.onnx", exported.card, exported.images, True)
    written = write_formats(source, [n for n in FORMATS if n != "onnx"], tmp_path)
    paths = [Path(w.path) for w in written]
    assert {p.suffix for p in paths} == {".onnx", ".ort", ".xml"}
    for path in paths:
        assert is_quantized(operators_of(path)) == ("int8" in path.stem), path
    assert not is_quantized(operators_of(source.onnx))


@pytest.mark.parametrize("name", ["fakequantize", "FAKEQUANTIZE", "QGemm", "QAttention", "DynamicQuantizeMatMul"])
def test_int8_is_known_by_whatever_name_a_runtime_takes(name):
    assert is_quantized([name])


def test_what_onnx_calls_random_is_refused():
    random = {
        s.name
        for s in defs.get_all_schemas()
        if s.node_determinism == s.NodeDeterminism.NonDeterministic and s.domain == ""
    }
    assert random - WITH_BODIES - SOUND == RANDOM


def network(*nodes, functions=()):
    value = helper.make_tensor_value_info("x", 1, [1])
    graph = helper.make_graph(list(nodes), "g", [value], [helper.make_tensor_value_info("y", 1, [1])])
    return helper.make_model(graph, functions=list(functions))


def body(*nodes):
    return helper.make_graph(list(nodes), "b", [], [helper.make_tensor_value_info("z", 1, [1])])


RANDOM_NODE = helper.make_node("RandomUniform", [], ["z"], shape=[1])
STRANGE = {
    "a random number": network(RANDOM_NODE),
    "one in a body": network(helper.make_node("If", ["c"], ["y"], then_branch=body(RANDOM_NODE), else_branch=body())),
    "dropout": network(helper.make_node("Dropout", ["x"], ["y"])),
    "an operator of another domain": network(helper.make_node("Relu", ["x"], ["y"], domain="evil")),
    "a context of a compiled model": network(helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft")),
    "an operator that there is not": network(helper.make_node("Relu2", ["x"], ["y"])),
}


@pytest.mark.parametrize("what", STRANGE)
def test_an_onnx_file_with_what_is_not_known_to_keep_nothing(what, tmp_path):
    refused(tmp_path / "model.onnx", STRANGE[what].SerializeToString(), "not known to give the same answer")


@pytest.mark.parametrize("name", ["f", "RandomNormal"])
@pytest.mark.parametrize("domain", ["mine", "", "ai.onnx"])
def test_functions_of_the_model_s_own_are_refused(name, domain, tmp_path):
    """Where one has the name of a built-in operator, the runtime takes its own."""
    relu = helper.make_node("Relu", ["x"], ["z"])
    function = helper.make_function(domain, name, ["x"], ["z"], [relu], [helper.make_opsetid("", 18)])
    content = network(helper.make_node(name, ["x"], ["y"], domain=domain), functions=[function]).SerializeToString()
    refused(tmp_path / "model.onnx", content, "it defines functions of its own")


def field(number, content):
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


TWICE = field(7, field(1, field(4, b"Relu") + field(4, b"QuantizeLinear")))
GROUP = bytes([0x0B, 0x10, 0x00, 0x0C])
"""A group of one number, which no field of ONNX is."""


def test_two_parsers_see_the_same_file(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(TWICE)
    assert operators_of(path) == operators(TWICE) == {"QuantizeLinear"}, "protobuf takes the last"
    path.write_bytes(GROUP + TWICE)
    assert operators_of(path) == {"QuantizeLinear"}
    with pytest.raises(InputError, match="not of ONNX"):
        operators(GROUP + TWICE)
    path.write_bytes(field(2, b"xxORTM") + TWICE)
    assert operators_of(path) == {"QuantizeLinear"}, "a mark makes no file of another format"


@pytest.mark.parametrize("content", [b"\x08\x80", TWICE[:-3], b"\x3a\xff\xff\xff\xff\x07"])
def test_bytes_that_end_within_a_field(content, tmp_path):
    refused(tmp_path / "model.onnx", content, "no ONNX model")
    with pytest.raises(InputError, match="ends within a field"):
        operators(content)


@pytest.mark.parametrize("content", [b"", b"\0" * 40, b"\x10\0\0\0ORTM" + b"\xff" * 40])
def test_bytes_that_are_of_no_format(content, tmp_path):
    refused(tmp_path / "model.ort", content, "no model in ONNX Runtime's format")
    refused(tmp_path / "model.xml", content, "cannot be read")


def test_an_ort_file_that_draws_random_numbers(exported, tmp_path):
    import onnxruntime as ort

    model = onnx.load(exported.folder / "model.onnx")
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["before" if name == output else name for name in node.output]
    drawn = helper.make_node("RandomUniform", [], ["drawn"], shape=[1, 1])
    model.graph.node.extend([drawn, helper.make_node("Add", ["before", "drawn"], [output])])
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    with pytest.raises(InputError, match="'RandomUniform' is not known"):
        operators_of(tmp_path / "model.ort")


STATE = "<layer id='0' type='ReadValue'/>"
STRANGE_IR = {
    "a state": (ir(STATE), "'ReadValue' is not known"),
    "one in another case": (ir("<layer id='0' type='READVALUE'/>"), "'READVALUE' is not known"),
    "one by a character's number": (ir("<layer id='0' type='Read&#86;alue'/>"), "'ReadValue' is not known"),
    "one in a body": (
        ir("<layer id='0' type='Loop'><body><layers>" + STATE + "</layers></body></layer>"),
        "'ReadValue' is not known",
    ),
    "random numbers": (ir("<layer id='0' type='RandomUniform'/>"), "'RandomUniform' is not known"),
    "an operator that there is not": (ir("<layer id='0' type='Relu2'/>"), "'Relu2' is not known"),
    "no type": (ir("<layer id='0'/>"), "'' is not known"),
    "a namespace": (ir(STATE).replace("<net ", "<net xmlns='urn:x' "), "namespaces"),
    "a name with a prefix": (ir(STATE).replace("<net ", "<x:net xmlns:x='urn:x' "), "namespaces"),
    "a comment": (ir("<!-- -->" + STATE), "comments"),
    "an entity": (ir(head="<!DOCTYPE net [<!ENTITY a 'Relu'>]>"), "declarations"),
    "an instruction": (ir("<?x y?>" + STATE), "declarations"),
    "another encoding": (ir(head="<?xml version='1.0' encoding='utf-7'?>"), "declarations"),
    "no encoding that there is": (ir(head="<?xml version='1.0' encoding='nope'?>"), "declarations"),
    "another root": (ir().replace("net", "map"), "of 'map', not of a net"),
    "a layer outside of the layers": (ir(more="<layer type='FakeQuantize'/>"), "outside of its lists"),
    "something else among the layers": (ir("<node type='Relu'/>"), "outside of its lists"),
    "no layers": (ir(""), "it has no operators"),
    "XML that is cut short": (ir()[:-4], "cannot be read"),
    "an attribute twice": (ir("<layer type='Relu' type='ReadValue'/>"), "cannot be read"),
    "UTF-16": (ir().encode("utf-16"), "cannot be read"),
    "an empty file": ("", "cannot be read"),
}


@pytest.mark.parametrize("what", STRANGE_IR)
def test_an_ir_that_may_be_read_otherwise_or_keeps_something(what, tmp_path):
    refused(tmp_path / "model.xml", *STRANGE_IR[what])


def test_an_ir_with_a_mark_of_its_encoding_is_one(exported, tmp_path):
    shutil.copy(exported.folder / "model.xml", tmp_path / "model.xml")
    (tmp_path / "model.xml").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "model.xml").read_bytes())
    assert operators_of(tmp_path / "model.xml") == operators_of(exported.folder / "model.xml")


def test_a_state_does_what_is_feared_of_it(tmp_path):
    """Why they are refused: OpenVINO loads such a file, and its answer to one image changes."""
    import openvino as ov
    import openvino.opset13 as op

    image = op.parameter([1, 1], np.float32)
    known = op.read_value(op.constant(np.zeros((1, 1), np.float32)), "v")
    following = op.add(known, image)
    model = ov.Model([op.result(following)], [op.assign(following, "v")], [image], "m")
    ov.save_model(model, tmp_path / "model.xml")
    request = ov.compile_model(tmp_path / "model.xml", "CPU").create_infer_request()
    answers = [float(request.infer([np.ones((1, 1), np.float32)])[0][0, 0]) for _ in range(3)]
    assert answers == [1.0, 2.0, 3.0]
    with pytest.raises(InputError, match="is not known"):
        operators_of(tmp_path / "model.xml")
