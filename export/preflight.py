"""A rehearsed submission: does the bundle run where nothing is installed, without network, within its limits?

What can be read is checked first, and what fails there is never run. Then, in a sandbox: an environment from the
bundle's own lock, and predict.py on golden samples and photos, judged outside of it (`judge`). Hashes inside a bundle
find damage, not an attacker, who would write them anew; a stranger's predict.py can forge all answers of the sandbox,
its times and sizes too, but not leave it, as far as the kernel's namespaces hold.
"""

import contextlib
import re
import shutil
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
from export.preprocess import ImageError, Preprocess
from export.sandbox import Given, SandboxMissing
from latency.host import this_host
from latency.machine import LOCAL

TIMED_IMAGES = 200
"""Labelled by each process, the photos over again where they are fewer: the start's own noise counts little then."""
_READ_AT = 64
_INSTALLS = ("venv", "install")
_REFUSED = re.compile(r"MATCH THE HASHES|No matching distribution|versions pinned|conflicting|Hashes are required")
"""What pip says where the lock itself is wrong; all else is this machine's trouble."""
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
        refused = _REFUSED.search(problem) and not (wheels is None and _NETWORK.search(problem))
        told = f"the lock cannot be fetched: {last_words(problem)}"
        checks.stop("dependencies", "fail" if refused else "inconclusive", told)
    shown = work / "images"
    known, timed = _show(photos, manifest, shown)
    runs = _runs(manifest, list(known), timed, limits)
    request = {"memory_bytes": limits.memory_bytes, "runs": runs}
    given = Given(folder, work / "wheels", shown)
    with LOCAL.lock():
        try:
            answer = sandbox.rehearse(given, limits.disk, request, sum(r["timeout_s"] for r in runs))
        except SandboxMissing as error:
            checks.stop("sandbox", "inconclusive", str(error))
    try:
        _judge(manifest, answer, known, len(photos), len(timed), count, limits, checks, figures)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError) as error:
        checks.stop("sandbox", "fail", f"the answer that came out of it is none: {error!r}")


def _show(photos: Sequence[Path], manifest: Manifest, folder: Path) -> tuple[dict[str, str], list[str]]:
    """Copies of what is needed of the photos into `folder`, so that nothing beside them is seen: the recorded ones,
    path inside -> sha256; and TIMED_IMAGES to be timed, all readable, over again where they are fewer."""
    folder.mkdir()
    inside: dict[Path, str] = {}

    def show(photo: Path) -> str:
        if photo not in inside:
            name = f"{len(inside):05}{photo.suffix}"
            shutil.copyfile(photo, folder / name)
            inside[photo] = f"/given/images/{name}"
        return inside[photo]

    recorded: dict[str, Path] = {}
    for photo in photos:
        if (digest := sha256(photo)) in manifest.slice:
            recorded.setdefault(digest, photo)
    preprocess = Preprocess(_READ_AT)  # not at the size that a stranger's manifest names
    readable = []
    for photo in photos[:: max(1, len(photos) // TIMED_IMAGES)]:
        with contextlib.suppress(ImageError):
            preprocess.load(photo)
            readable.append(photo)
    timed = [show(readable[i * len(readable) // TIMED_IMAGES]) for i in range(TIMED_IMAGES)] if readable else []
    return {show(photo): digest for digest, photo in recorded.items()}, timed


def _judge(
    manifest: Manifest,
    answer: dict[str, Any],
    known: dict[str, str],
    photos: int,
    timed: int,
    count: int,
    limits: Limits,
    checks: Checks,
    figures: dict[str, Any],
) -> None:
    steps = answer["steps"]
    figures |= {
        "disk_peak_bytes": answer["disk_peak_bytes"],
        **{f"{name}_bytes": size for name, size in answer["bytes"].items()},
        "install_s": sum(steps[s]["seconds"] for s in _INSTALLS if s in steps),
        "memory_peak_bytes": max((s["peak_bytes"] for n, s in steps.items() if n not in _INSTALLS), default=0),
    }
    judge_steps(answer, limits, checks)
    judge_golden(manifest, steps["golden"]["rows"], checks)
    if photos:
        judge_slice(manifest, known, steps, checks)
    judge_resources(limits, figures, checks)
    judge_time(steps, timed, count, limits, checks, figures)


def _runs(manifest: Manifest, known: list[str], timed: list[str], limits: Limits) -> list[dict[str, Any]]:
    """images: how many labels each must give."""

    def labels(name: str, paths: list[str], images: int) -> dict[str, Any]:
        args = ["{bundle}/predict.py", "--json", "{out}", *paths]
        return {"name": name, "args": args, "images": images, "timeout_s": limits.run_s(images)}

    imports = ["-c", f"import numpy, PIL, {manifest.model.runtime}"]
    runs: list[dict[str, Any]] = [{"name": "imports", "args": imports, "timeout_s": limits.run_s(0)}]
    runs.append(labels("golden", ["{bundle}/golden"], len(manifest.golden.samples)) | {"keep": True})
    if known:
        runs.append(labels("slice", known, len(known)) | {"keep": True})
    for i in range(PROCESSES):
        runs.append(labels(f"start-{i}", timed[:1] or ["{bundle}/golden/turned.jpg"], 1))
        if timed:
            runs.append(labels(f"images-{i}", timed, len(timed)))
    return runs
