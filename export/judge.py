"""What the answers of a rehearsal mean: judged outside of the sandbox."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, FailFast, Field, FiniteFloat, TypeAdapter, ValidationError

from export.checks import Checks, Limits
from export.errors import first_problem
from export.golden import near_tie
from export.manifest import Golden, Manifest
from export.rehearsal import MAX_TASKS
from export.sandbox import Answer, Step
from latency.bounds import ALPHA, quantile_bounds
from latency.host import this_host

_TIES = 0.02
"""Share of recorded images that may get another label, even if all of them are near-ties: what counts as one depends on
figures of the manifest, which its packer could choose."""
EXCESSES = {
    "memory": ("memory", "fail", "its processes held half of this machine's memory"),
    "tasks": ("memory", "fail", f"it had over {MAX_TASKS} processes and threads"),
    "host": ("memory", "inconclusive", "this machine was almost out of memory"),
    "watch": ("sandbox", "fail", "its processes could not be watched"),
}
"""What `rehearsal.Watch` ended a step for: the check, its verdict, and in words."""
_SCORE = 1e-4
"""Allowed difference of a score; tables show six digits."""


class Row(BaseModel):
    """What predict.py says of one image."""

    model_config = ConfigDict(strict=True, frozen=True)

    path: str
    label: str
    score: Annotated[FiniteFloat, Field(ge=0, le=1 + _SCORE)]
    logits: Annotated[list[FiniteFloat], FailFast()]


class _Times(BaseModel):
    profile: dict[str, FiniteFloat]
    runtime: dict[str, FiniteFloat]
    inference: dict[str, Annotated[FiniteFloat, Field(ge=0)]]


class _Output(BaseModel):
    """The shape of --output."""

    model_config = ConfigDict(strict=True)

    inference: dict[str, str]
    time: _Times
    macs: float


_ROWS = TypeAdapter(Annotated[list[Row], FailFast()])


def last_words(text: str) -> str:
    """The lines of a tool's output that say what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("WARNING")]
    told = [line for line in lines if "rror" in line] or lines[-1:]
    return " ".join(told[-2:])[:500] or "it said nothing"


def judge_step(name: str, answer: Answer, limits: Limits, checks: Checks) -> Step:
    """Return the step of that name if it succeeded; otherwise report the cause and end the checks."""
    step = answer.steps.get(name)
    if step and step.code == 0 and not answer.problem:
        return step
    said = f"{step.said if step else ''} {answer.problem}"
    if answer.disk_full or "No space left on device" in said:
        checks.stop("disk", "fail", f"{limits.disk / 1e6:.0f} MB are not enough: full at the step '{name}'")
    if answer.exceeded:
        check, verdict, told = EXCESSES[answer.exceeded]
        checks.stop(check, verdict, f"'{name}' was ended: {told}")
    if step is None:
        checks.stop(name, "fail", f"it was not done: {last_words(said)}")
    if step.code is None:
        checks.stop("time", "fail", f"'{name}' was ended after {step.seconds:.0f} s")
    if step.roomy:
        _judge_memory(name, step.roomy, limits, checks)
    if name == "install":
        checks.stop("dependencies", "fail", f"the environment cannot be made: {last_words(said)}")
    lacking = re.search(r"ModuleNotFoundError: No module named '([\w.]+)'", said)
    if lacking:
        checks.stop("dependencies", "fail", f"the lock leaves out {lacking[1]}, which is imported")
    runtime = re.search(r"ONNXRuntimeError|openvino|Exception from src", said)
    kind = "outputs" if "not finite" in said else "model" if runtime else name
    return checks.stop(kind, "fail", f"code {step.code}: {last_words(said)}")


def _judge_memory(name: str, roomy: Step, limits: Limits, checks: Checks) -> None:
    assert limits.memory_bytes
    allowed, needed = limits.memory_bytes / 1e6, roomy.peak_bytes / 1e6
    if needed > allowed or roomy.code:
        checks.stop("memory", "fail", f"'{name}' does not run in {allowed:.0f} MB; it held {needed:.0f} MB")
    told = (
        f"'{name}' fails under a limit of {allowed:.0f} MB on what it may reserve, yet holds {needed:.0f} MB only; a "
        "limit on what is held needs a cgroup, which this user cannot make"
    )
    checks.stop("memory", "inconclusive", told)


