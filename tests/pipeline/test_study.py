"""Studies: what workers must agree on, trials that a killed one left, and databases that cannot be used."""

import os
import sqlite3
import subprocess
import sys
import time
from datetime import datetime, timedelta

import optuna
import pytest
from optuna.trial import TrialState

from pipeline import study as studies
from pipeline.config import load_config
from pipeline.errors import EnvironmentProblem, PipelineError
from pipeline.passwords import without_password
from pipeline.search.tally import Tally, used_up
from pipeline.study import (
    alive,
    database_url,
    load_study,
    mark_interrupted,
    open_study,
    own_trials,
    take_up,
    take_up_lost,
)
from tests.conftest import ROOT

ARGS = (("maximize", "minimize"), ("F1", "ms"))


def opened(folder, name="s", meaning=None):
    return open_study(database_url(None, folder), name, *ARGS, meaning)


def test_all_who_take_part_mean_the_same(tmp_path):
    meaning = {"space": "abc", "latency.limit_ms": 1.4, "latency.runtimes": ("onnxruntime",)}
    assert opened(tmp_path, meaning=meaning).metric_names == ["F1", "ms"]
    opened(tmp_path, meaning=meaning)
    with pytest.raises(PipelineError, match=r"the study 's' was begun with another space, another latency\.runtimes"):
        opened(tmp_path, meaning=meaning | {"space": "def", "latency.runtimes": ("openvino",)})
    opened(tmp_path, "another", meaning | {"space": "def"})


def test_a_study_of_another_tool_under_the_name_is_refused(tmp_path):
    study = optuna.create_study(storage=database_url(None, tmp_path), study_name="s", directions=ARGS[0])
    study.add_trial(optuna.create_trial(values=[1, 2]))
    with pytest.raises(PipelineError, match="was begun with another space"):
        opened(tmp_path, meaning={"space": "abc"})


def test_what_a_killed_worker_had_in_hand_is_tried_again(tmp_path):
    study = opened(tmp_path)
    for worker in ("me", "me/1", "somebody"):
        trial = study.ask()
        trial.suggest_int("x", 0, 9)
        trial.set_user_attr("worker", worker)
    drawn = [t.params for t in study.trials]
    take_up(study, "me", alone=False)
    assert [t.state for t in study.trials[:3]] == [TrialState.FAIL, TrialState.FAIL, TrialState.RUNNING]
    assert [t.number for t in own_trials(study)] == [2, 3, 4]
    again = [study.ask() for _ in range(2)]
    assert [{"x": t.suggest_int("x", 0, 9)} for t in again] == drawn[:2]


def test_the_night_after_a_trial_was_given_up_is_no_time_of_the_search():
    def trial(minutes, **attrs):
        made = optuna.create_trial(state=TrialState.FAIL, user_attrs=attrs)
        made.datetime_complete = datetime.now()
        made.datetime_start = made.datetime_complete - timedelta(minutes=minutes)
        return made

    tally = Tally.of([trial(1, error_kind="ExportError"), trial(600)], 1.0)
    assert tally.minutes == pytest.approx(1.0, rel=1e-3)
    assert used_up(tally, load_config("demo")) is None


def test_one_that_was_killed_before_its_first_sign_of_life(tmp_path, monkeypatch):
    study = opened(tmp_path)
    study.ask()
    take_up(study, "me", alone=False)
    take_up_lost(study)
    assert study.trials[0].state == TrialState.RUNNING  # it may be somebody's
    monkeypatch.setattr(studies, "_UNBORN", timedelta(0))
    take_up_lost(study)
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.WAITING]
    study.ask()
    take_up(study, "me", alone=True)
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.FAIL, TrialState.WAITING]
    assert len(own_trials(study)) == 1


def test_what_it_had_found_out_is_found_out_anew(tmp_path):
    study = opened(tmp_path)
    trial = study.ask()
    trial.suggest_int("x", 0, 9)
    trial.set_constraint("latency", -0.5)
    trial.set_user_attr("training", "abc")
    take_up(study, "me", alone=True)
    assert "training" not in study.trials[1].user_attrs
    assert study.trials[1].constraints == {}


def test_a_crew_that_the_user_interrupts_gives_up_nothing(tmp_path):
    study = opened(tmp_path)
    for _ in range(6):
        study.ask().set_user_attr("worker", "me/1")
        mark_interrupted(study, "me")
        take_up(study, "me", alone=False)
        assert study.trials[-1].state == TrialState.WAITING


def test_however_often_the_user_interrupts_a_trial_it_is_tried_again(tmp_path):
    study = opened(tmp_path)
    for _ in range(6):
        with pytest.raises(KeyboardInterrupt), alive(study, study.ask(), "me"):
            raise KeyboardInterrupt
        take_up(study, "me", alone=True)
        assert study.trials[-1].state == TrialState.WAITING


@pytest.mark.parametrize(("retries", "trials"), [(3, 4), (None, 10)])
def test_what_kills_its_worker_again_and_again_is_left_alone(retries, trials, tmp_path):
    study = opened(tmp_path)
    study.enqueue_trial({"x": 1})
    for _ in range(10):
        if not study.get_trials(states=(TrialState.WAITING,)):
            break
        assert study.ask().suggest_int("x", 0, 9) == 1
        if len(study.trials) < 10:
            take_up(study, "me", alone=True, retries=retries)
    assert len(study.trials) == trials
    assert len(own_trials(study)) == 1


