"""Does a file answer as the network it came from? Logits, top-1 and macro F1 on the same images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from export.artifact import Artifact
from export.errors import ExportError
from latency.errors import LatencyError
from latency.runners import open_session

F32_TOLERANCE = 1e-3
"""Largest difference in a logit that an f32 file may show to torch, relative to the largest logit."""


@dataclass(frozen=True)
class Parity:
    """max_diff: largest absolute difference in a logit. agreement: share of images with the same top-1 class."""

    max_diff: float
    agreement: float
    f1_macro: float
    accuracy: float


def logits_of(artifact: Artifact, images: np.ndarray) -> np.ndarray:
    """float32 (n, classes) for uint8 images (n, size, size, 3), one at a time as they will be run."""
    try:
        session = open_session(artifact.path, artifact.runtime, artifact.precision, threads=1)
        return np.concatenate([session.infer(image[None]).copy() for image in images]).astype(np.float32)
    except LatencyError as error:
        raise ExportError(str(error)) from error


def compare(reference: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> Parity:
    """`logits` against the `reference` of the hop before, and against the labels."""
    if not np.isfinite(logits).all():
        raise ExportError("logits are not finite: the file computes nothing of use")
    f1, accuracy = scores(logits, labels)
    return Parity(
        max_diff=float(np.abs(reference - logits).max()),
        agreement=float((reference.argmax(1) == logits.argmax(1)).mean()),
        f1_macro=f1,
        accuracy=accuracy,
    )


def scores(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """(macro F1 over all classes of the model, accuracy)."""
    from sklearn.metrics import accuracy_score, f1_score

    guesses = logits.argmax(1)
    f1 = f1_score(labels, guesses, labels=range(logits.shape[1]), average="macro", zero_division=0)
    return float(f1), float(accuracy_score(labels, guesses))


def f1_per_class(logits: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    from sklearn.metrics import f1_score

    values = f1_score(labels, logits.argmax(1), labels=range(len(classes)), average=None, zero_division=0)
    return dict(zip(classes, map(float, values), strict=True))
