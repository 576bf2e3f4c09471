"""The search: ask, measure, reject or train, tell.

Three objectives: macro F1 up, latency down, parameters down. A candidate that is over a limit (latency by its lower
bound) sets its constraints and is told PRUNED, untrained; the sampler learns from it all the same. One that is hopeless
among those of similar latency ends early and is told PRUNED too. What was measured and what was trained is kept in
records beside Optuna's database, so a resumed, changed or moved study repeats neither.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from torch import nn

from export.errors import ExportError
from latency.errors import LatencyError
from latency.machine import Machine
from models.build import profile
from models.joined import JoinedSpace
from models.language import SpecError, canonical_hash
from models.space import Candidate
from models.spec import ModelSpec
from pipeline.checkpoint import student_card
from pipeline.config import BuildConfig
from pipeline.dashboard import attach, describe
from pipeline.data import Index
from pipeline.ehvi import Draw, draws
from pipeline.errors import EnvironmentProblem, OutOfMemory
from pipeline.inputs import Arrays
from pipeline.insight import what_helps
from pipeline.limits import best_form, told_over
from pipeline.measured import CandidateTimer, Timer, Timing, forms
from pipeline.progress import Epoch
from pipeline.samplers import sampler, warning
from pipeline.short import Trainer
from pipeline.spaces import check_space, search_space
from pipeline.stages import Say
from pipeline.stopping import Curve, hopeless
from pipeline.study import (
    Direction,
    agree,
    alive,
    database_url,
    known_params,
    one_at_a_time,
    open_study,
    own_trials,
    take_up,
    take_up_lost,
)
from pipeline.tally import Tally, all_at_work, nearest_miss, summary, used_up

_UNFIT = (SpecError, ExportError, LatencyError)
"""What a candidate may be that cannot be built, exported or timed; the search goes on without it."""
_DIRECTIONS: tuple[Direction, ...] = ("maximize", "minimize", "minimize")
_METRICS = ("macro F1", "p90 [ms]", "parameters")
_WAIT_S = 1.0
_LOST = 5
"""Candidates in a row that cannot be timed: then it is not theirs."""
_TOLD = 10
"""Trials after which it is told how the search stands, though none of them was trained."""
_HINT_AFTER = 30
"""Rejects without a single candidate that keeps the limits, after which it is said what would help."""


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


def candidate_timer(
    config: BuildConfig, folder: Path, machine: Machine, references: Mapping[str, float] | None = None
) -> CandidateTimer:
    """For a config; folder: of the studies. references: see CandidateTimer."""
    latency, memory = config.latency, config.limits.memory is not None
    wanted = forms(latency.runtimes, latency.precisions, machine.host(), config.search.measure)
    return CandidateTimer(
        folder / "measurements", wanted, latency.threads, latency.limit_ms, machine, memory, references
    )


def run_search(search: Search, timer: Timer) -> dict[str, Any]:
    """Go on with the study until its budget is used; the summary and all trials. Raises PipelineError."""
    study = prepare(search, timer)
    reason = work(search, study, timer)
    search.say(f"search ends: {reason}{nothing_fits(study, search)}")
    return summary(study, search.config)


def prepare(search: Search, timer: Timer) -> optuna.Study:
    """What is done once, before the first worker: the study, and what is to be tried before anything is drawn."""
    check_space(search.space, search.config)
    if unfit := warning(search.config.search.sampler):
        search.say(unfit)
    study = search.open()
    take_up(study, search.worker, alone=search.config.search.storage is None)
    if not any(t.state.is_finished() for t in own_trials(study)):
        for params in (*search.config.search.start, *_carried_over(search)):
            study.enqueue_trial(params, skip_if_exists=True)
    if search.config.search.sampler == "sweep":
        planned = _slowest_first(search, timer)
        # What could not be timed because the target was out of reach is tried again.
        tried = [known_params(t) for t in own_trials(study) if t.user_attrs.get("error_kind") != LatencyError.__name__]
        for params in planned:
            if params not in tried:
                study.enqueue_trial(params)
    return study


def work(search: Search, study: optuna.Study, timer: Timer) -> str:
    """Candidate after candidate, as one of the study's workers; why it is over."""
    config, space = search.config, search.space
    sweeps = config.search.sampler == "sweep"
    agree(study, search.meaning)  # again: two that began at once may both have been the first
    while True:
        take_up_lost(study)
        tally = Tally.of(study, config.latency.limit_ms)
        if reason := used_up(tally, config):
            return reason
        waiting = bool(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))
        if sweeps and not waiting and not tally.at_work:
            return f"all {tally.asked} combinations tried (search.sampler)"
        if all_at_work(tally, config) or (sweeps and not waiting):
            time.sleep(_WAIT_S)
            continue
        if tally.rejected and tally.rejected % _HINT_AFTER == 0 and (hint := nothing_fits(study, search)):
            search.say(f"search goes on{hint}")  # early, for it takes long to find out by the budget
        # A sampler of its own for each trial: seeded alike whether the study was interrupted before or not.
        seeds = (config.seed, tally.asked, search.number, search.worker if config.search.storage else "")
        study.sampler = sampler(
            config.search.sampler, lambda: search.draws, config.latency.limit_ms, space.flat, *seeds
        )
        with one_at_a_time(search.url):
            trial = study.ask()
        with alive(study, trial, search.worker):
            _evaluate(study, trial, search, timer)