_ASK = """
import sys
from pipeline.study import one_at_a_time, open_study

url = sys.argv[1]
study = open_study(url, "s", ("maximize", "minimize"), ("F1", "ms"))
for _ in range(10):
    with one_at_a_time(url):
        trial = study.ask()
    study.tell(trial, [trial.suggest_int("x", 0, 99), 1])
"""


def test_a_trial_that_waits_is_given_to_one_process_only(tmp_path):
    study, url = opened(tmp_path), database_url(None, tmp_path)
    for i in range(20):
        study.enqueue_trial({"x": i})
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen([sys.executable, "-c", _ASK, url], env=environment) for _ in range(2)]
    assert [p.wait(120) for p in both] == [0, 0]
    assert sorted(t.values[0] for t in study.trials) == list(range(20))


def test_a_worker_that_gives_no_sign_of_life_is_taken_for_dead(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "HEARTBEAT_S", 1)
    monkeypatch.setattr(studies, "GRACE_S", 2)
    study = opened(tmp_path)
    lives, dies = study.ask(), study.ask()
    dies.suggest_int("x", 5, 5)
    dies.set_user_attr("worker", "b")
    study._storage.record_heartbeat(dies._trial_id)
    with alive(study, lives, "a"):
        deadline = time.monotonic() + 20
        while study.trials[1].state == TrialState.RUNNING and time.monotonic() < deadline:
            time.sleep(0.5)
            take_up_lost(study)
    states = [t.state for t in study.trials]
    assert states == [TrialState.RUNNING, TrialState.FAIL, TrialState.WAITING]
    assert [t.number for t in own_trials(study)] == [0, 2]
    assert study.ask().suggest_int("x", 0, 9) == 5


def test_what_is_told_too_late_is_dropped(tmp_path):
    study = opened(tmp_path)
    trial = study.ask()
    with alive(study, trial, "a"):
        study.tell(trial.number, state=TrialState.FAIL)  # by another, who took this one for dead
        trial.set_user_attr("f1_macro", 0.5)
    assert "f1_macro" not in study.trials[0].user_attrs


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me@host/db"),
        ("postgresql://me@host/db?sslmode=require&password=secret", "postgresql://me@host/db?sslmode=require"),
        ("postgresql://me@host/db?sslpassword=secret&password=sec@ret", "postgresql://me@host/db"),
        ("postgresql://me:p%40s:secret@host:5432/db", "postgresql://me@host:5432/db"),
        ("postgresql://me:sec@ret@host/db", "(no URL)"),
        ("postgresql://me:sec@ret:x@host/db", "(no URL)"),
        ("sqlite:////tmp/x.db", "sqlite:////tmp/x.db"),
        ("secret", "(no URL)"),
    ],
)
def test_no_password_is_shown_or_kept(url, shown, tiny):
    assert without_password(url) == shown
    config = load_config(tiny, [f"search.storage={url}"])
    assert config.search.storage == url
    assert not any(text in config.model_dump_json() for text in ("secret", "sec@ret"))


@pytest.mark.parametrize(
    ("url", "error", "text"),
    [
        ("study.db", PipelineError, "search.storage: no database URL"),
        ("postgresql://me:secret@ret:x@host/db", PipelineError, "search.storage: no database URL"),
        ("postgresql://me:secret@ret@host/db", PipelineError, "search.storage: no database URL"),
        ("nosql://me:secret@host/db", PipelineError, "nosql://me@host/db: SQLAlchemy knows no such database"),
        ("mysql://me:secret@host/db", EnvironmentProblem, "mysql://me@host/db: the driver of that database is missing"),
        ("sqlite:////nowhere/at/all.db", EnvironmentProblem, "cannot be used: unable to open database file"),
        (
            "postgresql://me:secret@127.0.0.1:1/db",
            EnvironmentProblem,
            "postgresql+psycopg://me@127.0.0.1:1/db: cannot be used: ",
        ),
    ],
)
def test_a_database_that_cannot_be_used_is_told_without_its_password(url, error, text):
    with pytest.raises(error) as caught:
        open_study(database_url(url, None), "s", *ARGS)
    assert text in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_database_of_an_older_version_is_told_with_what_to_do(tmp_path):
    opened(tmp_path)
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'v2.6.0.a'")
        database.execute("UPDATE version_info SET library_version = '2.6.0'")
    with pytest.raises(EnvironmentProblem, match=r"of another version of Optuna.*optuna storage upgrade"):
        opened(tmp_path)


def test_a_study_that_is_not_there_is_named(tmp_path):
    opened(tmp_path)
    with pytest.raises(PipelineError, match="it holds no study 'other'"):
        load_study(database_url(None, tmp_path), "other")


@pytest.mark.parametrize("damage", ["state = 'BOGUS'", "number = number + 1000000", "datetime_start = 'soon'"])
def test_trials_that_cannot_be_read_are_a_damaged_study(damage, tmp_path):
    study = opened(tmp_path)
    study.add_trial(optuna.create_trial(values=[0.5] * len(study.directions)))
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute(f"UPDATE trials SET {damage}")
    with pytest.raises(EnvironmentProblem, match="the study in it is damaged"):
        opened(tmp_path)
    with pytest.raises(EnvironmentProblem, match="the study in it is damaged"):
        load_study(database_url(None, tmp_path), study.study_name)
