"""What a teacher gains, and our students beside timm's small networks: macro F1 on the same validation photos.

`python ci/bench/students_bench.py --data FOLDER --weights tf_efficientnet_lite0.safetensors [--epochs 30] [--seeds 3]
[--arms NAME ...] [--repeats N] [--work FOLDER] [--json FILE]`. The config `trashnet`, its teacher once; then every arm
with every seed, within --limit-ms, the pretrained for a fifth of the epochs. Differences of the means over the seeds
come with a 95 % interval: the photos are drawn again, with the guesses of both arms. A killed run goes on; what is
finished is kept in the work folder. --epochs 9 --seeds 1 is a short form. Table on screen, JSON beside.

Small networks train best on one thread each: with OMP_NUM_THREADS=1 start the same command once a core, and they share
the trainings among them.
"""

import argparse
import fcntl
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from export.parity import interval, macro_f1
from latency.host import this_host
from models.build import profile
from models.language import canonical_hash
from models.space import Hyper
from models.spec import ModelSpec
from pipeline.config import BuildConfig, load_config
from pipeline.data.stage import load_index
from pipeline.files import write_json
from pipeline.run import run_one
from pipeline.stages import Run, open_run
from pipeline.training.begin import load_student
from pipeline.training.checkpoint import restore
from pipeline.training.distill import SOFT_LABELS, student_arrays, train_student
from pipeline.training.inputs import predict

_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Arm:
    """settings: of the config. teacher: whether it has one. live: it is asked in each epoch. shorter: trained for
    so many times fewer epochs. repeats: in how many epochs a stored view is shown."""

    settings: dict[str, Any]
    teacher: bool = True
    live: bool = False
    shorter: int = 1
    repeats: int = 1


@dataclass(frozen=True)
class Chosen:
    """An arm's student, within the limit."""

    spec: ModelSpec
    hyper: Hyper
    p90_ms: float
    form: str


_SCRATCH = {"student.model": str(_HERE / "students" / "scratch.yaml")}
_PRETRAINED = {"student.model": str(_HERE / "students" / "pretrained.yaml"), "student.learning_rate": 3e-4}
_LEARNT = 5
"""A network that has learnt before needs fewer epochs: this many times."""
_SMALL = ("mobilenetv3_small_050", "lcnet_050", "mobilenetv4_conv_small_050")
ARMS = {
    "scratch": Arm(_SCRATCH, repeats=2),
    "scratch, no teacher": Arm(_SCRATCH, teacher=False),
    "pretrained": Arm(_PRETRAINED, shorter=_LEARNT, repeats=3),
    "pretrained, no teacher": Arm(_PRETRAINED, teacher=False, shorter=_LEARNT),
    "pretrained, live teacher": Arm(_PRETRAINED, live=True, shorter=_LEARNT),
    **{
        name: Arm({"student.model": str(_HERE / "students" / f"{name}.yaml"), "student.weights": "none"}, repeats=2)
        for name in _SMALL
    },
}
PAIRS = [
    ("scratch", "scratch, no teacher"),
    ("pretrained", "pretrained, no teacher"),
    ("pretrained, live teacher", "pretrained"),
    ("pretrained, live teacher", "pretrained, no teacher"),
    *((ours, name) for ours in ("scratch", "pretrained") for name in _SMALL),
]


