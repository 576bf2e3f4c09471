"""The default sampler: Gaussian processes of F1 and of latency, and the candidate of which most is to be expected.

Latency is known of all that was measured, F1 only of what was trained, so each has a model of its own data, and a
rejected candidate teaches where the limit lies without a word about F1. A candidate of latency l and macro F1 f adds to
the area under the front, which ends at the limit,

    integral over t from l to the limit of max(0, f - best(t)) dt,    best(t): the best F1 known within t

and with f and log l normal and independent its expectation is the integral of P(l <= t) EI(f, best(t)), where EI is the
expected improvement of Jones, Schonlau and Welch 1998. The whole is the expected hypervolume improvement of Emmerich,
Giannakoglou and Naujoks 2006. Every third trial goes by EI at the limit alone, for the best F1 under the limit is what
is chosen in the end. Other limits count by the probability that they are kept. Until some were trained, candidates are
drawn at random, the more often the likelier they keep the limits.

The kernel has one length scale for all parameters: 20 to 100 trials do not tell 40 of them apart.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from scipy.optimize import minimize
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel

from models.joined import JoinedSpace
from models.language import SpecError

STARTUP = 10
"""Trials measured before latency is modelled, and trained before F1 is."""
_POOL, _RANDOM, _CHILDREN, _PARENTS, _CHANGED = 2000, 800, 200, 12, 2
"""Draws of the space; how many of them are candidates of a trial; children of each of so many parents, with about so
many parameters of another draw."""
_FITTED, _KNOWN = 80, 250
"""Trials that a kernel is fitted to, and that it is then given: time grows with the cube."""
_ITERATIONS = 12
"""Of a fit."""
_STEPS = 40
"""Of the integral over latency."""
_TURNS = 3
"""Of so many trials one is for the best F1 alone."""
_LEAST = 1e-6
"""Of a deviation, and of a share."""


@dataclass(frozen=True)
class Draw:
    """A point of a space, as a trial has it."""

    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]

    @property
    def key(self) -> frozenset[tuple[str, Any]]:
        return frozenset(self.params.items())


@dataclass(frozen=True)
class _Drawing:
    """A `models.space.Suggester` that draws at random."""

    sampler: RandomSampler
    draw: Draw = field(default_factory=lambda: Draw({}, {}))

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self._draw(name, CategoricalDistribution(choices))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> Any:
        return self._draw(name, IntDistribution(low, high, log, step))

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> Any:
        return self._draw(name, FloatDistribution(low, high, log, step))

    def _draw(self, name: str, distribution: BaseDistribution) -> Any:
        independent: Callable[..., Any] = self.sampler.sample_independent  # which looks at no study
        self.draw.distributions[name] = distribution
        self.draw.params[name] = independent(None, None, name, distribution)
        return self.draw.params[name]


def draws(space: JoinedSpace, seed: int) -> list[Draw]:
    """Many points of a space, at random; those that are no network are left out."""
    sampler, found = RandomSampler(seed=seed), []
    for _ in range(_POOL):
        drawing = _Drawing(sampler)
        try:
            space.suggest(drawing, classes=2)
        except SpecError:
            continue
        found.append(drawing.draw)
    return found


class ExpectedFront(BaseSampler):
    """pool: `draws` of the study's space. limit_ms: where the front ends. Reads the user attributes `latency_ms`,
    `over_limit` and `f1_by_epoch` of trials."""

    def __init__(self, pool: Sequence[Draw], limit_ms: float, seed: int) -> None:
        self._pool, self._limit_ms = pool, limit_ms
        self._rng, self._random = np.random.default_rng(seed), RandomSampler(seed=seed)
        self._chosen: Draw | None = None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        self._chosen = self._propose(study.get_trials(deepcopy=False), trial.number)
        return self._chosen.distributions if self._chosen else {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._chosen.params if self._chosen else {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _propose(self, trials: Sequence[FrozenTrial], number: int) -> Draw | None:
        done = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        measured = [t for t in done if "latency_ms" in t.user_attrs]
        if len(measured) < STARTUP:
            return None
        tried = {Draw(t.params, {}).key for t in trials}
        some = self._rng.permutation(len(self._pool))[:_RANDOM]
        drawn = [d for i in some if (d := self._pool[i]).key not in tried]
        candidates = [*drawn, *(c for c in self._children(measured) if c.key not in tried)]
        if not candidates:
            return None
        code = _Code(self._pool)
        rows = code(c.params for c in candidates)
        trained = [t for t in measured if "f1_by_epoch" in t.user_attrs]
        if len(trained) < STARTUP:  # at random where the limits are kept, for F1 is learnt from what differs
            kept = self._kept(code, rows, measured, [*measured[-1].user_attrs["over_limit"]]) ** 2 + _LEAST
            if kept[: len(drawn)].sum() > 1:
                kept[len(drawn) :] = 0  # children are for limits that the space itself hardly keeps
            return candidates[int(self._rng.choice(len(candidates), p=kept / kept.sum()))]
        at_work = [t.params for t in trials if t.state == TrialState.RUNNING and t.params]
        worth = self._worth(code, rows, measured, trained, at_work, best_f1=number % _TURNS == 0)
        return candidates[int(np.argmax(worth))]

    def _kept(self, code: "_Code", rows: Any, measured: list[FrozenTrial], limits: list[str]) -> Any:
        """(rows,): the probability that these limits are kept."""
        kept = np.ones(len(rows))
        for name in limits:
            shares = [np.log(max(_LEAST, 1 + t.user_attrs["over_limit"][name])) for t in measured]
            mean, deviation = self._model(code, measured, shares).predict(rows)
            kept *= norm.cdf(-mean / deviation)
        return kept

    def _worth(
        self,
        code: "_Code",
        rows: Any,
        measured: list[FrozenTrial],
        trained: list[FrozenTrial],
        at_work: list[dict[str, Any]],
        best_f1: bool,
    ) -> Any:
        """(rows,): what is to be expected of each. best_f1: at the limit, not of the whole front."""
        latency = self._model(code, measured, [np.log(t.user_attrs["latency_ms"]) for t in measured])
        f1 = self._model(code, trained, _final_f1(trained))
        known = [(t.user_attrs["latency_ms"], t.user_attrs["f1_macro"]) for t in trained if t.values]
        for params in at_work:  # counts as what is expected of it, so that two do not go to one place
            row = code([params])
            (expected,) = f1.predict(row)[0]
            f1.add(row, expected)
            known.append((float(np.exp(latency.predict(row)[0][0])), float(expected)))
        at = np.linspace(self._limit_ms / _STEPS, self._limit_ms, _STEPS)
        best = np.array([max((f for ms, f in known if ms <= t), default=0.0) for t in at])
        mean, deviation = (v[:, None] for v in latency.predict(rows))
        gain = norm.cdf((np.log(at) - mean) / deviation) * _expected_improvement(*f1.predict(rows), best)
        others = [name for name in measured[-1].user_attrs["over_limit"] if name != "latency"]
        return self._kept(code, rows, measured, others) * (gain[:, -1] if best_f1 else gain.mean(axis=1))

    def _model(self, code: "_Code", trials: Sequence[FrozenTrial], values: Sequence[float]) -> "_Model":
        """Of the latest."""
        return _Model(code(t.params for t in trials[-_KNOWN:]), np.array(values[-_KNOWN:]), self._rng)

    def _children(self, measured: Sequence[FrozenTrial]) -> Iterator[Draw]:
        """Of the best: some parameters are those of another draw."""
        rng, pool = self._rng, self._pool
        for parent in _parents(measured, self._limit_ms):
            for _ in range(_CHILDREN):
                other = pool[int(rng.integers(len(pool)))].params
                shared = [n for n in parent.params if n in other]
                names = rng.permutation(len(shared))[: 1 + rng.poisson(_CHANGED - 1)]
                yield Draw(parent.params | {shared[i]: other[shared[i]] for i in names}, parent.distributions)


def _parents(measured: Sequence[FrozenTrial], limit_ms: float) -> list[FrozenTrial]:
    """The front under the limit and the best F1 of it; where there is none, the nearest misses."""
    kept = [t for t in measured if t.values and t.user_attrs["latency_ms"] <= limit_ms]
    if not kept:
        return sorted(measured, key=lambda t: max(t.user_attrs["over_limit"].values()))[: _PARENTS // 2]
    by_f1 = sorted(kept, key=lambda t: (-t.user_attrs["f1_macro"], t.user_attrs["latency_ms"]))
    front, fastest = [], float("inf")
    for t in by_f1:
        if t.user_attrs["latency_ms"] < fastest:
            front.append(t)
            fastest = t.user_attrs["latency_ms"]
    return list({t.number: t for t in (*by_f1[: _PARENTS // 2], *front)}.values())[:_PARENTS]


def _final_f1(trained: Sequence[FrozenTrial]) -> list[float]:
    """Of one that was stopped early: what it would have come to if it had gone on as others did."""
    curves = [np.maximum.accumulate(t.user_attrs["f1_by_epoch"]) for t in trained]
    whole = [c for t, c in zip(trained, curves, strict=True) if t.values]

    def final(curve: Any) -> float:
        had = len(curve)
        growth = [c[-1] / c[had - 1] for c in whole if len(c) >= had and c[had - 1] > 0]
        return float(curve[-1] * np.median(growth)) if growth else float(curve[-1])

    return [float(c[-1]) if t.values else final(c) for t, c in zip(trained, curves, strict=True)]


def _expected_improvement(mean: Any, deviation: Any, best: Any) -> Any:
    """(candidates, values of best)"""
    mean, deviation = mean[:, None], deviation[:, None]
    z = (mean - best) / deviation
    return deviation * (z * norm.cdf(z) + norm.pdf(z))


class _Code:
    """Parameters as numbers: those with an order from 0 to 1, a column for each value of the others; 0.5 and zeros for
    those that a trial does not have."""

    def __init__(self, pool: Sequence[Draw]) -> None:
        self._distributions = {n: d for draw in pool for n, d in draw.distributions.items()}

    def __call__(self, trials: Iterable[dict[str, Any]]) -> Any:
        """(trials, columns)"""
        rows = list(trials)
        return np.column_stack([_coded(d, [r.get(n) for r in rows]) for n, d in self._distributions.items()])


def _coded(distribution: Any, values: list[Any]) -> Any:
    """(trials, columns of this parameter)"""
    if isinstance(distribution, CategoricalDistribution):
        return np.array([[float(v == c) for v in values] for c in distribution.choices]).T
    numbers = np.array([np.nan if v is None else v for v in values], dtype=float)
    low, high = distribution.low, distribution.high
    if distribution.log:
        numbers, low, high = np.log(numbers), np.log(low), np.log(high)
    return np.nan_to_num((numbers - low) / ((high - low) or 1.0), nan=0.5)


def _few_steps(objective: Any, begin: Any, bounds: Any) -> tuple[Any, float]:
    """For scikit-learn: its own L-BFGS-B, ended where the likelihood hardly grows any more."""
    found = minimize(objective, begin, method="L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": _ITERATIONS})
    return found.x, found.fun


class _Model:
    """A Gaussian process of one quantity."""

    def __init__(self, rows: Any, values: Any, rng: np.random.Generator) -> None:
        self._rows, self._mean, self._deviation = rows, values.mean(), max(_LEAST, values.std())
        self._values = (values - self._mean) / self._deviation
        part = rng.permutation(len(rows))[:_FITTED]
        kernel = (
            ConstantKernel() * Matern(2.0, (0.3, 50.0), nu=2.5)
            + ConstantKernel(0.1) * DotProduct(1.0, (1e-2, 1e2))
            + WhiteKernel(0.1, (1e-3, 1.0))
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a length scale at its bound says: does not matter
            fitted = GaussianProcessRegressor(kernel, optimizer=_few_steps).fit(rows[part], self._values[part])
        self._kernel = fitted.kernel_
        self._settle()

    def _settle(self) -> None:
        self._process = GaussianProcessRegressor(self._kernel, optimizer=None).fit(self._rows, self._values)

    def add(self, row: Any, value: float) -> None:
        self._rows = np.vstack([self._rows, row])
        self._values = np.append(self._values, (value - self._mean) / self._deviation)
        self._settle()

    def predict(self, rows: Any) -> tuple[Any, Any]:
        """Mean and deviation of the quantity itself, without the noise of one more measurement."""
        mean, deviation = self._process.predict(rows, return_std=True)
        own = np.sqrt(np.maximum(deviation**2 - self._kernel.k2.noise_level, _LEAST**2))
        return self._mean + self._deviation * mean, self._deviation * own
