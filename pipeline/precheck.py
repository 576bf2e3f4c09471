"""What a whole run can refuse before hours are spent, beside what its config refuses when it is read."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from models.language import first_line, nearest
from models.pretrained import check_name, network
from models.spec import ModelSpec
from pipeline.errors import PipelineError
from pipeline.search.spaces import search_space
from pipeline.stages import Run
from pipeline.training.begin import online, weights_key
from pipeline.training.progress import Checkpoints, Epoch
from pipeline.training.teach import check_size, frozen, section


def check_before(run: Run) -> None:
    """Networks that timm lacks, weights that are missing or do not fit, optimizers that cannot be used here. Raises
    PipelineError or SpecError."""
    config, students = run.config, check_students(run)
    if config.distill.weight:
        check_name(config.teacher.name, "teacher.name")
        taught = run.manifest("teach")
        if taught is None or taught["inputs"]["teacher"] != section(run):
            with online():  # a download is kept in the hub's cache, so nothing is fetched twice
                teacher = frozen(run, network(config.teacher.name, config.teacher.weights, 2, "teacher"))
            for size in [config.teacher.input_size] if config.teacher.input_size else students.input_sizes:
                check_size(run, teacher, size)


@dataclass(frozen=True)
class _Students:
    """What those may have that the config names or searches."""

    optimizers: list[str]
    networks: list[str]
    input_sizes: list[int]


def check_students(run: Run) -> "_Students":
    """What of that a search alone needs."""
    students, section = _students(run), run.config.student
    for name in students.optimizers:
        _check_optimizer(name)
    if run.manifest("distill") is None:
        for name in students.networks:
            weights_key(section, "student")
            with online():
                network(name, section.weights, 2, "student")
    return students


def _students(run: Run) -> _Students:
    student = run.config.student
    if student.model:
        spec = ModelSpec.load(student.model)
        return _Students([student.optimizer], [spec.network] if spec.network else [], [spec.input_size])
    space = search_space(run.config)
    return _Students(space.optimizers, space.networks, space.input_sizes)


def _check_optimizer(name: str) -> None:
    """timm's name of one that learns here, and whose state can be kept in a checkpoint."""
    from timm.optim import create_optimizer_v2, list_optimizers

    if name not in list_optimizers():
        raise PipelineError(
            f"student.optimizer: timm has no {name!r}{nearest(name, [str(n) for n in list_optimizers()])}"
        )
    model = nn.Linear(2, 2)
    epoch = Epoch(0, 0.0, 0.0, 0.0, 0.0, 0.0)
    try:
        optimizer = create_optimizer_v2(model, opt=name, lr=1e-3)
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        with tempfile.TemporaryDirectory() as folder:
            saved = Checkpoints(Path(folder), model, None, optimizer)
            saved.save([epoch], epoch, model.state_dict())
            saved.restore()
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise PipelineError(
            f"student.optimizer: {name} cannot be used here: {first_line(error)}; take another, adamw for example"
        ) from error
