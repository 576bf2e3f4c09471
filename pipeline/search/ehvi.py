"""The default sampler: Gaussian processes of F1 and of latency, and the candidate of which most is to be expected.

Latency is known of all that was measured, F1 only of what was trained, so each has a model of its own data, and a
rejected candidate teaches where the limit lies without a word about F1. A candidate of latency l and macro F1 f adds to
the area under the front, which ends at the limit,

    integral over t from l to the limit of max(0, f - best(t)) dt,    best(t): the best F1 known within t

and with f and log l normal and independent, its expectation is the integral of P(l <= t) EI(f, best(t)), where EI is
the expected improvement of Jones, Schonlau and Welch 1998. The whole is the expected hypervolume improvement of
Emmerich, Giannakoglou and Naujoks 2006. Every third trial goes by EI at the limit alone, for the best F1 under the
limit is what is chosen in the end. Other limits count by the probability that they are kept. Until some were trained,
candidates are drawn at random, the more often the likelier they keep the limits; of several spaces in each, for where
nothing was trained F1 has no model, and a space whose first draws were over the limit would never be seen again.
"""

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from scipy.special import ndtr

from models.joined import SPACE, JoinedSpace
from models.language import SpecError
from pipeline.reread import reread
from pipeline.search.gaussian import LEAST, Code, Model
from pipeline.study import foreign

STARTUP = 10
"""Trials measured before latency is modelled, and trained before F1 is."""
_EACH, _GIVEN_UP = 5, 15
"""Of each of several spaces so many are trained first, unless so many were rejected before."""
_POOL, _RANDOM = 2000, 600
"""Draws of the space, and how many of them are candidates of a trial."""
_GENERATIONS, _PARENTS, _CHILDREN, _CHANGED = 3, 10, 50, 2
"""Of the best in the study, then of the best candidates: children of each, with about so many parameters of a draw."""
_STEPS = 40
"""Of the integral over latency."""
_TURNS = 3
"""Of so many trials one is for the best F1 alone."""


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
    """pool: gives the `draws` of the study's space, once they are needed. limit_ms: where the front ends. Reads the
    user attributes `latency_ms`, `over_limit`, `training`, `f1_by_epoch` and `f1_macro` of trials."""

    def __init__(self, pool: Callable[[], Sequence[Draw]], limit_ms: float, seed: int) -> None:
        self._pool, self._limit_ms = pool, limit_ms
        self._rng, self._random = np.random.default_rng(seed), RandomSampler(seed=seed)
        self._chosen: Draw | None = None

    @cached_property
    def _code(self) -> Code:
        return Code({n: d for draw in self._pool() for n, d in draw.distributions.items()})

    @cached_property
    def _by_space(self) -> dict[str | None, list[Draw]]:
        found: dict[str | None, list[Draw]] = {}
        for draw in self._pool():
            found.setdefault(draw.params.get(SPACE), []).append(draw)
        return found

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        self._chosen = self._propose(reread(study.get_trials(deepcopy=False)), trial.number)
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
        done = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED) and not foreign(t)]
        measured = [t for t in done if "latency_ms" in t.user_attrs]
        if len(measured) < STARTUP:
            return None
        tried = {frozenset(t.params.items()) for t in trials}
        unknown = self._unknown(measured, tried)
        pool = self._pool() if unknown is None else self._by_space[unknown]
        some = self._rng.permutation(len(pool))[:_RANDOM]
        candidates = [d for i in some if (d := pool[i]).key not in tried]
        forecast = _Forecast(measured, self._code, self._limit_ms, self._rng, explores=unknown is not None)
        if forecast.learnt:
            at_work = [t for t in trials if t.state == TrialState.RUNNING and t.number != number]
            forecast.learn_f1([t for t in at_work if t.params])

        def worth(asked: Sequence[Draw]) -> Any:
            rows = self._code([c.params for c in asked])
            if not forecast.learnt:  # at random where the limits are kept, for F1 is learnt from what differs
                return forecast.kept(rows) ** 2
            return forecast.gain(rows, best_f1=number % _TURNS == 0)

        values = worth(candidates) if candidates else np.zeros(0)
        if forecast.learnt or values.sum() < 1:  # else the space itself has enough that keeps the limits
            kin = [t for t in measured if unknown in (None, t.params.get(SPACE))]
            parents = _parents(kin, self._limit_ms)
            for _ in range(_GENERATIONS):
                if not (children := [c for c in self._children(parents) if c.key not in tried]):
                    break
                candidates, values = [*candidates, *children], np.append(values, worth(children))
                parents = [candidates[i] for i in np.argsort(-values)[:_PARENTS]]
        if not candidates:
            return None
        if not forecast.learnt:
            chances = values + LEAST
            return candidates[int(self._rng.choice(len(candidates), p=chances / chances.sum()))]
        return candidates[int(np.argmax(values))]

    def _unknown(self, measured: Sequence[FrozenTrial], tried: Set[frozenset[tuple[str, Any]]]) -> str | None:
        """Of several spaces one of which too little is known to compare it with the others, while it has more."""
        for space in self._by_space if len(self._by_space) > 1 else ():
            own = [t for t in measured if t.params.get(SPACE) == space]
            trained = [t for t in own if "f1_by_epoch" in t.user_attrs]
            different = len({t.user_attrs["training"] for t in trained})
            few = different < _EACH and len(own) - len(trained) < _GIVEN_UP
            if few and any(d.key not in tried for d in self._by_space[space]):
                return space
        return None

    def _children(self, parents: Sequence[Draw]) -> Iterator[Draw]:
        for parent in parents:
            kin = self._by_space.get(parent.params.get(SPACE), ())
            for _ in range(_CHILDREN if kin else 0):
                yield _mixed(parent, kin[int(self._rng.integers(len(kin)))], self._rng)