def _carried_over(search: Search) -> list[dict[str, Any]]:
    """Of a study of another limit, host or runtime in this folder, what was trained: timed again, not trained again."""
    records = sorted((search.folder / "trained").glob("*.json"), key=lambda p: p.stat().st_mtime_ns)
    known = [json.loads(r.read_text()) for r in records]
    return [k["params"] for k in known if k.get("space") == search.space.hash and k["training"] == search.training]


def _slowest_first(search: Search, timer: Timer) -> list[dict[str, Any]]:
    """Every combination, measured: those over the limit, which cost nothing more, then the slowest of the others first,
    for more time mostly buys more F1."""
    everything = search.space.combinations()
    search.say(f"search: {len(everything)} combinations, each is measured first")
    measured: list[tuple[float, dict[str, Any]]] = []
    lost = 0
    for params in everything:
        try:
            candidate = search.space.suggest(optuna.trial.FixedTrial(params), len(search.index.classes))
            measured.append((_timings(candidate, search, timer)[0].p90_lower_ms, params))
            lost = 0
        except _UNFIT as error:  # its trial says so
            measured.append((0.0, params))
            lost = lost + 1 if isinstance(error, LatencyError) else 0
            if lost == _LOST:
                raise _no_timing(error) from error
    return [params for _, params in sorted(measured, key=lambda m: -m[0])]


def _no_timing(error: Exception) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"search: the last {_LOST} candidates could not be timed ({error}): mend what times, then search on"
    )


def nothing_fits(study: optuna.Study, search: Search) -> str:
    """Where no candidate has kept the limits so far: the nearest miss, and what would help; else nothing."""
    tally = Tally.of(study, search.config.latency.limit_ms)
    if not tally.rejected or tally.trained + tally.stopped + tally.in_training:
        return ""
    near = nearest_miss(summary(study, search.config)["trials"], search.config.latency.limit_ms)
    return f"; none of {tally.rejected} candidates keeps the limits: {near}; {what_helps(own_trials(study))}"


def _timings(candidate: Candidate, search: Search, timer: Timer) -> list[Timing]:
    card = student_card(candidate.spec, search.index.classes, search.config.data.fit)
    return timer.time(candidate.spec, card, search.config.seed)


