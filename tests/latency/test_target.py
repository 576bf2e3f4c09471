"""A board reached by SSH: a real server on the loopback interface, its own Python, nothing of ours installed there."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from latency.compare import compare
from latency.errors import InputError, LatencyError
from latency.gate import gate
from latency.host import this_host
from latency.lock import timing_lock
from latency.machine import CONTROL, LOCAL, Worker
from latency.measure import WarmTimer, measure
from latency.records import Subject
from latency.sampling import Plan
from latency.target import machine_of

QUICK = Plan(samples=20, seconds=0.1, least=20, warmup_seconds=0.1)


def test_measured_there_with_the_host_of_there(board):
    machine = machine_of(board.target)
    (found,) = measure([Subject.of(CONTROL)], 2, QUICK, machine)
    assert found.host["key"] == this_host().key
    assert found.subject.path == str(CONTROL), "the record names our file"
    assert [len(r.samples_ms) for r in found.runs] == [20, 20]
    (app,) = board.home.glob("*.pyz")
    names = zipfile.ZipFile(app).namelist()
    assert {"__main__.py", "latency/worker.py", "latency/runners/ort.py"} <= set(names)
    assert not [n for n in names if not n.startswith("latency/") and n != "__main__.py"]


def test_nothing_of_ours_is_imported_from_this_checkout(board, tmp_path, monkeypatch):
    """The board's process must live from the zipapp alone."""
    machine = machine_of(board.target)
    command, _ = machine.command("latency.worker")
    command[-1] = command[-1].replace("latency.worker", "latency.nothing")
    done = subprocess.run(command, capture_output=True, text=True, input="")
    assert "No module named latency.nothing" in done.stderr
    assert str(CONTROL.parent.parent) not in done.stderr


@pytest.mark.slow
def test_gate_and_comparison_run_there(board):
    machine, subject = machine_of(board.target), Subject.of(CONTROL)
    verdict, measured = gate(subject, 1000.0, 7, QUICK, machine)
    assert verdict.verdict == "pass" or "disturbed" in verdict.reasons[0]
    assert len(measured.runs) >= 7
    found, _ = compare(subject, Subject.of(CONTROL, "openvino"), 8, machine=machine)
    assert found.low <= found.ratio <= found.high


@pytest.mark.slow
def test_a_search_s_warm_process_there_keeps_no_more_files_than_a_few(board, tmp_path):
    import onnx

    def sets():
        return {p for p in board.home.glob("*/*") if p.is_dir()}

    model, before = onnx.load(CONTROL), sets()
    with WarmTimer(machine_of(board.target)) as timer:
        for i in range(11):
            model.doc_string = str(i)
            onnx.save(model, tmp_path / f"candidate-{i}.onnx")
            timer.time(Subject.of(tmp_path / f"candidate-{i}.onnx"), QUICK)
    assert 2 <= len(sets() - before) <= 8


def test_the_lock_is_that_of_the_board(board):
    """Here both are one machine: who holds it here is waited for there."""
    machine, order = machine_of(board.target), []

    def there():
        with machine.lock():
            order.append("there")

    with timing_lock():
        thread = threading.Thread(target=there)
        thread.start()
        time.sleep(2)
        order.append("here")
    thread.join(timeout=120)
    assert order == ["here", "there"]


def test_the_lock_is_let_go_when_the_connection_is_lost(board):
    machine = machine_of(board.target)
    with pytest.raises(LatencyError, match="held the timing lock was lost"), machine.lock():
        for pid in board.sessions:
            os.kill(pid, signal.SIGKILL)
        time.sleep(1)
    with timing_lock():
        pass


def test_a_connection_lost_in_the_loop_is_an_error_and_never_a_number(board):
    machine = machine_of(board.target)
    with Worker(machine) as worker:
        worker.time([Subject.of(CONTROL)], QUICK)

        def cut():
            for pid in board.sessions:
                os.kill(pid, signal.SIGKILL)

        threading.Timer(1.0, cut).start()
        with pytest.raises(LatencyError, match=r"control\.onnx"):
            worker.time([Subject.of(CONTROL)], Plan(samples=10**6, seconds=30))


def test_the_holder_of_the_lock_there_lets_go_when_we_fall_silent(board, monkeypatch):
    monkeypatch.setattr("latency.target._LOCK_S", 1)
    monkeypatch.setattr("latency.target._PULSE_S", 3600)
    with pytest.raises(LatencyError, match="held the timing lock was lost"), machine_of(board.target).lock():
        time.sleep(3)


