"""One training loop, for candidates, teachers and students. timm's optimizers, schedules and EMA; best epoch kept.

Each epoch draws from (seed, epoch) alone, so a run that was killed goes on from its last epoch as if it had not been.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from export.parity import scores
from latency.lock import timing_lock
from models import torchvision_ops
from pipeline.files import write_json
from pipeline.inputs import Arrays, autocast, normalise, pick_device, predict
from pipeline.losses import Balance, CrossEntropy, epoch_order
from pipeline.probe import make_ready
from pipeline.views import Augment, View

torchvision_ops.ensure()

from timm.optim import create_optimizer_v2  # noqa: E402
from timm.scheduler import create_scheduler_v2  # noqa: E402
from timm.utils import ModelEmaV3  # noqa: E402

_STATE = "state.json"
State = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor, np.ndarray, int], Tensor]
"""(logits, targets (n, classes), indices of the images, view) -> scalar"""


@dataclass(frozen=True)
class Recipe:
    """How to train.

    optimizer: a name of timm's. probe: begin with a classifier fitted to the features, for a network that has learnt
    before. reduced: in bf16 where the device has it. patience: epochs without a better F1 before it stops, None for
    never. views: how many sets of crops are drawn; epoch e uses set e modulo views; None: a new set each epoch.
    """

    epochs: int
    optimizer: str
    learning_rate: float
    batch: int
    augment: Augment = field(default_factory=Augment)
    weight_decay: float = 0.02
    warmup_epochs: int = 1
    smoothing: float = 0.1
    balance: Balance = "inverse"
    probe: bool = False
    ema: bool = False
    reduced: bool = False
    patience: int | None = None
    views: int | None = None


@dataclass(frozen=True)
class Epoch:
    epoch: int
    loss: float
    val_loss: float
    f1_macro: float
    accuracy: float
    images_per_s: float


@dataclass(frozen=True)
class Fit:
    """The best epoch's weights, on the CPU, and the history."""

    state: State
    best: Epoch
    history: tuple[Epoch, ...]

    def record(self) -> dict[str, Any]:
        return {"best": asdict(self.best), "history": [asdict(e) for e in self.history]}


def fit(
    model: nn.Module,
    arrays: Arrays,
    recipe: Recipe,
    seed: int,
    classes: int,
    loss: Loss | None = None,
    checkpoints: Path | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Fit:
    """Train; `checkpoints` is a folder from which a killed run goes on. The default loss is class-weighted CE."""
    device = pick_device()
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    cross_entropy = CrossEntropy(arrays.train_labels, classes, recipe.balance, recipe.smoothing).to(device)
    loss = loss or (lambda logits, targets, indices, view: cross_entropy(logits, targets))
    saved_before = checkpoints is not None and (checkpoints / _STATE).is_file()
    if recipe.probe and not saved_before:
        make_ready(model, arrays, recipe.balance in ("inverse", "effective", "sampling"))
    optimizer = create_optimizer_v2(
        model,
        opt=recipe.optimizer,
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
    )
    steps = max(1, len(arrays.train) // recipe.batch)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=recipe.epochs,
        warmup_epochs=min(recipe.warmup_epochs, recipe.epochs - 1),
        warmup_lr=recipe.learning_rate / 20,
        min_lr=recipe.learning_rate / 100,
        step_on_epochs=False,
        updates_per_epoch=steps,
        warmup_prefix=False,
    )
    ema = ModelEmaV3(model, decay=0.99, use_warmup=True) if recipe.ema else None
    saved = _Checkpoints(checkpoints, model, ema, optimizer) if checkpoints else None
    history, best, best_state = saved.restore() if saved else ([], None, {})
    scheduler.step_update(len(history) * steps)
    for epoch in range(len(history), recipe.epochs):
        if best and recipe.patience is not None and epoch - 1 - best.epoch >= recipe.patience:
            break
        torch.manual_seed(seed * 1_000_003 + epoch)
        view = epoch % recipe.views if recipe.views else epoch
        seen = View.draw(len(arrays.train), (seed, view), recipe.augment)
        order = epoch_order(arrays.train_labels, recipe.balance, np.random.default_rng([seed, epoch, 7]))
        began, total = time.perf_counter(), 0.0
        model.train()
        with timing_lock(shared=True):
            for step in range(steps):
                indices = np.sort(order[step * recipe.batch : (step + 1) * recipe.batch])
                x = seen.show(arrays.train, indices, arrays.input_size, device)
                targets = seen.targets(arrays.train_labels, indices, classes).to(device)
                with autocast(device, recipe.reduced):
                    logits = model(normalise(x, arrays.mean, arrays.std)).float()
                value = loss(logits, targets, indices, view)
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                updates = epoch * steps + step + 1
                scheduler.step_update(updates)
                if ema:
                    ema.update(model, step=updates)
                total += value.item()
                if not math.isfinite(total):
                    break
            took = time.perf_counter() - began
            judged = ema.module if ema else model
            found = predict(judged, arrays.val, arrays) if math.isfinite(total) else None
        if found is None or not np.isfinite(found).all():
            history.append(Epoch(epoch, float("nan"), float("nan"), 0.0, 0.0, 0.0))
            break  # diverged: the best epoch before it stands
        f1, accuracy = scores(found, arrays.val_labels)
        val_loss = functional.cross_entropy(torch.from_numpy(found), torch.from_numpy(arrays.val_labels)).item()
        history.append(Epoch(epoch, total / steps, val_loss, f1, accuracy, steps * recipe.batch / took))
        better = best is None or f1 > best.f1_macro
        if better:
            best, best_state = history[-1], _cpu(judged.state_dict())
        if saved:
            saved.save(history, best, best_state if better else None)
        on_epoch(history[-1])
    return Fit(best_state or _cpu(model.state_dict()), best or history[-1], tuple(history))


def _cpu(state: State) -> State:
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in state.items()}


