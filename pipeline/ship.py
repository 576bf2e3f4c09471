"""Stages from weights to a bundle: export, quantize, verify, gate, bundle."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.all_in import measure_all_in
from export.artifact import Artifact, ModelCard
from export.bundle import write_bundle
from export.errors import ExportError
from export.onnx_export import deployable, export_onnx
from export.openvino_export import read_onnx, save_ir
from export.parity import F32_TOLERANCE, Parity, compare, f1_per_class, logits_of, scores
from export.quantize import CALIBRATION_IMAGES, quantize_onnx, quantize_openvino
from latency.gate import claim, gate
from latency.host import this_host
from latency.measure import measure
from latency.sampling import Plan
from models.build import profile
from pipeline import FORMAT
from pipeline.checkpoint import load_checkpoint, restore
from pipeline.errors import PipelineError
from pipeline.files import write_json
from pipeline.formats import FORMATS
from pipeline.images import decoded
from pipeline.learn import load_index
from pipeline.measured import forms
from pipeline.score import score
from pipeline.stages import Run, Stage

_RACE_PROCESSES = 3
_RACE_PLAN = Plan(samples=150, seconds=0.5)
_FILES = {
    ("onnxruntime", False): FORMATS["onnx"],
    ("openvino", False): FORMATS["openvino"],
    ("onnxruntime", True): "model-int8.onnx",
    ("openvino", True): "model-int8.xml",
}


# --- export ----------------------------------------------------------------------------------------------------------


def export_formats(model: torch.nn.Module, card: ModelCard, formats: tuple[str, ...], folder: Path) -> list[Path]:
    """ONNX, and OpenVINO IR made from it. formats: keys of FORMATS."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx_file, ir_file = (folder / FORMATS[name] for name in ("onnx", "openvino"))
    export_onnx(model, card, onnx_file)
    written = [onnx_file]
    if "openvino" in formats:
        save_ir(read_onnx(onnx_file), card, ir_file)
        written.append(ir_file)
    if "onnx" not in formats:
        onnx_file.unlink()
        written.remove(onnx_file)
    return written


def _export_inputs(run: Run) -> dict[str, Any]:
    return {"student": run.output_hash("distill", "student.safetensors"), "runtimes": run.config.latency.runtimes}


def _checkpoint(run: Run) -> Path:
    return run.file("distill", "student.safetensors")


def _export(run: Run, work: Path) -> dict[str, Any]:
    spec, card, state = load_checkpoint(_checkpoint(run))
    formats = ("onnx", "openvino") if "openvino" in run.config.latency.runtimes else ("onnx",)
    files = export_formats(restore(spec, state, _checkpoint(run)), card, formats, work)
    return {"files": {f.name: f.stat().st_size for f in files}}


# --- quantize --------------------------------------------------------------------------------------------------------


def _quantize_inputs(run: Run) -> dict[str, Any]:
    wanted = "int8" in run.config.latency.precisions
    return {
        "onnx": run.output_hash("export", "model.onnx"),
        "data": load_index(run).hash,
        "seed": run.config.seed,
        "runtimes": run.config.latency.runtimes if wanted else [],
    }


def _quantize(run: Run, work: Path) -> dict[str, Any]:
    if "int8" not in run.config.latency.precisions:
        return {"files": {}}
    source, index = run.file("export", "model.onnx"), load_index(run)
    _, card, _ = load_checkpoint(_checkpoint(run))
    paths = index.paths("train")
    chosen = np.random.default_rng(run.config.seed).permutation(len(paths))[:CALIBRATION_IMAGES]
    images = np.stack([card.preprocess.load(paths[i]) for i in sorted(chosen)])
    if "onnxruntime" in run.config.latency.runtimes:
        quantize_onnx(source, images, card, work / _FILES["onnxruntime", True])
    if "openvino" in run.config.latency.runtimes:
        quantize_openvino(source, images, card, work / _FILES["openvino", True])
    return {"files": {f.name: f.stat().st_size for f in sorted(work.iterdir())}, "calibrated_on": len(images)}


# --- verify: parity at each hop, and the race -------------------------------------------------------------------------


def _artifacts(run: Run) -> list[Artifact]:
    latency = run.config.latency
    found = []
    here = this_host().has_bf16  # every file is checked against torch on this machine, wherever it is timed
    for form in forms(latency.runtimes, latency.precisions, run.host, quantized=True):
        if form.precision == "bf16" and not here:
            continue
        quantized = form.precision == "int8"
        path = run.file("quantize" if quantized else "export", _FILES[form.runtime, quantized])
        found.append(Artifact(path, form.runtime, form.precision))
    return found


