"""What predict.py costs beside decoding and bare inference, and whether preflight refuses good bundles.

`python ci/bench/ship_bench.py [--bundle FOLDER --images FOLDER] [--good N]`. Without a bundle and images: a network of
the zoo with random weights, and drawn JPEGs of 512 x 384. Cost: fresh processes of predict.py and of a bare loop (the
same decoding and resizing, the same session, nothing else) in turn over the same photos, the start taken off. Refusals:
N bundles of different networks, input sizes, formats and fits, each through a whole preflight. Table on screen, JSON
beside.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from PIL import Image

from export.artifact import Artifact, ModelCard
from export.bundle import Evidence, read_bundle, write_bundle
from export.checks import Limits
from export.formats import FORMATS, Source, write_formats
from export.lock import Lock, lock
from export.onnx_export import export_onnx
from export.parity import logits_of, quality
from export.preflight import preflight
from export.preprocess import Preprocess, find_images
from latency.host import this_host
from latency.machine import LOCAL
from models.build import build
from models.spec import ModelSpec

ROUNDS, PHOTOS = 12, 300
BARE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import predict
manifest = json.loads((Path(sys.argv[1]) / "manifest.json").read_text())
infer, preprocess = predict.load(manifest), predict.Preprocess(**manifest["preprocess"])
for path in sys.argv[2:]:
    infer(preprocess.resize(preprocess.decode(path))[None])
"""


def settled(spec: ModelSpec, size: int) -> torch.nn.Module:
    """Random weights, batch norms with statistics, so that logits are of a natural size."""
    model = build(spec, seed=0)
    for seed in range(20):
        model(torch.rand(8, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1)
    return model.eval()


def draw(folder: Path, count: int) -> list[Path]:
    rng = np.random.default_rng(0)
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        small.resize((512, 384), Image.Resampling.BICUBIC).save(folder / f"{i:03}.jpg", quality=92)
    return sorted(folder.iterdir())


def pack(folder: Path, name: str, size: int, kind: str, fit: str, photos: list[Path], locks: dict[str, Lock]) -> Path:
    """The archive of a network of the zoo at that size, in that format."""
    spec = replace(ModelSpec.load(name).with_classes(6), input_size=size)
    card = ModelCard(tuple("abcdef"), size, Preprocess(size, fit), (127.5,) * 3, (127.5,) * 3, spec.hash)
    export_onnx(settled(spec, size), card, folder / "source.onnx")
    images = np.stack([card.preprocess.load(p) for p in photos])
    (written,) = write_formats(Source(folder / "source.onnx", card, images), [kind], folder)
    assert written.status == "passed" and written.path, written
    form = FORMATS[kind]
    artifact = Artifact(Path(written.path), form.runtime, form.precisions[0])
    logits = logits_of(artifact, images)
    truth = np.arange(len(images)) % 6
    subject = artifact.subject(1)
    facts: dict[str, Any] = {
        "verdict": "pass",
        "latency": {
            "subject": {n: getattr(subject, n) for n in ("runtime", "precision", "threads", "sha256")},
            "p50_ms": 1.0,
            "p90_ms": 1.0,
            "p90_lower_ms": 1.0,
            "p90_upper_ms": 1.0,
            "limit_ms": 9.0,
            "processes": 9,
        },
        "quality": quality(logits.argmax(1), truth, card.classes, "test"),
        "host": this_host().as_dict(),
        "params": 1,
        "macs": 1,
        "portability": {"how": "a benchmark", "images": 0},
    }
    labels = [
        (p, card.classes[t], card.classes[int(g)]) for p, t, g in zip(photos, truth, logits.argmax(1), strict=True)
    ]
    return write_bundle(folder / "bundle", artifact, card, 1, locks[form.runtime], Evidence(facts, labels))


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def cost(bundle: Path, photos: list[Path]) -> dict[str, Any]:
    """Milliseconds a photo of predict.py and of the bare loop, by round."""
    paths = [str(photos[i % len(photos)]) for i in range(PHOTOS)]
    commands = {
        "predict.py": [sys.executable, str(bundle / "predict.py")],
        "decode + bare inference": [sys.executable, "-c", BARE, str(bundle)],
    }
    found: dict[str, list[float]] = {name: [] for name in commands}
    with LOCAL.lock():
        for i in range(ROUNDS):
            for name in list(commands)[:: 1 if i % 2 else -1]:
                start = seconds([*commands[name], paths[0]])
                found[name].append((seconds([*commands[name], *paths]) - start) / (PHOTOS - 1) * 1e3)
    for name, values in found.items():
        print(f"{name:28} {np.median(values):.2f} ms a photo, {min(values):.2f} to {max(values):.2f}")
    ratio = np.array(found["predict.py"]) / np.array(found["decode + bare inference"])
    print(f"predict.py / bare: {np.median(ratio):.3f}, {ratio.min():.3f} to {ratio.max():.3f} over {ROUNDS} rounds")
    return {"ms_a_photo": found, "ratio": ratio.tolist()}


def refusals(count: int, photos: list[Path], locks: dict[str, Lock]) -> dict[str, Any]:
    networks, sizes, fits = (
        ("cpu_small", "mobilenetv3_small", "lineage_student"),
        (96, 128, 168, 224),
        ("squash", "pad", "crop"),
    )
    kinds = [k for k in FORMATS if "tensor" not in k]
    rows = []
    for name, kind, size, fit in itertools.islice(
        zip(*map(itertools.cycle, (networks, kinds, sizes, fits)), strict=True), count
    ):
        with tempfile.TemporaryDirectory() as folder:
            archive = pack(Path(folder), name, size, kind, fit, photos, locks)
            began = time.perf_counter()
            found = preflight(archive, Limits(2**30, 2**30, 60), photos)
            took = time.perf_counter() - began
        rows.append(
            {"network": name, "format": kind, "size": size, "fit": fit, "verdict": found.verdict, "seconds": took}
        )
        print(
            f"{name:20} {kind:20} {size:4} px {fit:7} {found.verdict} {took:.0f} s {'; '.join(found.reasons)}",
            flush=True,
        )
    passed = sum(r["verdict"] == "pass" for r in rows)
    print(f"{passed} of {len(rows)} good bundles pass")
    return {"rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--good", type=int, default=30)
    args = parser.parse_args()
    locks = {runtime: lock(runtime) for runtime in ("onnxruntime", "openvino")}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "photos").mkdir()
        drawn = draw(Path(folder) / "photos", 24)
        bundle = args.bundle
        if bundle is None:
            pack(Path(folder), "cpu_small", 168, "onnx", "squash", drawn, locks)
            bundle = Path(folder) / "bundle"
        print(f"{read_bundle(bundle).artifact.name}, {args.images or 'drawn JPEGs of 512 x 384'}, {this_host().cpu}")
        record = {"cost": cost(bundle, find_images(args.images) if args.images else drawn)}
        if args.good:
            record["refusals"] = refusals(args.good, drawn, locks)
    record["host"] = this_host().as_dict()
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
