"""Latencies of a study that are read again when it becomes known what the control takes at rest."""

import optuna
import pytest
from optuna.trial import TrialState

from pipeline.reread import DETAILS, reread
from pipeline.search.loop import _bring_back
from pipeline.study import own_trials

LIMIT_MS = 1.0


def timing(control_ms, controls, rest_ms):
    p90_ms = controls * rest_ms
    return {
        "form": "openvino-f32",
        "p90_ms": p90_ms,
        "p90_lower_ms": 0.85 * p90_ms,
        "control_p50_ms": control_ms,
        "control_p90_ms": control_ms,
        "rest_p90_ms": rest_ms,
    }


def tell(study, x, control_ms, controls, rest_ms, trained=True):
    """A candidate of so many controls, told when rest was thought to be so many ms."""
    found = timing(control_ms, controls, rest_ms)
    details = {
        **dict.fromkeys(("params", "macs", "input_size", "size_bytes"), 1),
        "graph": [],
        "timings": [found],
        "spec": {"backbone": []},
        "hyper": {},
        "form": "openvino-f32",
    }
    over = {"latency": found["p90_lower_ms"] / LIMIT_MS - 1}
    attrs = {"latency_ms": found["p90_ms"], "over_limit": over, DETAILS: details}
    if trained:
        attrs |= {"training": str(x), "f1_by_epoch": [0.5], "f1_macro": 0.5}
    study.add_trial(
        optuna.create_trial(
            state=TrialState.COMPLETE if trained else TrialState.PRUNED,
            values=[0.5, found["p90_ms"], 1.0] if trained else None,
            params={"x": x},
            distributions={"x": optuna.distributions.IntDistribution(0, 99)},
            user_attrs=attrs,
        )
    )


@pytest.fixture
def study():
    return optuna.create_study(directions=["maximize", "minimize", "minimize"])


def test_a_search_that_began_in_a_busy_minute_sees_its_first_candidates_right_later(study):
    tell(study, 0, control_ms=0.5, controls=4.0, rest_ms=0.5, trained=False)
    (first,) = own_trials(study)
    assert first.user_attrs["latency_ms"] == pytest.approx(2.0)
    for x in range(1, 4):
        tell(study, x, control_ms=0.25, controls=2.0, rest_ms=0.25)
    first, *others = own_trials(study)
    assert first.user_attrs["latency_ms"] == pytest.approx(1.0)
    assert first.user_attrs["over_limit"]["latency"] == pytest.approx(-0.15)
    assert first.user_attrs[DETAILS]["timings"][0]["p90_lower_ms"] == pytest.approx(0.85)
    assert [t.values[1] for t in others] == pytest.approx([0.5] * 3)
    assert study.trials[0].user_attrs["latency_ms"] == pytest.approx(2.0), "what is stored stays as it was told"


def test_read_again_twice_is_read_again_once(study):
    tell(study, 0, 0.5, 4.0, 0.5, trained=False)
    for x in range(1, 4):
        tell(study, x, 0.25, 2.0, 0.25)
    once = own_trials(study)
    assert [t.user_attrs for t in reread(once)] == [t.user_attrs for t in once]


def test_what_was_rejected_wrongly_is_brought_back_once(study):
    tell(study, 0, 0.5, 4.0, 0.5, trained=False)
    tell(study, 1, 0.5, 9.0, 0.5, trained=False)
    assert _bring_back(study, own_trials(study)) == 0
    for x in range(2, 6):
        tell(study, x, 0.25, 2.0, 0.25)
    assert _bring_back(study, own_trials(study)) == 1
    waiting = [t for t in own_trials(study) if t.state == TrialState.WAITING]
    assert [t.system_attrs["fixed_params"] for t in waiting] == [{"x": 0}]
    assert _bring_back(study, own_trials(study)) == 0
    assert 0 not in [t.number for t in own_trials(study)]


def test_what_another_program_wrote_stays_as_it_is(study):
    tell(study, 0, 0.25, 2.0, 0.25)
    odd = study.trials[0]
    for timings in ([], ["x"], [{"form": "x"}], None):
        odd.user_attrs = {**odd.user_attrs, DETAILS: {**odd.user_attrs[DETAILS], "timings": timings}}
        assert reread([odd]) == [odd]
