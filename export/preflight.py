"""A rehearsed submission: does the bundle run where nothing is installed, without network, within its limits?

What can be read is checked first, and what fails there is never run. Then, in a sandbox: an environment from the
bundle's own lock, and predict.py on golden samples and photos, judged outside of it (`judge`). Hashes inside a bundle
find damage, not an attacker, who would write them anew; a stranger's predict.py may answer what it likes, but it cannot
leave the sandbox, as long as the kernel's namespaces hold.
"""

import contextlib
import random
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packaging.markers import InvalidMarker, UndefinedEnvironmentName
from packaging.utils import canonicalize_name

from export import bounded, sandbox
from export.artifact import sha256
from export.checks import PROCESSES, Check, Checks, Ended, Limits
from export.examine import examine, unpacked
from export.judge import (
    EXCESSES,
    Row,
    judge_forms,
    judge_golden,
    judge_others,
    judge_recorded,
    judge_resources,
    judge_step,
    judge_time,
    last_words,
    rows_of,
)
from export.lock import Pin, closure, roots
from export.manifest import Manifest
from export.preprocess import ImageError, Preprocess
from export.sandbox import PIP_OPTIONS, Answer, Given, Sandbox, SandboxBroken, Step
from latency.host import this_host
from latency.machine import LOCAL

TIMED_IMAGES = 200
"""Images that each timed process labels, repeated if there are fewer, so that start-up noise matters little."""
RECORDED_IMAGES = 500
"""At most this many recorded images are labelled again as JSON, and _FORM_IMAGES of them in each other form."""
_FORM_IMAGES = 50
OTHER_IMAGES = 200
"""At most this many images that are not recorded are labelled, where their folders name classes."""
_MOST_LOGITS = 300_000
"""The most logits in one output of predict.py, which must stay below the driver's limit."""
FORMS = ("csv", "output", "stdout")
"""What predict.py can write beside --json; `stdout` is its table without an option."""
_READ_AT = 64
_PREPARE_S = 300
_TIMED_LEAST_S, _TIMED_FACTOR = 10, 5
"""A timed run is ended after this many times the seconds of the same untimed run, but not before this many seconds. The
machine's timing lock is held meanwhile, and a stranger's code must not be able to keep it."""
_REFUSED = re.compile(r"MATCH THE HASHES|No matching distribution|versions pinned|conflicting|Hashes are required")
"""What pip says if the lock itself is wrong. Any other error is a problem of this machine."""
_UNREACHED = re.compile(r"connection|resolve|resolution|timed out|network is unreachable|proxy|SSL", re.IGNORECASE)


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


@dataclass(frozen=True)
class _Photos:
    """Image paths inside the sandbox. recorded: path -> sha256 of images that the manifest lists. folders: sha256 ->
    the folders that the user has it in. others: path -> class, of images in a folder of that class that the manifest
    does not list. timed: TIMED_IMAGES readable images, with repeats, or none. given: the number of images that the user
    passed."""

    recorded: dict[str, str]
    folders: dict[str, set[str]]
    others: dict[str, str]
    timed: list[str]
    given: int


def preflight(
    path: Path,
    limits: Limits,
    photos: Sequence[Path] = (),
    count: int | None = None,
    wheels: Path | None = None,
) -> Preflight:
    """`check`, in a process of its own that is bounded in memory and time. Raises OSError where this machine is to
    blame, and nothing that the bundle is to blame for."""
    request = {
        "path": str(path),
        "limits": asdict(limits),
        "photos": [str(p) for p in photos],
        "count": count,
        "wheels": wheels and str(wheels),
    }
    try:
        found = bounded.ask("export.preflight", request)
    except bounded.Exceeded as error:
        reading = Check("reading", "fail", f"{error} to read what the bundle holds or its predict.py wrote")
    except bounded.Unreadable as error:
        reading = Check("reading", "inconclusive", f"edgebuild cannot read what it holds ({error})")
    else:
        return Preflight(tuple(Check(**c) for c in found["checks"]), found["figures"], limits, found["host"])
    return Preflight((reading,), {}, limits, this_host().as_dict())


def check(
    path: Path,
    limits: Limits,
    photos: Sequence[Path] = (),
    count: int | None = None,
    wheels: Path | None = None,
) -> Preflight:
    """path: an archive or a folder. photos: to label; count: how many a submission has. wheels: a folder of the lock's
    packages, instead of the index."""
    checks = Checks()
    figures: dict[str, Any] = {}
    host = this_host()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        try:
            folder = unpacked(path, work / "unpacked", checks)
            manifest, pins = examine(folder, host, checks)
            if missing := sandbox.available():
                checks.stop("sandbox", "inconclusive", f"{missing}; nothing of the bundle was run")
            figures["install_s"] = _fetch(manifest, pins, work, wheels, checks)
            shown = _show(photos, manifest, work / "images")
            with sandbox.opened(Given(folder, work / "fetched", work / "images"), limits.disk) as box:
                _rehearse(box, manifest, shown, limits, count or len(photos), checks, figures)
        except SandboxBroken as error:
            checks.say("sandbox", "fail", str(error))
        except Ended:
            pass
    return Preflight(tuple(checks.found), figures, limits, host.as_dict())


