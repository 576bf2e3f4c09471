"""Candidates are timed once, and again only where the host was disturbed."""

from dataclasses import replace

import pytest

from latency.measure import WarmTimer
from models.spec import ModelSpec
from pipeline.checkpoint import student_card
from pipeline.measured import CandidateTimer, Form

SPEC = ModelSpec.parse(
    {
        "INPUT_SIZE": [32, 32],
        "backbone": [[1, "Conv", [8, 3, 2]], [1, "GlobalAvgPool", []], [1, "Linear", [2]]],
    }
)
FORM = Form("onnxruntime", "f32")


@pytest.mark.parametrize(("disturbed", "calls"), [(0, 1), (1, 2), (9, 3)])
def test_a_disturbed_candidate_is_timed_again_a_few_times(disturbed, calls, tmp_path, monkeypatch):
    """Real times; what the control says of the host is written over."""
    own, seen = WarmTimer.time, []

    def time(timer, subject, plan):
        measured = own(timer, subject, plan)
        if "candidate" not in subject.path:
            return measured
        seen.append(subject)
        (run,) = measured.runs
        half = len(run.control_ms) // 2
        later = 2.0 if len(seen) <= disturbed else 1.0
        return replace(measured, runs=(replace(run, control_ms=(1.0,) * half + (later,) * half),))

    monkeypatch.setattr(WarmTimer, "time", time)
    card = student_card(SPEC, ("a", "b"), "squash")
    with CandidateTimer(tmp_path, [FORM], 1, 50.0) as timer:
        first = timer.time(SPEC, card, 0)
        assert len(seen) == calls
        assert timer.time(SPEC, card, 0) == first  # known by now
    assert len(seen) == calls
