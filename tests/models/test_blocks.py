"""Every block of the language: builds, keeps its promises on shape, and fuses without a change in its answers."""

import copy

import pytest
import torch

from models.blocks import BUILDERS
from models.build import build, profile
from models.language import BLOCKS
from models.spec import ModelSpec

EXAMPLES = {
    # name: (args, input channels, output shape of a 16 x 16 input, parameters)
    "Conv": ([16, 3, 2], 8, (16, 8, 8), 8 * 16 * 9 + 32),
    "DWConv": ([16, 3, 2], 8, (16, 8, 8), 16 * 9 + 32),
    "FixedConv": ([6, 1], 8, (6, 16, 16), 8 * 6 + 12),
    "InvertedResidualv2": ([16, 6, 2], 8, (16, 8, 8), 8 * 48 + 96 + 48 * 9 + 96 + 48 * 16 + 32),
    # the squeeze of 24 // 4 = 6 goes to 8 by the channel rule; its two convolutions have biases
    "InvertedResidualv3": (
        [5, 3.0, 16, 1, 1, 2],
        8,
        (16, 8, 8),
        8 * 24 + 48 + 24 * 25 + 48 + (24 * 8 + 8 + 8 * 24 + 24) + 24 * 16 + 32,
    ),
    "MBConv": ([4, 16, 2, 3], 8, (16, 8, 8), 8 * 32 + 64 + 32 * 9 + 64 + (32 * 2 + 2 + 2 * 32 + 32) + 32 * 16 + 32),
    "Bottleneck": ([8], 8, (8, 16, 16), 8 * 4 + 8 + 4 * 8 * 9 + 16),
    "Fire": ([4, 8, 8], 8, (16, 16, 16), 8 * 4 + 8 + 4 * 8 + 16 + 4 * 8 * 9 + 16),
    "ShuffleNetV2": ([8, 1], 8, (8, 16, 16), 4 * 4 + 8 + 4 * 9 + 8 + 4 * 4 + 8),
    "MaxPool": ([3, 2, 1], 8, (8, 8, 8), 0),
    "AvgPool": ([2], 8, (8, 8, 8), 0),
    "GlobalAvgPool": ([], 8, (8, 1, 1), 0),
    "Flatten": ([], 8, (2048,), 0),
    "Linear": ([10], 8, (10,), 2048 * 10 + 10),
    "UniversalInvertedResidual": ([16, 3, 5, 4, 2], 8, (16, 8, 8), None),
    "LCBlock": ([16, 3, 2, 1], 8, (16, 8, 8), None),
    "GhostBottleneck": ([3, 2, 16, 1, 2], 8, (16, 8, 8), None),
    "RepVGG": ([16, 2], 8, (16, 8, 8), None),
    "MobileOne": ([16, 3, 2], 8, (16, 8, 8), None),
}


def one_block(name, repeat=1):
    args, channels, _, _ = EXAMPLES[name]
    rows = [[1, "Flatten", []]] if name == "Linear" else []
    return ModelSpec.parse(
        {"input_channel": channels, "INPUT_SIZE": [16, 16], "backbone": [*rows, [repeat, name, args]]}
    )


def test_language_and_builders_know_the_same_names():
    assert set(BLOCKS) == set(BUILDERS) == {*EXAMPLES, "Timm"}  # which has tests of its own


@pytest.mark.parametrize("name", EXAMPLES)
def test_shape_and_parameters(name):
    _, channels, shape, params = EXAMPLES[name]
    spec = one_block(name)
    unit = build(spec, seed=0).eval()[-1]
    x = torch.randn(2, channels, 16, 16)
    assert tuple(unit(x.flatten(1) if name == "Linear" else x).shape[1:]) == shape
    if params is not None:
        assert sum(p.numel() for p in unit.parameters()) == params


@pytest.mark.parametrize("name", [n for n in EXAMPLES if n not in ("Flatten", "Linear", "GlobalAvgPool")])
def test_every_block_can_be_repeated(name):
    args, channels, _, _ = EXAMPLES[name]
    rows = [[3, name, args], [1, "GlobalAvgPool", []], [1, "FixedConv", [5, 1]]]
    spec = ModelSpec.parse({"input_channel": channels, "INPUT_SIZE": [32, 32], "backbone": rows})
    assert profile(spec).units[-1].shape == (5, 1, 1)


def test_inverted_residuals_add_only_where_nothing_changes():
    x = torch.randn(1, 16, 8, 8)
    for args, adds in (([16, 2, 1], True), ([16, 2, 2], False), ([24, 2, 1], False)):
        spec = ModelSpec.parse(
            {"input_channel": 16, "INPUT_SIZE": [16, 16], "backbone": [[1, "InvertedResidualv2", args]]}
        )
        unit = build(spec, 0).eval()[0]
        for p in unit.parameters():
            torch.nn.init.zeros_(p)
        assert torch.equal(unit(x), x if adds else torch.zeros_like(unit(x)))


def test_no_expansion_layer_at_expansion_one():
    spec = ModelSpec.parse(
        {"input_channel": 16, "INPUT_SIZE": [16, 16], "backbone": [[1, "InvertedResidualv2", [24, 1, 1]]]}
    )
    assert sum(p.numel() for p in build(spec).parameters()) == 16 * 9 + 32 + 16 * 24 + 48


@pytest.mark.parametrize("name", ["RepVGG", "MobileOne"])
def test_reparameterised_blocks_answer_as_before(name):
    from timm.utils.model import reparameterize_model

    torch.manual_seed(0)
    model = build(one_block(name, repeat=2), seed=0)
    for _ in range(3):  # give the batch norms statistics of their own
        model(torch.randn(8, 8, 16, 16))
    model.eval()
    fused = reparameterize_model(copy.deepcopy(model))
    assert len(list(fused.parameters())) < len(list(model.parameters()))
    x = torch.randn(4, 8, 16, 16)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)
