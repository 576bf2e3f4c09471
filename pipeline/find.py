"""Stages up to an architecture: data, search, select."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import nn

from export.artifact import sha256
from export.preprocess import Preprocess
from models.build import build, profile
from models.language import canonical_hash
from models.pretrained import Normalisation, check_weights, load_stages
from models.space import Hyper
from models.spec import ModelSpec
from pipeline import FORMAT, demo_data
from pipeline.checkpoint import is_pretrained, pixels, student_card
from pipeline.choose import Row, Rule, choose, pareto
from pipeline.config import Student, Teacher
from pipeline.data import Index, list_files, repeated, scan
from pipeline.data import summary as data_summary
from pipeline.errors import EnvironmentProblem, NoCandidate
from pipeline.files import write_json
from pipeline.images import decoded, train_size
from pipeline.inputs import Arrays
from pipeline.search import Search, candidate_timer, nearest_miss, run_search
from pipeline.stages import Run, Stage

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
    for split, count in repeated(index).items():
        run.say(
            f"data: {count} files of {split}/ stand in a split before it too, which flatters its figures: take them out"
        )
    return data_summary(index)


def load_index(run: Run) -> Index:
    return Index.load(run.file("data", "index.json"))


def load_arrays(run: Run, index: Index, size: int, norm: Normalisation) -> Arrays:
    preprocess = run.config.data.fit
    return Arrays(
        decoded(index, "train", Preprocess(train_size(size), preprocess), run.cache),
        np.array(index.labels("train")),
        decoded(index, "val", Preprocess(size, preprocess), run.cache),
        np.array(index.labels("val")),
        norm.mean,
        norm.std,
    )


# --- networks with weights -------------------------------------------------------------------------------------------


def weights_key(section: Teacher | Student, name: str) -> str:
    """Identity of the weights that a section of the config names. Raises SpecError where there is no such file."""
    check_weights(section.weights, name)
    return section.weights if section.weights in ("hub", "none") else sha256(Path(section.weights))


def begin(run: Run, spec: ModelSpec) -> nn.Module:
    """The student as its training begins: weights drawn from the seed, and those of the network that it begins with."""
    model = build(spec, run.config.seed)
    if spec.network and is_pretrained(spec, run.config.student.weights):
        with online():
            load_stages(model, spec.network, run.config.student.weights, "student")
    return model


@contextmanager
def online() -> Iterator[None]:
    try:
        yield
    except ConnectionError as error:
        raise EnvironmentProblem(str(error)) from error


# --- search ----------------------------------------------------------------------------------------------------------


def _search(run: Run) -> Search:
    index = load_index(run)
    return Search(
        run.config,
        index,
        lambda spec: load_arrays(run, index, spec.input_size, pixels(spec)),
        lambda spec: begin(run, spec),
        weights_key(run.config.student, "student"),
        run.folder / "study",
        run.machine,
        run.worker,
        run.say,
    )


def _search_inputs(run: Run) -> dict[str, Any]:
    search = run.config.search
    return {
        "study": _search(run).study_name,
        "sampler": search.sampler,
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
    if run.config.student.model:
        return {
            "model": _named(run).document(),
            "hyper": _named_hyper(run).as_dict(),
            "latency": run.config.latency.model_dump(),
            "measure": run.config.search.measure,
            "host": run.host.key,
            "classes": load_index(run).classes,
        }
    return {
        "trials": run.output_hash("search", "trials.json"),
        "select": run.config.select.model_dump(),
        "limit_ms": run.config.latency.limit_ms,
    }


def _named(run: Run) -> ModelSpec:
    return ModelSpec.load(run.config.student.model or "").with_classes(len(load_index(run).classes))


def _named_hyper(run: Run) -> Hyper:
    student = run.config.student
    usual = 3e-4 if is_pretrained(_named(run), student.weights) else 3e-3
    return Hyper(student.optimizer, student.learning_rate or usual, student.batch, student.n_select)


def _select_named(run: Run, work: Path) -> dict[str, Any]:
    """The architecture that the config names, measured like any other."""
    spec, limit_ms = _named(run), run.config.latency.limit_ms
    shape = profile(spec)
    card = student_card(spec, load_index(run).classes, run.config.data.fit)
    with candidate_timer(run.config, run.folder / "study" / "measurements", run.machine) as timer:
        best = timer.time(spec, card, run.config.seed)[0]
    told = f"{run.config.student.model}: p90 {best.p90_ms:.3f} ms ({best.form})"
    if best.p90_lower_ms > limit_ms:
        raise NoCandidate(f"{told} is over the limit of {limit_ms:g} ms; raise latency.limit_ms, or name a smaller one")
    run.say(f"select: {told}, {shape.params} parameters")
    measurement = {
        "latency_ms": best.p90_ms,
        "form": best.form,
        "params": shape.params,
        "macs": shape.macs,
        "host": run.host.key,
    }
    student = {
        "format": FORMAT,
        "trial": None,
        "chosen_by": "config",
        "measurement": measurement,
        "hyper": _named_hyper(run).as_dict(),
        "model": spec.document(),
    }
    _write_student(work, student)
    path = str(run.file("select", "student.yaml"))
    return {"trial": None, "student": path, "measurement": measurement, "table": []}


def _write_student(work: Path, student: dict[str, Any]) -> None:
    (work / "student.yaml").write_text(yaml.safe_dump(student, sort_keys=False, default_flow_style=None))


def _select(run: Run, work: Path) -> dict[str, Any]:
    if run.config.student.model:
        return _select_named(run, work)
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
    _write_student(work, student)
    return {
        "trial": chosen.trial,
        "student": str(run.file("select", "student.yaml")),
        "table": [{**r.__dict__, "pareto": r.trial in front} for r in table],
    }


def load_student(run: Run) -> tuple[ModelSpec, Hyper]:
    path = run.file("select", "student.yaml")
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    return ModelSpec.load(path), Hyper(**document["hyper"])


DATA = Stage("data", (), _data_inputs, _data)
SEARCH = Stage("search", ("data",), _search_inputs, _do_search, resumes=True, wanted=lambda c: c.student.model is None)
SELECT = Stage("select", ("data", "search"), _select_inputs, _select)