def _evaluate(study: optuna.Study, trial: optuna.Trial, search: Search, timer: Timer) -> None:
    began = time.perf_counter()
    earlier = [t for t in own_trials(study) if t.state.is_finished()]
    try:
        candidate = search.space.suggest(trial, len(search.index.classes))
        spec = candidate.spec
        same = (t for t in earlier if t.user_attrs.get("graph") == [spec.hash, spec.input_size])
        known = next(same, None)
        if known:
            params, macs = known.user_attrs["params"], known.user_attrs["macs"]
            timings = [Timing(**t) for t in known.user_attrs["timings"]]
        else:
            shape = profile(spec)
            params, macs = shape.params, shape.macs
            timings = _timings(candidate, search, timer)
    except _UNFIT as error:
        _pass_over(study, trial, error)
        search.say(f"trial {trial.number}: cannot be built or timed: {error}")
        last = [t.user_attrs.get("error_kind") for t in own_trials(study) if t.state.is_finished()][-_LOST:]
        if last == [LatencyError.__name__] * _LOST:
            raise _no_timing(error) from error
        return
    best, over = best_form(search.config, timings, params)
    measure_s = round(time.perf_counter() - began, 3)
    facts = {
        "graph": [spec.hash, spec.input_size],
        "input_size": spec.input_size,
        "params": params,
        "macs": macs,
        "size_bytes": best.size_bytes,
        "peak_mib": best.peak_mib,
        "latency_ms": best.p90_ms,
        "form": best.form,
        "timings": [asdict(t) for t in timings],
        "over_limit": over,
        "measure_s": measure_s,
        "spec": spec.document(),
        "hyper": candidate.hyper.as_dict(),
    }
    for name, share in over.items():
        trial.set_constraint(name, share)
    for name, value in facts.items():
        trial.set_user_attr(name, value)
    head = f"trial {trial.number}: {best.p90_ms:.2f} ms {best.form}, {params / 1e3:.0f} k parameters"
    if max(over.values()) > 0:
        study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
        search.say(f"{head}: {told_over(over)}, rejected untrained in {measure_s:.1f} s")
        if trial.number % _TOLD == _TOLD - 1:
            search.say(f"search: {Tally.of(study, search.config.latency.limit_ms).told(search.config)}")
        return
    _judge(study, trial, candidate, search, best, earlier, head)


def _judge(
    study: optuna.Study,
    trial: optuna.Trial,
    candidate: Candidate,
    search: Search,
    best: Timing,
    earlier: list[FrozenTrial],
    head: str,
) -> None:
    """Train it, unless the same was trained before, or it proves hopeless."""
    began = time.perf_counter()
    config, trainer = search.config, search.trainer
    key = trainer.key(candidate)
    trial.set_user_attr("training", key)
    with_curve = [t for t in earlier if "f1_by_epoch" in t.user_attrs]
    same = next((t for t in with_curve if t.user_attrs["training"] == key), None)
    f1: list[float] = list(same.user_attrs["f1_by_epoch"] if same else trainer.known(key) or ())
    stopped = same is not None and same.state == TrialState.PRUNED
    curves = {
        t.user_attrs["training"]: Curve(t.user_attrs["latency_ms"], tuple(t.user_attrs["f1_by_epoch"]))
        for t in with_curve
    }

    def on_epoch(epoch: Epoch) -> None:
        f1.append(epoch.f1_macro)
        if hopeless(Curve(best.p90_ms, tuple(f1)), [*curves.values()], config.search.epochs, config.search.stop):
            raise _Hopeless

    if not f1:
        try:
            told = Tally.of(study, config.latency.limit_ms).told(config)
            result = trainer.train(candidate, f"trial {trial.number} ({told})", on_epoch, trial.params)
            f1 = [e.f1_macro for e in result.history]
            if result.diverged:
                search.say(f"trial {trial.number}: its training ended early: {result.diverged}")
        except _Hopeless:
            stopped = True
        except OutOfMemory as error:
            _pass_over(study, trial, error)
            search.say(f"{head}: passed over: {error}")
            return
    facts = {"f1_by_epoch": f1, "f1_macro": max(f1), "train_s": round(time.perf_counter() - began, 3)}
    for name, value in facts.items():
        trial.set_user_attr(name, value)
    if stopped:
        study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
        search.say(f"{head}: F1 {max(f1):.4f} after {len(f1)} epochs: stopped, behind others that are as fast")
    else:
        if search.at_home:
            attach(trial, candidate.spec, search.folder)
        study.tell(trial, [max(f1), best.p90_ms, trial.user_attrs["params"]], skip_if_finished=True)
        search.say(f"{head}: F1 {max(f1):.4f}, trained in {facts['train_s']:.0f} s")
    search.say(f"search: {Tally.of(study, config.latency.limit_ms).told(config)}")


class _Hopeless(Exception):
    """Ends the training of a candidate that others, as fast, have left behind."""


def _pass_over(study: optuna.Study, trial: optuna.Trial, error: Exception) -> None:
    trial.set_user_attr("error", str(error))
    trial.set_user_attr("error_kind", type(error).__name__)
    study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
