"""The bundle: what is in it, and that it answers as the file it was made from."""

import csv
import hashlib
import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from export import preprocess
from export.artifact import Artifact
from export.bundle import requirements, write_bundle
from export.parity import logits_of
from export.preprocess import Preprocess

RUNTIMES = {"onnxruntime": ("model.onnx", "f32"), "openvino": ("model.xml", "f32")}


@pytest.fixture(scope="module", params=RUNTIMES)
def bundle(request, exported, tmp_path_factory):
    file, precision = RUNTIMES[request.param]
    artifact = Artifact(exported.folder / file, request.param, precision)
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    archive = write_bundle(folder, artifact, exported.card, 1, exported.images, {"verdict": "pass"})
    return folder, archive, artifact


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(3)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (100, 120, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def predict(folder, *args, cwd=None):
    # -I: nothing but the bundle's own folder and the installed packages, so nothing of ours is importable by accident
    command = [sys.executable, "-P", str(folder / "predict.py"), *map(str, args)]
    env = {"PYTHONPATH": str(folder), "PATH": ""}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)


def test_the_manifest_names_every_file_with_its_hash(bundle):
    folder, archive, artifact = bundle
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == {p.name for p in folder.iterdir()} - {"manifest.json"}
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert manifest["model"]["sha256"] == artifact.subject(1).sha256
    with tarfile.open(archive) as packed:
        assert sorted(packed.getnames()) == sorted(f"bundle/{p.name}" for p in folder.iterdir())


def test_preprocessing_is_copied_byte_for_byte(bundle):
    from pathlib import Path

    assert (bundle[0] / "preprocess.py").read_bytes() == Path(preprocess.__file__).read_bytes()


def test_the_archive_has_the_same_bytes_every_time(bundle, exported, tmp_path):
    _, archive, artifact = bundle
    again = write_bundle(tmp_path / "bundle", artifact, exported.card, 1, exported.images, {"verdict": "pass"})
    assert again.read_bytes() == archive.read_bytes()


def test_predict_labels_a_folder_as_the_file_does(bundle, photos, exported, tmp_path):
    folder, _, artifact = bundle
    done = predict(folder, photos, "--csv", tmp_path / "out.csv")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    images = np.stack([Preprocess(168).load(r["path"]) for r in rows])
    logits = logits_of(artifact, images)
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert [r["label"] for r in rows] == [exported.card.classes[i] for i in logits.argmax(1)]
    np.testing.assert_allclose([float(r["score"]) for r in rows], scores.max(1), atol=2e-5)
    assert "5 images labelled, 0 skipped" in done.stderr


def test_predict_prints_a_table_and_goes_on_past_a_broken_file(bundle, photos, tmp_path):
    for photo in photos.iterdir():
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
    import shutil

    folder = shutil.copytree(bundle[0], tmp_path / "b")
    assert predict(folder, "--check").returncode == 0
    (folder / "labels.txt").write_text("x\n")
    done = predict(folder, "--check")
    assert done.returncode != 0
    assert "labels.txt: differs from the manifest" in done.stderr


def test_requirements_are_the_runtime_and_no_torch():
    pins = requirements("onnxruntime")
    names = {p.split("==")[0] for p in pins}
    assert {"onnxruntime", "numpy", "pillow", "protobuf", "flatbuffers"} <= names
    assert not names & {"torch", "timm", "onnx", "openvino", "sympy"}
    assert all("==" in p for p in pins)
