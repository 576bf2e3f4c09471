"""Samplers: which learn from what was rejected, which say that they do not, and what the default one finds."""

import contextlib

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from models.joined import JoinedSpace
from models.language import SpecError, canonical_hash
from models.space import SearchSpace
from pipeline.search.ehvi import STARTUP, _Forecast, _mixed, draws
from pipeline.search.front import hypervolume
from pipeline.search.gaussian import Code
from pipeline.search.samplers import sampler, warning
from pipeline.study import DETAILS, MEASURED, quiet_optuna

LIMIT_MS = 0.5
TOLD = {name: kind() for name, kind in MEASURED.items()} | {"spec": {"backbone": []}}
X = {"x": optuna.distributions.FloatDistribution(0, 1), "y": optuna.distributions.FloatDistribution(0, 1)}


class Plane:
    """A space of two numbers, for what asks a space for draws."""

    def suggest(self, trial, classes):
        trial.suggest_float("x", 0, 1)
        trial.suggest_float("y", 0, 1)


PLANE = draws(Plane(), 0)


def tell(study, params, distributions, latency_ms, f1_by_epoch=None, stopped=False, **over):
    """A finished trial, as the search leaves it."""
    over = {"latency": latency_ms / LIMIT_MS - 1, **over}
    attrs = {"latency_ms": latency_ms, "over_limit": over, DETAILS: TOLD}
    if f1_by_epoch:
        attrs |= {"f1_by_epoch": f1_by_epoch, "f1_macro": max(f1_by_epoch), "training": canonical_hash(params)}
    values = [max(f1_by_epoch), latency_ms] if f1_by_epoch and not stopped else None
    study.add_trial(
        create_trial(
            state=TrialState.COMPLETE if values else TrialState.PRUNED,
            values=values,
            params=params,
            distributions=distributions,
            user_attrs=attrs,
            constraints=over,
        )
    )


def study_where_half_is_too_slow(trained):
    """Latency is x: all over the limit was rejected. F1 rises with y. trained: how many of those below were."""
    quiet_optuna()
    study = optuna.create_study(directions=["maximize", "minimize"])
    rng = np.random.default_rng(0)
    for _ in range(30):
        slow = float(rng.uniform(0.5, 1))
        tell(study, {"x": slow, "y": float(rng.random())}, X, slow)
    for _ in range(trained):
        x, y = float(rng.uniform(0.3, 0.5)), float(rng.random())
        tell(study, {"x": x, "y": y}, X, x, [y])
    return study


def drawn(name, study, count):
    found = []
    for i in range(count):
        study.sampler = sampler(name, lambda: PLANE, LIMIT_MS, True, 0, i)
        trial = study.ask()
        found.append((trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)))
        study.tell(trial, state=TrialState.FAIL)
    return np.array(found)


@pytest.mark.parametrize("name", ["ehvi", "tpe"])
def test_they_keep_away_from_where_candidates_were_rejected(name):
    assert warning(name) is None
    found = drawn(name, study_where_half_is_too_slow(trained=12), 12)
    assert np.mean(found[:, 0] > LIMIT_MS) <= 0.25
    assert np.mean(found[:, 1]) > 0.5  # and go where F1 is better


@pytest.mark.parametrize("name", ["gp", "nsga2", "nsga3", "random"])
def test_those_that_do_not_learn_from_rejects_say_so(name):
    assert f"search.sampler: {name} sees only what was trained" in warning(name)
    found = drawn(name, study_where_half_is_too_slow(trained=0), 24)
    assert np.mean(found[:, 0] > LIMIT_MS) > 0.25


def test_ehvi_begins_at_random_and_takes_many_trials():
    few = optuna.create_study(directions=["maximize", "minimize"])
    for i in range(STARTUP - 1):
        tell(few, {"x": i / 10, "y": 0.5}, X, i / 10 + 0.01)
    assert np.ptp(drawn("ehvi", few, 5)[:, 0]) > 0.1
    assert drawn("ehvi", study_where_half_is_too_slow(trained=400), 1).shape == (1, 2)


def test_before_some_were_trained_it_draws_at_random_among_what_keeps_the_limit():
    found = drawn("ehvi", study_where_half_is_too_slow(trained=STARTUP - 1), 24)
    assert np.mean(found[:, 0] > LIMIT_MS) <= 0.25
    assert found[:, 1].min() < 0.25  # also where F1 is bad, which only a model of it would know
    assert found[:, 1].max() > 0.75


def test_where_nothing_was_trained_yet_it_goes_where_all_limits_are_kept():
    study = optuna.create_study(directions=["maximize", "minimize"])
    rng = np.random.default_rng(0)
    for _ in range(20):  # over one limit or over the other, most of them over both
        x, y = float(rng.uniform(0.4, 1)), float(rng.uniform(0.4, 1))
        tell(study, {"x": x, "y": y}, X, x + LIMIT_MS - 0.3, size=y / 0.3 - 1)
    found = drawn("ehvi", study, 8)
    assert found.max(axis=1).mean() < 0.3


