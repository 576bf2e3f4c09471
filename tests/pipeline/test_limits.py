"""Limits beside latency: which form counts, and what is said."""

import pytest

from pipeline.config import check_config
from pipeline.search.limits import best_form, over_limits, shipped_over, told_over
from pipeline.search.measured import Timing


def config(**limits):
    return check_config({"data": {"root": "x"}, "latency": {"limit_ms": 2.0}, "limits": limits}, "test")


def timing(form="openvino-f32", ms=1.0, size=1000, peak=None):
    return Timing(form, ms, ms * 0.9, 0.3, 0.3, 0.3, 1, "f32", size, peak)


def test_only_limits_that_are_set_count():
    assert over_limits(config(), timing(ms=2.0), 10**9) == {"latency": pytest.approx(-0.1)}
    found = over_limits(config(params=100, size="2kB", memory="1MiB"), timing(size=3000, peak=1.5), 150)
    assert found == pytest.approx({"latency": -0.55, "params": 0.5, "size": 0.5, "memory": 0.5})
    assert told_over(found) == "params 50% over its limit, size 50% over its limit, memory 50% over its limit"


def test_the_fastest_form_that_keeps_all_limits_counts():
    large, small = timing("openvino-bf16", 0.5, 4000), timing("openvino-int8", 0.8, 1000)
    assert best_form(config(), [large, small], 0)[0] is large
    assert best_form(config(size="2kB"), [large, small], 0)[0] is small
    form, over = best_form(config(size=500), [large, small], 0)
    assert form is small  # neither keeps it: the nearest
    assert over["size"] == 1.0


def test_what_ships_is_held_to_the_same():
    assert shipped_over(config(params=100, size="2kB", memory="1MiB"), 100, 2000, 1.0) == []
    assert shipped_over(config(params=99, memory="1MiB"), 100, 2000, 2.0) == [
        "100 parameters are over the limit of 99 (limits.params)",
        "2,097,152 bytes of memory at its peak are over the limit of 1,048,576 (limits.memory)",
    ]
