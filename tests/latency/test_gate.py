"""Verdicts: from synthetic evidence, and of real files in real processes."""

import pytest

from latency.bounds import plan_looks
from latency.gate import gate, judge
from latency.measure import extend
from latency.records import Measurement, ProcessRun, Target
from latency.sampling import Plan
from latency.worker import CONTROL

TARGET = Target("model.onnx", "onnxruntime", "f32", 1, "0" * 64)


def evidence(p90s, controls=None):
    runs = [
        ProcessRun(1.0, 1.0, 10, (p90,) * 20, (control,) * 20, 50.0, "f32", {})
        for p90, control in zip(p90s, controls or [0.3] * len(p90s), strict=True)
    ]
    return Measurement(TARGET, tuple(runs), {"key": "host"})


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


def test_one_disturbed_process_does_not_spoil_the_rest():
    assert judge(evidence([1.0] * 9, [0.3] * 8 + [3.0]), 1.4, LOOKS[0]).verdict == "pass"


def test_measurements_of_two_files_are_not_put_together():
    other = Measurement(Target("b.onnx", "onnxruntime", "f32", 1, "1" * 64), evidence([1.0]).runs, {"key": "host"})
    with pytest.raises(RuntimeError, match="different files or hosts"):
        extend(evidence([1.0]), other)


def test_a_real_file_against_limits_far_from_it():
    target = Target.of(CONTROL, "onnxruntime", "f32", 1)
    plan = Plan(samples=40, seconds=0.2, warmup_seconds=0.2)
    verdict, measurement = gate(target, 1000.0, 7, plan)
    # A busy machine may disturb the control, which is a third, right answer; what must not come is a fail.
    assert verdict.verdict == "pass" or "disturbed" in verdict.reasons[0]
    assert len({len(r.samples_ms) for r in measurement.runs}) >= 1
    assert measurement.target.sha256 == target.sha256
    verdict, _ = gate(target, 0.0001, 7, plan)
    assert verdict.verdict == "fail" or "disturbed" in verdict.reasons[0]
