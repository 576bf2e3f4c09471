"""The stage `gate`: which file keeps the limit, proven in fresh processes, and what is that file worth?

The files that `verify` kept are gated one after another until one passes. Where the host is disturbed, which the
control alone decides, a file is gated again once the host has come to rest. All attempts share the error of the claim.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from export.all_in import measure_all_in
from export.artifact import Artifact
from export.parity import compare, keeps_f1, logits_of, losses, quality
from export.portability import on_older_cpu, relies_on
from latency.calm import Calm, calm_of, calm_runs, seen_in, wait_for_calm
from latency.errors import LatencyError
from latency.gate import claim, gate
from latency.host import this_host
from latency.profile import profile as profile_kernels
from latency.records import Measurement, ProcessRun, Verdict
from models.build import profile
from pipeline import FORMAT
from pipeline.attempts import Attempt, add_attempt, begin_attempt, read_attempts
from pipeline.data.stage import load_index
from pipeline.errors import ChangedOutput
from pipeline.files import write_json
from pipeline.rest import control_runs
from pipeline.search.limits import shipped_over
from pipeline.search.score import score
from pipeline.ship.candidates import split_arrays
from pipeline.show.live import bar
from pipeline.stages import Run, Stage
from pipeline.training.begin import chosen_trial
from pipeline.training.checkpoint import load_checkpoint

_HOPELESS = 1.1
"""A file that was this many limits slow in its race, and slower than the first one, is not gated."""
_ATTEMPTS = 5
"""The most attempts of one file: each needs more processes than the one before, since it may spend less error."""


@dataclass(frozen=True)
class Gated:
    """A file with its last attempt. over: what else it takes too much of, in words."""

    entry: dict[str, Any]
    artifact: Artifact
    verdict: Verdict
    measurement: Measurement
    over: list[str]

    @property
    def outcome(self) -> str:
        return "fail" if self.over else self.verdict.verdict


def _inputs(run: Run) -> dict[str, Any]:
    latency = run.config.latency
    return {
        "order": run.read("verify", "race.json")["order"],
        "host": run.host.key,
        "limit_ms": latency.limit_ms,
        "processes": latency.processes,
        "threads": latency.threads,
        "data": load_index(run).hash,
        "submission": run.config.submission.model_dump(),
        "limits": run.config.limits.model_dump(),
        "max_f1_drop": run.config.quantize.max_f1_drop,
    }


def _gate(run: Run, work: Path) -> dict[str, Any]:
    gated = _until_one_passes(run)
    best = next(g for outcome in ("pass", "inconclusive", "fail") for g in gated if g.outcome == outcome)
    write_json(work / "measurement.json", best.measurement.as_dict())
    try:
        profiled = profile_kernels(best.measurement.subject, machine=run.machine)
        write_json(work / "profile.json", asdict(profiled))
    except LatencyError as error:  # the report does without; the verdict stands
        run.say(f"gate: no time by operator: {error}")
    worth, by_photo = _worth(run, best.artifact)
    submission = _submission(run, best.artifact, worth["quality"]["f1_macro"])
    attempts = read_attempts(run)
    outcomes, reasons = [best.outcome], [*best.verdict.reasons, *best.over]
    if submission["limit_s"] is not None:
        outcomes.append(submission.pop("verdict"))
        reasons += submission.pop("reasons")
    summary = {
        "verdict": next((v for v in ("fail", "inconclusive") if v in outcomes), "pass"),
        "reasons": reasons,
        "shipped": {k: best.entry[k] for k in ("name", "path", "runtime", "precision", "sha256")},
        "latency": {**claim(best.verdict, best.measurement), "attempts": attempts.begun},
        "submission": submission,
        **worth,
        "f1_macro_val": best.entry["f1_macro_val"],
        "attempts": [asdict(a) for a in attempts.made],
        "aside": [asdict(a) for a in attempts.aside],
    }
    write_json(work / "gate.json", {"format": FORMAT, **summary, **by_photo})
    return summary


def _until_one_passes(run: Run) -> list[Gated]:
    """The files in the order of `verify`, up to the first that passes."""
    order, limit_ms = run.read("verify", "race.json")["order"], run.config.latency.limit_ms
    slowest = _HOPELESS * max(limit_ms, order[0]["p90_ms"])
    rest = _Rest(run, 60 * run.config.gate.wait_minutes)
    gated: list[Gated] = []
    for entry in order:
        if entry["p90_ms"] > slowest:
            continue
        if gated:
            run.say(f"gate: the next file: {entry['name']}")
        gated.append(_gate_file(run, entry, rest))
        if gated[-1].outcome == "pass":
            break
    return gated


class _Rest:
    """What is known of the control at rest, and the time that is left for a disturbed host: `seconds` from when it is
    first waited for."""

    def __init__(self, run: Run, seconds: float) -> None:
        self._run, self._seconds = run, seconds
        self._ends: float | None = None
        self._seen: dict[str, list[ProcessRun]] = {}

    def calm(self, runtime: str) -> Calm:
        if runtime not in self._seen:
            self._seen[runtime] = control_runs(self._run, runtime)
        return calm_of(seen_in(self._seen[runtime]))

    def learn(self, runtime: str, calm: list[ProcessRun]) -> None:
        """Add calm processes. The disturbed ones of repeated attempts would soon outnumber them, and count as rest."""
        self._seen.setdefault(runtime, []).extend(calm)

    def comes(self, runtime: str) -> bool:
        """Wait for the host to come to rest, within the time that is left."""
        self._ends = self._ends or time.monotonic() + self._seconds
        left_s, threads = self._ends - time.monotonic(), self._run.config.latency.threads
        return left_s > 0 and wait_for_calm(
            self.calm(runtime), runtime, threads, left_s, self._run.machine, lambda t: self._run.say(f"gate: {t}")
        )


def _gate_file(run: Run, entry: dict[str, Any], rest: _Rest) -> Gated:
    """One attempt, and further ones while the host disturbs them, comes to rest, and does not speak against the file
    as long as it rests."""
    latency, artifact = run.config.latency, artifact_of(run, entry)
    subject, trial = artifact.subject(latency.threads), chosen_trial(run)
    for tried in range(1, _ATTEMPTS + 1):
        calm = rest.calm(subject.runtime)
        number = begin_attempt(run)
        with bar("fresh processes") as tick:
            verdict, measurement = gate(
                subject, latency.limit_ms, latency.processes, None, run.machine, tick, number, calm
            )
        summary = measurement.summary()
        attempt = Attempt(
            number,
            trial,
            entry["name"],
            measurement.subject.sha256,
            verdict.verdict,
            summary["p90_ms"],
            verdict.p90_lower_ms,
            verdict.p90_upper_ms,
            verdict.processes,
            median(r.control_p50_ms for r in measurement.runs),
            calm.p50_ms,
            verdict.reasons,
        )
        add_attempt(run, attempt)
        run.say(f"gate: attempt {attempt.number}: {attempt.told}")
        at_rest = calm_runs(measurement.runs, calm)
        rest.learn(subject.runtime, at_rest)
        disturbed = measurement.unrest or len(at_rest) < len(measurement.runs)
        too_slow = at_rest and median(r.p90_ms for r in at_rest) > latency.limit_ms
        again = verdict.verdict == "inconclusive" and disturbed and not too_slow and tried < _ATTEMPTS
        if not again or not rest.comes(subject.runtime):
            break
    spec, _, _ = load_checkpoint(run.file("distill", "student.safetensors"))
    over = shipped_over(run.config, profile(spec).params, artifact.size_bytes, measurement.summary()["peak_mib"])
    return Gated(entry, artifact, verdict, measurement, over)


def artifact_of(run: Run, entry: dict[str, Any]) -> Artifact:
    """A file of `verify`'s order, if it is still the one that raced. Raises ChangedOutput."""
    stage, name = Path(entry["path"]).parts
    artifact = Artifact(run.model(stage, name), entry["runtime"], entry["precision"])
    if artifact.subject(1).sha256 != entry["sha256"]:
        raise ChangedOutput(f"{artifact.path}: it is not the file that raced; `edgebuild run` does the rest again")
    return artifact


