"""What a teacher gains, and our students beside timm's small networks: macro F1 on the same validation photos.

`python ci/bench/students_bench.py --data FOLDER --weights tf_efficientnet_lite0.safetensors [--epochs 40] [--seeds 3]
[--arms NAME ...] [--work FOLDER]`. One teacher; then every arm with every seed, the same recipe, every arm within
--limit-ms. Differences of the means over the seeds come with a 95 % interval: the photos are drawn again, with the
guesses of both arms. A killed run goes on; what is finished is kept in the work folder. --epochs 8 --seeds 1 is a short
form. Table on screen, JSON beside.
"""

import argparse
import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scipy.stats import bootstrap

from export.parity import macro_f1
from latency.host import this_host
from models.build import profile
from models.language import canonical_hash
from pipeline.checkpoint import restore
from pipeline.config import check_config
from pipeline.distill import SOFT_LABELS, student_arrays, train_student
from pipeline.find import load_index, load_student
from pipeline.inputs import predict
from pipeline.run import run_one
from pipeline.stages import Run, open_run

_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Arm:
    """student: of the config. teacher: whether it has one; live: asked in each epoch, on new views."""

    student: dict[str, Any] = field(default_factory=dict)
    teacher: bool = True
    live: bool = False


_PRETRAINED = {"model": str(_HERE / "students" / "pretrained.yaml"), "learning_rate": 3e-4}
_SMALL = ("mobilenetv3_small_050", "lcnet_050", "mobilenetv4_conv_small_050")
ARMS = {
    "scratch": Arm({"model": "cpu_small"}),
    "scratch, no teacher": Arm({"model": "cpu_small"}, teacher=False),
    "pretrained": Arm(_PRETRAINED),
    "pretrained, no teacher": Arm(_PRETRAINED, teacher=False),
    "pretrained, live teacher": Arm(_PRETRAINED, live=True),
    **{name: Arm({"model": str(_HERE / "students" / f"{name}.yaml"), "weights": "none"}) for name in _SMALL},
}
PAIRS = [
    ("scratch", "scratch, no teacher"),
    ("pretrained", "pretrained, no teacher"),
    ("pretrained, live teacher", "pretrained"),
    *((ours, name) for ours in ("scratch", "pretrained") for name in _SMALL),
]


def document(args: argparse.Namespace, arm: Arm, seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "data": {"root": str(args.data)},
        "latency": {"limit_ms": args.limit_ms},
        "search": {"measure": ["openvino-f32", "openvino-bf16", "openvino-int8"]},
        "student": {"weights": str(args.weights), **arm.student},
        "teacher": {
            "name": "tf_efficientnet_lite0",
            "weights": str(args.weights),
            "input_size": 224,
            "epochs": 10,
            "patience": 5,
            "freeze": "blocks.2",
            "augment": {"least_area": 0.5, "turns": True},
        },
        "distill": {
            "epochs": args.epochs,
            "views": None if arm.live else min(16, args.epochs),
            "weight": 0.7 if arm.teacher else 0.0,
            "augment": {"least_area": 0.4, "turns": True, "mixup": 0.2},
        },
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def taught(args: argparse.Namespace) -> Run:
    """A run folder with the one teacher."""
    folder = args.work / "teacher"
    with open_run(folder, check_config(document(args, ARMS["scratch"], 0), "bench"), say) as run:
        run_one("teach", run)
    return run


def trained(args: argparse.Namespace, teacher: Run, name: str, seed: int) -> dict[str, Any]:
    """One arm with one seed: measured, trained, and its guesses on val/."""
    taught = teacher.output_hash("teach", "teacher.safetensors")
    key, shared = (canonical_hash([document(args, ARMS[arm], seed), taught]) for arm in (name, "scratch"))
    folder = args.work / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}-{key}"
    record = folder / "record.json"
    if record.is_file():
        found: dict[str, Any] = json.loads(record.read_text())
        return found
    config = check_config(document(args, ARMS[name], seed), name)
    with open_run(folder, config, say) as own:
        chosen = run_one("select", own)  # over the limit: refused
        spec, hyper = load_student(own)
    run = replace(teacher, config=config)
    answers = args.work / f"answers-{seed}-{shared}"  # arms of one seed show the teacher the same views
    answers.mkdir(exist_ok=True)
    (folder / SOFT_LABELS).parent.mkdir(exist_ok=True)
    if not (folder / SOFT_LABELS).exists():
        (folder / SOFT_LABELS).symlink_to(answers.resolve(), target_is_directory=True)
    result = train_student(run, spec, hyper, folder)
    arrays = student_arrays(run, spec)
    logits = predict(restore(spec, result.state, folder), arrays.val, arrays)
    found = {
        "guesses": logits.argmax(1).tolist(),
        "labels": arrays.val_labels.tolist(),
        "f1_macro": result.best.f1_macro,
        "minutes": sum(len(arrays.train) / e.images_per_s for e in result.history) / 60,
        "params": profile(spec).params,
        "input_size": spec.input_size,
        "p90_ms": chosen.summary["measurement"]["latency_ms"],
        "form": chosen.summary["measurement"]["form"],
    }
    record.write_text(json.dumps(found))
    return found


def difference(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, float]:
    """Of the mean macro F1 over the seeds: one - other."""
    labels = np.array(one[0]["labels"])
    guesses = [np.array(r["guesses"]) for r in (*one, *other)]
    classes = int(labels.max()) + 1

    def change(truth: np.ndarray, *each: np.ndarray, axis: int) -> np.ndarray:
        f1 = [macro_f1(truth, g, classes, axis) for g in each]
        return np.mean(f1[: len(one)], axis=0) - np.mean(f1[len(one) :], axis=0)

    interval = bootstrap(
        (labels, *guesses), change, paired=True, vectorized=True, n_resamples=4000, method="percentile", rng=0
    ).confidence_interval
    return {"points": float(change(labels, *guesses, axis=0)), "low": float(interval.low), "high": float(interval.high)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/students"))
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit-ms", type=float, default=1.4)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=ARMS)
    args = parser.parse_args()
    teacher = taught(args)
    found = {name: [trained(args, teacher, name, seed) for seed in range(args.seeds)] for name in args.arms}
    photos = len(load_index(teacher).labels("val"))
    print(f"{args.epochs} epochs, {args.seeds} seeds, {photos} photos of val/, on which the epoch was chosen too")
    for name, records in found.items():
        f1 = [r["f1_macro"] for r in records]
        minutes = np.mean([r["minutes"] for r in records])
        speed = f"{records[0]['p90_ms']:.2f} ms {records[0]['form']}, {records[0]['params'] / 1e3:.0f} k parameters"
        print(f"{name:28} F1 {np.mean(f1):.4f} ({min(f1):.4f} to {max(f1):.4f}), {speed}, {minutes:.1f} min a training")
    differences = {f"{a} - {b}": difference(found[a], found[b]) for a, b in PAIRS if a in found and b in found}
    for name, d in differences.items():
        print(f"{name:52} {d['points']:+.4f} ({d['low']:+.4f} to {d['high']:+.4f})")
    arms = {n: [{k: v for k, v in r.items() if k != "labels"} for r in records] for n, records in found.items()}
    record = {"epochs": args.epochs, "arms": arms, "differences": differences, "host": this_host().as_dict()}
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
