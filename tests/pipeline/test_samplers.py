"""Samplers: which learn from what was rejected, and which say that they do not."""

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from pipeline.samplers import STARTUP, sampler, warning
from pipeline.study import quiet_optuna

X = {"x": optuna.distributions.FloatDistribution(0, 1), "y": optuna.distributions.FloatDistribution(0, 1)}


def study_where_half_is_too_slow(trained):
    """Latency is x: all over 0.5 was rejected. F1 rises with y. trained: how many of those below were."""
    quiet_optuna()
    study = optuna.create_study(directions=["maximize", "minimize"])
    rng = np.random.default_rng(0)
    for _ in range(30):
        over = float(rng.uniform(0.5, 1))
        attrs = {"latency_ms": over, "over_limit": {"latency": over / 0.5 - 1}}
        study.add_trial(
            create_trial(
                state=TrialState.PRUNED,
                params={"x": over, "y": float(rng.random())},
                distributions=X,
                user_attrs=attrs,
                constraints={"latency": over / 0.5 - 1},
            )
        )
    for _ in range(trained):
        x, y = float(rng.uniform(0.3, 0.5)), float(rng.random())
        attrs = {"latency_ms": x, "over_limit": {"latency": x / 0.5 - 1}, "f1_macro": y}
        study.add_trial(
            create_trial(
                values=[y, x], params={"x": x, "y": y}, distributions=X, user_attrs=attrs,
                constraints={"latency": x / 0.5 - 1},
            )
        )  # fmt: skip
    return study


def drawn(name, study, count):
    found = []
    for i in range(count):
        study.sampler = sampler(name, True, 0, i)
        trial = study.ask()
        found.append((trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)))
        study.tell(trial, state=TrialState.FAIL)
    return np.array(found)


@pytest.mark.parametrize("name", ["tpe", "gp"])
def test_they_keep_away_from_where_candidates_were_rejected(name):
    assert warning(name) is None
    found = drawn(name, study_where_half_is_too_slow(trained=6), 12)
    assert np.mean(found[:, 0] > 0.5) <= 0.25
    assert np.mean(found[:, 1]) > 0.5  # and go where F1 is better


@pytest.mark.parametrize("name", ["nsga2", "nsga3", "random"])
def test_those_that_do_not_learn_from_rejects_say_so(name):
    assert f"search.sampler: {name} sees only what was trained" in warning(name)
    found = drawn(name, study_where_half_is_too_slow(trained=0), 24)
    assert np.mean(found[:, 0] > 0.5) > 0.25


def test_gp_begins_at_random_and_takes_many_trials():
    few = study_where_half_is_too_slow(trained=0)  # nothing was trained yet
    assert len(few.trials) > STARTUP
    assert np.ptp(drawn("gp", few, 5)[:, 0]) > 0.1
    many = study_where_half_is_too_slow(trained=400)
    assert drawn("gp", many, 1).shape == (1, 2)


def test_the_same_seed_draws_the_same():
    for name in ("tpe", "gp", "nsga2"):
        first, second = (drawn(name, study_where_half_is_too_slow(trained=6), 2) for _ in range(2))
        assert (first == second).all()
