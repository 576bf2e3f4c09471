"""The whole way of an image, by part, on real JPEG files; what decoding at a fraction of the size gains and loses."""

import json

import numpy as np
import pytest
from PIL import Image

from export.all_in import PARTS, PROCESSES, measure_all_in
from export.artifact import Artifact
from export.bundle import read_bundle, write_bundle
from export.errors import ExportError
from export.lock import Lock, Pin
from export.preprocess import ImageError, Preprocess
from latency.machine import LocalMachine


def photo(path, size, seed=0):
    """Smooth colours with some grain: a JPEG of that size."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = rng.normal(0, 6, (size[1], size[0], 3))
    Image.fromarray(np.clip(np.asarray(small) + grain, 0, 255).astype(np.uint8)).save(path, quality=90)
    return path


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jpegs")
    return [photo(folder / f"{i}.jpg", (1600, 1200), i) for i in range(6)]


def test_every_part_of_the_way_is_timed_by_image(exported, jpegs):
    artifact = Artifact(exported.folder / "model.onnx", "onnxruntime", "f32")
    found = measure_all_in(artifact, exported.card.preprocess, jpegs, threads=1)
    summary = found.summary()
    assert list(summary["parts"]) == list(PARTS) == ["read", "decode", "resize", "infer"]
    assert all(0 < row["p50_ms"] <= row["p90_ms"] for row in summary["parts"].values())
    assert (summary["images"], summary["processes"]) == (6, PROCESSES)
    assert summary["parts"]["decode"]["p50_ms"] < summary["decode_at_full_size"]["p50_ms"], "1600 px, 168 are wanted"
    low, predicted, high = found.predict_s(1000)
    per_image_s = sum(row["mean_ms"] for row in summary["parts"].values()) / 1e3
    assert low <= predicted <= high
    assert predicted == pytest.approx(1000 * per_image_s + summary["start_s"], rel=0.3)


def test_a_broken_image_is_named(exported, jpegs, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(jpegs[0].read_bytes()[:200])
    artifact = Artifact(exported.folder / "model.onnx", "onnxruntime", "f32")
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        measure_all_in(artifact, exported.card.preprocess, [*jpegs, broken], threads=1)


def test_decoding_at_a_fraction_of_the_size_changes_next_to_nothing(jpegs):
    preprocess = Preprocess(168)
    for path in jpegs:
        scaled, full = (preprocess.resize(preprocess.decode(path, scaled=s)).astype(int) for s in (True, False))
        assert np.abs(scaled - full).mean() < 1.0
        assert np.abs(scaled - full).max() < 16


def test_a_jpeg_that_is_not_much_larger_is_decoded_in_full(tmp_path):
    path = photo(tmp_path / "small.jpg", (320, 240))
    preprocess = Preprocess(168)
    assert preprocess.decode(path).size == (320, 240)
    assert preprocess.decode(photo(tmp_path / "large.jpg", (1600, 1200))).size == (800, 600)


def test_images_are_taken_evenly_and_not_from_the_first_class_alone(exported, jpegs, monkeypatch):
    monkeypatch.setattr("export.all_in.IMAGES", 3)
    asked, place = [], LocalMachine.place
    monkeypatch.setattr(LocalMachine, "place", lambda self, files: asked.append(files) or place(self, files))
    artifact = Artifact(exported.folder / "model.onnx", "onnxruntime", "f32")
    assert measure_all_in(artifact, exported.card.preprocess, jpegs, 1).images == 3
    assert [p.name for p in asked[-1]] == ["0.jpg", "2.jpg", "5.jpg"]


def test_a_bundle_tells_what_a_timing_needs(exported, evidence_of, tmp_path):
    folder = tmp_path / "bundle"
    artifact = Artifact(exported.folder / "model.xml", "openvino", "f32")
    lock = Lock((Pin("numpy", "2.0"),))
    write_bundle(folder, artifact, exported.card, 1, lock, evidence_of(artifact, exported.card))
    bundle = read_bundle(folder)
    assert (bundle.artifact.path, bundle.artifact.runtime, bundle.threads) == (folder / "model.xml", "openvino", 1)
    assert bundle.preprocess == exported.card.preprocess
    (folder / "model.bin").write_bytes(b"other weights")
    with pytest.raises(ExportError, match="differs from the manifest"):
        read_bundle(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["model"]["path"] = "../../etc/passwd"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match="outside of the bundle"):
        read_bundle(folder)


def test_a_folder_that_is_no_bundle(tmp_path):
    with pytest.raises(ExportError, match="no bundle of edgebuild"):
        read_bundle(tmp_path)
