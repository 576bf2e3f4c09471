"""INT8 that is the fastest but loses too much F1: trained on as INT8, else some of its layers go back to f32."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.artifact import Artifact
from export.errors import ExportError
from export.formats import FORMATS
from export.mixed import Mixture, keep_f1
from export.parity import compare, keeps_f1, logits_of, scores
from export.qat import save_quantized, with_quantizers
from latency.host import INT8_DOT
from models.pretrained import Normalisation
from pipeline.errors import PipelineError
from pipeline.ship.candidates import Candidate, run_source, time_in_turn
from pipeline.show.live import bar
from pipeline.stages import Run
from pipeline.training.answers import Finished, answers
from pipeline.training.begin import load_student
from pipeline.training.checkpoint import load_checkpoint, restore
from pipeline.training.distill import student_arrays
from pipeline.training.loop import Recipe, fit
from pipeline.training.losses import distillation
from pipeline.training.teach import CHECKPOINTS, checked, reporter

MADE_HERE = ("trained", "mixed")
"""Candidates that are no format of their own."""
_QUICK_IMAGES = 32
"""Enough to rank the layers with."""
_CPU = torch.device("cpu")
_SLOWER = 0.1
"""Learning rate of the training as INT8, as a share of the student's: the network is nearly where it shall be."""


@dataclass(frozen=True)
class Judge:
    """What files are compared with. reference: the trained network's logits for the images, uint8 (n, size, size, 3).
    max_f1_drop: how much macro F1 a file may lose."""

    reference: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    max_f1_drop: float

    @property
    def floor(self) -> float:
        """The macro F1 that is enough beyond doubt."""
        return scores(self.reference, self.labels)[0] - self.max_f1_drop

    def keeps(self, candidate: Candidate) -> bool:
        """Whether a file keeps its F1, as far as these images can tell; see `keeps_f1`."""
        return keeps_f1(candidate.parity, self.max_f1_drop)

    def candidate(self, name: str, artifact: Artifact, kept: tuple[str, ...] = ()) -> Candidate:
        return Candidate(
            name, artifact, compare(self.reference, logits_of(artifact, self.images), self.labels), kept=kept
        )

    def f1(self, artifact: Artifact) -> float:
        return scores(logits_of(artifact, self.images), self.labels)[0]


def accuracy_control(
    run: Run, work: Path, candidates: list[Candidate], kept: list[Candidate], judge: Judge
) -> tuple[list[Candidate], list[dict[str, Any]]]:
    """All candidates, timed again where there are more now, and what was tried. kept: those whose F1 is enough."""
    told: list[dict[str, Any]] = []
    found: list[Candidate] = []
    best = min((c.p90_ms for c in kept), default=float("inf"))
    for runtime in run.config.latency.runtimes:
        int8 = [c for c in candidates if c.artifact.runtime == runtime and c.artifact.precision == "int8"]
        if not int8 or any(c in kept for c in int8):
            continue
        fastest = min(int8, key=lambda c: c.p90_ms)
        if fastest.p90_ms >= best:
            why = f"INT8 takes {fastest.p90_ms:.3f} ms, another {best:.3f}"
            told.append({"runtime": runtime, "how": "none", "status": "not tried", "told": why})
            continue
        if runtime == "openvino" and run.config.quantize.epochs:
            trained, entry = _train(run, work, fastest, judge)
            told.append({"runtime": runtime, **entry})
            if trained:
                found.append(trained)
                continue
        mixed, entry = _mix(run, work, fastest, judge)
        told.append({"runtime": runtime, **entry})
        found += [mixed] if mixed else []
    return (time_in_turn(run, candidates + found) if found else candidates), told


