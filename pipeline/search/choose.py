"""The rule of choice, over all trained trials.

Kept: the latency limit, the floor of F1, the input size. Of these, those within `f1_band` of the best F1; of these,
those within `latency_band` of the fastest; of these, the one with most parameters (it overfits later in long training).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from pipeline.errors import NoCandidate, PipelineError


@dataclass(frozen=True)
class Row:
    """A trained trial. reason: why it was not chosen, empty for the one that was. processes: fresh ones in which its
    latency was measured again; None where it is the search's."""

    trial: int
    f1_macro: float
    latency_ms: float
    params: int
    input_size: int
    reason: str = ""
    processes: int | None = None


@dataclass(frozen=True)
class Rule:
    """aside: trials that the gate set aside, and why. slower: how many times what was reckoned with the gate saw them
    take, which all others are taken to do too."""

    limit_ms: float
    f1_floor: float
    f1_band: float
    latency_band: float
    input_size: int | None
    aside: Mapping[int, str] = field(default_factory=dict)
    slower: float = 1.0


def choose(rows: list[Row], rule: Rule, trial: int | None = None) -> tuple[Row, list[Row]]:
    """(the chosen row, all rows with reasons, best F1 first). Raises NoCandidate where the rule leaves none."""
    table = [replace(r, reason=_refused(r, rule)) for r in sorted(rows, key=lambda r: (-r.f1_macro, r.trial))]
    if trial is not None:
        chosen = next((r for r in table if r.trial == trial), None)
        if chosen is None:
            known = ", ".join(str(r.trial) for r in sorted(table, key=lambda r: r.trial))
            raise PipelineError(f"select.trial: {trial} is no trained trial of this search; trained: {known or 'none'}")
        return replace(chosen, reason=""), [replace(r, reason=r.reason * (r is not chosen)) for r in table]
    kept = [r for r in table if not r.reason]
    if not kept:
        raise NoCandidate(_nothing(table, rule))
    best = max(r.f1_macro for r in kept)
    good = [r for r in kept if r.f1_macro >= best - rule.f1_band]
    fastest = min(r.latency_ms for r in good)
    fast = [r for r in good if r.latency_ms <= fastest * (1 + rule.latency_band)]
    chosen = max(fast, key=lambda r: (r.params, -r.trial))

    def why(row: Row) -> str:
        if row is chosen or row.reason:
            return row.reason
        if row not in good:
            return f"F1 more than {rule.f1_band:g} under the best, {best:.4f}"
        if row not in fast:
            return f"more than {rule.latency_band:.0%} slower than the fastest of equal F1, {fastest:.3f} ms"
        return f"as fast as trial {chosen.trial}, which has more parameters"

    return chosen, [replace(r, reason=why(r)) for r in table]


def by_the_rule(rows: list[Row], rule: Rule) -> Iterator[Row]:
    """The one that the rule chooses, then the one that it would choose without it, and so on."""
    left = list(rows)
    while any(keeps(r, rule) for r in left):
        chosen, _ = choose(left, rule)
        left.remove(chosen)
        yield chosen


def keeps(row: Row, rule: Rule) -> bool:
    return not _refused(row, rule)


def pareto(rows: list[Row]) -> set[int]:
    """Trials that no other beats in F1, latency and parameters at once."""

    def beaten(a: Row) -> bool:
        mine = (-a.f1_macro, a.latency_ms, a.params)
        others = ((-b.f1_macro, b.latency_ms, b.params) for b in rows)
        return any(all(x <= y for x, y in zip(o, mine, strict=True)) and o != mine for o in others)

    return {r.trial for r in rows if not beaten(r)}


def _refused(row: Row, rule: Rule) -> str:
    if rule.input_size is not None and row.input_size != rule.input_size:
        return f"input {row.input_size} px, select.input_size is {rule.input_size}"
    if row.latency_ms > rule.limit_ms:
        fresh = f" in {row.processes} fresh processes" if row.processes else ""
        return f"{row.latency_ms:.3f} ms{fresh} is over the limit of {rule.limit_ms:g} ms"
    if row.trial in rule.aside:
        return rule.aside[row.trial]
    if row.latency_ms * rule.slower > rule.limit_ms:
        return (
            f"{row.latency_ms:.3f} ms would be {row.latency_ms * rule.slower:.3f} ms in the gate, which saw trial "
            f"{max(rule.aside)} take {rule.slower:.2f} times as long as was reckoned"
        )
    if row.f1_macro < rule.f1_floor:
        return f"F1 {row.f1_macro:.4f} is under select.f1_floor, {rule.f1_floor:g}"
    return ""


def _nothing(table: list[Row], rule: Rule) -> str:
    if not table:
        return "no candidate was trained, so there is none to choose from"
    reasons = "; ".join(f"trial {r.trial}: {r.reason}" for r in table[:3])
    return (
        f"none of {len(table)} trained candidates keeps the rule ({reasons}); train more (search.trials), longer "
        "(search.epochs), relax select.f1_floor or select.input_size, or raise latency.limit_ms"
    )
