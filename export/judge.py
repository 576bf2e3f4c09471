"""What the answers of a rehearsal mean: judged outside of the sandbox."""

import math
import re
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from sklearn.metrics import f1_score

from export.checks import PROCESSES, Checks, Limits
from export.manifest import Golden, Manifest
from latency.bounds import ALPHA, quantile_bounds
from latency.host import this_host


def last_words(text: str) -> str:
    """The lines that say what went wrong, of a tool's many."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("WARNING")]
    told = [line for line in lines if "rror" in line] or lines[-1:]
    return " ".join(told[-2:])[:500]


def judge_steps(answer: dict[str, Any], limits: Limits, checks: Checks) -> None:
    steps = answer["steps"]
    name, step = list(steps.items())[-1] if steps else ("copy", {"code": 1, "said": answer.get("problem", "")})
    said = f"{step['said']} {answer.get('problem', '')}"
    full = answer["disk_full"] or "No space left on device" in said
    disk = f"{(limits.disk) / 1e6:.0f} MB"
    if not answer.get("problem") and step["code"] == 0:
        checks.say("sandbox", "pass", f"no network, a disk of {disk}, an empty environment")
        checks.say("environment", "pass", "installed from its own lock, offline; its packages load")
        return
    if full:
        checks.stop("disk", "fail", f"{disk} are not enough: full at the step '{name}'")
    if step["code"] is None:
        checks.stop("time", "fail", f"'{name}' was ended after {step['seconds']:.0f} s")
    if "roomy" in step:
        _judge_memory(name, step, limits, checks)
    if name == "venv":
        checks.stop("sandbox", "inconclusive", f"Python here makes no environment (python3-venv?): {last_words(said)}")
    if name == "install":
        checks.stop("dependencies", "fail", f"the environment cannot be made: {last_words(said)}")
    lacking = re.search(r"ModuleNotFoundError: No module named '([\w.]+)'", said)
    if lacking:
        checks.stop("dependencies", "fail", f"the lock leaves out {lacking[1]}, which is imported")
    runtime = re.search(r"ONNXRuntimeError|openvino|Exception from src", said)
    kind = "outputs" if "not finite" in said else "model" if runtime else name
    checks.stop(kind, "fail", f"code {step['code']}: {last_words(said)}")


def _judge_memory(name: str, step: dict[str, Any], limits: Limits, checks: Checks) -> None:
    assert limits.memory_bytes
    allowed, needed = limits.memory_bytes / 1e6, step["roomy"]["peak_bytes"] / 1e6
    if needed > allowed or step["roomy"]["code"]:
        checks.stop("memory", "fail", f"'{name}' does not run in {allowed:.0f} MB; it held {needed:.0f} MB")
    told = (
        f"'{name}' fails under a limit of {allowed:.0f} MB on what it may reserve, yet holds {needed:.0f} MB only; a "
        "limit on what is held needs a cgroup, which this user cannot make"
    )
    checks.stop("memory", "inconclusive", told)


def judge_golden(manifest: Manifest, rows: Any, checks: Checks) -> None:
    golden = manifest.golden
    try:
        found = {f"golden/{Path(row['path']).name}": row for row in rows}
        logits = {name: np.array(row["logits"], float) for name, row in found.items()}
        differences = {n: float(np.abs(_alike(logits[n], s.logits)).max()) for n, s in golden.samples.items()}
        wrong = [n for n, s in golden.samples.items() if found[n]["label"] != s.label and not s.near_tie]
    except (KeyError, TypeError, ValueError) as error:
        checks.stop("golden samples", "fail", f"predict.py did not answer for all of them: {error!r}")
    worst = max(differences, key=lambda n: differences[n] if math.isfinite(differences[n]) else math.inf)
    if not math.isfinite(differences[worst]):
        checks.stop("outputs", "fail", f"the logits of {worst} are not finite")
    if not differences[worst] <= golden.tolerance:
        where = (
            "; only the drawn files differ: the preprocessing is another" if _only_drawn(differences, golden) else ""
        )
        told = f"a logit of {worst} is off by {differences[worst]:.2g}, allowed {golden.tolerance:.2g}{where}"
        checks.stop("golden samples", "fail", told)
    if wrong:
        told = f"{wrong[0]} is labelled {found[wrong[0]]['label']}, recorded {golden.samples[wrong[0]].label}"
        checks.stop("labels", "fail", f"{told}: the logits agree, so the labels are in another order")
    if all(s.near_tie for s in golden.samples.values()):
        checks.say("labels", "inconclusive", "every golden sample is a near-tie: none can show the order of the labels")
    told = f"{len(differences)} agree, largest difference of a logit {differences[worst]:.2g}"
    checks.say("golden samples", "pass", told)


def _alike(found: np.ndarray, recorded: list[float]) -> np.ndarray:
    if found.shape != (len(recorded),):
        raise ValueError(f"{found.shape} logits, recorded {len(recorded)}")
    return found - np.array(recorded)


def _only_drawn(differences: dict[str, float], golden: Golden) -> bool:
    return all(d <= golden.tolerance for n, d in differences.items() if "photo" in n)


def judge_slice(manifest: Manifest, digests: dict[str, str], steps: dict[str, Any], checks: Checks) -> None:
    recorded = manifest.slice
    if not digests:
        checks.say("F1", "inconclusive", f"none of the {len(recorded)} recorded photos is among those given")
        return
    try:
        labels = {digests[row["path"]]: str(row["label"]) for row in steps["slice"]["rows"]}
        truth = [recorded[d][0] for d in digests.values()]
        then = [recorded[d][1] for d in digests.values()]
        now = [labels[d] for d in digests.values()]
    except (KeyError, TypeError, ValueError) as error:
        checks.stop("F1", "fail", f"predict.py did not label all recorded photos: {error!r}")
    f1_then, f1_now = (
        float(f1_score(truth, guesses, labels=manifest.classes, average="macro", zero_division=0))
        for guesses in (then, now)
    )
    changed = sum(a != b for a, b in zip(then, now, strict=True))
    told = f"{f1_now:.4f} on {len(now)} of {len(recorded)} recorded photos, recorded {f1_then:.4f}"
    evidence = manifest.evidence
    elsewhere = evidence.host.key != this_host().key
    allowed = abs(evidence.portability.f1_change) if elsewhere else 0.0
    if abs(f1_now - f1_then) > allowed + 1e-9:
        if elsewhere and not evidence.portability.images:
            checks.stop("F1", "inconclusive", f"{told}; on another host, and how far that changes it was never tried")
        checks.stop("F1", "fail", f"{told}; {changed} labels differ")
    checks.say("F1", "pass", f"{told}, {changed} labels differ")


def judge_resources(limits: Limits, figures: dict[str, Any], checks: Checks) -> None:
    disk = (
        f"{figures['disk_peak_bytes'] / 1e6:.0f} MB at most, {figures['environment_bytes'] / 1e6:.0f} of it environment"
    )
    checks.say("disk", "pass", disk + (f"; limit {limits.disk_bytes / 1e6:.0f}" if limits.disk_bytes else ""))
    held = figures["memory_peak_bytes"]
    told = f"{held / 1e6:.0f} MB at most"
    if limits.memory_bytes and held > limits.memory_bytes:
        checks.say("memory", "fail", f"{told}; limit {limits.memory_bytes / 1e6:.0f}")
    else:
        enforced = f"; limit {limits.memory_bytes / 1e6:.0f}, enforced by rlimit" if limits.memory_bytes else ""
        checks.say("memory", "pass", told + enforced)


def judge_time(
    steps: dict[str, Any], timed: int, count: int, limits: Limits, checks: Checks, figures: dict[str, Any]
) -> None:
    starts = [steps[f"start-{i}"]["seconds"] for i in range(PROCESSES)]
    figures["start_s"], figures["start_upper_s"] = median(starts), quantile_bounds(starts, 0.5, ALPHA)[1]
    checks.say(
        "start",
        "pass",
        f"{figures['start_s']:.2f} s to the first label, at most {figures['start_upper_s']:.2f}",
    )
    if timed < 2:
        if limits.seconds:
            checks.say("time", "inconclusive", "no photos were given: name a folder of them with --images")
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
        if count > timed and min(rates) <= 0:  # a start slower than a whole run: no rate to go on with
            verdict, told = "inconclusive", f"{told}; the starts vary by more than {timed} images take"
    checks.say("time", verdict, told)