def _train(run: Run, work: Path, fastest: Candidate, judge: Judge) -> tuple[Candidate | None, dict[str, Any]]:
    """Quantization-aware training, where it reaches the floor."""
    run.say(f"verify: openvino INT8 loses too much F1; {run.config.quantize.epochs} epochs of training as INT8")
    path = work / "model-int8-trained.xml"
    try:
        _learn_as_int8(run, work, path)
    except (ExportError, PipelineError) as error:  # the other files can still ship
        run.say(f"verify: INT8 cannot be trained: {error}")
        return None, {"how": "training", "status": "failed", "told": str(error)}
    trained = judge.candidate("trained", Artifact(path, "openvino", "int8"))
    before, after = fastest.parity.f1_macro, trained.parity.f1_macro
    reached = judge.keeps(trained)
    told = f"F1 {before:.4f} before, {after:.4f} after, {judge.floor:.4f} is enough"
    entry = {"how": "training", "status": "reached" if reached else "missed", "told": told}
    return trained if reached else None, entry


def _learn_as_int8(run: Run, work: Path, path: Path) -> None:
    """Write `path`: the student that computes as INT8 and has learnt to answer as it did before (see
    `pipeline.training.answers`). On the CPU, trained in f32: NNCF's quantizers need a compiler on a GPU, and bf16 has
    too few digits for 255 steps.
    """
    checkpoint = run.file("distill", "student.safetensors")
    spec, card, state = load_checkpoint(checkpoint)
    student, hyper, arrays = restore(spec, state, checkpoint), load_student(run)[1], student_arrays(run, spec)
    images = run_source(run).images
    assert images is not None
    augment = run.config.distill.augment.model_copy(update={"n_select": hyper.n_select})
    rate = _SLOWER * hyper.learning_rate
    recipe = Recipe(run.config.quantize.epochs, hyper.optimizer, rate, hyper.batch, augment, pretrained=True)
    finished = Finished(student, Normalisation(arrays.mean, arrays.std), arrays.input_size)
    ask = answers(finished, arrays.train, recipe, run.config.seed, _CPU, run.say)

    def loss(logits: Tensor, _targets: Tensor, indices: np.ndarray, view: int) -> Tensor:
        return distillation(logits, ask(view, indices), run.config.distill.temperature)

    network = with_quantizers(student, images, card, saturates=not run.host.has_any(INT8_DOT))
    with bar("training as INT8", "images") as on_step:
        result = fit(
            network,
            arrays,
            recipe,
            run.config.seed,
            len(card.classes),
            loss,
            work / CHECKPOINTS,
            reporter(run, "verify: INT8", recipe),
            on_step,
            _CPU,
        )
    checked(run, "verify: INT8", result, "student.learning_rate")
    network.load_state_dict(result.state)
    save_quantized(network, card, images, path)


def _mix(run: Run, work: Path, fastest: Candidate, judge: Judge) -> tuple[Candidate | None, dict[str, Any]]:
    """The fastest INT8 format of its runtime, with as few layers in f32 as it takes."""
    runtime, seconds = fastest.artifact.runtime, run.config.quantize.seconds
    run.say(f"verify: {runtime} INT8 loses too much F1; up to {seconds:.0f} s for layers back in f32")
    path = work / f"model-int8-mixed{fastest.artifact.path.suffix}"
    entry = {"how": "layers back to f32", "budget_s": seconds}
    try:
        mixture = _keep_f1(run, fastest, path, judge)
    except ExportError as error:
        return None, {**entry, "status": "cannot be reached", "told": str(error)}
    told = f"{len(mixture.kept)} of {mixture.layers} layers in f32"
    mixed = judge.candidate("mixed", Artifact(path, runtime, "int8"), mixture.kept)
    return mixed, {**entry, "status": "reached", "told": told, **asdict(mixture)}


def _keep_f1(run: Run, fastest: Candidate, path: Path, judge: Judge) -> Mixture:
    source = run_source(run)
    assert source.images is not None
    few = replace(source, images=source.images[:_QUICK_IMAGES])
    runtime = fastest.artifact.runtime
    full, quick = FORMATS[fastest.format], FORMATS["openvino-int8-fast" if runtime == "openvino" else fastest.format]
    return keep_f1(
        source.onnx,
        runtime,
        lambda file, keep: quick.write(few, file, keep),
        lambda file, keep: full.write(source, file, keep),
        source.images,
        judge.f1,
        judge.floor,
        path,
        run.config.quantize.seconds,
    )
