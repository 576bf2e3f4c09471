"""Trim a real run folder to the records that its report reads: python tests/golden/make_run.py RUN tests/golden/run.

tests/golden/run is of `edgebuild run -c demo --set latency.limit_ms=1.2 --set search.trials=12 --set
search.max_minutes=8`.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from export.artifact import sha256
from pipeline.files import write_record

_PHOTOS = 3
"""Of each split that no figure is of."""


def main(run: Path, golden: Path) -> None:
    shutil.rmtree(golden, ignore_errors=True)
    for file in sorted(run.glob("*/manifest.json")):
        _copy(file, golden / file.relative_to(run))
    for name in (
        "config.yaml",
        "result.json",
        "data/index.json",
        "search/trials.json",
        "select/student.yaml",
        "teach/training.json",
        "distill/training.json",
        "verify/race.json",
        "gate/gate.json",
        "gate/measurement.json",
        "gate/profile.json",
    ):
        _copy(run / name, golden / name)
    seal(golden)


def seal(run: Path) -> None:
    """Write hashes and digests anew, as of a run whose stages left these files. What is not there keeps its hash."""
    for manifest in run.glob("*/manifest.json"):
        record = json.loads(manifest.read_text(encoding="utf-8"))
        here = {n: manifest.parent / n for n in record["outputs"]}
        record["outputs"] |= {n: sha256(p) for n, p in here.items() if p.is_file()}
        write_record(manifest, record)
    result = run / "result.json"
    if result.is_file():
        write_record(result, json.loads(result.read_text(encoding="utf-8")))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix != ".json":
        shutil.copyfile(source, target)
        return
    value = _short(json.loads(source.read_text(encoding="utf-8")))
    if source.name == "index.json":
        value["root"] = "/photos"
        value["splits"] = {s: v if s == "test" else v[:_PHOTOS] for s, v in value["splits"].items()}
    if source.name == "profile.json":
        value["kernels"] = []
    if source.name == "manifest.json":
        value["inputs"] = {}
    target.write_text(json.dumps(value, separators=(",", ":")) + "\n", encoding="utf-8")


def _short(value: Any) -> Any:
    """Numbers with five digits, no place of the machine."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_short(v) for v in value]
    if isinstance(value, str) and value.startswith("/"):
        return Path(value).name
    return value


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
