"""The latencies of a study, read again with what has been learnt since of the control at rest.

A candidate's p90 is so many controls, times what the control takes at rest. The first is told once and stays; what rest
is becomes known only in time, from all timings of a study, whoever made them. So a search that began in a busy minute
sees its first candidates right later on.
"""

import copy
from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial

from latency.calm import Calm, calm_of

DETAILS = "details"
"""The user attribute of a trial that holds what is known about its network."""


def reread(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Copies of the trials that were timed, with `latency_ms`, the latency's share of `over_limit`, the objective and
    the timings as they are at rest, by all that these trials know of it; the others as they are."""
    timings = {t.number: found for t in trials if (found := _timings(t))}
    seen: dict[str, list[tuple[float, float]]] = {}
    for found in timings.values():
        for timing in found:
            seen.setdefault(_runtime(timing["form"]), []).append((timing["control_p50_ms"], timing["control_p90_ms"]))
    at_rest = {runtime: calm_of(controls) for runtime, controls in seen.items()}
    return [_as_at_rest(t, timings[t.number], at_rest) if t.number in timings else t for t in trials]


def _timings(trial: FrozenTrial) -> list[dict[str, Any]]:
    """Those of a trial that was told; none where another program wrote something else there."""
    details = trial.user_attrs.get(DETAILS)
    if not trial.state.is_finished() or not isinstance(details, dict) or "latency_ms" not in trial.user_attrs:
        return []
    found = details.get("timings")
    if not isinstance(found, list) or not all(isinstance(t, dict) and t.keys() >= _NEEDED for t in found):
        return []
    return found if any(t["form"] == details.get("form") for t in found) else []


_NEEDED = {"form", "p90_ms", "p90_lower_ms", "control_p50_ms", "control_p90_ms", "rest_p90_ms"}


def _as_at_rest(trial: FrozenTrial, timings: list[dict[str, Any]], at_rest: dict[str, Calm]) -> FrozenTrial:
    attrs, details = dict(trial.user_attrs), dict(trial.user_attrs[DETAILS])
    scales = {t["form"]: at_rest[_runtime(t["form"])].p90_ms / t["rest_p90_ms"] for t in timings}
    details["timings"] = [
        {
            **t,
            "p90_ms": t["p90_ms"] * scales[t["form"]],
            "p90_lower_ms": t["p90_lower_ms"] * scales[t["form"]],
            "rest_p90_ms": t["rest_p90_ms"] * scales[t["form"]],
        }
        for t in timings
    ]
    scale = scales[details["form"]]
    attrs |= {DETAILS: details, "latency_ms": attrs["latency_ms"] * scale}
    if "latency" in attrs["over_limit"]:
        attrs["over_limit"] = {
            **attrs["over_limit"],
            "latency": (1 + attrs["over_limit"]["latency"]) * scale - 1,
        }
    known = copy.copy(trial)
    known.user_attrs = attrs
    if trial.values and len(trial.values) > 1:
        f1_macro, latency_ms, *others = trial.values
        known.values = [f1_macro, latency_ms * scale, *others]
    return known


def _runtime(form: str) -> str:
    return form.partition("-")[0]
