"""ModelSpec -> torch module, and its profile: shapes, parameters and MACs from torch itself on the meta device."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
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
    shape: tuple[int, ...] = (spec.input_channel, spec.input_size, spec.input_size)
    rows = []
    for unit in spec.units:
        with _located(spec, unit):
            shape, params, macs = _unit(
                unit.module, unit.in_channels, unit.out_channels, tuple(unit.args.items()), shape
            )
        rows.append(UnitProfile(unit, shape, params, macs))
    if math.prod(shape) != spec.classes:
        raise SpecError(
            f"{spec.source}: layer {len(spec.backbone) - 1} ({spec.backbone[-1].module}): the last output is of shape "
            f"{shape}, expected {spec.classes} logits; put GlobalAvgPool before the classifier"
        )
    return Profile(tuple(rows), spec.input_size, spec.hash)


@lru_cache(maxsize=10_000)
def _unit(
    module: str,
    in_channels: int | None,
    out_channels: int | None,
    args: tuple[tuple[str, Any], ...],
    taken: tuple[int, ...],
) -> tuple[tuple[int, ...], int, int]:
    """(shape that leaves it, parameters, MACs) for an input of the shape taken. Kept, for the candidates of a search
    are made of the same units over and over, and torch takes a few ms to reckon one."""
    with torch.device("meta"):
        unit = BUILDERS[module](in_channels, out_channels, dict(args)).eval()
        x = torch.empty(1, *taken)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        try:
            x = unit(x)
        except RuntimeError as error:
            raise SpecError(
                f"does not fit an input of shape {taken}: {str(error).splitlines()[0]}; use a larger INPUT_SIZE or "
                "fewer strides"
            ) from error
    return tuple(x.shape[1:]), sum(p.numel() for p in unit.parameters()), counter.get_total_flops() // 2


@contextmanager
def _located(spec: ModelSpec, unit: Unit) -> Iterator[None]:
    """What cannot be built says where."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise SpecError(f"{spec.source}: layer {unit.layer} ({unit.module}): {error}") from error


def _assemble(spec: ModelSpec) -> Student:
    modules = []
    for unit in spec.units:
        with _located(spec, unit):
            modules.append(BUILDERS[unit.module](unit.in_channels, unit.out_channels, unit.args))
    return Student(*modules)
