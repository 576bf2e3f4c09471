"""Candidates: timed once, again where the limit is near, and passed over where they are of no use."""

import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from export.errors import ExportError
from latency.errors import LatencyError
from latency.measure import WarmTimer
from models.language import SpecError
from models.spec import ModelSpec
from pipeline.config import load_config
from pipeline.errors import EnvironmentProblem, OutOfMemory, PipelineError
from pipeline.run import run_one
from pipeline.search import loop, measured, short, trial
from pipeline.search.basis import open_search
from pipeline.search.measured import CandidateTimer, Form
from pipeline.stages import open_run
from pipeline.training.checkpoint import student_card
from pipeline.training.inputs import Arrays
from tests.conftest import draw_photos

SPEC = ModelSpec.parse(
    {
        "INPUT_SIZE": [32, 32],
        "backbone": [[1, "Conv", [8, 3, 2]], [1, "GlobalAvgPool", []], [1, "Linear", [2]]],
    }
)
FORM = Form("onnxruntime", "f32")


def scripted(monkeypatch, script):
    """Real files; what their timings say is written over: script(n-th timing) -> (ms of the file, of the control)."""
    own, seen = WarmTimer.time, []

    def time(timer, subject, plan):
        found = own(timer, subject, plan)
        ms, control = script(len(seen))
        seen.append(plan)
        (run,) = found.runs
        return replace(found, runs=(replace(run, samples_ms=(ms,) * 40, control_ms=(control,) * 40),))

    monkeypatch.setattr(WarmTimer, "time", time)
    return seen


def timed(folder, limit_ms, forms=(FORM,), learns=False):
    card = student_card(SPEC, ("a", "b"), "squash")
    with CandidateTimer(folder, list(forms), 1, limit_ms, learns=learns) as timer:
        found = timer.time(SPEC, card, 0)
        assert timer.time(SPEC, card, 0) == found  # known by now
    return found


@pytest.mark.parametrize(("limit_ms", "timings"), [(1.5, 1), (1.1, 3), (0.9, 3), (0.7, 1)])
def test_near_misses_are_timed_again_on_either_side(limit_ms, timings, tmp_path, monkeypatch):
    seen = scripted(monkeypatch, lambda n: (1.0, 0.25))
    (found,) = timed(tmp_path, limit_ms)
    assert (len(seen), found.timings, found.p90_ms) == (timings, timings, pytest.approx(1.0))


def test_of_a_near_miss_only_the_form_that_is_fastest_by_then_is_timed_again(tmp_path, monkeypatch):
    in_turn = [0.9, 1.0, 1.3, 1.1]  # ONNX Runtime, OpenVINO, then ONNX Runtime, which is no longer the fastest
    seen = scripted(monkeypatch, lambda n: (in_turn[n], 0.25))
    found = timed(tmp_path, 1.0, [FORM, Form("openvino", "f32")])
    assert len(seen) == 4
    assert {t.form: t.timings for t in found} == {"openvino-f32": 2, "onnxruntime-f32": 2}
    assert found[0].p90_ms == pytest.approx(np.sqrt(1.0 * 1.1))


@pytest.mark.parametrize("slower", [1.5, 5.0])
def test_a_neighbour_makes_no_candidate_slower(slower, tmp_path, monkeypatch):
    """The control was seen at rest before; file and control are slowed down alike."""
    scripted(monkeypatch, lambda n: (1.0, 0.25) if n == 0 else (slower * 1.2, slower * 0.25))
    timed(tmp_path, 9.0)
    for record in tmp_path.glob("*.json"):
        record.rename(tmp_path / f"other-{record.name}")
    (found,) = timed(tmp_path, 2.0)
    assert found.p90_ms == pytest.approx(1.2)
    assert found.control_p50_ms == pytest.approx(slower * 0.25)


def test_what_a_neighbour_made_hopeless_is_timed_in_full(tmp_path, monkeypatch):
    own, plans = WarmTimer.time, []

    def time(timer, subject, plan):
        plans.append(plan)
        found = own(timer, subject, plan)
        (run,) = found.runs
        count = 10 if plan.hopeless_ms else 40
        return replace(found, runs=(replace(run, samples_ms=(4.0,) * count, control_ms=(1.25,) * count),))

    monkeypatch.setattr(WarmTimer, "time", time)
    record = {"runs": [], "runtime": "onnxruntime"}
    with CandidateTimer(tmp_path, [FORM], 1, 1.4) as timer:
        timer._learn(record)
        timer._seen["onnxruntime"] = [(0.25, 0.25)] * 5
        (found,) = timer.time(SPEC, student_card(SPEC, ("a", "b"), "squash"), 0)
    assert [p.hopeless_ms is None for p in plans] == [False, True]
    assert found.p90_ms == pytest.approx(0.8)


