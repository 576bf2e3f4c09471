"""From times here to a limit elsewhere: pairs (local ms an image, seconds of a whole submission there)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from latency import FORMAT
from latency.errors import InputError

NOISE = 0.03
"""Two measurements of one file agree within this (ci/bench/latency_bench.py): what one pair is good for."""
CONFIDENCE = 0.95
_LEAST, _MOST = 1e-9, 1e9
"""Anything beyond is a typing error."""


@dataclass(frozen=True)
class Calibration:
    """limit_ms: the local limit that keeps `limit_s` there, on the safe side, which is the lower bound, low_ms.

    high_ms is None where the pairs do not bound it. method: ratio (one or two pairs) or line (three or more):
    seconds = start_s + seconds_per_ms * ms.
    """

    limit_s: float
    limit_ms: float
    low_ms: float
    high_ms: float | None
    method: str
    start_s: float
    seconds_per_ms: float
    pairs: tuple[tuple[float, float], ...]
    notes: tuple[str, ...] = field(default=())
    format: int = FORMAT


def calibrate(pairs: Sequence[tuple[float, float]], limit_s: float) -> Calibration:
    """One or two pairs: seconds over ms is a ratio, of which the largest and smallest seen bound the limit, the largest
    with the noise of a timing on it. Where the limit is over the seconds seen, a fixed time there would only raise the
    local limit, so this is the safe side; where it is under them, a note says that it is not.

    Three or more: a line by least squares; the limit is where its upper prediction bound (Student's t; Draper & Smith,
    Applied Regression Analysis, 1998, section 3.2) meets `limit_s`. Raises InputError for pairs that contradict it.
    """
    pairs = tuple(pairs)
    if not pairs or not all(_LEAST <= v <= _MOST for pair in [*pairs, (limit_s, limit_s)] for v in pair):
        raise InputError(
            f"calibrate: give at least one pair MS,SECONDS and a limit in seconds, all from {_LEAST:g} to {_MOST:g}"
        )
    if len(pairs) < 3:
        ratios = sorted(seconds / ms for ms, seconds in pairs)
        low, high = limit_s / (ratios[-1] * (1 + NOISE)), limit_s / ratios[0]
        notes = [
            f"{len(pairs)} of the 3 pairs that a line needs: proportion only, {NOISE:.0%} for the noise of a timing"
        ]
        if limit_s < min(s for _, s in pairs):
            notes.append(
                f"{limit_s:g} s is under all that was seen: a fixed time there would lower the local limit, and these "
                "pairs cannot tell it; add a faster pair"
            )
        return Calibration(limit_s, low, low, high, "ratio", 0.0, ratios[-1], pairs, tuple(notes))
    return _line(pairs, limit_s)


def _line(pairs: tuple[tuple[float, float], ...], limit_s: float) -> Calibration:
    from scipy.optimize import brentq
    from scipy.stats import linregress, t

    ms, seconds = zip(*pairs, strict=True)
    if len(set(ms)) < 2:
        raise InputError("calibrate: all pairs have the same local ms: a line needs different ones")
    line = linregress(ms, seconds)
    if line.slope <= 0:
        raise InputError(f"calibrate: the seconds fall as the local ms grow ({line.slope:.3g} s a ms): check the pairs")
    if line.intercept < 0:
        raise InputError(
            f"calibrate: the pairs put the fixed time there at {line.intercept:.3g} s, which cannot be under 0: check "
            "them; where it is near to 0, noise alone can do this: add pairs, or give the one nearest to the limit for "
            "a plain ratio"
        )
    count, mean = len(ms), math.fsum(ms) / len(ms)
    squares = math.fsum((x - mean) ** 2 for x in ms)
    left = math.fsum((s - line.intercept - line.slope * x) ** 2 for x, s in pairs)
    sigma = math.sqrt(left / (count - 2))
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, count - 2))

    def bound(x: float, side: int) -> float:
        spread = quantile * sigma * math.sqrt(1 + 1 / count + (x - mean) ** 2 / squares)
        return float(line.intercept + line.slope * x + side * spread - limit_s)

    point = (limit_s - line.intercept) / line.slope
    if point <= 0 or bound(0.0, 1) >= 0:
        raise InputError(
            f"calibrate: no local limit keeps {limit_s:g} s: the fixed time there is {line.intercept:.3g} s with a "
            f"spread of {sigma:.3g} s"
        )
    low = brentq(bound, 0.0, point, args=(1,)) if sigma else point
    far = point
    while bound(far, -1) < 0 and far < 1e3 * point:
        far *= 2
    high = brentq(bound, point, far, args=(-1,)) if sigma and bound(far, -1) >= 0 else (None if sigma else point)
    outside = not min(ms) <= point <= max(ms)
    notes = ("the limit lies outside the pairs: it is extrapolated",) if outside else ()
    return Calibration(limit_s, low, low, high, "line", float(line.intercept), float(line.slope), pairs, notes)
