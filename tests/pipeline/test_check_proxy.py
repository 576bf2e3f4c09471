"""The statistics of the check of the proxy, on drawn pairs whose truth is known."""

import math

import numpy as np
import pytest

from pipeline.search.check_proxy import rank_correlation, repeat_noise


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Normal pairs: Spearman's rho is 6 / pi asin(r / 2) of Pearson's r (Kendall and Gibbons, 1990)."""
    rng = np.random.default_rng(0)
    truth = 6 / math.pi * math.asin(0.7 / 2)
    held = []
    for _ in range(1000):
        x, y = rng.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], 12).T
        rank = rank_correlation(x, y)
        held.append(rank.low <= truth <= rank.high)
    assert 0.93 <= np.mean(held) <= 0.98


def test_perfect_order_and_none():
    up = rank_correlation([1, 2, 3, 4, 5, 6], [1, 4, 9, 16, 25, 36])
    assert (up.spearman, up.kendall) == pytest.approx((1.0, 1.0))
    assert up.low > 0.9
    assert math.isnan(rank_correlation([1, 1, 1, 1, 1], [1, 2, 3, 4, 5]).spearman)


def test_noise_is_within_candidates_and_not_between_them():
    assert repeat_noise([[0.5, 0.52], [0.8, 0.82]]) == pytest.approx(np.std([0.5, 0.52], ddof=1))