def _verify_inputs(run: Run) -> dict[str, Any]:
    stages = [run.manifest(s) for s in ("export", "quantize")]
    latency = run.config.latency
    return {
        "files": [m["outputs"] for m in stages if m],
        "data": load_index(run).hash,
        "host": run.host.key,
        "runtimes": latency.runtimes,
        "precisions": latency.precisions,
        "threads": latency.threads,
        "max_f1_drop": run.config.quantize.max_f1_drop,
    }


def _verify(run: Run, work: Path) -> dict[str, Any]:
    index, artifacts = load_index(run), _artifacts(run)
    spec, card, state = load_checkpoint(_checkpoint(run))
    images, labels = _split_arrays(run, card, "val")
    network = deployable(restore(spec, state, _checkpoint(run)), card)
    with torch.no_grad():
        batches = (torch.from_numpy(images[i : i + 64].copy()) for i in range(0, len(images), 64))
        reference = torch.cat([network(batch) for batch in batches]).numpy()
    torch_f1, torch_accuracy = scores(reference, labels)
    outputs = {a: logits_of(a, images) for a in artifacts}
    parities = {a: compare(reference, outputs[a], labels) for a in artifacts}
    _check_f32(parities, reference)
    run.say(f"verify: the f32 files agree with torch; timing {len(artifacts)} forms in turn")
    subjects = {a: a.subject(run.config.latency.threads) for a in artifacts}
    timed = dict(zip(artifacts, measure(subjects.values(), _RACE_PROCESSES, _RACE_PLAN, run.machine), strict=True))
    floor = torch_f1 - run.config.quantize.max_f1_drop
    summaries = {a: timed[a].summary() for a in artifacts}
    kept = [a for a in artifacts if parities[a].f1_macro >= floor]
    if not kept:
        raise ExportError(
            f"no file keeps F1 {floor:.4f} (torch {torch_f1:.4f} less quantize.max_f1_drop): "
            "add f32 to latency.precisions, or allow a larger drop"
        )
    shipped = min(kept, key=lambda a: summaries[a]["p90_ms"])
    rows = [
        {
            **a.as_dict(),
            "sha256": subjects[a].sha256,
            "effective_precision": timed[a].effective_precision,
            **asdict(parities[a]),
            "f1_change": parities[a].f1_macro - torch_f1,
            "p50_ms": summaries[a]["p50_ms"],
            "p90_ms": summaries[a]["p90_ms"],
            "cold_ms": summaries[a]["cold_ms"],
            "verdict": "shipped" if a is shipped else "slower" if a in kept else "loses too much F1",
        }
        for a in artifacts
    ]
    split = index.final_split
    if split == "val":
        final, final_labels = outputs[shipped], labels
    else:
        final_images, final_labels = _split_arrays(run, card, split)
        final = logits_of(shipped, final_images)
    f1, accuracy = scores(final, final_labels)
    summary = {
        "torch": {"f1_macro": torch_f1, "accuracy": torch_accuracy},
        "race": rows,
        "shipped": {
            "path": str(shipped.path.relative_to(run.folder)),
            "runtime": shipped.runtime,
            "precision": shipped.precision,
            "sha256": subjects[shipped].sha256,
        },
        "quality": {
            "f1_macro": f1,
            "accuracy": accuracy,
            "split": split,
            "selected_on": split == "val",
            "f1_per_class": f1_per_class(final, final_labels, index.classes),
        },
        "f1_macro_val": parities[shipped].f1_macro,
    }
    write_json(work / "race.json", {"format": FORMAT, **summary})
    write_json(work / "measurements.json", [m.as_dict() for m in timed.values()])
    return summary


def _split_arrays(run: Run, card: ModelCard, split: str) -> tuple[np.ndarray, np.ndarray]:
    index = load_index(run)
    return decoded(index, split, card.preprocess, run.cache), np.array(index.labels(split))


def _check_f32(parities: dict[Artifact, Parity], reference: np.ndarray) -> None:
    largest = float(np.abs(reference).max())
    for artifact, parity in parities.items():
        if artifact.precision == "f32" and parity.max_diff > F32_TOLERANCE * max(largest, 1.0):
            raise ExportError(
                f"{artifact.path.name} with {artifact.runtime}: a logit differs from torch's by "
                f"{parity.max_diff:.3g} (largest logit {largest:.3g}): the export is wrong, do not ship it"
            )


def _shipped(run: Run) -> Artifact:
    shipped = run.read("verify", "race.json")["shipped"]
    return Artifact(run.folder / shipped["path"], shipped["runtime"], shipped["precision"])


# --- gate ------------------------------------------------------------------------------------------------------------


def _gate_inputs(run: Run) -> dict[str, Any]:
    latency = run.config.latency
    return {
        "shipped": run.read("verify", "race.json")["shipped"],
        "host": run.host.key,
        "limit_ms": latency.limit_ms,
        "processes": latency.processes,
        "threads": latency.threads,
        "data": load_index(run).hash,
        "submission": run.config.submission.model_dump(),
    }


