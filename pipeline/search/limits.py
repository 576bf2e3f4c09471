"""What a candidate may take: latency, parameters, size of the file, peak memory. Known before it is trained.

Each is a share over its limit, so that a sampler can add them up: 0.1 is 10 % too much, below 0 is kept.
"""

from collections.abc import Sequence
from typing import Any

from pipeline.config import BuildConfig
from pipeline.search.measured import Timing


def limits_of(config: BuildConfig) -> dict[str, Any]:
    """All that is set or not, by name."""
    return {"latency": config.latency.limit_ms, **config.limits.model_dump()}


def over_limits(config: BuildConfig, timing: Timing, params: int) -> dict[str, float]:
    """Name of each limit that is set -> share over it. Latency counts by its lower bound: near misses are trained, and
    judged later."""
    limits = config.limits
    found = {"latency": timing.p90_lower_ms / config.latency.limit_ms}
    for name, value, limit in (
        ("params", params, limits.params),
        ("size", timing.size_bytes, limits.size),
        ("memory", (timing.peak_mib or 0.0) * 2**20, limits.memory),
    ):
        if limit is not None:
            found[name] = value / limit
    return {name: share - 1 for name, share in found.items()}


def shipped_over(config: BuildConfig, params: int, size_bytes: int, peak_mib: float) -> list[str]:
    """What the file that ships takes too much of, beside time, in words."""
    limits = config.limits
    found = [
        ("parameters", params, limits.params, " (limits.params)"),
        ("bytes of file", size_bytes, limits.size, " (limits.size)"),
        ("bytes of memory at its peak", round(peak_mib * 2**20), limits.memory, " (limits.memory)"),
    ]
    return [
        f"{value:,} {what} are over the limit of {int(limit):,}{key}"
        for what, value, limit, key in found
        if limit is not None and value > limit
    ]


def best_form(config: BuildConfig, timings: Sequence[Timing], params: int) -> tuple[Timing, dict[str, float]]:
    """The fastest form that keeps all limits, or the one that comes nearest, and its shares over them."""
    shares = [(t, over_limits(config, t, params)) for t in timings]
    return min(shares, key=lambda found: (max(0.0, *found[1].values()), found[0].p90_ms))


def told_over(over: dict[str, float]) -> str:
    """The limits that are not kept, for people: `size 12 % over its limit`."""
    return ", ".join(f"{name} {share:.0%} over its limit" for name, share in over.items() if share > 0)
