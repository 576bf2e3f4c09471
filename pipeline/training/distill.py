"""The stage `distill`: the student learns from the photos and, where distill.weight is over 0, from the teacher."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from export.parity import f1_per_class
from export.preprocess import Preprocess
from latency.lock import timing_lock
from models.space import Hyper
from models.spec import ModelSpec
from pipeline import FORMAT
from pipeline.data.images import decoded, train_size
from pipeline.data.index import Index
from pipeline.data.stage import load_index
from pipeline.files import keep, kept, write_json
from pipeline.show.live import bar
from pipeline.stages import SCRATCH, Run, Stage
from pipeline.training.answers import Answers, answers
from pipeline.training.begin import begin, load_arrays, load_student, weights_key
from pipeline.training.checkpoint import is_pretrained, pixels, restore, save_student, student_card
from pipeline.training.inputs import Arrays, bf16_pays, pick_device, predict
from pipeline.training.loop import Fit, Loss, Recipe, fit
from pipeline.training.losses import CrossEntropy, distillation
from pipeline.training.teach import CHECKPOINTS, checked, load_teacher, reporter, summary_of

SOFT_LABELS = f"{SCRATCH}/soft-labels"


def _distill_inputs(run: Run) -> dict[str, Any]:
    spec, hyper = load_student(run)
    inputs = {
        "data": load_index(run).hash,
        "fit": run.config.data.fit,
        "balance": run.config.data.balance,
        "seed": run.config.seed,
        "hash": spec.hash,
        "size": spec.input_size,
        "hyper": hyper.as_dict(),
        "distill": run.config.distill.model_dump(),
    }
    if spec.network:
        inputs["weights"] = weights_key(run.config.student, "student")
    if run.config.distill.weight:
        inputs["teacher"] = run.output_hash("teach", "teacher.safetensors")
    return inputs


def _distill(run: Run, work: Path) -> dict[str, Any]:
    spec, hyper = load_student(run)
    classes = load_index(run).classes
    result = train_student(run, spec, hyper, work)
    card = student_card(spec, classes, run.config.data.fit)
    save_student(work / "student.safetensors", result.state, spec, card)
    record = {"format": FORMAT, **result.record()}
    write_json(work / "training.json", record)
    arrays = student_arrays(run, spec)
    logits = predict(restore(spec, result.state, work), arrays.val, arrays)
    return summary_of(record) | {"f1_per_class": f1_per_class(logits.argmax(1), arrays.val_labels, classes)}


def student_arrays(run: Run, spec: ModelSpec) -> Arrays:
    return load_arrays(run, load_index(run), spec.input_size, pixels(spec))


def train_student(run: Run, spec: ModelSpec, hyper: Hyper, work: Path) -> Fit:
    """As the config's `distill` says. work: where checkpoints and the teacher's answers are kept."""
    config, index = run.config.distill, load_index(run)
    learnt = is_pretrained(spec, run.config.student.weights)
    recipe = Recipe(
        config.epochs,
        hyper.optimizer,
        hyper.learning_rate,
        hyper.batch,
        config.augment.model_copy(update={"n_select": hyper.n_select}),
        warmup_epochs=max(1, config.epochs // 20),
        balance=run.config.data.balance,
        pretrained=learnt,
        fit_classifier=learnt,
        ema=True,
        reduced=bf16_pays(large=False),
        views=min(config.views, config.epochs) if config.views and config.weight else None,  # stored for the teacher
    )
    loss = _distillation(run, index, recipe, work / SOFT_LABELS) if config.weight else None
    with bar("the student", "images") as on_step:
        result = fit(
            begin(run, spec, run.config.seed),
            student_arrays(run, spec),
            recipe,
            run.config.seed,
            len(index.classes),
            loss,
            work / CHECKPOINTS,
            reporter(run, "distill", recipe),
            on_step,
        )
    return checked(run, "distill", result, "the learning rate (student.learning_rate, or choose another trial)")


def _distillation(run: Run, index: Index, recipe: Recipe, folder: Path) -> Loss:
    """Function matching (Beyer et al. 2022) beside balanced cross-entropy."""
    config, device = run.config.distill, pick_device()
    labels = np.array(index.labels("train"))
    cross_entropy = CrossEntropy(labels, len(index.classes), recipe.balance, recipe.smoothing).to(device)
    ask = _asked(run, index, recipe)
    stored = _soft_labels(run, ask, recipe, len(labels), folder) if recipe.views else None

    def loss(logits: Tensor, targets: Tensor, indices: np.ndarray, view: int) -> Tensor:
        teacher = stored[view][indices].to(device) if stored else ask(view, indices)
        apart = distillation(logits, teacher, config.temperature)
        return config.weight * apart + (1 - config.weight) * cross_entropy(logits, targets)

    return loss


def _asked(run: Run, index: Index, recipe: Recipe) -> Answers:
    """The teacher's, on the very views that `fit` draws, at its own size."""
    teacher = load_teacher(run)
    images = decoded(index, "train", Preprocess(train_size(teacher.input_size), run.config.data.fit), run.cache)
    return answers(teacher, images, recipe, run.config.seed, pick_device(), run.say)


def _soft_labels(run: Run, ask: Answers, recipe: Recipe, count: int, folder: Path) -> list[Tensor]:
    """The teacher's logits (n, classes) for each stored view. One file a view, so that a killed stage goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    soft = []
    for view in range(recipe.views or 0):
        file = kept(folder, f"{view}", ".safetensors")
        if file is None:
            with timing_lock(shared=True):
                parts = [ask(view, np.arange(start, min(start + 64, count))).cpu() for start in range(0, count, 64)]
            partial = folder / "partial.safetensors"
            save_file({"logits": torch.cat(parts)}, partial)
            file = keep(partial, folder, f"{view}")
            run.say(f"distill: teacher's answers for view {view + 1} of {recipe.views}")
        soft.append(load_file(file)["logits"])
    return soft


DISTILL = Stage("distill", ("select", "teach"), _distill_inputs, _distill, resumes=True, kept=True)
