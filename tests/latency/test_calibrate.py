"""From pairs (local ms, seconds elsewhere) to a local limit."""

import numpy as np
import pytest

from latency.calibrate import calibrate
from latency.errors import InputError

PUBLISHED = (1.3223, 54.565)


def test_the_published_pair():
    """FACTS: under about 1.4 ms here the submission stays under 60 s there."""
    found = calibrate([PUBLISHED], 60)
    assert 1.40 <= found.low_ms <= found.high_ms <= 1.46
    assert found.limit_ms == found.low_ms
    assert found.method == "ratio"


def test_two_pairs_give_the_range_of_their_ratios():
    found = calibrate([PUBLISHED, (1.40, 60.0)], 60)
    assert found.high_ms == pytest.approx(60 / (54.565 / 1.3223))
    assert found.limit_ms < 1.40


def test_a_limit_under_all_pairs_is_told_to_be_unsafe():
    assert "would lower the local limit" in calibrate([PUBLISHED], 30).notes[1]


def test_a_line_keeps_the_limit_there_nineteen_times_in_twenty():
    rng = np.random.default_rng(9)
    kept, draws = 0, 400
    for _ in range(draws):
        ms = rng.uniform(0.8, 2.0, 6)
        found = calibrate([(x, 12 + 30 * x + rng.normal(0, 1.0)) for x in ms], 60)
        assert found.low_ms <= found.limit_ms
        kept += 12 + 30 * found.limit_ms + rng.normal(0, 1.0) <= 60
    assert kept / draws >= 0.95


def test_points_on_a_line_give_it_back():
    found = calibrate([(1.0, 42.0), (1.2, 48.0), (2.0, 72.0)], 60)
    assert (found.start_s, found.seconds_per_ms) == (pytest.approx(12.0), pytest.approx(30.0))
    assert found.limit_ms == pytest.approx(1.6)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(1.0, 20.0), (1.5, 45.0), (2.0, 70.0)], "the fixed time there at -30 s, which cannot be under 0"),
        ([(1.0, 70.0), (1.5, 45.0), (2.0, 20.0)], "the seconds fall as the local ms grow"),
        ([(1.0, 70.0), (1.0, 45.0), (1.0, 20.0)], "the same local ms"),
        ([(1.0, 70.0), (1.5, 72.0), (2.0, 74.0)], "no local limit keeps 60 s"),
        ([], "at least one pair"),
        ([(0.0, 5.0)], "all from 1e-09 to 1e[+]09"),
        ([(1e308, 1e-308)], "all from 1e-09"),
        ([(1e308, 1.0), (1e308, 2.0), (1e307, 0.5)], "all from 1e-09"),
        ([(float("nan"), 1.0)], "all from 1e-09"),
    ],
)
def test_pairs_that_contradict_are_refused(pairs, message):
    with pytest.raises(InputError, match=message):
        calibrate(pairs, 60)
