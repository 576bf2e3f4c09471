"""The bundle: what is in it, and that it answers as the file it was made from."""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from export import preprocess
from export.artifact import Artifact
from export.bundle import files_of, read_bundle, write_bundle
from export.errors import ExportError
from export.lock import Lock, Pin, lock, requirements
from export.parity import logits_of
from export.preprocess import Preprocess

RUNTIMES = {"onnxruntime": ("model.onnx", "f32"), "openvino": ("model.xml", "f32")}
LOCK = Lock((Pin("numpy", "2.0"), Pin("pillow", "11.0")))


@pytest.fixture(scope="module", params=RUNTIMES)
def bundle(request, exported, evidence_of, tmp_path_factory):
    file, precision = RUNTIMES[request.param]
    artifact = Artifact(exported.folder / file, request.param, precision)
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    archive = write_bundle(folder, artifact, exported.card, 1, LOCK, evidence_of(artifact, exported.card))
    return folder, archive, artifact


def predict(folder, *args, cwd=None):
    # -I: nothing but the bundle's own folder and the installed packages, so nothing of ours is importable by accident
    command = [sys.executable, "-P", str(folder / "predict.py"), *map(str, args)]
    env = {"PYTHONPATH": str(folder), "PATH": ""}
    return subprocess.run(command, capture_output=True, text=True, errors="surrogateescape", cwd=cwd, env=env)


def test_the_manifest_names_every_file_with_its_hash(bundle):
    folder, archive, artifact = bundle
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == set(files_of(folder))
    assert "golden/turned.jpg" in manifest["files"]
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert manifest["model"]["sha256"] == artifact.subject(1).sha256
    with tarfile.open(archive) as packed:
        assert set(packed.getnames()) == {f"bundle/{name}" for name in [*files_of(folder), "manifest.json"]}


def test_preprocessing_is_copied_byte_for_byte(bundle):
    from pathlib import Path

    assert (bundle[0] / "preprocess.py").read_bytes() == Path(preprocess.__file__).read_bytes()


def test_the_archive_has_the_same_bytes_every_time(bundle, exported, evidence_of, tmp_path):
    _, archive, artifact = bundle
    evidence = evidence_of(artifact, exported.card)
    again = write_bundle(tmp_path / "bundle", artifact, exported.card, 1, LOCK, evidence)
    assert again.read_bytes() == archive.read_bytes()


def test_predict_labels_a_folder_as_the_file_does(bundle, photos, exported, tmp_path):
    folder, _, artifact = bundle
    done = predict(folder, photos.folder, "--csv", tmp_path / "out.csv")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    images = np.stack([Preprocess(168).load(r["path"]) for r in rows])
    logits = logits_of(artifact, images)
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert [r["label"] for r in rows] == [exported.card.classes[i] for i in logits.argmax(1)]
    np.testing.assert_allclose([float(r["score"]) for r in rows], scores.max(1), atol=2e-5)
    assert "20 images labelled, 0 skipped" in done.stderr


def test_predict_prints_a_table_and_goes_on_past_a_broken_file(bundle, photos, tmp_path):
    for photo in photos.paths[:5]:
        (tmp_path / photo.name).write_bytes(photo.read_bytes())
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    done = predict(bundle[0], tmp_path)
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 6
    assert "skipped:" in done.stderr
    assert "broken.jpg" in done.stderr


@pytest.mark.parametrize(
    ("args", "text"), [([], "at least one PATH"), (["nowhere"], "no such file or folder: nowhere")]
)
def test_predict_refuses_wrong_use(bundle, args, text):
    done = predict(bundle[0], *args)
    assert done.returncode == 2
    assert text in done.stderr


def test_check_finds_what_was_tampered_with(bundle, tmp_path):
    folder = shutil.copytree(bundle[0], tmp_path / "b")
    assert predict(folder, "--check").returncode == 0
    (folder / "labels.txt").write_text("x\n")
    done = predict(folder, "--check")
    assert done.returncode != 0
    assert "labels.txt: differs from the manifest" in done.stderr


