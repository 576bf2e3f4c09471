"""The words of the model language: blocks with their arguments, activations, and the rules for channels and repeats.

No torch in here: a wrong specification is refused before torch is loaded. `models/blocks.py` holds a torch builder
for each name in BLOCKS; a test holds the two in step.
"""

import difflib
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

ACTIVATIONS = ("ReLU", "ReLU6", "LeakyReLU", "Hardswish", "Hardsigmoid", "Sigmoid", "SiLU", "Swish", "GELU")
"""Names users write; null means none. Swish is SiLU under its older name."""


class SpecError(ValueError):
    """A model or search space that cannot be built; the text says where, what was expected and what to write."""


@dataclass(frozen=True)
class Arg:
    """One positional argument of a block. `kind` is a key of KINDS; an argument without a default is required."""

    name: str
    kind: str
    default: Any = ...


@dataclass(frozen=True)
class Block:
    """A block: its arguments, and how repeat, channels and stride behave.

    scaled: the `out` argument follows width_multiple.
    stride_on: which unit of a repeat carries the stride: "first", "last" or "every".
    out: how the number of output channels follows: "arg" (the `out` argument), "same" (as the input),
        "fire" (expand1x1 + expand3x3), "flat" (channels x height x width) or "timm" (as the network has them).
    """

    args: tuple[Arg, ...]
    scaled: bool = True
    stride_on: str = "every"
    out: str = "arg"


_OUT = Arg("out", "positive")
_K = Arg("kernel", "positive")
_STRIDE = Arg("stride", "positive", 1)
_PAD = Arg("pad", "pad", None)
_RELU = Arg("activation", "activation", "ReLU")
_CONV = (_OUT, _K, _STRIDE, _PAD, Arg("groups", "positive", 1), _RELU)
_POOL = (_K, Arg("stride", "positive_or_null", None), Arg("pad", "non_negative", 0))

BLOCKS: dict[str, Block] = {
    "Conv": Block(_CONV, stride_on="last"),
    "DWConv": Block((_OUT, _K, _STRIDE, _PAD, _RELU), stride_on="last"),
    "FixedConv": Block(_CONV, scaled=False, stride_on="last"),
    "InvertedResidualv2": Block((_OUT, Arg("expansion", "ratio"), Arg("stride", "positive")), stride_on="first"),
    "InvertedResidualv3": Block(
        (_K, Arg("expansion", "ratio"), _OUT, Arg("SE", "flag"), Arg("HS", "flag"), Arg("stride", "positive")),
        stride_on="first",
    ),
    "MBConv": Block((Arg("expansion", "ratio"), _OUT, Arg("stride", "positive"), _K), stride_on="first"),
    "Bottleneck": Block(
        (
            _OUT,
            Arg("shortcut", "flag", True),
            Arg("groups", "positive", 1),
            Arg("expansion", "ratio", 0.5),
            Arg("activation", "activation", "ReLU"),
        )
    ),
    "Fire": Block(
        (Arg("squeeze", "positive"), Arg("expand1x1", "positive"), Arg("expand3x3", "positive")),
        scaled=False,
        out="fire",
    ),
    "ShuffleNetV2": Block((_OUT, Arg("stride", "positive")), stride_on="first"),
    "MaxPool": Block(_POOL, scaled=False, out="same"),
    "AvgPool": Block(_POOL, scaled=False, out="same"),
    "GlobalAvgPool": Block((), scaled=False, out="same"),
    "Flatten": Block((), scaled=False, out="flat"),
    "Linear": Block((_OUT, Arg("activation", "activation", None)), scaled=False),
    # Blocks of newer networks that are fast on CPUs, built by timm.
    "UniversalInvertedResidual": Block(
        (
            _OUT,
            Arg("start_kernel", "non_negative"),
            Arg("mid_kernel", "non_negative"),
            Arg("expansion", "ratio"),
            Arg("stride", "positive"),
            _RELU,
        ),
        stride_on="first",
    ),
    "LCBlock": Block(
        (_OUT, _K, Arg("stride", "positive"), Arg("SE", "flag", False), Arg("activation", "activation", "Hardswish")),
        stride_on="first",
    ),
    "GhostBottleneck": Block(
        (_K, Arg("expansion", "ratio"), _OUT, Arg("SE", "flag"), Arg("stride", "positive")), stride_on="first"
    ),
    "RepVGG": Block((_OUT, Arg("stride", "positive"), _RELU), stride_on="first"),
    "MobileOne": Block((_OUT, _K, Arg("stride", "positive"), _RELU), stride_on="first"),
    # The first stages of a network of timm: only as the first layer; it may come with its weights.
    "Timm": Block((Arg("network", "name"), Arg("until", "name")), scaled=False, out="timm"),
}


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


KINDS: dict[str, tuple[Any, str]] = {
    "positive": (lambda v: _is_int(v) and 1 <= v <= 65536, "a whole number of at least 1"),
    "positive_or_null": (lambda v: v is None or (_is_int(v) and 1 <= v <= 65536), "a whole number >= 1, or null"),
    "non_negative": (lambda v: _is_int(v) and 0 <= v <= 65536, "a whole number of at least 0"),
    "pad": (
        lambda v: v is None or (_is_int(v) and 0 <= v <= 65536),
        "a whole number of at least 0, or null for k // 2",
    ),
    "ratio": (
        lambda v: isinstance(v, int | float) and not isinstance(v, bool) and 0 < v <= 64,
        "a number over 0, up to 64",
    ),
    "flag": (lambda v: isinstance(v, bool) or v in (0, 1), "0 or 1"),
    "name": (lambda v: isinstance(v, str) and bool(v), "a name"),
    "activation": (
        lambda v: v is None or v in ACTIVATIONS,
        f"one of {', '.join(ACTIVATIONS)}, or null for none",
    ),
}
"""kind -> (test, what is expected in words)"""


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' for the known name nearest to `name`, or an empty text where none is near."""
    known = list(known)
    folded = {k.lower(): k for k in known}
    found = difflib.get_close_matches(str(name).lower(), folded, n=1, cutoff=0.5)
    return f" (did you mean {folded[found[0]]!r}?)" if found else ""


def first_line(error: BaseException) -> str:
    """What somebody else's error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def scale_channels(channels: float) -> int:
    """To a multiple of 8, at least 8 and never under 90 % of `channels`: the rule of the MobileNet papers."""
    scaled = max(8, int(channels + 4) // 8 * 8)
    return scaled + 8 if scaled < 0.9 * channels else scaled


def scale_repeat(repeat: int, depth_multiple: float) -> int:
    return max(round(repeat * depth_multiple), 1) if repeat > 1 else repeat


def canonical_hash(value: Any) -> str:
    """sha256 of a value's JSON, whatever the order of its keys, in 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
