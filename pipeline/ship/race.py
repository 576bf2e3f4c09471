"""The stage `verify`: is every file the network that was trained, and in which order does the gate try them? First, of
those that keep their F1 and are as fast as the fastest, the one with the best F1."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from export.errors import ExportError
from export.onnx_export import deployable
from export.parity import LEVEL, scores
from latency.profile import profile as profile_kernels
from models.build import profile
from pipeline import FORMAT
from pipeline.data.stage import load_index
from pipeline.files import write_json
from pipeline.search.limits import shipped_over
from pipeline.ship.accuracy import MADE_HERE, Judge, accuracy_control
from pipeline.ship.candidates import (
    Candidate,
    artifacts,
    check_batches,
    check_f32,
    split_arrays,
    time_in_turn,
    torch_logits,
)
from pipeline.stages import Run, Stage
from pipeline.training.begin import load_student
from pipeline.training.checkpoint import load_checkpoint, restore

_ALIKE = 1.03
"""p90s within 3 % of the fastest are not told apart by so few processes: among them the best F1 ships."""
_COSTLY = 3
"""Findings of the profiler that are told of a slow INT8 file."""


def _inputs(run: Run) -> dict[str, Any]:
    latency = run.config.latency
    return {
        "files": [m["outputs"] for s in ("export", "quantize") if (m := run.manifest(s))],
        "data": load_index(run).hash,
        "host": run.host.key,
        "runtimes": latency.runtimes,
        "precisions": latency.precisions,
        "threads": latency.threads,
        "limits": run.config.limits.model_dump(),
        "quantize": run.config.quantize.model_dump(),
        "level": LEVEL,
        "seed": run.config.seed,
        # what INT8 is trained with, should it lose too much
        "hyper": load_student(run)[1].as_dict(),
        "distill": run.config.distill.model_dump(include={"temperature", "augment"}),
    }


def _verify(run: Run, work: Path) -> dict[str, Any]:
    for left in work.glob("model-*"):  # of a killed run
        left.unlink()
    checkpoint = run.file("distill", "student.safetensors")
    spec, card, state = load_checkpoint(checkpoint)
    images, labels = split_arrays(run, card, "val")
    network = deployable(restore(spec, state, checkpoint), card)
    reference = torch_logits(network, images)
    torch_f1, torch_accuracy = scores(reference, labels)
    judge = Judge(reference, images, labels, run.config.quantize.max_f1_drop)
    candidates = [judge.candidate(name, artifact) for name, artifact in artifacts(run)]
    if not candidates:
        raise ExportError("no file to race: latency.precisions and latency.runtimes leave none that can be run here")
    check_f32(candidates, reference)
    check_batches(network, card, images, {c.artifact.runtime for c in candidates})
    run.say(f"verify: the f32 files agree with torch; timing {len(candidates)} forms in turn")
    candidates = time_in_turn(run, candidates)
    kept = [c for c in candidates if judge.keeps(c)]
    candidates, control = accuracy_control(run, work, candidates, kept, judge)
    kept = [c for c in candidates if judge.keeps(c)]
    if not kept:
        raise ExportError(
            f"no file keeps the F1 of torch, {torch_f1:.4f}, less quantize.max_f1_drop: add f32 to latency.precisions, "
            "or allow a larger drop"
        )
    params = profile(spec).params
    small = [c for c in kept if not _too_large(run, c, params)]
    if small and len(small) < len(kept):
        run.say(f"verify: {len(kept) - len(small)} forms are over a limit of size or memory, and stand back")
    order = _order(small or kept)
    summary = {
        "torch": {"f1_macro": torch_f1, "accuracy": torch_accuracy},
        "race": [_row(c, order, kept) for c in candidates],
        "why": _why(order[0], kept, candidates, run.config.quantize.max_f1_drop),
        "slow_int8": _slow_int8(run, candidates),
        "accuracy_control": control,
        "order": [_entry(run, c) for c in order],
    }
    write_json(work / "race.json", {"format": FORMAT, **summary})
    write_json(work / "measurements.json", [c.timed.as_dict() for c in candidates if c.timed])
    return summary


def _order(fit: list[Candidate]) -> list[Candidate]:
    """The order in which the gate tries files: first, of those as fast as the fastest, the one with the best F1; then
    the others, the fastest first."""
    by_time = sorted(fit, key=lambda c: c.p90_ms)
    alike = [c for c in by_time if c.p90_ms <= _ALIKE * by_time[0].p90_ms]
    first = max(alike, key=lambda c: (c.parity.f1_macro, -c.p90_ms))
    return [first, *(c for c in by_time if c is not first)]


def _entry(run: Run, c: Candidate) -> dict[str, Any]:
    """What the gate needs to know of a file."""
    assert c.timed is not None
    return {
        "name": c.name,
        "path": _path_in_run(run, c),
        "runtime": c.artifact.runtime,
        "precision": c.artifact.precision,
        "sha256": c.timed.subject.sha256,
        "p90_ms": c.p90_ms,
        "f1_macro_val": c.parity.f1_macro,
    }


def _too_large(run: Run, candidate: Candidate, params: int) -> list[str]:
    assert candidate.timed is not None
    peak_mib = candidate.timed.summary()["peak_mib"]
    return shipped_over(run.config, params, candidate.artifact.size_bytes, peak_mib)


def _path_in_run(run: Run, c: Candidate) -> str:
    """Relative to the run folder; a file made here still lies in the working folder, which will be `verify`."""
    path = c.artifact.path
    return f"verify/{path.name}" if c.format in MADE_HERE else str(path.relative_to(run.folder))


def _row(c: Candidate, order: list[Candidate], kept: list[Candidate]) -> dict[str, Any]:
    assert c.timed is not None
    summary, first = c.timed.summary(), order[0]
    if c not in kept:
        verdict = "loses too much F1"
    elif c not in order:
        verdict = "too large"
    else:
        verdict = "first" if c is first else "slower" if c.p90_ms > first.p90_ms else "as fast, lower F1"
    return {
        "format": c.format,
        **c.artifact.as_dict(),
        "sha256": c.timed.subject.sha256,
        "effective_precision": c.timed.effective_precision,
        **asdict(c.parity),
        "p90_ms": c.p90_ms,
        **{k: summary[k] for k in ("p50_ms", "cold_ms", "load_ms")},
        "verdict": verdict,
    }


def _why(first: Candidate, kept: list[Candidate], all_of: list[Candidate], max_f1_drop: float) -> str:
    """Why the gate tries this file first, in words."""
    told = f"{first.name}: of {len(all_of)} forms {len(kept)} keep the F1 of torch to within {max_f1_drop:g}; "
    others = sorted((c for c in kept if c is not first), key=lambda c: c.p90_ms)
    if not others or others[0].p90_ms >= first.p90_ms:
        told += f"the fastest of these, p90 {first.p90_ms:.3f} ms"
        told += f", next {others[0].name} at {others[0].p90_ms:.3f} ms" if others else ""
    else:
        told += (
            f"p90 {first.p90_ms:.3f} ms is within {_ALIKE - 1:.0%} of the fastest ({others[0].name}, "
            f"{others[0].p90_ms:.3f} ms), and its F1 is higher: {first.parity.f1_macro:.4f}"
        )
    lost = [c for c in all_of if c not in kept and c.p90_ms < first.p90_ms]
    return told + (f"; faster but losing too much F1: {', '.join(c.name for c in lost)}" if lost else "")


def _slow_int8(run: Run, candidates: list[Candidate]) -> list[dict[str, Any]]:
    """For each runtime whose INT8 is no faster than its f32 file: the operators that cost it, costliest first."""
    told = []
    for runtime in run.config.latency.runtimes:
        own = [c for c in candidates if c.artifact.runtime == runtime]
        int8 = [c for c in own if c.artifact.precision == "int8" and c.format != "mixed"]
        f32 = [c for c in own if c.artifact.precision == "f32"]
        if not int8 or not f32:
            continue
        best = min(int8, key=lambda c: c.p90_ms)
        if best.p90_ms < f32[0].p90_ms:
            continue
        found = profile_kernels(best.artifact.subject(run.config.latency.threads), machine=run.machine)
        told.append(
            {
                "file": best.name,
                "p90_ms": best.p90_ms,
                "f32_p90_ms": f32[0].p90_ms,
                "operators": [{k: v for k, v in asdict(f).items() if k != "ms"} for f in found.not_int8[:_COSTLY]],
            }
        )
    return told


VERIFY = Stage("verify", ("distill", "export", "quantize"), _inputs, _verify, resumes=True)
