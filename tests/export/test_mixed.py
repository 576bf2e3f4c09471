"""Layers that go back to f32: the right ones, within the budget, or a clear no."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.artifact import Artifact
from export.mixed import CannotReach, keep_f1
from export.parity import logits_of, scores
from export.quantize import layers_of, quantize_onnx, quantize_openvino


def parts(source, exported, images, runtime):
    def quantize(file, keep):
        if runtime == "openvino":
            quantize_openvino(source, images, exported.card, file, fast=True, keep=keep)
        else:
            quantize_onnx(source, images, exported.card, file, per_channel=False, keep=keep)

    labels = logits_of(Artifact(source, "onnxruntime", "f32"), images).argmax(1)
    return quantize, lambda artifact: scores(logits_of(artifact, images), labels)[0]


@pytest.mark.slow
def test_the_layer_that_costs_most_goes_back(exported, photos, tmp_path):
    """A real quantizer that, by way of a fault, gives one layer's weights a scale four times too large."""
    images, source = photos.arrays(exported.card), exported.folder / "model.onnx"
    quantize, f1_of = parts(source, exported, images, "onnxruntime")
    layer = layers_of(source, "onnxruntime")[5]

    def spoils_one_layer(file, keep):
        quantize(file, keep)
        if layer not in keep:
            model = onnx.load(file)
            (node,) = [n for n in model.graph.node if n.name == layer]
            (scales,) = [n.input[1] for n in model.graph.node if node.input[1] in n.output]
            tensor = next(t for t in model.graph.initializer if t.name == scales)
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(4), scales))
            onnx.save(model, file)

    spoils_one_layer(tmp_path / "all.onnx", ())
    quantize(tmp_path / "right.onnx", (layer,))
    spoiled, right = (f1_of(Artifact(tmp_path / f, "onnxruntime", "int8")) for f in ("all.onnx", "right.onnx"))
    assert spoiled < right
    mixed = tmp_path / "mixed.onnx"
    found = keep_f1(source, "onnxruntime", spoils_one_layer, spoils_one_layer, images, f1_of, right, mixed, 60)
    assert found.kept == (layer,)
    assert found.f1_macro == f1_of(Artifact(mixed, "onnxruntime", "int8")) == right


@pytest.mark.parametrize(("runtime", "suffix"), [("onnxruntime", "onnx"), ("openvino", "xml")])
def test_what_cannot_be_reached_is_said_and_leaves_no_file(exported, photos, tmp_path, runtime, suffix):
    images = photos.arrays(exported.card)[:8]
    source = exported.folder / "model.onnx"
    quantize, f1_of = parts(source, exported, images, runtime)
    with pytest.raises(CannotReach, match=rf"{runtime} INT8 cannot be made to keep F1 1\.1000 within 3 s"):
        keep_f1(source, runtime, quantize, quantize, images, f1_of, 1.1, tmp_path / f"m.{suffix}", 3)
    assert list(tmp_path.iterdir()) == []


def test_layers_have_the_names_that_the_quantizer_takes(exported, tmp_path):
    images = np.zeros((2, 168, 168, 3), np.uint8)
    source = exported.folder / "model.onnx"
    keep = layers_of(source, "onnxruntime")
    quantize_onnx(source, images, exported.card, tmp_path / "none.onnx", keep=keep)
    weights = [t for t in onnx.load(tmp_path / "none.onnx").graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert not [t for t in weights if len(t.dims) == 4], "no convolution is left to quantize"
    quantize_openvino(source, images, exported.card, tmp_path / "none.xml", keep=layers_of(source, "openvino"))
    assert 'precision="I8"' not in (tmp_path / "none.xml").read_text()
