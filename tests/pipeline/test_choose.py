"""The rule of choice, on the lineage's own rows and at its edges; and the lineage's score."""

from types import SimpleNamespace

import pytest

from pipeline.config import Score
from pipeline.errors import NoCandidate, PipelineError
from pipeline.search import select
from pipeline.search.choose import Row, Rule, choose, pareto
from pipeline.search.finalists import Again
from pipeline.search.score import score

ROUND2 = [  # the report's six rows: trial, F1, ms, parameters, px
    Row(16, 0.405237, 1.363699, 1_586_740, 224),
    Row(17, 0.416850, 1.455787, 263_260, 168),
    Row(44, 0.419979, 1.428139, 310_060, 168),
    Row(57, 0.409185, 1.353865, 663_436, 168),
    Row(66, 0.410768, 1.456196, 58_988, 224),
    Row(67, 0.428476, 1.433395, 71_700, 224),
]


def rule(**change):
    return Rule(**{"limit_ms": 1.4, "f1_floor": 0.4, "f1_band": 0.02, "latency_band": 0.1, "input_size": 168} | change)


@pytest.mark.parametrize(("size", "trial"), [(168, 57), (None, 16)])
def test_the_lineages_own_choice(size, trial):
    chosen, table = choose(ROUND2, rule(input_size=size))
    assert chosen.trial == trial
    assert [r.trial for r in table if not r.reason] == [trial]


def row(trial, f1=0.5, ms=1.0, params=1000, size=168):
    return Row(trial, f1, ms, params, size)


def test_where_a_finalist_drops_out_the_others_are_timed_again_beside_its_successor(monkeypatch):
    """What the clock says is scripted: the first is over the limit when it is timed again."""
    asked = []

    def look_again(run, trials, work):
        asked.append(trials)
        return {t: Again("openvino-f32", 1, 1.5 if t == 0 else 1.0, (1.0,), (0.9,)) for t in trials}

    monkeypatch.setattr(select, "look_again", look_again)
    run = SimpleNamespace(config=SimpleNamespace(select=SimpleNamespace(trial=None, finalists=2)))
    again = select._finalists(run, rule(), {n: n for n in range(4)}, [row(n) for n in range(4)], row(0), None)
    assert asked == [[0, 1], [1, 2]]
    assert set(again) == {0, 1, 2}


def test_each_step_says_why():
    rows = [row(0, f1=0.9), row(1, f1=0.89, params=2000), row(2, f1=0.87), row(3, f1=0.899, ms=1.2), row(4, ms=2.0),
            row(5, f1=0.1), row(6, size=224)]  # fmt: skip
    chosen, table = choose(rows, rule())
    assert chosen.trial == 1
    why = {r.trial: r.reason for r in table}
    assert why[0] == "as fast as trial 1, which has more parameters"
    assert why[2].startswith("F1 more than 0.02 under the best")
    assert why[3].startswith("more than 10% slower than the fastest")
    assert why[4] == "2.000 ms is over the limit of 1.4 ms"
    assert why[5] == "F1 0.1000 is under select.f1_floor, 0.4"
    assert why[6] == "input 224 px, select.input_size is 168"


def test_a_person_may_overrule():
    assert choose(ROUND2, rule(), trial=17)[0].trial == 17
    with pytest.raises(PipelineError, match="99 is no trained trial of this search; trained: 16, 17, 44, 57, 66, 67"):
        choose(ROUND2, rule(), trial=99)


def test_none_that_keeps_the_rule_is_said_with_reasons():
    with pytest.raises(NoCandidate, match=r"none of 6 trained candidates keeps the rule \(trial 67: "):
        choose(ROUND2, rule(limit_ms=1.0))
    with pytest.raises(NoCandidate, match="no candidate was trained"):
        choose([], rule())


def test_pareto():
    rows = [
        row(0, 0.9, 1.0, 100),
        row(1, 0.8, 1.0, 100),
        row(2, 0.8, 0.5, 100),
        row(3, 0.7, 0.6, 50),
        row(4, 0.9, 1.0, 100),
    ]
    assert pareto(rows) == {0, 2, 3, 4}


PUBLISHED = [(0.617, 54.565, 1.4730), (0.7012, 58.1225, 1.1676), (0.6870, 63.078, 1.2950), (0.7005, 58.3412, 1.1732),
             (0.688, 84.985, 1.5460), (0.653, 92.926, 1.7950), (0.70, 60, 1.1950)]  # fmt: skip


@pytest.mark.parametrize(("f1", "seconds", "published"), PUBLISHED)
def test_the_score_of_the_lineages_leaderboard(f1, seconds, published):
    constants = Score(time_weight=0.5, reference_s=43.135, slope=20, f1=0.70)
    assert score(f1, seconds, constants) == pytest.approx(published, abs=0.0016)
