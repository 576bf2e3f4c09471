"""The teacher's trainings: what goes on after a kill, and what is refused before anything is searched."""

import json
from dataclasses import replace

import pytest

from pipeline import precheck
from pipeline.config import load_config
from pipeline.data.stage import DATA
from pipeline.errors import PipelineError
from pipeline.stages import open_run, perform
from pipeline.training import teach

SETTINGS = ["teacher.input_size=32", "teacher.epochs=3", "teacher.learning_rate=1e-3"]


class Killed(Exception):
    pass


@pytest.fixture
def run(tiny, tmp_path):
    said = []
    with open_run(tmp_path / "run", load_config(tiny, SETTINGS), said.append) as found:
        perform(DATA, found)
        yield found


def taught(run, work, monkeypatch, last=None):
    """The epochs that are reported; killed after so many."""
    seen, own = [], teach.reporter

    def reporter(*args):
        report = own(*args)

        def on_epoch(epoch):
            report(epoch)
            seen.append(epoch.epoch)
            if last is not None and len(seen) == last:
                raise Killed

        return on_epoch

    with monkeypatch.context() as patch:
        patch.setattr(teach, "reporter", reporter)
        teach._teach(run, work)
    return seen


def test_a_killed_teacher_goes_on_with_the_hyper_parameters_that_it_had(run, tmp_path, monkeypatch):
    with pytest.raises(Killed):
        taught(run, tmp_path, monkeypatch, last=2)
    assert taught(run, tmp_path, monkeypatch) == [2]
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["hyper"] == teach._own(run)
    assert [t["state"] for t in record["trials"]] == ["fail", "complete"]


def test_more_trials_go_on_from_those_that_there_are(run, tmp_path, monkeypatch):
    def asked(trials):
        section = run.config.teacher.model_copy(update={"trials": trials})
        return replace(run, config=run.config.model_copy(update={"teacher": section}))

    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert taught(asked(1), tmp_path / "one", monkeypatch) == [0, 1, 2]
    hyper = []
    own = teach._try

    def tried(run, folder, study, trial):
        own(run, folder, study, trial)
        hyper.append(trial.number)

    monkeypatch.setattr(teach, "_try", tried)
    taught(asked(2), tmp_path / "two", monkeypatch)
    assert hyper == [1]
    record = json.loads((tmp_path / "two" / "training.json").read_text())
    assert len(record["trials"]) == 2
    assert record["best"]["f1_macro"] == max(t["f1_macro"] for t in record["trials"])


def test_a_teacher_that_diverges_says_so_however_often_it_is_asked(run, tmp_path):
    section = run.config.teacher.model_copy(update={"learning_rate": 1e30})
    wrong = replace(run, config=run.config.model_copy(update={"teacher": section}))
    for _ in range(6):
        with pytest.raises(PipelineError, match=r"no epoch came before: lower teacher\.learning_rate"):
            teach._teach(wrong, tmp_path)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            ["teacher.name=vit_tiny_patch16_224", "teacher.input_size=64"],
            r"teacher.name: vit_tiny_patch16_224 does not take images of 64 px: .*; set teacher.input_size to a size",
        ),
        (["teacher.freeze=blocks.1"], r"teacher.freeze: without weights \(teacher.weights\) there is nothing to keep"),
        (
            ["student.model=cpu_small", "student.optimizer=adafactorbv"],
            r"student.optimizer: adafactorbv cannot be used here: .*; take another, adamw for example",
        ),
        (["student.model=cpu_small", "student.optimizer=kron"], r"student.optimizer: kron cannot be used here"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_searched(settings, text, tiny, tmp_path):
    with (
        open_run(tmp_path / "run", load_config(tiny, settings), print) as run,
        pytest.raises(PipelineError, match=text),
    ):
        precheck.check_before(run)


def test_a_teacher_that_was_taught_is_not_looked_at_again_and_another_is(run, monkeypatch):
    perform(teach.TEACH, run)
    looked, own = [], precheck.network

    def network(name, *args):
        looked.append(name)
        return own(name, *args)

    monkeypatch.setattr(precheck, "network", network)
    precheck.check_before(run)
    assert looked == []
    other = run.config.teacher.model_copy(update={"name": "lcnet_050"})
    precheck.check_before(replace(run, config=run.config.model_copy(update={"teacher": other})))
    assert looked == ["lcnet_050"]


@pytest.mark.parametrize("name", ["adamw", "lamb", "sgd", "adan", "lion"])
def test_optimizers_that_can_be_used_are_not_refused(name):
    precheck._check_optimizer(name)


def test_only_what_is_used_decides_whether_it_is_taught_again(run, monkeypatch):
    """The values to tune with, where there is more than one trial."""
    monkeypatch.setattr(teach, "_default_size", lambda run: 32)
    tuned = run.config.teacher.tune.model_copy(update={"batch": (8,)})

    def key(**teacher):
        section = run.config.teacher.model_copy(update=teacher)
        return teach._inputs(replace(run, config=run.config.model_copy(update={"teacher": section})))

    assert key() == key(tune=tuned)
    assert key(trials=2) != key(trials=2, tune=tuned)
