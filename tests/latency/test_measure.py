"""Real processes: fresh ones, a warm one, one that dies, two that want the machine."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest

from latency import machine as machine_module
from latency.errors import InputError, LatencyError
from latency.files import model_files
from latency.host import Host, _model, this_host
from latency.lock import timing_lock
from latency.machine import CONTROL, LOCAL, Worker
from latency.measure import WarmTimer, measure
from latency.records import Measurement, ProcessRun, Subject
from latency.sampling import BLOCK, Plan

QUICK = Plan(samples=20, seconds=0.1, least=20, warmup_seconds=0.1)
GOLDEN = Path(__file__).parent.parent / "golden"


def control(runtime="onnxruntime", **how):
    return Subject.of(CONTROL, runtime, **how)


def test_raw_samples_by_process_and_summaries_from_them():
    found = measure([control(), control("openvino")], 2, QUICK)
    for measurement in found:
        assert [len(r.samples_ms) for r in measurement.runs] == [20, 20]
        assert [len(r.control_ms) for r in measurement.runs] == [20, 20]
        summary = measurement.summary()
        assert summary["min_ms"] <= summary["p50_ms"] <= summary["p90_ms"] <= summary["p99_ms"]
        assert summary["processes"] == 2
        assert summary["samples"] == 40
        assert summary["p90_upper_ms"] is None, "two processes bound nothing"
        assert measurement.host["key"] == this_host().key
        assert all(r.load_ms > 0 and r.cold_ms > 0 and r.peak_mib > 10 and r.clock_ns > 0 for r in measurement.runs)


def test_a_measurement_comes_back_from_json():
    measured = measure([control(pin=tuple(sorted(os.sched_getaffinity(0)))[:1])], 1, QUICK)[0]
    assert Measurement.from_dict(json.loads(json.dumps(measured.as_dict()))) == replace(
        measured, host=json.loads(json.dumps(measured.host))
    )
    assert Host.from_dict(measured.host) == this_host()


def test_records_of_the_first_format_still_load():
    old = Measurement.from_dict(json.loads((GOLDEN / "measurement-1.json").read_text()))
    assert old.subject.batch is None
    assert old.summary()["p90_ms"] == pytest.approx(0.42)
    with pytest.raises(InputError, match="later version"):
        Measurement.from_dict({"format": 99})


def test_the_bounds_and_the_normalised_median_of_a_record():
    runs = tuple(
        ProcessRun(1.0, 2.0, 20, (p50,) * 18 + (2 * p50,) * 2, (p50 / 4,) * 20, 50.0, "f32", {})
        for p50 in (1.0, 1.1, 1.3, 1.2, 1.0, 1.05, 1.15, 1.25, 1.0)
    )
    summary = Measurement(control(), runs, QUICK, this_host().as_dict()).summary()
    assert summary["normalised_p50"] == pytest.approx(4.0)
    assert (summary["p90_lower_ms"], summary["p90_ms"], summary["p90_upper_ms"]) == (1.0, 1.1, 1.3)
    assert summary["spread"] == pytest.approx(1.3)
    assert summary["unrest"] is None


def test_peak_memory_is_that_of_the_process_and_not_of_its_parent():
    """Linux carries the parent's peak through exec into getrusage."""
    ballast = bytearray(300 * 2**20)
    ballast[:: 2**12] = b"x" * len(ballast[:: 2**12])
    peak = measure([control()], 1, QUICK)[0].runs[0].peak_mib
    assert 20 < peak < 250


def test_files_that_share_their_processes():
    a, b = measure([control(), control("openvino")], 3, QUICK, together=True)
    assert len(a.runs) == len(b.runs) == 3
    assert all(x.control_ms == y.control_ms for x, y in zip(a.runs, b.runs, strict=True))
    assert all(len(x.samples_ms) % (2 * BLOCK) == 0 for x in a.runs)


def test_a_slowdown_is_seen_and_only_where_it_was_put():
    plan = Plan(samples=60, seconds=1.0)
    plain, slowed = measure([control(), control()], 3, plan, together=True, slowdowns=[0.0, 0.5])
    ratios = [y.normalised_p50 / x.normalised_p50 for x, y in zip(plain.runs, slowed.runs, strict=True)]
    assert 1.2 < sorted(ratios)[1] < 1.8


