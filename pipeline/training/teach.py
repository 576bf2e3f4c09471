"""The stage `teach`: a network of timm learns the classes, with hyper-parameters that Optuna tunes where asked to.

Each trial is a whole training with its own checkpoints; hopeless ones end early by the median of the others. The first
trial is the config's own values. The weights of the best epoch of the best trial are kept. The trials lie beside those
of the search, in the folder `study`: raising `teacher.trials` goes on.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import TrialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from export.artifact import sha256
from models.language import canonical_hash, first_line
from models.pretrained import Normalisation, freeze_until, network, normalisation
from pipeline import FORMAT
from pipeline.config import NO_FILE, Teacher
from pipeline.data.stage import load_index
from pipeline.errors import PipelineError
from pipeline.files import read_record, write_json, write_record
from pipeline.show.live import bar, best_so_far
from pipeline.stages import SCRATCH, Run, Stage
from pipeline.study import alive, database_url, open_study, take_up
from pipeline.training import curves
from pipeline.training.answers import Finished
from pipeline.training.begin import load_arrays, load_student, online, weights_key
from pipeline.training.inputs import bf16_pays
from pipeline.training.loop import Fit, Recipe, fit
from pipeline.training.progress import Epoch

CHECKPOINTS = f"{SCRATCH}/checkpoints"
_WEIGHTS, _RECORD = "teacher.safetensors", "training.json"
_ABOUT, _CLASSES, _DATA = "edgebuild", "classes", "data"
"""In the metadata of its weights: what it was trained for, and on which photos."""
_KEYS = ("learning_rate", "epochs", "input_size", "batch", "n_select", "mixup")


def section(run: Run) -> dict[str, Any]:
    """What the config says of the teacher, with the identity of its weights, as a manifest holds it."""
    teacher = run.config.teacher
    said = teacher.model_dump(mode="json", exclude=None if teacher.trials > 1 else {"tune"})
    return said | {"weights": weights_key(teacher, "teacher")}


def _inputs(run: Run) -> dict[str, Any]:
    return {
        "data": load_index(run).hash,
        "fit": run.config.data.fit,
        "balance": run.config.data.balance,
        "seed": run.config.seed,
        "size": _default_size(run),
        "teacher": section(run),
    }


def _study_folder(run: Run) -> Path:
    """Of all that gives a trial its meaning, and not of how many there are to be."""
    inputs = _inputs(run)
    teacher = run.config.teacher.model_dump(exclude={"trials"}) | {"weights": inputs["teacher"]["weights"]}
    return run.folder / "study" / f"teacher-{canonical_hash(inputs | {'teacher': teacher})}"


def _default_size(run: Run) -> int:
    return run.config.teacher.input_size or load_student(run)[0].input_size


def build_teacher(run: Run, classes: int, weights: str) -> tuple[nn.Module, Normalisation]:
    torch.manual_seed(run.config.seed)
    name = run.config.teacher.name
    with online():
        return frozen(run, network(name, weights, classes, "teacher")), normalisation(name)


def frozen(run: Run, model: nn.Module) -> nn.Module:
    if run.config.teacher.freeze and run.config.teacher.weights == "none":
        raise PipelineError("teacher.freeze: without weights (teacher.weights) there is nothing to keep; leave it out")
    if run.config.teacher.freeze:
        freeze_until(model, run.config.teacher.freeze, "teacher.freeze")
    return model


def check_origin(run: Run) -> None:
    """A teacher that edgebuild trained says what for, and on which photos. Raises PipelineError for other classes."""
    weights, index = run.config.teacher.weights, load_index(run)
    if weights in NO_FILE:
        return
    classes = index.classes
    try:
        with safe_open(weights, "pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError:
        return  # told by whoever reads it
    try:
        about = dict(json.loads(metadata.get(_ABOUT, "{}")))
        if _CLASSES in metadata:  # an earlier version wrote two entries
            about = {_CLASSES: json.loads(metadata[_CLASSES]), _DATA: metadata.get(_DATA, index.hash)}
    except (TypeError, ValueError, RecursionError):
        about = {}
    known = about.get(_CLASSES)
    if about.get(_DATA, index.hash) != index.hash:
        run.say(f"teacher.weights: {weights}: a teacher of other photos or splits: it may have seen val/ and test/")
    if known is not None and list(known) != list(classes):
        raise PipelineError(
            f"teacher.weights: {weights}: a teacher of other classes ({', '.join(map(str, known))}) than the data's "
            f"({', '.join(classes)}); give weights that know no classes, or the teacher of this data"
        )


def load_teacher(run: Run) -> Finished:
    model, norm = build_teacher(run, len(load_index(run).classes), "none")
    model.load_state_dict(load_file(run.file("teach", _WEIGHTS)))
    return Finished(model, norm, run.read("teach", _RECORD)["hyper"]["input_size"])


def _teach(run: Run, work: Path) -> dict[str, Any]:
    check_origin(run)
    folder = _study_folder(run)
    study = open_study(database_url(None, folder, "tuning.db"), "teacher", ("maximize",), ("macro F1",))
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=2)
    take_up(study, run.worker, alone=True, retries=None)
    if not any(t.state != TrialState.FAIL for t in study.trials):
        study.enqueue_trial(_own(run))
    while sum(t.state.is_finished() and t.state != TrialState.FAIL for t in study.trials) < run.config.teacher.trials:
        finished = sum(t.state != TrialState.FAIL for t in study.trials)
        seed = int(canonical_hash([run.config.seed, finished]), 16) % 2**32
        study.sampler = optuna.samplers.TPESampler(multivariate=True, seed=seed, n_startup_trials=4)
        trial = study.ask()
        with alive(study, trial, run.worker):
            _try(run, folder, study, trial)
    best = study.best_trial
    trials = [{"params": t.params, "f1_macro": t.value, "state": t.state.name.lower()} for t in study.trials]
    record = read_record(folder / _RECORD)
    if record is None or not (folder / _WEIGHTS).is_file() or sha256(folder / _WEIGHTS) != record["weights"]:
        run.say(f"teach: {folder}: its weights or their record were damaged; training again")
        shutil.rmtree(folder)
        return _teach(run, work)
    write_json(work / _RECORD, record | {"trials": trials})
    shutil.copyfile(folder / _WEIGHTS, work / _WEIGHTS)
    shutil.rmtree(folder / SCRATCH, ignore_errors=True)
    return summary_of(record) | {"hyper": record["hyper"], "trials": len(trials), "best_trial": best.number}


def _own(run: Run) -> dict[str, Any]:
    """The config's own hyper-parameters."""
    teacher = run.config.teacher
    values = (
        teacher.learning_rate,
        teacher.epochs,
        _default_size(run),
        teacher.batch,
        teacher.augment.n_select,
        teacher.augment.mixup,
    )
    return dict(zip(_KEYS, values, strict=True))


