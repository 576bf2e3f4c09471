"""The search: ask, measure, reject or train, tell.

Three objectives: macro F1 up, latency down, parameters down. A candidate whose latency is over the limit (by its lower
bound) sets its constraint and is told PRUNED, untrained; the sampler learns from it all the same. What was measured and
what was trained is kept in records beside Optuna's database, so a resumed, changed or moved study repeats neither.
"""

import json
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState
from torch import nn

from export.errors import ExportError
from latency.errors import LatencyError
from latency.machine import Machine
from models.build import profile
from models.language import SpecError, canonical_hash
from models.pretrained import channels
from models.space import Candidate, SearchSpace
from models.spec import ModelSpec
from pipeline.checkpoint import is_pretrained, student_card
from pipeline.config import Augment, BuildConfig
from pipeline.data import Index
from pipeline.errors import EnvironmentProblem, OutOfMemory, PipelineError
from pipeline.files import write_json
from pipeline.inputs import Arrays, Rows, bf16_pays
from pipeline.live import training_bar
from pipeline.measured import CandidateTimer, forms
from pipeline.stages import Say
from pipeline.train import Recipe, fit

_CONSTRAINT = "latency_over_limit_ms"
_DONE = (TrialState.COMPLETE, TrialState.PRUNED)
_REAPED = "reaped"
_UNFIT = (SpecError, ExportError, LatencyError)
"""What a candidate may be that cannot be built, exported or timed; the search goes on without it."""


@dataclass(frozen=True)
class Search:
    """What a search stands on. arrays_for: images as that network takes them; begin: it with the weights that training
    begins with; weights: their identity; folder: where studies and records live."""

    config: BuildConfig
    index: Index
    arrays_for: Callable[[ModelSpec], Arrays]
    begin: Callable[[ModelSpec], nn.Module]
    weights: str
    folder: Path
    machine: Machine
    worker: str
    say: Say

    @property
    def space(self) -> SearchSpace:
        return search_space(self.config)

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
    def study_name(self) -> str:
        """Of everything that gives a trial its meaning; budgets are left out, so raising one goes on."""
        latency = self.config.latency
        what = [
            self.space.hash,
            self.training,
            latency.limit_ms,
            latency.runtimes,
            latency.precisions,
            latency.threads,
            self.config.search.measure,
            self.machine.host().key,
        ]
        return "edgebuild-" + canonical_hash(what)


def search_space(config: BuildConfig) -> SearchSpace:
    stages = {"network": config.student.network and [config.student.network], "until": config.student.until}
    return SearchSpace.load(config.search.space, config.search.input_sizes, {k: v for k, v in stages.items() if v})


def candidate_timer(config: BuildConfig, folder: Path, machine: Machine) -> CandidateTimer:
    latency = config.latency
    wanted = forms(latency.runtimes, latency.precisions, machine.host(), config.search.measure)
    return CandidateTimer(folder, wanted, latency.threads, latency.limit_ms, machine)


def run_search(search: Search) -> dict[str, Any]:
    """Go on with the study until its budget is used; the summary and all trials. Raises PipelineError."""
    config, space = search.config, search.space
    _check(space, config)
    study = _open_study(search)
    _reap(study, search.worker)
    _carry_over(study, search)
    with candidate_timer(config, search.folder / "measurements", search.machine) as timer:
        sweep = _sweep(search, space, timer) if config.search.sampler == "sweep" else None
        while (reason := _budget_used(study, config, sweep)) is None:
            if sweep is not None and not _waiting(study):
                study.enqueue_trial(_untried(study, sweep)[0])
            # A sampler of its own for each trial: seeded alike whether the study was interrupted before or not.
            number = sum(_REAPED not in t.user_attrs for t in study.trials)
            study.sampler = optuna.samplers.TPESampler(
                multivariate=True, group=not space.flat, seed=int(canonical_hash([config.seed, number]), 16) % 2**32
            )
            trial = study.ask()
            trial.set_user_attr("worker", search.worker)
            _evaluate(study, trial, search, space, timer)
    search.say(f"search ends: {reason}")
    return summary(study, config)