def rows_of(step: Step, manifest: Manifest, images: int, checks: Checks) -> list[Row]:
    """Parse what predict.py wrote with --json. Each label and score must follow from the logits."""
    try:
        rows = _ROWS.validate_json(step.wrote or "")
    except ValidationError as error:
        checks.stop("outputs", "fail", f"--json: {': '.join(first_problem(error))}")
    if len(rows) != images:
        checks.stop("outputs", "fail", f"predict.py ended well and wrote {len(rows)} labels for {images} images")
    for row in rows:
        logits = np.array(row.logits)
        if len(logits) != len(manifest.classes):
            checks.stop("outputs", "fail", f"{row.path}: {len(logits)} logits, of {len(manifest.classes)} classes")
        if row.label != manifest.classes[int(logits.argmax())]:
            told = f"{row.path} is labelled {row.label}, its largest logit is that of another class"
            checks.stop("labels", "fail", f"{told}: the labels are in another order")
        score = 1 / np.exp(logits - logits.max()).sum()
        if abs(score - row.score) > _SCORE:
            checks.stop("outputs", "fail", f"{row.path}: score {row.score:.4f}; its logits give {score:.4f}")
    return rows


def judge_golden(manifest: Manifest, rows: Sequence[Row], checks: Checks) -> None:
    golden = manifest.golden
    found = {f"golden/{Path(row.path).name}": row for row in rows}
    if set(found) != set(golden.samples):
        checks.stop("golden samples", "fail", "predict.py did not answer for all of them")
    differences = {
        n: float(np.abs(np.array(found[n].logits) - np.array(s.logits)).max()) for n, s in golden.samples.items()
    }
    worst = max(differences, key=lambda n: differences[n])
    if differences[worst] > golden.tolerance:
        where = (
            "; only the drawn files differ: the preprocessing is another" if _only_drawn(differences, golden) else ""
        )
        told = f"a logit of {worst} is off by {differences[worst]:.2g}, allowed {golden.tolerance:.2g}{where}"
        checks.stop("golden samples", "fail", told)
    wrong = [n for n, s in golden.samples.items() if found[n].label != s.label and not s.near_tie]
    if wrong:
        told = f"{wrong[0]} is labelled {found[wrong[0]].label}, recorded {golden.samples[wrong[0]].label}"
        checks.stop("labels", "fail", f"{told}: the logits agree, so the labels are in another order")
    if all(s.near_tie for s in golden.samples.values()):
        checks.say("labels", "inconclusive", "every golden sample is a near-tie: none can show the order of the labels")
    told = f"{len(differences)} agree, largest difference of a logit {differences[worst]:.2g}"
    checks.say("golden samples", "pass", told)


def _only_drawn(differences: dict[str, float], golden: Golden) -> bool:
    return all(d <= golden.tolerance for n, d in differences.items() if "photo" in n)