def _suggest(run: Run, trial: optuna.Trial) -> dict[str, Any]:
    """Of the values in teacher.tune and the config's own."""
    tune, own = run.config.teacher.tune, _own(run)
    low, high = tune.learning_rate
    rate = trial.suggest_float(
        "learning_rate", min(low, own["learning_rate"]), max(high, own["learning_rate"]), log=True
    )
    lists = {k: sorted({*getattr(tune, k), own[k]}) for k in _KEYS[1:]}
    return {"learning_rate": rate, **{k: trial.suggest_categorical(k, values) for k, values in lists.items()}}


def _try(run: Run, folder: Path, study: optuna.Study, trial: optuna.Trial) -> None:
    teacher, index = run.config.teacher, load_index(run)
    hyper = _suggest(run, trial)
    recipe = _recipe(run, teacher, hyper)
    model, norm = build_teacher(run, len(index.classes), teacher.weights)
    name = f"teach, trial {trial.number + 1} of {teacher.trials}" if teacher.trials > 1 else "teach"
    report = reporter(run, name, recipe)

    def on_epoch(epoch: Epoch) -> None:
        report(epoch)
        trial.report(epoch.f1_macro, epoch.epoch)
        if teacher.trials > 1 and trial.should_prune():
            raise optuna.TrialPruned

    try:
        check_size(run, model, hyper["input_size"])
        with bar(name, "images") as on_step:
            result = fit(
                model,
                load_arrays(run, index, hyper["input_size"], norm),
                recipe,
                run.config.seed,
                len(index.classes),
                checkpoints=folder / CHECKPOINTS / canonical_hash(hyper),
                on_epoch=on_epoch,
                on_step=on_step,
            )
        checked(run, name, result, "teacher.learning_rate")
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
        return
    except PipelineError as error:
        if hyper == _own(run):
            raise
        run.say(f"{error}; the other trials stand")
        study.tell(trial, state=TrialState.PRUNED)
        return
    best = max((t.value for t in study.trials if t.state == TrialState.COMPLETE and t.value is not None), default=-1.0)
    if result.best.f1_macro > best:
        # One entry: see save_student.
        about = {_CLASSES: index.classes, _DATA: index.hash}
        save_file(result.state, folder / _WEIGHTS, {_ABOUT: json.dumps(about, sort_keys=True)})
        record = {"format": FORMAT, "hyper": hyper, "weights": sha256(folder / _WEIGHTS), **result.record()}
        write_record(folder / _RECORD, record)
    study.tell(trial, result.best.f1_macro)


