"""Networks of timm, with weights from the hub, from a file, or none: whole as teachers, their first stages as students.

A student is cut by timm's own feature extraction (torch.fx): what lies behind the named stage is not in it.
"""

import logging
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import torchvision_ops
from models.language import SpecError, first_line, nearest

_PROBE_SIZE = 128
"""Of the image that a cut network is tried with, on the meta device."""


@dataclass(frozen=True)
class Normalisation:
    """mean and std of pixel values from 0 to 255, by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def check_name(name: str, where: str) -> None:
    """Raises SpecError where timm has no such network. where: what names it, for the message."""
    torchvision_ops.ensure()
    import timm

    if not timm.is_model(name):
        raise SpecError(
            f"{where}: timm has no model {name!r}{nearest(name, timm.list_models())}; "
            "`python -c 'import timm; print(timm.list_models())'` lists them"
        )


def network(name: str, weights: str, classes: int, section: str) -> nn.Module:
    """A timm network with a new head of `classes`.

    weights: hub, none, or the path of a .safetensors file in timm's key names. section: of the config, for messages.
    Raises SpecError for a name or weights that do not fit, ConnectionError where the hub cannot be reached.
    """
    check_name(name, "student.network" if section == "student" else f"{section}.name")
    import timm

    logging.getLogger("timm").setLevel(logging.WARNING)
    if weights == "hub":
        try:
            _check_hub(name)
            model = timm.create_model(name, pretrained=True, num_classes=classes)
        except RuntimeError as error:
            if "pretrained weights" not in str(error).lower():
                raise
            raise SpecError(
                f"{section}.weights: hub: timm has no pretrained weights for {name!r}; choose another, or none"
            ) from error
        except OSError as error:  # huggingface_hub's connection errors among them
            raise ConnectionError(
                f"{section}.weights: hub: the weights of {name!r} cannot be downloaded: {first_line(error)}; connect "
                f"to the network, or give a file with --set {section}.weights=FILE.safetensors, or none"
            ) from error
    else:
        model = timm.create_model(name, pretrained=False, num_classes=classes)
        if weights != "none":
            _load(model, Path(weights), name, section)
    return model


def _check_hub(name: str) -> None:
    """Raises OSError at once where weights are not in the cache and the hub is out of reach: its own client tries for
    most of a minute."""
    import timm
    from httpx2 import HTTPError, head
    from huggingface_hub import constants, try_to_load_from_cache

    repo = getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None)
    files = ("model.safetensors", "pytorch_model.bin")
    if repo is None or any(isinstance(try_to_load_from_cache(repo, file), str) for file in files):
        return
    try:
        head(constants.ENDPOINT, timeout=10)
    except HTTPError as error:
        raise OSError(f"{constants.ENDPOINT} does not answer: {error}") from error


def fusible(module: nn.Module) -> bool:
    """Whether timm's `reparameterize_model` makes one branch of its several."""
    return hasattr(module, "reparameterize") or hasattr(module, "fuse")


@lru_cache
def normalisation(name: str) -> Normalisation:
    """As the network's own timm config states."""
    import timm

    config: Any = timm.get_pretrained_cfg(name)
    return Normalisation(tuple(255.0 * m for m in config.mean), tuple(255.0 * s for s in config.std))


class Stages(nn.Module):
    """The first stages of a timm network, up to and with the module `until`: (n, 3, h, w) -> (n, channels, h', w').

    The names of its weights are the network's own.
    """

    def __init__(self, name: str, until: str) -> None:
        super().__init__()
        check_name(name, "backbone")
        import timm
        from timm.layers import AvgPool2dSame, Conv2dSame, register_notrace_module
        from timm.models import create_feature_extractor

        whole = timm.create_model(name, pretrained=False, num_classes=0)
        if until not in dict(whole.named_modules()) or not until:
            stages = _stages(whole)
            raise SpecError(f"until: {name} has no stage {until!r}{nearest(until, stages)}; it has {', '.join(stages)}")
        for module in whole.modules():
            # Stay whole: some to be fused before export, some whose padding hangs on the size of the image.
            same = isinstance(module, AvgPool2dSame | Conv2dSame)
            if same or fusible(module):
                register_notrace_module(type(module))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of nodes that differ in training: none that lies before a stage's end
                self.graph = create_feature_extractor(whole, {until: "out"})
        except (ValueError, AssertionError, torch.fx.proxy.TraceError) as error:
            raise SpecError(f"until: {name} cannot be cut at {until!r}: {first_line(error)}") from error

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.graph(x)["out"]
        return out


@lru_cache
def channels(name: str, until: str) -> int:
    """Of what leaves that stage. Raises SpecError for a network or stage that does not exist, or gives no feature
    map."""
    try:
        with torch.device("meta"), torch.no_grad():
            out = Stages(name, until).eval()(torch.empty(1, 3, _PROBE_SIZE, _PROBE_SIZE))
    except (AssertionError, RuntimeError) as error:
        raise SpecError(
            f"backbone: {name} does not take an image of {_PROBE_SIZE} px: {first_line(error)}; choose one that is "
            "convolutional all the way"
        ) from error
    if out.ndim != 4 or out.shape[2] != out.shape[3]:
        raise SpecError(
            f"until: {until!r} of {name} gives {tuple(out.shape[1:])}, expected (channels, height, width); cut it at "
            "another stage"
        )
    return int(out.shape[1])


