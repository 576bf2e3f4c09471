"""ONNX, OpenVINO and INT8 files of a real student: what they take, what they say of themselves, what they answer."""

import json
import shutil

import numpy as np
import onnx
import openvino as ov
import pytest
import torch
from torch import nn

from export.artifact import Artifact, ModelCard
from export.errors import ExportError
from export.onnx_export import deployable, export_onnx, read_card
from export.openvino_export import read_onnx, save_ir
from export.parity import compare, f1_per_class, logits_of, scores
from export.preprocess import Preprocess
from export.quantize import quantize_onnx, quantize_openvino


@pytest.fixture(scope="module")
def int8(exported):
    quantize_onnx(exported.folder / "model.onnx", exported.images, exported.card, exported.folder / "int8.onnx")
    quantize_openvino(exported.folder / "model.onnx", exported.images, exported.card, exported.folder / "int8.xml")
    return exported.folder


def test_the_input_is_uint8_nhwc_and_the_graph_is_valid(exported):
    model = onnx.load(exported.folder / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    (only,) = model.graph.input
    assert only.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_value for d in only.type.tensor_type.shape.dim] == [1, 168, 168, 3]


def test_the_card_is_in_every_file(exported, int8):
    assert read_card(exported.folder / "model.onnx") == read_card(int8 / "int8.onnx") == exported.card
    for name in ("model.xml", "int8.xml"):
        text = ov.Core().read_model(exported.folder / name).get_rt_info(["edgebuild"]).astype(str)
        assert ModelCard.from_json(text) == exported.card


@pytest.mark.parametrize(("file", "runtime"), [("model.onnx", "onnxruntime"), ("model.xml", "openvino")])
def test_f32_files_answer_as_torch(exported, file, runtime):
    logits = logits_of(Artifact(exported.folder / file, runtime, "f32"), exported.images)
    parity = compare(exported.logits, logits, exported.labels)
    assert np.abs(exported.logits).max() > 0.05, "the comparison is of numbers of a natural size"
    assert parity.max_diff < 1e-4
    assert parity.agreement == 1.0


@pytest.mark.parametrize(("file", "runtime"), [("int8.onnx", "onnxruntime"), ("int8.xml", "openvino")])
def test_int8_files_run_in_int8_and_answer_nearly_so(exported, int8, file, runtime):
    from latency.runners import open_session

    session = open_session(int8 / file, runtime, "int8", 1)
    assert session.effective_precision == "int8"
    logits = logits_of(Artifact(int8 / file, runtime, "int8"), exported.images)
    assert np.corrcoef(logits.ravel(), exported.logits.ravel())[0, 1] > 0.9
    f32, quantized = (
        Artifact(exported.folder / f, runtime, "f32").size_bytes for f in (file.replace("int8", "model"), file)
    )
    assert quantized < f32


def test_what_the_search_times_is_what_ships(exported, tmp_path):
    """OpenVINO reads the search's ONNX and the shipped IR into one and the same network of kernels; ONNX Runtime gets
    the very file. So both time alike, whatever the clock says."""

    def kernels(path):
        compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
        ops = compiled.get_runtime_model().get_ordered_ops()
        keys = ("layerType", "runtimePrecision", "primitiveType", "outputLayouts")
        return [tuple(op.get_rt_info()[k].astype(str) for k in keys if k in op.get_rt_info()) for op in ops]

    searched = tmp_path / "candidate.onnx"
    export_onnx(exported.model, exported.card, searched)
    assert searched.read_bytes() == (exported.folder / "model.onnx").read_bytes()
    found = kernels(searched)
    assert found == kernels(exported.folder / "model.xml")
    assert len(found) > 20


