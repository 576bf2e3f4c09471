"""Students with weights, named architectures, tuned teachers, no teacher at all: each as a user runs it."""

import json
import shutil

import pytest
import yaml
from safetensors.torch import load_file, save_file

from models import torchvision_ops

torchvision_ops.ensure()

import timm  # noqa: E402

NETWORK = "mobilenetv3_small_050"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / f"{NETWORK}.safetensors"
    save_file(timm.create_model(NETWORK).state_dict(), path)
    return path


def done(cli, command, tiny, folder, *settings):
    more = [part for s in settings for part in ("--set", s)]
    found = cli(command, "-c", tiny, "--run-dir", folder, "--json", *more)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout), found.stderr


@pytest.fixture(scope="module")
def swept(cli, tiny, weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("swept") / "run"
    settings = (
        "search.space=pretrained",
        "search.sampler=sweep",
        "search.trials=1",
        "search.input_sizes=[32, 64]",
        "search.measure=[openvino-f32, openvino-int8]",
        "search.values={neck/type: Pass, neck/out: 128}",
        f"student.network={NETWORK}",
        f"student.weights={weights}",
        "student.until=[blocks.1, blocks.2]",
    )
    result, said = done(cli, "search", tiny, folder, *settings)
    return folder, settings, result, said


@pytest.mark.slow
def test_a_sweep_measures_all_and_trains_the_slowest_that_keeps_the_limit(swept):
    folder, _, result, said = swept
    assert "4 combinations, each is measured first" in said
    assert (result["asked"], result["trained"]) == (1, 1)
    timed = {p.name.rsplit("-", 1)[0] for p in (folder / "study" / "measurements").glob("*int8*.json")}
    assert len(timed) == 4
    (trial,) = json.loads((folder / "search" / "trials.json").read_text())["trials"]
    assert {t["form"] for t in trial["timings"]} == {"openvino-f32", "openvino-int8"}
    assert trial["spec"]["backbone"] == f"timm:{NETWORK}"


@pytest.mark.slow
def test_a_sweep_goes_on_and_under_another_limit_it_is_planned_anew(cli, swept, tiny, tmp_path):
    begun, settings, _, _ = swept
    folder = shutil.copytree(begun, tmp_path / "run")
    more = [s for s in settings if "search.trials" not in s] + ["search.trials=2"]
    result, _ = done(cli, "search", tiny, folder, *more)
    assert (result["asked"], result["trained"]) == (2, 2)
    result, said = done(cli, "search", tiny, folder, *more, "latency.limit_ms=900", "search.trials=4")
    assert (result["asked"], result["trained"]) == (4, 4)
    assert "4 combinations, each is measured first" in said


@pytest.mark.slow
def test_one_network_that_is_drawn_three_times_is_one_candidate(cli, swept, tiny, tmp_path):
    begun, settings, _, _ = swept
    folder = shutil.copytree(begun, tmp_path / "run")
    more = [s for s in settings if s.split("=")[0] not in ("search.values", "search.trials", "student.until")]
    more += ["student.until=[blocks.1]", "search.input_sizes=[64]", "search.trials=9"]  # of six, three have no neck
    result, _ = done(cli, "search", tiny, folder, *more)
    assert (result["asked"], result["trained"]) == (6, 4)
    table, _ = done(cli, "select", tiny, folder, *more, "select.finalists=3", "select.processes=3")
    assert len(table["table"]) == 4
    again = [r["trial"] for r in table["table"] if r["processes"]]
    assert len(again) >= 3
    rows = {r["trial"]: r["training"] for r in json.loads((folder / "search/trials.json").read_text())["trials"]}
    assert len({rows[t] for t in again}) == len(again)
    last = max(t for t in rows if list(rows.values()).count(rows[t]) == 3)
    person, _ = done(cli, "select", tiny, folder, *more, f"select.trial={last}")
    assert rows[person["trial"]] == rows[last]
    others = [r["reason"] for r in person["table"] if r["trial"] != person["trial"]]
    assert set(others) == {f"trial {person['trial']} was asked for (select.trial)"}


@pytest.mark.slow
def test_the_student_begins_with_the_weights_given(cli, swept, tiny, weights):
    folder, settings, _, _ = swept
    done(cli, "select", tiny, folder, *settings)
    result, _ = done(cli, "train", tiny, folder, *settings, "distill.epochs=1")
    assert result["epochs"] == 1
    student, given = load_file(folder / "distill" / "student.safetensors"), load_file(weights)
    kept = [k for k in student if k.startswith("0.graph.") and k.endswith("conv_pw.weight")]
    assert kept
    for key in kept:
        assert (student[key] - given[key.removeprefix("0.graph.")]).abs().max() < 0.05


@pytest.mark.slow
def test_an_architecture_that_is_named_is_trained_without_search_or_teacher(cli, tiny, tmp_path):
    settings = ("student.model=cpu_small", "distill.epochs=2")
    result, said = done(cli, "train", tiny, tmp_path / "r", *settings)
    assert result["epochs"] == 2
    assert set(result["f1_per_class"]) == {"checks", "dots", "stripes"}
    assert "select: cpu_small: p90" in said
    student = yaml.safe_load((tmp_path / "r" / "select" / "student.yaml").read_text())
    assert student["chosen_by"] == "config"
    assert not (tmp_path / "r" / "teach").exists()
    again, said = done(cli, "train", tiny, tmp_path / "r", *settings)
    assert again == result
    assert "distill: done before" in said
    exported = cli("export", "--run-dir", tmp_path / "r", "--format", "onnx")
    assert exported.returncode == 0, exported.stderr


@pytest.mark.slow
def test_a_teacher_is_tuned_and_the_best_trial_kept(cli, tiny, tmp_path):
    settings = ("student.model=cpu_small", "teacher.trials=3", "teacher.tune.input_size=[64]", "teacher.input_size=96")
    result, said = done(cli, "teach", tiny, tmp_path / "r", *settings)
    record = json.loads((tmp_path / "r" / "teach" / "training.json").read_text())
    assert "teach, trial 3 of 3" in said
    finished = [t for t in record["trials"] if t["state"] in ("complete", "pruned")]
    assert len(finished) == 3
    assert record["trials"][0]["params"]["input_size"] == 96
    best = max(t["f1_macro"] for t in record["trials"] if t["state"] == "complete")
    assert result["f1_macro"] == best == record["best"]["f1_macro"]
    assert record["hyper"]["input_size"] in (64, 96)


@pytest.mark.slow
def test_a_teacher_of_other_classes_is_refused(cli, tiny, tmp_path):
    other = tmp_path / "teacher.safetensors"
    save_file(timm.create_model(NETWORK, num_classes=3).state_dict(), other, {"classes": '["cat", "dog", "bird"]'})
    settings = ("--set", "student.model=cpu_small", "--set", f"teacher.weights={other}")
    found = cli("teach", "-c", tiny, "--run-dir", tmp_path / "r", *settings)
    assert found.returncode == 2, found.stderr
    assert "a teacher of other classes (cat, dog, bird) than the data's (checks, dots, stripes)" in found.stderr


@pytest.mark.slow
def test_a_teacher_that_diverges_at_once_says_where_and_what_to_lower(cli, tiny, tmp_path):
    settings = ("--set", "student.model=cpu_small", "--set", "teacher.learning_rate=1e9")
    found = cli("teach", "-c", tiny, "--run-dir", tmp_path / "r", *settings)
    assert found.returncode == 2, found.stderr
    assert "is no number any more" in found.stderr or "are no numbers any more" in found.stderr
    assert "lower teacher.learning_rate" in found.stderr


@pytest.mark.parametrize(
    ("command", "setting", "text"),
    [
        ("search", "student.model=cpu_small", "search: the config names an architecture (student.model)"),
        ("teach", "distill.weight=0", "teach: the config asks for no teacher (distill.weight is 0)"),
    ],
)
def test_a_stage_that_the_config_does_not_ask_for_says_so(inside, tiny, tmp_path, command, setting, text):
    found = inside(command, "-c", tiny, "--run-dir", tmp_path / "r", "--set", setting)
    assert found.returncode == 2
    assert text in found.stderr


def test_a_named_architecture_over_the_limit_is_refused_untrained(cli, tiny, tmp_path):
    settings = ("--set", "student.model=lineage_student", "--set", "latency.limit_ms=0.01")
    found = cli("train", "-c", tiny, "--run-dir", tmp_path / "r", *settings)
    assert found.returncode == 1, found.stderr
    assert "lineage_student: p90" in found.stderr
    assert "is over the limit of 0.01 ms" in found.stderr


def test_weights_of_a_student_that_do_not_fit_are_said_before_anything_is_searched(inside, tiny, tmp_path, weights):
    settings = ("search.space=pretrained", "student.network=lcnet_050", f"student.weights={weights}")
    more = [part for s in settings for part in ("--set", s)]
    found = inside("run", "-c", tiny, "--run-dir", tmp_path / "r", *more)
    assert found.returncode == 2
    assert "student.weights:" in found.stderr
    assert "does not fit lcnet_050" in found.stderr
    assert "search: begins" not in found.stderr
