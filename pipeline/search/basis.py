"""What a search stands on: its data, its study, what a trial of it means, and what times and trains its candidates."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial
from torch import nn

from latency.machine import Machine
from models.joined import JoinedSpace
from models.language import canonical_hash
from models.spec import ModelSpec
from pipeline.config import BuildConfig
from pipeline.data.index import Index
from pipeline.data.stage import load_index
from pipeline.search.dashboard import describe
from pipeline.search.ehvi import Draw, draws
from pipeline.search.measured import CandidateTimer, forms
from pipeline.search.samplers import sampler
from pipeline.search.short import Trainer
from pipeline.search.spaces import search_space
from pipeline.stages import Run, Say
from pipeline.study import Direction, database_url, load_study, open_study, own_trials
from pipeline.training.begin import begin, load_arrays, weights_key
from pipeline.training.checkpoint import pixels
from pipeline.training.inputs import Arrays

_DIRECTIONS: tuple[Direction, ...] = ("maximize", "minimize", "minimize")
_METRICS = ("macro F1", "p90 [ms]", "parameters")
_LAYOUT = 3
"""Of the attributes of a trial; a study of an earlier one is not gone on with."""


@dataclass(frozen=True)
class Search:
    """What a search stands on. arrays_for: images as that network takes them; begin: it with the weights that training
    begins with; weights: their identity; folder: where studies and records live; host_key: of what times; worker: who
    takes part, and its number among its like. given: the space, where its file is elsewhere; at_home: folder is the
    run's own, and stays."""

    config: BuildConfig
    index: Index
    arrays_for: Callable[[ModelSpec], Arrays]
    begin: Callable[[ModelSpec, int], nn.Module]
    weights: str
    folder: Path
    host_key: str
    worker: str
    say: Say
    number: int = 0
    given: JoinedSpace | None = None
    at_home: bool = True

    @cached_property
    def space(self) -> JoinedSpace:
        return self.given or search_space(self.config)

    @cached_property
    def draws(self) -> list[Draw]:
        return draws(self.space, self.config.seed)

    def sampler(self, asked: int) -> BaseSampler:
        """Of its own for each trial: seeded alike whether the study was interrupted before or not."""
        name, worker = self.config.search.sampler, self.worker if self.config.search.storage else ""
        seeds = (self.config.seed, asked, self.number, worker)
        return sampler(name, lambda: self.draws, self.config.latency.limit_ms, self.space.flat, *seeds)

    @property
    def url(self) -> str:
        return database_url(self.config.search.storage, self.folder)

    @property
    def training(self) -> dict[str, Any]:
        """What a candidate's F1 depends on beside the candidate."""
        c = self.config
        return {
            "data": self.index.hash,
            "fit": c.data.fit,
            "epochs": c.search.epochs,
            "subset": c.search.subset,
            "seed": c.seed,
            "balance": c.data.balance,
            **({"weights": self.weights} if self.space.networks else {}),
        }

    @property
    def meaning(self) -> dict[str, Any]:
        """Of a trial of the study; budgets are left out, so raising one goes on."""
        latency = self.config.latency
        return {
            "layout of its trials": _LAYOUT,
            "space": self.space.hash,
            **{f"{k} of the training": v for k, v in self.training.items()},
            "latency.limit_ms": latency.limit_ms,
            "latency.runtimes": latency.runtimes,
            "latency.precisions": latency.precisions,
            "latency.threads": latency.threads,
            "limits": self.config.limits.model_dump(),
            "search.measure": self.config.search.measure,
            "search.stop": self.config.search.stop.model_dump(),
            "host": self.host_key,
        }

    @property
    def study_name(self) -> str:
        return self.config.search.study or "edgebuild-" + canonical_hash(self.meaning)

    @cached_property
    def trainer(self) -> Trainer:
        return Trainer(
            self.config,
            len(self.index.classes),
            self.arrays_for,
            self.begin,
            self.training,
            self.space.hash,
            self.folder / "trained",
        )

    def open(self) -> optuna.Study:
        """Raises PipelineError."""
        study = open_study(self.url, self.study_name, _DIRECTIONS, _METRICS, self.meaning)
        describe(study, self.config)
        return study


def candidate_timer(config: BuildConfig, folder: Path, machine: Machine, all_forms: bool = False) -> CandidateTimer:
    """For a config; folder: of the studies. all_forms: learn nothing of which forms win, where none are named."""
    latency, memory = config.latency, config.limits.memory is not None
    asked = None if config.search.measure == "auto" else config.search.measure
    wanted = forms(latency.runtimes, latency.precisions, machine.host(), asked)
    learns = asked is None and not all_forms
    return CandidateTimer(folder / "measurements", wanted, latency.threads, latency.limit_ms, machine, memory, learns)


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


def trials_of(run: Run, study: str) -> list[FrozenTrial]:
    """Of a study of this run's, by its name. Raises PipelineError where there is none."""
    return own_trials(load_study(database_url(run.config.search.storage, run.folder / "study"), study))
