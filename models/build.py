"""ModelSpec -> torch module, and its profile: shapes, parameters and MACs from torch itself on the meta device."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.blocks import BUILDERS
from models.language import SpecError
from models.spec import ModelSpec, Unit


class Student(nn.Sequential):
    """The units of a spec in order; takes (n, input_channel, size, size), gives logits (n, classes)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten(1)


@dataclass(frozen=True)
class UnitProfile:
    """shape: (channels, height, width) or (features,) that leave the unit."""

    unit: Unit
    shape: tuple[int, ...]
    params: int
    macs: int


@dataclass(frozen=True)
class Profile:
    units: tuple[UnitProfile, ...]
    input_size: int
    hash: str

    @property
    def params(self) -> int:
        return sum(u.params for u in self.units)

    @property
    def macs(self) -> int:
        return sum(u.macs for u in self.units)

    def as_dict(self) -> dict[str, Any]:
        return {
            "layers": [
                {
                    "layer": u.unit.layer,
                    "module": u.unit.module,
                    "in_channels": u.unit.in_channels,
                    "args": u.unit.args,
                    "shape": list(u.shape),
                    "params": u.params,
                    "macs": u.macs,
                }
                for u in self.units
            ],
            "params": self.params,
            "macs": self.macs,
            "input_size": self.input_size,
            "hash": self.hash,
        }


def build(spec: ModelSpec, seed: int | None = None) -> Student:
    """The module with fresh weights, drawn from `seed` where one is given. Raises SpecError naming the layer."""
    if seed is not None:
        torch.manual_seed(seed)
    model = _assemble(spec)
    if any(u.in_channels is None for u in spec.units):
        with torch.no_grad():  # gives LazyLinear its input features
            model.eval()(torch.zeros(1, spec.input_channel, spec.input_size, spec.input_size))
    return model.train()


def profile(spec: ModelSpec) -> Profile:
    """Shapes, parameters and MACs at the spec's input size, without computing anything. Raises SpecError."""
    with torch.device("meta"):
        model = _assemble(spec).eval()
        x = torch.empty(1, spec.input_channel, spec.input_size, spec.input_size)
    rows = []
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for unit, module in zip(spec.units, model, strict=True):
            before, counted = tuple(x.shape[1:]), counter.get_total_flops()
            try:
                x = module(x)
            except RuntimeError as error:
                raise SpecError(
                    f"{spec.source}: layer {unit.layer} ({unit.module}): does not fit an input of shape {before}: "
                    f"{str(error).splitlines()[0]}; use a larger INPUT_SIZE or fewer strides"
                ) from error
            params = sum(p.numel() for p in module.parameters())
            macs = (counter.get_total_flops() - counted) // 2
            rows.append(UnitProfile(unit, tuple(x.shape[1:]), params, macs))
    if x.flatten(1).shape[1] != spec.classes:
        raise SpecError(
            f"{spec.source}: layer {len(spec.backbone) - 1} ({spec.backbone[-1].module}): the last output is of shape "
            f"{tuple(x.shape[1:])}, expected {spec.classes} logits; put GlobalAvgPool before the classifier"
        )
    return Profile(tuple(rows), spec.input_size, spec.hash)


def _assemble(spec: ModelSpec) -> Student:
    modules = []
    for unit in spec.units:
        try:
            modules.append(BUILDERS[unit.module](unit.in_channels, unit.out_channels, unit.args))
        except (ValueError, RuntimeError) as error:
            raise SpecError(f"{spec.source}: layer {unit.layer} ({unit.module}): {error}") from error
    return Student(*modules)
