"""What training sees of the images: random crops, flips, colours and mixtures, drawn once for a whole view.

A view is all that chance decides of one pass over the images. It is drawn from a seed, and it can be shown at any size,
so that teacher and student see the same crops and mixtures, each at its own input size, even hours apart.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models import torchvision_ops
from pipeline.config import Augment
from pipeline.training.inputs import Images, to_device


@dataclass(frozen=True)
class View:
    """For each of n images. boxes: float32 (n, 4), centre x, centre y, half width, half height (-1..1). symmetry: int64
    (n,), of the square: mirrored (1), upside down (2), its axes exchanged (4), or the sum of some.

    partner: int64 (n,), the image it is mixed with. share: float32 (n,), its own part, 1 where it is not mixed. holes:
    float32 (n, 4), left, top, right, bottom (0..1) of what is cut out for the partner (CutMix); empty: blended (mixup).
    """

    augment: Augment
    boxes: np.ndarray
    symmetry: np.ndarray
    partner: np.ndarray
    share: np.ndarray
    holes: np.ndarray
    seed: int

    @classmethod
    def draw(cls, count: int, seed: Sequence[int], augment: Augment) -> "View":
        """Inception-style crops: area from `least_area` to 1, aspect ratio from 3/4 to 4/3, flipped half the time."""
        rng = np.random.default_rng(list(seed))
        area = rng.uniform(augment.least_area, 1, count)
        aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), count))
        width, height = np.minimum(1, np.sqrt(area * aspect)), np.minimum(1, np.sqrt(area / aspect))
        x, y = rng.uniform(-1, 1, count) * (1 - width), rng.uniform(-1, 1, count) * (1 - height)
        symmetry = 1 - rng.integers(2, size=count)
        partner, share, holes = _mixtures(rng, count, augment)
        boxes = np.stack([x, y, width, height], 1).astype(np.float32)
        seed_of_colours = int(rng.integers(2**31))
        if augment.turns:
            symmetry += 2 * rng.integers(4, size=count)
        return cls(augment, boxes, symmetry, partner, share, holes, seed_of_colours)

    @classmethod
    def whole(cls, count: int, symmetry: int) -> "View":
        """Each image as it is (0), or in one of its symmetries."""
        boxes = np.tile(np.array([0, 0, 1, 1], np.float32), (count, 1))
        turned, nothing = np.full(count, symmetry), np.zeros((count, 4), np.float32)
        return cls(Augment(), boxes, turned, np.arange(count), np.ones(count, np.float32), nothing, 0)

    def show(self, images: Images, indices: np.ndarray, size: int, device: torch.device) -> Tensor:
        """float32 (len(indices), 3, size, size), 0..255, channels_last, of uint8 images (n, h, w, 3)."""
        x = self._crops(images, indices, size, device)
        mixed = np.flatnonzero(self.share[indices] < 1)
        if not len(mixed):
            return x
        which = indices[mixed]
        other = self._crops(images, self.partner[which], size, device)
        own = torch.from_numpy(self.share[which]).to(device).view(-1, 1, 1, 1)
        holes = torch.from_numpy(self.holes[which]).to(device).view(-1, 4, 1, 1)
        left, top, right, bottom = holes.unbind(1)
        at = (torch.arange(size, device=device) + 0.5) / size
        inside = (at.view(1, -1, 1) >= top) & (at.view(1, -1, 1) < bottom) & (at >= left) & (at < right)
        cut = (right > left).unsqueeze(1)
        weight = torch.where(cut, (~inside).unsqueeze(1).float(), own)
        at_mixed = torch.from_numpy(mixed).to(device)
        x[at_mixed] = torch.lerp(other, x[at_mixed], weight)
        return x

    def targets(self, labels: np.ndarray, indices: np.ndarray, classes: int) -> Tensor:
        """float32 (len(indices), classes): the share of each class in what is shown."""
        own, other = (
            functional.one_hot(torch.from_numpy(labels[i]), classes).float() for i in (indices, self.partner[indices])
        )
        return torch.lerp(other, own, torch.from_numpy(self.share[indices]).view(-1, 1))

    def _crops(self, images: Images, indices: np.ndarray, size: int, device: torch.device) -> Tensor:
        chosen = images[indices]
        if self.augment.n_select:
            chosen = _rand_augment(chosen, self.augment.n_select, [self.seed + int(i) for i in indices])
        x, boxes, symmetry = (to_device(a, device) for a in (chosen, self.boxes[indices], self.symmetry[indices]))
        return crop(x, boxes, symmetry, size)


def _mixtures(rng: np.random.Generator, count: int, augment: Augment) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Partners, shares and holes; Zhang et al. 2018 (mixup), Yun et al. 2019 (CutMix)."""
    partner, holes = rng.permutation(count), np.zeros((count, 4))
    share = np.ones(count)
    cuts = rng.random(count) < (0.5 if augment.mixup else 1.0) if augment.cutmix else np.zeros(count, bool)
    if augment.mixup:
        share = np.where(cuts, share, rng.beta(augment.mixup, augment.mixup, count))
    if augment.cutmix:
        side = np.sqrt(1 - rng.beta(augment.cutmix, augment.cutmix, count)) / 2
        x, y = rng.random(count), rng.random(count)
        found = np.clip(np.stack([x - side, y - side, x + side, y + side], 1), 0, 1)
        holes[cuts] = found[cuts]
        share = np.where(cuts, 1 - (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1]), share)
    return partner, share.astype(np.float32), holes.astype(np.float32)


def crop(images: Tensor, boxes: Tensor, symmetry: Tensor, size: int) -> Tensor:
    """uint8 (n, h, w, 3), boxes (n, 4), symmetry (n,) -> float32 (n, 3, size, size), 0..255, channels_last."""
    x, y, width, height = (part.view(-1, 1) for part in boxes.unbind(1))
    mirrored, upside_down, turned = (symmetry & bit > 0 for bit in (1, 2, 4))
    centres = (torch.arange(size, device=boxes.device) + 0.5) * 2 / size - 1
    across = x + width * (1 - 2 * mirrored.view(-1, 1).float()) * centres
    down = y + height * (1 - 2 * upside_down.view(-1, 1).float()) * centres
    # By hand: torch's affine_grid takes longer than the sampling itself.
    grid = torch.empty(len(boxes), size, size, 2, device=boxes.device)
    grid[..., 0], grid[..., 1] = across[:, None, :], down[:, :, None]
    grid[turned, ..., 0], grid[turned, ..., 1] = across[turned][:, :, None], down[turned][:, None, :]
    pixels = images.permute(0, 3, 1, 2).contiguous().float()
    return functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False).contiguous(
        memory_format=torch.channels_last
    )


def _rand_augment(images: np.ndarray, n_select: int, seeds: Sequence[int]) -> np.ndarray:
    """timm's RandAugment with `n_select` operations on each image, drawn from its own seed."""
    torchvision_ops.ensure()
    from PIL import Image
    from timm.data.auto_augment import rand_augment_transform

    transform: Any = rand_augment_transform(f"rand-m7-mstd0.5-n{n_select}-inc1", {})

    def augmented(image: np.ndarray, seed: int) -> np.ndarray:
        random.seed(seed)  # timm draws from the modules' global generators
        np.random.seed(seed % 2**32)
        return np.asarray(transform(Image.fromarray(image)))

    return np.stack([augmented(image, seed) for image, seed in zip(images, seeds, strict=True)])
