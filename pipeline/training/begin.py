"""What a training begins with: the architecture that was chosen, its weights, the photos as arrays."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import nn

from export.artifact import sha256
from export.preprocess import Preprocess
from models.build import build
from models.documents import read_yaml
from models.pretrained import Normalisation, check_weights, load_stages
from models.space import Hyper
from models.spec import ModelSpec
from pipeline.config import NO_FILE, Student, Teacher
from pipeline.data.images import decoded, train_size
from pipeline.data.index import Index
from pipeline.errors import EnvironmentProblem
from pipeline.stages import Run
from pipeline.training.checkpoint import is_pretrained
from pipeline.training.inputs import Arrays


def load_student(run: Run) -> tuple[ModelSpec, Hyper]:
    """What the stage `select` chose."""
    path = run.file("select", "student.yaml")
    return ModelSpec.load(path), Hyper(**read_yaml(path)["hyper"])


def chosen_trial(run: Run) -> int | None:
    """The trial that the stage `select` chose; None where the config names the architecture."""
    trial: int | None = read_yaml(run.file("select", "student.yaml"))["trial"]
    return trial


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


def weights_key(section: Teacher | Student, name: str) -> str:
    """Identity of the weights that a section of the config names. Raises SpecError where there is no such file."""
    check_weights(section.weights, name)
    return section.weights if section.weights in NO_FILE else sha256(Path(section.weights))


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
