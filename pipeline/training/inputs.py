"""Images on the device, as a network takes them: normalised, channels last."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from latency.host import this_host
from pipeline.errors import EnvironmentProblem

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
"""From glibc's malloc.h."""


@dataclass(frozen=True)
class Rows:
    """Some images of an array on disk that may be larger than memory, read when they are asked for."""

    images: "Images"
    chosen: np.ndarray

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return self.images[self.chosen[indices]]


Images = np.ndarray | Rows


@dataclass(frozen=True)
class Arrays:
    """train: uint8 (n, s, s, 3), larger than the input; val: at the input size, by the shipped Preprocess."""

    train: Images
    train_labels: np.ndarray
    val: np.ndarray
    val_labels: np.ndarray
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def input_size(self) -> int:
        return int(self.val.shape[1])


def pick_device() -> torch.device:
    """As --device says. Raises EnvironmentProblem where that is not there."""
    asked, able = os.environ.get("EDGEBUILD_DEVICE", "auto"), torch.cuda.is_available()
    if asked == "cuda" and not able:
        raise EnvironmentProblem(
            f"--device cuda: torch {torch.__version__} sees no GPU; take --device auto, or install a torch for CUDA"
        )
    return torch.device("cuda" if able and asked != "cpu" else "cpu")


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """To a GPU by way of pinned memory, which it reads itself."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@cache
def keep_freed_memory() -> None:
    """glibc hands every large block back to the system once it is freed, and each step of a training asks for the same
    blocks again, page by page: on a CPU a fifth of its time. From here on this process keeps them for itself."""
    if sys.platform != "linux" or pick_device().type != "cpu":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**28)):
            mallopt(option, value)


def bf16_pays(large: bool) -> bool:
    """Whether a CPU trains faster in bf16. large: a network of a teacher's size; students gain by AMX only."""
    return this_host().has_bf16 if large else this_host().has_any(("amx_bf16",))


@contextmanager
def autocast(device: torch.device, reduced: bool) -> Iterator[None]:
    """To bf16: on a GPU always, on a CPU if asked."""
    on_cpu = device.type == "cpu"
    groups = _GroupsInF32() if on_cpu and reduced else nullcontext()
    with torch.autocast(device.type, torch.bfloat16, enabled=reduced or not on_cpu), groups:
        yield


class _GroupsInF32(TorchFunctionMode):
    """Convolutions in groups stay in f32: oneDNN has no fast gradient in bf16 for them, and depthwise ones took two
    thirds of a step."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.conv2d or (args[6] if len(args) > 6 else kwargs.get("groups", 1)) == 1:
            return func(*args, **kwargs)
        x, *others = args
        with torch.autocast("cpu", enabled=False):
            return func(x.float(), *others, **kwargs).to(torch.bfloat16)


def normalise(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """x: (n, 3, h, w), 0..255"""
    shape = (1, 3, 1, 1)
    return (x - torch.tensor(mean, device=x.device).view(shape)) / torch.tensor(std, device=x.device).view(shape)


@torch.no_grad()
def predict(model: nn.Module, images: np.ndarray, arrays: Arrays, batch: int = 64) -> np.ndarray:
    """float32 logits (n, classes) for uint8 images (n, size, size, 3) at the input size."""
    model.eval()
    device = next(model.parameters()).device
    outputs = []
    for start in range(0, len(images), batch):
        x = torch.from_numpy(images[start : start + batch].copy()).to(device)
        x = x.permute(0, 3, 1, 2).float().contiguous(memory_format=torch.channels_last)
        outputs.append(model(normalise(x, arrays.mean, arrays.std)).float().cpu())
    return torch.cat(outputs).numpy()
