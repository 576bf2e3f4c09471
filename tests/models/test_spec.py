"""The model language: counts that are pinned, rules of channels, repeat and stride, and refusals."""

import subprocess
import sys

import pytest
import yaml

from models.build import build, profile
from models.language import SpecError, scale_channels, scale_repeat
from models.spec import ZOO, ModelSpec
from tests.conftest import ROOT

PINNED = {
    # name: (parameters, MACs)
    "lineage_student": (663_436, 925_882_272),
    "mobilenetv3_small": (1_524_006, 35_636_392),  # torchvision's mobilenet_v3_small(num_classes=6) has as many
    "cpu_small": (285_884, 34_798_176),
}


def test_the_zoo_is_pinned_whole():
    assert {p.stem for p in ZOO.glob("*.yaml")} == set(PINNED)


@pytest.mark.parametrize("name", PINNED)
def test_parameters_and_macs(name):
    shape = profile(ModelSpec.load(name))
    assert (shape.params, shape.macs) == PINNED[name]
    assert sum(p.numel() for p in build(ModelSpec.load(name)).parameters()) == PINNED[name][0]


def spec(*rows, **keys):
    return ModelSpec.parse({"INPUT_SIZE": [64, 64], "backbone": [list(r) for r in rows], **keys})


HEAD = ([1, "GlobalAvgPool", []], [1, "FixedConv", [6, 1]])


@pytest.mark.parametrize(
    ("channels", "scaled"), [(1, 8), (8, 8), (43.2, 40), (72, 72), (100.8, 104), (11, 16), (12, 16), (19, 24)]
)
def test_channels_go_to_a_multiple_of_8_never_under_90_percent(channels, scaled):
    assert scale_channels(channels) == scaled


@pytest.mark.parametrize(("repeat", "depth", "count"), [(1, 0.1, 1), (3, 0.1, 1), (4, 0.5, 2), (3, 0.75, 2), (5, 1, 5)])
def test_repeat_follows_depth_multiple_but_one_stays_one(repeat, depth, count):
    assert scale_repeat(repeat, depth) == count


def test_stride_falls_on_the_last_conv_and_on_the_first_residual():
    units = spec([3, "Conv", [16, 3, 2]], [3, "InvertedResidualv2", [16, 2, 2]], *HEAD).units
    assert [u.args["stride"] for u in units[:6]] == [1, 1, 2, 2, 1, 1]


def test_width_scales_all_but_the_classifier_and_fire():
    units = spec([1, "Conv", [48, 3]], [1, "Fire", [8, 16, 24]], *HEAD, width_multiple=0.5).units
    assert [u.out_channels for u in units] == [24, 40, 40, 6]


def test_null_padding_is_half_the_kernel():
    assert spec([1, "Conv", [8, 5, 1, None]], *HEAD).units[0].args["pad"] == 2


def test_nested_block_lists_are_the_same_spec():
    flow = "INPUT_SIZE: [64, 64]\nbackbone:\n- [1, Conv, [8, 3]]\n- [1, GlobalAvgPool, []]\n- [1, FixedConv, [6, 1]]\n"
    block = (
        "INPUT_SIZE: [64, 64]\nbackbone:\n- - 1\n  - Conv\n  - - 8\n    - 3\n- - 1\n  - GlobalAvgPool\n  - []\n"
        "- - 1\n  - FixedConv\n  - - 6\n    - 1\n"
    )
    a, b = (ModelSpec.parse(yaml.safe_load(text)) for text in (flow, block))
    assert a == b


def test_yaml_texts_that_build_one_network_share_a_hash():
    a = spec([1, "Conv", [48, 3]], *HEAD)
    assert a.hash == spec([1, "Conv", [48, 3, 1, 1, 1, "ReLU"]], *HEAD).hash
    assert a.hash == spec([1, "Conv", [50, 3]], *HEAD).hash, "50 channels round to 48"
    assert a.hash != spec([1, "Conv", [56, 3]], *HEAD).hash
    assert a.hash != spec([1, "Conv", [48, 3, 1, None, 1, "Hardswish"]], *HEAD).hash


def test_documents_come_back_whole():
    original = ModelSpec.load("lineage_student")
    again = ModelSpec.parse(yaml.safe_load(yaml.safe_dump(original.document())))
    assert (again.hash, again.input_size, again.backbone) == (original.hash, original.input_size, original.backbone)


def test_classes_replace_the_classifier_only():
    assert ModelSpec.load("mobilenetv3_small").with_classes(11).classes == 11
    with pytest.raises(SpecError, match="last module is 'GlobalAvgPool', expected FixedConv or Linear"):
        spec([1, "Conv", [8, 3]], [1, "GlobalAvgPool", []]).with_classes(3)


