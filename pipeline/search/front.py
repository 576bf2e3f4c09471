"""The front of a search in one figure."""

from collections.abc import Iterable


def hypervolume(points: Iterable[tuple[float, float]], limit_ms: float) -> float:
    """points: (macro F1, ms). The area that they dominate before the reference point (F1 0, limit_ms), as a share of
    F1 1 at 0 ms: for each latency up to the limit the best F1 that is reached by then, on average."""
    area, best = 0.0, 0.0
    kept = sorted((ms, f1) for f1, ms in points if ms <= limit_ms)
    ends = [ms for ms, _ in kept[1:]] + [limit_ms]
    for (ms, f1), end in zip(kept, ends, strict=False):
        best = max(best, f1)
        area += best * (end - ms)
    return area / limit_ms