def config_of(args: argparse.Namespace, arm: Arm, seed: int) -> BuildConfig:
    """`trashnet`, with the arm's student and settings."""
    epochs = max(1, args.epochs // arm.shorter)
    repeats = args.repeats or arm.repeats
    settings = {
        "seed": seed,
        "data.root": str(args.data),
        "latency.limit_ms": args.limit_ms,
        "teacher.weights": str(args.weights),
        "student.weights": str(args.weights),
        "distill.epochs": epochs,
        "distill.views": max(1, epochs // repeats) if arm.teacher and not arm.live else None,
        **({} if arm.teacher else {"distill.weight": 0.0}),
        **arm.settings,
    }
    return load_config("trashnet", [f"{key}={json.dumps(value)}" for key, value in settings.items()])


def slug(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def taught(args: argparse.Namespace) -> Run:
    """A run folder with the one teacher."""
    with open_run(args.work / "teacher", config_of(args, ARMS["scratch"], 0), say) as run:
        run_one("teach", run)
    return run


def measured(args: argparse.Namespace, name: str) -> Chosen:
    """The arm's student. Raises PipelineError where it is over the limit."""
    with open_run(args.work / f"measured-{slug(name)}", config_of(args, ARMS[name], 0), say) as run:
        record = run_one("select", run).summary["measurement"]
        return Chosen(*load_student(run), record["latency_ms"], record["form"])


@contextmanager
def claimed(folder: Path, wait: bool) -> Iterator[bool]:
    """Whether it is ours, among the processes that share the work."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


@dataclass(frozen=True)
class Job:
    """One arm with one seed. lock: of those who may not work at the same time."""

    name: str
    seed: int
    run: Run
    chosen: Chosen
    folder: Path
    lock: Path

    @property
    def record(self) -> Path:
        return self.folder / "record.json"


def job(args: argparse.Namespace, teacher: Run, name: str, chosen: Chosen, seed: int) -> Job:
    run = replace(teacher, config=config_of(args, ARMS[name], seed))
    taught, document = teacher.output_hash("teach", "teacher.safetensors"), run.config.model_dump(mode="json")
    folder = args.work / f"{slug(name)}-{seed}-{canonical_hash([document, taught])}"
    if not run.config.distill.views:
        return Job(name, seed, run, chosen, folder, lock=folder)
    answers = folder / SOFT_LABELS
    if not answers.exists():  # arms of one seed show the teacher the same views
        shared = args.work / f"answers-{seed}-{canonical_hash([document['distill']['augment'], taught])}"
        shared.mkdir(exist_ok=True)
        answers.parent.mkdir(parents=True, exist_ok=True)
        answers.symlink_to(shared.resolve(), target_is_directory=True)
    return Job(name, seed, run, chosen, folder, lock=answers)


def train(job: Job) -> None:
    """Its record: what it took, and its guesses on val/."""
    say(f"{job.name}, seed {job.seed}")
    chosen, run = job.chosen, job.run
    result = train_student(run, chosen.spec, chosen.hyper, job.folder)
    arrays = student_arrays(run, chosen.spec)
    logits = predict(restore(chosen.spec, result.state, job.folder), arrays.val, arrays)
    found = {
        "guesses": logits.argmax(1).tolist(),
        "labels": arrays.val_labels.tolist(),
        "f1_macro": result.best.f1_macro,
        "minutes": sum(len(arrays.train) / e.images_per_s for e in result.history) / 60,
        "epochs": run.config.distill.epochs,
        "views": run.config.distill.views,
        "params": profile(chosen.spec).params,
        "input_size": chosen.spec.input_size,
        "p90_ms": chosen.p90_ms,
        "form": chosen.form,
    }
    write_json(job.record, found)


def difference(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, float]:
    """Of the mean macro F1 over the seeds: one - other."""
    labels = np.array(one[0]["labels"])
    guesses = [np.array(r["guesses"]) for r in (*one, *other)]
    classes = int(labels.max()) + 1

    def change(truth: np.ndarray, *each: np.ndarray, axis: int) -> np.ndarray:
        f1 = [macro_f1(truth, g, classes, axis) for g in each]
        return np.mean(f1[: len(one)], axis=0) - np.mean(f1[len(one) :], axis=0)

    low, high = interval(change, labels, *guesses)
    return {"points": float(change(labels, *guesses, axis=0)), "low": low, "high": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/students"))
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit-ms", type=float, default=1.4)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=ARMS)
    parser.add_argument("--repeats", type=int, help="in how many epochs a stored view is shown, in all arms")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    with claimed(args.work, wait=True):
        teacher = taught(args)
        chosen = {name: measured(args, name) for name in args.arms}
        jobs = [job(args, teacher, name, chosen[name], seed) for seed in range(args.seeds) for name in args.arms]
    for wait in (False, True):  # what others are at comes last, when it mostly is done
        for one in jobs:
            with claimed(one.lock, wait) as ours:
                if ours and not one.record.is_file():
                    train(one)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in args.arms}
    for one in jobs:
        found[one.name].append(json.loads(one.record.read_text()))
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
    write_json(args.json, record)


if __name__ == "__main__":
    main()
