"""A rehearsed submission: does the bundle run where nothing is installed, without network, within its limits?

What can be read is checked first, and what fails there is never run. Then, in a sandbox: an environment from the
bundle's own lock, and predict.py on golden samples and photos, judged outside of it (`judge`). Hashes inside a bundle
find damage, not an attacker, who would write them anew; a stranger's predict.py can lie about its own answers, but not
leave the sandbox (as far as the kernel's namespaces hold) and not hide what it wrote.
"""

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from export import sandbox
from export.artifact import sha256
from export.checks import PROCESSES, Check, Checks, Ended, Limits
from export.examine import examine, unpacked
from export.judge import judge_golden, judge_resources, judge_slice, judge_steps, judge_time, last_words
from export.manifest import Manifest
from export.sandbox import Given, SandboxMissing
from latency.host import this_host
from latency.machine import LOCAL

TIMED_IMAGES = 200
"""Labelled by each process, the photos over again where they are fewer: the start's own noise counts little then."""
_NETWORK = re.compile(r"connection|resolve|resolution|timed out|network is unreachable|proxy|SSL", re.IGNORECASE)


@dataclass(frozen=True)
class Preflight:
    """verdict: fail where any check failed, else inconclusive where any could not tell, else pass."""

    checks: tuple[Check, ...]
    figures: dict[str, Any]
    limits: Limits
    host: dict[str, Any]
    format: int = 1

    @property
    def verdict(self) -> str:
        found = [c.verdict for c in self.checks]
        return next((v for v in ("fail", "inconclusive") if v in found), "pass")

    @property
    def reasons(self) -> list[str]:
        return [f"{c.name}: {c.told}" for c in self.checks if c.verdict == self.verdict and c.verdict != "pass"]

    def as_dict(self) -> dict[str, Any]:
        return {"verdict": self.verdict, "reasons": self.reasons, **asdict(self)}


def preflight(
    path: Path,
    limits: Limits,
    photos: Sequence[Path] = (),
    count: int | None = None,
    wheels: Path | None = None,
) -> Preflight:
    """path: an archive or a folder. photos: to label; count: how many a submission has. wheels: a folder of the lock's
    packages, instead of the index. Raises nothing that the bundle is to blame for."""
    checks = Checks()
    figures: dict[str, Any] = {}
    host = this_host()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        try:
            folder = unpacked(path, work / "unpacked", checks)
            manifest = examine(folder, host, checks)
            _rehearse(manifest, folder, limits, photos, count or len(photos), wheels, work, checks, figures)
        except Ended:
            pass
    return Preflight(tuple(checks.found), figures, limits, host.as_dict())


def _rehearse(
    manifest: Manifest,
    folder: Path,
    limits: Limits,
    photos: Sequence[Path],
    count: int,
    wheels: Path | None,
    work: Path,
    checks: Checks,
    figures: dict[str, Any],
) -> None:
    missing = sandbox.available()
    if missing:
        checks.stop("sandbox", "inconclusive", f"{missing}; nothing of the bundle was run")
    (work / "wheels").mkdir()
    problem = sandbox.fetch(folder / "requirements.txt", work / "wheels", wheels)
    if problem:
        offline = wheels is None and bool(_NETWORK.search(problem))
        told = f"the lock cannot be fetched: {last_words(problem)}"
        checks.stop("dependencies", "inconclusive" if offline else "fail", told)
    recorded, paths = manifest.slice, [p.resolve() for p in photos]
    root = Path(os.path.commonpath([p.parent for p in paths])) if paths else None
    inside = {p: f"/given/images/{p.relative_to(root)}" for p in paths} if root else {}
    known = {inside[p]: digest for p in paths if (digest := sha256(p)) in recorded}
    timed = [inside[paths[i * len(paths) // TIMED_IMAGES]] for i in range(TIMED_IMAGES)] if paths else []
    runs = _runs(manifest, list(known), timed)
    request = {"memory_bytes": limits.memory_bytes, "timeout_s": limits.run_s, "runs": runs}
    given = Given(folder, work / "wheels", root)
    with LOCAL.lock():
        try:
            answer = sandbox.rehearse(given, limits.disk, request, len(runs) * limits.run_s)
        except SandboxMissing as error:
            checks.stop("sandbox", "inconclusive", str(error))
    steps = answer["steps"]
    figures |= {
        "disk_peak_bytes": answer["disk_peak_bytes"],
        **{f"{name}_bytes": size for name, size in answer["bytes"].items()},
        "install_s": sum(steps[s]["seconds"] for s in ("venv", "install") if s in steps),
        "memory_peak_bytes": max(
            (s["peak_bytes"] for n, s in steps.items() if n not in ("venv", "install")), default=0
        ),
    }
    judge_steps(answer, limits, checks)
    judge_golden(manifest, steps["golden"]["rows"], checks)
    if paths:
        judge_slice(manifest, known, steps, checks)
    judge_resources(limits, figures, checks)
    judge_time(steps, len(timed), count, limits, checks, figures)


def _runs(manifest: Manifest, known: list[str], timed: list[str]) -> list[dict[str, Any]]:
    predict, out = "{bundle}/predict.py", ["--json", "{out}"]
    runs: list[dict[str, Any]] = [
        {"name": "imports", "args": ["-c", f"import numpy, PIL, {manifest.model.runtime}"], "codes": [0]},
        {"name": "golden", "args": [predict, *out, "{bundle}/golden"], "codes": [0], "keep": True},
    ]
    if known:
        runs.append({"name": "slice", "args": [predict, *out, *known], "codes": [0, 1], "keep": True})
    one = timed[:1] or ["{bundle}/golden/turned.jpg"]
    for i in range(PROCESSES):
        runs.append({"name": f"start-{i}", "args": [predict, *out, *one], "codes": [0, 1]})
        if len(timed) > 1:
            runs.append({"name": f"images-{i}", "args": [predict, *out, *timed], "codes": [0, 1]})
    return runs