def _mixed(parent: Draw, other: Draw, rng: np.random.Generator) -> Draw:
    """The parent with some parameters of another draw of its space. Where a module of theirs has other parameters, for
    its type decides which, it is taken as a whole."""
    params, distributions = dict(parent.params), dict(parent.distributions)
    shared = [n for n in params if n in other.params]
    for i in rng.permutation(len(shared))[: 1 + rng.poisson(_CHANGED - 1)]:
        taken = [shared[i]]
        old, new = (_module(shared[i], p) for p in (params, other.params))
        if old != new:
            taken = new
            for name in old:
                del params[name], distributions[name]
        params |= {name: other.params[name] for name in taken}
        distributions |= {name: other.distributions[name] for name in taken}
    return Draw(params, distributions)


def _module(name: str, params: dict[str, Any]) -> list[str]:
    """Those of the same module (`s1/type`, `s1/out`), or like it of none."""
    module = name.rpartition("/")[0]
    return sorted(n for n in params if n.rpartition("/")[0] == module)


class _Forecast:
    """What is known of the study, and what is to be expected of points of its space."""

    def __init__(
        self,
        measured: Sequence[FrozenTrial],
        code: Code,
        limit_ms: float,
        rng: np.random.Generator,
        explores: bool = False,
    ) -> None:
        self._code, self._limit_ms, self._rng = code, limit_ms, rng
        self._measured = measured
        trained = [t for t in measured if "f1_by_epoch" in t.user_attrs]
        self._trained = list({t.user_attrs["training"]: t for t in trained}.values())  # drawn twice is trained once
        self.learnt = len(self._trained) >= STARTUP and not explores
        # Once F1 is learnt, latency counts by how much the front gains.
        limits = [n for n in measured[-1].user_attrs["over_limit"] if n != "latency" or not self.learnt]
        self._shares = [
            self._model(measured, [np.log(max(LEAST, 1 + t.user_attrs["over_limit"][name])) for t in measured])
            for name in limits
        ]

    def learn_f1(self, at_work: Sequence[FrozenTrial]) -> None:
        """at_work: trials under way; what is expected of them counts, so that two do not go to one place."""
        known = [(t.user_attrs["latency_ms"], t.user_attrs["f1_macro"]) for t in self._trained if t.values]
        self._latency = self._model(self._measured, [np.log(t.user_attrs["latency_ms"]) for t in self._measured])
        self._f1 = self._model(self._trained, _final_f1(self._trained))
        for trial in at_work:
            row = self._code([trial.params])
            (expected,), (log_ms,) = self._f1.predict(row)[0], self._latency.predict(row)[0]
            self._f1.add(row, expected)
            known.append((trial.user_attrs.get("latency_ms", float(np.exp(log_ms))), float(expected)))
        self._at = np.linspace(self._limit_ms / _STEPS, self._limit_ms, _STEPS)
        self._best = np.array([max((f for ms, f in known if ms <= t), default=0.0) for t in self._at])

    def kept(self, rows: Any) -> Any:
        """(rows,): the probability that the limits are kept, of points as the code has them."""
        found = np.ones(len(rows))
        for model in self._shares:
            mean, deviation = model.predict(rows)
            found *= ndtr(-mean / deviation)
        return found

    def gain(self, rows: Any, best_f1: bool) -> Any:
        """(rows,): what is to be expected of the front, or of the best F1 at the limit."""
        mean, deviation = (v[:, None] for v in self._latency.predict(rows))
        within = ndtr((np.log(self._at) - mean) / deviation)
        gain = within * _expected_improvement(*self._f1.predict(rows), self._best)
        return (gain[:, -1] if best_f1 else gain.mean(axis=1)) * self.kept(rows)

    def _model(self, trials: Sequence[FrozenTrial], values: Sequence[float]) -> Model:
        return Model(self._code, [t.params for t in trials], np.array(values), self._rng)


def _parents(measured: Sequence[FrozenTrial], limit_ms: float) -> list[Draw]:
    """The best F1 under the limit and some of all parts of the front; where there is none, the nearest misses."""
    kept = [t for t in measured if t.values and t.user_attrs["latency_ms"] <= limit_ms]
    best = sorted(kept, key=lambda t: (-t.user_attrs["f1_macro"], t.user_attrs["latency_ms"]))
    fastest = accumulate((t.user_attrs["latency_ms"] for t in best), min, initial=np.inf)  # of those before
    front = [t for t, ms in zip(best, fastest, strict=False) if t.user_attrs["latency_ms"] < ms]
    spread = front[:: max(1, len(front) // (_PARENTS // 2))]
    near = sorted(measured, key=lambda t: max(t.user_attrs["over_limit"].values())) if not kept else []
    chosen = {t.number: t for t in (*best[: _PARENTS // 2], *spread, *near)}
    return [Draw(t.params, t.distributions) for t in chosen.values()][:_PARENTS]


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
    return deviation * (z * ndtr(z) + np.exp(-z * z / 2) / np.sqrt(2 * np.pi))
