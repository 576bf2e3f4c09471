"""One training loop, for candidates, teachers and students. timm's optimizers, schedules and EMA; best epoch kept.

Each epoch draws from (seed, epoch) alone, so a run that was killed goes on from its last epoch as if it had not been.
"""

import math
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from export.parity import scores
from latency.lock import timing_lock
from models import torchvision_ops
from pipeline.config import Augment
from pipeline.errors import OutOfMemory
from pipeline.show.live import Tick
from pipeline.training.inputs import Arrays, autocast, keep_freed_memory, normalise, pick_device, predict
from pipeline.training.losses import Balance, CrossEntropy, epoch_order
from pipeline.training.probe import fit_classifier, keep_statistics
from pipeline.training.progress import Checkpoints, Epoch, State, begun, on_cpu
from pipeline.training.views import View

torchvision_ops.ensure()

from timm.optim import create_optimizer_v2  # noqa: E402
from timm.scheduler import create_scheduler_v2  # noqa: E402
from timm.utils import ModelEmaV3  # noqa: E402

Loss = Callable[[Tensor, Tensor, np.ndarray, int], Tensor]
"""(logits, targets (n, classes), indices of the images, view) -> scalar"""


@dataclass(frozen=True)
class Recipe:
    """How to train.

    optimizer: a name of timm's. pretrained: the network has learnt before, and its batch norms keep their statistics;
    fit_classifier: its last layer is fitted before all else; see `pipeline.training.probe`. reduced: in bf16, see
    `pipeline.training.inputs`. patience: epochs without a better F1 before it stops, None for never. views: how many
    sets of crops are drawn; epoch e uses set e modulo views; None: a new set each epoch.
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
    pretrained: bool = False
    fit_classifier: bool = False
    ema: bool = False
    reduced: bool = False
    patience: int | None = None
    views: int | None = None


@dataclass(frozen=True)
class Fit:
    """The best epoch's weights, on the CPU, and the history. diverged: where the loss was no number any more, and the
    training ended."""

    state: State
    best: Epoch
    history: tuple[Epoch, ...]
    diverged: str | None = None

    def record(self) -> dict[str, Any]:
        """As JSON, which has no word for what is no number."""
        best, *history = (
            {k: v if math.isfinite(v) else None for k, v in asdict(e).items()} for e in (self.best, *self.history)
        )
        return {"best": best, "history": history, "diverged": self.diverged}


def fit(
    model: nn.Module,
    arrays: Arrays,
    recipe: Recipe,
    seed: int,
    classes: int,
    loss: Loss | None = None,
    checkpoints: Path | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    on_step: Tick = lambda done, total: None,
    device: torch.device | None = None,
) -> Fit:
    """Train; `checkpoints` is a folder from which a killed run goes on. The default loss is class-weighted CE. On a CPU
    the same seed gives the same weights; on a GPU kernels add up in an order of their own."""
    device = device or pick_device()
    keep_freed_memory()
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    cross_entropy = CrossEntropy(arrays.train_labels, classes, recipe.balance, recipe.smoothing).to(device)
    loss = loss or (lambda logits, targets, indices, view: cross_entropy(logits, targets))
    if recipe.fit_classifier and not (checkpoints and begun(checkpoints)):
        with timing_lock(shared=True), autocast(device, recipe.reduced):
            fit_classifier(model, arrays, recipe.balance != "none", recipe.augment.turns)
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
    saved = Checkpoints(checkpoints, model, ema, optimizer) if checkpoints else None
    history, best, best_state = saved.restore() if saved else ([], None, {})
    scheduler.step_update(len(history) * steps)
    diverged = None
    for epoch in range(len(history), recipe.epochs):
        if best and recipe.patience is not None and epoch - 1 - best.epoch >= recipe.patience:
            break
        torch.manual_seed(seed * 1_000_003 + epoch)
        view = epoch % recipe.views if recipe.views else epoch
        seen = View.draw(len(arrays.train), (seed, view), recipe.augment)
        order = epoch_order(arrays.train_labels, recipe.balance, np.random.default_rng([seed, epoch, 7]))
        total = 0.0

        def learn(indices: np.ndarray, seen: View = seen, view: int = view) -> float:
            x = seen.show(arrays.train, indices, arrays.input_size, device)
            targets = seen.targets(arrays.train_labels, indices, classes).to(device)
            with autocast(device, recipe.reduced):
                logits = model(normalise(x, arrays.mean, arrays.std)).float()
            value = loss(logits, targets, indices, view)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            return value.item()

        model.train()
        if recipe.pretrained:
            keep_statistics(model)
        with timing_lock(shared=True):
            began = time.perf_counter()
            for step in range(steps):
                indices = np.sort(order[step * recipe.batch : (step + 1) * recipe.batch])
                try:
                    total += learn(indices)
                except (MemoryError, RuntimeError) as error:
                    if not _out_of_memory(error):
                        raise
                    raise _what_fits(error, learn, indices) from error
                if not math.isfinite(total):
                    diverged = f"the loss is no number any more at step {step + 1} of epoch {epoch + 1}"
                    break
                updates = epoch * steps + step + 1
                scheduler.step_update(updates)
                on_step(updates * recipe.batch, recipe.epochs * steps * recipe.batch)
                if ema:
                    ema.update(model, step=updates)
            took = time.perf_counter() - began
            judged = ema.module if ema else model
            found = predict(judged, arrays.val, arrays) if diverged is None else np.empty(0)
        if not np.isfinite(found).all():
            diverged = f"the outputs are no numbers any more after epoch {epoch + 1}"
        if diverged:
            history.append(Epoch(epoch, float("nan"), float("nan"), 0.0, 0.0, 0.0))
            break  # the best epoch before it stands
        f1, accuracy = scores(found, arrays.val_labels)
        val_loss = functional.cross_entropy(torch.from_numpy(found), torch.from_numpy(arrays.val_labels)).item()
        history.append(Epoch(epoch, total / steps, val_loss, f1, accuracy, steps * recipe.batch / took))
        better = best is None or f1 > best.f1_macro
        if better:
            best, best_state = history[-1], on_cpu(judged.state_dict())
        if saved:
            saved.save(history, best, best_state if better else None)
        on_epoch(history[-1])
    return Fit(best_state or on_cpu(model.state_dict()), best or history[-1], tuple(history), diverged)


def _what_fits(error: Exception, learn: Callable[[np.ndarray], float], indices: np.ndarray) -> Exception:
    """For memory that ran out: an OutOfMemory that names the batch that fits."""
    traceback.clear_frames(error.__traceback__)  # or the batch that did not fit would still lie there
    fits = len(indices) // 2
    while fits:
        try:
            learn(indices[:fits])
            break
        except (MemoryError, RuntimeError) as again:
            if not _out_of_memory(again):
                return again
            traceback.clear_frames(again.__traceback__)
        fits //= 2
    told = f"one of {fits} fits: lower the batch to that" if fits else "not even a single image fits: lower its size"
    return OutOfMemory(f"out of memory in training with a batch of {len(indices)} images; {told}")


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
