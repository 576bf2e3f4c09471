"""Crops, losses and the training loop: what it keeps, and that a killed run goes on as if it had not been."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.build import build
from models.spec import ModelSpec
from pipeline.images import RandAugment, Views, crop
from pipeline.learn import kl_at
from pipeline.train import Arrays, Recipe, class_weights, fit, predict

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


RECIPE = Recipe(epochs=4, optimizer="adamw", learning_rate=5e-3, batch=16, ema=True)


def run(arrays, recipe=RECIPE, **more):
    return fit(build(SPEC, seed=1), arrays, recipe, 3, 3, **more)


def test_it_learns_and_keeps_the_best_epoch(arrays):
    result = run(arrays, replace(RECIPE, epochs=8))
    assert result.best.f1_macro == max(e.f1_macro for e in result.history) > 0.8
    model = build(SPEC)
    model.load_state_dict(result.state)
    guesses = predict(model, arrays.val, arrays).argmax(1)
    assert (guesses == arrays.val_labels).mean() == pytest.approx(result.best.accuracy)


class Killed(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(arrays, tmp_path, optimizer):
    recipe = replace(RECIPE, optimizer=optimizer, n_select=2)
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
    assert len(result.history) == 3
    assert result.best.epoch in (0, 1)
    assert all(torch.isfinite(v).all() for v in result.state.values())


def test_class_weights_are_inverse_frequency():
    assert class_weights(np.array([0, 0, 0, 1]), 2).tolist() == pytest.approx([4 / 6, 4 / 2])


def test_distillation_loss_is_zero_at_the_teacher_and_scaled_by_the_temperature():
    teacher = torch.tensor([[2.0, 0.0, -1.0]])
    assert kl_at(teacher, teacher, 3.0).item() == pytest.approx(0.0, abs=1e-6)
    student = torch.zeros(1, 3)
    p = torch.softmax(teacher / 2, 1)
    assert kl_at(student, teacher, 2.0).item() == pytest.approx(4 * (p * (p.log() - np.log(1 / 3))).sum().item())


def test_a_crop_of_the_whole_image_is_the_image():
    image = torch.randint(0, 256, (2, 24, 24, 3), dtype=torch.uint8)
    whole = crop(image, torch.tensor([[0.0, 0, 1, 1, 1], [0.0, 0, 1, 1, -1]]), 24)
    torch.testing.assert_close(whole[0], image[0].permute(2, 0, 1).float(), rtol=0, atol=1e-2)
    torch.testing.assert_close(whole[1], image[1].flip(1).permute(2, 0, 1).float(), rtol=0, atol=1e-2)


def test_a_crop_is_the_same_place_at_another_size():
    """The teacher sees the student's crop at its own size."""
    ramp = np.broadcast_to(np.arange(0, 240, 5, dtype=np.uint8)[None, :, None], (48, 48, 3))
    box = torch.from_numpy(Views.draw(1, (4,), 0.3).boxes)
    small, large = (crop(torch.from_numpy(ramp.copy())[None], box, s) for s in (24, 36))
    assert small.mean().item() == pytest.approx(large.mean().item(), abs=1.0)


def test_views_stay_inside_and_follow_their_seed():
    boxes = Views.draw(500, (1, 2), 0.35).boxes
    x, y, w, h, flip = boxes.T
    assert (np.abs(x) + w <= 1 + 1e-6).all()
    assert (np.abs(y) + h <= 1 + 1e-6).all()
    assert set(flip) == {-1.0, 1.0}
    assert np.array_equal(boxes, Views.draw(500, (1, 2), 0.35).boxes)
    assert not np.array_equal(boxes, Views.draw(500, (1, 3), 0.35).boxes)


def test_rand_augment_follows_its_seed_and_none_changes_nothing():
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    assert RandAugment(0)(images, seed=1) is images
    a, b, c = (RandAugment(2)(images, seed=s) for s in (1, 1, 2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
