"""A study in PostgreSQL: a real server on loopback."""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState

from pipeline.errors import EnvironmentProblem, PipelineError
from pipeline.search.tally import TRAINED, fate
from pipeline.study import database_url, open_study, take_up
from tests.conftest import ROOT
from tests.postgres import Missing, server

ARGS = (("maximize", "minimize"), ("F1", "ms"))
SECRET = re.compile(r"pass(%3A|:)word")


def opened(url, name, meaning=None):
    return open_study(database_url(url, None), name, *ARGS, meaning)


def test_two_who_mean_another_thing_by_a_trial_are_refused(postgres):
    opened(postgres, "same", {"space": "a"})
    opened(postgres, "same", {"space": "a"})
    with pytest.raises(PipelineError, match="the study 'same' was begun with another space"):
        opened(postgres, "same", {"space": "b"})


def test_trials_of_many_workers_at_once_are_all_kept(postgres):
    def work(number):
        study = opened(postgres, "many")
        for _ in range(5):
            trial = study.ask()
            trial.suggest_float("x", 0, 1)
            study.tell(trial, [float(number), 1.0])

    opened(postgres, "many")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    trials = opened(postgres, "many").trials
    assert [t.number for t in trials] == list(range(20))
    assert sorted(t.values[0] for t in trials) == [0.0] * 5 + [1.0] * 5 + [2.0] * 5 + [3.0] * 5


def test_a_trial_in_hand_is_taken_up(postgres):
    study = opened(postgres, "killed")
    trial = study.ask()
    trial.suggest_categorical("kind", ["a", "b"])
    trial.set_user_attr("worker", "me")
    again = opened(postgres, "killed")
    take_up(again, "me", alone=False)
    assert [t.state for t in again.trials] == [TrialState.FAIL, TrialState.WAITING]


@pytest.mark.parametrize("change", [("pass%3Aword", "wrong"), ("/postgres", "/none")])
def test_a_refusal_of_the_server_shows_no_password(change, postgres):
    with pytest.raises(EnvironmentProblem) as caught:
        opened(postgres.replace(*change), "x")
    assert "cannot be used: " in str(caught.value)
    assert "wrong" not in str(caught.value)
    assert not SECRET.search(str(caught.value))


def test_a_database_of_an_older_version_is_told_with_what_to_do(postgres):
    def engine(url, **more):
        return sqlalchemy.create_engine(database_url(url, None), **more)

    with engine(postgres, isolation_level="AUTOCOMMIT").connect() as database:
        database.execute(sqlalchemy.text("CREATE DATABASE older"))
    older = postgres.replace("/postgres", "/older")
    opened(older, "study")
    with engine(older).begin() as database:
        database.execute(sqlalchemy.text("UPDATE alembic_version SET version_num = 'v2.6.0.a'"))
        database.execute(sqlalchemy.text("UPDATE version_info SET library_version = '2.6.0'"))
    with pytest.raises(EnvironmentProblem, match=r"of another version of Optuna.*optuna storage upgrade") as caught:
        opened(older, "study")
    assert not SECRET.search(str(caught.value))


@pytest.mark.slow
def test_a_server_that_goes_away_in_mid_study_ends_the_search_in_one_line(tiny, tmp_path):
    with ExitStack() as running:
        try:
            url = running.enter_context(server())
        except Missing as missing:
            pytest.skip(str(missing))
        command = [sys.executable, "-m", "edgebuild", "search", "-c", tiny, "--run-dir", tmp_path / "r"]
        process = subprocess.Popen(
            [*map(str, command), "--set", f"search.storage={url}", "--set", "search.trials=50"],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in process.stderr:
            if line.startswith("search: 2 asked"):
                break
        running.close()
        _, said = process.communicate(timeout=120)
    assert process.returncode == 4, said
    assert "edgebuild: search.storage: the database can be used no more" in said
    assert "Traceback" not in said
    assert not SECRET.search(said)


@pytest.mark.slow
def test_two_searches_of_one_study(cli, tiny, tmp_path, postgres):
    """From two folders at once, as from two machines in two time zones: each sees what the other did, and when; nothing
    shows the password."""
    settings = ["search.trials=6", "search.study=shared", f"search.storage={postgres}"]
    more = [part for s in settings for part in ("--set", s)]

    def search(name, zone):
        return cli("search", "-c", tiny, "--run-dir", tmp_path / name, "--json", *more, env={"TZ": zone})

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(search, "ab", ("<+09>-9", "<-05>5")))
    for done in found:
        assert done.returncode == 0, done.stderr
        assert not SECRET.search(done.stdout + done.stderr)
    summaries = [json.loads(d.stdout) for d in found]
    assert summaries[0]["trained"] in (6, 7)  # both may have looked at once
    study = optuna.load_study(study_name="shared", storage=database_url(postgres, None))
    assert len({t.user_attrs["worker"] for t in study.trials}) == 2
    assert all(t.state.is_finished() for t in study.trials)
    since = [datetime.now(UTC).replace(tzinfo=None) - t.datetime_start for t in study.trials]
    assert timedelta(0) < min(since) < max(since) < timedelta(hours=1)
    for file in tmp_path.rglob("*"):
        assert not (file.is_file() and SECRET.search(file.read_bytes().decode("latin-1"))), file
    other = cli("search", "-c", tiny, "--run-dir", tmp_path / "c", *more, "--set", "search.epochs=2")
    assert other.returncode == 2
    assert "the study 'shared' was begun with another epochs of the training" in other.stderr
    again = cli("search", "--run-dir", tmp_path / "a", "--set", "search.trials=9")
    assert again.returncode == 4  # the folder keeps no password
    assert "search.storage: postgresql+psycopg://edge@127.0.0.1" in again.stderr
    environment = {"PGPASSWORD": "pass:word@1"}
    again = cli("search", "--run-dir", tmp_path / "a", "--set", "search.trials=9", "--json", env=environment)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["trained"] == 9
    known = {p.stem for p in (tmp_path / "a/study/trained").glob("*.json")}
    assert known == {t.user_attrs["training"] for t in study.trials if fate(t) == TRAINED}  # what b trained too