def _fetch(manifest: Manifest, pins: tuple[Pin, ...], work: Path, wheels: Path | None, checks: Checks) -> float:
    """Fetch the wheels and create an environment. Returns the seconds for the environment, without the download."""
    (work / "fetched").mkdir()
    try:
        answer = sandbox.fetch(pins, work / "fetched", wheels)
    except SandboxBroken as error:  # no code of the bundle runs in this one
        checks.stop("sandbox", "inconclusive", f"the packages cannot be fetched in it: {error}")
    name, step = next(reversed(answer.steps.items()), ("copy", None))
    if answer.problem or step is None or step.code != 0:
        if answer.exceeded:  # by other processes of this machine: no code of the bundle runs in this one
            checks.stop("sandbox", "inconclusive", f"'{name}' was ended: {EXCESSES[answer.exceeded][2]}")
        if name == "venv":
            said = last_words(step.said) if step else ""
            checks.stop("sandbox", "inconclusive", f"Python cannot make an environment (python3-venv?): {said}")
        said = step.said if step and step.code is not None else f"timed out {answer.problem}"
        refused = _REFUSED.search(said) and not (wheels is None and _UNREACHED.search(said))
        told = f"the lock cannot be fetched: {last_words(said)}"
        if "MATCH THE HASHES" in said:
            told = f"a package has none of the hashes of the lock: {last_words(said)}"
        checks.stop("dependencies", "fail" if refused else "inconclusive", told)
    try:
        requires: dict[str, list[str]] = {canonicalize_name(name): needs for name, needs in answer.requires.items()}
        needed = closure(roots(manifest.model.runtime), requires)
    except (InvalidMarker, UndefinedEnvironmentName, ValueError, RecursionError) as error:
        checks.stop("dependencies", "fail", f"the metadata of a package cannot be read: {error}")
    if more := sorted({p.name for p in pins} - needed):
        checks.stop("dependencies", "fail", f"the lock names {', '.join(more)}, which nothing in it needs")
    return answer.steps["venv"].seconds


