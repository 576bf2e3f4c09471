"""Gaussian processes of what hangs on the parameters of a trial.

20 to 100 trials do not tell 40 length scales apart. So the kernel has one, of parameters that count by what each
explains alone.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from scipy.optimize import minimize

_FITTED, _KNOWN = 80, 250
"""Trials that a kernel is fitted to, and that it is then given: time grows with the cube."""
_ITERATIONS = 12
"""Of a fit."""
_UNKNOWN = 0.05
"""Of the variance: what a parameter may explain that seems to explain nothing."""
LEAST = 1e-6
"""Of a deviation, and of a share."""


class Code:
    """Parameters as numbers: ranges from 0 to 1, a column for each value of a list; 0.5 and zeros for those that a
    trial does not have."""

    def __init__(self, distributions: dict[str, BaseDistribution]) -> None:
        self._distributions = distributions

    @property
    def columns(self) -> list[int]:
        """How many each parameter has."""
        return [len(d.choices) if isinstance(d, CategoricalDistribution) else 1 for d in self._distributions.values()]

    def __call__(self, params: Sequence[dict[str, Any]]) -> Any:
        """(trials, columns)"""
        return np.column_stack([_coded(d, n, params) for n, d in self._distributions.items()])


def _coded(distribution: Any, name: str, params: Sequence[dict[str, Any]]) -> Any:
    """(trials, columns of this parameter)"""
    if isinstance(distribution, CategoricalDistribution):
        return np.array([[float(name in p and p[name] == c) for p in params] for c in distribution.choices]).T
    numbers = np.array([p.get(name, np.nan) for p in params], dtype=float)
    low, high = distribution.low, distribution.high
    if distribution.log:
        numbers, low, high = np.log(numbers), np.log(low), np.log(high)
    return np.nan_to_num((numbers - low) / ((high - low) or 1.0), nan=0.5)


def _relevance(rows: Any, values: Any, columns: Sequence[int]) -> Any:
    """A weight for each column, 1 in the mean of squares: by the share of the variance that its parameter explains
    alone (as a parabola, or a mean for each of its values), less the share that chance would."""
    about, total, found, first = values - values.mean(), max(LEAST, values.var()), [], 0
    for count in columns:
        own = rows[:, first : first + count]
        own = np.hstack([own, own**2]) if count == 1 else own
        own = own - own.mean(axis=0)
        answer, _, free, _ = np.linalg.lstsq(own, about, rcond=None)
        share = 1 - np.mean((about - own @ answer) ** 2) / total - free / max(1, len(rows) - 1)
        found += [_UNKNOWN + max(0.0, share)] * count
        first += count
    return np.sqrt(np.array(found) / np.mean(found))


def _few_steps(objective: Any, begin: Any, bounds: Any) -> tuple[Any, float]:
    """For scikit-learn: its own L-BFGS-B, ended where the likelihood hardly grows any more."""
    found = minimize(objective, begin, method="L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": _ITERATIONS})
    return found.x, found.fun


class Model:
    """A Gaussian process of one quantity over trials; of some of them, where they are many."""

    def __init__(self, code: Code, params: Sequence[dict[str, Any]], values: Any, rng: np.random.Generator) -> None:
        # Here, for scikit-learn takes a second to import, and most commands fit nothing.
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel

        if len(params) > _KNOWN:  # the latest, and some of the earlier ones, which lie wider apart
            earlier = len(params) - _KNOWN // 2
            kept = [*sorted(rng.permutation(earlier)[: _KNOWN // 2]), *range(earlier, len(params))]
            params, values = [params[i] for i in kept], values[kept]
        rows = code(params)
        self._weights = _relevance(rows, values, code.columns)
        self._rows = rows * self._weights
        self._mean, self._deviation = values.mean(), max(LEAST, values.std())
        self._values = (values - self._mean) / self._deviation
        part = rng.permutation(len(rows))[:_FITTED]
        kernel = (
            ConstantKernel() * Matern(2.0, (0.3, 50.0), nu=2.5)
            + ConstantKernel(0.1) * DotProduct(1.0, (1e-2, 1e2))
            + WhiteKernel(0.1, (1e-3, 1.0))
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a length scale at its bound says: does not matter
            fitted = GaussianProcessRegressor(kernel, optimizer=_few_steps).fit(self._rows[part], self._values[part])
        self._kernel = fitted.kernel_
        self._settle()

    def _settle(self) -> None:
        from sklearn.gaussian_process import GaussianProcessRegressor

        self._process = GaussianProcessRegressor(self._kernel, optimizer=None).fit(self._rows, self._values)

    def add(self, row: Any, value: float) -> None:
        self._rows = np.vstack([self._rows, row * self._weights])
        self._values = np.append(self._values, (value - self._mean) / self._deviation)
        self._settle()

    def predict(self, rows: Any) -> tuple[Any, Any]:
        """Mean and deviation of the quantity itself, without the noise of one more measurement."""
        mean, deviation = self._process.predict(rows * self._weights, return_std=True)
        own = np.sqrt(np.maximum(deviation**2 - self._kernel.k2.noise_level, LEAST**2))
        return self._mean + self._deviation * mean, self._deviation * own