def test_every_third_trial_is_for_the_best_f1_and_the_others_for_the_front():
    study = optuna.create_study(directions=["maximize", "minimize"])
    rng = np.random.default_rng(0)
    for x, y in rng.uniform(0, 1, (39, 2)):
        tell(study, {"x": float(x), "y": float(y)}, X, 0.1 + 0.5 * float(x), [0.5 + 0.4 * float(x)])
    found = drawn("ehvi", study, 9)[:, 0]  # each is passed over, so all stand where the first did; 39 is a third
    assert found[::3] == pytest.approx(0.8, abs=0.02)  # where the limit is
    assert np.delete(found, [0, 3, 6]).mean() < 0.7


def test_the_expected_gain_is_the_mean_gain_of_the_hypervolume():
    """Against draws of what the two models say of some points."""
    study, rng = study_where_half_is_too_slow(trained=20), np.random.default_rng(1)
    code = Code(X)
    forecast = _Forecast(study.trials, code, LIMIT_MS, rng)
    forecast.learn_f1([])
    front = [(t.user_attrs["f1_macro"], t.user_attrs["latency_ms"]) for t in study.trials if t.values]
    before = hypervolume(front, LIMIT_MS)
    best = max(f1 for f1, ms in front if ms <= LIMIT_MS)
    for x, y in ((0.2, 0.5), (0.4, 0.9), (0.48, 0.95), (0.55, 0.9)):
        rows = code([{"x": x, "y": y}])
        (log_ms, ms_sd), (f1, f1_sd) = (np.ravel(m.predict(rows)) for m in (forecast._latency, forecast._f1))
        ms_drawn, f1_drawn = np.exp(rng.normal(log_ms, ms_sd, 4000)), rng.normal(f1, f1_sd, 4000)
        pairs = list(zip(f1_drawn, ms_drawn, strict=True))
        grown = np.mean([hypervolume([*front, pair], LIMIT_MS) - before for pair in pairs])
        assert forecast.gain(rows, best_f1=False) == pytest.approx([grown], rel=0.15, abs=1e-4)
        higher = np.mean([max(0.0, f1 - best) * (ms <= LIMIT_MS) for f1, ms in pairs])
        assert forecast.gain(rows, best_f1=True) == pytest.approx([higher], rel=0.15, abs=1e-4)


def test_parameters_as_numbers():
    kinds = {
        "a": optuna.distributions.CategoricalDistribution((None, "x", 3)),
        "b": optuna.distributions.IntDistribution(10, 30, step=10),
        "c": optuna.distributions.FloatDistribution(0.01, 1.0, log=True),
    }
    code = Code(kinds)
    assert code.columns == [3, 1, 1]
    rows = code([{"a": None, "b": 20, "c": 0.1}, {"a": 3, "b": 30, "c": 1.0}, {}])
    assert rows.tolist() == [[1, 0, 0, 0.5, pytest.approx(0.5)], [0, 0, 1, 1, 1], [0, 0, 0, 0.5, 0.5]]


def test_two_workers_do_not_go_to_one_place():
    study = study_where_half_is_too_slow(trained=20)
    found = []
    assert len(study.trials) % 3 == 2
    for _ in range(2):
        study.add_trial(create_trial(state=TrialState.FAIL))  # the next two, 52 and 53, are both for the front
        study.sampler = sampler("ehvi", lambda: PLANE, LIMIT_MS, True, 0)
        trial = study.ask()
        found.append([trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)])
    assert np.abs(np.subtract(*found)).max() > 0.02


@pytest.mark.slow
def test_it_draws_in_spaces_whose_trials_have_different_parameters():
    quiet_optuna()
    space = JoinedSpace((SearchSpace.load("cpu"), SearchSpace.load("lineage")))
    study, pool = optuna.create_study(directions=["maximize", "minimize"]), draws(space, 0)
    for i, draw in enumerate(pool[:60]):
        latency_ms = 0.3 if draw.params["space"] == "cpu" else 0.7
        f1 = [0.3 + 0.01 * i] if latency_ms <= LIMIT_MS else None
        tell(study, draw.params, draw.distributions, latency_ms, f1)
    spaces = []
    for i in range(6):
        study.sampler = sampler("ehvi", lambda: pool, LIMIT_MS, False, i)
        trial = study.ask()
        space.suggest(trial, 6)
        spaces.append(trial.params["space"])
        study.tell(trial, state=TrialState.FAIL)
    assert spaces.count("cpu") >= 5


@pytest.mark.slow
def test_of_several_spaces_none_is_left_for_the_bad_luck_of_its_first_draws():
    """All of cpu keeps the limit; of pretrained the small, of which none was drawn yet, and they are far better."""
    quiet_optuna()
    space = JoinedSpace((SearchSpace.load("cpu"), SearchSpace.load("pretrained")))
    study, pool = optuna.create_study(directions=["maximize", "minimize"]), draws(space, 0)

    def found(params):
        if params["space"] == "cpu":
            return 0.3, 0.4 + 0.1 * params["cpu/learning_rate"] / 0.01
        return params["pretrained/input_size"] / 250, 0.8

    cpu = [d for d in pool if d.params["space"] == "cpu"]
    large = [d for d in pool if d.params.get("pretrained/input_size", 0) > 150]
    for draw in [*cpu[:20], *large[:4]]:
        latency_ms, f1 = found(draw.params)
        tell(study, draw.params, draw.distributions, latency_ms, [f1] if latency_ms <= LIMIT_MS else None)
    spaces = []
    for i in range(20):
        study.sampler = sampler("ehvi", lambda: pool, LIMIT_MS, False, i)
        trial = study.ask()
        space.suggest(trial, 6)
        latency_ms, f1 = found(trial.params)
        spaces.append((trial.params["space"], latency_ms <= LIMIT_MS))
        study.tell(trial, state=TrialState.FAIL)
        tell(study, trial.params, trial.distributions, latency_ms, [f1] if latency_ms <= LIMIT_MS else None)
    assert spaces.count(("pretrained", True)) >= 5