def _worth(run: Run, artifact: Artifact) -> tuple[dict[str, Any], dict[str, Any]]:
    """(quality on the final split and on an older CPU, what it said of each photo)."""
    index, card = load_index(run), load_checkpoint(run.file("distill", "student.safetensors"))[1]
    images, labels = split_arrays(run, card, index.final_split)
    final = logits_of(artifact, images)
    guesses = final.argmax(1)
    worth = {
        "quality": quality(guesses, labels, index.classes, index.final_split),
        "portability": _portability(artifact, *split_arrays(run, card, "val"), run.config.quantize.max_f1_drop),
    }
    return worth, {"guesses": [index.classes[i] for i in guesses], "losses": losses(final, labels)}


def _portability(artifact: Artifact, images: np.ndarray, labels: np.ndarray, max_f1_drop: float) -> dict[str, Any]:
    """The shipped file with this CPU's newer instructions switched off."""
    if artifact.precision == "bf16":
        return {"how": "bf16 needs a CPU that has it", "images": 0, "relies_on": relies_on("bf16", False)}
    older = on_older_cpu(artifact, images, this_host())
    if older.logits is None:
        return {"how": older.how, "images": 0, "relies_on": relies_on(artifact.precision, older.is_this)}
    count = len(older.logits)
    parity = compare(logits_of(artifact, images[:count]), older.logits, labels[:count])
    return {
        "how": older.how,
        "images": count,
        **asdict(parity),
        "relies_on": relies_on(artifact.precision, count == len(images) and keeps_f1(parity, max_f1_drop)),
    }


def _submission(run: Run, artifact: Artifact, f1_macro: float) -> dict[str, Any]:
    """The predicted time of the whole submission; a claim of its own, judged by the spread of fresh processes."""
    config, index = run.config.submission, load_index(run)
    card = load_checkpoint(run.file("distill", "student.safetensors"))[1]
    paths = index.paths(index.final_split)
    all_in = measure_all_in(artifact, card.preprocess, paths, run.config.latency.threads, run.machine)
    images = config.images or len(paths)
    low, predicted, high = all_in.predict_s(images)
    parts = all_in.summary()["parts"]
    result: dict[str, Any] = {
        "images": images,
        "predicted_s": predicted,
        "predicted_upper_s": high,
        "limit_s": config.limit_s,
        "score": score(f1_macro, predicted, config.score) if config.score else None,
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


GATE = Stage("gate", ("verify",), _inputs, _gate, final=lambda s: s["verdict"] != "inconclusive")
