"""What the runners share: the shape of an input, a random one, and a kernel's time."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from latency.errors import InputError

_MOST_ELEMENTS = 2**28
"""Maximum number of elements in an input, about 1,700 photos of 224 x 224 pixels."""


@dataclass(frozen=True)
class Kernel:
    """One operator, or several that the runtime fused, as it was executed. ms: mean of the runs."""

    name: str
    operator: str
    kind: str
    precision: str
    ms: float


def fixed_shape(path: object, name: str, shape: Sequence[Any], batch: int | None) -> tuple[int, ...]:
    """`shape` with its open first dimension set to `batch`; open dimensions are those that are no int, or negative.
    Raises InputError where there are none, where others are open, where the first is and no batch was given, where it
    is fixed at another, or where one is 0: an input without an element."""
    if not shape:
        raise InputError(f"{path}: the input {name!r} has no dimensions; fix its shape when exporting")
    given = f"{path}: the input {name!r} has the dynamic shape [{', '.join(map(str, shape))}]"
    is_open = [not isinstance(d, int) or d < 0 for d in shape]
    if 0 in shape:
        raise InputError(f"{path}: the input {name!r} has no elements, its shape is {list(shape)}; export it again")
    if any(is_open[1:]):
        raise InputError(f"{given}; fix it when exporting (only the first dimension, the batch, may be open)")
    if is_open[0]:
        if batch is None:
            raise InputError(f"{given}; say how many images go in at once (--batch 1), or fix it when exporting")
        return (batch, *shape[1:])
    if batch is not None and shape[0] != batch:
        raise InputError(f"{path}: the input {name!r} is fixed at {list(shape)}, not at a batch of {batch}")
    return tuple(shape)


def random_input(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An array of that shape; dtype: uint8 or float32. Raises InputError for one of more than a gigabyte."""
    if prod(shape) > _MOST_ELEMENTS:
        raise InputError(
            f"an input of the shape {list(shape)} has over {_MOST_ELEMENTS} elements; give a smaller batch"
        )
    rng = np.random.default_rng(0)
    if dtype == "uint8":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    return rng.standard_normal(shape, dtype=np.float32)
