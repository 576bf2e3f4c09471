"""The teacher that answers is the network that was trained, whoever computes it."""

import numpy as np
import pytest
import torch
from torch import nn

from models import torchvision_ops
from models.pretrained import Normalisation
from pipeline.config import Augment
from pipeline.training.answers import Finished, answers
from pipeline.training.inputs import normalise
from pipeline.training.loop import Recipe
from pipeline.training.views import View

torchvision_ops.ensure()

import timm  # noqa: E402

CPU = torch.device("cpu")
NORM = Normalisation((100.0, 110.0, 120.0), (50.0, 60.0, 70.0))
IMAGES = np.random.default_rng(0).integers(0, 256, (9, 40, 40, 3), dtype=np.uint8)
AUGMENT = Augment(turns=True, mixup=0.4)


class Alien(nn.Module):
    """Has an operation of its own, which no converter knows."""

    def forward(self, x):
        return torch.linalg.eigvals(x.mean(1)).real[:, :5]


def asked(model, size, told, indices):
    return answers(Finished(model, NORM, size), IMAGES, Recipe(1, "sgd", 0.1, 4, AUGMENT), 7, CPU, told.append)(
        2, indices
    )


def own(model, size, indices):
    x = View.draw(len(IMAGES), (7, 2), AUGMENT).show(IMAGES, indices, size, CPU)
    with torch.no_grad():
        return model.eval()(normalise(x, NORM.mean, NORM.std))


@pytest.mark.slow
def test_the_answers_are_those_of_the_network_in_any_batch():
    """One with TensorFlow's padding, which depends on the size; its weights drawn so that its logits differ."""
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0", num_classes=5)
    nn.init.normal_(model.classifier.weight)
    told = []
    for size, indices in ((32, np.arange(9)), (48, np.array([3])), (48, np.array([8, 1, 4]))):
        expected, found = own(model, size, indices), asked(model, size, told, indices)
        assert found.shape == (len(indices), 5)
        assert found.dtype == torch.float32
        assert (found - expected).std() < 0.02 * expected.std()  # bf16 has 8 binary digits
    assert told == []


def test_what_openvino_cannot_take_is_left_to_torch_and_told():
    model, told = Alien(), []
    found = asked(model, 16, told, np.arange(3))
    torch.testing.assert_close(found, own(model, 16, np.arange(3)), rtol=0.05, atol=0.05)
    assert len(told) == 1
    assert told[0].startswith("OpenVINO cannot take this network, torch answers instead, more slowly: ")
