"""Writes each network of models/zoo as OUT/NAME.onnx, with fresh weights: `python ci/build_zoo.py OUT`.

What the latency check of .ci/run builds from this checkout and from its base revision.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from export.onnx_export import export_onnx
from models.build import build
from models.spec import ModelSpec
from pipeline.training.checkpoint import student_card


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(Path("models/zoo").glob("*.yaml")):
        spec = ModelSpec.load(path)
        spec = spec.with_classes(spec.classes or 6)
        classes = tuple(f"class-{i}" for i in range(spec.classes or 6))
        export_onnx(build(spec, seed=0), student_card(spec, classes, "squash"), out / f"{path.stem}.onnx")


if __name__ == "__main__":
    main()