PLANTED = "import sys\nprint('PLANTED')\n"


@pytest.mark.parametrize("name", ["csv.py", "numpy.py", "csv/__init__.py", "__pycache__/preprocess.pyc"])
@pytest.mark.parametrize("path", [None, ":"])
def test_nothing_in_the_folder_is_imported_by_its_name(bundle, tmp_path, name, path):
    folder = shutil.copytree(bundle[0], tmp_path / "b")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(PLANTED)
    env = {"PATH": ""} | ({} if path is None else {"PYTHONPATH": path})
    command = [sys.executable, "predict.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env)
    assert "PLANTED" not in done.stdout + done.stderr
    assert done.returncode == 1
    assert f"{name}: not in the manifest; move it out of this folder" in done.stderr


def test_a_link_in_the_folder_fails_the_check(bundle, tmp_path):
    folder = shutil.copytree(bundle[0], tmp_path / "b")
    (folder / "csv").symlink_to(tmp_path, target_is_directory=True)
    done = predict(folder, "--check")
    assert done.returncode == 1
    assert "csv: not in the manifest" in done.stderr


def test_requirements_are_the_runtime_and_no_torch():
    pins = dict(requirements("onnxruntime"))
    names = set(pins)
    assert {"onnxruntime", "numpy", "pillow", "protobuf", "flatbuffers"} <= names
    assert not names & {"torch", "timm", "onnx", "openvino", "sympy"}
    assert pins["numpy"] == np.__version__


def test_a_lock_without_an_index_has_no_hashes_and_says_why(monkeypatch):
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_NO_CACHE", "1")
    found = lock("onnxruntime")
    assert found.problem
    assert "--hash" not in found.text
    assert found.text.splitlines() == [f"{n}=={v}" for n, v in requirements("onnxruntime")]


def test_json_has_the_logits_of_each_image(bundle, photos, exported, tmp_path):
    folder, _, artifact = bundle
    done = predict(folder, photos.folder, "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out.json").read_text())
    assert [r["path"] for r in rows] == [str(p) for p in photos.paths]
    expected = logits_of(artifact, photos.arrays(exported.card))
    np.testing.assert_allclose([r["logits"] for r in rows], expected, atol=1e-4)


def test_output_has_the_shape_of_the_lineage(bundle, photos, tmp_path):
    done = predict(bundle[0], photos.folder, "--output", tmp_path / "output.csv")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "output.csv").read_text())
    assert set(found) == {"inference", "time", "macs"}
    assert set(found["time"]) == {"profile", "runtime", "inference"}
    names = {p.name for p in photos.paths}
    assert set(found["inference"]) == set(found["time"]["inference"]) == names
    assert set(found["inference"].values()) <= set("abcdef")
    assert 0 < found["time"]["runtime"]["inference_only"] < found["time"]["runtime"]["all"]