def test_every_process_is_told_and_counted():
    seen = []
    measure([control(), control("openvino")], 2, QUICK, tick=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_threads_and_pinning_are_read_back():
    cpu = min(os.sched_getaffinity(0))
    for runtime in ("onnxruntime", "openvino"):
        run = measure([control(runtime, threads=1, pin=(cpu,))], 1, QUICK)[0].runs[0]
        assert run.settings["threads"] == 1
        assert run.settings["cpus"] == [cpu]


def test_a_cpu_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(InputError, match=r"no CPU 4096 to pin to; allowed here: \d"):
        measure([control(pin=(4096,))], 1, QUICK)


def test_a_warm_process_is_let_go_of_a_pin():
    allowed = sorted(os.sched_getaffinity(0))
    with WarmTimer() as timer:
        timer.time(control(pin=(allowed[0],)), QUICK)
        assert timer.time(control(), QUICK).runs[0].settings["cpus"] == allowed


def test_a_process_that_dies_is_an_error_and_never_a_number():
    with Worker() as worker:
        worker.time([control()], QUICK)
        worker._process.send_signal(signal.SIGKILL)
        worker._process.wait()
        with pytest.raises(LatencyError, match=r"control\.onnx: the timing process died with code -9"):
            worker.time([control()], QUICK)


def test_a_process_that_dies_in_the_loop_is_an_error():
    with Worker() as worker:
        threading.Timer(0.7, worker._process.kill).start()
        with pytest.raises(LatencyError, match="the timing process died with code -9"):
            worker.time([control()], Plan(samples=10**6, seconds=60))


def test_a_process_that_hangs_is_ended(monkeypatch):
    with Worker() as worker:
        worker.time([control()], QUICK)
        worker._process.send_signal(signal.SIGSTOP)
        with pytest.raises(LatencyError, match="no sign of life for 1 s; it was ended"):
            worker.ask("host", silence_s=1)
        assert worker._process.wait(timeout=5) == -signal.SIGKILL


def test_a_process_out_of_reach_ends_itself(tmp_path):
    """As on a board that lost us: nobody reads, nobody kills. A file that takes longer than the silence allowed."""
    command, environment = LOCAL.command("latency.worker")
    slow = json.dumps({"do": "lock", "subjects": [], "silence_s": 1, "next_within_s": None})
    with timing_lock():  # the lock is waited for in native code
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)
        worker.stdin.write(slow + "\n")
        worker.stdin.flush()
        assert worker.wait(timeout=20) == -signal.SIGALRM
    idle = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)
    idle.stdin.write(json.dumps({"do": "ping", "subjects": [], "silence_s": None, "next_within_s": 1}) + "\n")
    idle.stdin.flush()
    assert idle.wait(timeout=20) == -signal.SIGALRM


def test_long_timings_give_signs_of_life():
    """Longer in all than the silence allowed, though no block is."""
    with Worker() as worker:
        plan = asdict(Plan(samples=10**6, seconds=2.5))
        answer = worker.ask("time", [control()], silence_s=3, plan=plan, control=str(CONTROL), slowdowns=[0.0])
        assert len(answer["runs"][0]["samples_ms"]) > 100


def test_a_word_before_the_answer_is_told(monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('Welcome to the board', flush=True)")
    command, environment = LOCAL.command("latency.worker")
    paths = os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])
    monkeypatch.setattr(LOCAL.__class__, "command", lambda self, module: (command, environment | {"PYTHONPATH": paths}))
    with Worker() as worker, pytest.raises(LatencyError, match="'Welcome to the board' came before the answer"):
        worker.ask("host")


def test_weights_beside_the_file_count_and_travel(tmp_path):
    import onnx

    file, weights = tmp_path / "external.onnx", tmp_path / "sub" / "weights.data"
    weights.parent.mkdir()
    onnx.save(onnx.load(CONTROL), file, save_as_external_data=True, location="sub/weights.data", size_threshold=0)
    for name in ("sub.txt", "data", "location"):
        (tmp_path / name).write_text("no weights")
    assert model_files(file) == [file, weights]
    before = Subject.of(file).sha256
    weights.write_bytes(weights.read_bytes()[::-1])
    assert Subject.of(file).sha256 != before
    assert model_files(CONTROL) == [CONTROL]


def test_a_file_that_names_weights_outside_its_folder_takes_none_along(tmp_path):
    file = tmp_path / "model" / "m.onnx"
    file.parent.mkdir()
    (tmp_path / "secret").write_text("x")
    file.write_bytes(b"\x0a\x08location\x12\x09../secret" + b"\x0a\x08location\x12\x0b/etc/passwd")
    assert model_files(file) == [file]


