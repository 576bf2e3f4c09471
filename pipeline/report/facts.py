"""What a report tells, gathered from the run folder: nothing is measured here."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.build import profile
from models.documents import dump_yaml
from models.pretrained import stage_profiles
from models.spec import ModelSpec
from pipeline.data.index import Index
from pipeline.data.stage import load_index
from pipeline.report import figures, photos
from pipeline.report.figures import Chart
from pipeline.stages import Run


@dataclass(frozen=True)
class Facts:
    """result: what result.json holds, or will. summaries: stage -> what its `--json` prints. charts: section -> its
    figures. model: the chosen architecture, as `models.build.Profile` has it. worst: `photos.worst`."""

    name: str
    result: dict[str, Any]
    summaries: dict[str, dict[str, Any]]
    charts: dict[str, list[Chart]]
    model: dict[str, Any] | None
    model_yaml: str
    config_yaml: str
    worst: list[dict[str, Any]]
    versions: dict[str, str]
    hashes: dict[str, str]
    verified: str


def gather(run: Run, result: dict[str, Any], rows: Sequence[dict[str, Any]], shares: dict[str, Any]) -> Facts:
    """Of the stages named in the result. rows, shares: of the search, finished or not."""
    manifests = {s["name"]: m for s in result["stages"] if (m := run.manifest(s["name"]))}
    summaries = {name: m["summary"] for name, m in manifests.items()}
    index = load_index(run) if "data" in manifests else None
    model, model_yaml = _architecture(run) if "select" in manifests else (None, "")
    return Facts(
        name=run.folder.resolve().name,
        result=result,
        summaries=summaries,
        charts=_charts(run, summaries, rows, shares),
        model=model,
        model_yaml=model_yaml,
        config_yaml=dump_yaml(run.config.model_dump(mode="json")),
        worst=_worst(run, index) if index and "gate" in manifests else [],
        versions=next(reversed(manifests.values()))["versions"] if manifests else {},
        hashes=_hashes(index, manifests, result),
        verified=_verified(run, manifests),
    )


def _verified(run: Run, manifests: dict[str, dict[str, Any]]) -> str:
    """A sentence on the files that were compared with their recorded hashes. `standing` has excluded changed stages."""
    paths = [run.path(stage, name) for stage, manifest in manifests.items() for name in manifest["outputs"]]
    there = sum(path.is_file() for path in paths)
    gone = f"; {len(paths) - there} more are not in the folder any longer" if there < len(paths) else ""
    return f"{there} files of {len(manifests)} stages have the sha256 that their stage recorded{gone}."


def _architecture(run: Run) -> tuple[dict[str, Any], str]:
    spec = ModelSpec.load(run.file("select", "student.yaml"))
    text = dump_yaml(spec.document(), default_flow_style=None)
    model = profile(spec).as_dict()
    if spec.network:
        first, *rest = model["layers"]
        stages = stage_profiles(spec.network, first["args"]["until"], spec.input_size)
        named = [{**asdict(s), "module": f"{spec.network} {s.name}", "args": {}} for s in stages]
        model["layers"] = [*named, *rest]
    return model, text


def _charts(
    run: Run, summaries: dict[str, dict[str, Any]], rows: Sequence[dict[str, Any]], shares: dict[str, Any]
) -> dict[str, list[Chart]]:
    charts: dict[str, list[Chart]] = {"search": [], "training": [], "latency": [], "quality": []}
    limit_ms, chosen = run.config.latency.limit_ms, summaries.get("select", {}).get("trial")
    if rows:
        charts["search"] += [figures.pareto(rows, limit_ms, chosen), *figures.histories(rows, limit_ms)]
        if any("f1_by_epoch" in r for r in rows):
            charts["search"].append(figures.curves(rows, chosen))
        if any(shares.values()):
            charts["search"].append(figures.importances(shares, len(rows)))
    records = {
        who: run.read(stage, "training.json")
        for stage, who in (("teach", "teacher"), ("distill", "student"))
        if stage in summaries
    }
    if records:
        charts["training"] = figures.learning(records)
    if "gate" in summaries:
        gated = summaries["gate"]
        charts["latency"].append(figures.by_process(run.read("gate", "measurement.json"), gated["latency"]))
        if run.has("gate", "profile.json"):
            charts["latency"].append(figures.operators(run.read("gate", "profile.json")))
        whole = gated["submission"]["all_in"]
        charts["latency"].append(figures.all_in(whole["parts"], whole["images"], whole["processes"]))
    if "gate" in summaries:
        quality = summaries["gate"]["quality"]
        charts["quality"] = [figures.per_class(quality), figures.confusion(quality)]
    return charts


def _worst(run: Run, index: Index) -> list[dict[str, Any]]:
    judged = run.read("gate", "gate.json")
    split = judged["quality"]["split"]
    if split not in index.splits:
        return []
    truth = [index.classes[i] for i in index.labels(split)]
    return photos.worst(index.paths(split), truth, judged["guesses"], judged["losses"])


def _hashes(index: Index | None, manifests: dict[str, Any], result: dict[str, Any]) -> dict[str, str]:
    found = {"photos (bytes, labels, splits)": index.hash} if index else {}
    for what, stage, name in (
        ("architecture", "select", "student.yaml"),
        ("student's weights", "distill", "student.safetensors"),
        ("bundle", "bundle", "bundle.tar.gz"),
    ):
        if digest := manifests.get(stage, {}).get("outputs", {}).get(name):
            found[f"{what} ({stage}/{name})"] = digest
    if result["model"]:
        found[f"model ({Path(result['model']['path']).name})"] = result["model"]["sha256"]
    return found
