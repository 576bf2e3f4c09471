"""The percentile rule: who is compared with whom, and what it would have done to a whole study."""

import numpy as np
import pytest

from pipeline.config import Stop
from pipeline.search.stopping import Curve, hopeless, replay

RULE = Stop(share=0.25, epochs=2, least=4, similar=1.15)
PEERS = [Curve(1.0, (0.1, 0.2 + 0.1 * i, 0.3 + 0.1 * i)) for i in range(5)]  # after two epochs: .2 .3 .4 .5 .6


def test_behind_three_quarters_of_its_like_it_is_hopeless():
    assert hopeless(Curve(1.0, (0.1, 0.29)), PEERS, 4, RULE)
    assert not hopeless(Curve(1.0, (0.1, 0.31)), PEERS, 4, RULE)
    assert hopeless(Curve(3.0, (0.1, 0.29)), PEERS, 4, RULE)  # slower than they are, and worse


def test_one_that_was_stopped_stays_among_those_who_are_compared():
    stopped = [Curve(1.0, (0.05, 0.1))] * 6
    assert not hopeless(Curve(1.0, (0.1, 0.2, 0.41)), PEERS + stopped, 4, RULE)
    assert hopeless(Curve(1.0, (0.1, 0.2, 0.39)), PEERS, 4, RULE)


@pytest.mark.parametrize(
    ("curve", "peers", "rule"),
    [
        (Curve(1.0, (0.0,)), PEERS, RULE),  # too early
        (Curve(1.0, (0.0, 0.0, 0.0, 0.0)), PEERS, RULE),  # its last epoch is over
        (Curve(0.8, (0.0, 0.0)), PEERS, RULE),  # the others take longer
        (Curve(1.0, (0.0, 0.0)), PEERS[:3], RULE),  # too few
        (Curve(1.0, (0.0, 0.0)), PEERS, Stop(share=0)),
        (Curve(1.0, (0.5, 0.0)), PEERS, RULE),  # its best epoch counts, as it does for a finished one
    ],
)
def test_else_it_goes_on(curve, peers, rule):
    assert not hopeless(curve, peers, 4, rule)


def test_of_curves_that_keep_their_order_a_replay_misses_none_of_the_best():
    rng = np.random.default_rng(0)
    ends = rng.random(200)
    curves = [Curve(1.0, tuple(end * part for part in (0.4, 0.7, 0.9, 1.0))) for end in ends]
    found = replay(curves, 4, Stop(share=0.25, epochs=2, least=6))
    assert found.epochs == 800
    assert found.epochs_saved == sum(4 - had for had in found.stopped.values())
    # A quarter, however often it is looked, and none of them among the best half.
    assert 0.15 < len(found.stopped) / 200 < 0.3
    assert max(ends[i] for i in found.stopped if i > 20) < np.median(ends)
    assert min(found.stopped) >= 6