REFUSED = {
    # what is wrong: (rows, keys, what the message must hold)
    "an unknown block": ([[1, "Conf", [8, 3]]], {}, ["layer 0: module: unknown block 'Conf'", "did you mean 'Conv'?"]),
    "an unknown key": ([[1, "Conv", [8, 3]]], {"width_multiplier": 1}, ["'width_multiplier'", "'width_multiple'"]),
    "a missing argument": ([[1, "Conv", [8]]], {}, ["layer 0 (Conv): kernel: missing; expected args: out, kernel"]),
    "too many arguments": ([[1, "GlobalAvgPool", [1]]], {}, ["layer 0 (GlobalAvgPool): args: expected at most 0"]),
    "a wrong type": ([[1, "Conv", ["8", 3]]], {}, ["layer 0 (Conv): out: expected a whole number", "got '8'"]),
    "a wrong activation": ([[1, "Conv", [8, 3, 1, None, 1, "Relu"]]], {}, ["activation: expected", "mean 'ReLU'?"]),
    "a repeat of none": ([[0, "Conv", [8, 3]]], {}, ["layer 0: repeat: expected a whole number of at least 1, got 0"]),
    "groups that do not divide": ([[1, "Conv", [8, 3, 1, None, 2]]], {}, ["groups: 2 must divide the 3 input"]),
    "a flag that is none": ([[1, "InvertedResidualv3", [3, 2, 8, 2, 0, 1]]], {}, ["SE: expected 0 or 1, got 2"]),
    "a row of two": ([[1, "Conv"]], {}, ["layer 0: expected [repeat, module, args]"]),
    "no layer": ([], {}, ["backbone: expected a list of [repeat, module, args] or timm:NETWORK, got []"]),
    "an oblong input": ([[1, "Conv", [8, 3]]], {"INPUT_SIZE": [64, 32]}, ["INPUT_SIZE: expected [size, size]"]),
    "a width of nothing": ([[1, "Conv", [8, 3]]], {"width_multiple": 0}, ["width_multiple: expected a number over 0"]),
    "a width that is not finite": ([[1, "Conv", [8, 3]]], {"width_multiple": float("nan")}, [".nan is no number"]),
    "a block of too many weights": ([[1, "Conv", [60000, 999]]], {}, ["layer 0 (Conv): ", "weights in one block"]),
    "a width of too many channels": ([[1, "Conv", [60000, 1]]], {"width_multiple": 8.0}, ["channels, more than 65536"]),
    "too many blocks": ([[60000, "Conv", [8, 3]]], {}, ["layer 0: more than 1000 blocks; lower a repeat"]),
    "a conv behind a flatten": ([[1, "Flatten", []], [1, "Conv", [8, 3]]], {}, ["behind a Flatten only Linear"]),
    "a shuffle that changes channels": ([[1, "ShuffleNetV2", [8, 1]]], {}, ["keeps its channels"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_spec_is_refused_with_file_layer_and_field(case, tmp_path):
    rows, keys, texts = REFUSED[case]
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump({"INPUT_SIZE": [64, 64], "backbone": rows, **keys}))
    with pytest.raises(SpecError) as caught:
        ModelSpec.load(file)
    assert str(file) in str(caught.value)
    for text in texts:
        assert text in str(caught.value)


def test_refusal_needs_no_torch(tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text("INPUT_SIZE: [64, 64]\nbackbone: [[1, Conf, [8, 3]]]\n")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from models.spec import ModelSpec, SpecError\n"
        f"try: ModelSpec.load({str(file)!r})\n"
        "except SpecError: print('refused', 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused", "False"]


def test_an_input_that_is_too_small_names_the_layer():
    deep = spec([1, "Conv", [8, 3, 2, 0]], [1, "MaxPool", [40, 1, 0]], *HEAD)
    with pytest.raises(SpecError, match=r"layer 1 \(MaxPool\): does not fit an input of shape"):
        profile(deep)


def test_a_network_that_ends_in_a_map_is_refused():
    with pytest.raises(SpecError, match="put GlobalAvgPool before the classifier"):
        profile(spec([1, "FixedConv", [6, 3]]))


def test_linear_behind_flatten_finds_its_features():
    small = spec([1, "Conv", [8, 3, 2]], [1, "Flatten", []], [1, "Linear", [6]])
    assert profile(small).params == sum(p.numel() for p in build(small).parameters()) == 3 * 8 * 9 + 16 + 8192 * 6 + 6
