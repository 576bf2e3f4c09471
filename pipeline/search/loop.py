"""The loop of a search: what is tried first, candidate after candidate until the budget is used, and why it is over."""

import time
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import check_distribution_compatibility
from optuna.trial import FrozenTrial, TrialState

from latency.errors import LatencyError
from models.language import SpecError, canonical_hash
from pipeline.errors import PipelineError
from pipeline.files import read_record
from pipeline.search.basis import Search
from pipeline.search.insight import what_helps
from pipeline.search.limits import limits_of
from pipeline.search.measured import Timer, Timing
from pipeline.search.samplers import warning
from pipeline.search.spaces import check_space
from pipeline.search.tally import (
    REJECTED,
    STOPPED,
    TRAINED,
    Tally,
    all_at_work,
    fate,
    nearest_miss,
    rows_of,
    summary,
    used_up,
)
from pipeline.search.trial import LOST, UNFIT, evaluate, no_timing, timed
from pipeline.study import (
    DETAILS,
    FREE,
    agree,
    alive,
    bring_back,
    foreign,
    is_last_try,
    known_params,
    one_at_a_time,
    own_trials,
    take_up,
    take_up_lost,
    try_set_aside,
)

_WAIT_S = 1.0
_ROUNDING = 1e-6
_ALL_BUT = 1.03
"""A candidate within this factor of the limit counts as keeping it; `select` looks again."""
_ROOM = 0.8
"""A sweep trains one candidate that takes at most this share of the limit, if there is one. On an unsteady host the
gate's upper bound can be 1.4 times the file's p90 at rest, and the run then falls back on this candidate."""
_HINT_AFTER = 30
"""Rejects without a single candidate that keeps the limits, after which it is said what would help."""


def run_search(search: Search, timer: Timer) -> dict[str, Any]:
    """Go on with the study until its budget is used; the summary and all trials. Raises PipelineError."""
    study = prepare(search, timer)
    return conclude(search, study, work(search, study, timer))


def conclude(search: Search, study: optuna.Study, reason: str) -> dict[str, Any]:
    """Say why it is over, and keep what others of a shared study trained, for a search under other limits."""
    trials = own_trials(study)
    search.say(f"search ends: {reason}{nothing_fits(trials, search)}")
    for t in trials:
        if fate(t) == TRAINED and _follows(t, search):
            search.trainer.keep(t.user_attrs["training"], t.params, t.user_attrs["f1_by_epoch"])
    return summary(study, search.config)


def prepare(search: Search, timer: Timer) -> optuna.Study:
    """What is done once, before the first worker: the study, and what is to be tried before anything is drawn."""
    check_space(search.space, search.config)
    if unfit := warning(search.config.search.sampler):
        search.say(unfit)
    study = search.open()
    take_up(study, search.worker, alone=search.config.search.storage is None)
    _refuse_edited(study, search)
    _refuse_other_choices(study, search)
    wanted = list(search.config.search.start)
    if search.config.search.sampler == "sweep":
        wanted += _slowest_first(search, timer)
    planned = [(params, dict[str, Any]()) for params in wanted] + _carried_over(search)
    # What could not be timed because the target was out of reach is tried again.
    tried = [known_params(t) for t in own_trials(study) if t.user_attrs.get("error_kind") != LatencyError.__name__]
    for params, attrs in planned:
        if not any(params.items() <= known.items() for known in tried):
            study.enqueue_trial(params, user_attrs=attrs)
            tried.append(params)
    return study


def _refuse_edited(study: optuna.Study, search: Search) -> None:
    """Check that what the study says of trained candidates follows from their parameters and from the records of their
    trainings. Raises PipelineError."""

    def edited(number: int, told: str) -> PipelineError:
        return PipelineError(
            f"search: trial {number} of the study {told}: the database was edited. Remove "
            f"{search.folder / 'study.db'} and search again; measurements and trainings are kept"
        )

    for trial in own_trials(study):
        if fate(trial) not in (TRAINED, STOPPED):
            continue
        if not _follows(trial, search):
            raise edited(trial.number, "has a training or an architecture that is not that of its parameters")
        if fate(trial) == STOPPED:  # of which no record is kept
            continue
        known, said = search.trainer.known(trial.user_attrs["training"]), trial.user_attrs["f1_macro"]
        if known is None and search.config.search.storage is None:
            raise edited(trial.number, f"says F1 {said:.4f}, and there is no whole record of its training")
        if known and abs(max(known) - said) > _ROUNDING:
            raise edited(trial.number, f"says F1 {said:.4f}, the record of its training {max(known):.4f}")


def _refuse_other_choices(study: optuna.Study, search: Search) -> None:
    """Optuna draws no parameter of which a trial of the study has other choices, so one foreign trial would let every
    candidate fail. Raises PipelineError."""
    others = [t for t in study.get_trials(deepcopy=False) if foreign(t) and t.distributions]
    ours = {n: d for draw in search.draws for n, d in draw.distributions.items()} if others else {}
    for trial in others:
        for name, distribution in trial.distributions.items():
            try:
                check_distribution_compatibility(ours.get(name, distribution), distribution)
            except ValueError as error:
                raise PipelineError(
                    f"search: trial {trial.number} of the study was added by another program and has other choices of "
                    f"{name}: no candidate can be drawn beside it. Remove {search.folder / 'study.db'}, or give "
                    "another search.study, and search again; measurements and trainings are kept"
                ) from error


