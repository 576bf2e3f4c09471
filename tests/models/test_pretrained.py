"""Students that begin with the first stages of a network of timm: cut, named, hashed, loaded, fused like any other."""

import copy

import pytest
import torch
from safetensors.torch import save_file

from models import torchvision_ops
from models.build import build, profile
from models.language import SpecError
from models.pretrained import freeze_until, load_stages, network, stage_profiles
from models.spec import ModelSpec

torchvision_ops.ensure()

import timm  # noqa: E402
from timm.utils.model import reparameterize_model  # noqa: E402


def student(network="mobilenetv3_small_050", until="blocks.3", size=64, **keys):
    return ModelSpec.parse({"INPUT_SIZE": [size, size], "backbone": f"timm:{network}", "until": until, **keys})


def test_the_cut_is_the_networks_own_first_stages(tmp_path):
    whole = timm.create_model("mobilenetv3_small_050").eval()
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    model = build(student().with_classes(3), seed=0)
    load_stages(model, "mobilenetv3_small_050", str(tmp_path / "w.safetensors"), "student")
    x = torch.randn(2, 3, 64, 64)
    expected = whole.bn1(whole.conv_stem(x))
    for stage in whole.blocks[:4]:
        expected = stage(expected)
    torch.testing.assert_close(model.eval()[0](x), expected)
    assert model(x).shape == (2, 3)


def test_weights_of_a_network_with_two_heads_fit_another_number_of_classes(tmp_path):
    name = "deit_tiny_distilled_patch16_224"
    whole = timm.create_model(name)
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    found = network(name, str(tmp_path / "w.safetensors"), 3, "teacher")
    assert found.head.out_features == found.head_dist.out_features == 3
    torch.testing.assert_close(found.blocks[0].mlp.fc1.weight, whole.blocks[0].mlp.fc1.weight)


def test_it_is_a_spec_like_any_other():
    spec = student().with_classes(6)
    assert spec.network == "mobilenetv3_small_050"
    assert ModelSpec.parse(spec.document()) == spec
    assert spec.hash != student(until="blocks.4").with_classes(6).hash
    assert spec.hash == student(size=96).with_classes(6).hash
    small, large = profile(spec), profile(student(size=128).with_classes(6))
    assert small.params == large.params == sum(p.numel() for p in build(spec).parameters())
    assert large.macs == pytest.approx(4 * small.macs, rel=0.02)


def test_the_head_is_in_the_model_language():
    head = [[1, "Conv", [32, 1, 1, None, 1, "ReLU"]], [1, "GlobalAvgPool", []], [1, "FixedConv", [6, 1]]]
    units = student(head=head).units
    assert [u.module for u in units] == ["Timm", "Conv", "GlobalAvgPool", "FixedConv"]
    assert units[1].in_channels == units[0].out_channels == 24


@pytest.mark.parametrize("name", ["mobileone_s0", "repvgg_a0"])
def test_blocks_of_several_branches_are_fused_to_one(name):
    model = build(student(name, "stages.1").with_classes(6), seed=0)
    for seed in range(3):  # statistics, so that the branches are of natural size
        model(torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(seed)))
    fused = reparameterize_model(copy.deepcopy(model).eval())
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(fused(x), model.eval()(x), rtol=1e-3, atol=1e-3)
    assert len(fused.state_dict()) < len(model.state_dict()) / 3


WRONG = {
    "no such network": ({"network": "mobilenetv3_smal_050"}, "timm has no model 'mobilenetv3_smal_050' (did you mean"),
    "no such stage": ({"until": "blocks.9"}, "has no stage 'blocks.9' (did you mean 'blocks."),
    "the stages are named": ({"until": "x"}, "it has conv_stem, bn1, blocks.0, blocks.1, blocks.2"),
    "no feature map": ({"until": "classifier"}, "expected (channels, height, width); cut it at another stage"),
    "its own input size only": ({"network": "vit_tiny_patch16_224"}, "does not take an image of 128 px"),
    "an empty head": ({"head": []}, "head: expected a list of [repeat, module, args], got []"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refusals(case):
    keys, text = WRONG[case]
    with pytest.raises(SpecError) as caught:
        student(**keys)
    assert text in str(caught.value)


def test_until_and_head_belong_to_a_network_of_timm():
    with pytest.raises(SpecError, match="until: missing"):
        ModelSpec.parse({"INPUT_SIZE": [64, 64], "backbone": "timm:lcnet_050"})
    with pytest.raises(SpecError, match="until: only beside `backbone: timm:NETWORK`"):
        ModelSpec.parse({"INPUT_SIZE": [64, 64], "backbone": [[1, "Conv", [8, 3]]], "until": "blocks.1"})
    with pytest.raises(SpecError, match="expected once, as the first layer"):
        ModelSpec.parse({"INPUT_SIZE": [64, 64], "backbone": [[1, "Conv", [3, 3]], [1, "Timm", ["lcnet_050", "bn1"]]]})


def test_what_is_frozen_learns_nothing_and_what_follows_does():
    model = timm.create_model("mobilenetv3_small_050", num_classes=3)
    freeze_until(model, "blocks.2", "teacher.freeze")
    before = {k: v.clone() for k, v in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model(torch.randn(4, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    changed = {k for k, v in model.named_parameters() if not torch.equal(v, before[k])}
    assert not [k for k in changed if k.startswith(("conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2"))]
    assert {"blocks.3.0.conv_pw.weight", "classifier.weight"} <= changed


def test_a_stage_to_freeze_that_does_not_exist_is_named():
    model = timm.create_model("mobilenetv3_small_050", num_classes=3)
    with pytest.raises(
        SpecError, match=r"teacher\.freeze: no stage 'blocks\.22' \(did you mean 'blocks\.2'\?\); it has conv_stem"
    ):
        freeze_until(model, "blocks.22", "teacher.freeze")


@pytest.mark.parametrize(
    ("network", "until", "size"),
    [
        ("tf_efficientnet_lite0", "blocks.5", 128),
        ("resnet18", "layer3.1", 64),
        ("mobilenetv3_small_050", "blocks.3", 64),
    ],
)
def test_the_stages_of_a_network_add_up_to_the_whole(network, until, size):
    spec = ModelSpec.parse({"INPUT_SIZE": [size, size], "backbone": f"timm:{network}", "until": until})
    whole, stages = profile(spec).units[0], stage_profiles(network, until, size)
    assert sum(s.params for s in stages) == whole.params
    assert sum(s.macs for s in stages) == whole.macs
    assert stages[-1].name == until
    assert stages[-1].shape == whole.shape
