"""ModelSpec: an architecture in the model language, parsed from YAML or put together by a trial. No torch in here.

A document is

    input_channel: 3
    INPUT_SIZE: [168, 168]
    depth_multiple: 0.1
    width_multiple: 0.9
    backbone:            # [repeat, module, args]
    - [3, Conv, [48, 3, 1, null, 1, Hardswish]]

or begins with the first stages of a network of timm, cut behind the one that `until` names:

    INPUT_SIZE: [112, 112]
    backbone: timm:tf_efficientnet_lite0
    until: blocks.5
    head:                # without it: GlobalAvgPool and a Linear
    - [1, GlobalAvgPool, []]
    - [1, Linear, [6]]

or is a larger document (`student.yaml`) that holds one under the key `model`. Resolving a spec applies the rules of
repeat, channels and stride and gives the units that will be built, one by one; the hash is taken of those, so two
YAML texts that round to the same network have the same hash.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from models.documents import read_yaml
from models.language import (
    ACTIVATIONS,
    BLOCKS,
    KINDS,
    Block,
    SpecError,
    canonical_hash,
    nearest,
    scale_channels,
    scale_repeat,
)

ZOO = Path(__file__).parent / "zoo"
_KEYS = ("input_channel", "INPUT_SIZE", "depth_multiple", "width_multiple", "backbone", "until", "head")
_TIMM = "timm:"
_MOST_UNITS, _MOST_CHANNELS, _MOST_WEIGHTS = 1000, 2**16, 2**28
"""Far beyond any network for an edge device. Larger values are typing errors that would exhaust the memory."""
_HEAD = [[1, "GlobalAvgPool", []], [1, "Linear", [1]]]


@dataclass(frozen=True)
class Layer:
    """One line of the backbone as written."""

    repeat: int
    module: str
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Unit:
    """One block that will be built: all arguments filled in and scaled, the stride only where it falls.

    in_channels is None behind a Flatten: it then depends on the input size and is found when the module is built.
    """

    layer: int
    module: str
    in_channels: int | None
    out_channels: int | None
    args: dict[str, Any]


@dataclass(frozen=True)
class ModelSpec:
    """An architecture. `source` says where it came from, for messages only."""

    backbone: tuple[Layer, ...]
    input_size: int
    input_channel: int = 3
    depth_multiple: float = 1.0
    width_multiple: float = 1.0
    source: str = "model"

    @classmethod
    def load(cls, path: str | Path) -> "ModelSpec":
        """Read a YAML file, or the zoo's file of that name. Raises SpecError naming file, layer and field."""
        file = find_yaml(path, ZOO, "model")
        document = read_yaml(file)
        if isinstance(document, dict) and isinstance(document.get("model"), dict):
            document = document["model"]
        return cls.parse(document, source=str(file))

    @classmethod
    def parse(cls, document: Any, source: str = "model") -> "ModelSpec":
        """Check a document and make a spec of it. Raises SpecError."""
        if not isinstance(document, dict):
            raise SpecError(f"{source}: expected a mapping with the keys {', '.join(_KEYS)}")
        for key in document:
            if key not in _KEYS:
                raise SpecError(f"{source}: unknown key {key!r}{nearest(key, _KEYS)}; known: {', '.join(_KEYS)}")
        rows = _rows(document, source)
        if not isinstance(rows, list) or not rows:
            raise SpecError(
                f"{source}: backbone: expected a list of [repeat, module, args] or {_TIMM}NETWORK, got {rows!r}"
            )
        spec = cls(
            backbone=tuple(_parse_layer(row, f"{source}: layer {i}") for i, row in enumerate(rows)),
            input_size=_parse_size(document.get("INPUT_SIZE"), source),
            input_channel=_number(document, "input_channel", 3, source, "positive"),
            depth_multiple=_number(document, "depth_multiple", 1.0, source, "ratio"),
            width_multiple=_number(document, "width_multiple", 1.0, source, "ratio"),
            source=source,
        )
        _ = spec.units  # channels and groups are checked here
        return spec

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """The blocks in the order in which data meets them. Raises SpecError where channels do not fit."""
        units: list[Unit] = []
        channels: int | None = self.input_channel
        for index, layer in enumerate(self.backbone):
            block = BLOCKS[layer.module]
            count = scale_repeat(layer.repeat, self.depth_multiple)
            if len(units) + count > _MOST_UNITS:
                raise SpecError(f"{self.source}: layer {index}: more than {_MOST_UNITS} blocks; lower a repeat")
            for i in range(count):
                unit = self._unit(index, layer, block, channels, first=i == 0, last=i == count - 1)
                units.append(unit)
                channels = unit.out_channels
        return tuple(units)

    @property
    def network(self) -> str | None:
        """The network of timm whose first stages it begins with."""
        first = self.backbone[0]
        return str(first.args[0]) if first.module == "Timm" else None

    @property
    def classes(self) -> int | None:
        """Channels that leave the last layer."""
        return self.units[-1].out_channels

    @cached_property
    def hash(self) -> str:
        """Identity of the network: sha256 of what is built, without the input size, in 16 hexadecimal digits."""
        units = [[u.module, u.in_channels, u.out_channels, u.args] for u in self.units]
        return canonical_hash(units)

    def with_classes(self, classes: int) -> "ModelSpec":
        """The same network with `classes` outputs: the last layer, FixedConv or Linear, is given that many."""
        last = self.backbone[-1]
        if last.module not in ("FixedConv", "Linear"):
            raise SpecError(
                f"{self.source}: layer {len(self.backbone) - 1}: the last module is {last.module!r}, expected "
                "FixedConv or Linear: the classifier, whose outputs are not scaled"
            )
        return replace(self, backbone=(*self.backbone[:-1], replace(last, args=(classes, *last.args[1:]))))

    def document(self) -> dict[str, Any]:
        """The mapping that `parse` reads."""
        document: dict[str, Any] = {
            "input_channel": self.input_channel,
            "INPUT_SIZE": [self.input_size, self.input_size],
            "depth_multiple": self.depth_multiple,
            "width_multiple": self.width_multiple,
        }
        rows = [[layer.repeat, layer.module, list(layer.args)] for layer in self.backbone]
        if self.network is None:
            return document | {"backbone": rows}
        return document | {"backbone": _TIMM + self.network, "until": self.backbone[0].args[1], "head": rows[1:]}

    def _unit(self, index: int, layer: Layer, block: Block, in_channels: int | None, first: bool, last: bool) -> Unit:
        args = {a.name: a.default for a in block.args}
        args.update(zip((a.name for a in block.args), layer.args, strict=False))
        where = f"{self.source}: layer {index} ({layer.module})"
        if "pad" in args and args["pad"] is None:
            args["pad"] = args["kernel"] // 2
        if layer.module in ("MaxPool", "AvgPool") and args["stride"] is None:
            args["stride"] = args["kernel"]
        carries_stride = {"every": True, "first": first, "last": last}[block.stride_on]
        if "stride" in args and not carries_stride:
            args["stride"] = 1
        if block.out == "same":
            out = in_channels
        elif block.out == "flat":
            out = None
        elif block.out == "timm":
            if index or layer.repeat > 1 or in_channels != 3:
                raise SpecError(f"{where}: expected once, as the first layer, behind an input_channel of 3")
            from models.pretrained import channels  # the names of its stages are known to timm alone

            out = channels(args["network"], args["until"])
        elif block.out == "fire":
            out = args["expand1x1"] + args["expand3x3"]
        else:
            out = args.pop("out")
            if block.scaled:
                out = scale_channels(out * self.width_multiple)
        if in_channels is None and layer.module not in ("Linear", "Flatten"):
            raise SpecError(f"{where}: behind a Flatten only Linear can stand")
        args = {
            k: float(v) if k == "expansion" else bool(v) if k in ("SE", "HS", "shortcut") else v
            for k, v in args.items()
        }
        _check_size(in_channels, out, args, where)
        _check_channels(layer.module, in_channels, out, args, where)
        return Unit(index, layer.module, in_channels, out, args)