def test_what_lies_there_for_a_month_is_deleted(board):
    old = board.home / "old"
    old.mkdir(parents=True)
    os.utime(old, (0, 0))
    machine_of(board.target).host()
    assert not old.exists()


def test_weights_beside_the_file_travel(board, tmp_path):
    import onnx

    file = tmp_path / "external.onnx"
    (tmp_path / "sub").mkdir()
    onnx.save(onnx.load(CONTROL), file, save_as_external_data=True, location="sub/weights.data", size_threshold=0)
    (found,) = measure([Subject.of(file)], 1, QUICK, machine_of(board.target))
    assert found.runs[0].effective_precision == "f32"


def test_a_session_leaves_nothing_but_the_program(board):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "from latency.target import machine_of; from latency.machine import CONTROL\n"
        "print(machine_of(sys.argv[2]).place([CONTROL])[0])"
    )
    root = str(CONTROL.parent.parent)
    done = subprocess.run([sys.executable, "-c", code, root, board.target], capture_output=True, text=True, check=True)
    placed = Path(done.stdout.strip())
    assert placed.name == "control.onnx"
    assert placed.is_relative_to(board.home)
    assert not placed.parent.parent.exists()


def test_an_unknown_host_key_is_refused(board):
    known = board.config.parent / "known_hosts"
    known.write_text("")
    with pytest.raises(LatencyError, match=r"host key is unknown or has changed; connect once by hand"):
        machine_of(board.target).host()


def test_a_key_that_is_not_accepted(board):
    text = board.config.read_text()
    other = board.config.parent / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    board.config.write_text(text.replace(text.split("IdentityFile ")[1].split("\n")[0], str(other)))
    with pytest.raises(LatencyError, match="refuses our key"):
        machine_of(board.target).host()


def test_a_port_where_nothing_listens(board):
    address = board.target.replace(board.target.split(":")[2].split("/")[0], "1")
    with pytest.raises(LatencyError, match="nothing listens on that port"):
        machine_of(address).host()


def test_a_board_without_that_python(board):
    address = board.target.replace(sys.executable, "/no/such/python")
    with pytest.raises(LatencyError, match="/no/such/python"):
        machine_of(address).host()


_LANDS = 'case "$*" in *pwd*) cat > /dev/null; echo /tmp;; *)'
"""Where the program lands; then what it answers."""


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ("exit 0", "its shell ran no command: it said ''"),
        ("printf 'Welcome caf\\351'", "its shell ran no command"),
        (f"{_LANDS} echo null;; esac", "is no answer of edgebuild's"),
        (f"{_LANDS} echo 5;; esac", "is no answer of edgebuild's"),
    ],
)
def test_a_machine_that_answers_in_its_own_way(answers, told, tmp_path, monkeypatch):
    """What stands in for ssh here is a shell script that takes no notice of what it is asked."""
    fake = tmp_path / "ssh"
    fake.write_text(f"#!/bin/sh\n{answers}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(LatencyError, match=re.escape(told)):
        machine_of("ssh://MyBoard").host()


def test_the_case_of_a_host_is_kept():
    """OpenSSH's configuration tells MyBoard from myboard."""
    assert "me@MyBoard" in machine_of("ssh://me@MyBoard:22")._ssh


def test_a_bad_file_is_told_under_its_name_here(board, tmp_path):
    bad = tmp_path / "bad.onnx"
    bad.write_text("nothing")
    with pytest.raises(InputError, match=str(bad)):
        measure([Subject.of(bad)], 1, QUICK, machine_of(board.target))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("http://board", "expected local, or ssh://"),
        ("ssh://", "expected local, or ssh://"),
        ("board", "expected local, or ssh://"),
        ("ssh://-oProxyCommand=evil", "expected local, or ssh://"),
        ("ssh://pi:secret@board", "no password in the address"),
        ("ssh://board:99999", "Port out of range"),
        ("ssh://board:0", "expected local, or ssh://"),
        ("ssh://board?x", "expected local, or ssh://"),
        ("ssh://board\n", "expected local, or ssh://"),
    ],
)
def test_addresses_that_are_none(target, message):
    with pytest.raises(InputError, match=message) as told:
        machine_of(target)
    assert "secret" not in str(told.value)


def test_local_is_this_machine():
    assert machine_of("local") is LOCAL