def _recipe(run: Run, teacher: Teacher, hyper: dict[str, Any]) -> Recipe:
    augment = teacher.augment.model_copy(update={k: hyper[k] for k in ("n_select", "mixup")})
    return Recipe(
        hyper["epochs"],
        "adamw",
        hyper["learning_rate"],
        hyper["batch"],
        augment,
        balance=run.config.data.balance,
        pretrained=teacher.weights != "none",
        fit_classifier=teacher.weights != "none",
        ema=True,
        reduced=bf16_pays(large=True),
        patience=teacher.patience,
    )


def reporter(run: Run, name: str, recipe: Recipe) -> Callable[[Epoch], None]:
    best, write = 0.0, curves.writer(run.folder / curves.FOLDER / name.replace(", ", "-").replace(" ", "-"))

    def report(epoch: Epoch) -> None:
        nonlocal best
        best = max(best, epoch.f1_macro)
        best_so_far(f"best F1 {best:.4f}")
        write(epoch)
        run.say(
            f"{name}: epoch {epoch.epoch + 1}/{recipe.epochs}, loss {epoch.loss:.3f}, val {epoch.val_loss:.3f}, "
            f"F1 {epoch.f1_macro:.4f}, {epoch.images_per_s:.0f} images/s"
        )

    return report


def checked(run: Run, name: str, result: Fit, key: str) -> Fit:
    """Says where a training diverged. Raises PipelineError where no epoch came before. key: of the config, to lower."""
    if result.diverged is None:
        return result
    if result.best.epoch == result.history[-1].epoch:
        raise PipelineError(f"{name}: {result.diverged}, and no epoch came before: lower {key}")
    run.say(f"{name}: {result.diverged}; the best epoch before it stands, {result.best.epoch + 1}")
    return result


def summary_of(record: dict[str, Any]) -> dict[str, Any]:
    """What `--json` prints of a training's record."""
    best = record["best"]
    return {
        "f1_macro": best["f1_macro"],
        "accuracy": best["accuracy"],
        "best_epoch": best["epoch"],
        "epochs": len(record["history"]),
    }


@torch.no_grad()
def check_size(run: Run, teacher: nn.Module, size: int) -> None:
    """Some networks take images of one size only."""
    try:
        teacher.eval()(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError) as error:
        raise PipelineError(
            f"teacher.name: {run.config.teacher.name} does not take images of {size} px: {first_line(error)}; set "
            "teacher.input_size to a size that it takes"
        ) from error


TEACH = Stage(
    "teach", ("data", "select"), _inputs, _teach, resumes=True, wanted=lambda c: c.distill.weight > 0, kept=True
)