def test_the_same_network_gives_the_same_ir_whatever_came_before_it_in_the_process(exported, tmp_path):
    """ReLU6 is two operations there, which OpenVINO names itself."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6))
    export_onnx(model, exported.card, tmp_path / "model.onnx")
    for name in ("a", "b"):
        save_ir(read_onnx(tmp_path / "model.onnx"), exported.card, tmp_path / f"{name}.xml")
    text = (tmp_path / "a.xml").read_text()
    assert 'type="Minimum"' in text or 'type="Clamp"' in text
    for suffix in (".xml", ".bin"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


class Branches(nn.Module):
    """x + 2 x, which is one branch once it is fused."""

    def __init__(self, fused_to):
        super().__init__()
        self.factors, self.fused_to = (1.0, 2.0), fused_to
        self.classify = nn.Linear(3, 2)

    def forward(self, x):
        x = x.abs().mean((2, 3))
        return self.classify(sum(factor * x for factor in self.factors))

    def fuse(self):
        self.factors = (self.fused_to,)
        return self


def test_a_network_that_answers_otherwise_once_fused_is_refused(exported):
    torch.manual_seed(0)
    assert deployable(nn.Sequential(Branches(3.0)), exported.card).model[0].factors == (3.0,)
    with pytest.raises(ExportError, match="cannot be fused to one: the network then answers otherwise, by 0"):
        deployable(nn.Sequential(Branches(3.1)), exported.card)


class Alien(nn.Module):
    """Has an operation that ONNX lacks."""

    def forward(self, x):
        return torch.linalg.eigvals(x.mean(1)).real[:, :5]


def test_what_cannot_be_exported_or_quantized_is_an_error_of_ours(exported, tmp_path):
    """So that a search goes on, and another file ships."""
    with pytest.raises(ExportError, match=r"torch cannot export the network to ONNX: .*linalg_eigvals"):
        export_onnx(Alien(), exported.card, tmp_path / "alien.onnx")
    small = exported.images[:2, :32, :32]  # of another size than the graph takes
    with pytest.raises(ExportError, match=r"model\.onnx: ONNX Runtime cannot quantize it: "):
        quantize_onnx(exported.folder / "model.onnx", small, exported.card, tmp_path / "int8.onnx")


def test_a_file_that_is_not_ours_has_no_card(exported, tmp_path):
    model = onnx.load(exported.folder / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    assert read_card(tmp_path / "foreign.onnx") is None
    shutil.copy(__file__, tmp_path / "text.onnx")
    with pytest.raises(ExportError, match=r"text\.onnx: not an ONNX file"):
        read_card(tmp_path / "text.onnx")


def test_a_card_of_another_format_is_refused(exported):
    with pytest.raises(ExportError, match="model card of format 99; this version reads 1"):
        ModelCard.from_json(exported.card.to_json().replace('"format": 1, "input_size"', '"format": 99, "input_size"'))


def test_scores_count_every_class():
    logits = np.eye(3, dtype=np.float32)[[0, 0, 1, 1]]
    labels = np.array([0, 0, 1, 0])
    f1, accuracy = scores(logits, labels)
    assert accuracy == 0.75
    assert f1 == pytest.approx((0.8 + 2 / 3 + 0) / 3), "the class that nobody is counts as 0"
    assert f1_per_class(logits.argmax(1), labels, "abc") == pytest.approx({"a": 0.8, "b": 2 / 3, "c": 0.0})


def test_logits_that_are_not_finite_are_no_parity():
    with pytest.raises(ExportError, match="not finite"):
        compare(np.zeros((1, 2)), np.array([[np.nan, 0.0]]), np.array([0]))


def odd(**changes):
    return json.dumps({**json.loads(CARD.to_json()), **changes})


CARD = ModelCard(tuple("ab"), 64, Preprocess(64), (127.5,) * 3, (127.5,) * 3, "0" * 16)
ODD_CARDS = {
    "a list": "[]",
    "a text": '"a"',
    "nothing": "null",
    "a number": "5",
    "no JSON": "{",
    "two means": odd(mean=[1.0, 2.0]),
    "a mean in words": odd(mean=["a", "b", "c"]),
    "a deviation of 0": odd(std=[1.0, 0.0, 1.0]),
    "an endless mean": odd(mean=[1.0, 2.0, float("inf")]),
    "a negative size": odd(input_size=-1),
    "a size in words": odd(input_size="x"),
    "half a pixel": odd(input_size=1.5),
    "no image": odd(batch=-1),
    "a huge batch": odd(batch=10**6),
    "no classes": odd(classes=[]),
    "classes that are no names": odd(classes=[None, {}]),
    "a preprocessing in words": odd(preprocess={"size": "x"}),
    "another preprocessing": odd(preprocess={"size": 64, "fit": "no"}),
    "more than it holds": odd(more=1),
    "another format": odd(format=99),
}


@pytest.mark.parametrize("what", ODD_CARDS)
def test_a_card_that_none_of_ours_wrote(what):
    with pytest.raises(ExportError, match="model card"):
        ModelCard.from_json(ODD_CARDS[what])


def test_a_card_is_read_as_it_was_written():
    assert ModelCard.from_json(CARD.to_json()) == CARD
