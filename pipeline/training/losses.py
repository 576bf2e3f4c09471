"""Losses for classes of unequal size, and for a student with a teacher.

balance, how rare classes are helped. inverse, effective: weights in the cross-entropy by inverse frequency, or by the
effective number of samples (Cui et al. 2019); logits: logit adjustment (Menon et al. 2021); sampling: drawn as often as
the others; none.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models import torchvision_ops
from pipeline.config import Balance

torchvision_ops.ensure()

from timm.loss.class_weights import compute_class_weights  # noqa: E402


def class_weights(labels: np.ndarray, classes: int, balance: Balance) -> Tensor:
    """float32 (classes,), 1 on average over the images."""
    counts = np.bincount(labels, minlength=classes)
    method = {"inverse": "inv_freq", "effective": "effective_num"}.get(balance)
    if method is None:
        return torch.ones(classes)
    _, weights = compute_class_weights(counts.tolist(), int(counts.sum()), method)
    return weights * float(counts.sum() / (weights.numpy() * counts).sum())


class CrossEntropy(nn.Module):
    """Of logits (n, classes) against targets (n, classes), balanced as named."""

    prior: Tensor

    def __init__(self, labels: np.ndarray, classes: int, balance: Balance, smoothing: float) -> None:
        super().__init__()
        self.loss = nn.CrossEntropyLoss(class_weights(labels, classes, balance), label_smoothing=smoothing)
        counts = np.maximum(np.bincount(labels, minlength=classes), 1)
        prior = np.log(counts / counts.sum()) if balance == "logits" else np.zeros(classes)
        self.register_buffer("prior", torch.tensor(prior, dtype=torch.float32))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        value: Tensor = self.loss(logits + self.prior, targets)
        return value


def epoch_order(labels: np.ndarray, balance: Balance, rng: np.random.Generator) -> np.ndarray:
    """The images of an epoch, in the order in which they are seen."""
    if balance != "sampling":
        return rng.permutation(len(labels))
    weights = 1 / np.bincount(labels)[labels]
    return rng.choice(len(labels), len(labels), p=weights / weights.sum())


def distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) at a temperature, times its square (Hinton et al. 2015).

    timm.task has it for a live teacher that is given the student's own tensor; here each sees the crop at its own
    size, and answers are mostly stored."""
    student = functional.log_softmax(logits / temperature, 1)
    target = functional.log_softmax(teacher / temperature, 1)
    return temperature**2 * functional.kl_div(student, target, reduction="batchmean", log_target=True)
