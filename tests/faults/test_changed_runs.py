"""A run folder of which something was changed: nothing that was found out about a file is said of another one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from export.artifact import Artifact, sha256
from pipeline.config import load_config
from pipeline.data.images import decoded
from pipeline.data.index import scan
from pipeline.errors import ChangedOutput, EnvironmentProblem, PipelineError
from pipeline.files import keep, kept, read_record, write_record
from pipeline.run import STAGES, _all_needs
from pipeline.stages import MANIFEST, RESULT, Run, open_run, run_config
from tests.conftest import draw_photos
from tests.faults.bundles import flip_byte
from tests.golden.make_run import seal

# --- pieces ----------------------------------------------------------------------------------------------------------


def test_a_record_that_was_edited_cut_or_emptied_is_none(tmp_path):
    path = tmp_path / "record.json"
    write_record(path, {"f1_macro": 0.69, "verdict": "fail", "rows": [1, 2.5, None, float("nan")]})
    whole = path.read_text()
    assert read_record(path)["f1_macro"] == 0.69
    for text in (
        whole.replace("0.69", "0.99"),
        whole.replace("fail", "pass"),
        whole[:-9],
        "",
        "[]",
        "[" * 60_000,
        "{}",
    ):
        path.write_text(text)
        assert read_record(path) is None, text[:40]
    path.unlink()
    assert read_record(path) is None


def test_a_kept_file_that_was_damaged_is_removed(tmp_path):
    partial = tmp_path / "partial.npy"
    for content in (b"one", b"two"):
        partial.write_bytes(content)
        path = keep(partial, tmp_path, "val-[64]")
        assert kept(tmp_path, "val-[64]", ".npy") == path
        assert kept(tmp_path, "val", ".npy") is None
        path.write_bytes(b"other")
        assert kept(tmp_path, "val-[64]", ".npy") is None
        assert not path.exists()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "photos"
    draw_photos(folder, train=4, val=4)
    return folder


def preprocess():
    from export.preprocess import Preprocess

    return Preprocess(32)


@pytest.mark.parametrize("damage", ["half zeroed", "cut", "another image"])
def test_a_damaged_cache_of_images_is_made_anew(photos, tmp_path, damage):
    index = scan(photos, 0)
    before = np.array(decoded(index, "val", preprocess(), tmp_path))
    (cache,) = tmp_path.iterdir()
    data = bytearray(cache.read_bytes())
    if damage == "half zeroed":
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    elif damage == "cut":
        data = data[:-500]
    else:
        data[-3072:] = data[-6144:-3072]
    cache.write_bytes(data)
    assert (np.array(decoded(index, "val", preprocess(), tmp_path)) == before).all()
    assert [p.name for p in tmp_path.iterdir()] == [cache.name]


def test_an_image_that_was_replaced_since_the_data_was_read_is_not_trained_on(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    index = scan(tmp_path / "photos", 0)
    path = index.paths("train")[3]
    path.write_bytes(index.paths("train")[4].read_bytes())
    with pytest.raises(PipelineError, match="it was changed since the data was read"):
        decoded(index, "train", preprocess(), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_same_weights_have_one_hash(tmp_path):
    """safetensors writes the entries of its metadata in a random order."""
    from models.build import build
    from models.spec import ModelSpec
    from pipeline.training.checkpoint import load_checkpoint, save_student, student_card

    spec = ModelSpec.load("cpu_small").with_classes(3)
    state = build(spec).state_dict()
    card = student_card(spec, ("a", "b", "c"), "squash")
    hashes = set()
    for i in range(6):
        save_student(tmp_path / f"{i}.safetensors", state, spec, card)
        hashes.add(sha256(tmp_path / f"{i}.safetensors"))
    assert len(hashes) == 1
    again, known, weights = load_checkpoint(tmp_path / "0.safetensors")
    assert (again.hash, known) == (spec.hash, card)
    assert all(torch.equal(weights[k], v) for k, v in state.items())


def test_a_training_whose_checkpoint_was_damaged_begins_anew(tmp_path):
    from pipeline.training.progress import Checkpoints, Epoch, begun, on_cpu

    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    epoch = Epoch(0, 1.0, 1.0, 0.5, 0.5, 100.0)
    for damaged in ("state.json", "last-1.", "best-0."):
        folder = tmp_path / damaged
        saved = Checkpoints(folder, model, None, optimizer)
        saved.save([epoch], epoch, on_cpu(model.state_dict()))
        assert begun(folder)
        assert saved.restore()[0] == [epoch]
        (path,) = [p for p in folder.iterdir() if p.name.startswith(damaged)]
        flip_byte(path)
        assert not begun(folder)
        assert saved.restore() == ([], None, {})


# --- a whole run -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / "run")


def shipped_file(folder):
    shipped = json.loads((folder / "gate/gate.json").read_text())["shipped"]
    path = folder / shipped["path"]
    return path.with_suffix(".bin") if path.suffix == ".xml" else path


def spoil(path):
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = bytes(b ^ 255 for b in data[middle : middle + 4000])
    path.write_bytes(data)


@pytest.mark.slow
def test_a_changed_model_is_neither_judged_nor_packed_and_run_repairs_it(cli, tiny, folder):
    """4,000 bytes of the shipped file, and the stages after it are to be done again."""
    model = shipped_file(folder)
    before = sha256(model)
    spoil(model)
    for stage in ("bundle", "gate"):
        shutil.rmtree(folder / stage)
        done = cli(stage, "--run-dir", folder)
        assert done.returncode == 2, done.stderr
        assert f"{model.name}" in done.stderr
        assert "changed since" in done.stderr
        assert not (folder / stage / MANIFEST).exists()
    done = cli("run", "-c", tiny, "--run-dir", folder, "--json")
    assert done.returncode in (0, 3), done.stderr
    assert f"{model.parent.name}: {model.parent.name}/{model.name} was changed since it was written" in done.stderr
    result = json.loads(done.stdout)
    assert sha256(model) == before, "the same weights give the same file"
    artifact = Artifact(folder / result["model"]["path"], result["model"]["runtime"], result["model"]["precision"])
    gated = json.loads((folder / "gate/gate.json").read_text())["shipped"]
    assert artifact.subject(1).sha256 == result["model"]["sha256"] == gated["sha256"]
    if done.returncode == 0:
        packed = json.loads((folder / "bundle/bundle/manifest.json").read_text())
        assert packed["model"]["sha256"] == packed["evidence"]["latency"]["subject"]["sha256"] == gated["sha256"]


READS = {
    "select": "search/trials.json",
    "teach": "select/student.yaml",
    "export": "distill/student.safetensors",
    "quantize": "export/model.onnx",
    "verify": "data/index.json",
    "gate": "verify/race.json",
    "bundle": "gate/gate.json",
    "preflight": "bundle/bundle.tar.gz",
}


def test_every_file_of_a_stage_but_its_own_manifest_is_covered(tmp_path):
    from pipeline.stages import Stage, perform

    def work(run, folder):
        (folder / "bundle").mkdir()
        (folder / "bundle/manifest.json").write_text("{}")
        return {}

    with open_run(tmp_path / "run", load_config("demo"), print) as run:
        perform(Stage("bundle", (), lambda run: {}, work), run)
        assert run.manifest("bundle")["outputs"].keys() == {"bundle/manifest.json"}


@pytest.mark.slow
@pytest.mark.parametrize("stage", READS)
def test_no_stage_uses_what_was_changed(inside, folder, stage):
    path = folder / READS[stage]
    flip_byte(path)
    shutil.rmtree(folder / stage)
    done = inside(stage, "--run-dir", folder)
    assert done.returncode == 2, done.stderr
    assert "was changed since" in done.stderr
    assert path.name in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / stage / MANIFEST).exists()


@pytest.mark.slow
def test_a_report_uses_nothing_that_was_edited(inside, folder, monkeypatch):
    result = json.loads((folder / RESULT).read_text())
    report = folder / "report.html"

    def told():
        done = inside("report", "--run-dir", folder, "--json")
        assert "Traceback" not in done.stderr
        return done, json.loads(done.stdout)["verdict"] if done.returncode == 0 else None

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.data.stage.list_files", lambda root: ["another photo"])
        done, verdict = told()
        assert (verdict, "the photos have changed since" in done.stderr) == (result["verdict"], True)
    (folder / RESULT).write_text(json.dumps(result | {"verdict": "fail"}))
    done, verdict = told()
    assert verdict == result["verdict"], "it is reckoned anew from the stages"
    assert "result.json is damaged, or was edited" in done.stderr
    f1 = result["quality"]["f1_macro"]
    for name in ("gate/gate.json", "gate/manifest.json"):
        path = folder / name
        text = path.read_text()
        assert repr(f1) in text
        path.write_text(text.replace(repr(f1), "0.73219"))
        done, verdict = told()
        assert verdict == "unfinished"
        assert "gate/" in done.stderr
        assert "0.7322" not in report.read_text()
        path.write_text(text)
    flip_byte(shipped_file(folder))
    done, verdict = told()
    assert verdict == "unfinished"
    assert shipped_file(folder).name in done.stderr


@pytest.mark.slow
def test_a_run_folder_may_be_moved(cli, inside, tiny, folder, tmp_path):
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    folder.rename(moved)
    done = inside("report", "--run-dir", moved, "--json")
    assert json.loads(done.stdout)["verdict"] == "pass", done.stderr
    result = json.loads((moved / RESULT).read_text())
    for name in (result["bundle"]["archive"], result["bundle"]["folder"], result["model"]["path"]):
        assert (moved / name).exists()
    done = cli("run", "-c", tiny, "--run-dir", moved, "--json")
    assert done.returncode == 0, done.stderr
    assert all(s["skipped"] for s in json.loads(done.stdout)["stages"])


@pytest.mark.slow
def test_the_demos_images_move_with_the_run(tmp_path):
    """They are an output of the stage `data`."""
    from pipeline.data.stage import DATA, load_index
    from pipeline.stages import perform

    with open_run(tmp_path / "run", load_config("demo"), print) as run:
        perform(DATA, run)
    (tmp_path / "run").rename(tmp_path / "moved")
    index = load_index(Run(tmp_path / "moved", load_config("demo"), print))
    assert all(p.is_file() for p in index.paths("val"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["quantize", "bundle"])
def test_an_image_that_was_replaced_is_in_no_file_that_is_made_later(inside, tiny, folder, tmp_path, stage):
    """By another of the same size and time; the stage is asked for alone, and reads no data anew."""
    index = json.loads((folder / "data/index.json").read_text())
    photos = shutil.copytree(index["root"], tmp_path / "photos")
    (folder / "data/index.json").write_text(json.dumps(index | {"root": str(photos)}))
    seal(folder)
    split = {"quantize": "train", "bundle": "val"}[stage]
    flip_byte(photos / index["splits"][split][0]["path"])
    shutil.rmtree(folder / stage)
    done = inside(stage, "--run-dir", folder)
    assert done.returncode == 2, done.stderr
    assert "it was changed since the data was read" in done.stderr


def test_a_config_that_was_cut_short_is_none_wherever_it_was_cut(tmp_path):
    """Its first lines would be a config too, with defaults for the rest."""
    with open_run(tmp_path, load_config("demo", ["latency.limit_ms=7"]), print):
        pass
    path = tmp_path / "config.yaml"
    whole = path.read_bytes()
    assert run_config(tmp_path)["latency"]["limit_ms"] == 7
    for length in range(len(whole) // 2, len(whole) // 2 + 200):
        if not whole[:length].endswith(b"\n"):
            path.write_bytes(whole[:length])
            with pytest.raises(PipelineError, match="give the config that the run was begun with"):
                run_config(tmp_path)


DAMAGED = ["data/manifest.json", "verify/manifest.json", "result.json", ".id", "study/trained/*.json", "config.yaml"]


@pytest.mark.slow
def test_files_that_were_cut_short_are_repaired_or_named(cli, inside, tiny, folder):
    for names, code in ((DAMAGED[:-1], 0), (DAMAGED[-1:], 2)):
        for path in (p for name in names for p in folder.glob(name)):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        done = inside("report", "--run-dir", folder, "--json")
        assert "Traceback" not in done.stderr
        assert done.returncode == code, done.stderr
    with pytest.raises(PipelineError, match="give the config that the run was begun with"):
        run_config(folder)
    done = cli("run", "-c", tiny, "--run-dir", folder, "--json")
    assert done.returncode in (0, 3), done.stderr
    assert "Traceback" not in done.stderr
    assert "verify: verify/manifest.json is damaged, or of another version: it is done again" in done.stderr


@pytest.mark.parametrize("name", ["log.txt", ".id", "study/study.db", "data/index.json"])
def test_a_named_pipe_in_a_run_folder_is_named_and_not_waited_for(tiny, tmp_path, name):
    (tmp_path / ".lock").touch()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)
    command = [sys.executable, "-m", "edgebuild", "search", "-c", str(tiny), "--run-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert f"{tmp_path / name}: a pipe, a socket or a device; remove it" in done.stderr


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("tensorboard", "a file where a folder belongs"),
        (".work", "a file where a folder belongs"),
        ("report.html/x", "a folder where a file belongs"),
        ("study/broken", "a broken link"),
    ],
)
def test_what_is_in_the_way_is_named(inside, tiny, tmp_path, name, told):
    path = tmp_path / name
    (tmp_path / ".lock").touch()
    path.parent.mkdir(exist_ok=True)
    if name == "study/broken":
        path.symlink_to("nowhere")
    else:
        path.write_text("")
    done = inside("search", "-c", tiny, "--run-dir", tmp_path)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert "remove it from the run folder" in done.stderr


def test_a_folder_without_its_config_is_not_begun_anew(inside, tmp_path):
    """With the demo, which would replace all that it holds."""
    (tmp_path / "data").mkdir()
    done = inside("run", "--run-dir", tmp_path)
    assert done.returncode == 2, done.stderr
    assert f"{tmp_path}: no run folder (it has no config.yaml)" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def files_in(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "command", [("search", "-c", "build.yaml"), ("run", "-c", "build.yaml"), ("gate", "-c", "config.yaml"), ("report",)]
)
def test_a_folder_of_the_users_is_no_run_folder(command, inside, tmp_path):
    """A project whose folders have the same names as stages. Each of these commands used to replace some of them."""
    draw_photos(tmp_path / "data", train=4, val=2)
    (tmp_path / "report").mkdir()
    (tmp_path / "report/thesis.tex").write_text("years of work")
    for name in ("build.yaml", "config.yaml"):
        (tmp_path / name).write_text("data: {root: data}\nlatency: {limit_ms: 1}  # my comment\n")
    before = files_in(tmp_path)
    done = inside(*command, "--run-dir", ".", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "not empty, and not a run folder" in done.stderr
    assert files_in(tmp_path) == before


def test_images_and_run_folder_are_kept_apart(inside, tmp_path):
    draw_photos(tmp_path / "run/data", train=4, val=2)
    (tmp_path / "run/.lock").touch()
    before = files_in(tmp_path)
    done = inside("search", "-c", "demo", "--set", f"data.root={tmp_path}/run/data", "--run-dir", tmp_path / "run")
    assert (done.returncode, "lies in the run folder" in done.stderr) == (2, True), done.stderr
    classes = tmp_path / "run/data/train"
    done = inside("search", "-c", "demo", "--set", f"data.root={classes}", "--run-dir", classes / "runs/x")
    assert (done.returncode, "would be a class of data.root" in done.stderr) == (2, True), done.stderr
    assert files_in(tmp_path) == before


def test_a_lock_that_was_removed_keeps_nobody_out_and_is_noticed(tmp_path, monkeypatch):
    own = os.open

    def opened(path, *more, **named):
        descriptor = own(path, *more, **named)
        if str(path).endswith(".lock"):
            Path(path).unlink()
        return descriptor

    monkeypatch.setattr(os, "open", opened)
    with (
        pytest.raises(EnvironmentProblem, match=r"its \.lock was removed"),
        open_run(tmp_path / "run", load_config("demo"), print),
    ):
        pass


def test_a_run_means_the_same_from_every_folder(tmp_path, monkeypatch):
    draw_photos(tmp_path / "a/photos", train=2, val=2)
    (tmp_path / "a/space.yaml").write_text("x")
    monkeypatch.chdir(tmp_path / "a")
    config = load_config(
        "demo", ["data.root=photos", "teacher.weights=w.safetensors", "search.space=[space.yaml, cpu]"]
    )
    with open_run(tmp_path / "run", config, print):
        pass
    monkeypatch.chdir(tmp_path)
    document = run_config(tmp_path / "run")
    assert document["data"]["root"] == str(tmp_path / "a/photos")
    assert document["teacher"]["weights"] == str(tmp_path / "a/w.safetensors")
    assert document["student"]["weights"] == "hub"
    assert document["search"]["space"] == [str(tmp_path / "a/space.yaml"), "cpu"]
    with open_run(tmp_path / "demo", load_config("demo"), print) as run:
        assert run.config.data.root == "demo"


def test_a_stage_stands_on_all_that_come_before_it():
    by_name = {s.name: s for s in STAGES}
    assert _all_needs(by_name["bundle"], by_name) == [s.name for s in STAGES[: STAGES.index(by_name["bundle"])]]
    assert _all_needs(by_name["select"], by_name) == ["data", "search"]


@pytest.mark.slow
def test_no_stage_is_taken_for_done_over_another_choice(inside, folder):
    trained = json.loads((folder / "search/trials.json").read_text())["trials"]
    chosen = json.loads((folder / "select/manifest.json").read_text())["summary"]["trial"]
    other = next(t["trial"] for t in trained if t["state"] == "trained" and t["trial"] != chosen)
    done = inside("select", "--run-dir", folder, "--trial", other)
    assert done.returncode == 0, done.stderr
    for stage in ("quantize", "bundle", "preflight"):
        done = inside(stage, "--run-dir", folder)
        assert done.returncode == 2, (stage, done.stderr)
        assert "is out of date" in done.stderr


@pytest.mark.parametrize("changed", [{"outputs": "x"}, {"summary": None}, {"seconds": "1"}, {"final": 1}])
def test_a_manifest_of_another_shape_is_none_though_its_digest_was_computed_anew(tmp_path, changed):
    run = Run(tmp_path, load_config("demo"), print)
    whole = {"format": 1, "stage": "data", "key": "k", "final": True, "outputs": {}, "seconds": 1.5, "summary": {}}
    (tmp_path / "data").mkdir()
    write_record(tmp_path / "data/manifest.json", whole)
    assert run.manifest("data")
    write_record(tmp_path / "data/manifest.json", {**whole, **changed})
    assert run.manifest("data") is None


def test_what_is_asked_of_a_stage_that_is_not_there(tmp_path):
    (tmp_path / "run").mkdir()
    run = Run(tmp_path / "run", load_config("demo"), print)
    assert not run.has("verify", "race.json")
    with pytest.raises(ChangedOutput, match="the stage verify is not done, or its manifest is damaged"):
        run.read("verify", "race.json")
