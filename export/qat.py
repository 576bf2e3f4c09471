"""Quantization-aware training, NNCF's part: a torch network that computes as its INT8 file will, and that file."""

import copy
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from export.artifact import ModelCard
from export.onnx_export import Deployable, deployable, traced
from export.openvino_export import read_onnx, save_ir
from export.quantize import nncf_quantize


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
    from nncf.torch.quantization.extensions import QuantizedFunctionsCPU
    from nncf.torch.quantization.reference import torch_executor

    # In plain torch. NNCF would compile its own on first use: most of a minute, with a lock that outlives a kill.
    QuantizedFunctionsCPU._loaded_namespace = SimpleNamespace(
        Quantize_forward=torch_executor.forward, Quantize_backward=torch_executor.backward
    )
    whole = deployable(model, card)
    with torch.no_grad():
        seen = [whole.normalise(torch.from_numpy(image[None].copy())) for image in images]
    found: nn.Module = nncf_quantize(Quantized(whole.model), seen, "the trained network")
    return found


def save_quantized(model: nn.Module, card: ModelCard, path: Path) -> None:
    """Write the OpenVINO IR (.xml) of a network `with_quantizers`; they are exported as OpenVINO's own FakeQuantize."""
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "quantized.onnx"
        exported.write_bytes(traced(Deployable(copy.deepcopy(model).cpu(), card).eval(), card))
        save_ir(read_onnx(exported), card, path)
