"""From round 1 to round 2: what each objective hangs on, where the good candidates lie, a config that searches there.

As the team did by hand whose work this tool took up: they looked at the importances of each objective, dropped what was
slow or no good, fixed what changed nothing, and searched the rest with more photos. Every change has its reason beside
it, and only what the trials show is changed.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from models.documents import dump_yaml
from models.joined import SPACE, JoinedSpace
from pipeline.config import BuildConfig
from pipeline.errors import PipelineError
from pipeline.files import write_text
from pipeline.search.basis import trials_of
from pipeline.search.insight import (
    LEAST,
    best_share,
    importances_by_objective,
    latency_of,
    loss_of,
    measured,
    told_region,
    trained,
)
from pipeline.search.spaces import search_space
from pipeline.search.tally import REJECTED, fate
from pipeline.stages import Run

_DECIDE = ("F1", "latency")
"""Parameters (of the network) are an objective for what they cost, and nobody narrows a space for them."""
_SLOW, _OFTEN = 0.95, 8
"""A value is dropped as too slow where so many of its candidates were rejected, of at least so many."""
_CHANCE = 0.1
"""A value that none of the best has is dropped if that is less likely than this by chance alone."""
_BEGIN = 5
"""Of the best, round 2 begins with so many at most."""
_MORE_PHOTOS = 1.25


@dataclass(frozen=True)
class Change:
    """choice: as `search.values` takes it; of the parameter `space`, the spaces that are left."""

    name: str
    choice: Any
    reason: str


@dataclass(frozen=True)
class Narrowed:
    """shares: objective -> parameter -> its share. regions: where the best have it. start: parameters of trials."""

    measured: int
    trained: int
    shares: dict[str, dict[str, float]]
    regions: dict[str, str]
    changes: tuple[Change, ...]
    start: tuple[dict[str, Any], ...]


def narrow(run: Run) -> Narrowed:
    """What the finished search of a run says. Raises PipelineError where it is too little."""
    result = run.read("search", "trials.json")
    one_size, limit_ms = run.config.select.input_size is not None, run.config.latency.limit_ms
    return narrowed(trials_of(run, result["study"]), search_space(run.config), limit_ms, one_size)


def narrowed(
    trials: Sequence[FrozenTrial], space: JoinedSpace, limit_ms: float = math.inf, one_size: bool = False
) -> Narrowed:
    """limit_ms: whoever is over it is none of the best, though a near miss is trained. one_size: the rule of choice
    takes one input size only, so sizes are left as they are."""
    timed, learnt = measured(trials), trained(trials)
    if len(learnt) < LEAST:
        raise PipelineError(
            f"narrow: {len(learnt)} trained candidates are too few to tell what matters ({LEAST} or more, better 25): "
            "raise search.trials and search on"
        )
    shares = importances_by_objective(trials)
    whole = [t for t in learnt if t.state == TrialState.COMPLETE]
    able = [t for t in whole if latency_of(t) <= limit_ms] or whole
    evidence = _Evidence(timed, learnt, best_share(able, loss_of), shares)
    free = space.choices
    judged = {n: c for n, c in free.items() if not (one_size and n.rpartition("/")[2] == "input_size")}
    changes = [c for name, choice in judged.items() if (c := evidence.change(name, choice))]
    new = {**free, **{c.name: c.choice for c in changes}}
    start = [part for t in evidence.best if (part := _free_part(t.params, new)) is not None]
    regions = {name: told_region(name, evidence.best) for name in free}
    return Narrowed(len(timed), len(learnt), shares, regions, tuple(changes), tuple(start[:_BEGIN]))


@dataclass(frozen=True)
class _Evidence:
    """The trials that were measured, those that were trained, the best fifth of these, and the importances."""

    timed: Sequence[FrozenTrial]
    learnt: Sequence[FrozenTrial]
    best: Sequence[FrozenTrial]
    shares: dict[str, dict[str, float]]

    def told(self, name: str) -> str:
        return ", ".join(f"{s.get(name, 0):.1%} of {o}" for o, s in self._deciding())

    def matters(self, name: str) -> bool:
        """More than a parameter does on average, for F1 or latency."""
        return any(s.get(name, 0) >= 1 / len(s) for _, s in self._deciding())

    def changes_little(self, name: str) -> bool:
        return all(s.get(name, 0) < 0.5 / len(s) for _, s in self._deciding())

    def _deciding(self) -> list[tuple[str, dict[str, float]]]:
        return [(o, s) for o, s in self.shares.items() if o in _DECIDE and s]

    def change(self, name: str, choice: Any) -> Change | None:
        having = [t for t in self.best if name in t.params]
        if not having:
            return None
        if isinstance(choice, list):
            return self._fewer(name, choice, having)
        values = sorted(t.params[name] for t in having)
        if self.changes_little(name):
            middle = values[len(values) // 2]
            return Change(name, middle, f"changes little ({self.told(name)}): fixed where the best are")
        if not self.matters(name):
            return None
        low, high = _widened(having[0].distributions[name], values)
        if (low, high) == (choice["low"], choice["high"]):
            return None
        region = f"{told_region(name, having)} of {choice['low']:g}..{choice['high']:g}"
        reason = f"{self.told(name)}; the best {len(having)} lie in {region}"
        return Change(name, {**choice, "low": low, "high": high}, reason)

    def _fewer(self, name: str, values: list[Any], having: list[FrozenTrial]) -> Change | None:
        """Without the values that are too slow or no good, or only the usual one where it changes little."""
        asked = Counter(t.params.get(name) for t in self.timed)
        slow = Counter(t.params.get(name) for t in self.timed if fate(t) == REJECTED)
        tried = Counter(t.params[name] for t in self.learnt if name in t.params)
        good = Counter(t.params[name] for t in having)
        kept, reasons = list(values), []
        for value in values:
            if good[value]:
                continue
            if asked[value] >= _OFTEN and slow[value] >= _SLOW * asked[value]:
                kept.remove(value)
                reasons.append(f"{slow[value]} of {asked[value]} with {value} were over a limit")
            elif self.matters(name) and (luck := _luck(tried, value, len(having))) < _CHANCE:
                kept.remove(value)
                reasons.append(
                    f"none of the best {len(having)} has {value}, {tried[value]} of {tried.total()} trained have "
                    f"(by chance: {luck:.1%})"
                )
        if len(kept) > 1 and self.changes_little(name) and name != SPACE:
            kept = [good.most_common(1)[0][0]]
            reasons.append(f"changes little ({self.told(name)}): what most of the best have")
        return Change(name, kept, "; ".join(reasons)) if reasons else None


def _luck(tried: Counter[Any], value: Any, best: int) -> float:
    """Chance that so many of the trained that have the parameter all have another value, if it made no difference."""
    others = tried.total() - tried[value]
    return math.comb(others, best) / math.comb(tried.total(), best)


def _widened(distribution: BaseDistribution, values: list[Any]) -> tuple[Any, Any]:
    """The values' range and a step more to each side; of a range without steps, a tenth of it (of its logarithm)."""
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high, least, most = values[0], values[-1], distribution.low, distribution.high
    whole = isinstance(distribution, IntDistribution)
    if distribution.log:
        more = (most / least) ** 0.1
        low, high = max(least, low / more), min(most, high * more)
        return (math.floor(low), math.ceil(high)) if whole else (_round(low), _round(high))
    step = distribution.step or _round((most - least) / 10)
    low, high = max(least, low - step), min(most, high + step)
    return (low, high) if whole else (_round(low), _round(high))


