"""What a student learns from: the teacher's answers to the very views that it sees, and the photos' own labels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.spec import ModelSpec
from pipeline.config import load_config
from pipeline.data.stage import DATA, load_index
from pipeline.search import select
from pipeline.stages import open_run, perform
from pipeline.training import distill, teach
from pipeline.training.loop import Recipe
from pipeline.training.losses import class_weights
from tests.faults.bundles import flip_byte

SETTINGS = [
    "student.model=cpu_small",
    "teacher.input_size=32",
    "teacher.epochs=1",
    "distill.epochs=3",
    "distill.views=2",
    "distill.temperature=2",
    "distill.augment.mixup=0.2",
]


def configured(run, **changes):
    """The same run with other values in the config's section `distill`."""
    section = run.config.distill.model_copy(update=changes)
    return replace(run, config=run.config.model_copy(update={"distill": section}))


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """With photos and a teacher, which never saw a choice of student."""
    folder = tmp_path_factory.mktemp("distill") / "run"
    with open_run(folder, load_config(tiny, SETTINGS), lambda line: None) as found:
        perform(DATA, found)
        perform(teach.TEACH, found)
        yield found


def recipe_of(run):
    return Recipe(3, "adamw", 1e-3, 8, run.config.distill.augment, views=2)


def test_stored_answers_are_those_to_the_views_that_are_shown(run, tmp_path):
    index, recipe = load_index(run), recipe_of(run)
    ask, count = distill._asked(run, index, recipe), len(index.labels("train"))
    stored = distill._soft_labels(run, ask, recipe, count, tmp_path)
    assert [part.shape for part in stored] == [(count, 3)] * 2
    assert not torch.equal(stored[0], stored[1])
    some = np.array([0, 7, count - 1])
    for view in (1, 0):
        torch.testing.assert_close(stored[view][some], ask(view, some), rtol=0.02, atol=0.02)


def test_answers_that_a_killed_process_has_stored_are_not_asked_for_again(run, tmp_path):
    index, recipe = load_index(run), recipe_of(run)
    asked, own, count = [], distill._asked(run, index, recipe), len(index.labels("train"))

    def ask(view, indices):
        asked.append(view)
        return own(view, indices)

    first = distill._soft_labels(run, ask, recipe, count, tmp_path)
    assert set(asked) == {0, 1}
    for change in (Path.unlink, flip_byte):
        (stored,) = tmp_path.glob("1.*.safetensors")
        change(stored)
        asked.clear()
        again = distill._soft_labels(run, ask, recipe, count, tmp_path)
        assert set(asked) == {1}
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.slow
def test_class_weights_belong_to_the_cross_entropy_only(run, tmp_path):
    """The loss is share x T^2 x KL + (1 - share) x weighted CE, reckoned here by hand."""
    index, recipe = load_index(run), replace(recipe_of(run), balance="inverse")
    labels = np.array(index.labels("train"))
    skewed = replace(index, splits={**index.splits, "train": index.splits["train"][:-10]})  # one class is rarer then
    few = np.array(skewed.labels("train"))
    assert len(set(np.bincount(few))) > 1
    torch.manual_seed(0)
    logits, indices = torch.randn(4, 3), np.array([0, 1, 20, len(few) - 1])
    targets = functional.one_hot(torch.from_numpy(few[indices]), 3).float()

    def loss(share):
        changed = configured(run, weight=share)
        return distill._distillation(changed, skewed, recipe, tmp_path / "soft")(logits, targets, indices, 1)

    teacher = distill._asked(run, skewed, recipe)(1, indices)
    wanted, own = functional.softmax(teacher / 2, 1), functional.log_softmax(logits / 2, 1)
    kl = (wanted * (wanted.log() - own)).sum(1).mean() * 4
    smooth = targets * 0.9 + 0.1 / 3
    ce = -(smooth * functional.log_softmax(logits, 1) * class_weights(few, 3, "inverse")).sum(1).mean()
    assert len(labels) > len(few)
    torch.testing.assert_close(loss(1.0), kl, rtol=0.02, atol=0.02)
    assert not torch.isclose(ce, functional.cross_entropy(logits, targets, label_smoothing=0.1))
    torch.testing.assert_close(loss(0.0), ce, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss(0.25), 0.25 * kl + 0.75 * ce, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("share", "views"), [(0.7, 2), (0.0, None)])
def test_without_a_teacher_each_epoch_has_views_of_its_own(share, views, run, tmp_path, monkeypatch):
    """Stored views are few to save the teacher's time."""
    recipes, own = [], distill.fit

    def fit(model, arrays, recipe, *args):
        recipes.append(recipe)
        return own(model, arrays, replace(recipe, epochs=1), *args)

    monkeypatch.setattr(distill, "fit", fit)
    spec = ModelSpec.parse({**ModelSpec.load("cpu_small").with_classes(3).document(), "INPUT_SIZE": [64, 64]})
    distill.train_student(configured(run, weight=share), spec, select._named_hyper(run), tmp_path)
    assert [recipe.views for recipe in recipes] == [views]


@pytest.mark.parametrize(
    ("model", "weights", "rate"),
    [
        ("cpu_small", "hub", 3e-3),
        ("pretrained", "hub", 3e-4),
        ("pretrained", "none", 3e-3),
    ],
)
def test_a_named_network_that_has_learnt_before_learns_more_slowly(model, weights, rate, run, tmp_path):
    if model == "pretrained":
        model = tmp_path / "own.yaml"
        model.write_text("{INPUT_SIZE: [64, 64], backbone: 'timm:mobilenetv3_small_050', until: blocks.2}")

    def rate_of(**more):
        student = run.config.student.model_copy(update={"model": str(model), "weights": weights, **more})
        return select._named_hyper(
            replace(run, config=run.config.model_copy(update={"student": student}))
        ).learning_rate

    assert rate_of() == rate
    assert rate_of(learning_rate=0.5) == 0.5
