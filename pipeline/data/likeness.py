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
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from export.preprocess import DECODERS, Preprocess
from pipeline.data.index import Index, Sample

_HASH_SIDE, _BITS = 16, 20
"""Of the 256 bits so many may differ."""
_CORRELATION = 0.98
_PROBE = Preprocess(64)
"""Makes the thumbnail whose grey levels are hashed and correlated."""
_CHUNK = 2**22
"""Pairs that are compared at a time."""
_EXTREMES, _EXAMPLES = 3, 6
_ON_ITS_SIDE = (5, 6, 7, 8)
"""Orientations of EXIF that change width and height."""
_SMALL_PX, _NARROW = 168, 3.0
"""Shorter side below the default input, which is then enlarged; longer over shorter side."""


def look_closer(index: Index) -> dict[str, Any]:
    """{"near", "near_within", "sizes"}. near: groups of photos that are nearly the same, across splits or classes, the
    largest first; near_within: how many photos more than one there are in the groups within one split and class."""
    samples = [(split, s) for split, found in index.splits.items() for s in found]
    paths = [Path(index.root) / s.path for _, s in samples]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looks = list(pool.map(_look, paths))
    grey = np.stack([g for g, _, _ in looks])
    hashes = np.stack([h for _, h, _ in looks])
    near, within = [], 0
    for group in _groups(hashes, grey):
        splits, classes = {samples[i][0] for i in group}, {samples[i][1].label for i in group}
        if len(splits) == len(classes) == 1:
            within += len(group) - 1
            continue
        near.append(
            {
                "count": len(group),
                "photos": _examples(group, samples),
                "splits": [s for s in index.splits if s in splits],
                "classes": [index.classes[c] for c in sorted(classes)],
            }
        )
    near.sort(key=lambda group: -int(str(group["count"])))
    sizes = [size for _, _, size in looks]
    return {"near": near, "near_within": within, "sizes": _sizes([s.path for _, s in samples], sizes)}


def _examples(group: Sequence[int], samples: Sequence[tuple[str, Sample]]) -> list[str]:
    """A few images of a group, one for each split and class in it."""
    kinds: dict[tuple[str, int], str] = {}
    for i in group:
        split, sample = samples[i]
        kinds.setdefault((split, sample.label), sample.path)
    return [*kinds.values()][:_EXAMPLES]


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


def _groups(hashes: np.ndarray, grey: np.ndarray) -> list[list[int]]:
    """Groups of two or more images, each of them nearly the same as another one of its group.

    hashes: uint64 (n, words). grey: uint8 (n, pixels). Pairs are merged into groups as they are found and never stored:
    the frames of a video have a million of them.
    """
    count = len(hashes)
    levels = grey.astype(np.float32)
    levels -= levels.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(levels, axis=1, keepdims=True)
    levels /= np.where(norms > 0, norms, np.inf)  # a constant image correlates with nothing
    labels = np.arange(count)
    step = max(1, _CHUNK // max(1, count))
    for start in range(0, count, step):
        rows = slice(start, start + step)
        alike = np.bitwise_count(hashes[rows, None] ^ hashes[None, start:]).sum(2) <= _BITS
        np.fill_diagonal(alike, False)
        columns = np.flatnonzero(alike.any(0))
        found = alike[:, columns] & (levels[rows] @ levels[start + columns].T >= _CORRELATION)
        one, other = np.nonzero(found)
        labels = _joined(labels, start + one, start + columns[other])
    order = np.argsort(labels, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return [part.tolist() for part in parts if len(part) > 1]


def _joined(labels: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Merge the groups of each pair (one[i], other[i]). Returns the new group label of every image."""
    if not len(one):
        return labels
    count = len(labels)
    ends = (np.concatenate([one, np.arange(count)]), np.concatenate([other, labels]))
    graph = coo_array((np.ones(len(ends[0]), bool), ends), shape=(count, count))
    # A label is the index of an image of the group, so that it can serve as an edge of the next graph.
    _, found = connected_components(graph, directed=False)
    _, first = np.unique(found, return_index=True)
    return np.asarray(first[found])


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
