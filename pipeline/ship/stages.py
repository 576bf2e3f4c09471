"""Stages from weights to a rehearsed bundle: export, quantize, gate, bundle, preflight. Between them: race."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from export.all_in import measure_all_in
from export.artifact import Artifact, ModelCard, remove_model, sha256
from export.bundle import Evidence, write_bundle
from export.checks import Limits
from export.errors import ExportError
from export.formats import FORMATS, Source, Written, write_formats
from export.lock import lock
from export.onnx_export import export_onnx
from export.preflight import preflight
from latency.errors import LatencyError
from latency.gate import claim, gate
from latency.host import INT8_DOT, this_host
from latency.profile import profile as profile_kernels
from models.build import profile
from pipeline import FORMAT
from pipeline.data.stage import load_index
from pipeline.errors import ChangedOutput, PipelineError
from pipeline.files import write_json
from pipeline.search.limits import shipped_over
from pipeline.search.score import score
from pipeline.ship.candidates import race_formats, run_source
from pipeline.show.live import bar
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
    _refuse(written)
    return {"files": {f.name: f.stat().st_size for f in sorted(work.iterdir())}}


def _refuse(written: list[Written]) -> None:
    bad = [f"{w.format}: {w.status}: {w.reason}" for w in written if w.status != "passed"]
    if bad:
        raise ExportError("; ".join(bad))


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
    for row in written:
        if row.status != "passed":
            run.say(f"quantize: {row.format} {row.status}: {row.reason}")
            remove_model(work / FORMATS[row.format].file)
    return {
        "files": {f.name: f.stat().st_size for f in sorted(work.iterdir())},
        "formats": [asdict(replace(w, path=None)) for w in written],
    }


# --- gate ------------------------------------------------------------------------------------------------------------


def _shipped(run: Run) -> Artifact:
    """The file that the race chose, if it is still the one that raced. Raises ChangedOutput."""
    shipped = run.read("verify", "race.json")["shipped"]
    stage, name = Path(shipped["path"]).parts
    artifact = Artifact(run.model(stage, name), shipped["runtime"], shipped["precision"])
    _same(artifact, shipped["sha256"], "raced")
    return artifact


def _same(artifact: Artifact, digest: str, what: str) -> None:
    if artifact.subject(1).sha256 != digest:
        raise ChangedOutput(f"{artifact.path}: it is not the file that {what}; `edgebuild run` does the rest again")


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
        "limits": run.config.limits.model_dump(),
    }


def _gate(run: Run, work: Path) -> dict[str, Any]:
    latency, artifact = run.config.latency, _shipped(run)
    subject = artifact.subject(latency.threads)
    with bar("fresh processes") as tick:
        verdict, measurement = gate(subject, latency.limit_ms, latency.processes, machine=run.machine, tick=tick)
    _same(artifact, measurement.subject.sha256, "was timed")
    write_json(work / "measurement.json", measurement.as_dict())
    try:
        write_json(work / "profile.json", asdict(profile_kernels(subject, machine=run.machine)))
    except LatencyError as error:  # the report does without; the verdict stands
        run.say(f"gate: no time by operator: {error}")
    spec, _, _ = load_checkpoint(_checkpoint(run))
    peak_mib = measurement.summary()["peak_mib"]
    over = shipped_over(run.config, profile(spec).params, artifact.size_bytes, peak_mib)
    reasons = [*verdict.reasons, *over]
    submission = _submission(run, artifact)
    verdicts = [verdict.verdict, *(["fail"] if over else [])]
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
        "race": run.output_hash("verify", "race.json"),
        "data": load_index(run).hash,
    }


def _bundle(run: Run, work: Path) -> dict[str, Any]:
    judged, race = run.read("gate", "gate.json"), run.read("verify", "race.json")
    if judged["verdict"] != "pass":
        raise PipelineError(
            f"bundle: the gate said {judged['verdict']}: {'; '.join(judged['reasons'])}; only a proven file is packed"
        )
    card, index, artifact = load_checkpoint(_checkpoint(run))[1], load_index(run), _shipped(run)
    _same(artifact, judged["sha256"], "the gate judged")
    split, facts, portability = index.final_split, model_facts(run), race["portability"]
    truth = [index.classes[i] for i in index.labels(split)]
    evidence = Evidence(
        facts={
            "verdict": judged["verdict"],
            "latency": judged["latency"],
            "submission": judged["submission"],
            "quality": race["quality"],
            "host": run.host.as_dict(),
            "params": facts["params"],
            "macs": facts["macs"],
            "portability": portability,
        },
        photos=list(zip(index.unchanged(split), truth, race["guesses"], strict=True)),
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
    artifact = _shipped(run)
    spec, card, _ = load_checkpoint(_checkpoint(run))
    shape = profile(spec)
    return {
        "path": artifact.path.relative_to(run.folder).as_posix(),
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
GATE = Stage("gate", ("verify",), _gate_inputs, _gate, final=lambda s: s["verdict"] != "inconclusive")
BUNDLE = Stage("bundle", ("gate",), _bundle_inputs, _bundle, final=lambda s: bool(s["locked"]))
PREFLIGHT = Stage(
    "preflight", ("bundle",), _preflight_inputs, _preflight, final=lambda s: s["verdict"] != "inconclusive"
)
