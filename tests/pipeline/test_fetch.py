"""Data sets and weights from a stand-in of the hub: whole, hash-checked, and gone on with where they were stopped."""

import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np

from pipeline.data import demo
from pipeline.data.fetch import SOURCES, Source, split_of
from tests.conftest import ROOT
from tests.hub import Hub, serve

ARCHIVE = "/datasets/garythung/trashnet/resolve/main/dataset-resized.zip"
PHOTOS = 20
COUNTS = {"cardboard": 403, "glass": 501, "metal": 410, "paper": 594, "plastic": 482, "trash": 137}
"""Of TrashNet's own README."""
TWICE = [f"{name}.jpg" for name in ("glass115", "metal91", "glass176", "plastic152", "glass389", "plastic332")]
"""Three photos that stand under two labels there."""


def archive(more_bytes: int = 0) -> bytes:
    """Two classes of 20 photos; dots3 is checks5 under another label, as three pairs of TrashNet are."""
    buffer, rng = io.BytesIO(), np.random.default_rng(0)
    drawn: dict[str, bytes] = {}
    for kind in ("checks", "dots"):
        for i in range(1, PHOTOS + 1):
            photo = io.BytesIO()
            demo.draw(kind, rng).save(photo, "JPEG")
            drawn[f"dataset-resized/{kind}/{kind}{i}.jpg"] = photo.getvalue()
    drawn["dataset-resized/dots/dots3.jpg"] = drawn["dataset-resized/checks/checks5.jpg"]
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("dataset-resized/README", rng.bytes(more_bytes))
        for name, content in {**drawn, "__MACOSX/dataset-resized/checks/._checks1.jpg": b"resource fork"}.items():
            file.writestr(name, content)
    return buffer.getvalue()


def fetched(hub: Hub, tmp_path: Path, sha256: str | None = None) -> "subprocess.CompletedProcess[str]":
    """`data fetch` in a process of its own, which takes the stand-in for the hub, of a source that is its archive."""
    source = Source("garythung/trashnet", "dataset-resized.zip", sha256 or "", 2 * PHOTOS, "MIT")
    code = (
        "import json, pathlib, sys\nfrom pipeline.errors import PipelineError\n"
        "from pipeline.data.fetch import Source, fetch\n"
        f"try: print(json.dumps(fetch({source!r}, pathlib.Path('set'), lambda text: None)))\n"
        "except PipelineError as error: sys.exit(f'{type(error).__name__}: {error}')"
    )
    environment = os.environ | hub.environment(tmp_path / "hub") | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )


def test_a_set_is_laid_out_and_what_stands_under_two_labels_left_out(tmp_path):
    content = archive()
    with serve(Hub({ARCHIVE: content})) as hub:
        done = fetched(hub, tmp_path, hashlib.sha256(content).hexdigest())
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["left_out"] == ["checks5.jpg", "dots3.jpg"]
    assert told["counts"] == {s: {"checks": n, "dots": n} for s, n in (("train", 13), ("val", 3), ("test", 3))}
    found = sorted(p.relative_to(tmp_path / "set").parts for p in (tmp_path / "set").rglob("*.jpg"))
    assert len(found) == 38
    assert not [p for p in tmp_path.iterdir() if "partial" in p.name]


def test_a_download_that_broke_off_goes_on_where_it_stopped(tmp_path):
    content = archive(24_000_000)  # the hub's client keeps what it has by chunks of 10 MB
    with serve(Hub({ARCHIVE: content}, breaks=1)) as hub:
        done = fetched(hub, tmp_path, hashlib.sha256(content).hexdigest())
        assert done.returncode == 0, done.stderr
    first, second = (r for method, path, r in hub.requests if (method, path) == ("GET", ARCHIVE))
    assert first is None
    assert int(second.removeprefix("bytes=").removesuffix("-")) >= 10_000_000


def test_a_set_of_another_hash_is_refused_and_thrown_away(tmp_path):
    content = archive()
    with serve(Hub({ARCHIVE: content})) as hub:
        done = fetched(hub, tmp_path, "f" * 64)
    assert done.stderr.strip() == (
        "EnvironmentProblem: the hub's garythung/trashnet/dataset-resized.zip: its sha256 is "
        f"{hashlib.sha256(content).hexdigest()}, expected {'f' * 64}: it is damaged, or not the set that the figures "
        "here are of; it was thrown away, try again"
    )
    assert not (tmp_path / "set").exists()
    assert not [p for p in (tmp_path / "hub").rglob("*") if p.is_file() and p.stat().st_size == len(content)]


def test_the_splits_of_trashnet_are_those_of_the_readme_s_figures(trashnet):
    """As ../shared/data/trashnet was split, from names alone."""
    for name, count in COUNTS.items():
        photos = [p for i in range(1, count + 1) if (p := f"{name}{i}.jpg") not in TWICE]
        known = {split: {p.name for p in (trashnet / split / name).iterdir()} for split in ("train", "val")}
        found = split_of(name, photos)
        assert {split: set(found[split]) for split in known} == known


def test_what_is_known_is_pinned():
    assert len(SOURCES["trashnet"].sha256) == 64
    assert SOURCES["trashnet"].photos == sum(COUNTS.values())


def test_an_unknown_set_gets_a_suggestion(inside):
    done = inside("data", "fetch", "trashent")
    assert done.returncode == 2
    assert done.stderr == "edgebuild: no data set 'trashent' (did you mean 'trashnet'?); known: trashnet\n"


def test_weights_of_a_teacher_come_from_the_hub(tmp_path):
    """timm's own download, from the stand-in: what was served is what the network has."""
    code = """
import sys
from models import torchvision_ops
torchvision_ops.ensure()
import timm, torch
from safetensors.torch import save_file
torch.manual_seed(3)
save_file(timm.create_model("mobilenetv3_small_050").state_dict(), sys.argv[1])
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    weights = tmp_path / "served.safetensors"
    subprocess.run([sys.executable, "-c", code, weights], check=True, env=environment, timeout=120)
    path = "/timm/mobilenetv3_small_050.lamb_in1k/resolve/main/model.safetensors"
    check = """
import sys
from models.pretrained import network
from safetensors.torch import load_file
served, loaded = load_file(sys.argv[1]), network("mobilenetv3_small_050", "hub", 3, "teacher").state_dict()
same = [k for k, v in served.items() if k in loaded and loaded[k].shape == v.shape and (loaded[k] == v).all()]
assert len(same) >= len(served) - 2, (len(same), len(served))  # all but the head of another number of classes
"""
    with serve(Hub({path: weights.read_bytes()})) as hub:
        subprocess.run(
            [sys.executable, "-c", check, weights],
            check=True,
            env=environment | hub.environment(tmp_path / "hub"),
            timeout=120,
        )
    assert ("GET", path, None) in hub.requests