def _show(photos: Sequence[Path], manifest: Manifest, folder: Path) -> _Photos:
    """Copy the images that are needed into `folder`, so that the sandbox sees nothing beside them."""
    folder.mkdir()
    inside: dict[Path, str] = {}

    def show(photo: Path) -> str:
        if photo not in inside:
            name = f"{len(inside):05}{photo.suffix}"
            shutil.copyfile(photo, folder / name)
            inside[photo] = f"/given/images/{name}"
        return inside[photo]

    known = {digest for digest, *_ in manifest.recorded}
    classes = set(manifest.classes)
    recorded: dict[str, Path] = {}
    folders: dict[str, set[str]] = {}
    beside: list[tuple[Path, str]] = []
    for photo in photos:
        name = unicodedata.normalize("NFC", photo.parent.name)
        if (digest := sha256(photo)) not in known:
            if name in classes:
                beside.append((photo, name))
        else:
            recorded.setdefault(digest, photo)
            folders.setdefault(digest, set()).add(name)
    preprocess = Preprocess(_READ_AT)  # not at the size that a stranger's manifest names

    def is_readable(photo: Path) -> bool:
        with contextlib.suppress(ImageError):
            preprocess.load(photo)
            return True
        return False

    readable = [photo for photo in photos[:: max(1, len(photos) // TIMED_IMAGES)] if is_readable(photo)]
    timed = [show(readable[i * len(readable) // TIMED_IMAGES]) for i in range(TIMED_IMAGES)] if readable else []
    count = min(RECORDED_IMAGES, max(1, _MOST_LOGITS // len(manifest.classes)))
    # Which ones, no packer can foresee.
    chance = random.SystemRandom()
    again = {show(photo): digest for digest, photo in chance.sample(list(recorded.items()), min(count, len(recorded)))}
    some = chance.sample(beside, min(count, OTHER_IMAGES, len(beside)))
    others = {show(photo): name for photo, name in some if is_readable(photo)}
    return _Photos(again, folders, others, timed, len(photos))


def _rehearse(
    box: Sandbox,
    manifest: Manifest,
    photos: _Photos,
    limits: Limits,
    count: int,
    checks: Checks,
    figures: dict[str, Any],
) -> None:
    memory = limits.memory_bytes
    answer = box.ask(
        2 * _PREPARE_S + 60,
        "prepare",
        options=list(PIP_OPTIONS),
        memory_bytes=memory,
        timeout_s=_PREPARE_S,
    )
    figures |= {
        **{f"{name}_bytes": size for name, size in answer.bytes.items()},
        "install_s": figures["install_s"] + sum(s.seconds for s in answer.steps.values()),
        "memory_peak_bytes": 0,
        "disk_peak_bytes": answer.disk_peak_bytes,
    }
    judge_step("install", answer, limits, checks)

    def run(name: str, args: list[str], form: str | None = None, images: int = 0, ends_s: float = 0) -> Step:
        timeout_s = ends_s or limits.run_s(images)
        asked = {"name": name, "args": args, "form": form, "memory_bytes": memory, "timeout_s": timeout_s}
        answer: Answer = box.ask(2 * timeout_s + 60, "label", **asked)
        ended = answer.steps.get(name)
        if ends_s and ended and ended.code is None:
            told = f"'{name}' took over {ends_s:.0f} s, {_TIMED_FACTOR} times as long as the same run before"
            checks.stop("time", "inconclusive", f"{told}: something else runs here, or it does not always do the same")
        step = judge_step(name, answer, limits, checks)
        figures["memory_peak_bytes"] = max(figures["memory_peak_bytes"], step.peak_bytes)
        figures["disk_peak_bytes"] = max(figures["disk_peak_bytes"], answer.disk_peak_bytes)
        return step

    def predict(name: str, paths: list[str], form: str = "json", images: int = 0, ends_s: float = 0) -> Step:
        return run(name, ["/disk/bundle/predict.py", *paths], form, images or len(paths), ends_s)

    run("imports", ["-c", f"import numpy, PIL, {manifest.model.runtime}"])
    checks.say("sandbox", "pass", f"no network, a disk of {limits.disk / 1e6:.0f} MB, an empty environment")
    checks.say("environment", "pass", "installed from its own lock, offline; its packages load")
    golden, samples = ["/disk/bundle/golden"], len(manifest.golden.samples)
    rows = rows_of(predict("golden", golden, images=samples), manifest, samples, checks)
    judge_golden(manifest, rows, checks)
    recorded = list(photos.recorded)
    if recorded:
        rows += rows_of(predict("recorded", recorded), manifest, len(recorded), checks)
        judge_recorded(manifest, photos.recorded, photos.folders, rows[samples:], checks)
    elif photos.given:
        checks.say("F1", "inconclusive", "none of the recorded photos is among those given")
    if photos.others:
        step = predict("others", list(photos.others))
        judge_others(manifest, photos.others, rows_of(step, manifest, len(photos.others), checks), checks)
    some = rows[: samples + _FORM_IMAGES]
    for form in FORMS:
        step = predict(f"--{form}", golden + recorded[:_FORM_IMAGES], form, len(some))
        judge_forms(form, step, some, manifest, checks)
    checks.say("outputs", "pass", f"--json, --csv, --output and the table say the same of {len(some)} images")
    judge_resources(limits, figures, checks)

    one = photos.timed[:1] or ["/disk/bundle/golden/turned.jpg"]
    starts: list[float] = []
    wholes: list[float] = []
    timed = [("start", one, starts), *([("images", photos.timed, wholes)] if photos.timed else [])]
    untimed = {name: predict("first" if name == "start" else name, paths) for name, paths, _ in timed}
    labels = {name: _labels(rows_of(untimed[name], manifest, len(paths), checks)) for name, paths, _ in timed}
    for i in range(PROCESSES):
        for name, paths, seconds in timed:
            with LOCAL.lock():
                step = predict(f"{name}-{i}", paths, ends_s=_timed_s(untimed[name], len(paths), limits))
            if _labels(rows_of(step, manifest, len(paths), checks)) != labels[name]:
                checks.stop("outputs", "fail", f"'{name}-{i}' gives other labels than the same run before it was timed")
            seconds.append(step.seconds)
    judge_time(starts, wholes, len(photos.timed), count, limits, checks, figures)


def _labels(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return [(row.path, row.label) for row in rows]


def _timed_s(before: Step, images: int, limits: Limits) -> float:
    return min(limits.run_s(images), max(_TIMED_LEAST_S, _TIMED_FACTOR * before.seconds))


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    wheels = request["wheels"]
    found = check(
        Path(request["path"]),
        Limits(**request["limits"]),
        [Path(p) for p in request["photos"]],
        request["count"],
        wheels and Path(wheels),
    )
    return asdict(found)


if __name__ == "__main__":
    bounded.answer(_answer)
