"""Quantization-aware training, NNCF's part: a torch network that computes as its INT8 file will, and that file."""

import copy
import logging
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from export.artifact import ModelCard
from export.errors import ExportError
from export.onnx_export import Deployable, deployable, traced
from export.openvino_export import read_onnx, save_ir


class Quantized(nn.Module):
    """(n, 3, size, size), normalised -> logits. NNCF adds a module to it, which an nn.Sequential would run."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits


def with_quantizers(model: nn.Module, images: np.ndarray, card: ModelCard) -> nn.Module:
    """A copy of the network with its re-parameterisable blocks fused and a quantizer at each input of each layer, their
    ranges taken from `images`, uint8 (n, size, size, 3). It can be trained as any other. Raises ExportError."""
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    whole = deployable(model, card)
    with torch.no_grad():
        seen = [whole.normalise(torch.from_numpy(image[None].copy())) for image in images]
    try:
        found: nn.Module = nncf.quantize(
            Quantized(whole.model), nncf.Dataset(seen), preset=nncf.QuantizationPreset.MIXED, subset_size=len(seen)
        )
    except (RuntimeError, ValueError, nncf.ValidationError) as error:
        raise ExportError(f"NNCF cannot put quantizers into the network: {error}") from error
    return found


def save_quantized(model: nn.Module, card: ModelCard, path: Path) -> None:
    """Write the OpenVINO IR (.xml) of a network `with_quantizers`; they are exported as OpenVINO's own FakeQuantize."""
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "quantized.onnx"
        exported.write_bytes(traced(Deployable(copy.deepcopy(model).cpu(), card).eval(), card))
        save_ir(read_onnx(exported), card, path)
