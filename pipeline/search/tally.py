"""How a study stands: its counts, its best, whether its budget is used, and what came nearest where nothing fits."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from pipeline.config import BuildConfig
from pipeline.search.front import hypervolume
from pipeline.search.limits import told_over
from pipeline.study import DETAILS, FREE, own_trials

TRAINED, REJECTED, STOPPED = "trained", "rejected", "stopped"


def fate(trial: FrozenTrial) -> str | None:
    """What became of a trial: trained to its end, rejected untrained, stopped while it was trained; None for one that
    is not finished or could not be built."""
    if trial.state == TrialState.COMPLETE:
        return TRAINED
    if trial.state == TrialState.PRUNED:
        return STOPPED if "training" in trial.user_attrs else REJECTED
    return None


@dataclass(frozen=True)
class Tally:
    """trained, stopped: different trainings, for a candidate may be drawn twice. free: how many of both the budget does
    not count, since another search made them. at_work: trials under way, of which
    in_training are past their measurement. best: (F1, ms, trial) of the best that keeps the limit."""

    asked: int
    rejected: int
    stopped: int
    trained: int
    free: int
    failed: int
    at_work: int
    in_training: int
    best: tuple[float, float, int] | None
    hypervolume: float
    minutes: float

    @classmethod
    def of(cls, trials: Sequence[FrozenTrial], limit_ms: float) -> "Tally":
        """trials: `pipeline.study.own_trials`."""
        trials = [t for t in trials if t.state != TrialState.WAITING]
        by_fate: dict[str | None, list[FrozenTrial]] = {TRAINED: [], REJECTED: [], STOPPED: [], None: []}
        for t in trials:
            by_fate[fate(t)].append(t)
        curves = by_fate[TRAINED] + by_fate[STOPPED]
        running = [t for t in trials if t.state == TrialState.RUNNING]
        points = [(t.user_attrs["f1_macro"], t.user_attrs["latency_ms"], t.number) for t in by_fate[TRAINED]]
        kept = [p for p in points if p[1] <= limit_ms]
        return cls(
            asked=len(trials),
            rejected=len(by_fate[REJECTED]),
            stopped=len({t.user_attrs["training"] for t in by_fate[STOPPED]}),
            trained=len({t.user_attrs["training"] for t in by_fate[TRAINED]}),
            free=len({t.user_attrs["training"] for t in curves if FREE in t.user_attrs}),
            failed=sum(t.state == TrialState.FAIL for t in trials),
            at_work=len(running),
            in_training=len({t.user_attrs["training"] for t in running if "training" in t.user_attrs}),
            best=max(kept, key=lambda p: (p[0], -p[1]), default=None),
            hypervolume=hypervolume([p[:2] for p in points], limit_ms),
            minutes=_minutes(trials),
        )

    @property
    def judged(self) -> int:
        """Trainings that the budget counts."""
        return self.trained + self.stopped - self.free

    @property
    def drawn(self) -> int:
        """Candidates that the budget counts."""
        return self.asked - self.free

    @property
    def told_best(self) -> str:
        return (
            f"best F1 {self.best[0]:.4f} at {self.best[1]:.2f} ms (trial {self.best[2]})" if self.best else "none yet"
        )

    def told(self, config: BuildConfig) -> str:
        search = config.search
        left = max(0.0, search.max_minutes - self.minutes)
        failed = f"{self.failed} failed, " if self.failed else ""
        return (
            f"{self.asked} asked, {failed}{self.rejected} rejected, {self.stopped} stopped, {self.trained} of "
            f"{search.trials + self.free} trained; {self.told_best}; hypervolume {self.hypervolume:.4f}; "
            f"{left:.0f} of {search.max_minutes:g} min left"
        )


def _minutes(trials: list[FrozenTrial]) -> float:
    """In which at least one was at work: what several workers do side by side counts once. What a killed worker left,
    and nobody tries again, ended when that was found, maybe on another day: it does not count."""
    now = datetime.now()
    spans = sorted(
        (t.datetime_start, t.datetime_complete or now)
        for t in trials
        if t.datetime_start and (t.state != TrialState.FAIL or "error_kind" in t.user_attrs)
    )
    total, until = 0.0, datetime.min
    for start, end in spans:
        total += max(0.0, (end - max(start, until)).total_seconds())
        until = max(until, end)
    return total / 60


def used_up(tally: Tally, config: BuildConfig) -> str | None:
    """Why the search is over, or None."""
    search = config.search
    if tally.judged >= search.trials:
        free = f", {tally.free} of them under other limits" if tally.free else ""
        return f"{tally.trained} candidates trained, {tally.stopped} stopped early{free} (search.trials)"
    if tally.drawn - tally.at_work >= search.max_asked:
        return f"{tally.asked} candidates asked for (search.max_asked)"
    if tally.minutes >= search.max_minutes:
        return f"{tally.minutes:.1f} minutes spent (search.max_minutes)"
    return None


def all_at_work(tally: Tally, config: BuildConfig) -> bool:
    """Whether those under way may be the last: a further worker waits for what becomes of them. (Two that look at the
    same moment may still begin one too many.)"""
    search = config.search
    enough = tally.judged + tally.at_work >= search.trials
    return tally.at_work > 0 and (enough or tally.drawn >= search.max_asked)


def rows_of(trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    """A row for each that was measured."""
    return [
        {"trial": t.number, "state": became, "parameters": t.params, **attrs.pop(DETAILS), **attrs}
        for t in trials
        if (became := fate(t)) is not None and (attrs := dict(t.user_attrs))
    ]


def summary(study: optuna.Study, config: BuildConfig) -> dict[str, Any]:
    """Counts, and the rows."""
    trials = own_trials(study)
    tally, rows = Tally.of(trials, config.latency.limit_ms), rows_of(trials)
    return {
        "study": study.study_name,
        "asked": tally.asked,
        "rejected_untrained": tally.rejected,
        "stopped_early": tally.stopped,
        "trained": tally.trained,
        "failed": tally.failed,
        "best_f1_under_the_limit": tally.best and tally.best[0],
        "over_limit_trained": sum(r["state"] != REJECTED and max(r["over_limit"].values()) > 0 for r in rows),
        "hypervolume": tally.hypervolume,
        "limit_ms": config.latency.limit_ms,
        "trials": rows,
    }


def nearest_miss(rows: list[dict[str, Any]], limit_ms: float) -> str:
    """For a search in which nothing kept the limits: what came nearest."""
    if not rows:
        return "no candidate could be measured"
    near = min(rows, key=lambda r: max(r["over_limit"].values()))
    others = told_over({k: v for k, v in near["over_limit"].items() if k != "latency"})
    return (
        f"the nearest of {len(rows)} measured candidates takes {near['latency_ms']:.3f} ms ({near['form']}, trial "
        f"{near['trial']}, {near['params']} parameters, {near['macs'] / 1e6:.0f} MMAC, {near['input_size']} px) "
        f"against a limit of {limit_ms:g} ms{others and f'; {others}'}"
    )