def test_files_of_the_same_name_are_told_apart(bundle, photos, tmp_path):
    paths = [tmp_path / name for name in ("a.jpg", "x/a.jpg", "x/b.jpg")]
    for path, photo in zip(paths, photos.paths[:3], strict=True):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(photo.read_bytes())
    done = predict(bundle[0], "x", "a.jpg", "x/b.jpg", "--output", "output.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(json.loads((tmp_path / "output.csv").read_text())["inference"]) == {"a.jpg", "x/a.jpg", "b.jpg"}
    assert "4 images labelled" in done.stderr  # one was named twice


@pytest.mark.parametrize("options", [("--csv", "out"), ("--json", "out"), ("--output", "out"), ()])
def test_a_name_that_is_not_utf8(bundle, photos, tmp_path, options):
    path = tmp_path / os.fsdecode(b"caf\xe9.jpg")
    path.write_bytes(photos.paths[0].read_bytes())
    done = predict(bundle[0], tmp_path, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    if "--csv" in options:
        assert b"caf\xe9.jpg" in (tmp_path / "out").read_bytes()


def test_an_output_that_cannot_be_written(bundle, photos, tmp_path):
    done = predict(bundle[0], photos.folder, "--csv", tmp_path / "nowhere" / "out.csv")
    assert done.returncode == 2
    assert "nowhere/out.csv: cannot be written: No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_one_shape_at_a_time(bundle, photos):
    done = predict(bundle[0], photos.folder, "--csv", "a", "--json", "b")
    assert done.returncode == 2
    assert "one of --csv, --json and --output" in done.stderr


def test_the_model_card_and_the_bill_of_materials(bundle):
    folder, _, artifact = bundle
    card = (folder / "MODEL_CARD.md").read_text()
    assert "Macro F1" in card
    assert "| a | " in card
    assert artifact.subject(1).sha256 in card
    bom = json.loads((folder / "sbom.cdx.json").read_text())
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    assert {c["purl"] for c in bom["components"]} == {f"pkg:pypi/{p.name}@{p.version}" for p in LOCK.pins}
    assert bom["metadata"]["component"]["type"] == "machine-learning-model"
    assert bom["metadata"]["component"]["hashes"][0]["content"] == artifact.subject(1).sha256


def test_the_bill_of_materials_is_valid_cyclonedx(bundle):
    from cyclonedx.schema import OutputFormat, SchemaVersion
    from cyclonedx.validation import make_schemabased_validator

    validator = make_schemabased_validator(OutputFormat.JSON, SchemaVersion.V1_6)
    assert validator.validate_str((bundle[0] / "sbom.cdx.json").read_text()) is None


def test_a_bundle_of_a_newer_format_is_refused(bundle, tmp_path):
    folder = shutil.copytree(bundle[0], tmp_path / "b")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(ExportError, match="a bundle of format 99; this version reads 1 to 3"):
        read_bundle(folder)


def hard_files(folder):
    """What the field brings; the names of those that no reader can be expected to read."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    image.convert("L").save(folder / "grey.jpg")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(noise[..., 0].astype(np.uint16) * 257).save(folder / "sixteen.png")
    image.convert("RGBA").save(folder / "alpha.png")
    image.save(folder / "moving.gif", save_all=True, append_images=[image.rotate(90)] * 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "turned.jpg", exif=exif)
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    Image.new("RGB", (20_000, 30)).save(folder / "wide.png")
    whole = folder / "whole.jpg"
    image.save(whole)
    (folder / "truncated.jpg").write_bytes(whole.read_bytes()[:-200])
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.png").write_bytes(b"")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    (folder / "notes.txt").write_text("not an image, and not named like one")
    return {"truncated.jpg", "text.jpg", "empty.png", "bomb.png"}


def test_no_file_stops_the_folder(bundle, tmp_path):
    unreadable = hard_files(tmp_path)
    done = predict(bundle[0], tmp_path, "--csv", tmp_path / "out.csv")
    assert done.returncode == 1
    labelled = {r["path"].rsplit("/")[-1] for r in csv.DictReader((tmp_path / "out.csv").open())}
    skipped = [line for line in done.stderr.splitlines() if line.startswith("skipped: ")]
    assert len(skipped) == len(unreadable)
    assert all(any(name in line for line in skipped) for name in unreadable)
    assert labelled == {p.name for p in tmp_path.iterdir()} - unreadable - {"notes.txt", "out.csv"}
    assert done.stderr.splitlines()[-1] == f"{len(labelled)} images labelled, {len(unreadable)} skipped"
    assert "Traceback" not in done.stderr


def test_a_folder_without_images(bundle, tmp_path):
    (tmp_path / "notes.txt").write_text("text")
    done = predict(bundle[0], tmp_path)
    assert done.returncode == 2
    assert "no image found" in done.stderr