def _round(value: float) -> float:
    return float(f"{value:.3g}")


def _free_part(params: dict[str, Any], free: dict[str, Any]) -> dict[str, Any] | None:
    """Of a trial, the parameters that round 2 asks for; None where one of them lies outside of what it may be. Those
    that are fixed change little."""
    part = {}
    for name, value in params.items():
        choice = free.get(name)
        if isinstance(choice, dict):
            inside = choice["low"] <= value <= choice["high"]
        elif isinstance(choice, list) and len(choice) > 1:
            inside = value in choice
        else:
            continue
        if not inside:
            return None
        part[name] = value
    return part


def write_round2(config: BuildConfig, found: Narrowed, path: Path, origin: str) -> None:
    """A config that differs from `config` by these changes, each with its reason beside it."""
    document = config.model_dump(mode="json", exclude_defaults=True)
    document.get("select", {}).pop("trial", None)  # is one of round 1
    search = {k: v for k, v in document.pop("search", {}).items() if k not in ("values", "start", "study", "subset")}
    changes = {c.name: c for c in found.changes}
    values = {**config.search.values, **{n: c.choice for n, c in changes.items()}}
    spaces, start = values.pop(SPACE, None), [dict(p) for p in found.start]
    head = []
    if spaces is not None:
        search.pop("space")
        files = [s for s in config.search.space if Path(s).stem in spaces]
        head = [f"  space: {_flow(files)}  # {changes[SPACE].reason}"]
        values = _of_spaces(values, spaces)
        start = [_of_spaces({k: v for k, v in p.items() if k != SPACE or len(spaces) > 1}, spaces) for p in start]
    subset = round(min(1.0, config.search.subset * _MORE_PHOTOS), 3)
    lines = [
        f"# Round 2, by `edgebuild narrow` from {origin}: {found.measured} candidates, {found.trained} of them trained",
        dump_yaml(document).rstrip(),
        "search:",
        *head,
        *(f"  {line}" for line in (dump_yaml(search).splitlines() if search else ())),
        f"  subset: {subset:g}  # {config.search.subset:g} in round 1: what is left lies closer together",
    ]
    kept = "as in round 1"
    reasons = {k: changes[k].reason if k in changes else kept for k in [*config.search.values, *changes]}
    reasons = _of_spaces(reasons, spaces) if spaces else reasons
    if values:
        lines += ["  values:", *(f"    {_flow(k)}: {_flow(v)}  # {reasons.get(k, kept)}" for k, v in values.items())]
    if start:
        lines += ["  start:  # the best of round 1", *(f"  - {_flow(p)}" for p in start)]
    write_text(path, "\n".join(lines) + "\n")


def _of_spaces(values: dict[str, Any], spaces: list[str]) -> dict[str, Any]:
    """Those of the spaces that are left; of a single one, without its name before them."""
    kept = {k: v for k, v in values.items() if "/" not in k or k.partition("/")[0] in spaces}
    return {k.removeprefix(f"{spaces[0]}/"): v for k, v in kept.items()} if len(spaces) == 1 else kept


def _flow(value: Any) -> str:
    text: str = dump_yaml(value, default_flow_style=True, width=10**6)
    return text.removesuffix("...\n").strip()
