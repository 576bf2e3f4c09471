"""Ratios, their bounds and what they allow to say: on synthetic rounds of known truth, and on real files."""

import math
from dataclasses import replace

import numpy as np
import pytest

from latency import check as check_module
from latency import compare as compare_module
from latency.check import Rounds, check, check_stored, decide, threshold_of
from latency.compare import Interval, compare, conclude, interval, log_ratio, unpaired
from latency.errors import InputError
from latency.machine import CONTROL
from latency.measure import measure
from latency.records import Measurement, ProcessRun, Subject
from latency.sampling import Plan
from latency.selftest import false_alarms, last, margins, remember, selftest

QUICK = Plan(samples=40, seconds=0.3, warmup_seconds=0.2)
CALM = [0.3] * 40


def run(samples, control=CALM):
    return ProcessRun(1.0, 1.0, 20, tuple(samples), tuple(control), 50.0, "f32", {})


def logs(rng, n, ratio=1.0, spread=0.01):
    """Log ratios by process, one in ten of them hit by a neighbour."""
    return tuple(math.log(ratio) + rng.normal(0, spread, n) + (rng.random(n) < 0.1) * rng.normal(0, 5 * spread, n))


def test_the_ratio_of_a_process_is_not_moved_by_a_change_of_regime_within_it():
    a, b = [1.0] * 40 + [2.0] * 40, [1.1] * 40 + [2.2] * 40
    assert log_ratio(run(a), run(b)) == pytest.approx(math.log(1.1))


def test_nor_by_a_neighbour_that_hits_one_block():
    a, b = [1.0] * 100, [1.05] * 40 + [9.0] * 20 + [1.05] * 40
    assert log_ratio(run(a), run(b)) == pytest.approx(math.log(1.05))


@pytest.mark.slow
@pytest.mark.parametrize(("n", "heavy"), [(12, False), (12, True), (24, True)])
def test_the_interval_covers(n, heavy):
    """99 % is claimed; at least 98.5 % is asked for, with tails of Student's t with 3 degrees too."""
    rng = np.random.default_rng(4)
    draws, missed = 500, 0
    for _ in range(draws):
        sample = 0.007 * rng.standard_t(3, n) if heavy else rng.normal(0, 0.01, n)
        found = interval(sample)
        missed += not found.low <= 1 <= found.high
    assert missed / draws <= 0.015


def test_the_interval_of_equal_rounds_is_a_point():
    assert interval([0.0] * 12) == Interval(1.0, 1.0, 1.0)


def test_the_unpaired_interval_finds_the_truth_and_is_wider():
    rng = np.random.default_rng(5)

    def runs(ratio):
        regimes = np.where(rng.random(16) < 0.5, 1.25, 1.0)
        return [run([r * ratio * rng.lognormal(0, 0.01)] * 20, [0.3 * r] * 20) for r in regimes]

    found = unpaired(runs(1.0), runs(1.2))
    assert found.low < 1.2 < found.high
    assert found.low > 1.1, "regimes fall on the control too"


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (Interval(1.0, 0.99, 1.01), "same"),
        (Interval(1.01, 1.005, 1.015), "same"),
        (Interval(1.05, 1.03, 1.07), "slower"),
        (Interval(0.95, 0.93, 0.97), "faster"),
        (Interval(1.01, 0.99, 1.03), "inconclusive"),
    ],
)
def test_what_an_interval_allows_to_say(found, verdict):
    assert conclude(found, 0.02, 16).verdict == verdict


def test_too_few_processes_or_a_disturbed_host_compare_nothing(monkeypatch):
    monkeypatch.setattr(compare_module, "measure", lambda *a, **k: pytest.fail("timed for nothing"))
    found, measured = compare(Subject.of(CONTROL), Subject.of(CONTROL), 4)
    assert (found.verdict, found.ratio, measured) == ("inconclusive", None, [])
    told = conclude(Interval(2.0, 1.9, 2.1), 0.02, 16, "the host was disturbed")
    assert told.verdict == "inconclusive"
    assert "end what else runs here" in told.reasons[0]


