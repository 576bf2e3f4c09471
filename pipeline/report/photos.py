"""The photos that the shipped file is worst at, small enough to lie in the report."""

import base64
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from export.preprocess import ImageError, Preprocess

_COUNT = 12
_SIDE_PX, _QUALITY = 220, 70


def worst(
    paths: Sequence[Path], truth: Sequence[str], guesses: Sequence[str], losses: Sequence[float]
) -> list[dict[str, Any]]:
    """Of those that it got wrong, the ones of the largest loss: {"name", "label", "guess", "share", "image"}. share:
    the probability that it gives the label. image: a data URI; None where the file is gone or cannot be read."""
    order = np.argsort(-np.array(losses))
    wrong = [i for i in order if truth[i] != guesses[i]][:_COUNT]
    return [
        {
            "name": os.fsencode(f"{paths[i].parent.name}/{paths[i].name}").decode(errors="replace"),
            "label": truth[i],
            "guess": guesses[i],
            "share": float(np.exp(-losses[i])),
            "image": _thumbnail(paths[i]),
        }
        for i in wrong
    ]


def _thumbnail(path: Path) -> str | None:
    try:
        array = Preprocess(_SIDE_PX, "pad").load(path)
    except ImageError:
        return None
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
