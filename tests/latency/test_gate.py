"""Verdicts: from synthetic evidence, through all looks, and of real files in real processes."""

from dataclasses import replace

import numpy as np
import pytest

from latency import gate as gate_module
from latency.bounds import plan_looks
from latency.calm import Calm
from latency.errors import LatencyError
from latency.gate import gate, judge
from latency.machine import CONTROL
from latency.measure import extend
from latency.records import Measurement, ProcessRun, Subject
from latency.sampling import Plan

SUBJECT = Subject("model.onnx", "onnxruntime", "f32", 1, "0" * 64)


def evidence(p90s, controls=None, samples=20, **facts):
    runs = [
        ProcessRun(1.0, 1.0, 10, (p90,) * samples, (control,) * samples, 50.0, "f32", {}, **facts)
        for p90, control in zip(p90s, controls or [0.3] * len(p90s), strict=True)
    ]
    return Measurement(SUBJECT, tuple(runs), Plan(), {"key": "host"})


LOOKS = plan_looks(9)


def test_pass_when_the_slowest_of_nine_keeps_the_limit():
    verdict = judge(evidence([1.0] * 8 + [1.39]), 1.4, LOOKS[0])
    assert (verdict.verdict, verdict.p90_upper_ms, verdict.reasons) == ("pass", 1.39, ())


def test_one_slow_process_of_nine_is_too_near_to_call_and_of_fifteen_is_not():
    assert judge(evidence([1.0] * 8 + [1.5]), 1.4, LOOKS[0]).verdict == "inconclusive"
    assert judge(evidence([1.0] * 14 + [1.5]), 1.4, LOOKS[1]).verdict == "pass"


def test_fail_when_the_fastest_of_nine_is_over():
    verdict = judge(evidence([1.41] + [2.0] * 8), 1.4, LOOKS[0])
    assert verdict.verdict == "fail"
    assert "at least 1.410 ms (99 %), over the limit of 1.4 ms" in verdict.reasons[0]


def test_too_few_processes_give_no_verdict_however_fast():
    verdict = judge(evidence([0.1] * 5), 1.4, None)
    assert verdict.verdict == "inconclusive"
    assert "set latency.processes to 7 or more" in verdict.reasons[0]


@pytest.mark.parametrize("p90", [0.1, 9.0])
def test_a_disturbed_host_gives_no_verdict_either_way(p90):
    verdict = judge(evidence([p90] * 9, [0.3] * 5 + [0.6] * 4), 1.4, LOOKS[0])
    assert verdict.verdict == "inconclusive"
    assert "the host was disturbed" in verdict.reasons[0]


@pytest.mark.parametrize("p90", [0.1, 9.0])
def test_unrest_within_the_processes_gives_no_verdict_either_way(p90):
    calm = evidence([p90] * 9)
    shaken = replace(calm, runs=tuple(replace(r, control_ms=(0.3,) * 20 + (0.6,) * 20) for r in calm.runs))
    verdict = judge(shaken, 1.4, LOOKS[0])
    assert verdict.verdict == "inconclusive"
    assert "moved by a factor of 2.00 within the typical process" in verdict.reasons[0]


@pytest.mark.parametrize("p90", [0.1, 2.3])
def test_a_coarse_clock_gives_no_verdict_either_way(p90):
    verdict = judge(evidence([p90] * 9, clock_ns=1_000_000), 1.4, LOOKS[0])
    assert verdict.verdict == "inconclusive"
    assert "the clock moves in steps of 1 ms, too coarse for a limit of 1.4 ms" in verdict.reasons[0]


def test_a_coarse_clock_does_not_hide_a_file_that_is_far_over():
    assert judge(evidence([9.0] * 9, clock_ns=1_000_000), 1.4, LOOKS[0]).verdict == "fail"


def test_one_disturbed_process_does_not_spoil_the_rest():
    assert judge(evidence([1.0] * 9, [0.3] * 8 + [3.0]), 1.4, LOOKS[0]).verdict == "pass"


def test_measurements_of_two_files_are_not_put_together():
    other = replace(evidence([1.0]), subject=replace(SUBJECT, path="b.onnx"))
    with pytest.raises(LatencyError, match="different files, plans or hosts"):
        extend(evidence([1.0]), other)


def scripted(monkeypatch, p90s):
    """Let the gate see these p90s, process by process; how many it asked for."""
    return scripted_runs(monkeypatch, evidence(p90s).runs)