def test_comparisons_of_a_file_with_itself_are_never_called_different():
    rng = np.random.default_rng(6)
    verdicts = [conclude(interval(logs(rng, 16)), 0.02, 16).verdict for _ in range(300)]
    assert sum(v in ("faster", "slower") for v in verdicts) <= 3


def test_the_threshold_is_what_is_allowed_or_the_noise_of_the_host():
    assert threshold_of(Interval(1.0, 0.999, 1.001), 0.02) == 1.02
    assert threshold_of(Interval(1.0, 0.9, 1.05), 0.02) == 1 / 0.9


def test_a_slowdown_fails_only_when_confirmed():
    slow, fine = Interval(1.1, 1.08, 1.12), Interval(1.0, 0.99, 1.01)
    assert decide([slow], slow, 1.02, 0.02, 12).verdict == "inconclusive", "not yet"
    assert decide([slow, slow], slow, 1.02, 0.02, 24).verdict == "fail"
    assert decide([slow, fine], Interval(1.05, 1.0, 1.1), 1.02, 0.02, 24).verdict == "inconclusive"
    assert decide([fine], fine, 1.02, 0.02, 12).verdict == "pass"


def test_a_noisy_host_passes_nothing_that_it_could_not_see():
    """Noise raises what a fail needs, never what a pass allows."""
    wide = Interval(1.05, 0.98, 1.12)
    found = decide([wide, wide], wide, 1.15, 0.02, 24)
    assert found.verdict == "inconclusive"
    assert "differ from itself by up to 15.0%, more than the 2.0% that are allowed" in found.reasons[0]


@pytest.mark.parametrize("values", [[0.01, 0.02], [0.01] * 11 + [0.5], [0.0, 0.1, 0.2]])
def test_bounds_of_few_or_odd_rounds_are_numbers(values):
    found = interval(values)
    assert math.isfinite(found.low)
    assert math.isfinite(found.high)


def synthetic(monkeypatch, ratio, spread=0.008, control=CALM):
    """Rounds as a host would give them, without the clock; how many sets were asked for."""
    rng, asked = np.random.default_rng(7), []

    def measured(subjects, processes, plan, *args, **kwargs):
        asked.append(processes)
        arms = ([], [], [])
        for _ in range(processes):
            regime = 1.25 if rng.random() < 0.4 else 1.0
            for arm, share in zip(arms, (1.0, ratio, 1.0), strict=True):
                arm.append(run(regime * share * rng.lognormal(0, spread, 1) * rng.lognormal(0, 0.01, 200), control))
        return [Measurement(s, tuple(a), plan, {"key": "host"}) for s, a in zip(subjects, arms, strict=False)]

    monkeypatch.setattr(check_module, "measure", measured)
    return asked


def test_checks_of_the_same_file_pass_and_of_a_slower_one_fail(monkeypatch):
    subject = Subject.of(CONTROL)
    asked = synthetic(monkeypatch, 1.0)
    assert [check(subject, subject)[0].verdict for _ in range(20)].count("pass") >= 19
    assert len(asked) <= 21, "a clear pass takes one set of processes"
    synthetic(monkeypatch, 1.05)
    found = [check(subject, subject)[0] for _ in range(20)]
    assert [f.verdict for f in found].count("fail") >= 19
    assert "confirmed in fresh processes" in next(f for f in found if f.verdict == "fail").reasons[0]


def test_a_disturbed_host_or_too_few_processes_check_nothing(monkeypatch):
    subject = Subject.of(CONTROL)
    synthetic(monkeypatch, 1.5, control=[0.3] * 20 + [0.6] * 20)
    found, _ = check(subject, subject)
    assert found.verdict == "inconclusive"
    assert "says nothing of the file" in found.reasons[0]
    assert check(subject, subject, processes=4)[0].verdict == "inconclusive"


