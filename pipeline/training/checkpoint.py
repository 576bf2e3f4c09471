"""A student's weights on disk, with all that says what they are: its spec and its card, in the file's metadata."""

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from export.artifact import ModelCard
from export.errors import ExportError
from export.preprocess import Preprocess
from models.build import build
from models.pretrained import Normalisation, normalisation
from models.spec import ModelSpec
from pipeline.errors import PipelineError
from pipeline.training.progress import State, read_tensors

_ABOUT = "edgebuild"
_PIXELS = Normalisation((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
"""-1 to 1"""


def pixels(spec: ModelSpec) -> Normalisation:
    """What a student is fed: as the network of timm that it begins with was, else -1 to 1."""
    return normalisation(spec.network) if spec.network else _PIXELS


def is_pretrained(spec: ModelSpec, weights: str) -> bool:
    """Whether a student begins with a network of timm that has learnt before. weights: `student.weights`."""
    return spec.network is not None and weights != "none"


def student_card(spec: ModelSpec, classes: tuple[str, ...], fit: str) -> ModelCard:
    """The card of a student at its spec's input size. fit: see Preprocess."""
    norm = pixels(spec)
    return ModelCard(classes, spec.input_size, Preprocess(spec.input_size, fit), norm.mean, norm.std, spec.hash)


def save_student(path: Path, state: State, spec: ModelSpec, card: ModelCard) -> None:
    # One entry: safetensors writes several in a random order, and the same weights would have many hashes.
    about = {"model": spec.document(), "card": card.to_json()}
    save_file(state, path, {_ABOUT: json.dumps(about, sort_keys=True)})


def load_checkpoint(path: Path, model: Path | None = None) -> tuple[ModelSpec, ModelCard, State]:
    """A student's weights with its spec and card, from the checkpoint's metadata; `model` overrules the spec."""
    if not path.is_file():
        raise PipelineError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        state = read_tensors(path)
    except Exception as error:  # safetensors raises its own SafetensorError, which is a plain Exception
        raise PipelineError(f"{path}: not a safetensors checkpoint: {error}") from error
    try:
        # An earlier version wrote two entries.
        earlier = {
            k: metadata[k] if k == "card" else json.loads(metadata[k]) for k in ("card", "model") if k in metadata
        }
        about = json.loads(metadata[_ABOUT]) if _ABOUT in metadata else earlier
        card = ModelCard.from_json(about["card"])
        document = about["model"]
    except (KeyError, TypeError, ValueError, RecursionError, ExportError) as error:
        raise PipelineError(
            f"{path}: no checkpoint of edgebuild's: its metadata holds no card ({error}); give one that `edgebuild "
            "distill` wrote"
        ) from error
    spec = ModelSpec.load(model) if model else ModelSpec.parse(document, source=str(path))
    if model is None and spec.input_size != card.input_size:
        raise PipelineError(f"{path}: its card says {card.input_size} px, its model {spec.input_size}")
    return spec.with_classes(len(card.classes)), card, state


def restore(spec: ModelSpec, state: State, source: Path) -> nn.Module:
    """Raises PipelineError where the weights are not of this spec."""
    model = build(spec)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise PipelineError(f"{source} does not fit {spec.source}: {str(error).splitlines()[1].strip()}") from error
    return model.eval()
