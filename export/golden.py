"""Golden samples: image files whose logits are recorded, so that a bundle can be seen to answer as it should.

Photos at the input size show the network at work; two drawn files of another size, one turned by EXIF and one with
alpha, go through every step of the preprocessing, where most exported classifiers fail in the field.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from export.artifact import Artifact, ModelCard
from export.parity import logits_of

GOLDEN = "golden"
"""The folder of the samples in a bundle, and the only one."""
PHOTOS = 4
"""At most, and at least one."""
_PHOTO, _TURNED, _ALPHA = "photo-{}.png", "turned.jpg", "alpha.png"
_F32, _BF16 = 1e-3, 2e-2
"""Allowed difference of a logit, as a share of the largest `reach`. bf16 keeps 8 bits, and its sums round otherwise on
another CPU that has it."""
_LEAST = 1e-4
"""As in `parity.tolerance`."""
_ORIENTATION = 0x0112


def write_golden(folder: Path, artifact: Artifact, card: ModelCard, photos: np.ndarray, drift: float) -> dict[str, Any]:
    """Fill `folder`/golden; the manifest's part on it, names relative to `folder`.

    photos: uint8 (n, size, size, 3). drift: largest difference of a logit seen on an older CPU, where the file may run.
    """
    golden = folder / GOLDEN
    golden.mkdir()
    for i, photo in enumerate(photos):
        Image.fromarray(photo).save(golden / _PHOTO.format(i))
    exif = Image.Exif()
    exif[_ORIENTATION] = 6  # turned by a quarter
    size = card.input_size
    # Over twice the input in both directions, so that the decoder's own down-scaling is in it.
    _drawn(0, 5 * size, 3 * size).save(golden / _TURNED, quality=90, exif=exif)
    alpha = _drawn(1, size // 2, size)
    alpha.putalpha(128)
    alpha.save(golden / _ALPHA)
    files = sorted(golden.iterdir())
    logits = logits_of(artifact, np.stack([card.preprocess.load(f) for f in files]))
    tolerance = golden_tolerance(artifact.precision, logits, drift)
    samples = {
        f"{GOLDEN}/{file.name}": {
            "label": card.classes[int(values.argmax())],
            "logits": [float(v) for v in values],
            "near_tie": near_tie(values, tolerance),
        }
        for file, values in zip(files, logits, strict=True)
    }
    return {"tolerance": tolerance, "samples": samples}


def are_ours(names: Collection[str]) -> bool:
    """Whether these are names that `write_golden` gives, and all that a bundle has."""
    photos = [f"{GOLDEN}/{_PHOTO.format(i)}" for i in range(len(names) - 2)]
    return 1 <= len(photos) <= PHOTOS and set(names) == {*photos, f"{GOLDEN}/{_TURNED}", f"{GOLDEN}/{_ALPHA}"}


def golden_tolerance(precision: str, logits: np.ndarray, drift: float) -> float:
    """How far a logit may be from a recorded one. logits: (n, classes), the recorded ones. drift: see write_golden."""
    share = _BF16 if precision == "bf16" else _F32
    return max(share * float(reach(logits).max()), _LEAST, 2 * drift)


def reach(logits: np.ndarray) -> np.ndarray:
    """How far the logits of each sample lie from their middle: a constant added to all of them changes no answer.

    logits: (n, classes). Returns (n,).
    """
    found: np.ndarray = (logits.max(axis=1) - logits.min(axis=1)) / 2
    return found


def near_tie(logits: np.ndarray, tolerance: float) -> bool:
    """Whether two answers within the tolerance may have different labels. logits: (classes,)."""
    second, first = np.sort(logits)[-2:]
    return bool(first - second <= 2 * tolerance)


def _drawn(seed: int, width: int, height: int) -> Image.Image:
    """Coloured tiles with hard edges, no two channels alike: another filter or order of channels shows."""
    tiles = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return Image.fromarray(tiles).resize((width, height), Image.Resampling.NEAREST)
