"""The first stage, data, and what a search or a training needs of it: photos, networks as they begin, weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from export.artifact import sha256
from export.preprocess import Preprocess
from models.build import build
from models.language import canonical_hash
from models.pretrained import Normalisation, check_weights, load_stages
from models.spec import ModelSpec
from pipeline import demo_data
from pipeline.checkpoint import is_pretrained, pixels
from pipeline.config import Student, Teacher
from pipeline.data import Index, list_files, repeated, scan
from pipeline.data import summary as data_summary
from pipeline.errors import EnvironmentProblem
from pipeline.images import decoded, train_size
from pipeline.inputs import Arrays
from pipeline.search import Search
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


def begin(run: Run, spec: ModelSpec, seed: int) -> nn.Module:
    """The student as its training begins: weights drawn from the seed, and those of the network that it begins with."""
    model = build(spec, seed)
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


def open_search(run: Run) -> Search:
    index = load_index(run)
    return Search(
        run.config,
        index,
        lambda spec: load_arrays(run, index, spec.input_size, pixels(spec)),
        lambda spec, seed: begin(run, spec, seed),
        weights_key(run.config.student, "student"),
        run.folder / "study",
        run.host.key,
        run.worker,
        run.say,
    )


DATA = Stage("data", (), _data_inputs, _data)
