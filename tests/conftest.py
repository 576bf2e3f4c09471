"""Shared fixtures. Real photos and weights lie beside the repository where it is developed; a clone lacks them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT))

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Run the command line as a user does, in a process of its own."""

    def run(*args: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: float = 600):
        return subprocess.run(
            [sys.executable, "-m", "edgebuild", *map(str, args)],
            cwd=cwd,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | (env or {}),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture(scope="session")
def trashnet() -> Path:
    folder = SHARED / "data" / "trashnet"
    if not folder.is_dir():
        pytest.skip("needs the TrashNet photos in ../shared/data/trashnet, which a clone does not have")
    return folder


@pytest.fixture(scope="session")
def lite0_weights() -> Path:
    file = SHARED / "weights" / "tf_efficientnet_lite0.safetensors"
    if not file.is_file():
        pytest.skip("needs the pretrained weights in ../shared/weights, which a clone does not have")
    return file
