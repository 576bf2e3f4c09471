"""Stages up to a trained student: data, search, select, teach, distill."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from export.artifact import sha256
from export.parity import f1_per_class
from export.preprocess import Preprocess
from models.build import build
from models.language import canonical_hash
from models.space import Hyper
from models.spec import ModelSpec
from models.teacher import Normalisation, build_teacher, check_name, check_weights
from pipeline import FORMAT, demo_data
from pipeline.checkpoint import PIXEL_MEAN, PIXEL_STD, save_student, student_card
from pipeline.choose import Row, Rule, choose, pareto
from pipeline.data import Index, list_files, scan
from pipeline.data import summary as data_summary
from pipeline.errors import EnvironmentProblem, NoCandidate
from pipeline.files import write_json
from pipeline.images import Views, crop, decoded, train_size
from pipeline.search import Search, nearest_miss, run_search
from pipeline.stages import Run, Stage
from pipeline.train import (
    Arrays,
    Epoch,
    Fit,
    Recipe,
    fit,
    normalise,
    pick_device,
    predict,
    weighted_cross_entropy,
)

_TEACHER_PATIENCE = 3
CHECKPOINTS = "checkpoints"
SOFT_LABELS = "soft-labels"


# --- data ------------------------------------------------------------------------------------------------------------


DRAWN = "demo"
"""data.root of the embedded set, which becomes an output of the stage."""


def _data_inputs(run: Run) -> dict[str, Any]:
    if run.config.data.root == DRAWN:
        return {"root": DRAWN, "seed": run.config.seed}
    root = Path(run.config.data.root)
    files = list_files(root) if root.is_dir() else []
    return {"root": str(root.resolve()), "seed": run.config.seed, "files": canonical_hash(files)}


def _data(run: Run, work: Path) -> dict[str, Any]:
    if run.config.data.root == DRAWN:
        demo_data.write(work / "images", run.config.seed)
        index = replace(scan(work / "images", run.config.seed), root=str(run.file("data", "images").resolve()))
    else:
        index = scan(Path(run.config.data.root), run.config.seed)
    index.save(work / "index.json")
    for path, reason in index.skipped.items():
        run.say(f"data: {path}: skipped: {reason}")
    return data_summary(index)


def load_index(run: Run) -> Index:
    return Index.load(run.file("data", "index.json"))


def load_arrays(run: Run, index: Index, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Arrays:
    preprocess = run.config.data.fit
    return Arrays(
        decoded(index, "train", Preprocess(train_size(size), preprocess), run.cache),
        np.array(index.labels("train")),
        decoded(index, "val", Preprocess(size, preprocess), run.cache),
        np.array(index.labels("val")),
        mean,
        std,
    )


# --- search ----------------------------------------------------------------------------------------------------------


def _search(run: Run) -> Search:
    index = load_index(run)
    return Search(
        run.config,
        index,
        lambda size: load_arrays(run, index, size, PIXEL_MEAN, PIXEL_STD),
        run.folder / "study",
        run.machine,
        run.worker,
        run.say,
    )


def _search_inputs(run: Run) -> dict[str, Any]:
    search = run.config.search
    return {
        "study": _search(run).study_name,
        "trials": search.trials,
        "max_asked": search.max_asked,
        "max_minutes": search.max_minutes,
    }


def _do_search(run: Run, work: Path) -> dict[str, Any]:
    result = run_search(_search(run))
    write_json(work / "trials.json", {"format": FORMAT, **result})
    return {k: v for k, v in result.items() if k != "trials"}


# --- select ----------------------------------------------------------------------------------------------------------


def _rule(run: Run) -> Rule:
    select = run.config.select
    return Rule(run.config.latency.limit_ms, select.f1_floor, select.f1_band, select.latency_band, select.input_size)


def _select_inputs(run: Run) -> dict[str, Any]:
    return {
        "trials": run.output_hash("search", "trials.json"),
        "select": run.config.select.model_dump(),
        "limit_ms": run.config.latency.limit_ms,
    }


def _select(run: Run, work: Path) -> dict[str, Any]:
    result = run.read("search", "trials.json")
    trained = [t for t in result["trials"] if t["state"] == "complete"]
    if not trained:
        raise NoCandidate(
            f"no candidate keeps the limit: {nearest_miss(result)}; raise latency.limit_ms, or search a "
            "space of smaller networks or inputs (search.space, search.input_sizes)"
        )
    rows = [Row(t["trial"], t["f1_macro"], t["latency_ms"], t["params"], t["input_size"]) for t in trained]
    chosen, table = choose(rows, _rule(run), run.config.select.trial)
    trial = next(t for t in trained if t["trial"] == chosen.trial)
    front = pareto(rows)
    student = {
        "format": FORMAT,
        "trial": chosen.trial,
        "study": result["study"],
        "chosen_by": "rule" if run.config.select.trial is None else "person",
        "rule": run.config.select.model_dump(exclude={"trial"}) | {"limit_ms": run.config.latency.limit_ms},
        "measurement": {
            "f1_macro": trial["f1_macro"],
            "latency_ms": trial["latency_ms"],
            "form": trial["form"],
            "params": trial["params"],
            "macs": trial["macs"],
            "host": run.host.key,
        },
        "hyper": trial["hyper"],
        "model": trial["spec"],
    }
    (work / "student.yaml").write_text(yaml.safe_dump(student, sort_keys=False, default_flow_style=None))
    return {
        "trial": chosen.trial,
        "student": str(run.file("select", "student.yaml")),
        "table": [{**r.__dict__, "pareto": r.trial in front} for r in table],
    }


def load_student(run: Run) -> tuple[ModelSpec, Hyper]:
    path = run.file("select", "student.yaml")
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    return ModelSpec.load(path), Hyper(**document["hyper"])


# --- teach -----------------------------------------------------------------------------------------------------------


def _teacher_size(run: Run) -> int:
    return run.config.teacher.input_size or load_student(run)[0].input_size


def _teach_inputs(run: Run) -> dict[str, Any]:
    teacher = run.config.teacher
    check_weights(teacher.weights)
    weights = teacher.weights if teacher.weights in ("hub", "none") else sha256(Path(teacher.weights))
    return {
        "data": load_index(run).hash,
        "fit": run.config.data.fit,
        "seed": run.config.seed,
        "size": _teacher_size(run),
        "teacher": teacher.model_dump() | {"weights": weights},
    }


def _build_teacher(run: Run, classes: int, weights: str) -> tuple[nn.Module, Normalisation]:
    torch.manual_seed(run.config.seed)
    try:
        return build_teacher(run.config.teacher.name, weights, classes)
    except ConnectionError as error:
        raise EnvironmentProblem(str(error)) from error


def _teach(run: Run, work: Path) -> dict[str, Any]:
    teacher, index = run.config.teacher, load_index(run)
    model, norm = _build_teacher(run, len(index.classes), teacher.weights)
    arrays = load_arrays(run, index, _teacher_size(run), norm.mean, norm.std)
    recipe = Recipe(teacher.epochs, "adamw", teacher.learning_rate, teacher.batch, ema=True, patience=_TEACHER_PATIENCE)
    result = fit(
        model,
        arrays,
        recipe,
        run.config.seed,
        len(index.classes),
        checkpoints=work / CHECKPOINTS,
        on_epoch=_report(run, "teach", recipe),
    )
    save_file(result.state, work / "teacher.safetensors")
    return _finish(work, result)


# --- distill ---------------------------------------------------------------------------------------------------------


def _distill_inputs(run: Run) -> dict[str, Any]:
    spec, hyper = load_student(run)
    return {
        "data": load_index(run).hash,
        "fit": run.config.data.fit,
        "seed": run.config.seed,
        "hash": spec.hash,
        "size": spec.input_size,
        "hyper": hyper.as_dict(),
        "distill": run.config.distill.model_dump(),
        "teacher": run.output_hash("teach", "teacher.safetensors"),
    }


def _distill(run: Run, work: Path) -> dict[str, Any]:
    config, index = run.config.distill, load_index(run)
    spec, hyper = load_student(run)
    classes = len(index.classes)
    arrays = load_arrays(run, index, spec.input_size, PIXEL_MEAN, PIXEL_STD)
    recipe = Recipe(
        config.epochs,
        hyper.optimizer,
        hyper.learning_rate,
        hyper.batch,
        hyper.n_select,
        warmup_epochs=max(1, config.epochs // 20),
        ema=True,
        views=min(config.views, config.epochs),
    )
    soft = _soft_labels(run, index, recipe, work / SOFT_LABELS)
    device = pick_device()
    cross_entropy = weighted_cross_entropy(arrays.train_labels, classes).to(device)

    def loss(logits: Tensor, labels: Tensor, indices: np.ndarray, view: int) -> Tensor:
        teacher = soft[view][indices].to(device)
        return config.weight * kl_at(logits, teacher, config.temperature) + (1 - config.weight) * cross_entropy(
            logits, labels
        )

    model = build(spec, run.config.seed)
    result = fit(
        model, arrays, recipe, run.config.seed, classes, loss, work / CHECKPOINTS, _report(run, "distill", recipe)
    )
    card = student_card(spec, index.classes, run.config.data.fit)
    save_student(work / "student.safetensors", result.state, spec, card)
    shutil.rmtree(work / SOFT_LABELS)
    model.load_state_dict(result.state)
    per_class = f1_per_class(predict(model, arrays.val, arrays), arrays.val_labels, index.classes)
    return _finish(work, result) | {"f1_per_class": per_class}


def kl_at(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Distillation loss of Hinton et al. 2015: KL(teacher || student) at a temperature, times its square."""
    student = functional.log_softmax(logits / temperature, 1)
    target = functional.log_softmax(teacher / temperature, 1)
    return temperature**2 * functional.kl_div(student, target, reduction="batchmean", log_target=True)


