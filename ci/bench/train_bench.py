"""How fast students train, beside a plain loop and beside the bare step.

`python ci/bench/train_bench.py [--images FOLDER] [--models NAME ...] [--rounds N]`. Three arms in turn, each the same
network, batch and optimizer for the same number of steps: plain (torchvision's ImageFolder and transforms, a DataLoader
with a worker a core, NCHW), ours (`pipeline.training.loop.fit` as for a student: decoded images kept, crops in batches,
channels last, EMA, bf16 where that pays), and bare (ours with each batch already in memory). Without FOLDER: drawn
JPEGs of 512 x 384. Table on screen, JSON beside.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from PIL import Image
from torch import nn

from export.preprocess import Preprocess
from latency.host import this_host
from models import torchvision_ops
from models.build import build
from models.spec import ModelSpec
from pipeline.data.images import decoded, train_size
from pipeline.data.index import scan
from pipeline.training.checkpoint import pixels
from pipeline.training.inputs import Arrays, bf16_pays, pick_device
from pipeline.training.loop import Recipe, fit
from pipeline.training.views import View

torchvision_ops.ensure()

from torchvision import transforms  # noqa: E402
from torchvision.datasets import ImageFolder  # noqa: E402

BATCH, STEPS, VAL = 32, 30, 6
_DRAWN = "abcdef"
"""Classes of the drawn JPEGs."""
_STUDENTS = [Path(__file__).with_name("students") / f"{name}.yaml" for name in ("scratch", "pretrained")]
_RECIPE = Recipe(1, "adamw", 1e-3, BATCH, ema=True, reduced=bf16_pays(large=False))
"""As a student is trained."""


def draw(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", BATCH * STEPS // len(_DRAWN)), ("val", 4)):
        for kind in _DRAWN:
            (folder / split / kind).mkdir(parents=True)
            for i in range(count):
                small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
                photo = small.resize((512, 384), Image.Resampling.BICUBIC)
                photo.save(folder / split / kind / f"{i:03}.jpg", quality=92)


def plain(spec: ModelSpec, folder: Path) -> float:
    """Images a second of the loop that every tutorial shows, from its second batch on."""
    steps = [
        transforms.RandomResizedCrop(spec.input_size, (0.35, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.5] * 3),
    ]
    data = ImageFolder(str(folder / "train"), transforms.Compose(steps))
    loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True, drop_last=True, num_workers=os.cpu_count() or 1)
    device = pick_device()
    model = build(spec, seed=0).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    loss, done, began = nn.CrossEntropyLoss(), 0, 0.0
    for images, labels in loader:
        value = loss(model(images.to(device)), labels.to(device))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        value.item()
        began = began or time.perf_counter()
        done += 1
        if done > STEPS:
            break
    return (done - 1) * BATCH / (time.perf_counter() - began)


def decode(spec: ModelSpec, folder: Path, cache: Path) -> Arrays:
    index, size = scan(folder, 0), spec.input_size
    chosen = np.random.default_rng(0).permutation(len(index.labels("train")))[: BATCH * STEPS]
    train = decoded(index, "train", Preprocess(train_size(size)), cache)[np.sort(chosen)]
    labels = np.array(index.labels("train"))[np.sort(chosen)]
    val = decoded(index, "val", Preprocess(size), cache)[:VAL]
    norm = pixels(spec)
    return Arrays(train, labels, val, np.array(index.labels("val"))[:VAL], norm.mean, norm.std)


def ours(spec: ModelSpec, arrays: Arrays) -> float:
    return fit(build(spec, seed=0), arrays, _RECIPE, 0, spec.classes).best.images_per_s


def bare(spec: ModelSpec, arrays: Arrays) -> float:
    shape = (BATCH, 3, spec.input_size, spec.input_size)
    ready = torch.rand(shape, device=pick_device()).contiguous(memory_format=torch.channels_last) * 255
    with patch.object(View, "show", lambda *_: ready):
        return ours(spec, arrays)


def compared(model: str, folder: Path, cache: Path, rounds: int) -> dict[str, Any]:
    """images/s of each arm in each round, and the ratios of ours to the others."""
    spec = ModelSpec.load(model).with_classes(sum(d.is_dir() for d in (folder / "train").iterdir()))
    arrays = decode(spec, folder, cache)
    arms: dict[str, Any] = {
        "plain": lambda: plain(spec, folder),
        "ours": lambda: ours(spec, arrays),
        "bare": lambda: bare(spec, arrays),
    }
    arms["ours"]()  # the kernels of this network are chosen once in a process
    found: dict[str, list[float]] = {name: [] for name in arms}
    for i in range(rounds):
        for name in list(arms)[:: 1 if i % 2 else -1]:
            found[name].append(arms[name]())
    where = f"{torch.get_num_threads()} threads, {this_host().cpu}"
    print(f"{Path(model).stem}, {spec.input_size} px, batch {BATCH}, {where}")
    for name, values in found.items():
        print(f"{name:6} {np.median(values):6.0f} images/s, {min(values):.0f} to {max(values):.0f}")
    ratios = {}
    for name in ("plain", "bare"):
        ratio = np.array(found["ours"]) / np.array(found[name])
        print(f"ours / {name}: {np.median(ratio):.2f}, {ratio.min():.2f} to {ratio.max():.2f} over {rounds} rounds")
        ratios[name] = ratio.tolist()
    return {"images_per_s": found, "ours_over": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--models", nargs="+", default=["cpu_small", *map(str, _STUDENTS)])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.images or Path(scratch) / "photos"
        if args.images is None:
            draw(folder)
        found = {Path(m).stem: compared(m, folder, Path(scratch), args.rounds) for m in args.models}
    record = {"models": found, "host": this_host().as_dict()}
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