def _follows(trial: FrozenTrial, search: Search) -> bool:
    """Whether a trial's training and network are those of its parameters."""
    try:
        candidate = search.space.suggest(optuna.trial.FixedTrial(trial.params), len(search.index.classes))
    except (SpecError, ValueError):
        return False
    details = trial.user_attrs[DETAILS]
    said = [trial.user_attrs["training"], details["spec"], details["hyper"]]
    right = [search.trainer.key(candidate), candidate.spec.document(), candidate.hyper.as_dict()]
    return canonical_hash(said) == canonical_hash(right)


def work(search: Search, study: optuna.Study, timer: Timer) -> str:
    """Candidate after candidate, as one of the study's workers; why it is over."""
    agree(study, search.meaning)  # again: two that began at once may both have been the first
    while (reason := step(search, study, timer)) is None:
        pass
    return reason


def step(search: Search, study: optuna.Study, timer: Timer) -> str | None:
    """One candidate, or a moment's wait for those at work; why the search is over, if it is."""
    config, sweeps = search.config, search.config.search.sampler == "sweep"
    take_up_lost(study)
    trials = own_trials(study)
    tally = Tally.of(trials, config.latency.limit_ms)
    waiting = [t for t in trials if t.state == TrialState.WAITING]
    reason = used_up(tally, config)
    if not reason and sweeps and not waiting and not tally.at_work:
        reason = f"all {tally.asked} combinations tried (search.sampler)"
    if reason and not waiting and tally.minutes < config.search.max_minutes and (count := try_set_aside(study)):
        search.say(f"search: {count} candidates whose process was ended again and again are tried a last time")
        waiting = [t for t in own_trials(study) if t.state == TrialState.WAITING]
    if reason and not any(is_last_try(t) for t in waiting):
        return reason
    if not waiting and (count := _bring_back(study, trials)):
        search.say(f"search: {count} rejected candidates keep the limits by what is known now, and are trained")
    elif all_at_work(tally, config) or (sweeps and not waiting):
        time.sleep(_WAIT_S)
        return None
    if tally.rejected and tally.rejected % _HINT_AFTER == 0 and (hint := nothing_fits(trials, search)):
        search.say(f"search goes on{hint}")  # early, for it takes long to find out by the budget
    study.sampler = search.sampler(tally.asked)
    with one_at_a_time(search.url):
        trial = study.ask()
    with alive(study, trial, search.worker):
        evaluate(study, trial, search, timer, trials)
    return None


def _bring_back(study: optuna.Study, trials: Sequence[FrozenTrial]) -> int:
    """Enqueue what was rejected while the host was thought to be faster than it is at rest; how many there are."""
    found = [t for t in trials if fate(t) == REJECTED and max(t.user_attrs["over_limit"].values()) <= 0]
    for trial in found:
        bring_back(study, trial)
    return len(found)


def _carried_over(search: Search) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Of studies of another limit, host or runtime in this folder, what was trained: timed again, not trained again.
    Where it was found under other limits it uses up nothing of the budget, for these ask for other candidates."""
    records = sorted((search.folder / "trained").glob("*.json"), key=lambda p: p.stat().st_mtime_ns)
    known = [k for r in records if (k := read_record(r))]
    limits = limits_of(search.config)
    return [
        (k["params"], {FREE: True} if k.get("limits", limits) != limits else {})
        for k in known
        if k.get("space") == search.space.hash and k["training"] == search.training
    ]


def _slowest_first(search: Search, timer: Timer) -> list[dict[str, Any]]:
    """Every combination, measured: those over the limit, which cost nothing more, then the slowest of the others first,
    for more time mostly buys more F1; but the last to be trained is one with room."""
    everything = search.space.combinations()
    search.say(f"search: {len(everything)} combinations, each is measured first")
    measured: list[tuple[float, dict[str, Any]]] = []
    lost = 0
    for params in everything:
        try:
            candidate = search.space.suggest(optuna.trial.FixedTrial(params), len(search.index.classes))
            measured.append((_rank(timed(candidate, search, timer)[0], search), params))
            lost = 0
        except UNFIT as error:  # its trial says so
            measured.append((0.0, params))
            lost = lost + 1 if isinstance(error, LatencyError) else 0
            if lost == LOST:
                raise no_timing(error) from error
    ranked = sorted(measured, key=lambda m: -m[0])
    over = sum(rank > _ALL_BUT for rank, _ in ranked)
    last = over + search.config.search.trials - 1
    if last > over and (roomy := [i for i, (rank, _) in enumerate(ranked) if 0 < rank <= _ROOM]):
        ranked.insert(min(last, roomy[0]), ranked.pop(roomy[0]))
    return [params for _, params in ranked]


def _rank(timing: Timing, search: Search) -> float:
    """What is tried first: rejects, which cost nothing more, then the slowest of those that keep the limit, then near
    misses."""
    limit_ms = search.config.latency.limit_ms
    if timing.p90_lower_ms > limit_ms:
        return 2 + timing.p90_ms
    return timing.p90_ms / limit_ms if timing.p90_ms <= _ALL_BUT * limit_ms else -timing.p90_ms


def nothing_fits(trials: Sequence[FrozenTrial], search: Search) -> str:
    """Where no candidate has kept the limits so far: the nearest miss, and what would help; else nothing."""
    tally = Tally.of(trials, search.config.latency.limit_ms)
    if not tally.rejected or tally.trained + tally.stopped + tally.in_training:
        return ""
    near = nearest_miss(rows_of(trials), search.config.latency.limit_ms)
    return f"; none of {tally.rejected} candidates keeps the limits: {near}; {what_helps(trials)}"
