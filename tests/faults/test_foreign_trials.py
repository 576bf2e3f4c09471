"""Trials that a search did not make, values that are no choice, and workers that are killed again and again."""

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from pipeline.config import load_config
from pipeline.run import report, run_one, standing
from pipeline.search.basis import open_search
from pipeline.search.tally import Tally
from pipeline.stages import open_run
from pipeline.study import DETAILS, MEASURED, foreign, own_trials, take_up, try_set_aside

TOLD = {name: kind() for name, kind in MEASURED.items()} | {"spec": {"backbone": []}}
X = {"x": CategoricalDistribution([1, 2])}
ODD = {
    "no limit": {"over_limit": {}},
    "a limit in words": {"over_limit": {"latency": "x"}},
    "a limit that is no number": {"over_limit": {"latency": float("nan")}},
    "parameters in words": {DETAILS: TOLD | {"params": "many"}},
    "an architecture that is none": {DETAILS: TOLD | {"spec": {"a": 1}}},
    "a negative latency": {"latency_ms": -5.0},
    "an F1 of seven": {"f1_macro": 7.0},
    "a curve of seven": {"f1_by_epoch": [7.0]},
    "no training": {"training": None},
}
MINE = {
    "latency_ms": 1.0,
    "over_limit": {"latency": -0.5},
    DETAILS: TOLD,
    "f1_macro": 0.5,
    "f1_by_epoch": [0.5],
    "training": "abc",
}


@pytest.mark.parametrize("what", ODD)
def test_a_trial_like_ours_but_for_one_value(what):
    assert not foreign(create_trial(values=[0.5, 1.0, 5], user_attrs=MINE))
    assert foreign(create_trial(values=[0.5, 1.0, 5], user_attrs=MINE | ODD[what]))


FOREIGN = {
    "complete, without a word": create_trial(values=[0.9, 1.0, 5], params={"x": 1}, distributions=X),
    "complete, with words that are none": create_trial(
        values=[0.9, 1.0, 5],
        params={"x": 1},
        distributions=X,
        user_attrs={"f1_macro": "high", "latency_ms": None, "training": 3, DETAILS: [], "over_limit": 1},
    ),
    "complete, of half an entry": create_trial(
        values=[0.9, 1.0, 5],
        user_attrs={"latency_ms": 1.0, "over_limit": {}, DETAILS: TOLD},
    ),
    "pruned, without a word": create_trial(state=TrialState.PRUNED, params={"x": 2}, distributions=X),
    "pruned, with a training": create_trial(state=TrialState.PRUNED, user_attrs={"training": "abc"}),
    "pruned, with a latency that is none": create_trial(
        state=TrialState.PRUNED,
        user_attrs={"latency_ms": float("nan"), "over_limit": {}, DETAILS: TOLD},
    ),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_trial_of_another_program_is_left_out(what):
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"])
    study.add_trial(FOREIGN[what])
    assert foreign(study.trials[0])
    assert own_trials(study) == []
    assert Tally.of(own_trials(study), 1.0).asked == 0


@pytest.mark.parametrize("state", [TrialState.RUNNING, TrialState.WAITING, TrialState.FAIL])
def test_a_trial_that_is_not_finished_may_still_be_ours(state):
    assert not foreign(create_trial(state=state))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ehvi", "tpe", "gp"])
def test_a_search_goes_on_beside_foreign_trials(tiny, tmp_path, sampler):
    said = []
    settings = [f"search.sampler={sampler}", "search.trials=1"]
    with open_run(tmp_path / "run", load_config(tiny, settings), said.append) as run:
        run_one("data", run)
        study = open_search(run).open()
        for trial in FOREIGN.values():
            study.add_trial(trial)
        odd = {"f1_by_epoch": [0.5], DETAILS: [1], "tries": "x", "again_of": [1]}
        study.add_trial(create_trial(state=TrialState.FAIL, user_attrs=odd))
        study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"again_of": 0}))
        study.enqueue_trial({"s1/type": "NoSuchBlock"})
        study.enqueue_trial({"s1/repeat": "many"})
        study.enqueue_trial({"s2/repeat": None})
        done = run_one("search", run)
        result = standing(run)
        report(run, result)
    assert done.summary["trained"] == 1
    failed = [line for line in said if "cannot be built or timed" in line]
    assert len(failed) == 3
    assert "expected a value of this search space" in failed[0]


@pytest.mark.slow
def test_a_study_that_was_edited_is_not_believed(tiny, tmp_path):
    import sqlite3

    from pipeline.errors import PipelineError

    with open_run(tmp_path / "run", load_config(tiny, ["search.trials=1"]), print) as run:
        run_one("search", run)
    with sqlite3.connect(tmp_path / "run/study/study.db") as database:
        changed = "UPDATE trial_user_attributes SET value_json = '0.9876' WHERE key = 'f1_macro'"
        assert database.execute(changed).rowcount == 1
    with (
        open_run(tmp_path / "run", load_config(tiny, ["search.trials=2"]), print) as run,
        pytest.raises(PipelineError, match=r"says F1 0\.9876, the record of its training .* the database was edited"),
    ):
        run_one("search", run)


def killed(study):
    """A worker takes the next trial, and dies."""
    trial = study.ask()
    trial.suggest_int("x", 0, 9)
    take_up(study, "me", alone=True)
    return trial.number


def test_a_trial_whose_process_was_killed_four_times_is_tried_once_more_at_the_end():
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"])
    study.enqueue_trial({"x": 4})
    for _ in range(4):
        killed(study)
    assert not study.get_trials(states=(TrialState.WAITING,)), "it is set aside"
    assert len(own_trials(study)) == 1
    assert try_set_aside(study) == 1
    assert try_set_aside(study) == 0, "one last time, and not for ever"
    (waiting,) = study.get_trials(states=(TrialState.WAITING,))
    assert waiting.system_attrs["fixed_params"] == {"x": 4}
    killed(study)
    assert try_set_aside(study) == 0
    assert len(own_trials(study)) == 1


@pytest.mark.slow
def test_a_search_ends_with_what_was_set_aside(tiny, tmp_path):
    """A healthy candidate, on a machine that was switched off four times."""
    said = []
    with open_run(tmp_path / "run", load_config(tiny, ["search.trials=1"]), said.append) as run:
        run_one("data", run)
        search = open_search(run)
        study = search.open()
        for _ in range(4):
            trial = study.ask()
            search.space.suggest(trial, 3)
            take_up(study, run.worker, alone=True)
        (lost,) = own_trials(study)
        done = run_one("search", run)
        trials = own_trials(search.open())
    assert any("1 candidates whose process was ended again and again are tried a last time" in line for line in said)
    assert done.summary["failed"] == 0
    assert [t.state for t in trials].count(TrialState.COMPLETE) >= 1
    assert any(t.params == lost.params and t.state.is_finished() for t in trials)
