"""Crops, losses and the training loop: what it keeps, and that a killed run goes on as if it had not been."""

import json
import os
import platform
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from models import torchvision_ops
from models.build import build
from models.spec import ModelSpec
from pipeline.cli.edge import explain
from pipeline.config import Augment
from pipeline.errors import ENVIRONMENT, EnvironmentProblem
from pipeline.training.inputs import Arrays, autocast, pick_device, predict
from pipeline.training.loop import Recipe, fit
from pipeline.training.losses import CrossEntropy, class_weights, distillation, epoch_order
from pipeline.training.probe import classifier_of, fit_classifier
from pipeline.training.views import View, crop
from tests.conftest import ROOT

torchvision_ops.ensure()

from timm.layers import Conv2dSame  # noqa: E402

SPEC = ModelSpec.parse(
    {
        "INPUT_SIZE": [32, 32],
        "backbone": [
            [1, "Conv", [8, 3, 2]],
            [1, "LCBlock", [16, 3, 2]],
            [1, "GlobalAvgPool", []],
            [1, "FixedConv", [3, 1]],
        ],
    }
)


@pytest.fixture(scope="module")
def arrays():
    """Three classes told apart by their stripes."""
    rng = np.random.default_rng(0)

    def images(count, size):
        labels = np.arange(count) % 3
        wave = np.sin(np.arange(size) * np.array([0.3, 0.9, 2.0])[labels][:, None])[:, None, :, None]
        noise = rng.normal(0, 20, (count, size, size, 3))
        return np.clip(128 + 80 * wave + noise, 0, 255).astype(np.uint8), labels

    train, val = images(96, 40), images(30, 32)
    return Arrays(*train, *val, (127.5,) * 3, (127.5,) * 3)


CPU = torch.device("cpu")
RECIPE = Recipe(epochs=4, optimizer="adamw", learning_rate=5e-3, batch=16, ema=True)


def run(arrays, recipe=RECIPE, **more):
    return fit(build(SPEC, seed=1), arrays, recipe, 3, 3, **more)


@pytest.mark.parametrize("reduced", [False, True])
def test_it_learns_and_keeps_the_best_epoch(arrays, reduced):
    result = run(arrays, replace(RECIPE, epochs=12, reduced=reduced))
    assert result.best.f1_macro == max(e.f1_macro for e in result.history) > 0.8
    model = build(SPEC)
    model.load_state_dict(result.state)
    guesses = predict(model, arrays.val, arrays).argmax(1)
    assert (guesses == arrays.val_labels).mean() == pytest.approx(result.best.accuracy)


@pytest.mark.parametrize("module", [torch.nn.Conv2d, Conv2dSame])
def test_in_bf16_on_a_cpu_convolutions_in_groups_stay_in_f32(module):
    torch.manual_seed(0)
    x = torch.randn(2, 8, 9, 9)
    for groups in (1, 2, 8):
        layer = module(8, 8, 3, stride=2, groups=groups)
        with autocast(CPU, reduced=True):
            found = layer(x)
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, layer(x).bfloat16()) == (groups > 1)
        assert layer(x).dtype == torch.float32


class Killed(Exception):
    pass


