from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from export.artifact import ModelCard
from export.onnx_export import deployable, export_onnx
from export.openvino_export import read_onnx, save_ir
from export.preprocess import Preprocess
from models.build import build
from models.spec import ModelSpec


@dataclass(frozen=True)
class Exported:
    """A small student with statistics of its own, exported; images and what torch says of them."""

    folder: Path
    model: torch.nn.Module
    card: ModelCard
    images: np.ndarray
    logits: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        return self.logits.argmax(1)


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Exported:
    folder = tmp_path_factory.mktemp("exported")
    spec = ModelSpec.load("cpu_small")
    model = build(spec, seed=0)
    images = np.random.default_rng(0).integers(0, 256, (24, 168, 168, 3), dtype=np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    for _ in range(40):  # settle the batch norms, so that logits are of a natural size
        model(x)
    card = ModelCard(tuple("abcdef"), 168, Preprocess(168), (127.5,) * 3, (127.5,) * 3, spec.hash)
    export_onnx(model, card, folder / "model.onnx")
    save_ir(read_onnx(folder / "model.onnx"), card, folder / "model.xml")
    with torch.no_grad():
        logits = deployable(model, card)(torch.from_numpy(images)).numpy()
    return Exported(folder, model, card, images, logits)
