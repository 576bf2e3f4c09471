"""The whole job with a board reached by SSH: what is timed, is timed there."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_search_race_gate_and_all_in_time_on_the_board(cli, tiny, board, tmp_path):
    """Two workers of Ray search, whose timings go there one at a time; the rest goes on from what they found."""
    # tests/latency covers timing both runtimes there.
    one = ("--set", "latency.runtimes=[onnxruntime]", "--set", "latency.precisions=[f32]")
    common = ("-c", tiny, "--set", f"target={board.target}", *one, "--run-dir", tmp_path / "run", "--json")
    found = cli("search", *common, "--workers", "2")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["over_limit_trained"] == 0
    assert "search: 2 workers of " in found.stderr
    done = cli("run", *common)
    assert done.returncode in (0, 3), done.stderr
    assert "search: done before" in done.stderr
    result = json.loads(done.stdout)
    assert result["verdict"] == "pass" or "disturbed" in result["reasons"][0]
    assert result["submission"]["predicted_s"] > 0
    (app,) = board.home.glob("*.pyz")
    names = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", app], capture_output=True, text=True, check=True
    ).stdout
    assert "export/preprocess.py" in names
    again = cli("gate", "--run-dir", tmp_path / "run", "--json")
    verdicts = {0: "pass", 3: "inconclusive"}  # either look may be disturbed
    assert json.loads(again.stdout)["verdict"] == verdicts.get(again.returncode), again.stderr


def test_a_connection_lost_in_a_gate_is_exit_4(board, tmp_path):
    from latency.machine import CONTROL

    gate = subprocess.Popen(
        [sys.executable, "-m", "edgebuild", "gate", CONTROL, "--limit-ms", "1000", "--target", board.target],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def cut():
        while gate.poll() is None:
            for pid in board.sessions:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    threading.Timer(2.0, cut).start()
    out, err = gate.communicate(timeout=60)
    assert gate.returncode == 4, err
    assert "verdict" not in out
    assert "connection was lost" in err