@torch.no_grad()
def _soft_labels(run: Run, index: Index, recipe: Recipe, folder: Path) -> list[Tensor]:
    """The teacher's logits (n, classes) for each stored view: the student's very crops, at the teacher's own size.

    The views are those that `fit` draws: (seed, view). One file a view, so that a killed stage goes on.
    """
    folder.mkdir(exist_ok=True)
    size = _teacher_size(run)
    model, norm = _build_teacher(run, len(index.classes), "none")
    model.load_state_dict(load_file(run.file("teach", "teacher.safetensors")))
    device = pick_device()
    model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    images = decoded(index, "train", Preprocess(train_size(size), run.config.data.fit), run.cache)
    soft = []
    for view in range(recipe.views or 0):
        file = folder / f"{view}.safetensors"
        if not file.is_file():
            boxes = torch.from_numpy(Views.draw(len(images), (run.config.seed, view), recipe.least_area).boxes)
            parts = []
            for start in range(0, len(images), 64):
                x = torch.from_numpy(images[start : start + 64].copy()).to(device)
                x = crop(x, boxes[start : start + 64].to(device), size)
                parts.append(model(normalise(x, norm.mean, norm.std)).float().cpu())
            save_file({"logits": torch.cat(parts)}, file.with_suffix(".partial"))
            file.with_suffix(".partial").replace(file)
            run.say(f"distill: teacher's answers for view {view + 1} of {recipe.views}")
        soft.append(load_file(file)["logits"])
    return soft


