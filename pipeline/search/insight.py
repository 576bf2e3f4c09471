"""What a study teaches of its parameters: how much each objective hangs on each, and where the good candidates lie."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial

from pipeline.study import DETAILS, quiet_optuna

_TOP = 0.2
"""Share of the trials that counts as good: PED-ANOVA wants five at least (its documentation), so 25 trials in all."""
_PRIOR = 0.1
"""Optuna 5 smooths a categorical parameter by its prior weight of 1 over the number of different values seen, however
often they were seen: where all of 60 good trials have one of three values, its density there comes out as 0.6, and a
range that matters far less comes first. It takes the weight as an attribute only."""
LEAST = 10
"""Trials under which importances say nothing."""
_HELPS = 3


def measured(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """All whose latency is known: the rejected ones too, which Optuna's importances leave out."""
    return [t for t in trials if t.state.is_finished() and "latency_ms" in t.user_attrs]


def trained(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Each training once; those that were stopped early too, for that they are no good is known as well."""
    found = [t for t in trials if t.state.is_finished() and "f1_by_epoch" in t.user_attrs]
    return list({t.user_attrs["training"]: t for t in found}.values())


def importances(trials: Sequence[FrozenTrial], lower_is_better: Callable[[FrozenTrial], float]) -> dict[str, float]:
    """Share of each parameter in what makes the best fifth the best, largest first (PED-ANOVA; Watanabe et al., IJCAI
    2023). Empty where the trials are too few to tell."""
    if len(trials) < LEAST:
        return {}
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances  # these import scikit-learn

    quiet_optuna()
    study = optuna.create_study()
    study.add_trials(
        optuna.create_trial(params=t.params, distributions=t.distributions, value=lower_is_better(t)) for t in trials
    )
    evaluator = PedAnovaImportanceEvaluator(target_quantile=max(_TOP, 5 / len(trials)))
    evaluator._prior_weight = _PRIOR
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = get_param_importances(study, evaluator=evaluator)
    return {k: v for k, v in found.items() if math.isfinite(v)}


def importances_by_objective(trials: Sequence[FrozenTrial]) -> dict[str, dict[str, float]]:
    """Objective -> parameter -> its share. Latency and parameters are known of the rejected ones too; only F1 needs a
    training."""
    timed, learnt = measured(trials), trained(trials)
    return {name: importances(learnt if of is loss_of else timed, of) for name, of in OBJECTIVES.items()}


def latency_of(trial: FrozenTrial) -> float:
    return float(trial.user_attrs["latency_ms"])


def loss_of(trial: FrozenTrial) -> float:
    return -float(trial.user_attrs["f1_macro"])


def params_of(trial: FrozenTrial) -> float:
    return float(trial.user_attrs[DETAILS]["params"])


OBJECTIVES = {"F1": loss_of, "latency": latency_of, "parameters": params_of}


def best_share(
    trials: Sequence[FrozenTrial], lower_is_better: Callable[[FrozenTrial], float], share: float = _TOP, least: int = 5
) -> list[FrozenTrial]:
    return sorted(trials, key=lower_is_better)[: max(least, math.ceil(share * len(trials)))]


def distributions(trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
    return {name: d for t in trials for name, d in t.distributions.items()}


def told_region(name: str, trials: Sequence[FrozenTrial]) -> str:
    """Where these have a parameter, for people: `32..48` or `LCBlock (4 of 5)`."""
    values = [t.params[name] for t in trials if name in t.params]
    if not values:
        return "not drawn"
    if isinstance(distributions(trials)[name], CategoricalDistribution):
        counts = Counter(values)
        return ", ".join(f"{v} ({n} of {len(values)})" for v, n in counts.most_common(2))
    return f"{_short(min(values))}..{_short(max(values))}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def what_helps(trials: Sequence[FrozenTrial]) -> str:
    """For a space of which nothing keeps the limits: what the limit that most are over hangs on, and where those that
    come nearest to it are."""
    known = measured(trials)
    over = Counter(name for t in known for name, share in t.user_attrs["over_limit"].items() if share > 0)
    limit = over.most_common(1)[0][0] if over else "latency"

    def excess(trial: FrozenTrial) -> float:
        return float(trial.user_attrs["over_limit"][limit])

    found = importances(known, excess)
    if not found:
        return "smaller networks or inputs (search.space, search.input_sizes), or a higher limit"
    nearest = best_share(known, excess)
    most = [f"{name} ({share:.0%}; the nearest have {told_region(name, nearest)})" for name, share in found.items()]
    return (
        f"{limit} hangs most on {', '.join(most[:_HELPS])}: give the space smaller values there (search.values), "
        "smaller search.input_sizes, or raise the limit"
    )
