"""What a finished network answers to the views that another learns from.

On a CPU OpenVINO computes it, in less than half of torch's time; a network that it cannot take is left to torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from latency.host import this_host
from models.pretrained import Normalisation
from pipeline.training.inputs import Images, autocast, bf16_pays, normalise
from pipeline.training.loop import Recipe
from pipeline.training.views import View

Answers = Callable[[int, np.ndarray], Tensor]
"""(view, indices of the images) -> logits (n, classes)"""
Compute = Callable[[Tensor], Tensor]
"""normalised images (n, 3, size, size) -> logits"""


@dataclass(frozen=True)
class Finished:
    """A network that learns no more, and how it sees."""

    model: nn.Module
    norm: Normalisation
    input_size: int


def answers(
    finished: Finished,
    images: Images,
    recipe: Recipe,
    seed: int,
    device: torch.device,
    say: Callable[[str], None],
) -> Answers:
    """On the very views that `fit` draws of these images for this recipe and seed. images: uint8 (n, h, w, 3)."""
    compute = (_by_openvino(finished, say) if device.type == "cpu" else None) or _by_torch(finished.model, device)

    @lru_cache(maxsize=1)
    def drawn(view: int) -> View:
        return View.draw(len(images), (seed, view), recipe.augment)

    def ask(view: int, indices: np.ndarray) -> Tensor:
        x = drawn(view).show(images, indices, finished.input_size, device)
        return compute(normalise(x, finished.norm.mean, finished.norm.std))

    return ask


def _by_torch(model: nn.Module, device: torch.device) -> Compute:
    model = model.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def compute(x: Tensor) -> Tensor:
        with autocast(device, bf16_pays(large=True)):
            logits: Tensor = model(x)
        return logits.float()

    return compute


def _by_openvino(finished: Finished, say: Callable[[str], None]) -> Compute | None:
    """In bf16 where the CPU multiplies in it itself. None, and said so, where OpenVINO cannot take the network."""
    import openvino as ov  # slow to load, and not needed where a GPU answers

    size = finished.input_size
    example = torch.zeros(1, 3, size, size)
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if this_host().has_bf16 else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    try:
        graph = ov.convert_model(finished.model.eval(), example_input=example, input=[-1, 3, size, size])
        compiled = ov.Core().compile_model(graph, "CPU", settings)
    except Exception as error:  # each of its frontends has its own, and any of timm's networks may come
        reason, _, _ = str(error).partition("\n")
        say(f"OpenVINO cannot take this network, torch answers instead, more slowly: {reason}")
        return None
    return lambda x: torch.from_numpy(compiled(x.contiguous().numpy())[0])
