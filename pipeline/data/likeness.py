"""What `edgebuild data check` looks for beyond what can be read: photos that are nearly the same, and sizes that stand
out.

Near-duplicates are found by a difference hash of 16 x 16 (imagehash's dhash) and confirmed by the correlation of their
grey levels, for plain photos have few differences to hash. Two photos of one object from two sides are not found.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from export.preprocess import DECODERS, Preprocess
from pipeline.data.index import Index

_HASH_SIDE, _BITS = 16, 20
"""Of the 256 bits so many may differ."""
_CORRELATION = 0.98
_PROBE = Preprocess(64)
"""Makes the thumbnail whose grey levels are hashed and correlated."""
_CHUNK = 2**22
"""Pairs that are compared at a time."""
_EXTREMES = 3
_ON_ITS_SIDE = (5, 6, 7, 8)
"""Orientations of EXIF that change width and height."""
_SMALL_PX, _NARROW = 168, 3.0
"""Shorter side below the default input, which is then enlarged; longer over shorter side."""


def look_closer(index: Index) -> dict[str, Any]:
    """{"near", "near_within", "sizes"}. near: pairs across splits or classes, most alike first; near_within: how many
    pairs there are within one split and class."""
    samples = [(split, s) for split, found in index.splits.items() for s in found]
    paths = [Path(index.root) / s.path for _, s in samples]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looks = list(pool.map(_look, paths))
    grey = np.stack([g for g, _, _ in looks])
    hashes = np.stack([h for _, h, _ in looks])
    near, within = [], 0
    for i, j, correlation in _pairs(hashes, grey):
        (split, a), (other, b) = samples[i], samples[j]
        if split == other and a.label == b.label:
            within += 1
            continue
        near.append(
            {
                "photos": [a.path, b.path],
                "splits": [split, other],
                "classes": [index.classes[a.label], index.classes[b.label]],
                "correlation": round(correlation, 4),
            }
        )
    near.sort(key=lambda pair: -float(str(pair["correlation"])))
    sizes = [size for _, _, size in looks]
    return {"near": near, "near_within": within, "sizes": _sizes([s.path for _, s in samples], sizes)}


def _look(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """(grey levels, uint8; the hash in 64-bit words; width and height as shown)."""
    import imagehash

    with Image.open(path, formats=DECODERS) as file:
        width, height = file.size
        turned = file.getexif().get(ExifTags.Base.Orientation) in _ON_ITS_SIDE
    small = Image.fromarray(_PROBE.load(path)).convert("L")
    bits = imagehash.dhash(small, hash_size=_HASH_SIDE).hash.ravel()
    words = np.packbits(bits).view(np.uint64)
    return np.asarray(small).ravel(), words, (height, width) if turned else (width, height)


def _pairs(hashes: np.ndarray, grey: np.ndarray) -> list[tuple[int, int, float]]:
    found = []
    step = max(1, _CHUNK // max(1, len(hashes)))
    for start in range(0, len(hashes), step):
        differ = np.bitwise_count(hashes[start : start + step, None] ^ hashes[None, start:]).sum(2)
        for i, j in np.argwhere(differ <= _BITS):
            if j > i and (alike := _correlation(grey[start + i], grey[start + j])) >= _CORRELATION:
                found.append((start + int(i), start + int(j), alike))
    return found


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """0 where one is of one grey throughout, which correlates with nothing."""
    a, b = (levels - levels.mean(dtype=np.float32) for levels in (one, other))
    both = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / both if both else 0.0


def _sizes(paths: Sequence[str], sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """width and height of the median, the smallest and largest photos by area, those that stand out."""
    area = np.array([w * h for w, h in sizes])
    order = np.argsort(area, kind="stable")
    shorter = np.array([min(s) for s in sizes])
    shape = np.array([max(s) / min(s) for s in sizes])

    def named(which: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        return [{"photo": paths[i], "px": list(sizes[i])} for i in which]

    return {
        "median_px": [int(v) for v in np.median(np.array(sizes), axis=0)],
        "smallest": named(order[:_EXTREMES]),
        "largest": named(order[::-1][:_EXTREMES]),
        "small": int((shorter < _SMALL_PX).sum()),
        "small_px": _SMALL_PX,
        "narrow": named([i for i in np.argsort(-shape, kind="stable") if shape[i] > _NARROW][:_EXTREMES]),
    }