def test_a_warm_process_that_died_is_started_again():
    with WarmTimer() as timer:
        timer.time(control(), QUICK)
        assert timer._worker is not None
        timer._worker._process.kill()
        timer._worker._process.wait()
        with pytest.raises(LatencyError):
            timer.time(control(), QUICK)
        assert len(timer.time(control(), QUICK).runs) == 1


def test_a_bad_file_leaves_the_warm_process_usable(tmp_path):
    bad = tmp_path / "bad.onnx"
    bad.write_text("nothing")
    with WarmTimer() as timer:
        with pytest.raises(InputError, match="cannot load it"):
            timer.time(Subject.of(bad), QUICK)
        assert timer.time(control(), QUICK).runs[0].effective_precision == "f32"


def test_what_a_runtime_prints_does_not_reach_the_answers(tmp_path):
    request = json.dumps({"do": "host", "subjects": [], "silence_s": None, "next_within_s": None})
    command, environment = LOCAL.command("latency.worker")
    done = subprocess.run(command, input=request, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.strip())["key"] == this_host().key


def test_the_machine_is_measured_on_by_one_at_a_time(caplog, monkeypatch):
    monkeypatch.setattr("latency.lock._PATIENCE_S", 0.05)
    monkeypatch.setattr("latency.lock._said", {})
    order = []

    def second():
        with timing_lock():
            order.append("second")

    for _ in range(2):
        with timing_lock(), caplog.at_level(logging.WARNING):
            thread = threading.Thread(target=second)
            thread.start()
            time.sleep(0.2)
            order.append("first")
        thread.join()
    assert order == ["first", "second"] * 2
    assert caplog.text.count("waiting for another measurement or training") == 1, (
        "beside another run, every timing waits"
    )


def test_two_commands_queue_for_the_machine():
    """Real processes: each holds the lock for a moment; their times must not overlap."""
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); from latency.lock import timing_lock\n"
        "with timing_lock():\n    a = time.monotonic(); time.sleep(0.3); print(a, time.monotonic())"
    )
    root = str(Path(machine_module.__file__).parent.parent)
    jobs = [subprocess.Popen([sys.executable, "-c", code, root], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    spans = sorted(tuple(map(float, job.communicate()[0].split())) for job in jobs)
    assert all(earlier[1] <= later[0] for earlier, later in pairwise(spans))


def test_trainings_share_the_machine(monkeypatch, tmp_path):
    """On a lock of its own: with another test in the queue of the machine's, the second would wait for the first."""
    monkeypatch.setattr("latency.lock.LOCK", tmp_path / "lock")
    monkeypatch.setattr("latency.lock._QUEUE", tmp_path / "queue")
    with timing_lock(shared=True), timing_lock(shared=True):
        pass


def test_trainings_that_overlap_do_not_keep_a_measurement_out():
    stop, turns = threading.Event(), []

    def train(first_s):
        time.sleep(first_s)
        while not stop.is_set():
            with timing_lock(shared=True):
                turns.append(first_s)
                time.sleep(0.2)

    trainings = [threading.Thread(target=train, args=(first_s,)) for first_s in (0.0, 0.1)]
    for thread in trainings:
        thread.start()
    time.sleep(0.5)
    try:
        with timing_lock():
            assert {0.0, 0.1} <= set(turns)
            before = len(turns)
            time.sleep(0.5)
            assert len(turns) == before, "nobody trains while this measures"
    finally:
        stop.set()
        for thread in trainings:
            thread.join(timeout=5)
    assert not any(thread.is_alive() for thread in trainings)


def test_the_lock_is_for_every_user_whatever_the_umask(tmp_path, monkeypatch):
    monkeypatch.setattr("latency.lock.LOCK", tmp_path / "lock")
    before = os.umask(0o077)
    try:
        with timing_lock():
            assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


def test_cpus_without_a_name_are_told_apart():
    """arm64: /proc/cpuinfo of a Raspberry Pi 3 and of a Pi 4 differ in the part alone."""
    pi3, pi4 = (
        _model({"CPU implementer": "0x41", "CPU part": part, "CPU variant": "0x0"}) for part in ("0xd03", "0xd08")
    )
    assert pi3 != pi4
    assert replace(this_host(), model=pi3).key != replace(this_host(), model=pi4).key


def test_the_host_is_what_proc_says():
    host = this_host()
    assert host.cores == len(os.sched_getaffinity(0))
    assert host.versions.keys() >= {"onnxruntime", "openvino", "numpy"}
    assert host.cpu