def test_a_form_that_fails_leaves_the_others(tmp_path, monkeypatch):
    def write(spec, card, seed, form, onnx, host):
        if form.runtime == "openvino":
            raise ExportError("it lacks the operations X")
        return own(spec, card, seed, form, onnx, host)

    own = measured.write_form
    monkeypatch.setattr(measured, "write_form", write)
    forms = [FORM, Form("openvino", "f32")]
    assert [t.form for t in timed(tmp_path, 50.0, forms)] == ["onnxruntime-f32"]
    with pytest.raises(ExportError, match="lacks"):
        timed(tmp_path / "b", 50.0, forms[1:])


def test_the_forms_that_win_are_learnt_from_the_first_candidates(tmp_path, monkeypatch):
    forms = [FORM, Form("onnxruntime", "int8"), Form("openvino", "f32"), Form("openvino", "int8")]
    with CandidateTimer(tmp_path, forms, 1, 5.0, learns=True) as timer:
        assert [str(f) for f in timer._wanted()][-2:] == ["onnxruntime-int8", "openvino-int8"]
        for ms in (1.0, 2.0, 3.0, 4.0):
            timer._found[f"{ms}-64"] = dict(zip(forms, (3 * ms, ms, 2 * ms, 1.3 * ms), strict=True))
        assert timer._wanted() == [forms[2], forms[1]], "the quickest to make, then the winner"
        timer._found["last-64"] = dict(zip(forms, (3.0, 1.05, 2.0, 1.0), strict=True))
        assert timer._wanted() == [forms[2], forms[1], forms[3]]


def test_what_was_learnt_is_known_to_the_next_timer(tmp_path, monkeypatch):
    scripted(monkeypatch, lambda n: (1.0 + n, 0.25))
    forms = [FORM, Form("openvino", "f32")]
    first = timed(tmp_path, 50.0, forms)
    with CandidateTimer(tmp_path, forms, 1, 50.0, learns=True) as timer:
        (found,) = timer._found.values()
    assert {str(form): ms for form, ms in found.items()} == {t.form: t.p90_ms for t in first}


def test_a_candidate_that_cannot_be_exported_ends_no_search(tiny, tmp_path, monkeypatch):
    own, said = measured.export_onnx, []

    def export(model, card, path):
        if not any("trial 0" in line for line in said):
            raise ExportError("an operator that ONNX lacks")
        return own(model, card, path)

    monkeypatch.setattr(measured, "export_onnx", export)
    with open_run(tmp_path / "run", load_config(tiny, ["search.trials=1"]), said.append) as run:
        done = run_one("search", run)
    assert "trial 0: cannot be built or timed: an operator that ONNX lacks" in said
    assert done.summary["trained"] == 1


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        (1, [3.0, 2.0, 1.02, 0.95, 0.9, 0.7, 0.5]),
        (2, [3.0, 2.0, 1.02, 0.7, 0.95, 0.9, 0.5]),
        (3, [3.0, 2.0, 1.02, 0.95, 0.7, 0.9, 0.5]),
        (9, [3.0, 2.0, 1.02, 0.95, 0.9, 0.7, 0.5]),
    ],
)
def test_a_sweep_trains_the_slowest_and_one_with_room(trials, expected, tiny, tmp_path, monkeypatch):
    p90s_ms = [0.5, 0.9, 3.0, 1.02, 0.95, 0.7, 2.0]
    monkeypatch.setattr(loop, "timed", lambda candidate, search, timer: [timing_of(candidate)])

    def timing_of(p90_ms):
        return SimpleNamespace(p90_ms=p90_ms, p90_lower_ms=0.9 * p90_ms)

    search = SimpleNamespace(
        config=load_config(tiny, ["latency.limit_ms=1", f"search.trials={trials}"]),
        space=SimpleNamespace(
            combinations=lambda: [{"ms": ms} for ms in p90s_ms],
            suggest=lambda trial, classes: trial.suggest_float("ms", 0, 9),
        ),
        index=SimpleNamespace(classes=("a", "b")),
        say=lambda text: None,
    )
    assert [params["ms"] for params in loop._slowest_first(search, None)] == expected


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["select.input_size=168"], "select.input_size: 168 px, but the input sizes searched are 64: set it"),
        (
            ["search.start=[{s1/tipe: LCBlock}]"],
            "search.start: the space has no parameter 's1/tipe' (did you mean",
        ),
        (["search.start=[{s1/out: 17}]"], "search.start: s1/out: 17 is none of what the space has: {'low': 16"),
        (["search.start=[{s1/type: Conv}]"], "search.start: s1/type: 'Conv' is none of what the space has: ['LCBlock'"),
        (
            ["search.values={learning_rate: {low: 0, high: 1, log: true}}"],
            "learning_rate: log: needs a low over 0",
        ),
        (
            ["search.values={s1/out: {low: 8, high: 64, step: 0}}"],
            "module s1: out: step: expected a number over 0",
        ),
        (
            ["search.space=pretrained", "student.network=mobilenetv3_small_050", "student.weights=none.safetensors"],
            "none.safetensors: no such file; expected hub, none or the path",
        ),
        (
            ["search.space=pretrained", "student.network=resnet18", "student.weights=none"],
            "until: resnet18 has no stage 'blocks.3'; it has conv1, bn1, act1, maxpool, layer1.0",
        ),
        (
            [
                "search.space=pretrained",
                "student.network=resnet18",
                "student.weights=none",
                "student.until=[layer1.1, layer22]",
            ],
            "until: resnet18 has no stage 'layer22' (did you mean 'layer2",
        ),
    ],
)
def test_a_search_of_which_nothing_could_be_chosen_is_refused_before_it_begins(settings, text, tiny, tmp_path):
    said = []
    with (
        open_run(tmp_path / "run", load_config(tiny, settings), said.append) as run,
        pytest.raises((PipelineError, SpecError), match=re.escape(text)),
    ):
        run_one("search", run)
    assert not any("trial" in line for line in said)