@pytest.fixture(params=[1, 2])
def threads(request):
    """Sums are taken in another order with each number."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("optimizer", "reduced"), [("adamw", False), ("sgd", True), ("lamb", False)])
def test_a_killed_run_goes_on_as_if_it_had_not_been(arrays, tmp_path, optimizer, reduced):
    augment = Augment(n_select=2, mixup=0.2, cutmix=1.0)
    recipe = replace(RECIPE, optimizer=optimizer, reduced=reduced, augment=augment)
    whole = run(arrays, recipe)

    def kill(epoch):
        if epoch.epoch == 1:
            raise Killed

    with pytest.raises(Killed):
        run(arrays, recipe, checkpoints=tmp_path, on_epoch=kill)
    seen = []
    resumed = run(arrays, recipe, checkpoints=tmp_path, on_epoch=lambda e: seen.append(e.epoch))
    assert seen == [2, 3]
    assert [(e.loss, e.f1_macro) for e in resumed.history] == [(e.loss, e.f1_macro) for e in whole.history]
    assert all(torch.equal(resumed.state[k], v) for k, v in whole.state.items())


def test_patience_ends_it(arrays):
    still = replace(RECIPE, epochs=20, learning_rate=1e-12, patience=2, ema=False)
    assert len(run(arrays, still).history) <= 6


def test_a_loss_that_is_not_finite_ends_it_with_the_best_so_far(arrays):
    def explode(logits, labels, indices, view):
        return torch.nn.functional.cross_entropy(logits, labels) * (float("nan") if view == 2 else 1.0)

    result = run(arrays, loss=explode)
    assert result.diverged == "the loss is no number any more at step 1 of epoch 3"
    assert len(result.history) == 3
    assert result.best.epoch in (0, 1)
    record = json.loads(json.dumps(result.record(), allow_nan=False))
    assert record["history"][2]["loss"] is None
    assert all(torch.isfinite(v).all() for v in result.state.values())


LABELS = np.array([0] * 6 + [1] * 2)


class Hungry(torch.nn.Module):
    """Out of memory with more than 5 images, in the words of torch's allocator on a CPU."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        if self.training and len(x) > 5:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory")
        return self.body(x)


def test_out_of_memory_names_the_batch_that_fits(arrays):
    with pytest.raises(EnvironmentProblem, match=r"batch of 16 images; one of 4 fits"):
        fit(Hungry(build(SPEC, seed=1)), arrays, RECIPE, 3, 3)


def test_memory_that_runs_out_outside_of_a_step_is_told_without_a_traceback():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    told, code = explain(caught.value)
    assert told == "out of memory; lower the batch sizes or the input size"
    assert code == ENVIRONMENT


def test_another_error_of_torch_is_left_as_it_is(arrays):
    def wrong(logits, targets, indices, view):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match") as caught:
        run(arrays, loss=wrong)
    assert caught.value.__cause__ is None
    assert explain(caught.value) is None
    told, code = explain(torch.OutOfMemoryError("CUDA out of memory"))
    assert (told, code) == ("out of memory; lower the batch sizes or the input size", 4)


def test_class_weights_by_inverse_frequency_and_by_effective_number():
    assert class_weights(LABELS, 2, "inverse").tolist() == pytest.approx([8 / 12, 8 / 4])
    rarer = [(1 - 0.999) / (1 - 0.999**n) for n in (6, 2)]
    found = class_weights(LABELS, 2, "effective")
    assert (found[1] / found[0]).item() == pytest.approx(rarer[1] / rarer[0], rel=1e-4)
    assert found[LABELS].mean().item() == pytest.approx(1.0)
    assert class_weights(LABELS, 2, "none").tolist() == [1.0, 1.0]


def test_weighted_cross_entropy_of_hard_targets_is_the_weighted_mean():
    logits, labels = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)), torch.from_numpy(LABELS)
    hard = torch.nn.functional.one_hot(labels, 2).float()
    found = CrossEntropy(LABELS, 2, "inverse", 0.0)(logits, hard)
    expected = torch.nn.functional.cross_entropy(logits, labels, class_weights(LABELS, 2, "inverse"))
    assert found.item() == pytest.approx(expected.item())


def test_logit_adjustment_adds_the_log_of_the_prior():
    logits, targets = torch.zeros(1, 2), torch.tensor([[0.0, 1.0]])
    assert CrossEntropy(LABELS, 2, "logits", 0.0)(logits, targets).item() == pytest.approx(-np.log(0.25))


def test_balanced_sampling_draws_classes_alike_and_no_other_does():
    labels = np.array([0] * 900 + [1] * 100)
    drawn = labels[epoch_order(labels, "sampling", np.random.default_rng(0))]
    assert drawn.mean() == pytest.approx(0.5, abs=0.06)
    assert sorted(epoch_order(labels, "inverse", np.random.default_rng(0))) == list(range(1000))


