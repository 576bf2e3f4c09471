"""One candidate of a search: measured, rejected or trained, told.

Three objectives: macro F1 up, latency down, parameters down. A candidate that is over a limit (latency by its lower
bound) sets its constraints and is told PRUNED, untrained; the sampler learns from it all the same. One that is hopeless
among those that are as fast ends early and is told PRUNED too. What was measured and what was trained is kept in
records beside Optuna's database, so a resumed, changed or moved study repeats neither.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from export.errors import ExportError
from latency.errors import LatencyError
from models.build import profile
from models.language import SpecError
from models.space import Candidate
from pipeline.errors import EnvironmentProblem, OutOfMemory
from pipeline.search.basis import Search
from pipeline.search.dashboard import attach
from pipeline.search.limits import best_form, told_over
from pipeline.search.measured import Timer, Timing
from pipeline.search.stopping import Curve, hopeless
from pipeline.search.tally import Tally
from pipeline.show.live import best_so_far
from pipeline.study import DETAILS, own_trials
from pipeline.training.checkpoint import student_card
from pipeline.training.progress import Epoch

UNFIT = (SpecError, ExportError, LatencyError)
"""What a candidate may be that cannot be built, exported or timed; the search goes on without it."""
LOST = 5
"""Candidates in a row that cannot be timed: then it is not theirs."""
_TOLD = 10
"""Trials after which it is told how the search stands, though none of them was trained."""


def timed(candidate: Candidate, search: Search, timer: Timer) -> list[Timing]:
    """In every form, the fastest first. Raises one of UNFIT."""
    card = student_card(candidate.spec, search.index.classes, search.config.data.fit)
    return timer.time(candidate.spec, card, search.config.seed)


def no_timing(error: Exception) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"search: the last {LOST} candidates could not be timed ({error}): mend what times, then search on"
    )


def told(study: optuna.Study, search: Search) -> str:
    return Tally.of(own_trials(study), search.config.latency.limit_ms).told(search.config)


def evaluate(
    study: optuna.Study, trial: optuna.Trial, search: Search, timer: Timer, trials: Sequence[FrozenTrial]
) -> None:
    """Suggest, measure, reject or train, tell. trials: of the study, so far."""
    earlier = [t for t in trials if t.state.is_finished()]
    measured = [t for t in earlier if t.state != TrialState.FAIL]
    try:
        candidate = search.space.suggest(trial, len(search.index.classes))
        began, spec = time.perf_counter(), candidate.spec
        found_out = (t.user_attrs[DETAILS] for t in measured)
        known = next((d for d in found_out if d.get("graph") == [spec.hash, spec.input_size]), None)
        if known and (earlier_timings := _timings(known)):
            params, macs, timings = known["params"], known["macs"], earlier_timings
        else:
            shape = profile(spec)
            params, macs = shape.params, shape.macs
            timings = timed(candidate, search, timer)
    except UNFIT as error:
        _pass_over(study, trial, error)
        search.say(f"trial {trial.number}: cannot be built or timed: {error}")
        last = [type(error).__name__, *(t.user_attrs.get("error_kind") for t in reversed(earlier))][:LOST]
        if last == [LatencyError.__name__] * LOST:
            raise no_timing(error) from error
        return
    best, over = best_form(search.config, timings, params)
    measure_s = round(time.perf_counter() - began, 3)
    details = {
        "graph": [spec.hash, spec.input_size],
        "input_size": spec.input_size,
        "params": params,
        "macs": macs,
        "size_bytes": best.size_bytes,
        "peak_mib": best.peak_mib,
        "form": best.form,
        "timings": [asdict(t) for t in timings],
        "measure_s": measure_s,
        "spec": spec.document(),
        "hyper": candidate.hyper.as_dict(),
    }
    # Each attribute is a transaction of its own, so what is for programs is one.
    facts = {"latency_ms": best.p90_ms, "over_limit": over, DETAILS: details}
    for name, share in over.items():
        trial.set_constraint(name, share)
    for name, value in facts.items():
        trial.set_user_attr(name, value)
    head = f"trial {trial.number}: {best.p90_ms:.2f} ms {best.form}, {params / 1e3:.0f} k parameters"
    if max(over.values()) > 0:
        study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
        search.say(f"{head}: {told_over(over)}, rejected untrained in {measure_s:.1f} s")
        if trial.number % _TOLD == _TOLD - 1:
            search.say(f"search: {told(study, search)}")
        return
    _judge(study, trial, candidate, search, best, measured, head)


def _timings(details: dict[str, Any]) -> list[Timing]:
    """Those of an earlier trial; none where another program wrote something else there."""
    try:
        return [Timing(**t) for t in details["timings"]]
    except TypeError:
        return []


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
            standing = Tally.of(own_trials(study), config.latency.limit_ms)
            best_so_far(standing.told_best)
            name = f"trial {trial.number}, {standing.judged + 1} of {config.search.trials}"
            result = trainer.train(candidate, name, on_epoch, trial.params)
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
        study.tell(trial, [max(f1), best.p90_ms, trial.user_attrs[DETAILS]["params"]], skip_if_finished=True)
        search.say(f"{head}: F1 {max(f1):.4f}, trained in {facts['train_s']:.0f} s")
    search.say(f"search: {told(study, search)}")


class _Hopeless(Exception):
    """Ends the training of a candidate that others, as fast, have left behind."""


def _pass_over(study: optuna.Study, trial: optuna.Trial, error: Exception) -> None:
    trial.set_user_attr("error", str(error))
    trial.set_user_attr("error_kind", type(error).__name__)
    study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