def test_a_candidate_too_large_for_the_memory_ends_no_search(tiny, tmp_path, monkeypatch):
    own, calls, said = short.fit, [], []

    def fit(*args, **more):
        calls.append(args)
        if len(calls) == 1:
            raise OutOfMemory("out of memory in training with a batch of 32 images; one of 4 fits")
        return own(*args, **more)

    monkeypatch.setattr(short, "fit", fit)
    with open_run(tmp_path / "run", load_config(tiny, ["search.trials=1"]), said.append) as run:
        done = run_one("search", run)
    assert any("k parameters: passed over: out of memory in training with a batch of 32" in line for line in said)
    assert (done.summary["trained"], len(calls)) == (1, 2)


@pytest.mark.slow
def test_a_sweep_goes_on_with_what_is_left_of_it(tiny, tmp_path, monkeypatch):
    """Killed in the first training: that one is tried again, and none of the others is planned twice."""
    settings = ["search.space=pretrained", "search.sampler=sweep", "student.weights=none", "search.input_sizes=[32]"]
    settings += ["student.network=mobilenetv3_small_050", "student.until=[blocks.1]", "search.trials=9"]
    own, calls = short.fit, []

    class Killed(Exception):
        pass

    def fit(*args, **more):
        calls.append(args)
        if len(calls) == 1:
            raise Killed
        return own(*args, **more)

    monkeypatch.setattr(short, "fit", fit)
    with open_run(tmp_path / "run", load_config(tiny, settings), print) as run:
        with pytest.raises(Killed):
            run_one("search", run)
        done = run_one("search", run)
    assert (done.summary["asked"], done.summary["trained"]) == (6, 4)  # three of six have no neck, and are one
    assert len(calls) == 5


@pytest.mark.slow
def test_the_hopeless_end_early_and_count(tiny, tmp_path):
    """Whoever is not the best so far among all: then only a study of ever better candidates would stop none."""
    draw_photos(tmp_path / "photos", train=160, val=20)  # so many that a candidate learns something
    settings = [f"data.root={tmp_path / 'photos'}", "search.trials=6", "search.epochs=4", "search.sampler=random"]
    settings += ["search.stop={share: 0.99, epochs: 2, least: 1, similar: 1000}"]
    said = []
    with open_run(tmp_path / "run", load_config(tiny, settings), said.append) as run:
        done = run_one("search", run)
        rows = run.read("search", "trials.json")["trials"]
    stopped = [r for r in rows if r["state"] == "stopped"]
    assert stopped
    assert done.summary["stopped_early"] == len(stopped)
    assert done.summary["stopped_early"] + done.summary["trained"] == 6
    for row in stopped:
        had, before = len(row["f1_by_epoch"]), [r for r in rows if r["trial"] < row["trial"]]
        assert 2 <= had < 4
        assert max(row["f1_by_epoch"]) < max(max(r["f1_by_epoch"][:had]) for r in before)
        assert any(f"trial {row['trial']}: " in s and f"after {had} epochs: stopped" in s for s in said)
    assert any("random sees only what was trained" in s for s in said)


