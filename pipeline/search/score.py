"""The score of the lineage's leaderboard, where its constants are configured."""

import math

from pipeline.config import Score


def score(f1_macro: float, seconds: float, constants: Score) -> float:
    """time_weight * t / reference_s + sigmoid(slope * (f1 - f1_macro)); lower is better."""
    exponent = constants.slope * (constants.f1 - f1_macro)
    return constants.time_weight * seconds / constants.reference_s + 1 / (1 + math.exp(-exponent))
