"""Images as arrays: decoded once and kept, and the random crops that training sees.

Validation and test arrays come from the shipped Preprocess at the input size. Training images are kept a little larger,
by the same Preprocess, and cropped in batches on the device.
"""

import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from torch.nn import functional

from export.preprocess import ImageError, Preprocess
from models.language import canonical_hash
from pipeline.data import Index
from pipeline.errors import PipelineError

TRAIN_MARGIN = 8 / 7
"""Training images are kept this much larger than the input: 192 for 168."""


def decoded(index: Index, split: str, preprocess: Preprocess, cache: Path) -> np.ndarray:
    """uint8 (n, size, size, 3), mapped from a file in `cache` that is written once. Raises PipelineError."""
    path = cache / f"{split}-{preprocess.size}-{canonical_hash([index.hash, split, preprocess.as_dict()])}.npy"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        paths = index.paths(split)
        array = open_memmap(partial, "w+", np.uint8, (len(paths), preprocess.size, preprocess.size, 3))
        with partial.open("r+b") as file:  # a full disk shall be an error here, not a SIGBUS at a write to the map
            os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)

        def put(i: int) -> None:
            array[i] = preprocess.load(paths[i])

        try:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(put, range(len(paths))))
        except ImageError as error:
            partial.unlink()
            raise PipelineError(
                f"{error}; it was readable when the data was checked: run `edgebuild data check`"
            ) from error
        array.flush()
        partial.rename(path)
    return np.load(path, mmap_mode="r")


def train_size(input_size: int) -> int:
    return int(np.ceil(input_size * TRAIN_MARGIN / 8)) * 8


@dataclass(frozen=True)
class Views:
    """Where each image is cropped: float32 (n, 5) of centre x, centre y, half width, half height (-1..1) and flip."""

    boxes: np.ndarray

    @classmethod
    def draw(cls, count: int, seed: Sequence[int], least_area: float) -> "Views":
        """Inception-style crops: area from `least_area` to 1, aspect ratio from 3/4 to 4/3, flipped half the time."""
        rng = np.random.default_rng(list(seed))
        area, aspect = rng.uniform(least_area, 1, count), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), count))
        width, height = np.minimum(1, np.sqrt(area * aspect)), np.minimum(1, np.sqrt(area / aspect))
        x, y = rng.uniform(-1, 1, count) * (1 - width), rng.uniform(-1, 1, count) * (1 - height)
        flip = rng.choice([-1.0, 1.0], count)
        return cls(np.stack([x, y, width, height, flip], 1).astype(np.float32))


def crop(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """uint8 (n, h, w, 3) and boxes (n, 5) -> float32 (n, 3, size, size), 0..255, channels_last."""
    x, y, width, height, flip = boxes.unbind(1)
    theta = torch.zeros(len(boxes), 2, 3, device=boxes.device)
    theta[:, 0, 0], theta[:, 0, 2], theta[:, 1, 1], theta[:, 1, 2] = width * flip, x, height, y
    grid = functional.affine_grid(theta, [len(boxes), 3, size, size], align_corners=False)
    return functional.grid_sample(
        images.permute(0, 3, 1, 2).float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    ).contiguous(memory_format=torch.channels_last)


class RandAugment:
    """timm's RandAugment with `n_select` operations, on uint8 arrays; 0 leaves the images alone."""

    def __init__(self, n_select: int) -> None:
        self._transform = None
        if n_select:
            from models import torchvision_ops

            torchvision_ops.ensure()
            from timm.data.auto_augment import rand_augment_transform

            self._transform = rand_augment_transform(f"rand-m7-mstd0.5-n{n_select}-inc1", {})

    def __call__(self, images: np.ndarray, seed: int) -> np.ndarray:
        if self._transform is None:
            return images
        from PIL import Image

        random.seed(seed)  # timm draws from the modules' global generators
        np.random.seed(seed)
        return np.stack([np.asarray(self._transform(Image.fromarray(image))) for image in images])