def _rows(document: dict[str, Any], source: str) -> Any:
    """The rows of the backbone, those of `head` behind a network of timm."""
    backbone = document.get("backbone")
    if isinstance(backbone, str) and backbone.startswith(_TIMM):
        head = document.get("head", _HEAD)
        if not isinstance(head, list) or not head:
            raise SpecError(f"{source}: head: expected a list of [repeat, module, args], got {head!r}")
        if "until" not in document:
            raise SpecError(f"{source}: until: missing; the stage of {backbone} that is the last to be taken")
        return [[1, "Timm", [backbone.removeprefix(_TIMM), document["until"]]], *head]
    for key in ("until", "head"):
        if key in document:
            raise SpecError(f"{source}: {key}: only beside `backbone: {_TIMM}NETWORK`")
    return backbone


def find_yaml(name: str | Path, folder: Path, what: str) -> Path:
    """A path as given, or `folder`/name.yaml that ships with the package. Raises SpecError listing what ships."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = folder / f"{name}.yaml"
    if path.name == str(name) and shipped.is_file():
        return shipped
    if path.is_dir():
        raise SpecError(f"{what} {str(name)!r}: a folder; give a YAML file")
    if path.exists():
        raise SpecError(f"{what} {str(name)!r}: a pipe or a device; write it to a file, and give that")
    known = sorted(p.stem for p in folder.glob("*.yaml"))
    raise SpecError(
        f"{what} {str(name)!r}: no such file, and no shipped one of that name{nearest(path.stem, known)}; "
        f"shipped: {', '.join(known)}"
    )


def _check_size(cin: int | None, out: int | None, args: dict[str, Any], where: str) -> None:
    """Check the channels and weights of one block before it is built."""
    hidden = max(cin or 1, out or 1) * args.get("expansion", 1)
    if hidden > _MOST_CHANNELS:
        raise SpecError(f"{where}: {hidden:.0f} channels, more than {_MOST_CHANNELS}; lower out or width_multiple")
    kernel = max((v for k, v in args.items() if k.endswith("kernel")), default=1)
    weights = (cin or 1) * (out or 1) * kernel**2 / args.get("groups", 1)
    if weights > _MOST_WEIGHTS or kernel > _MOST_UNITS:
        raise SpecError(f"{where}: {weights:.3g} weights in one block, more than {_MOST_WEIGHTS}; lower out or kernel")


def _check_channels(module: str, cin: int | None, out: int | None, args: dict[str, Any], where: str) -> None:
    """What a block asks of its channels; torch would refuse the same later, in other words."""
    groups = args.get("groups", 1)
    if module in ("Conv", "FixedConv") and cin is not None and out is not None and (cin % groups or out % groups):
        raise SpecError(f"{where}: groups: {groups} must divide the {cin} input and {out} output channels")
    if module == "Bottleneck" and out is not None:
        hidden = int(out * args["expansion"])
        if hidden < 1 or hidden % groups or out % groups:
            raise SpecError(f"{where}: groups: {groups} must divide the {hidden} hidden and {out} output channels")
    if module == "ShuffleNetV2" and out is not None:
        if args["stride"] not in (1, 2):
            raise SpecError(f"{where}: stride: expected 1 or 2, got {args['stride']}")
        if out % 2 or (args["stride"] == 1 and out != cin):
            raise SpecError(f"{where}: out: a unit of stride 1 keeps its channels: expected {cin} (even), got {out}")
    if (
        module == "UniversalInvertedResidual"
        and args["stride"] > 1
        and not (args["start_kernel"] or args["mid_kernel"])
    ):
        raise SpecError(f"{where}: mid_kernel: a stride of {args['stride']} needs a depthwise kernel, got 0 and 0")


def _parse_layer(row: Any, where: str) -> Layer:
    if not isinstance(row, list) or len(row) != 3:
        raise SpecError(f"{where}: expected [repeat, module, args], got {row!r}")
    repeat, module, args = row
    if not KINDS["positive"][0](repeat):
        raise SpecError(f"{where}: repeat: expected {KINDS['positive'][1]}, got {repeat!r}")
    if not isinstance(module, str) or module not in BLOCKS:
        raise SpecError(
            f"{where}: module: unknown block {module!r}{nearest(module, BLOCKS)}; known: {', '.join(BLOCKS)}"
        )
    if not isinstance(args, list):
        raise SpecError(f"{where} ({module}): args: expected a list, got {args!r}")
    block = BLOCKS[module]
    names = ", ".join(a.name if a.default is ... else f"{a.name}={_yaml(a.default)}" for a in block.args) or "none"
    if len(args) > len(block.args):
        raise SpecError(f"{where} ({module}): args: expected at most {len(block.args)} ({names}), got {len(args)}")
    for i, arg in enumerate(block.args):
        if i >= len(args):
            if arg.default is ...:
                raise SpecError(f"{where} ({module}): {arg.name}: missing; expected args: {names}")
            continue
        test, expected = KINDS[arg.kind]
        if not test(args[i]):
            hint = nearest(args[i], ACTIVATIONS) if arg.kind == "activation" else ""
            raise SpecError(f"{where} ({module}): {arg.name}: expected {expected}, got {_yaml(args[i])}{hint}")
    return Layer(repeat, module, tuple(args))


def _yaml(value: Any) -> str:
    return "null" if value is None else repr(value)


def _parse_size(value: Any, source: str) -> int:
    expected = "INPUT_SIZE: expected [size, size] with one size from 16 to 2048"
    if not (isinstance(value, list) and len(value) == 2 and value[0] == value[1]):
        raise SpecError(f"{source}: {expected}, got {value!r}")
    if not (KINDS["positive"][0](value[0]) and 16 <= value[0] <= 2048):
        raise SpecError(f"{source}: {expected}, got {value!r}")
    return int(value[0])


def _number(document: dict[str, Any], key: str, default: Any, source: str, kind: str) -> Any:
    value = document.get(key, default)
    test, expected = KINDS[kind]
    if not test(value) or (isinstance(value, float) and not math.isfinite(value)):
        raise SpecError(f"{source}: {key}: expected {expected}, got {value!r}")
    return value
