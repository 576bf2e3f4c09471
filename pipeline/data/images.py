"""Images as arrays: decoded once and kept.

Validation and test arrays come from the shipped Preprocess at the input size. Training images are kept a little larger,
by the same Preprocess, and cropped in batches on the device (`pipeline.training.views`).
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from export.preprocess import ImageError, Preprocess
from models.language import canonical_hash
from pipeline.data.index import Index, check_unchanged
from pipeline.errors import PipelineError
from pipeline.files import keep, kept

TRAIN_MARGIN = 8 / 7
"""Training images are kept this much larger than the input: 192 for 168."""


def decoded(index: Index, split: str, preprocess: Preprocess, cache: Path) -> np.ndarray:
    """uint8 (n, size, size, 3), mapped from a file in `cache` that is written once, and again where it was damaged.
    Raises PipelineError."""
    stem = f"{split}-{preprocess.size}-{canonical_hash([index.hash, split, preprocess.as_dict()])}"
    path = kept(cache, stem, ".npy")
    if path is None:
        cache.mkdir(parents=True, exist_ok=True)
        partial = cache / f"{stem}.{os.getpid()}.partial.npy"  # of its own: others may be at the same images
        paths, samples = index.paths(split), index.splits[split]
        array = open_memmap(partial, "w+", np.uint8, (len(paths), preprocess.size, preprocess.size, 3))
        with partial.open("r+b") as file:  # a full disk shall be an error here, not a SIGBUS at a write to the map
            os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)

        def put(i: int) -> None:
            array[i] = preprocess.load(paths[i])
            check_unchanged(paths[i], samples[i])

        try:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(put, range(len(paths))))
        except ImageError as error:
            partial.unlink()
            raise PipelineError(
                f"{error}; it was readable when the data was checked: run `edgebuild data check`"
            ) from error
        except BaseException:
            partial.unlink()
            raise
        array.flush()
        path = keep(partial, cache, stem)
    return np.load(path, mmap_mode="r")


def train_size(input_size: int) -> int:
    return int(np.ceil(input_size * TRAIN_MARGIN / 8)) * 8
