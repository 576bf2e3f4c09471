"""The embedded data set: six kinds of texture on cluttered backgrounds, drawn by the program, for trying the tool.

A class is a local pattern inside a blob at a random place, in random colours, at a random angle and scale: nothing that
a linear model on pixels could use, little that a small convolutional network cannot learn in a minute. It says nothing
about your photos.
"""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

SIZE = 168
COUNTS = {  # imbalanced, as waste is
    "train": {"checks": 130, "dots": 110, "rings": 80, "stripes": 70, "waves": 60, "weave": 50},
    "val": {"checks": 40, "dots": 36, "rings": 28, "stripes": 26, "waves": 24, "weave": 20},
    "test": {"checks": 40, "dots": 36, "rings": 28, "stripes": 26, "waves": 24, "weave": 20},
}

Pattern = Callable[[np.ndarray, np.ndarray], np.ndarray]
_TAU = 2 * np.pi
PATTERNS: dict[str, Pattern] = {
    # each maps turned and scaled coordinates (one period = 1) to values from 0 to 1
    "checks": lambda u, v: ((np.floor(u) + np.floor(v)) % 2).astype(np.float32),
    "dots": lambda u, v: (np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.3).astype(np.float32),
    "rings": lambda u, v: (np.abs(np.hypot(u / 2 % 1 - 0.5, v / 2 % 1 - 0.5) - 0.3) < 0.1).astype(np.float32),
    "stripes": lambda u, v: (u % 1 < 0.5).astype(np.float32),
    "waves": lambda u, v: ((u + 0.35 * np.sin(_TAU * v / 2)) % 1 < 0.5).astype(np.float32),
    "weave": lambda u, v: np.where((np.floor(u) + np.floor(v)) % 2 > 0, u * 3 % 1 < 0.5, v * 3 % 1 < 0.5).astype(
        np.float32
    ),
}


def draw(kind: str, rng: np.random.Generator) -> Image.Image:
    """One image of a class."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    coarse = Image.fromarray(rng.integers(40, 216, (5, 5, 3), dtype=np.uint8))
    background = coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    canvas = np.asarray(background, dtype=np.float32)
    for _ in range(int(rng.integers(2, 6))):  # plain blobs as clutter
        canvas = _paste(canvas, rng.uniform(0, 255, 3) * np.ones_like(canvas), _blob(x, y, rng, 12, 32))
    angle, period = rng.uniform(0, np.pi), rng.uniform(10, 16)
    u = (np.cos(angle) * x + np.sin(angle) * y) / period + rng.uniform(0, 1)
    v = (np.cos(angle) * y - np.sin(angle) * x) / period + rng.uniform(0, 1)
    dark, light = rng.uniform(0, 110, 3), rng.uniform(130, 255, 3)
    pattern = PATTERNS[kind](u, v)[..., None]
    canvas = _paste(canvas, dark + (light - dark) * pattern, _blob(x, y, rng, 44, 72))
    canvas = canvas + rng.uniform(2, 12) * rng.standard_normal(canvas.shape, dtype=np.float32)
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))


def write(folder: Path, seed: int = 0) -> None:
    """Draw the whole set into `folder` as train/val/test/CLASS/*.jpg; the same seed draws the same files.

    A set that is there already is left alone; a half-drawn one cannot be, for it is renamed when complete.
    """
    if folder.is_dir():
        return
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for s, (split, counts) in enumerate(COUNTS.items()):
        for k, (kind, count) in enumerate(counts.items()):
            target = partial / split / kind
            target.mkdir(parents=True)
            for i in range(count):
                image = draw(kind, np.random.default_rng([seed, s, k, i]))
                encoded = io.BytesIO()  # Pillow does not see that what it writes to a file is cut short
                image.save(encoded, "JPEG", quality=90)
                (target / f"{kind}-{i:03d}.jpg").write_bytes(encoded.getvalue())
    partial.rename(folder)


def _blob(x: np.ndarray, y: np.ndarray, rng: np.random.Generator, least: float, most: float) -> np.ndarray:
    """A mask (size, size, 1): a wobbling disc at a random place, wholly inside the image."""
    radius = rng.uniform(least, most)
    cx, cy = rng.uniform(radius, SIZE - radius, 2)
    theta = np.arctan2(y - cy, x - cx)
    wobble = 1 + 0.12 * np.sin(3 * theta + rng.uniform(0, _TAU)) + 0.08 * np.sin(5 * theta + rng.uniform(0, _TAU))
    return (np.hypot(x - cx, y - cy) < 0.85 * radius * wobble)[..., None]


def _paste(canvas: np.ndarray, paint: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.where(mask, paint, canvas)