def stored():
    """A record of eight processes of this host, all alike."""
    (measured,) = measure([Subject.of(CONTROL)], 1, QUICK)
    return replace(measured, runs=measured.runs * 8)


def test_a_stored_baseline_of_another_host_says_nothing(monkeypatch):
    base = stored()
    monkeypatch.setattr(check_module, "measure", lambda *a, **k: pytest.fail("timed for nothing"))
    other = replace(base, host=base.host | {"cpu": "Another CPU", "key": "0" * 16})
    found, _ = check_stored(Subject.of(CONTROL), other, processes=8)
    assert found.verdict == "inconclusive"
    assert "cpu: Another CPU then" in found.reasons[0]
    found, _ = check_stored(Subject.of(CONTROL, threads=2), base, processes=8)
    assert "measured with threads 1, the head would be with 2" in found.reasons[0]


def test_a_stored_baseline_of_this_host_is_compared_in_units_of_the_control(monkeypatch):
    def runs(ratio, regime):
        return tuple(run([regime * ratio * x] * 20, [0.3 * regime] * 20) for x in np.linspace(0.99, 1.01, 8))

    subject = Subject.of(CONTROL)
    base = replace(stored(), runs=runs(1.0, 1.0))
    for ratio, verdict in ((1.0, "pass"), (1.2, "fail")):
        head = replace(base, runs=runs(ratio, 1.3))
        monkeypatch.setattr(check_module, "measure", lambda *a, head=head, **k: [head])
        found, taken = check_stored(subject, base, processes=8)
        assert (found.verdict, len(taken)) == (verdict, 2 if verdict == "fail" else 1)


def test_two_real_files_in_the_same_processes():
    subject = Subject.of(CONTROL)
    compare_plan = compare_module.PLAN
    try:
        compare_module.PLAN = QUICK
        found, measured = compare(subject, replace(subject, runtime="openvino"), 8)
    finally:
        compare_module.PLAN = compare_plan
    assert len(measured[0].runs) == 8
    assert found.low <= found.ratio <= found.high
    plain = measured[1].summary()["p50_ms"] / measured[0].summary()["p50_ms"]
    assert found.ratio == pytest.approx(plain, rel=0.3)


@pytest.mark.parametrize("how", [{"threads": 2}, {"batch": 1}, {"pin": (0,)}])
@pytest.mark.parametrize("command", [compare, check])
def test_files_are_compared_with_the_same_threads_batch_and_cpus(command, how):
    with pytest.raises(InputError, match=f"with {next(iter(how))} .*give both the same"):
        command(Subject.of(CONTROL), Subject.of(CONTROL, **how))


def test_drawn_checks_of_the_selftest_know_noise_from_slowness():
    rng = np.random.default_rng(8)
    alike = logs(rng, 40, spread=0.006)
    untouched = Rounds(alike, alike)
    assert false_alarms(alike, 200, rng) <= 0.01
    assert false_alarms([x + 0.1 for x in alike], 20, rng) == 0, "exchanged at random, a shift is only noise"
    plain = margins(untouched, 100, rng)
    assert np.mean(plain * 1.005 > 1) == 0
    assert np.mean(plain * 1.08 > 1) > 0.95
    wild = logs(rng, 40, spread=0.15)
    assert np.mean(margins(Rounds(wild, wild), 50, rng) * 1.05 > 1) < 0.5


@pytest.mark.slow
def test_a_selftest_of_this_host_is_remembered(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = selftest(Subject.of(CONTROL), rounds=16)
    assert found.false_alarms <= 0.05
    # Of 0.1 ms; where the work has driven it out of the caches, the next inference takes 2 % longer on some CPUs.
    assert found.seen.low > 1
    assert found.seen.ratio == pytest.approx(1 + found.injected, abs=0.04)
    assert set(found.power) >= {"1%", "5%", "30%"}
    remember(found)
    assert last(found.host["key"])["spread"] == found.spread
    assert last("no such host") is None
