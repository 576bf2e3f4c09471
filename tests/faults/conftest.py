"""A good bundle of a small student, and the packages of its lock."""

import shutil
from pathlib import Path

import pytest

from export import sandbox
from export.artifact import Artifact
from export.bundle import write_bundle
from export.lock import lock
from tests.export.conftest import evidence_of, exported, photos

__all__ = ["evidence_of", "exported", "photos"]


@pytest.fixture(scope="session")
def locks():
    found = {runtime: lock(runtime) for runtime in ("onnxruntime", "openvino")}
    problems = {r: f.problem for r, f in found.items() if f.problem}
    if problems:
        pytest.skip(f"needs a package index: {problems}")
    return found


@pytest.fixture(scope="session")
def wheels(locks, tmp_path_factory):
    """The packages of both locks, downloaded once."""
    folder = tmp_path_factory.mktemp("wheels")
    for runtime, found in locks.items():
        (folder / runtime).mkdir()
        answer = sandbox.fetch(found.pins, folder / runtime, None)
        assert answer.requires, answer
        for wheel in (folder / runtime / "wheels").iterdir():
            wheel.replace(folder / wheel.name)
    return folder


@pytest.fixture(scope="session")
def good(exported, evidence_of, locks, tmp_path_factory):
    artifact = Artifact(exported.folder / "model.onnx", "onnxruntime", "f32")
    folder = tmp_path_factory.mktemp("good") / "bundle"
    return write_bundle(folder, artifact, exported.card, 1, locks["onnxruntime"], evidence_of(artifact, exported.card))


@pytest.fixture
def bundle(good, tmp_path):
    """A copy of its own, unpacked."""
    return Path(shutil.copytree(good.with_name("bundle"), tmp_path / "bundle"))
