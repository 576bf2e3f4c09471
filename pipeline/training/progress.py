"""How far a training has come: its epochs, and the folder from which a killed one goes on."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.files import keep, kept, read_record, write_record

State = dict[str, Tensor]
_STATE = "state.json"


@dataclass(frozen=True)
class Epoch:
    epoch: int
    loss: float
    val_loss: float
    f1_macro: float
    accuracy: float
    images_per_s: float


def on_cpu(state: State) -> State:
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in state.items()}


@dataclass(frozen=True)
class _Saved:
    history: list[Epoch]
    best: Epoch
    groups: list[dict[str, Any]]
    last_file: Path
    best_file: Path


def _saved(folder: Path) -> _Saved | None:
    """What `Checkpoints.save` wrote, if it is whole: else the training begins anew."""
    record = read_record(folder / _STATE)
    if record is None:
        return None
    history, best = [Epoch(**e) for e in record["history"]], Epoch(**record["best"])
    last_file, best_file = (kept(folder, s, ".safetensors") for s in (f"last-{len(history)}", f"best-{best.epoch}"))
    if last_file is None or best_file is None:
        return None
    return _Saved(history, best, record["groups"], last_file, best_file)


def begun(folder: Path) -> bool:
    """Whether there is something to go on from."""
    return _saved(folder) is not None


class Checkpoints:
    """Last and best epoch in a folder; `state.json`, replaced last, names the files that belong together."""

    def __init__(self, folder: Path, model: nn.Module, ema: Any, optimizer: torch.optim.Optimizer) -> None:
        self._folder, self._model, self._ema, self._optimizer = folder, model, ema, optimizer
        self._state = folder / _STATE

    def save(self, history: list[Epoch], best: Epoch | None, best_state: State | None) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        last = self._keep(self._tensors(), f"last-{len(history)}")
        if best_state is not None:
            assert best is not None
            self._keep(best_state, f"best-{best.epoch}")
        groups = [_plain(group) for group in self._optimizer.state_dict()["param_groups"]]
        record = {"history": [asdict(e) for e in history], "best": best and asdict(best), "groups": groups}
        write_record(self._state, record)
        for file in self._folder.glob("*.safetensors"):
            if file != last and not (best and file.name.startswith(f"best-{best.epoch}.")):
                file.unlink()

    def _keep(self, tensors: State, stem: str) -> Path:
        partial = self._folder / "partial.safetensors"
        save_file(tensors, partial)
        return keep(partial, self._folder, stem)

    def restore(self) -> tuple[list[Epoch], Epoch | None, State]:
        saved = _saved(self._folder)
        if saved is None:
            return [], None, {}
        self._load(read_tensors(saved.last_file), saved.groups)
        return saved.history, saved.best, read_tensors(saved.best_file)

    def _tensors(self) -> State:
        tensors = {f"model.{k}": v for k, v in self._model.state_dict().items()}
        if self._ema:
            tensors |= {f"ema.{k}": v for k, v in self._ema.module.state_dict().items()}
        for i, values in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in values.items()}
        return on_cpu(tensors)

    def _load(self, tensors: State, groups: list[dict[str, Any]]) -> None:
        def part(prefix: str) -> State:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        self._model.load_state_dict(part("model."))
        if self._ema:
            self._ema.module.load_state_dict(part("ema."))
        optimizer = self._optimizer.state_dict()
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        for key, value in part("optimizer.").items():
            i, name = key.split(".", 1)
            like = parameters[int(i)]
            # In the parameter's own layout, or a norm over it (lamb's) would add up in another order.
            kept = torch.empty_like(like, device="cpu").copy_(value) if value.shape == like.shape else value
            optimizer["state"].setdefault(int(i), {})[name] = kept
        for group, values in zip(optimizer["param_groups"], groups, strict=True):
            group.update(values)
        self._optimizer.load_state_dict(optimizer)


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    """Options of a group of parameters, among which some optimizers (lamb, adan) count their steps."""
    return {k: v.item() if isinstance(v, Tensor) else v for k, v in group.items() if k != "params"}


def read_tensors(path: Path) -> State:
    with safe_open(path, "pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  (safe_open is no mapping)
