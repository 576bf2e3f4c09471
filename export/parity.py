"""Does a file answer as the network it came from? Logits, top-1 and macro F1 on the same images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.artifact import Artifact
from export.errors import ExportError
from latency.errors import LatencyError
from latency.runners import open_session

_ABSOLUTE, _RELATIVE = 1e-4, 1e-5
_RESAMPLES = 2000
_BATCH = 5_000_000
"""Numbers that are drawn at a time: more would fill the memory where there are many images."""
LEVEL = 0.95


@dataclass(frozen=True)
class Parity:
    """Against the reference, on the same images. max_diff: largest absolute difference of a logit. agreement: share
    with the same top-1 class; flipped: images with another one, near-ties left out. f1_change: of macro F1, with its
    95 % interval by paired bootstrap."""

    max_diff: float
    agreement: float
    flipped: int
    f1_macro: float
    accuracy: float
    f1_change: float
    f1_change_low: float
    f1_change_high: float


def tolerance(reference: np.ndarray) -> float:
    """Largest difference in a logit that an f32 file may show: 1e-4, or 1e-5 of the largest logit if that is more."""
    return max(_ABSOLUTE, _RELATIVE * float(np.abs(reference).max()))


def logits_of(artifact: Artifact, images: np.ndarray) -> np.ndarray:
    """float32 (n, classes) for uint8 images (n, size, size, 3), as many at a time as the file takes."""
    try:
        session = open_session(artifact.path, artifact.runtime, artifact.precision, threads=1)
        batch = session.shape[0]
        whole = [session.infer(images[i : i + batch]).copy() for i in range(0, len(images) - batch + 1, batch)]
        return np.concatenate(whole).astype(np.float32)
    except LatencyError as error:
        raise ExportError(str(error)) from error


def compare(reference: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> Parity:
    """`logits` against the `reference` of the hop before, and against the labels.

    A near-tie is an image whose two largest reference logits are closer than twice `tolerance`: there, two right
    answers may differ.
    """
    if not np.isfinite(logits).all():
        raise ExportError("logits are not finite: the file computes nothing of use")
    first, second = np.sort(reference, axis=1)[:, :-3:-1].T
    before, after = reference.argmax(1), logits.argmax(1)
    other = before != after
    f1, accuracy = scores(logits, labels)
    low, high = change_interval(labels, before, after, reference.shape[1])
    return Parity(
        max_diff=float(np.abs(reference - logits).max()),
        agreement=float(1 - other.mean()),
        flipped=int((other & (first - second > 2 * tolerance(reference))).sum()),
        f1_macro=f1,
        accuracy=accuracy,
        f1_change=f1 - scores(reference, labels)[0],
        f1_change_low=low,
        f1_change_high=high,
    )


def keeps_f1(parity: Parity, max_drop: float) -> bool:
    """Whether a file keeps macro F1 to within `max_drop`, as far as these images can tell: it does not only where the
    95 % interval of the change lies wholly below. With 90 images one changed label is 1.1 points, so a limit of one
    point on the change itself would refuse a file for a single image."""
    return parity.f1_change_high >= -max_drop


def change_interval(labels: np.ndarray, before: np.ndarray, after: np.ndarray, classes: int) -> tuple[float, float]:
    """95 % interval of how macro F1 changes from the guesses `before` to `after`."""

    def change(truth: np.ndarray, one: np.ndarray, other: np.ndarray, axis: int) -> np.ndarray:
        return macro_f1(truth, other, classes, axis) - macro_f1(truth, one, classes, axis)

    if (before == after).all():
        return 0.0, 0.0
    return interval(change, labels, before, after)


def f1_interval(labels: np.ndarray, guesses: np.ndarray, classes: int) -> tuple[float, float]:
    """95 % interval of macro F1: what other images of the same kind might have given."""

    def f1(truth: np.ndarray, guessed: np.ndarray, axis: int) -> np.ndarray:
        return macro_f1(truth, guessed, classes, axis)

    return interval(f1, labels, guesses)


def interval(statistic: Callable[..., np.ndarray], *arrays: np.ndarray) -> tuple[float, float]:
    """95 % interval of statistic(*arrays, axis=): the images are drawn again, each with all that is known of it
    (percentile bootstrap, Efron & Tibshirani 1993, chapter 13). arrays: (n,), alike in length."""
    from scipy.stats import bootstrap

    found = bootstrap(
        arrays,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=max(1, _BATCH // len(arrays[0])),
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def macro_f1(truth: np.ndarray, guesses: np.ndarray, classes: int, axis: int) -> np.ndarray:
    """As scikit-learn's, along an axis of many resamples at once; a class that nobody is counts as 0."""
    total = np.zeros(np.sum(truth, axis=axis).shape)
    for c in range(classes):
        right = ((truth == c) & (guesses == c)).sum(axis)
        either = (truth == c).sum(axis) + (guesses == c).sum(axis)
        total += 2 * right / np.maximum(either, 1)
    return np.asarray(total / classes)


def scores(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """(macro F1 over all classes of the model, accuracy)."""
    from sklearn.metrics import accuracy_score, f1_score

    guesses = logits.argmax(1)
    f1 = f1_score(labels, guesses, labels=range(logits.shape[1]), average="macro", zero_division=0)
    return float(f1), float(accuracy_score(labels, guesses))


def losses(logits: np.ndarray, labels: np.ndarray) -> list[float]:
    """By image, in nats: minus the logarithm of the probability that the label is given."""
    from scipy.special import log_softmax

    found: list[float] = (-log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]).tolist()
    return found


def f1_per_class(guesses: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """guesses, labels: indices into `classes`, (n,)."""
    from sklearn.metrics import f1_score

    values = f1_score(labels, guesses, labels=range(len(classes)), average=None, zero_division=0)
    return dict(zip(classes, map(float, values), strict=True))


def figures(guesses: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """f1_macro, accuracy and f1_per_class. guesses, labels: indices into `classes`, (n,)."""
    by_class = f1_per_class(guesses, labels, classes)
    return {
        "f1_macro": float(np.mean(list(by_class.values()))),
        "accuracy": float(np.mean(guesses == labels)),
        "f1_per_class": by_class,
    }


def quality(guesses: np.ndarray, labels: np.ndarray, classes: Sequence[str], split: str) -> dict[str, Any]:
    """How good a file is on the images of a split: `figures`, with the interval of macro F1 (`f1_interval`).

    selected_on: epoch, candidate and precision were chosen on the same images.
    """
    from sklearn.metrics import confusion_matrix

    low, high = f1_interval(labels, guesses, len(classes))
    return {
        **figures(guesses, labels, classes),
        "f1_low": low,
        "f1_high": high,
        "split": split,
        "selected_on": split == "val",
        "confusion": confusion_matrix(labels, guesses, labels=range(len(classes))).tolist(),
    }
