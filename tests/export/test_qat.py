"""Quantization-aware training: the file computes what was trained, and training brings it back to the f32 network."""

import numpy as np
import openvino as ov
import pytest
import torch

from export.artifact import Artifact, ModelCard
from export.errors import ExportError
from export.onnx_export import deployable
from export.openvino_export import read_onnx
from export.parity import logits_of
from export.preprocess import Preprocess
from export.qat import save_quantized, with_quantizers
from latency.host import INT8_DOT, this_host
from models.build import build
from models.spec import ModelSpec
from pipeline.training.losses import distillation

SATURATES = not this_host().has_any(INT8_DOT)
"""What the files are made for here: a CPU without 8-bit dot products would answer otherwise than the network."""


@pytest.fixture
def quantized(exported):
    torch.manual_seed(0)
    return with_quantizers(exported.model, exported.images[:8], exported.card, SATURATES)


def inputs(exported) -> torch.Tensor:
    return torch.from_numpy(exported.images).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_the_file_computes_what_the_network_with_quantizers_does(exported, quantized, tmp_path):
    save_quantized(quantized, exported.card, exported.images, tmp_path / "model.xml")
    with torch.no_grad():
        expected = quantized.eval()(inputs(exported)).numpy()
    found = logits_of(Artifact(tmp_path / "model.xml", "openvino", "int8"), exported.images)
    # Rounding to a step of a quantizer may fall to either side; that is a fraction of what quantizing itself changes.
    change = np.abs(expected - exported.logits).mean()
    assert np.abs(found - expected).mean() < change
    assert 0 < change < exported.logits.std()


def test_padding_that_hangs_on_the_image_moves_no_quantizer(tmp_path):
    """The network's own first convolutions pad on one side; while it is exported, that adds nothing to count."""
    lite = {"INPUT_SIZE": [64, 64], "backbone": "timm:tf_efficientnet_lite0", "until": "blocks.2"}
    spec = ModelSpec.parse(lite).with_classes(6)
    model = build(spec, seed=0)
    images = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), dtype=np.uint8)
    for _ in range(20):
        model(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1)
    card = ModelCard(tuple("abcdef"), 64, Preprocess(64), (127.5,) * 3, (127.5,) * 3, spec.hash)
    quantized = with_quantizers(model, images[:8], card, SATURATES)
    save_quantized(quantized, card, images, tmp_path / "model.xml")
    with torch.no_grad():
        whole = deployable(model, card)(torch.from_numpy(images)).numpy()
    found = logits_of(Artifact(tmp_path / "model.xml", "openvino", "int8"), images)
    assert np.abs(found - whole).mean() < whole.std() / 4


def test_a_file_that_answers_otherwise_is_refused(exported, quantized, tmp_path, monkeypatch):
    monkeypatch.setattr("export.qat.logits_of", lambda *_: np.zeros_like(exported.logits))
    with pytest.raises(ExportError, match=r"model.xml answers otherwise than the network that was trained: by \d+% of"):
        save_quantized(quantized, exported.card, exported.images, tmp_path / "model.xml")


def test_every_convolution_of_the_file_is_quantized(exported, quantized, tmp_path):
    save_quantized(quantized, exported.card, exported.images, tmp_path / "model.xml")
    convolutions = ("Convolution", "GroupConvolution")
    model = ov.Core().read_model(tmp_path / "model.xml")
    inner = [op for op in model.get_ordered_ops() if op.get_type_name() in convolutions]
    assert len(inner) == sum(
        op.get_type_name() in convolutions for op in read_onnx(exported.folder / "model.onnx").get_ordered_ops()
    )
    for op in inner:
        image, weights = (origin(op.input_value(i).get_node()) for i in range(2))
        assert image.get_type_name() == "FakeQuantize"
        assert weights.get_element_type() == ov.Type.i8
    assert (tmp_path / "model.bin").stat().st_size < (exported.folder / "model.bin").stat().st_size / 3


def origin(node):
    while node.get_type_name() in ("Reshape", "Multiply", "Subtract", "Convert", "Pad"):
        node = node.input_value(0).get_node()
    return node


@pytest.mark.slow
def test_training_brings_it_back_to_the_f32_network(exported, quantized):
    """From weights that are a little off, as rounding leaves them."""
    x, target = inputs(exported), torch.from_numpy(exported.logits)
    with torch.no_grad():
        for weight in quantized.model.parameters():
            weight += 0.1 * weight.abs().mean() * torch.randn_like(weight)
    optimizer = torch.optim.Adam(quantized.parameters(), 1e-4)
    quantized.eval()
    losses = []
    for _ in range(20):
        loss = distillation(quantized(x), target, 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
