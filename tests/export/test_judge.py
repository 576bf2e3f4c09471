"""The time that many images take, from runs of few: when it is told, and when it cannot be."""

import pytest

from export.checks import PROCESSES, Checks, Limits
from export.judge import judge_time


def judged(starts, wholes, timed, count, seconds):
    checks = Checks()
    judge_time(starts, wholes, timed, count, Limits(seconds=seconds), checks, {})
    return {c.name: c for c in checks.found}["time"]


STEADY = ([0.5] * PROCESSES, [0.7] * PROCESSES)
NOISY = ([0.5] * (PROCESSES - 1) + [0.9], [0.7] * PROCESSES)
"""One start took longer than a whole run."""


@pytest.mark.parametrize(
    ("runs", "count", "seconds", "verdict"),
    [
        (STEADY, 200, 1.0, "pass"),
        (STEADY, 200, 0.6, "fail"),
        (STEADY, 100_000, 60, "fail"),
        (NOISY, 200, 1.0, "pass"),  # as many as were run: nothing is reckoned from a rate
        (NOISY, 100_000, 200, "inconclusive"),
        (NOISY, 200, None, "pass"),  # nothing was asked
    ],
)
def test_the_verdict_on_the_time(runs, count, seconds, verdict):
    assert judged(*runs, 200, count, seconds).verdict == verdict


def test_why_it_cannot_be_told():
    assert "the starts vary by more than 200 images take" in judged(*NOISY, 200, 100_000, 200).told