def scripted_runs(monkeypatch, runs):
    asked = []

    def measure(subjects, processes, *args, **kwargs):
        start = sum(asked)
        asked.append(processes)
        return [replace(evidence([]), runs=tuple(runs[start : start + processes]))]

    monkeypatch.setattr(gate_module, "measure", measure)
    return asked


def test_a_clear_case_takes_one_look(monkeypatch):
    asked = scripted(monkeypatch, [1.0] * 30)
    assert gate(SUBJECT, 1.4, 9)[0].verdict == "pass"
    assert asked == [9]


def test_an_unclear_case_takes_the_planned_looks_and_may_end_in_any_verdict(monkeypatch):
    asked = scripted(monkeypatch, [1.5] + [1.0] * 29)
    assert gate(SUBJECT, 1.4, 9)[0].verdict == "pass"
    assert asked == [9, 6]
    asked = scripted(monkeypatch, [1.0] + [1.5] * 29)
    assert gate(SUBJECT, 1.4, 9)[0].verdict == "fail"
    asked = scripted(monkeypatch, [1.0, 1.5] * 15)
    verdict, measured = gate(SUBJECT, 1.4, 9)
    assert verdict.verdict == "inconclusive"
    assert "too near to call" in verdict.reasons[0]
    assert asked == [9, 6, 6]
    assert len(measured.runs) == 21


@pytest.mark.slow
@pytest.mark.parametrize("limit_share", [0.999, 1.001])
def test_a_file_at_its_limit_is_called_wrongly_less_than_once_in_a_hundred(monkeypatch, limit_share):
    """The whole gate, all looks, on processes with frequency regimes: truth just over the limit, or just under."""
    rng = np.random.default_rng(3)

    def draw(n):
        return np.where(rng.random(n) < 0.4, 1.27, 1.0) * rng.lognormal(0, 0.08, n)

    limit = float(np.median(draw(400_000))) * limit_share
    wrong, draws = "pass" if limit_share < 1 else "fail", 1500
    count = 0
    for _ in range(draws):
        scripted(monkeypatch, list(draw(21)))
        count += gate(SUBJECT, limit, 9)[0].verdict == wrong
    assert count / draws <= 0.015


@pytest.mark.slow
@pytest.mark.parametrize(("truth", "wrong"), [(1.001, "pass"), (1 / 1.12, "fail")])
def test_a_whole_run_of_attempts_is_wrong_less_than_once_in_a_hundred(monkeypatch, truth, wrong):
    """Four files, each gated again once the host has come to rest, until one passes; half of the first attempts are
    beside work that makes file and control up to 1.6 times as slow. truth: of every file at rest, in limits. A host
    that is disturbed by less than the 12 % that count as calm may make a file fail that is within 12 % of its limit."""
    rng = np.random.default_rng(4)
    middle = float(np.median(rng.lognormal(0, 0.08, 400_000)))

    def attempt(number, calm_host):
        slower = np.where(calm_host, 1.0, rng.uniform(1.0, 1.6, 60))
        p90s = truth / middle * slower * rng.lognormal(0, 0.08, 60)
        controls = 0.3 * slower * rng.lognormal(0, 0.02, 60)
        scripted_runs(monkeypatch, list(evidence(p90s.tolist(), controls.tolist(), samples=1).runs))
        return gate(SUBJECT, 1.0, 9, attempt=number, calm=Calm(0.3, 0.33))[0].verdict

    def verdicts():
        made = []
        for _ in range(4):
            for calm_host in (rng.random() < 0.5, True):
                made.append(attempt(len(made) + 1, calm_host))
                if made[-1] != "inconclusive":
                    break
            if made[-1] == "pass":
                break
        return made

    assert sum(wrong in verdicts() for _ in range(1000)) / 1000 <= 0.015


def test_a_real_file_against_limits_far_from_it():
    subject = Subject.of(CONTROL)
    plan = Plan(samples=40, seconds=0.2, warmup_seconds=0.2)
    verdict, measurement = gate(subject, 1000.0, 7, plan)
    # A busy machine may disturb the control, which is a third, right answer; what must not come is a fail.
    assert verdict.verdict == "pass" or "disturbed" in verdict.reasons[0]
    assert measurement.subject.sha256 == subject.sha256
    verdict, _ = gate(subject, 0.03, 7, plan)
    assert verdict.verdict == "fail" or "disturbed" in verdict.reasons[0]
