"""Torch modules for the names in `models.language.BLOCKS`: one builder a name, `(in_channels, out_channels, args)`.

Whatever timm has is taken from timm. Padding is k // 2, convolutions have no bias, batch norm follows each.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models import torchvision_ops
from models.pretrained import Stages

torchvision_ops.ensure()

from timm.layers.helpers import make_divisible  # noqa: E402
from timm.models._efficientnet_blocks import (  # noqa: E402
    DepthwiseSeparableConv,
    InvertedResidual,
    SqueezeExcite,
    UniversalInvertedResidual,
)
from timm.models.byobnet import LayerFn, MobileOneBlock, RepVggBlock  # noqa: E402
from timm.models.ghostnet import GhostBottleneck  # noqa: E402

Args = dict[str, Any]

_ACTIVATIONS: dict[str | None, type[nn.Module]] = {
    None: nn.Identity,
    "ReLU": nn.ReLU,
    "ReLU6": nn.ReLU6,
    "LeakyReLU": nn.LeakyReLU,
    "Hardswish": nn.Hardswish,
    "Hardsigmoid": nn.Hardsigmoid,
    "Sigmoid": nn.Sigmoid,
    "SiLU": nn.SiLU,
    "Swish": nn.SiLU,
    "GELU": nn.GELU,
}


def conv_bn_act(
    cin: int,
    out: int,
    kernel: int,
    stride: int = 1,
    pad: int | None = None,
    groups: int = 1,
    activation: str | None = None,
) -> nn.Sequential:
    pad = kernel // 2 if pad is None else pad
    layers: list[nn.Module] = [
        nn.Conv2d(cin, out, kernel, stride, pad, groups=groups, bias=False),
        nn.BatchNorm2d(out),
    ]
    if activation is not None:
        layers.append(_ACTIVATIONS[activation]())
    return nn.Sequential(*layers)


def _conv(cin: int, out: int, a: Args) -> nn.Module:
    return conv_bn_act(cin, out, a["kernel"], a["stride"], a["pad"], a["groups"], a["activation"])


def _dwconv(cin: int, out: int, a: Args) -> nn.Module:
    return conv_bn_act(cin, out, a["kernel"], a["stride"], a["pad"], math.gcd(cin, out), a["activation"])


def _inverted_residual(
    cin: int,
    out: int,
    kernel: int,
    expansion: float,
    stride: int,
    activation: str,
    squeeze_excite: Callable[..., nn.Module] | None,
) -> nn.Module:
    """MobileNet's inverted residual; without the expansion layer where it would not expand."""
    common: dict[str, Any] = {
        "dw_kernel_size": kernel,
        "stride": stride,
        "act_layer": _ACTIVATIONS[activation],
        "se_layer": squeeze_excite,
    }
    if make_divisible(cin * expansion) == cin:
        return DepthwiseSeparableConv(cin, out, pw_act=False, **common)
    return InvertedResidual(cin, out, exp_ratio=expansion, **common)


def _v2(cin: int, out: int, a: Args) -> nn.Module:
    return _inverted_residual(cin, out, 3, a["expansion"], a["stride"], "ReLU6", None)


def _v3(cin: int, out: int, a: Args) -> nn.Module:
    se = partial(
        SqueezeExcite,
        rd_ratio=0.25,
        rd_round_fn=lambda channels: make_divisible(int(channels)),
        force_act_layer=nn.ReLU,
        gate_layer=nn.Hardsigmoid,
    )
    activation = "Hardswish" if a["HS"] else "ReLU"
    return _inverted_residual(cin, out, a["kernel"], a["expansion"], a["stride"], activation, se if a["SE"] else None)