def test_distillation_loss_is_zero_at_the_teacher_and_scaled_by_the_temperature():
    teacher = torch.tensor([[2.0, 0.0, -1.0]])
    assert distillation(teacher, teacher, 3.0).item() == pytest.approx(0.0, abs=1e-6)
    student = torch.zeros(1, 3)
    p = torch.softmax(teacher / 2, 1)
    expected = 4 * (p * (p.log() - np.log(1 / 3))).sum().item()
    assert distillation(student, teacher, 2.0).item() == pytest.approx(expected)


@pytest.mark.parametrize("symmetry", range(8))
def test_a_crop_of_the_whole_image_is_the_image_in_that_symmetry(symmetry):
    image = torch.randint(0, 256, (1, 24, 24, 3), dtype=torch.uint8)
    whole = crop(image, torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([symmetry]), 24)
    expected = image[0].permute(2, 0, 1).float()
    expected = expected.flip([axis for axis, bit in ((2, 1), (1, 2)) if symmetry & bit])
    expected = expected.transpose(1, 2) if symmetry & 4 else expected
    torch.testing.assert_close(whole[0], expected, rtol=0, atol=1e-2)


def test_a_crop_is_the_same_place_at_another_size():
    """The teacher sees the student's crop at its own size."""
    ramp = np.broadcast_to(np.arange(0, 240, 5, dtype=np.uint8)[None, :, None], (48, 48, 3))
    view = View.draw(1, (4,), Augment(least_area=0.3, turns=True))
    small, large = (view.show(ramp[None].copy(), np.array([0]), s, CPU) for s in (24, 36))
    assert small.mean().item() == pytest.approx(large.mean().item(), abs=1.0)


def test_views_stay_inside_and_follow_their_seed():
    view = View.draw(500, (1, 2), Augment())
    x, y, w, h = view.boxes.T
    assert (np.abs(x) + w <= 1 + 1e-6).all()
    assert (np.abs(y) + h <= 1 + 1e-6).all()
    assert np.array_equal(view.boxes, View.draw(500, (1, 2), Augment()).boxes)
    assert not np.array_equal(view.boxes, View.draw(500, (1, 3), Augment()).boxes)


def test_only_photos_without_an_up_are_turned():
    assert set(View.draw(500, (1, 2), Augment()).symmetry) == {0, 1}
    assert set(View.draw(500, (1, 2), Augment(turns=True)).symmetry) == set(range(8))


NOISE = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
FULL = {"n_select": 2, "mixup": 0.4, "cutmix": 1.0}


def test_a_view_shows_an_image_alike_in_any_batch():
    """The teacher answers in order, the student meets the images shuffled."""
    view = View.draw(40, (1, 2), Augment(**FULL))
    whole = view.show(NOISE, np.arange(40), 24, CPU)
    some = np.array([31, 4, 17])
    torch.testing.assert_close(view.show(NOISE, some, 24, CPU), whole[some], rtol=0, atol=1e-3)
    again = View.draw(40, (1, 2), Augment(**FULL)).show(NOISE, some, 24, CPU)
    assert torch.equal(again, view.show(NOISE, some, 24, CPU))
    other = View.draw(40, (1, 3), Augment(**FULL)).show(NOISE, some, 24, CPU)
    assert not torch.equal(again, other)


@pytest.mark.parametrize("mixture", ["mixup", "cutmix"])
def test_what_is_shown_of_two_images_is_what_the_targets_say(mixture):
    """Image k is of brightness k: the mean of a mixture tells its shares."""
    flat = np.broadcast_to(np.array([0, 200], np.uint8)[:, None, None, None], (2, 32, 32, 3)).repeat(30, 0)
    labels = np.arange(60) // 30
    view = View.draw(60, (5,), Augment(**{mixture: 1.0}))
    shown = view.show(flat, np.arange(60), 64, CPU).mean((1, 2, 3)) / 200
    targets = view.targets(labels, np.arange(60), 2)
    torch.testing.assert_close(targets.sum(1), torch.ones(60))
    torch.testing.assert_close(shown, targets[:, 1], rtol=0, atol=0.04)
    assert ((targets[:, 1] > 0.05) & (targets[:, 1] < 0.95)).sum() > 10