def _gate(run: Run, work: Path) -> dict[str, Any]:
    latency, artifact = run.config.latency, _shipped(run)
    verdict, measurement = gate(
        artifact.subject(latency.threads), latency.limit_ms, latency.processes, machine=run.machine
    )
    write_json(work / "measurement.json", measurement.as_dict())
    reasons = list(verdict.reasons)
    submission = _submission(run, artifact)
    verdicts = [verdict.verdict]
    if submission["limit_s"] is not None:
        verdicts.append(submission.pop("verdict"))
        reasons += submission.pop("reasons")
    overall = next((v for v in ("fail", "inconclusive") if v in verdicts), "pass")
    summary = {
        "verdict": overall,
        "reasons": reasons,
        "sha256": measurement.subject.sha256,
        "latency": claim(verdict, measurement),
        "submission": submission,
    }
    write_json(work / "gate.json", {"format": FORMAT, **summary})
    return summary


def _submission(run: Run, artifact: Artifact) -> dict[str, Any]:
    """The predicted time of the whole submission; a claim of its own, judged by the spread of fresh processes."""
    config, index = run.config.submission, load_index(run)
    card = load_checkpoint(_checkpoint(run))[1]
    paths = index.paths(index.final_split)
    all_in = measure_all_in(artifact, card.preprocess, paths, run.config.latency.threads, run.machine)
    images = config.images or len(paths)
    low, predicted, high = all_in.predict_s(images)
    quality = run.read("verify", "race.json")["quality"]
    parts = all_in.summary()["parts"]
    result: dict[str, Any] = {
        "images": images,
        "predicted_s": predicted,
        "predicted_upper_s": high,
        "limit_s": config.limit_s,
        "score": score(quality["f1_macro"], predicted, config.score) if config.score else None,
        "decode_ms": sum(parts[p]["mean_ms"] for p in ("read", "decode", "resize")),
        "infer_ms": parts["infer"]["mean_ms"],
        "all_in": all_in.summary(),
    }
    if config.limit_s is not None:
        result["verdict"] = "pass" if high <= config.limit_s else "fail" if low > config.limit_s else "inconclusive"
        result["reasons"] = (
            []
            if result["verdict"] == "pass"
            else [
                f"{images} images are predicted to take {low:.1f} to {high:.1f} s all in (decoding and resizing "
                f"{result['decode_ms']:.2f} ms, inference {result['infer_ms']:.2f} ms), against submission.limit_s "
                f"{config.limit_s:g}"
            ]
        )
    return result


# --- bundle ----------------------------------------------------------------------------------------------------------


def _bundle_inputs(run: Run) -> dict[str, Any]:
    return {
        "gate": run.output_hash("gate", "gate.json"),
        "shipped": run.read("verify", "race.json")["shipped"],
        "data": load_index(run).hash,
    }


def _bundle(run: Run, work: Path) -> dict[str, Any]:
    judged = run.read("gate", "gate.json")
    if judged["verdict"] != "pass":
        raise PipelineError(
            f"bundle: the gate said {judged['verdict']}: {'; '.join(judged['reasons'])}; only a proven file is packed"
        )
    card = load_checkpoint(_checkpoint(run))[1]
    index = load_index(run)
    paths = index.paths(index.final_split)
    samples = np.stack([card.preprocess.load(p) for p in paths[:: max(1, len(paths) // 4)][:4]])
    evidence = {
        "verdict": judged["verdict"],
        "latency": judged["latency"],
        "quality": run.read("verify", "race.json")["quality"],
        "host": run.host.as_dict(),
    }
    archive = write_bundle(work / "bundle", _shipped(run), card, run.config.latency.threads, samples, evidence)
    return {
        "folder": str(run.file("bundle", "bundle")),
        "archive": str(run.file("bundle", archive.name)),
        "archive_bytes": archive.stat().st_size,
    }


def model_facts(run: Run) -> dict[str, Any]:
    """The part `model` of result.json."""
    artifact = _shipped(run)
    spec, card, _ = load_checkpoint(_checkpoint(run))
    shape = profile(spec)
    return {
        "path": str(artifact.path),
        "runtime": artifact.runtime,
        "precision": artifact.precision,
        "sha256": run.read("verify", "race.json")["shipped"]["sha256"],
        "params": shape.params,
        "macs": shape.macs,
        "input_size": card.input_size,
        "size_bytes": artifact.size_bytes,
    }


EXPORT = Stage("export", ("distill",), _export_inputs, _export)
QUANTIZE = Stage("quantize", ("data", "export"), _quantize_inputs, _quantize)
VERIFY = Stage("verify", ("export", "quantize"), _verify_inputs, _verify)
GATE = Stage("gate", ("verify",), _gate_inputs, _gate, final=lambda s: s["verdict"] != "inconclusive")
BUNDLE = Stage("bundle", ("gate",), _bundle_inputs, _bundle)
