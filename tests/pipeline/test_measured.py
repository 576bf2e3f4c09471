"""Candidates are timed once, and again only where the host was disturbed; one that cannot be timed is passed over."""

import re
from dataclasses import replace

import pytest

from export.errors import ExportError
from latency.measure import WarmTimer
from models.language import SpecError
from models.spec import ModelSpec
from pipeline import measured
from pipeline.checkpoint import student_card
from pipeline.config import load_config
from pipeline.errors import PipelineError
from pipeline.measured import CandidateTimer, Form
from pipeline.run import run_one
from pipeline.stages import open_run

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
        found = own(timer, subject, plan)
        if "candidate" not in subject.path:
            return found
        seen.append(subject)
        (run,) = found.runs
        half = len(run.control_ms) // 2
        later = 2.0 if len(seen) <= disturbed else 1.0
        return replace(found, runs=(replace(run, control_ms=(1.0,) * half + (later,) * half),))

    monkeypatch.setattr(WarmTimer, "time", time)
    card = student_card(SPEC, ("a", "b"), "squash")
    with CandidateTimer(tmp_path, [FORM], 1, 50.0) as timer:
        first = timer.time(SPEC, card, 0)
        assert len(seen) == calls
        assert timer.time(SPEC, card, 0) == first  # known by now
    assert len(seen) == calls


def test_a_candidate_that_cannot_be_exported_ends_no_search(tiny, tmp_path, monkeypatch):
    own, said = measured.export_onnx, []

    def export(model, card, path):
        if not any("trial 0" in line for line in said):
            raise ExportError("an operator that ONNX lacks")
        return own(model, card, path)

    monkeypatch.setattr(measured, "export_onnx", export)
    with open_run(tmp_path / "run", load_config(tiny, ["search.trials=1"]), said.append) as run:
        done = run_one("search", run)
    assert "trial 0: cannot be built or timed: an operator that ONNX lacks" in said
    assert done.summary["trained"] == 1


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["select.input_size=168"], "select.input_size: 168 px, but the input sizes searched are 64: set it"),
        (
            ["search.space=pretrained", "student.network=resnet18", "student.weights=none"],
            "until: resnet18 has no stage 'blocks.3'; it has conv1, bn1, act1, maxpool, layer1.0",
        ),
    ],
)
def test_a_search_of_which_nothing_could_be_chosen_is_refused_before_it_begins(settings, text, tiny, tmp_path):
    said = []
    with (
        open_run(tmp_path / "run", load_config(tiny, settings), said.append) as run,
        pytest.raises((PipelineError, SpecError), match=re.escape(text)),
    ):
        run_one("search", run)
    assert not any("trial" in line for line in said)