def test_what_it_breeds_is_a_draw_of_the_space():
    """It has the parameters that the space asks for, and no other, though types and spaces differ in theirs."""
    space = JoinedSpace((SearchSpace.load("cpu"), SearchSpace.load("lineage")))
    pool, rng, bred = draws(space, 0)[:300], np.random.default_rng(0), 0
    for parent in pool[:60]:
        kin = [d for d in pool if d.params["space"] == parent.params["space"]]
        child = parent
        for _ in range(5):
            child = _mixed(child, kin[int(rng.integers(len(kin)))], rng)
        asked = optuna.trial.FixedTrial(child.params)
        with contextlib.suppress(SpecError):
            space.suggest(asked, 6)
            assert asked.params == child.params
            assert asked.distributions == child.distributions
            bred += child.params != parent.params
    assert bred > 30


def test_of_one_that_was_stopped_it_reckons_what_would_have_become_of_it():
    """All after one epoch of two have half of their F1: those that were stopped there lie on the same line."""
    found = {}
    for stopped in (False, True):
        study = optuna.create_study(directions=["maximize", "minimize"])
        rng = np.random.default_rng(0)
        for i, (x, y) in enumerate(rng.uniform(0.1, 1, (30, 2))):
            early = stopped and i % 2 == 1
            tell(study, {"x": float(x), "y": float(y)}, X, 0.1, [float(y) / 2, float(y)][: 1 if early else 2], early)
        found[stopped] = drawn("ehvi", study, 2)[:, 1]
    assert found[True] == pytest.approx(found[False], abs=0.1)


def test_of_a_space_that_was_tried_out_it_draws_again():
    """Nothing new is left to propose."""
    quiet_optuna()
    study = optuna.create_study(directions=["maximize", "minimize"])
    kinds = {"x": optuna.distributions.IntDistribution(0, 11)}

    class Dozen:
        def suggest(self, trial, classes):
            trial.suggest_int("x", 0, 11)

    pool = draws(Dozen(), 0)
    for x in range(12):
        tell(study, {"x": x}, kinds, 0.1 + x / 100, [x / 100])
    study.sampler = sampler("ehvi", lambda: pool, LIMIT_MS, True, 0)
    assert 0 <= study.ask().suggest_int("x", 0, 11) < 12


@pytest.mark.slow
def test_the_front_grows_faster_than_by_chance():
    """A space of the real kind; latency and F1 are made up, and known."""
    quiet_optuna()
    space = JoinedSpace((SearchSpace.load("cpu"),))
    pool = draws(space, 0)

    def found(name, seed):
        study, points = optuna.create_study(directions=["maximize", "minimize"]), []
        for i in range(40):
            study.sampler = sampler(name, lambda: pool, LIMIT_MS, True, seed, i)
            trial = study.ask()
            space.suggest(trial, 6)
            p = trial.params
            latency_ms = 0.1 * p["width_multiple"] * (p["s1/repeat"] + p["s2/repeat"] + p["s3/repeat"] + p["s4/repeat"])
            f1 = 0.5 + 0.1 * (p["n_select"] == 0) + 0.001 * p["stem/out"] + 0.02 * (p["s2/type"] == "LCBlock")
            kept = latency_ms <= LIMIT_MS
            trial.set_user_attr("latency_ms", latency_ms)
            trial.set_user_attr("over_limit", {"latency": latency_ms / LIMIT_MS - 1})
            trial.set_user_attr(DETAILS, TOLD)
            if kept:
                trial.set_user_attr("f1_by_epoch", [f1])
                trial.set_user_attr("f1_macro", f1)
                trial.set_user_attr("training", canonical_hash(p))
                points.append((f1, latency_ms))
            study.tell(trial, [f1, latency_ms] if kept else None, state=None if kept else TrialState.PRUNED)
        return hypervolume(points, LIMIT_MS), max(f for f, _ in points), len(points)

    ours, chance = (np.array([found(name, seed) for seed in range(2)]).mean(axis=0) for name in ("ehvi", "random"))
    assert ours[0] > chance[0]
    assert ours[1] > chance[1]
    assert ours[2] > chance[2]


def test_the_same_seed_draws_the_same():
    for name in ("ehvi", "tpe", "nsga2"):
        first, second = (drawn(name, study_where_half_is_too_slow(trained=6), 2) for _ in range(2))
        assert (first == second).all()
