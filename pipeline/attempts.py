"""The attempts of a run at its limit: every gate that was held, in order, and which candidates were set aside by them.

They are counted because they share one error: whoever gates until something passes proves nothing otherwise. The record
lies beside the stages, so that it outlives each of them; each limit has its own, on each host.
"""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from pipeline import FORMAT
from pipeline.errors import PipelineError
from pipeline.files import read_record, write_record
from pipeline.stages import Run

_RECORD = "attempts.json"


@dataclass(frozen=True)
class Attempt:
    """One gate of one file. trial: of the search; None where the config names the architecture. control_p50_ms: the
    median of its processes; at_rest_ms: what it takes at rest."""

    number: int
    trial: int | None
    file: str
    sha256: str
    verdict: str
    p90_ms: float
    p90_lower_ms: float | None
    p90_upper_ms: float | None
    processes: int
    control_p50_ms: float
    at_rest_ms: float
    reasons: tuple[str, ...]

    @property
    def told(self) -> str:
        """For people."""
        bounds = "" if self.p90_upper_ms is None else f" ({self.p90_lower_ms:.3f} to {self.p90_upper_ms:.3f})"
        who = "" if self.trial is None else f"trial {self.trial}, "
        return (
            f"{who}{self.file}: {self.verdict}, p90 {self.p90_ms:.3f} ms{bounds} in {self.processes} processes; the "
            f"control took {self.control_p50_ms:.3f} ms, {self.at_rest_ms:.3f} at rest"
        )


@dataclass(frozen=True)
class SetAside:
    """A trial none of whose files passed. slower: what the best of them took in the gate, over what the choice had
    reckoned with: others are taken to be as much slower. final: whether a calm host was too slow for it, so that
    another run need not try it again."""

    trial: int
    slower: float
    final: bool
    reason: str


@dataclass(frozen=True)
class Attempts:
    """made: all that ended, the first one first. aside: of this search. begun: how many were begun, those that were
    interrupted included: whoever could interrupt a gate that goes badly, uncounted, would prove nothing either."""

    made: tuple[Attempt, ...] = ()
    aside: tuple[SetAside, ...] = ()
    begun: int = 0


class _OneLimit(BaseModel):
    """The record of one limit on one host."""

    belongs_to: dict[str, Any]
    search: str | None
    made: tuple[Attempt, ...]
    aside: tuple[SetAside, ...]
    begun: int = 0


_LIMITS = TypeAdapter(list[_OneLimit])


def read_attempts(run: Run) -> Attempts:
    """Those at this run's limit, on what times it. Raises PipelineError where they were made, but cannot be counted."""
    ours = next((one for one in _by_limit(run) if one.belongs_to == _belongs_to(run)), None)
    if ours is None:
        return Attempts()
    return Attempts(ours.made, ours.aside if ours.search == _search_of(run) else (), max(ours.begun, len(ours.made)))


def _by_limit(run: Run) -> list[_OneLimit]:
    """The attempts at every limit that this run folder has had, on every host."""
    path, gated = run.folder / _RECORD, run.folder / "gate"
    record = read_record(path, {"limits": list})
    try:
        limits = _LIMITS.validate_python(record["limits"] if record else [])
    except ValidationError:
        record = None
    if record is None and os.path.lexists(path):
        state = "damaged"
    elif not _hold(limits, gated):
        state = f"older than the records in {gated}, which name attempts that it lacks" if record else "missing"
    else:
        return limits
    raise PipelineError(
        f"{path}: {state}; without it nobody knows how many gates share the error of the next one: restore it, or "
        "begin in another run folder"
    )


def _hold(limits: list[_OneLimit], gated: Path) -> bool:
    """Whether the attempts that a finished gate names, in either of its records, are among these."""
    wanted = set()
    for name in ("gate.json", "manifest.json"):
        try:
            record = json.loads((gated / name).read_text(encoding="utf-8"))
            named = record.get("summary", record)["attempts"]
            wanted |= {(a["number"], a["sha256"], a["p90_ms"]) for a in named}
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ):  # it is judged where it is read
            continue
    return wanted <= {(a.number, a.sha256, a.p90_ms) for one in limits for a in one.made}


def begin_attempt(run: Run) -> int:
    """Count one more attempt, before its first process; its number."""
    known = read_attempts(run)
    _write(run, replace(known, begun=known.begun + 1))
    return known.begun + 1


def add_attempt(run: Run, attempt: Attempt) -> None:
    known = read_attempts(run)
    _write(run, replace(known, made=(*known.made, attempt)))


def set_aside(run: Run, found: SetAside) -> None:
    known = read_attempts(run)
    _write(run, replace(known, aside=(*known.aside, found)))


def take_back(run: Run, one: SetAside | None = None) -> list[SetAside]:
    """Forget this one, or all that were set aside while the host was disturbed; those that were forgotten."""
    known = read_attempts(run)
    forgotten = [a for a in known.aside if (a == one if one else not a.final)]
    if forgotten:
        _write(run, replace(known, aside=tuple(a for a in known.aside if a not in forgotten)))
    return forgotten


def _write(run: Run, attempts: Attempts) -> None:
    ours = _OneLimit(
        belongs_to=_belongs_to(run),
        search=_search_of(run),
        made=attempts.made,
        aside=attempts.aside,
        begun=attempts.begun,
    )
    limits = [*(one for one in _by_limit(run) if one.belongs_to != ours.belongs_to), ours]
    write_record(run.folder / _RECORD, {"format": FORMAT, "limits": _LIMITS.dump_python(limits, mode="json")})


def _belongs_to(run: Run) -> dict[str, Any]:
    latency = run.config.latency
    return {"limit_ms": latency.limit_ms, "threads": latency.threads, "host": run.host.key}


def _search_of(run: Run) -> str | None:
    """The search whose trials the numbers are of."""
    return run.output_hash("search", "trials.json") if run.has("search", "trials.json") else None
