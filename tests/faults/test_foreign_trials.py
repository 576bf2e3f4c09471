"""Trials that a search did not make, values that are no choice, and workers that are killed again and again."""

import shutil
import sqlite3

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from pipeline.config import load_config
from pipeline.errors import EnvironmentProblem, PipelineError
from pipeline.run import report, run_one, standing
from pipeline.search.basis import open_search
from pipeline.search.tally import Tally
from pipeline.stages import open_run
from pipeline.study import DETAILS, MEASURED, foreign, known_params, own_trials, take_up, try_set_aside

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


@pytest.fixture(scope="module")
def searched(tiny, tmp_path_factory):
    """A run folder with one candidate trained."""
    folder = tmp_path_factory.mktemp("searched") / "run"
    with open_run(folder, load_config(tiny, ["search.trials=1"]), print) as run:
        run_one("search", run)
    return folder


def _forged(**attrs):
    """A copy of a trial that this search trained, changed."""

    def add(study, trial, database):
        changed = {**trial.user_attrs, **attrs}
        study.add_trial(
            create_trial(
                values=trial.values, params=trial.params, distributions=trial.distributions, user_attrs=changed
            )
        )

    return add


def _sql(statement):
    def change(study, trial, database):
        with sqlite3.connect(database) as connection:
            assert connection.execute(statement).rowcount

    return change


def _overwritten(start):
    def change(study, trial, database):
        with sqlite3.connect(database) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        whole = database.read_bytes()
        database.write_bytes(whole[:start] + b"\xa5" * (len(whole) - start))

    return change


NOT_THAT = "has a training or an architecture that is not that of its parameters"
DAMAGED = "the study in it is damaged"
EDITED = {
    "another F1": (
        _sql("UPDATE trial_user_attributes SET value_json = '0.9876' WHERE key = 'f1_macro'"),
        r"says F1 0\.9876, the record of its training",
    ),
    "a training with another name": (_forged(training="0" * 16, f1_macro=0.95), NOT_THAT),
    "a training that is a path": (_forged(training="../../../evil"), NOT_THAT),
    "a training that no file can be named after": (_forged(training="a\0b"), NOT_THAT),
    "broken JSON": (_sql("UPDATE trial_user_attributes SET value_json = '{x' WHERE key = 'details'"), DAMAGED),
    "a value that is no choice": (_sql("UPDATE trial_params SET param_value = 999"), DAMAGED),
    "a distribution that is none": (_sql("UPDATE trial_params SET distribution_json = '{}'"), DAMAGED),
    "an objective too few": (_sql("DELETE FROM study_directions WHERE objective = 2"), DAMAGED),
    "names that are a number": (_sql("UPDATE study_system_attributes SET value_json = '5'"), DAMAGED),
    "no database": (_overwritten(0), "file is not a database; put the database aside and search again"),
    "pages that were overwritten": (_overwritten(100), "malformed; put the database aside and search again"),
    "tables of a later version": (
        _sql("UPDATE alembic_version SET version_num = 'v9'"),
        "of another version of Optuna",
    ),
}


@pytest.mark.parametrize("what", EDITED)
def test_a_study_that_was_edited_is_not_believed(searched, tiny, tmp_path, what):
    shutil.copytree(searched, tmp_path / "run")
    change, told = EDITED[what]
    with open_run(tmp_path / "run", load_config(tiny, ["search.trials=2"]), print) as run:
        study = open_search(run).open()
        (trial,) = [t for t in study.trials if t.state == TrialState.COMPLETE]
        change(study, trial, run.folder / "study/study.db")
        with pytest.raises((PipelineError, EnvironmentProblem), match=told):
            run_one("search", run)
    assert not list(tmp_path.rglob("evil*"))


def test_a_foreign_trial_with_other_choices_is_named(searched, tiny, tmp_path):
    """Optuna would let every candidate fail that has this parameter too."""
    shutil.copytree(searched, tmp_path / "run")
    with sqlite3.connect(tmp_path / "run/study/study.db") as database:
        for table in ("trial_params", "trial_user_attributes", "trial_system_attributes", "trial_values", "trials"):
            database.execute(f"DELETE FROM {table}")
    with open_run(tmp_path / "run", load_config(tiny, ["search.trials=2"]), print) as run:
        other = {"batch": CategoricalDistribution(["A", "B"])}
        open_search(run).open().add_trial(create_trial(values=[0.5, 1, 5], params={"batch": "A"}, distributions=other))
        with pytest.raises(PipelineError, match="has other choices of batch: no candidate can be drawn beside it"):
            run_one("search", run)


def test_a_training_whose_record_is_gone_is_not_believed(searched, tiny, tmp_path):
    shutil.copytree(searched, tmp_path / "run")
    (record,) = (tmp_path / "run/study/trained").glob("*.json")
    record.unlink()
    with (
        open_run(tmp_path / "run", load_config(tiny, ["search.trials=2"]), print) as run,
        pytest.raises(PipelineError, match="there is no whole record of its training"),
    ):
        run_one("search", run)


@pytest.mark.parametrize("fixed", ["abc", [1], 5])
def test_what_was_enqueued_as_no_parameters_asks_for_nothing(fixed):
    assert known_params(create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": fixed})) == {}


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
