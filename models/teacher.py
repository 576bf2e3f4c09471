"""A teacher: any timm network, with weights from the hub, from a file, or none."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from models import torchvision_ops
from models.language import SpecError, nearest


@dataclass(frozen=True)
class Normalisation:
    """mean and std of pixel values from 0 to 255, by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def check_name(name: str) -> None:
    """Raises SpecError where timm has no such network."""
    torchvision_ops.ensure()
    import timm

    if not timm.is_model(name):
        raise SpecError(
            f"teacher.name: timm has no model {name!r}{nearest(name, timm.list_models())}; "
            "`python -c 'import timm; print(timm.list_models())'` lists them"
        )


def build_teacher(name: str, weights: str, classes: int) -> tuple[nn.Module, Normalisation]:
    """The network with a new head of `classes`, and the normalisation that its own timm config states.

    weights: hub, none, or the path of a .safetensors file in timm's key names. Raises SpecError for a name or weights
    that do not fit, ConnectionError where the hub cannot be reached.
    """
    check_name(name)
    import timm

    logging.getLogger("timm").setLevel(logging.WARNING)
    if weights == "hub":
        try:
            model = timm.create_model(name, pretrained=True, num_classes=classes)
        except RuntimeError as error:
            if "pretrained weights" not in str(error).lower():
                raise
            raise SpecError(
                f"teacher.weights: hub: timm has no pretrained weights for {name!r}; choose another teacher, or none"
            ) from error
        except OSError as error:  # huggingface_hub's connection errors among them
            raise ConnectionError(
                f"teacher.weights: hub: the weights of {name!r} cannot be downloaded: {_first_line(error)}; connect to "
                "the network, or give a file with --set teacher.weights=FILE.safetensors, or none"
            ) from error
    else:
        model = timm.create_model(name, pretrained=False, num_classes=classes)
        if weights != "none":
            _load(model, Path(weights), name)
    config: Any = model.pretrained_cfg
    return model, Normalisation(tuple(255.0 * m for m in config["mean"]), tuple(255.0 * s for s in config["std"]))


def check_weights(weights: str) -> None:
    """Raises SpecError for a file that is not there, before anything is trained."""
    if weights not in ("hub", "none") and not Path(weights).is_file():
        raise SpecError(
            f"teacher.weights: {weights}: no such file; expected hub, none or the path of a .safetensors file"
        )


def _load(model: nn.Module, path: Path, name: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_weights(str(path))
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise SpecError(f"teacher.weights: {path}: not a safetensors file: {error}") from error
    config: Any = model.pretrained_cfg
    head = {f"{config['classifier']}.{part}" for part in ("weight", "bias")}
    own = model.state_dict()
    state = {k: v for k, v in state.items() if not (k in head and v.shape != own[k].shape)}
    missing = set(own) - set(state) - head
    unexpected = set(state) - set(own)
    wrong = {k for k in set(own) & set(state) if own[k].shape != state[k].shape}
    if missing or unexpected or wrong:
        raise SpecError(
            f"teacher.weights: {path} does not fit {name}: {_some('missing', missing)}{_some('unexpected', unexpected)}"
            f"{_some('of another shape', wrong)}give the weights of {name}, or name the network that they are of"
        )
    model.load_state_dict(state, strict=False)


def _some(what: str, keys: Iterable[str]) -> str:
    keys = sorted(keys)
    return f"{len(keys)} keys {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}); " if keys else ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
