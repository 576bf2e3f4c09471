"""A pretrained network made ready for other images: its batch norms, and a classifier fitted to its features.

Batch norms that hold the statistics of other images give other features in training, where a batch's own count, than
in use. Training then begins from what the features can do, instead of spoiling them while a random classifier learns
('linear probing then fine-tuning', Kumar et al. 2022).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from models.build import Student
from pipeline.inputs import Arrays, normalise
from pipeline.views import View

_C = 0.02
"""Inverse strength of the regularisation, for features of unit variance."""
_BATCH = 64
_MOMENTUM = 0.1
"""torch's own. timm's networks that came from TensorFlow have 0.01: 100 steps, longer than an epoch of few images."""


def make_ready(model: nn.Module, arrays: Arrays, balanced: bool) -> None:
    """Statistics of the training images for its batch norms; then a last layer fitted to them, each seen whole and
    mirrored. balanced: rare classes weigh more. A model without a linear classifier keeps the one it has."""
    device = next(model.parameters()).device
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = _MOMENTUM
    order = np.random.default_rng(0).permutation(len(arrays.train))  # a batch of all classes, as in training
    update_bn(_batches(arrays, order, 1, device), model)
    classifier = classifier_of(model)
    if classifier is not None:
        _fit(model.eval(), classifier, arrays, balanced)


def classifier_of(model: nn.Module) -> nn.Linear | None:
    """The last layer, where it is a linear one."""
    last: Any = model[-1] if isinstance(model, Student) else model
    found = last.get_classifier() if hasattr(last, "get_classifier") else getattr(last, "linear", None)
    return found if isinstance(found, nn.Linear) else None


@torch.no_grad()
def _fit(model: nn.Module, classifier: nn.Linear, arrays: Arrays, balanced: bool) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    seen: list[Tensor] = []
    hook = classifier.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].float().cpu()))
    for flip in (1, -1):
        for x in _batches(arrays, np.arange(len(arrays.train)), flip, classifier.weight.device):
            model(x)
    hook.remove()
    features = torch.cat(seen).numpy()
    scaler = StandardScaler().fit(features)
    regression = LogisticRegression(C=_C, max_iter=300, class_weight="balanced" if balanced else None)
    regression.fit(scaler.transform(features), np.tile(arrays.train_labels, 2))
    weight, bias = regression.coef_ / scaler.scale_, regression.intercept_
    if len(regression.classes_) == 2:  # one row stands for both
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    bias = bias - weight @ scaler.mean_
    classifier.weight.zero_()
    classifier.bias.fill_(float(bias.min()))  # what a class without an image keeps
    classifier.weight[regression.classes_] = torch.from_numpy(weight).to(classifier.weight)
    classifier.bias[regression.classes_] = torch.from_numpy(bias).to(classifier.bias)


def _batches(arrays: Arrays, order: np.ndarray, flip: int, device: torch.device) -> Iterator[Tensor]:
    view = View.whole(len(arrays.train), flip)
    for start in range(0, len(order), _BATCH):
        x = view.show(arrays.train, order[start : start + _BATCH], arrays.input_size, device)
        yield normalise(x, arrays.mean, arrays.std)
