"""A rehearsed submission: does the bundle run where nothing is installed, without network, within its limits?

What can be read is checked first, and what fails there is never run. Then, in a sandbox: an environment from the
bundle's own lock, and predict.py on golden samples and photos. Judged here, outside of it. Hashes inside a bundle find
damage, not an attacker, who would write them anew; a stranger's predict.py can lie about its own answers, but not leave
the sandbox (as far as the kernel's namespaces hold) and not hide what it wrote.
"""

import json
import math
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from sklearn.metrics import f1_score

from export import sandbox
from export.artifact import sha256
from export.bundle import FORMAT, MANIFEST, Bundle, files_of, read_bundle
from export.errors import ExportError
from export.sandbox import Given, SandboxMissing
from export.unpack import BadArchive, unpack
from latency.bounds import ALPHA, quantile_bounds
from latency.host import Host, this_host
from latency.machine import LOCAL

PROCESSES = 7
"""Fresh ones, for the start and for the photos: the largest of 7 bounds the median process at 99 % (latency.bounds)."""
TIMED_IMAGES = 200
"""Labelled by each process, the photos over again where they are fewer: the start's own noise counts little then."""
_DISK = 2**32
"""Where no limit is asked for, the sandbox has this much."""
_RUN_S = 120
_NETWORK = re.compile(r"connection|resolve|resolution|timed out|network is unreachable|proxy|SSL", re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """What the place where it lands allows; None: not asked. seconds: for all images, all in."""

    disk_bytes: int | None = None
    memory_bytes: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Check:
    name: str
    verdict: str
    told: str


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


class _Stop(Exception):
    """Nothing further can be checked: the last check said why."""


def preflight(
    path: Path,
    limits: Limits,
    photos: Sequence[Path] = (),
    count: int | None = None,
    wheels: Path | None = None,
) -> Preflight:
    """path: an archive or a folder. photos: to label; count: how many a submission has. wheels: a folder of the lock's
    packages, instead of the index. Raises nothing that the bundle is to blame for."""
    checks: list[Check] = []
    figures: dict[str, Any] = {}
    host = this_host()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        try:
            folder = _unpacked(path, work / "unpacked", checks)
            bundle = _read(folder, host, checks)
            _rehearse(bundle, folder, limits, photos, count or len(photos), wheels, work, checks, figures)
        except _Stop:
            pass
    return Preflight(tuple(checks), figures, limits, host.as_dict())


# --- what can be read -------------------------------------------------------------------------------------------------


def _say(checks: list[Check], name: str, verdict: str, told: str) -> None:
    checks.append(Check(name, verdict, told))


def _stop(checks: list[Check], name: str, verdict: str, told: str) -> None:
    _say(checks, name, verdict, told)
    raise _Stop


def _unpacked(path: Path, folder: Path, checks: list[Check]) -> Path:
    if path.is_dir():
        return path
    folder.mkdir()
    try:
        found = unpack(path, folder)
    except BadArchive as error:
        _stop(checks, "archive", "fail", str(error))
    _say(checks, "archive", "pass", f"{path.stat().st_size / 1e6:.2f} MB, unpacks safely")
    return found


def _read(folder: Path, host: Host, checks: list[Check]) -> Bundle:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        recorded = dict(manifest["files"])
        if manifest["format"] != FORMAT:
            _stop(checks, "manifest", "fail", f"format {manifest['format']}; a rehearsal needs {FORMAT}: pack it again")
    except (OSError, ValueError, KeyError, TypeError) as error:
        _stop(checks, "manifest", "fail", f"{folder / MANIFEST}: not readable: {error!r}")
    if any(p.is_symlink() for p in folder.rglob("*")):
        _stop(checks, "hashes", "fail", "the folder holds links; a bundle holds files only")
    present = set(files_of(folder)) - {f for f in files_of(folder) if "__pycache__" in f}
    missing, unknown = sorted(set(recorded) - present), sorted(present - set(recorded))
    changed = sorted(name for name in present & set(recorded) if sha256(folder / name) != recorded[name])
    for what, names in (
        ("missing", missing),
        ("not in the manifest", unknown),
        ("changed since it was packed", changed),
    ):
        if names:
            _stop(checks, "hashes", "fail", f"{', '.join(names)}: {what}")
    _say(checks, "hashes", "pass", f"{len(recorded)} files as packed")
    try:
        bundle = read_bundle(folder)
        needs = [(str(n["what"]), list(n["any_of"])) for n in bundle.manifest["relies_on"]]
        labels = (folder / "labels.txt").read_text(encoding="utf-8").splitlines()
        golden = bundle.manifest["golden"]
        named = [str(name) for name in golden["samples"]]
        finite = all(np.isfinite(s["logits"]).all() for s in golden["samples"].values()) and golden["tolerance"] > 0
        complete = bool(named) and all(name in recorded for name in named)
        dict(bundle.manifest["slice"])
        locked = (folder / "requirements.txt").read_text()
    except (ExportError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        _stop(checks, "manifest", "fail", f"not whole: {error!r}")
    if not complete or not finite:
        _stop(checks, "golden samples", "fail", "none are recorded, or what is recorded is not finite")
    if labels != bundle.manifest["classes"]:
        _stop(checks, "labels", "fail", "labels.txt and the manifest name other classes, or another order")
    lacking = [f"{what} (one of {', '.join(flags)})" for what, flags in needs if not host.has_any(flags)]
    if lacking:
        _stop(checks, "cpu", "fail", f"{host.cpu} lacks what the file relies on: {'; '.join(lacking)}")
    _say(checks, "cpu", "pass", "; ".join(what for what, _ in needs) or "no instructions beyond the packages' own")
    if not re.search(r"--hash=sha256:[0-9a-f]{64}", locked):
        told = "requirements.txt has no hashes: it was packed where the package index could not be reached"
        _stop(checks, "lock", "inconclusive", f"{told}; pack it again with `edgebuild bundle`")
    if re.search(r"^torch\b", locked, re.MULTILINE):
        _say(checks, "lock", "fail", "requirements.txt names torch, ten times the size of all else")
    return bundle


# --- what must be run -------------------------------------------------------------------------------------------------


def _rehearse(
    bundle: Bundle,
    folder: Path,
    limits: Limits,
    photos: Sequence[Path],
    count: int,
    wheels: Path | None,
    work: Path,
    checks: list[Check],
    figures: dict[str, Any],
) -> None:
    missing = sandbox.available()
    if missing:
        _stop(checks, "sandbox", "inconclusive", f"{missing}; nothing of the bundle was run")
    (work / "wheels").mkdir()
    problem = sandbox.fetch(folder / "requirements.txt", work / "wheels", wheels)
    if problem:
        offline = wheels is None and bool(_NETWORK.search(problem))
        told = f"the lock cannot be fetched: {_last(problem)}"
        _stop(checks, "dependencies", "inconclusive" if offline else "fail", told)
    recorded, paths = bundle.manifest["slice"], [p.resolve() for p in photos]
    root = Path(os.path.commonpath([p.parent for p in paths])) if paths else None
    inside = {p: f"/given/images/{p.relative_to(root)}" for p in paths} if root else {}
    known = {inside[p]: digest for p in paths if (digest := sha256(p)) in recorded}
    timed = [inside[paths[i * len(paths) // TIMED_IMAGES]] for i in range(TIMED_IMAGES)] if paths else []
    runs = _runs(bundle, list(known), timed)
    request = {"memory_bytes": limits.memory_bytes, "timeout_s": limits.seconds or _RUN_S, "runs": runs}
    given = Given(folder, work / "wheels", root)
    with LOCAL.lock():
        try:
            answer = sandbox.rehearse(
                given, limits.disk_bytes or _DISK, request, len(runs) * (limits.seconds or _RUN_S)
            )
        except SandboxMissing as error:
            _stop(checks, "sandbox", "inconclusive", str(error))
    steps = answer["steps"]
    figures |= {
        "disk_peak_bytes": answer["disk_peak_bytes"],
        **{f"{name}_bytes": size for name, size in answer["bytes"].items()},
        "install_s": sum(steps[s]["seconds"] for s in ("venv", "install") if s in steps),
        "memory_peak_bytes": max(
            (s["peak_bytes"] for n, s in steps.items() if n not in ("venv", "install")), default=0
        ),
    }
    _judge_steps(answer, limits, checks)
    _judge_golden(bundle, steps["golden"]["rows"], checks)
    if paths:
        _judge_slice(bundle, known, steps, checks)
    _judge_resources(limits, figures, checks)
    _judge_time(steps, len(timed), count, limits, checks, figures)


def _runs(bundle: Bundle, known: list[str], timed: list[str]) -> list[dict[str, Any]]:
    predict, out = "{bundle}/predict.py", ["--json", "{out}"]
    module = {"onnxruntime": "onnxruntime", "openvino": "openvino"}[bundle.artifact.runtime]
    runs: list[dict[str, Any]] = [
        {"name": "imports", "args": ["-c", f"import numpy, PIL, {module}"], "codes": [0], "timeout_s": _RUN_S},
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


def _last(text: str) -> str:
    """The lines that say what went wrong, of a tool's many."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("WARNING")]
    told = [line for line in lines if "rror" in line] or lines[-1:]
    return " ".join(told[-2:])[:500]


def _judge_steps(answer: dict[str, Any], limits: Limits, checks: list[Check]) -> None:
    steps = answer["steps"]
    name, step = list(steps.items())[-1] if steps else ("copy", {"code": 1, "said": answer.get("problem", "")})
    said = f"{step['said']} {answer.get('problem', '')}"
    full = answer["disk_full"] or "No space left on device" in said
    disk = f"{(limits.disk_bytes or _DISK) / 1e6:.0f} MB"
    wanted = {"venv": [0], "install": [0], "imports": [0], "golden": [0]}.get(name, [0, 1])
    if not answer.get("problem") and step["code"] in wanted:
        _say(checks, "sandbox", "pass", f"no network, a disk of {disk}, an empty environment")
        _say(checks, "environment", "pass", "installed from its own lock, offline; its packages load")
        return
    if full:
        _stop(checks, "disk", "fail", f"{disk} are not enough: full at the step '{name}'")
    if step["code"] is None:
        _stop(checks, "time", "fail", f"'{name}' was ended after {step['seconds']:.0f} s")
    if "roomy" in step:
        _judge_memory(name, step, limits, checks)
    if name in ("venv", "install"):
        _stop(checks, "dependencies", "fail", f"the environment cannot be made: {_last(said)}")
    lacking = re.search(r"ModuleNotFoundError: No module named '([\w.]+)'", said)
    if lacking:
        _stop(checks, "dependencies", "fail", f"the lock leaves out {lacking[1]}, which is imported")
    runtime = re.search(r"ONNXRuntimeError|openvino|Exception from src", said)
    kind = "outputs" if "not finite" in said else "model" if runtime else name
    _stop(checks, kind, "fail", f"code {step['code']}: {_last(said)}")


def _judge_memory(name: str, step: dict[str, Any], limits: Limits, checks: list[Check]) -> None:
    assert limits.memory_bytes
    allowed, needed = limits.memory_bytes / 1e6, step["roomy"]["peak_bytes"] / 1e6
    if needed > allowed or step["roomy"]["code"]:
        _stop(checks, "memory", "fail", f"'{name}' does not run in {allowed:.0f} MB; it held {needed:.0f} MB")
    told = (
        f"'{name}' fails under a limit of {allowed:.0f} MB on what it may reserve, yet holds {needed:.0f} MB only; a "
        "limit on what is held needs a cgroup, which this user cannot make"
    )
    _stop(checks, "memory", "inconclusive", told)


def _judge_golden(bundle: Bundle, rows: Any, checks: list[Check]) -> None:
    golden = bundle.manifest["golden"]
    try:
        found = {f"golden/{Path(row['path']).name}": row for row in rows}
        logits = {name: np.array(row["logits"], float) for name, row in found.items()}
        differences = {n: float(np.abs(logits[n] - s["logits"]).max()) for n, s in golden["samples"].items()}
        wrong = [n for n, s in golden["samples"].items() if found[n]["label"] != s["label"] and not s["near_tie"]]
    except (KeyError, TypeError, ValueError) as error:
        _stop(checks, "golden samples", "fail", f"predict.py did not answer for all of them: {error!r}")
    worst = max(differences, key=lambda n: differences[n] if math.isfinite(differences[n]) else math.inf)
    if not math.isfinite(differences[worst]):
        _stop(checks, "outputs", "fail", f"the logits of {worst} are not finite")
    if not differences[worst] <= golden["tolerance"]:
        where = (
            "; only the drawn files differ: the preprocessing is another" if _only_drawn(differences, golden) else ""
        )
        told = f"a logit of {worst} is off by {differences[worst]:.2g}, allowed {golden['tolerance']:.2g}{where}"
        _stop(checks, "golden samples", "fail", told)
    if wrong:
        told = f"{wrong[0]} is labelled {found[wrong[0]]['label']}, recorded {golden['samples'][wrong[0]]['label']}"
        _stop(checks, "labels", "fail", f"{told}: the logits agree, so the labels are in another order")
    told = f"{len(differences)} agree, largest difference of a logit {differences[worst]:.2g}"
    _say(checks, "golden samples", "pass", told)


def _only_drawn(differences: dict[str, float], golden: dict[str, Any]) -> bool:
    return all(d <= golden["tolerance"] for n, d in differences.items() if "photo" in n)


def _judge_slice(bundle: Bundle, digests: dict[str, str], steps: dict[str, Any], checks: list[Check]) -> None:
    recorded = bundle.manifest["slice"]
    if not digests:
        _say(checks, "F1", "inconclusive", f"none of the {len(recorded)} recorded photos is among those given")
        return
    try:
        labels = {digests[row["path"]]: row["label"] for row in steps["slice"]["rows"]}
        truth = [recorded[d][0] for d in digests.values()]
        then = [recorded[d][1] for d in digests.values()]
        now = [labels[d] for d in digests.values()]
    except (KeyError, TypeError, ValueError) as error:
        _stop(checks, "F1", "fail", f"predict.py did not label all recorded photos: {error!r}")
    f1_then, f1_now = (
        float(f1_score(truth, guesses, labels=bundle.manifest["classes"], average="macro", zero_division=0))
        for guesses in (then, now)
    )
    changed = sum(a != b for a, b in zip(then, now, strict=True))
    told = f"{f1_now:.4f} on {len(now)} of {len(recorded)} recorded photos, recorded {f1_then:.4f}"
    elsewhere = bundle.manifest["evidence"]["host"]["key"] != this_host().key
    allowed = bundle.manifest["evidence"]["portability"]["f1_change"] if elsewhere else 0.0
    if abs(f1_now - f1_then) > abs(allowed or 0.0) + 1e-9:
        _stop(checks, "F1", "fail", f"{told}; {changed} labels differ")
    _say(checks, "F1", "pass", f"{told}, {changed} labels differ")


def _judge_resources(limits: Limits, figures: dict[str, Any], checks: list[Check]) -> None:
    disk = (
        f"{figures['disk_peak_bytes'] / 1e6:.0f} MB at most, {figures['environment_bytes'] / 1e6:.0f} of it environment"
    )
    _say(checks, "disk", "pass", disk + (f"; limit {limits.disk_bytes / 1e6:.0f}" if limits.disk_bytes else ""))
    held = figures["memory_peak_bytes"]
    told = f"{held / 1e6:.0f} MB at most"
    if limits.memory_bytes and held > limits.memory_bytes:
        _say(checks, "memory", "fail", f"{told}; limit {limits.memory_bytes / 1e6:.0f}")
    else:
        enforced = f"; limit {limits.memory_bytes / 1e6:.0f}, enforced by rlimit" if limits.memory_bytes else ""
        _say(checks, "memory", "pass", told + enforced)


def _judge_time(
    steps: dict[str, Any], timed: int, count: int, limits: Limits, checks: list[Check], figures: dict[str, Any]
) -> None:
    starts = [steps[f"start-{i}"]["seconds"] for i in range(PROCESSES)]
    figures["start_s"], figures["start_upper_s"] = median(starts), quantile_bounds(starts, 0.5, ALPHA)[1]
    _say(
        checks,
        "start",
        "pass",
        f"{figures['start_s']:.2f} s to the first label, at most {figures['start_upper_s']:.2f}",
    )
    if timed < 2:
        if limits.seconds:
            _say(checks, "time", "inconclusive", "no photos were given: name a folder of them with --images")
        return
    wholes = [steps[f"images-{i}"]["seconds"] for i in range(PROCESSES)]
    rates = [(whole - start) / (timed - 1) for whole, start in zip(wholes, starts, strict=True)]
    totals = [start + rate * (count - 1) for start, rate in zip(starts, rates, strict=True)]
    low, high = quantile_bounds(totals, 0.5, ALPHA)
    figures |= {"images": count, "image_ms": median(rates) * 1e3, "all_in_s": median(totals), "all_in_upper_s": high}
    told = f"{count} images in {median(totals):.2f} s all in, {low:.2f} to {high:.2f} (99 %), "
    told += f"{median(rates) * 1e3:.2f} ms each"
    verdict = "pass"
    if limits.seconds:
        verdict = "pass" if high <= limits.seconds else "fail" if low > limits.seconds else "inconclusive"
        told += f"; limit {limits.seconds:g} s"
    _say(checks, "time", verdict, told)
