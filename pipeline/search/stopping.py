"""When the short training of a candidate ends early: a percentile rule among candidates that are as fast.

Optuna's pruners refuse studies of several objectives. But latency and parameters are known before training, so only F1
is open. Whoever is slower and worse than others is of no use, so a candidate is compared with those that are as fast or
faster: a fast one may be on the front at an F1 that would be good for nothing in a slow one. With `share` one half it
is the median rule of Golovin et al. 2017 (Google Vizier) within these.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.config import Stop


@dataclass(frozen=True)
class Curve:
    """F1 on val/ after each epoch that was trained, of a candidate that takes latency_ms."""

    latency_ms: float
    f1: tuple[float, ...]


def hopeless(curve: Curve, earlier: Sequence[Curve], epochs: int, rule: Stop) -> bool:
    """Whether to end it after the epochs it has had, of `epochs` in all."""
    had = len(curve.f1)
    if not rule.share or had < rule.epochs or had >= epochs:
        return False
    # Those that were stopped before count with what they had: else each look would drop its share of who is left.
    peers = [max(c.f1[:had]) for c in earlier if c.latency_ms <= curve.latency_ms * rule.similar]
    if len(peers) < rule.least:
        return False
    return max(curve.f1) < float(np.percentile(peers, 100 * rule.share))


@dataclass(frozen=True)
class Replay:
    """What the rule would have done to a study whose candidates were all trained to the end. stopped: indices; after
    so many epochs each; of the same curves."""

    stopped: dict[int, int]
    epochs: int
    epochs_saved: int


def replay(curves: Sequence[Curve], epochs: int, rule: Stop) -> Replay:
    """In the order of the study; a candidate that it ends is seen by later ones as far as it would have come."""
    seen: list[Curve] = []
    stopped: dict[int, int] = {}
    for index, whole in enumerate(curves):
        for had in range(1, len(whole.f1) + 1):
            part = Curve(whole.latency_ms, whole.f1[:had])
            if hopeless(part, seen, epochs, rule):
                stopped[index] = had
                break
        seen.append(part)
    total = sum(len(c.f1) for c in curves)
    return Replay(stopped, total, sum(len(curves[i].f1) - had for i, had in stopped.items()))
