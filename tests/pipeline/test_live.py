"""What long work shows: a bar on a terminal, plain lines elsewhere, nothing with --quiet, all in the run's log."""

import os
import pty
import re
import subprocess
import sys

import pytest

from latency.machine import CONTROL
from pipeline.config import load_config
from pipeline.show.log import log
from pipeline.stages import open_run
from pipeline.training import curves
from pipeline.training.progress import Epoch
from tests.conftest import ROOT


def on_a_terminal(*args):
    """stdout and stderr of a command as a terminal of 100 columns gets them."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100", "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "edgebuild", *map(str, args)], stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    os.close(ours)
    assert process.wait() == 0, shown.decode()
    return shown.decode()


def test_a_terminal_has_a_bar_that_counts(tmp_path):
    shown = on_a_terminal("latency", "measure", CONTROL, "--processes", "2")
    assert "measuring in fresh processes" in shown
    assert re.search(r"[01]/2", shown)


def told(done):
    """Lines on stderr, but for those of a wait for another test that times."""
    return [line for line in done.stderr.splitlines() if not line.startswith("waiting for another measurement")]


def test_elsewhere_there_are_lines(cli):
    done = cli("latency", "measure", CONTROL, "--processes", "1")
    assert told(done) == ["measuring in fresh processes"]


def test_what_we_log_has_no_prefix_of_a_library(cli, tmp_path):
    """A library that configures logging, as several do, and a measurement that waits."""
    (tmp_path / "sitecustomize.py").write_text(
        "import logging\nlogging.basicConfig()\nimport latency.lock\nlatency.lock._PATIENCE_S = 0.0\n"
    )
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = cli("latency", "measure", CONTROL, "--processes", "1", env={"PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    waits = [line for line in done.stderr.splitlines() if "waiting for another measurement" in line]
    assert waits
    assert all(line.startswith("waiting for") for line in waits)


def test_quiet_leaves_results_and_errors(cli):
    done = cli("latency", "measure", CONTROL, "--processes", "1", "--quiet")
    assert told(done) == []
    assert "p90" in done.stdout
    done = cli("latency", "measure", "gone.onnx", "-q")
    assert done.returncode == 2
    assert done.stderr.startswith("edgebuild: gone.onnx: no such file")


def test_a_training_shows_stage_speed_best_and_time_left(tmp_path):
    """On a terminal; by what the bar is given."""
    code = """
import time
from pipeline.show.live import bar, best_so_far, enter_stage
enter_stage("distill (5 of 11)")
best_so_far("best F1 0.9125")
with bar("the student", "images") as tick:
    for done in range(0, 500, 100):
        tick(done, 500)
        time.sleep(0.12)
"""
    ours, theirs = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "140", "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-c", code], stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while process.poll() is None or b"images/s" not in shown:
        try:
            shown += os.read(ours, 65536)
        except OSError:
            break
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert "distill (5 of 11): the student" in text
    assert re.search(r"\d+ images/s best F1 0\.9125", text)
    assert re.search(r"80%", text)


def test_all_that_is_said_is_in_the_log_with_its_time(tmp_path):
    said = []
    with open_run(tmp_path / "run", load_config("demo"), said.append) as run:
        run.say("teach: epoch 1/8")
    (began, line) = (tmp_path / "run/log.txt").read_text().splitlines()
    assert said == ["teach: epoch 1/8"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d  edgebuild .* begins, process \d+", began)
    assert line.endswith("  teach: epoch 1/8")


def test_what_ended_a_command_is_in_the_log(inside, tmp_path):
    folder = tmp_path / "run"
    done = inside("search", "-c", "demo", "--set", "data.root=gone", "--run-dir", folder, "-q")
    assert done.returncode == 2
    assert "gone: no such folder" in (folder / "log.txt").read_text()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:secret@db/x",
        "postgresql://:secret@db",
        "postgresql://me:se:cr@et@db/x",
        "postgresql://me:cr@et/secret@db/x",
        "postgresql://me@db/x?sslmode=require&password=secret&user=me",
    ],
)
def test_no_password_reaches_the_log(tmp_path, url):
    log(tmp_path, f"Traceback: cannot reach {url} at all")
    text = (tmp_path / "log.txt").read_text()
    assert "secret" not in text
    assert "cr@et" not in text
    assert "db" in text


def test_tensorboard_has_the_curves_and_what_is_trained_again_replaces_what_was(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for begins, f1 in ((0, 0.5), (1, 0.75)):  # killed after its third epoch, and gone on with from its second
        write = curves.writer(tmp_path / "distill")
        for epoch in range(begins, 3):
            write(Epoch(epoch, 1.0, 2.0, f1, 0.25, 100.0))
    events = EventAccumulator(str(tmp_path / "distill"))
    events.Reload()
    assert [(s.step, s.value) for s in events.Scalars("val/f1_macro")] == [(0, 0.5), (1, 0.75), (2, 0.75)]
    assert {"loss/train", "loss/val", "val/accuracy", "images_per_s"} < set(events.Tags()["scalars"])


def test_without_tensorboard_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    curves.writer(tmp_path / "distill")(Epoch(0, 1.0, 2.0, 0.5, 0.25, 100.0))
    assert list(tmp_path.iterdir()) == []