def judge_recorded(
    manifest: Manifest,
    digests: dict[str, str],
    folders: Mapping[str, set[str]],
    rows: Sequence[Row],
    checks: Checks,
) -> None:
    """Every image must get its recorded label. Another label is accepted only for a near-tie.

    digests: path inside -> sha256. folders: sha256 -> the folders that the user has the image in. Where these are names
    of classes, they must be the recorded ones.
    """
    recorded_as: dict[str, set[str]] = {}
    for digest, truth, _ in manifest.recorded:
        recorded_as.setdefault(digest, set()).add(truth)
    of_classes = {d: {n for n in names if n in manifest.classes} for d, names in folders.items()}
    of_classes = {d: names for d, names in of_classes.items() if names}
    for digest, names in of_classes.items():
        if not names <= recorded_as[digest]:
            told = f"an image of the folder {min(names - recorded_as[digest])} is recorded as "
            told += ", ".join(sorted(recorded_as[digest]))
            checks.stop("F1", "fail", f"{told}; so the claimed F1 is not that of these classes")
    for digest, names in of_classes.items():
        if more := recorded_as[digest] - names:
            told = f"an image of the folder {min(names)} is recorded as {min(more)} as well"
            checks.stop("F1", "inconclusive", f"{told}, and lies in no such folder here; so the F1 may be flattered")
    strange = sorted({n for names in folders.values() for n in names} - {*manifest.classes})
    if of_classes and strange:
        told = f"recorded images lie in folders that are no class of this model ({', '.join(strange[:5])})"
        checks.say("F1", "inconclusive", f"{told}, so the class that they are recorded as cannot be compared")
    recorded = {digest: label for digest, _, label in manifest.recorded}
    if {row.path for row in rows} != set(digests):
        checks.stop("F1", "fail", "predict.py did not label all recorded photos")
    changed = [row for row in rows if row.label != recorded[digests[row.path]]]
    wrong = [row for row in changed if not near_tie(np.array(row.logits), manifest.golden.tolerance)]
    claimed = manifest.evidence.quality.f1_macro
    told = f"{len(rows)} of {len(recorded)} recorded images labelled again, {len(changed)} labels differ"
    if wrong or len(changed) > max(1, _TIES * len(rows)):
        row = (wrong or changed)[0]
        told += f", {len(wrong)} of them clearly (one is {row.label} now, recorded {recorded[digests[row.path]]})"
        evidence = manifest.evidence
        if evidence.host.key != this_host().key and not evidence.portability.images:
            checks.stop("F1", "inconclusive", f"{told}; on another host, and how far that changes it was never tried")
        checks.stop("F1", "fail", told)
    if not of_classes:
        told += "; the folders of the images name no classes, so their true classes are the packer's word"
    checks.say("F1", "pass", f"{told}; the claimed F1 of all is {claimed:.4f}")


def judge_others(manifest: Manifest, classes: dict[str, str], rows: Sequence[Row], checks: Checks) -> None:
    """Compare the claimed accuracy with that on images that the packer did not record. They may be harder ones, so
    labels that are wrong too often are no proof against the claim.

    classes: path inside -> class.
    """
    from scipy.stats import binomtest

    if {row.path for row in rows} != set(classes):
        checks.stop("F1", "fail", "predict.py did not label all photos")
    right = sum(row.label == classes[row.path] for row in rows)
    claimed = manifest.evidence.quality.accuracy
    told = f"{right} of {len(rows)} images that are not recorded get the class of their folder; "
    told += f"accuracy {claimed:.3f} is claimed"
    if binomtest(right, len(rows), claimed, alternative="less").pvalue < _UNLIKELY:
        told += ". These images are harder, or the recorded ones were hand-picked"
        checks.say("other images", "inconclusive", told)
    else:
        checks.say("other images", "pass", told)


_UNLIKELY = 0.01
"""Probability of so few right labels, if the claimed accuracy holds."""


def judge_forms(form: str, step: Step, rows: Sequence[Row], manifest: Manifest, checks: Checks) -> None:
    """Check that another output form says the same as --json."""
    name = "the table" if form == "stdout" else f"--{form}"

    def wrong(told: str) -> None:
        checks.stop("outputs", "fail", f"{name}: {told}")

    wrote = step.wrote or ""
    if form == "output":
        try:
            output = _Output.model_validate_json(wrote)
        except ValidationError as error:
            wrong(": ".join(first_problem(error)))
        labels = {Path(row.path).name: row.label for row in rows}
        if output.inference != labels or set(output.time.inference) != set(labels):
            wrong("its labels are not those of --json")
        if output.macs != manifest.evidence.macs:
            wrong(f"macs {output.macs:g}, the manifest has {manifest.evidence.macs}")
        return
    try:
        head, *table = islice(csv.reader(io.StringIO(wrote), strict=True), len(rows) + 2)
        if head[:3] != ["path", "label", "score"]:
            raise ValueError(f"its columns are {head[:3]}")
        said = [(path, label, float(score)) for path, label, score, *_ in table]
    except (csv.Error, ValueError) as error:
        wrong(f"it is no table of path, label and score: {error!r}"[:200])
    if [r[:2] for r in said] != [(row.path, row.label) for row in rows]:
        wrong("its labels are not those of --json")
    if not all(abs(r[2] - row.score) <= _SCORE for r, row in zip(said, rows, strict=True)):
        wrong("its scores are not those of --json")


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
    starts: list[float],
    wholes: list[float],
    timed: int,
    count: int,
    limits: Limits,
    checks: Checks,
    figures: dict[str, Any],
) -> None:
    """starts, wholes: seconds by process, for one image and for `timed` images. count: images of the submission."""
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