@dataclass(frozen=True)
class StageProfile:
    """A stage of a network, by timm's name, with what follows it that has no products of its own. shape: (channels,
    height, width) that leave it."""

    name: str
    shape: tuple[int, ...]
    params: int
    macs: int


def stage_profiles(name: str, until: str, size: int) -> list[StageProfile]:
    """What the first stages of a network are made of, for an image of size x size; nothing is computed. Raises
    SpecError."""
    import timm
    from torch.utils.flop_counter import FlopCounterMode

    shapes: dict[str, tuple[int, ...]] = {}
    with torch.device("meta"), torch.no_grad():
        stages = _stages(timm.create_model(name, pretrained=False, num_classes=0))
        cut = Stages(name, until).eval()
        for path, module in cut.graph.named_modules():
            if path and not list(module.children()):
                module.register_forward_hook(
                    lambda m, given, out, path=path: shapes.__setitem__(path, tuple(out.shape[1:]))
                )
        with FlopCounterMode(display=False) as counter:
            cut(torch.empty(1, 3, size, size))
    flops = {k.removeprefix("Stages.graph."): sum(v.values()) for k, v in counter.get_flop_counts().items()}

    def stage_of(path: str) -> str:
        return next(s for s in stages if f"{path}.".startswith(f"{s}."))

    macs, last, params = dict.fromkeys(stages, 0), dict[str, tuple[int, ...]](), dict.fromkeys(stages, 0)
    for path, shape in shapes.items():
        macs[stage_of(path)] += flops.get(path, 0) // 2
        last[stage_of(path)] = shape
    for path, parameter in cut.graph.named_parameters():
        params[stage_of(path)] += parameter.numel()
    found: list[StageProfile] = []
    for stage, shape in last.items():
        if found and not macs[stage]:  # a norm, an activation or a pooling is told with what stands before it
            found[-1] = replace(found[-1], shape=shape, params=found[-1].params + params[stage])
        else:
            found.append(StageProfile(stage, shape, params[stage], macs[stage]))
    return found


def load_stages(model: nn.Module, name: str, weights: str, section: str) -> None:
    """Give the Stages in a student the weights of the network `name`. Raises as `network` does."""
    own = next(m for m in model.modules() if isinstance(m, Stages)).graph
    state = network(name, weights, 1, section).state_dict()
    own.load_state_dict({k: state[k] for k in own.state_dict()})


def freeze_until(model: nn.Module, stage: str, where: str) -> None:
    """What comes before the end of that stage learns no more, which costs no backward pass either. where: the key of
    the config that names it. Raises SpecError."""
    names = [name for name, _ in model.named_parameters()]
    own = [i for i, name in enumerate(names) if name.startswith(f"{stage}.")]
    if not own:
        stages = _stages(model)
        raise SpecError(f"{where}: no stage {stage!r}{nearest(stage, stages)}; it has {', '.join(stages)}")
    for parameter in list(model.parameters())[: own[-1] + 1]:
        parameter.requires_grad_(False)


def _stages(whole: nn.Module) -> list[str]:
    """Names at which a cut makes sense: the network's own parts, and the parts of its sequences."""
    found = []
    for name, child in whole.named_children():
        parts = [f"{name}.{part}" for part, _ in child.named_children()] if isinstance(child, nn.Sequential) else []
        found += parts if len(parts) > 1 else [name]
    return found


def check_weights(weights: str, section: str) -> None:
    """Raises SpecError for a file that is not there, before anything is trained."""
    if weights not in ("hub", "none") and not Path(weights).is_file():
        raise SpecError(
            f"{section}.weights: {weights}: no such file; expected hub, none or the path of a .safetensors file"
        )


def _load(model: nn.Module, path: Path, name: str, section: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_weights(str(path), section)
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise SpecError(f"{section}.weights: {path}: not a safetensors file: {error}") from error
    config: Any = model.pretrained_cfg
    named = config["classifier"]  # several where a network was distilled, or has branches
    heads = (named,) if isinstance(named, str) else named
    head = {f"{name}.{part}" for name in heads for part in ("weight", "bias")}
    own = model.state_dict()
    state = {k: v for k, v in state.items() if not (k in head and v.shape != own[k].shape)}
    missing = set(own) - set(state) - head
    unexpected = set(state) - set(own)
    wrong = {k for k in set(own) & set(state) if own[k].shape != state[k].shape}
    if missing or unexpected or wrong:
        found = _some("missing", missing) + _some("unexpected", unexpected) + _some("of another shape", wrong)
        raise SpecError(
            f"{section}.weights: {path} does not fit {name}: {found}give the weights of {name}, or name the network "
            "that they are of"
        )
    model.load_state_dict(state, strict=False)


def _some(what: str, keys: Iterable[str]) -> str:
    keys = sorted(keys)
    return f"{len(keys)} keys {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}); " if keys else ""
