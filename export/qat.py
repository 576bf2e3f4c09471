"""Quantization-aware training, NNCF's part: a torch network that computes as its INT8 file will, and that file."""

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from export.artifact import Artifact, ModelCard
from export.errors import ExportError
from export.onnx_export import Deployable, deployable, traced
from export.openvino_export import read_onnx, save_ir
from export.parity import logits_of
from export.quantize import nncf_quantize
from latency.runners.ov import explain

_OFF = 0.05
"""Mean difference of a logit that rounding to the other side explains, as a share of the logits' deviation."""


class Quantized(nn.Module):
    """(n, 3, size, size), normalised -> logits. NNCF adds a module to it, which an nn.Sequential would run."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits


def with_quantizers(model: nn.Module, images: np.ndarray, card: ModelCard, saturates: bool = False) -> nn.Module:
    """A copy of the network with its re-parameterisable blocks fused and a quantizer at each input of each layer, their
    ranges taken from `images`, uint8 (n, size, size, 3). It can be trained as any other. saturates: see nncf_quantize.
    Raises ExportError."""
    from nncf.torch.quantization.extensions import QuantizedFunctionsCPU
    from nncf.torch.quantization.reference import torch_executor

    # In plain torch. NNCF would compile its own on first use: most of a minute, with a lock that outlives a kill.
    QuantizedFunctionsCPU._loaded_namespace = SimpleNamespace(
        Quantize_forward=torch_executor.forward, Quantize_backward=torch_executor.backward
    )
    whole = deployable(model, card)
    with torch.no_grad():
        seen = [whole.normalise(torch.from_numpy(image[None].copy())) for image in images]
    found: nn.Module = nncf_quantize(Quantized(whole.model), seen, "the trained network", saturates=saturates)
    return found


def save_quantized(model: nn.Module, card: ModelCard, images: np.ndarray, path: Path) -> None:
    """Write the OpenVINO IR (.xml) of a network `with_quantizers`; they are exported as OpenVINO's own FakeQuantize.
    Raises ExportError where the file answers otherwise for `images`, uint8 (n, size, size, 3)."""
    from openvino._offline_transformations import (
        apply_moc_transformations,
        compress_quantize_weights_transformation,
    )

    network = Deployable(copy.deepcopy(model).cpu(), card).eval()
    with torch.no_grad():
        expected = np.concatenate([network(torch.from_numpy(image[None].copy())).numpy() for image in images])
    with tempfile.TemporaryDirectory() as folder, _sizes_as_numbers():
        exported = Path(folder) / "quantized.onnx"
        exported.write_bytes(traced(network, card))
        ir = read_onnx(exported)
    # Weights still are f32 before a quantizer and a batch norm: folded, then kept as the integers they become.
    try:
        apply_moc_transformations(ir, cf=True)
        compress_quantize_weights_transformation(ir)
    except RuntimeError as error:
        raise ExportError(
            f"{path.name}: OpenVINO cannot make INT8 weights of what was trained: {explain(error)}"
        ) from error
    save_ir(ir, card, path)
    off = float(np.abs(logits_of(Artifact(path, "openvino", "int8"), images) - expected).mean() / expected.std())
    if off > _OFF:
        raise ExportError(
            f"{path.name} answers otherwise than the network that was trained: by {off:.0%} of the logits' deviation"
        )


@contextmanager
def _sizes_as_numbers() -> Iterator[None]:
    """timm's 'same' padding reckons with tensors while it is traced. NNCF finds the place of a quantizer by counting
    operations, and would put some of them there."""
    from timm.layers import padding

    own = padding.get_same_padding
    padding.get_same_padding = lambda *sizes: own(*(int(size) for size in sizes))
    try:
        yield
    finally:
        padding.get_same_padding = own