@pytest.mark.slow
def test_after_many_rejects_it_is_told_early_what_would_help(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_HINT_AFTER", 4)
    said = []
    settings = ["limits.params=100", "search.max_asked=6"]
    with open_run(tmp_path / "run", load_config(tiny, settings), said.append) as run:
        run_one("search", run)
    (hint,) = [i for i, s in enumerate(said) if s.startswith("search goes on; none of 4 candidates keeps the limits")]
    assert any("trial 5: " in s for s in said[hint:])


def test_what_the_study_knows_is_neither_timed_nor_trained_again(tiny, tmp_path, monkeypatch):
    """Without the records in the folder, as on another machine that shares the database."""
    start = {"learning_rate": 0.003, "batch": 16, "n_select": 0, "width_multiple": 0.5}
    storage = f"search.storage=sqlite:///{tmp_path / 'shared.db'}"
    settings = [f"search.start=[{start}]", "search.trials=1", storage]
    with open_run(tmp_path / "run", load_config(tiny, settings), print) as run:
        run_one("search", run)
        (params,) = [t["parameters"] for t in run.read("search", "trials.json")["trials"]]
        for kept in ("trained", "measurements"):
            shutil.rmtree(run.folder / "study" / kept)
        opened = open_search(run)
        opened.open().enqueue_trial(params)
    monkeypatch.setattr(short, "fit", None)
    monkeypatch.setattr(measured, "write_form", None)
    with open_run(
        tmp_path / "run", load_config(tiny, [*settings, "search.max_asked=2", "search.trials=2"]), print
    ) as run:
        run_one("search", run)
        first, second = run.read("search", "trials.json")["trials"]
    assert second["parameters"] == first["parameters"]
    assert second["timings"] == first["timings"]
    assert second["f1_by_epoch"] == first["f1_by_epoch"]


def out_of_reach(*args, **more):
    raise LatencyError("the board is gone")


@pytest.mark.slow
def test_a_target_out_of_reach_ends_a_sweep_before_it_is_planned(tiny, tmp_path, monkeypatch):
    settings = ["search.space=pretrained", "search.sampler=sweep", "student.weights=none", "search.input_sizes=[32]"]
    settings += ["student.network=mobilenetv3_small_050", "student.until=[blocks.1]", "search.trials=9"]
    with open_run(tmp_path / "run", load_config(tiny, settings), print) as run:
        with monkeypatch.context() as gone:
            gone.setattr(measured.CandidateTimer, "time", out_of_reach)
            with pytest.raises(EnvironmentProblem, match=r"the last 5 candidates could not be timed \(the board is"):
                run_one("search", run)
        assert run_one("search", run).summary["trained"] == 4


def test_what_is_planned_is_tried_again_when_the_target_is_back(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "LOST", 2)
    rates = [0.002, 0.003]
    start = [{"learning_rate": r, "batch": 16} for r in rates]
    with open_run(tmp_path / "run", load_config(tiny, [f"search.start={start}", "search.trials=2"]), print) as run:
        with monkeypatch.context() as gone:
            gone.setattr(measured.CandidateTimer, "time", out_of_reach)
            with pytest.raises(EnvironmentProblem, match="the last 2 candidates could not be timed"):
                run_one("search", run)
        run_one("search", run)
        assert [t["hyper"]["learning_rate"] for t in run.read("search", "trials.json")["trials"]] == rates


@pytest.mark.slow
def test_what_was_found_under_another_limit_uses_up_nothing_of_the_budget(tiny, tmp_path, monkeypatch):
    own, calls, said = short.fit, [], []
    monkeypatch.setattr(short, "fit", lambda *args, **more: calls.append(args) or own(*args, **more))
    for limit_ms, trained, trainings in ((1000, 1, 1), (2000, 2, 2)):
        settings = ["search.trials=1", f"latency.limit_ms={limit_ms}"]
        with open_run(tmp_path / "run", load_config(tiny, settings), said.append) as run:
            assert run_one("search", run).summary["trained"] == trained
            rows = run.read("search", "trials.json")["trials"]
        assert len(calls) == trainings
    assert [r.get("free") for r in rows] == [True, None]
    assert "search ends: 2 candidates trained, 0 stopped early, 1 of them under other limits (search.trials)" in said


def test_a_sweep_without_end_is_refused(tiny, tmp_path):
    settings = ["search.space=pretrained", "search.sampler=sweep", "search.max_asked=119", "student.weights=none"]
    sizes = ["search.input_sizes=[32, 48, 64, 96, 128]"]
    with (
        open_run(tmp_path / "run", load_config(tiny, settings + sizes), print) as run,
        pytest.raises(PipelineError, match=r"tries 120 combinations, search\.max_asked is 119: raise it"),
    ):
        run_one("search", run)


def test_a_share_of_the_training_images_has_some_of_each_class():
    labels = np.repeat([0, 1, 2, 3], [1000, 100, 4, 1])
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    whole = Arrays(images, labels, images[:1], labels[:1], (0.0,) * 3, (1.0,) * 3)
    part = short.part_of(whole, 0.1, seed=3)
    assert np.bincount(part.train_labels).tolist() == [100, 10, 1, 1]
    rows = np.array([5, 0, 111])
    assert (part.train[rows] == images[part.train.chosen[rows]]).all()
    assert (labels[part.train.chosen] == part.train_labels).all()
    assert short.part_of(whole, 1.0, seed=3) is whole