def test_without_mixtures_the_targets_are_the_labels():
    view = View.draw(6, (1,), Augment())
    assert view.targets(np.array([0, 1, 2, 0, 1, 2]), np.array([4, 2]), 3).tolist() == [[0, 1, 0], [0, 0, 1]]


HEADED = ModelSpec.parse(
    {
        "INPUT_SIZE": [32, 32],
        "backbone": [
            [1, "Conv", [16, 3, 2]],
            [1, "Conv", [32, 3, 2]],
            [1, "GlobalAvgPool", []],
            [1, "Linear", [3]],
        ],
    }
)
CUT = ModelSpec.parse(
    {
        "INPUT_SIZE": [32, 32],
        "backbone": "timm:mobilenetv3_small_050",
        "until": "blocks.1",
        "head": [[1, "Conv", [16, 1]], [1, "GlobalAvgPool", []], [1, "Linear", [3]]],
    }
)


def test_a_classifier_is_fitted_to_the_features_that_are_there(arrays):
    model = build(HEADED, seed=1)
    body = {k: v.clone() for k, v in model[0].state_dict().items()}
    same_scale = replace(arrays, train=arrays.val, train_labels=arrays.val_labels)
    fit_classifier(model, same_scale, balanced=True)
    guesses = predict(model, arrays.val, arrays).argmax(1)
    assert (guesses == arrays.val_labels).mean() > 0.9
    assert all(torch.equal(v, model[0].state_dict()[k]) for k, v in body.items())


def test_two_classes_and_a_class_without_an_image_get_a_classifier_too(arrays):
    two = arrays.train_labels < 2
    some = replace(arrays, train=arrays.train[two], train_labels=arrays.train_labels[two])
    model = build(HEADED, seed=1)
    fit_classifier(model, some, balanced=True)
    kept = arrays.val_labels < 2
    guesses = predict(model, arrays.val[kept], arrays).argmax(1)
    assert (guesses == arrays.val_labels[kept]).mean() > 0.9
    assert 2 not in guesses


def test_a_model_without_a_linear_classifier_is_left_as_it_is(arrays):
    model = build(SPEC, seed=1)
    assert classifier_of(model) is None
    before = model[-1][0].weight.clone()
    fit_classifier(model, arrays, balanced=True)
    assert torch.equal(model[-1][0].weight, before)


def test_batch_norms_with_statistics_keep_them_and_learn_their_weights(arrays):
    """Those of a student's own head have none yet."""
    model = build(CUT, seed=1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = fit(model, arrays, replace(RECIPE, epochs=1, ema=False, pretrained=True), 3, 3).state
    statistics = {k for k in before if "running" in k}
    kept = {k for k in statistics if torch.equal(state[k], before[k])}
    assert kept == {k for k in statistics if k.startswith("0.graph.")} < statistics
    learnt = {k for k in before if k.startswith("0.graph.bn1") and k.endswith(("weight", "bias"))}
    assert learnt
    assert not any(torch.equal(state[k], before[k]) for k in learnt)


def test_a_gpu_that_is_asked_for_and_not_there_is_said(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.setenv("EDGEBUILD_DEVICE", "cuda")
    with pytest.raises(EnvironmentProblem, match=r"--device cuda: torch .* sees no GPU; take --device auto"):
        pick_device()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told to keep memory")
def test_freed_memory_is_kept_for_the_next_step():
    """Page faults of a process that asks for the same blocks again and again."""
    code = (
        "import resource, torch\n"
        "from pipeline.training.inputs import keep_freed_memory\n"
        "{}\n"
        "for _ in range(10): torch.ones(20_000_000)\n"  # until it owns what it needs
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(20): torch.ones(20_000_000)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )

    def faults(first: str) -> int:
        env = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
        done = subprocess.run(
            [sys.executable, "-c", code.format(first)], capture_output=True, text=True, check=True, cwd=ROOT, env=env
        )
        return int(done.stdout)

    if torch.cuda.is_available():
        pytest.skip("a GPU trains here")
    assert faults("keep_freed_memory()") < faults("") / 10