def _check(space: SearchSpace, config: BuildConfig) -> None:
    """What else would show only when all candidates were tried. Raises PipelineError or SpecError."""
    size = config.select.input_size
    if size is not None and size not in space.input_sizes:
        searched = ", ".join(map(str, space.input_sizes))
        raise PipelineError(
            f"select.input_size: {size} px, but the input sizes searched are {searched}: set it to one of these, or to "
            "null for any"
        )
    if config.search.sampler == "sweep" and space.size > config.search.max_asked:
        raise PipelineError(
            f"search.sampler: a sweep of {space.source} tries {space.size} combinations, search.max_asked is "
            f"{config.search.max_asked}: raise it, name fewer values, or take tpe"
        )
    refusals = {(name, until): _refusal(name, until) for name in space.networks for until in space.cuts}
    for name in space.networks:  # each shall have one of the cuts
        _one_fits([refusals[name, until] for until in space.cuts])
    for until in config.student.until or ():  # and each of those that the config names shall be one's
        _one_fits([refusals[name, until] for name in space.networks])


def _one_fits(refusals: list[SpecError | None]) -> None:
    if refusals and refusals[0] and all(refusals):
        raise refusals[0]


def _refusal(network: str, until: str) -> SpecError | None:
    try:
        channels(network, until)
    except SpecError as error:
        return error
    return None


def _sweep(search: Search, space: SearchSpace, timer: CandidateTimer) -> list[dict[str, Any]]:
    """Every combination, measured: those over the limit, which cost nothing more, then the slowest of the others first,
    for more time mostly buys more F1."""
    everything = space.combinations()
    search.say(f"search: {len(everything)} combinations, each is measured first")
    measured: list[tuple[float, dict[str, Any]]] = []
    for params in everything:
        try:
            candidate = space.suggest(optuna.trial.FixedTrial(params), len(search.index.classes))
            card = student_card(candidate.spec, search.index.classes, search.config.data.fit)
            measured.append((timer.time(candidate.spec, card, search.config.seed)[0].p90_lower_ms, params))
        except _UNFIT:  # its trial says so
            measured.append((0.0, params))
    return [params for _, params in sorted(measured, key=lambda m: -m[0])]


