"""What the control tells of the host: what rest is, which timings were disturbed, and what a file takes at rest."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from latency.bounds import plan_looks
from latency.calm import Calm, calm_of, calm_runs, seen_in, wait_for_calm
from latency.gate import gate, judge
from latency.machine import CONTROL
from latency.records import Measurement, ProcessRun, Subject
from latency.sampling import Plan
from tests.latency.test_gate import scripted_runs

SUBJECT = Subject("model.onnx", "onnxruntime", "f32", 1, "0" * 64)
REST = Calm(0.25, 0.3)


def run(samples, control):
    return ProcessRun(1.0, 1.0, 10, tuple(samples), tuple(control), 50.0, "f32", {})


def at(ms, control=0.25, count=40):
    return run([ms] * count, [control] * count)


def test_rest_is_the_low_end_of_all_that_was_seen():
    busy, calm = [at(1.0, 0.5)] * 15, [at(1.0, 0.25)] * 4
    assert calm_of(seen_in(busy + calm)) == Calm(0.25, 0.25)
    assert calm_of(seen_in(busy)) == Calm(0.5, 0.5), "what was never seen is not known"


def test_one_lucky_timing_is_not_rest():
    assert calm_of(seen_in([at(1.0, 0.1), *[at(1.0, 0.25)] * 9])).p50_ms == 0.25


@pytest.mark.parametrize(
    ("control", "disturbed"),
    [([0.25] * 40, False), ([0.27] * 40, False), ([0.3] * 40, True), ([0.25] * 30 + [0.5] * 10, True)],
)
def test_a_slow_control_or_a_long_tail_of_it_is_a_disturbed_host(control, disturbed):
    assert REST.disturbed(run([1.0] * 40, control)) == disturbed
    assert len(calm_runs([run([1.0] * 40, control)], REST)) == (not disturbed)


def test_a_files_own_times_say_nothing_of_the_host():
    assert not REST.disturbed(at(99.0))


@pytest.mark.parametrize("slower", [1.0, 1.5, 5.0])
def test_a_file_takes_as_many_controls_beside_work_as_at_rest(slower):
    assert REST.estimate([at(slower * 1.0, slower * 0.25)]).p90_ms == pytest.approx(4 * 0.3)


def test_neither_preemption_nor_a_change_of_speed_within_the_timing_matters():
    rng = np.random.default_rng(0)
    speed = np.repeat(rng.choice([1.0, 1.5], 20), 10)
    hit = 1 + 8 * (rng.random((2, 200)) < 0.1)
    found = REST.estimate([run(speed * hit[0], 0.25 * speed * hit[1])])
    assert found.p90_ms == pytest.approx(4 * 0.3, rel=0.02)


def test_more_processes_bound_an_estimate_closer():
    one, four = REST.estimate([at(1.0)]), REST.estimate([at(1.0)] * 4)
    assert one.low_ms < four.low_ms < four.p90_ms < four.high_ms < one.high_ms
    assert (four.high_ms - four.p90_ms) == pytest.approx((one.high_ms - one.p90_ms) / 2)


def measured(runs):
    return Measurement(SUBJECT, tuple(runs), Plan(), {"key": "host"})


LOOK = plan_looks(9)[0]


def test_no_file_fails_beside_work():
    """0.8 ms at rest, timed at 4 ms; the limit is 3."""
    verdict = judge(measured([at(4.0, 1.25)] * 9), 3.0, LOOK, REST)
    assert verdict.verdict == "inconclusive"
    assert "but the host was disturbed: the control took 1.250 ms, 0.250 at rest" in verdict.reasons[0]
    assert judge(measured([at(4.0)] * 9), 3.0, LOOK, REST).verdict == "fail"


def test_a_file_passes_beside_work_where_it_keeps_the_limit_all_the_same():
    assert judge(measured([at(2.0, 0.5)] * 9), 3.0, LOOK, REST).verdict == "pass"


def test_a_fail_needs_as_many_calm_processes_as_any_other():
    few = [at(4.0)] * 6 + [at(4.0, 0.3)] * 3
    assert judge(measured(few), 3.0, LOOK, REST).verdict == "inconclusive"


def test_a_file_is_told_when_the_host_came_to_rest_and_when_not(monkeypatch):
    monkeypatch.setattr("latency.calm._PAUSE_S", 0.01)
    said = []
    assert wait_for_calm(Calm(1e3, 1e3), "onnxruntime", 1, 60)
    assert not wait_for_calm(Calm(1e-6, 1e-6), "onnxruntime", 1, 0.0, say=said.append)
    assert not wait_for_calm(Calm(1e-6, 1e-6), "onnxruntime", 1, 2.0, say=said.append)
    assert len(said) == 1
    assert "the host is disturbed: the control takes" in said[0]
    assert CONTROL.is_file()


def test_a_pause_of_a_neighbour_is_no_rest(monkeypatch):
    """The host is calm once, disturbed, then calm for good: three looks in a row."""
    script = [0.25, 0.25, 0.5, 0.25, 0.25, 0.25, 0.25]
    seen = iter(script)
    monkeypatch.setattr("latency.calm._PAUSE_S", 0.0)
    monkeypatch.setattr("latency.calm.Worker", lambda machine: nullcontext(SimpleNamespace(time=time)))

    def time(subjects, plan):
        return [at(1.0, next(seen))]

    assert wait_for_calm(REST, "onnxruntime", 1, 60)
    assert len(list(seen)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("limit_share", [0.998, 1.002])
def test_gating_until_something_passes_errs_less_than_once_in_a_hundred(monkeypatch, limit_share):
    """Five files at their limit, each gated twice, on a host with frequency regimes; with those processes disturbed in
    which the control says so. One wrong verdict among all attempts counts."""
    rng = np.random.default_rng(5)

    def draw(count):
        regime = np.where(rng.random(count) < 0.4, 1.27, 1.0)
        neighbour = np.where(rng.random(count) < 0.2, 1.5, 1.0)
        p90s = regime * neighbour * rng.lognormal(0, 0.08, count)
        return p90s, 0.25 * neighbour

    p90s, control = draw(400_000)
    truth_at_rest, truth = np.median(p90s[control == 0.25]), np.median(p90s)
    wrong = "pass" if limit_share < 1 else "fail"
    limit = float((truth if wrong == "pass" else truth_at_rest) * limit_share)
    count = 0
    for _ in range(400):
        verdicts = []
        for attempt in range(1, 11):
            values, controls = draw(60)
            scripted_runs(monkeypatch, [at(p, c, 20) for p, c in zip(values, controls, strict=True)])
            verdicts.append(gate(SUBJECT, limit, 9, attempt=attempt, calm=replace(REST, p90_ms=0.25))[0].verdict)
        count += wrong in verdicts
    assert count / 400 <= 0.015
