"""INT8 that keeps its F1: the layers that cost most go back to f32, within a time budget.

A layer's cost is what leaving it out of the quantization gains in squared error of the logits. That is a smooth number
where macro F1 on a few hundred photos is mostly noise: ranked by F1, as NNCF's accuracy control does, the layers of a
small student came in an order that reached the goal only with all of them in f32; ranked so, one was enough.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.artifact import Artifact, remove_model
from export.errors import ExportError
from export.parity import logits_of
from export.quantize import layers_of

_RANKED_ON = 64
_RANKING_SHARE = 0.6
"""Of the budget, for the ranking; the rest is for trying."""

Quantize = Callable[[Path, Sequence[str]], None]
"""Writes an INT8 file with the layers named left in f32."""


class CannotReach(ExportError):
    """No mixture within the budget keeps the F1; says how near it came."""


@dataclass(frozen=True)
class Mixture:
    """The layers that went back to f32, costliest first, of so many; the F1 reached; the seconds it took."""

    kept: tuple[str, ...]
    layers: int
    f1_macro: float
    seconds: float


def keep_f1(
    source: Path,
    runtime: str,
    quick: Quantize,
    full: Quantize,
    images: np.ndarray,
    f1_of: Callable[[Artifact], float],
    floor: float,
    path: Path,
    seconds: float,
) -> Mixture:
    """Write `path`, an INT8 file for `runtime` of the f32 ONNX file `source`, whose F1 is at least `floor`. quick:
    a quantization good enough to rank with, full: the one to ship. images: uint8 (n, size, size, 3), unlabelled.
    Raises CannotReach."""
    began = time.monotonic()
    images = images[:_RANKED_ON]
    reference = logits_of(Artifact(source, "onnxruntime", "f32"), images)
    layers = layers_of(source, runtime)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        probe = Path(folder) / path.name

        def error(keep: Sequence[str]) -> float:
            quick(probe, keep)
            return float(np.square(logits_of(Artifact(probe, runtime, "int8"), images) - reference).mean())

        whole, gains = error(()), {}
        for layer in _from_both_ends(layers):
            if time.monotonic() - began > _RANKING_SHARE * seconds:
                break
            gains[layer] = whole - error((layer,))
    ranked = sorted((layer for layer in gains if gains[layer] > 0), key=lambda layer: -gains[layer])
    best = -1.0
    for count in range(1, len(ranked) + 1):
        if time.monotonic() - began > seconds:
            break
        full(path, ranked[:count])
        f1 = f1_of(Artifact(path, runtime, "int8"))
        best = max(best, f1)
        if f1 >= floor:
            return Mixture(tuple(ranked[:count]), len(layers), f1, time.monotonic() - began)
    remove_model(path)
    raise CannotReach(
        f"{runtime} INT8 cannot be made to keep F1 {floor:.4f} within {seconds:.0f} s: "
        f"{len(gains)} of {len(layers)} layers ranked, best F1 {max(best, 0):.4f}; raise quantize.max_f1_drop or "
        "quantize.seconds"
    )


def _from_both_ends(layers: Sequence[str]) -> list[str]:
    """First, last, second, last but one: the ends are the usual culprits, should the budget run out."""
    order = sorted(range(len(layers)), key=lambda i: min(i, len(layers) - 1 - i))
    return [layers[i] for i in order]