def _mbconv(cin: int, out: int, a: Args) -> nn.Module:
    se = partial(SqueezeExcite, rd_channels=max(1, cin // 4), gate_layer=nn.Sigmoid)
    return _inverted_residual(cin, out, a["kernel"], a["expansion"], a["stride"], "SiLU", se)


class Bottleneck(nn.Module):
    """1x1 then 3x3, with a shortcut where the channels allow it (ResNet; the lineage's arguments)."""

    def __init__(self, cin: int, out: int, a: Args) -> None:
        super().__init__()
        hidden = int(out * a["expansion"])
        self.reduce = conv_bn_act(cin, hidden, 1, activation=a["activation"])
        self.conv = conv_bn_act(hidden, out, 3, groups=a["groups"], activation=a["activation"])
        self.add = a["shortcut"] and cin == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.reduce(x))
        return x + y if self.add else y


class Fire(nn.Module):
    """SqueezeNet's fire module (Iandola et al. 2016), with batch norm."""

    def __init__(self, cin: int, _out: int, a: Args) -> None:
        super().__init__()
        self.squeeze = conv_bn_act(cin, a["squeeze"], 1, activation="ReLU")
        self.expand1x1 = conv_bn_act(a["squeeze"], a["expand1x1"], 1, activation="ReLU")
        self.expand3x3 = conv_bn_act(a["squeeze"], a["expand3x3"], 3, activation="ReLU")

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        return torch.cat([self.expand1x1(x), self.expand3x3(x)], 1)


class ShuffleUnit(nn.Module):
    """ShuffleNetV2's unit (Ma et al. 2018, figure 3 c and d): split, transform one half, concatenate, shuffle."""

    def __init__(self, cin: int, out: int, a: Args) -> None:
        super().__init__()
        stride, half = a["stride"], out // 2
        self.split = stride == 1
        self.left = (
            nn.Identity()
            if self.split
            else nn.Sequential(
                conv_bn_act(cin, cin, 3, stride, groups=cin),
                conv_bn_act(cin, half, 1, activation="ReLU"),
            )
        )
        self.right = nn.Sequential(
            conv_bn_act(half if self.split else cin, half, 1, activation="ReLU"),
            conv_bn_act(half, half, 3, stride, groups=half),
            conv_bn_act(half, half, 1, activation="ReLU"),
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1) if self.split else (x, x)
        out = torch.cat([self.left(left), self.right(right)], 1)
        n, c, h, w = out.shape
        return out.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Head(nn.Module):
    """A linear layer over a flat input, or one of 1 x 1; unknown input channels are found at the first pass."""

    def __init__(self, cin: int | None, out: int, a: Args) -> None:
        super().__init__()
        self.linear = nn.LazyLinear(out) if cin is None else nn.Linear(cin, out)
        self.activation = _ACTIVATIONS[a["activation"]]()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.linear(x.flatten(1)))
        return out


def _uib(cin: int, out: int, a: Args) -> nn.Module:
    return UniversalInvertedResidual(
        cin,
        out,
        dw_kernel_size_start=a["start_kernel"],
        dw_kernel_size_mid=a["mid_kernel"],
        stride=a["stride"],
        exp_ratio=a["expansion"],
        act_layer=_ACTIVATIONS[a["activation"]],
        layer_scale_init_value=None,
    )


def _lc(cin: int, out: int, a: Args) -> nn.Module:
    """PP-LCNet's block (Cui et al. 2021): depthwise, optional squeeze-excite, pointwise, no shortcut."""
    se: Any = partial(SqueezeExcite, rd_ratio=0.25, force_act_layer=nn.ReLU, gate_layer=nn.Hardsigmoid)
    return DepthwiseSeparableConv(
        cin,
        out,
        dw_kernel_size=a["kernel"],
        stride=a["stride"],
        noskip=True,
        pw_act=True,
        act_layer=_ACTIVATIONS[a["activation"]],
        se_layer=se if a["SE"] else None,
    )


def _ghost(cin: int, out: int, a: Args) -> nn.Module:
    hidden = make_divisible(cin * a["expansion"])
    return GhostBottleneck(
        cin, hidden, out, dw_kernel_size=a["kernel"], stride=a["stride"], se_ratio=0.25 if a["SE"] else 0.0
    )


def _rep_vgg(cin: int, out: int, a: Args) -> nn.Module:
    layers = LayerFn(act=_ACTIVATIONS[a["activation"]])
    return RepVggBlock(cin, out, kernel_size=3, stride=a["stride"], layers=layers)


def _mobile_one(cin: int, out: int, a: Args) -> nn.Module:
    """A depthwise and a pointwise MobileOne block (Vasu et al. 2023); both fuse to one convolution before export."""
    layers = LayerFn(act=_ACTIVATIONS[a["activation"]])
    return nn.Sequential(
        MobileOneBlock(cin, cin, kernel_size=a["kernel"], stride=a["stride"], group_size=1, layers=layers),
        MobileOneBlock(cin, out, kernel_size=1, layers=layers),
    )


BUILDERS: dict[str, Callable[[Any, Any, Args], nn.Module]] = {
    "Conv": _conv,
    "DWConv": _dwconv,
    "FixedConv": _conv,
    "InvertedResidualv2": _v2,
    "InvertedResidualv3": _v3,
    "MBConv": _mbconv,
    "Bottleneck": Bottleneck,
    "Fire": Fire,
    "ShuffleNetV2": ShuffleUnit,
    "MaxPool": lambda cin, out, a: nn.MaxPool2d(a["kernel"], a["stride"], a["pad"]),
    "AvgPool": lambda cin, out, a: nn.AvgPool2d(a["kernel"], a["stride"], a["pad"]),
    "GlobalAvgPool": lambda cin, out, a: nn.AdaptiveAvgPool2d(1),
    "Flatten": lambda cin, out, a: nn.Flatten(),
    "Linear": Head,
    "UniversalInvertedResidual": _uib,
    "LCBlock": _lc,
    "GhostBottleneck": _ghost,
    "RepVGG": _rep_vgg,
    "MobileOne": _mobile_one,
    "Timm": lambda cin, out, a: Stages(a["network"], a["until"]),
}
