"""Real processes: fresh ones, a warm one, one that dies, two that want the machine."""

import os
import signal
import threading
import time

import pytest

from latency.errors import LatencyError
from latency.host import this_host
from latency.lock import timing_lock
from latency.measure import WarmTimer, Worker, measure
from latency.records import ProcessRun, Target
from latency.sampling import Plan
from latency.worker import CONTROL

QUICK = Plan(samples=30, seconds=0.1, warmup_seconds=0.1)


def control(runtime="onnxruntime"):
    return Target.of(CONTROL, runtime, "f32", 1)


def test_raw_samples_by_process_and_summaries_from_them():
    found = measure([control(), control("openvino")], 2, QUICK)
    for measurement in found:
        assert [len(r.samples_ms) for r in measurement.runs] == [30, 30]
        summary = measurement.summary()
        assert summary["min_ms"] <= summary["p50_ms"] <= summary["p90_ms"] <= summary["p99_ms"]
        assert summary["processes"] == 2
        assert summary["samples"] == 60
        assert summary["p90_upper_ms"] is None, "two processes bound nothing"
        assert measurement.host["key"] == this_host().key
        assert all(r.load_ms > 0 and r.cold_ms > 0 and r.peak_mib > 10 for r in measurement.runs)


def test_a_run_comes_back_from_json():
    run = measure([control()], 1, QUICK)[0]
    assert ProcessRun.from_dict(run.as_dict()["runs"][0]) == run.runs[0]


def test_a_process_that_dies_is_an_error_and_never_a_number():
    with Worker(stay=True) as worker:
        worker.time(control(), QUICK)
        worker._process.send_signal(signal.SIGKILL)
        worker._process.wait()
        with pytest.raises(LatencyError, match="the timing process died with code -9"):
            worker.time(control(), QUICK)


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
        with pytest.raises(LatencyError, match="cannot load it"):
            timer.time(Target.of(bad, "onnxruntime", "f32", 1), QUICK)
        assert timer.time(control(), QUICK).runs[0].effective_precision == "f32"


def test_the_machine_is_measured_on_by_one_at_a_time():
    order = []

    def second():
        with timing_lock():
            order.append("second")

    with timing_lock():
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_trainings_share_the_machine():
    with timing_lock(shared=True), timing_lock(shared=True):
        pass


def test_the_host_is_what_proc_says():
    host = this_host()
    assert host.cores == len(os.sched_getaffinity(0))
    assert host.versions.keys() >= {"onnxruntime", "openvino", "numpy"}
    assert host.cpu
