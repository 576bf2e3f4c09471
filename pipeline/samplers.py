"""Samplers of Optuna by name, seeded so that a study that was interrupted goes on as if it had not been."""

from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.search_space import intersection_search_space
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from models.language import canonical_hash

STARTUP = 10
"""Trials before a sampler learns: TPE's own default."""
_LEARNING = ("tpe", "gp", "sweep")
"""The others see only trials that are COMPLETE."""
_MOST_TRAINED, _MOST_REJECTED = 150, 75
"""The time of a Gaussian process grows with the cube of what it knows: the latest, and the nearest misses."""


def sampler(name: str, flat: bool, *seeds: int | str) -> BaseSampler:
    """flat: every trial has every parameter, so that one joint model serves."""
    seed = int(canonical_hash(list(seeds)), 16) % 2**32
    if name == "gp":
        return AllMeasured(seed)
    if name == "nsga2":
        return NSGAIISampler(seed=seed, population_size=STARTUP)
    if name == "nsga3":
        return NSGAIIISampler(seed=seed, population_size=STARTUP)
    if name in ("random", "sweep"):
        return RandomSampler(seed=seed)
    return TPESampler(multivariate=True, group=not flat, seed=seed, n_startup_trials=STARTUP)


def warning(name: str) -> str | None:
    if name in _LEARNING:
        return None
    return (
        f"search.sampler: {name} sees only what was trained: it learns nothing from candidates that were rejected for "
        "their latency, and draws there again; tpe and gp learn from them"
    )


class AllMeasured(BaseSampler):
    """Optuna's Gaussian processes of F1 and latency, which read only COMPLETE trials, shown all that were measured.

    A rejected candidate stands among them with its latency, the shares over its limits as constraints, and the median
    F1, for of that nothing is known; one that was stopped with the F1 that it had. Parameters are left to their limit:
    a third objective costs Optuna ten times the time.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._independent = RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        measured = _measured(study)
        if len(measured) < STARTUP or not any("f1_macro" in t.user_attrs for t in measured):
            return {}
        return {k: d for k, d in intersection_search_space(measured).items() if not d.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        measured = _measured(study)
        trained = [t for t in measured if "f1_macro" in t.user_attrs][-_MOST_TRAINED:]
        rejected = sorted((t for t in measured if "f1_macro" not in t.user_attrs), key=_excess)[:_MOST_REJECTED]
        middle = float(np.median([t.user_attrs["f1_macro"] for t in trained]))
        shown = optuna.create_study(
            directions=["maximize", "minimize"], sampler=GPSampler(seed=self._seed, n_startup_trials=0)
        )
        shown.add_trials(
            optuna.create_trial(
                params=t.params,
                distributions=t.distributions,
                values=[t.user_attrs.get("f1_macro", middle), t.user_attrs["latency_ms"]],
                constraints=dict(t.constraints),
            )
            for t in trained + rejected
        )
        return dict(shown.ask(fixed_distributions=search_space).params)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._independent.sample_independent(study, trial, param_name, param_distribution)


def _measured(study: Study) -> list[FrozenTrial]:
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return [t for t in done if "latency_ms" in t.user_attrs]


def _excess(trial: FrozenTrial) -> float:
    return max(trial.user_attrs["over_limit"].values())
