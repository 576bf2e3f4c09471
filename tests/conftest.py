"""Shared fixtures. Real photos and weights lie beside the repository where it is developed; a clone lacks them."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.board import board, ssh_server
from tests.postgres import postgres

__all__ = ["board", "postgres", "ssh_server"]

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT))

_LONG = (
    "test_run.py",
    "test_commands.py",
    "test_bundle_runs.py",
    "test_board.py",
    "test_rounds.py",
)
"""Files of slow tests that take minutes: first, or a worker that takes the last of them lets the other one wait.
Those of Ray come late: its nodes run at nice 15, and what they time waits for all else."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _LONG.index(item.path.name) if item.path.name in _LONG else len(_LONG))


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


@pytest.fixture
def inside(monkeypatch) -> Iterator[Cli]:
    """The command line within this process: for what is refused at once, where a process of its own would take seconds
    to import torch."""
    from typer.testing import CliRunner

    from pipeline.cli.app import app

    def run(*args: str | Path, cwd: Path | None = None):
        if cwd is not None:
            monkeypatch.chdir(cwd)
        found = CliRunner().invoke(app, [str(a) for a in args])
        return subprocess.CompletedProcess(args, found.exit_code, found.stdout, found.stderr)

    handlers = {sent: signal.getsignal(sent) for sent in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    yield run
    for sent, handler in handlers.items():
        signal.signal(sent, handler)


def shared(path: str) -> Path:
    if not (SHARED / path).exists():
        pytest.skip(f"needs ../shared/{path}, which a clone does not have")
    return SHARED / path


@pytest.fixture(scope="session")
def trashnet() -> Path:
    return shared("data/trashnet")


@pytest.fixture(scope="session")
def lite0_weights() -> Path:
    return shared("weights/tf_efficientnet_lite0.safetensors")


def draw_photos(folder: Path, **counts: int) -> None:
    """So many of each of three classes of the drawn set, by split."""
    import numpy as np

    from pipeline.data import demo

    for s, (split, count) in enumerate(counts.items()):
        for k, kind in enumerate(("checks", "dots", "stripes")):
            target = folder / split / kind
            target.mkdir(parents=True)
            for i in range(count):
                demo.draw(kind, np.random.default_rng([0, s, k, i])).save(target / f"{i}.jpg")


def shared_by_workers(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first worker of this run of the tests makes when it needs it, and all others only read."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder, made = root / name, root / f"{name}.made"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A config that runs every stage in under a minute: 3 classes of the drawn set, 64 px, no limit to speak of."""
    return shared_by_workers(tmp_path_factory, "tiny", _draw_tiny) / "tiny.yaml"


@pytest.fixture(scope="session")
def tiny_run(cli, tiny, tmp_path_factory) -> Path:
    """The run folder of `tiny`, finished; to be read, or copied."""

    def make(folder: Path) -> None:
        done = cli("run", "-c", tiny, "--run-dir", folder, "--json")
        for _ in range(2):  # a disturbed machine is inconclusive; the same command asks again
            if done.returncode == 3:
                done = cli("run", "-c", tiny, "--run-dir", folder, "--json")
        assert done.returncode == 0, done.stderr

    return shared_by_workers(tmp_path_factory, "tiny-run", make)


def _draw_tiny(folder: Path) -> None:
    import yaml

    draw_photos(folder / "photos", train=16, val=6)
    config = {
        "data": {"root": str(folder / "photos")},
        "latency": {"limit_ms": 1000, "processes": 7},
        "search": {
            "trials": 2,
            "epochs": 1,
            "subset": 1.0,
            "input_sizes": [64],
            "measure": ["onnxruntime-f32", "openvino-f32"],
        },
        "gate": {"wait_minutes": 0.1, "more_minutes": 0},
        "select": {"f1_floor": 0.0, "input_size": None, "processes": 2},
        "teacher": {"name": "mobilenetv3_small_050", "weights": "none", "epochs": 2, "learning_rate": 1e-3},
        "distill": {"epochs": 2, "views": 2},
        "quantize": {"max_f1_drop": 1.0},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
