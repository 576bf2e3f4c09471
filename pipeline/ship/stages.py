"""Stages from weights to a rehearsed bundle: export, quantize, bundle, preflight. Between them: race and gate."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from export.artifact import ModelCard, remove_model, sha256
from export.bundle import Evidence, write_bundle
from export.checks import Limits
from export.errors import ExportError
from export.formats import FORMATS, Source, Written, write_formats
from export.lock import lock
from export.onnx_export import export_onnx
from export.preflight import preflight
from latency.host import INT8_DOT, this_host
from models.build import profile
from pipeline.data.stage import load_index
from pipeline.errors import PipelineError
from pipeline.files import write_json
from pipeline.ship.candidates import race_formats, run_source
from pipeline.ship.gate import artifact_of
from pipeline.stages import Run, Stage
from pipeline.training.checkpoint import load_checkpoint, restore

# --- export ----------------------------------------------------------------------------------------------------------


def write_f32(model: torch.nn.Module, card: ModelCard, folder: Path) -> Path:
    """The f32 ONNX file that all other formats are made from."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FORMATS["onnx"].file
    export_onnx(model, card, path)
    return path


def _export_inputs(run: Run) -> dict[str, Any]:
    return {"student": run.output_hash("distill", "student.safetensors"), "runtimes": run.config.latency.runtimes}


def _checkpoint(run: Run) -> Path:
    return run.file("distill", "student.safetensors")


def _export(run: Run, work: Path) -> dict[str, Any]:
    spec, card, state = load_checkpoint(_checkpoint(run))
    source = Source(write_f32(restore(spec, state, _checkpoint(run)), card, work), card)
    written = write_formats(source, [n for n, f in race_formats(run).items() if not f.quantized], work)
    for row in _without_failed(written, work):
        run.say(f"export: {row.format}: {row.reason}")
    if not any(w.status == "passed" for w in written):
        raise ExportError("; ".join(f"{w.format}: {w.status}: {w.reason}" for w in written))
    return {"files": {f.name: f.stat().st_size for f in sorted(work.iterdir())}}


def _without_failed(written: list[Written], folder: Path) -> list[Written]:
    """Those that failed, whose files are removed but for the ONNX file that all others are made from."""
    failed = [w for w in written if w.status != "passed"]
    for row in failed:
        if row.format != "onnx":
            remove_model(folder / FORMATS[row.format].file)
    return failed


# --- quantize --------------------------------------------------------------------------------------------------------


def _quantize_inputs(run: Run) -> dict[str, Any]:
    return {
        "onnx": run.output_hash("export", "model.onnx"),
        "data": load_index(run).hash,
        "seed": run.config.seed,
        "images": run.config.quantize.images,
        "formats": [n for n, f in race_formats(run).items() if f.quantized],
        "saturates": not run.host.has_any(INT8_DOT),
    }


def _quantize(run: Run, work: Path) -> dict[str, Any]:
    wanted = [n for n, f in race_formats(run).items() if f.quantized]
    if not wanted:
        return {"files": {}, "formats": []}
    written = write_formats(run_source(run), wanted, work)
    for row in _without_failed(written, work):
        run.say(f"quantize: {row.format}: {row.reason}")
    return {
        "files": {f.name: f.stat().st_size for f in sorted(work.iterdir())},
        "formats": [asdict(replace(w, path=None)) for w in written],
    }


# --- bundle ----------------------------------------------------------------------------------------------------------


def _bundle_inputs(run: Run) -> dict[str, Any]:
    return {"gate": run.output_hash("gate", "gate.json"), "data": load_index(run).hash}


def _bundle(run: Run, work: Path) -> dict[str, Any]:
    judged = run.read("gate", "gate.json")
    if judged["verdict"] != "pass":
        raise PipelineError(
            f"bundle: the gate said {judged['verdict']}: {'; '.join(judged['reasons'])}; only a proven file is packed"
        )
    card, index, artifact = load_checkpoint(_checkpoint(run))[1], load_index(run), artifact_of(run, judged["shipped"])
    split, facts, portability = index.final_split, model_facts(run), judged["portability"]
    truth = [index.classes[i] for i in index.labels(split)]
    evidence = Evidence(
        facts={
            "verdict": judged["verdict"],
            "latency": judged["latency"],
            "submission": judged["submission"],
            "quality": judged["quality"],
            "host": run.host.as_dict(),
            "params": facts["params"],
            "macs": facts["macs"],
            "portability": portability,
        },
        photos=list(zip(index.unchanged(split), truth, judged["guesses"], strict=True)),
        relies_on=portability["relies_on"],
        drift=0.0 if portability["relies_on"] else portability.get("max_diff", 0.0),
    )
    packages = lock(artifact.runtime)
    if packages.problem:
        run.say(f"bundle: requirements.txt has versions only, no hashes: {packages.problem}")
    archive = write_bundle(work / "bundle", artifact, card, run.config.latency.threads, packages, evidence)
    return {
        "folder": "bundle/bundle",
        "archive": f"bundle/{archive.name}",
        "sha256": sha256(archive),
        "archive_bytes": archive.stat().st_size,
        "locked": packages.problem is None,
    }


# --- preflight -------------------------------------------------------------------------------------------------------


def _preflight_inputs(run: Run) -> dict[str, Any]:
    return {
        "bundle": run.output_hash("bundle", "bundle.tar.gz"),
        "limits": run.config.preflight.model_dump(),
        "submission": run.config.submission.model_dump(),
        "host": this_host().key,
    }


def _preflight(run: Run, work: Path) -> dict[str, Any]:
    index, wanted, submission = load_index(run), run.config.preflight, run.config.submission
    paths = index.paths(index.final_split)
    limits = Limits(wanted.disk, wanted.memory, wanted.seconds or submission.limit_s)
    archive = run.file("bundle", "bundle.tar.gz")
    found = preflight(archive, limits, paths, submission.images or len(paths)).as_dict()
    write_json(work / "preflight.json", found)
    return found


def model_facts(run: Run) -> dict[str, Any]:
    """The part `model` of result.json."""
    shipped = run.read("gate", "gate.json")["shipped"]
    artifact = artifact_of(run, shipped)
    spec, card, _ = load_checkpoint(_checkpoint(run))
    shape = profile(spec)
    return {
        "path": shipped["path"],
        "runtime": artifact.runtime,
        "precision": artifact.precision,
        "sha256": shipped["sha256"],
        "params": shape.params,
        "macs": shape.macs,
        "input_size": card.input_size,
        "size_bytes": artifact.size_bytes,
    }


EXPORT = Stage("export", ("distill",), _export_inputs, _export)
QUANTIZE = Stage("quantize", ("data", "export"), _quantize_inputs, _quantize)
BUNDLE = Stage("bundle", ("gate",), _bundle_inputs, _bundle, final=lambda s: bool(s["locked"]))
PREFLIGHT = Stage(
    "preflight", ("bundle",), _preflight_inputs, _preflight, final=lambda s: s["verdict"] != "inconclusive"
)
