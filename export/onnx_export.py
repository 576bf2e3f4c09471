"""Torch module -> simplified ONNX file with uint8 NHWC input, normalisation in the graph, and the card in its metadata.

The search and the final export use this one function, so what was timed is what ships.
"""

import copy
import io
import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from export.artifact import METADATA_KEY, ModelCard
from export.errors import ExportError
from models.pretrained import fusible

OPSET = 18
INPUT, OUTPUT = "images", "logits"
_LOOKED_AT = 2
"""Images of noise, on which a network must answer alike once it is fused."""
_FUSED_OFF = 1e-3
"""Of the largest logit: sums in another order come to 1e-5, a wrong fusion to much more."""


class Deployable(nn.Module):
    """uint8 (n, size, size, 3) -> logits (n, classes)."""

    mean: Tensor
    scale: Tensor

    def __init__(self, model: nn.Module, card: ModelCard) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", _by_channel(card.mean))
        self.register_buffer("scale", 1.0 / _by_channel(card.std))

    def normalise(self, images: Tensor) -> Tensor:
        return (images.permute(0, 3, 1, 2).float() - self.mean) * self.scale

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(self.normalise(images))
        return logits


def _by_channel(values: tuple[float, ...]) -> Tensor:
    """One number where all channels share it: in an INT8 file ONNX Runtime moves the transposition behind the
    subtraction, where three numbers by turns made a small network 1.5 times slower."""
    tensor = torch.tensor(values).view(1, 3, 1, 1)
    return tensor[:, :1] if len(set(values)) == 1 else tensor


def deployable(model: nn.Module, card: ModelCard) -> Deployable:
    """A copy of the model in evaluation mode, on the CPU, its re-parameterisable blocks fused. Raises ExportError where
    it answers otherwise then."""
    return _fused(copy.deepcopy(model), card)


def _fused(model: nn.Module, card: ModelCard) -> Deployable:
    from timm.utils.model import reparameterize_model

    whole = Deployable(model.cpu(), card).eval()
    if not any(map(fusible, whole.modules())):
        return whole
    fused = Deployable(reparameterize_model(whole.model), card).eval()
    shape = (_LOOKED_AT, card.input_size, card.input_size, 3)
    noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = whole(noise), fused(noise)
    off = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    if not off <= _FUSED_OFF:
        raise ExportError(
            "the blocks of several branches cannot be fused to one: the network then answers otherwise, by "
            f"{off:.2g} of its largest logit; take other blocks"
        )
    return fused


def traced(network: Deployable, card: ModelCard) -> bytes:
    """The ONNX file for a batch of card.batch, as torch's exporter leaves it. Raises ExportError."""
    example = torch.zeros(card.batch, card.input_size, card.input_size, 3, dtype=torch.uint8)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # dynamo=False: a small net in 0.3 s instead of 2.5 to 10 s, and a reject of the search waits for it.
        try:
            torch.onnx.export(
                network,
                (example,),
                buffer,  # type: ignore[arg-type]  # documented for dynamo=False
                dynamo=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
            )
        except RuntimeError as error:  # the exporter's own errors among them
            reason, _, _ = str(error).strip().partition("\n")
            raise ExportError(f"torch cannot export the network to ONNX: {reason}") from error
    return buffer.getvalue()


def export_onnx(model: nn.Module, card: ModelCard, path: Path) -> None:
    """Write `path`, for a batch of card.batch. The model is put into evaluation mode, on the CPU; to copy it would take
    a fifth of the time, for which a reject of the search waits. Raises ExportError."""
    import onnx
    import onnxsim

    simplified, valid = onnxsim.simplify(onnx.load_model_from_string(traced(_fused(model, card), card)))
    if not valid:
        raise ExportError(f"{path}: onnxsim's simplified graph disagrees with the exported one")
    onnx.helper.set_model_props(simplified, {METADATA_KEY: card.to_json()})
    onnx.save_model(simplified, str(path))


def read_card(path: Path) -> ModelCard | None:
    """The card in an ONNX file, or None in a file that is not ours. Raises ExportError for a file that is no ONNX."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise ExportError(f"{path}: not an ONNX file: {error}") from error
    texts = {p.key: p.value for p in model.metadata_props}
    return ModelCard.from_json(texts[METADATA_KEY]) if METADATA_KEY in texts else None


logging.getLogger("torch.onnx").setLevel(logging.ERROR)