class _Checkpoints:
    """Last and best epoch in a folder; `state.json`, replaced last, names the files that belong together."""

    def __init__(self, folder: Path, model: nn.Module, ema: Any, optimizer: torch.optim.Optimizer) -> None:
        self._folder, self._model, self._ema, self._optimizer = folder, model, ema, optimizer
        self._state = folder / _STATE

    def save(self, history: list[Epoch], best: Epoch | None, best_state: State | None) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        last = self._folder / f"last-{len(history)}.safetensors"
        save_file(self._tensors(), last)
        if best_state is not None:
            assert best is not None
            save_file(best_state, self._folder / f"best-{best.epoch}.safetensors")
        record = {"history": [asdict(e) for e in history], "best": best and asdict(best)}
        write_json(self._state, record)
        keep = {last.name, f"best-{best.epoch}.safetensors" if best else ""}
        for file in self._folder.glob("*.safetensors"):
            if file.name not in keep:
                file.unlink()

    def restore(self) -> tuple[list[Epoch], Epoch | None, State]:
        if not self._state.is_file():
            return [], None, {}
        record = json.loads(self._state.read_text())
        history = [Epoch(**e) for e in record["history"]]
        best = Epoch(**record["best"])
        self._load(read_tensors(self._folder / f"last-{len(history)}.safetensors"))
        return history, best, read_tensors(self._folder / f"best-{best.epoch}.safetensors")

    def _tensors(self) -> State:
        tensors = {f"model.{k}": v for k, v in self._model.state_dict().items()}
        if self._ema:
            tensors |= {f"ema.{k}": v for k, v in self._ema.module.state_dict().items()}
        for i, values in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in values.items()}
        return _cpu(tensors)

    def _load(self, tensors: State) -> None:
        def part(prefix: str) -> State:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        self._model.load_state_dict(part("model."))
        if self._ema:
            self._ema.module.load_state_dict(part("ema."))
        optimizer = self._optimizer.state_dict()
        for key, value in part("optimizer.").items():
            i, name = key.split(".", 1)
            optimizer["state"].setdefault(int(i), {})[name] = value
        self._optimizer.load_state_dict(optimizer)


def read_tensors(path: Path) -> State:
    with safe_open(path, "pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  (safe_open is no mapping)
