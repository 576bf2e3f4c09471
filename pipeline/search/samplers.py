"""Samplers by name, seeded so that a study that was interrupted goes on as if it had not been."""

from collections.abc import Callable, Sequence

from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler

from models.language import canonical_hash
from pipeline.search.ehvi import STARTUP, Draw, ExpectedFront

_LEARNING = ("ehvi", "tpe", "sweep")


def sampler(
    name: str, draws: Callable[[], Sequence[Draw]], limit_ms: float, flat: bool, *seeds: int | str
) -> BaseSampler:
    """draws: gives points of the space, to those that want them. flat: every trial has every parameter, so that one
    joint model serves."""
    seed = int(canonical_hash(list(seeds)), 16) % 2**32
    if name == "ehvi":
        return ExpectedFront(draws, limit_ms, seed)
    if name == "gp":
        return GPSampler(seed=seed, n_startup_trials=STARTUP)
    if name == "nsga2":
        return NSGAIISampler(seed=seed, population_size=STARTUP)
    if name == "nsga3":
        return NSGAIIISampler(seed=seed, population_size=STARTUP)
    if name in ("random", "sweep"):
        return RandomSampler(seed=seed)
    return TPESampler(multivariate=True, group=not flat, seed=seed, n_startup_trials=STARTUP)


def warning(name: str) -> str | None:
    if name in _LEARNING:
        return None
    return (
        f"search.sampler: {name} sees only what was trained: it learns nothing from candidates that were rejected for "
        "their latency, and draws there again; ehvi and tpe learn from them"
    )
