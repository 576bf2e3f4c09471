from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from export.artifact import Artifact, ModelCard
from export.bundle import Evidence
from export.onnx_export import deployable, export_onnx
from export.openvino_export import read_onnx, save_ir
from export.parity import logits_of, quality
from export.preprocess import Preprocess
from latency.host import this_host
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


@dataclass(frozen=True)
class Photos:
    """Files of smooth colours, and the class of each: what `exported` says of it, but for every fifth."""

    folder: Path
    paths: tuple[Path, ...]
    truth: tuple[str, ...]

    def arrays(self, card: ModelCard) -> np.ndarray:
        return np.stack([card.preprocess.load(p) for p in self.paths])


@pytest.fixture(scope="session")
def photos(exported, tmp_path_factory) -> Photos:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(3)
    for i in range(20):
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        small.resize((400, 300), Image.Resampling.BICUBIC).save(folder / f"{i:02}.jpg", quality=95)
    paths = tuple(sorted(folder.iterdir()))
    images = np.stack([exported.card.preprocess.load(p) for p in paths])
    with torch.no_grad():
        labels = deployable(exported.model, exported.card)(torch.from_numpy(images)).argmax(1).numpy()
    classes = exported.card.classes
    return Photos(folder, paths, tuple(classes[(n + (i % 5 == 0)) % 6] for i, n in enumerate(labels)))


@pytest.fixture(scope="session")
def evidence_of(photos):
    """Evidence for a file, made of what it really answers; the latency is invented."""

    def make(artifact: Artifact, card: ModelCard, **more) -> Evidence:
        logits = logits_of(artifact, photos.arrays(card))
        truth = np.array([card.classes.index(t) for t in photos.truth])
        subject = artifact.subject(1)
        facts = {
            "verdict": "pass",
            "latency": {
                "subject": {n: getattr(subject, n) for n in ("runtime", "precision", "threads", "sha256")},
                "p50_ms": 0.5,
                "p90_ms": 0.6,
                "p90_lower_ms": 0.55,
                "p90_upper_ms": 0.7,
                "limit_ms": 1.4,
                "processes": 9,
            },
            "submission": None,
            "quality": quality(logits.argmax(1), truth, card.classes, "test"),
            "host": this_host().as_dict(),
            "params": 1000,
            "macs": 2000,
            "portability": {"how": "a test", "images": 0},
        }
        labels = [card.classes[i] for i in logits.argmax(1)]
        return Evidence(facts, list(zip(photos.paths, photos.truth, labels, strict=True)), **more)

    return make