def _untried(study: optuna.Study, sweep: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In their order; one whose trial a killed process left is among them again."""
    trials = [t for t in study.get_trials(deepcopy=False) if _REAPED not in t.user_attrs]
    tried = [t.system_attrs.get("fixed_params", t.params) for t in trials]
    return [params for params in sweep if params not in tried]


def _waiting(study: optuna.Study) -> bool:
    return bool(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


def summary(study: optuna.Study, config: BuildConfig) -> dict[str, Any]:
    """Counts, and a row for each trial that was measured."""
    done = [t for t in study.trials if t.state in _DONE]
    trained = [t for t in done if t.state == TrialState.COMPLETE]
    rows = [{"trial": t.number, "state": t.state.name.lower(), **t.user_attrs} for t in done]
    return {
        "study": study.study_name,
        "asked": sum(_REAPED not in t.user_attrs and t.state != TrialState.WAITING for t in study.trials),
        "rejected_untrained": sum(t.state == TrialState.PRUNED for t in done),
        "trained": len({t.user_attrs["training"] for t in trained}),
        "over_limit_trained": sum(t.user_attrs[_CONSTRAINT] > 0 for t in trained),
        "limit_ms": config.latency.limit_ms,
        "trials": rows,
    }


def _evaluate(
    study: optuna.Study, trial: optuna.Trial, search: Search, space: SearchSpace, timer: CandidateTimer
) -> None:
    began = time.perf_counter()
    limit_ms = search.config.latency.limit_ms
    try:
        candidate = space.suggest(trial, len(search.index.classes))
        shape = profile(candidate.spec)
        card = student_card(candidate.spec, search.index.classes, search.config.data.fit)
        timings = timer.time(candidate.spec, card, search.config.seed)
    except _UNFIT as error:
        _pass_over(study, trial, error)
        search.say(f"trial {trial.number}: cannot be built or timed: {error}")
        return
    best = timings[0]
    over = min(t.p90_lower_ms for t in timings) - limit_ms
    trial.set_constraint(_CONSTRAINT, over)
    measure_s = round(time.perf_counter() - began, 3)
    facts = {
        "hash": candidate.spec.hash,
        "input_size": candidate.spec.input_size,
        "params": shape.params,
        "macs": shape.macs,
        "latency_ms": best.p90_ms,
        "form": best.form,
        "timings": [asdict(t) for t in timings],
        _CONSTRAINT: over,
        "measure_s": measure_s,
        "spec": candidate.spec.document(),
        "hyper": candidate.hyper.as_dict(),
    }
    for name, value in facts.items():
        trial.set_user_attr(name, value)
    head = f"trial {trial.number}: {best.p90_ms:.2f} ms {best.form}, {shape.params / 1e3:.0f} k parameters"
    if over > 0:
        study.tell(trial, state=TrialState.PRUNED)
        search.say(f"{head}: over {limit_ms:g} ms, rejected untrained in {measure_s:.1f} s")
        return
    try:
        key, f1 = _trained(candidate, search, trial.params)
    except OutOfMemory as error:
        _pass_over(study, trial, error)
        search.say(f"{head}: passed over: {error}")
        return
    trial.set_user_attr("training", key)
    trial.set_user_attr("f1_macro", f1)
    study.tell(trial, [f1, best.p90_ms, shape.params])
    search.say(f"{head}: F1 {f1:.4f}, trained in {time.perf_counter() - began - measure_s:.0f} s")


def _pass_over(study: optuna.Study, trial: optuna.Trial, error: Exception) -> None:
    trial.set_user_attr("error", str(error))
    study.tell(trial, state=TrialState.FAIL)


def _trained(candidate: Candidate, search: Search, params: dict[str, Any]) -> tuple[str, float]:
    """(key, macro F1 on val of the best epoch), from the record where the same was trained before."""
    what = [candidate.spec.hash, candidate.spec.input_size, candidate.hyper.as_dict(), search.training]
    key = canonical_hash(what)
    record = search.folder / "trained" / f"{key}.json"
    if record.is_file():
        return key, json.loads(record.read_text())["f1_macro"]
    config, hyper = search.config, candidate.hyper
    arrays = _subset(search.arrays_for(candidate.spec), config.search.subset, config.seed)
    learnt = is_pretrained(candidate.spec, config.student.weights)
    recipe = Recipe(
        config.search.epochs,
        hyper.optimizer,
        hyper.learning_rate,
        hyper.batch,
        Augment(n_select=hyper.n_select),
        balance=config.data.balance,
        pretrained=learnt,
        fit_classifier=learnt,
        ema=candidate.spec.network is not None,
        reduced=bf16_pays(large=False),
    )
    with training_bar("search: a candidate") as on_step:
        result = fit(
            search.begin(candidate.spec), arrays, recipe, config.seed, len(search.index.classes), on_step=on_step
        )
    if result.diverged:
        search.say(f"a candidate's training ended early: {result.diverged}")
    record.parent.mkdir(exist_ok=True)
    write_json(
        record,
        {
            "f1_macro": result.best.f1_macro,
            "fit": result.record(),
            "space": search.space.hash,
            "training": search.training,
            "params": params,
        },
    )
    return key, result.best.f1_macro


def _subset(arrays: Arrays, share: float, seed: int) -> Arrays:
    """So much of each class of the training images, one at the least; validation stays whole."""
    if share >= 1:
        return arrays
    rng, labels = np.random.default_rng(seed), arrays.train_labels
    mixed = [rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    part = np.sort(np.concatenate([rows[: max(1, round(share * len(rows)))] for rows in mixed]))
    return replace(arrays, train=Rows(arrays.train, part), train_labels=labels[part])


def _budget_used(study: optuna.Study, config: BuildConfig, sweep: list[dict[str, Any]] | None) -> str | None:
    """Why the search is over, or None. Time counts over all sessions of the study. sweep: all that are to be tried."""
    trials = [t for t in study.trials if t.state.is_finished() and _REAPED not in t.user_attrs]
    trained = {t.user_attrs["training"] for t in trials if t.state == TrialState.COMPLETE}
    spent = sum((t.duration or timedelta() for t in trials), timedelta())
    if len(trained) >= config.search.trials:
        return f"{len(trained)} candidates trained (search.trials)"
    if sweep is not None and not _waiting(study) and not _untried(study, sweep):
        return f"all {len(sweep)} combinations tried (search.sampler)"
    if len(trials) >= config.search.max_asked:
        return f"{len(trials)} candidates asked for (search.max_asked)"
    if spent >= timedelta(minutes=config.search.max_minutes):
        return f"{spent.total_seconds() / 60:.1f} minutes spent (search.max_minutes)"
    return None


def _open_study(search: Search) -> optuna.Study:
    import sqlalchemy

    search.folder.mkdir(parents=True, exist_ok=True)
    quiet_optuna()
    logging.getLogger("alembic").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    url = search.config.search.storage or f"sqlite:///{search.folder / 'study.db'}"
    try:
        shown = sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)
        storage = optuna.storages.RDBStorage(url)
        return optuna.create_study(
            study_name=search.study_name,
            storage=storage,
            directions=["maximize", "minimize", "minimize"],
            load_if_exists=True,
        )
    except sqlalchemy.exc.ArgumentError as error:
        raise PipelineError("search.storage: no database URL; expected one like sqlite:///study.db") from error
    except (sqlalchemy.exc.OperationalError, ImportError) as error:
        reason = str(getattr(error, "orig", error)).strip().splitlines()[0]
        raise EnvironmentProblem(f"search.storage: {shown}: cannot be opened: {reason}") from error


def quiet_optuna() -> None:
    """Its own lines about studies and trials; ours say more."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _reap(study: optuna.Study, worker: str) -> None:
    """Trials that a killed process of this run left RUNNING; the next trial draws the same again."""
    for left in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if left.user_attrs.get("worker", worker) == worker:
            trial = optuna.trial.Trial(study, left._trial_id)
            trial.set_user_attr(_REAPED, True)
            study.tell(trial, state=TrialState.FAIL)


def _carry_over(study: optuna.Study, search: Search) -> None:
    """A new study (another limit, host or runtime) begins with what was trained: timed again, not trained again."""
    if study.trials:
        return
    for record in sorted((search.folder / "trained").glob("*.json"), key=lambda p: p.stat().st_mtime_ns):
        known = json.loads(record.read_text())
        if known["space"] == search.space.hash and known["training"] == search.training:
            study.enqueue_trial(known["params"])


def nearest_miss(result: dict[str, Any]) -> str:
    """For a search in which nothing kept the limit: what came nearest."""
    rows: list[dict[str, Any]] = [r for r in result["trials"] if "latency_ms" in r]
    if not rows:
        return "no candidate could be measured"
    near = min(rows, key=lambda r: r["latency_ms"])
    return (
        f"the nearest of {len(rows)} measured candidates takes {near['latency_ms']:.3f} ms ({near['form']}, trial "
        f"{near['trial']}, {near['params']} parameters, {near['macs'] / 1e6:.0f} MMAC, {near['input_size']} px) "
        f"against a limit of {result['limit_ms']:g} ms"
    )