# --- shared ----------------------------------------------------------------------------------------------------------


def _report(run: Run, stage: str, recipe: Recipe) -> Any:
    def report(epoch: Epoch) -> None:
        run.say(
            f"{stage}: epoch {epoch.epoch + 1}/{recipe.epochs}, loss {epoch.loss:.3f}, val {epoch.val_loss:.3f}, "
            f"F1 {epoch.f1_macro:.4f}, {epoch.images_per_s:.0f} images/s"
        )

    return report


def _finish(work: Path, result: Fit) -> dict[str, Any]:
    shutil.rmtree(work / CHECKPOINTS, ignore_errors=True)
    write_json(work / "training.json", {"format": FORMAT, **result.record()})
    best = result.best
    return {
        "f1_macro": best.f1_macro,
        "accuracy": best.accuracy,
        "best_epoch": best.epoch,
        "epochs": len(result.history),
    }


def check_before(run: Run) -> None:
    """What can be refused before hours are spent: a teacher that timm lacks, weights that are missing or do not fit."""
    check_name(run.config.teacher.name)
    check_weights(run.config.teacher.weights)
    if run.manifest("teach") is None:  # a download is kept in the hub's cache, so nothing is fetched twice
        _build_teacher(run, 2, run.config.teacher.weights)


DATA = Stage("data", (), _data_inputs, _data)
SEARCH = Stage("search", ("data",), _search_inputs, _do_search, resumes=True)
SELECT = Stage("select", ("search",), _select_inputs, _select)
TEACH = Stage("teach", ("data", "select"), _teach_inputs, _teach, resumes=True)
DISTILL = Stage("distill", ("select", "teach"), _distill_inputs, _distill, resumes=True)
