"""Hypervolume against hand and against Optuna's own."""

import numpy as np
import pytest
from optuna._hypervolume import compute_hypervolume

from pipeline.search.front import hypervolume


def test_by_hand():
    assert hypervolume([], 1.0) == 0
    assert hypervolume([(0.5, 0.5)], 1.0) == 0.25
    assert hypervolume([(0.5, 0.5), (0.9, 1.2)], 1.0) == 0.25  # over the limit
    assert hypervolume([(0.5, 0.5), (0.3, 0.6)], 1.0) == 0.25  # beaten
    assert hypervolume([(0.8, 1.0), (0.5, 0.5), (0.7, 0.75)], 2.0) == pytest.approx((0.25 * 0.5 + 0.25 * 0.7 + 0.8) / 2)


def test_as_optuna_computes_it():
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = rng.random((30, 2))
        loss = np.stack([-points[:, 0], points[:, 1]], axis=1)[points[:, 1] <= 0.7]
        assert hypervolume([tuple(p) for p in points], 0.7) == pytest.approx(
            compute_hypervolume(loss, np.array([0.0, 0.7])) / 0.7
        )
