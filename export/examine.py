"""What can be checked of a bundle by reading it: what fails here is never run.

A bundle consists of its manifest and the files that the manifest names, all of known kinds, and nothing else. Claims
are recomputed from the manifest's own data or compared with it. A latency cannot be, so it stays the packer's word.
"""

import errno
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np

from export.artifact import sha256
from export.bundle import CODE, files_of
from export.checks import Checks
from export.documents import CARD, SBOM, model_card, sbom
from export.errors import ExportError
from export.formats import FORMATS
from export.golden import GOLDEN, are_ours, golden_tolerance, near_tie, reach
from export.lock import BadLock, Pin, parse_pins
from export.manifest import MANIFEST, Manifest, read_manifest
from export.operators import operators_of
from export.parity import f1_interval, figures
from export.unpack import MAX_BYTES, MAX_FILES, BadArchive, unpack
from latency.bounds import least_processes
from latency.errors import InputError
from latency.files import file_hash, is_quantized
from latency.host import Host, version_of
from latency.runners import runtime_of

_ALWAYS = (*CODE, "labels.txt", "requirements.txt", CARD, SBOM)
_MODELS = {"model.onnx": ("model.onnx",), "model.ort": ("model.ort",), "model.xml": ("model.xml", "model.bin")}
_CLOSE, _CLOSE_INTERVAL = 1e-6, 0.02
"""Allowed differences between two computations of one figure; the bounds come from a bootstrap, which may vary."""
_REPEATS = 1.5
"""Recorded rows for each different image: data sets do repeat images, but not most of them."""
_BOOTSTRAPPED = 100_000
"""Up to this many images x classes the bounds are recomputed, in seconds. Beyond, they only have to enclose the F1."""


def unpacked(path: Path, folder: Path, checks: Checks) -> Path:
    """Unpack or copy the bundle into `folder`, so that what is examined is what is run, whatever happens to `path`."""
    if path.is_dir():
        return _copied(path, folder, checks)
    folder.mkdir()
    try:
        found = unpack(path, folder)
    except BadArchive as error:
        checks.stop("archive", "fail", str(error))
    checks.say("archive", "pass", f"{path.stat().st_size / 1e6:.2f} MB, unpacks safely")
    return found


def _copied(source: Path, target: Path, checks: Checks) -> Path:
    """Copy the files of a bundle's folder, which may hold nothing but files and the folder golden."""
    try:
        (target / GOLDEN).mkdir(parents=True)
        total = count = 0
        for folder in (source, source / GOLDEN):
            for entry in os.scandir(folder):
                name = Path(entry.path).relative_to(source)
                if name == Path(GOLDEN) and entry.is_dir(follow_symlinks=False):
                    continue
                count += 1
                total += _copy(Path(entry.path), target / name, MAX_BYTES - total, checks)
                if count >= MAX_FILES:
                    checks.stop(
                        "hashes", "fail", f"the folder holds more than {MAX_FILES} files; a bundle has far fewer"
                    )
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        checks.stop("hashes", "fail", f"the folder cannot be read as a bundle: {error}")
    return target


def _copy(source: Path, target: Path, most: int, checks: Checks) -> int:
    """Copy a regular file of at most `most` bytes, and nothing else, whatever takes its place meanwhile."""
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        checks.stop("hashes", "fail", f"{source.name} is a link or a device; a bundle holds files only")
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        checks.stop("hashes", "fail", f"{source.name}: not in the manifest, which names files only")
    with os.fdopen(descriptor, "rb") as file:
        if found.st_size > most:
            told = f"the folder holds more than {MAX_BYTES / 1e6:.0f} MB; a bundle is far smaller"
            checks.stop("hashes", "fail", told)
        with target.open("xb") as copy:
            copy.write(file.read(found.st_size))
    return found.st_size


def examine(folder: Path, host: Host, checks: Checks) -> tuple[Manifest, tuple[Pin, ...]]:
    """Check everything that reading can show. Returns the manifest and the pins of the lock."""
    try:
        manifest = read_manifest(folder / MANIFEST)
    except ExportError as error:
        checks.stop("manifest", "fail", str(error))
    _files(folder, manifest, checks)
    if (folder / "labels.txt").read_bytes() != "".join(f"{c}\n" for c in manifest.classes).encode():
        checks.stop("labels", "fail", "labels.txt and the manifest name other classes, or another order")
    absent = [n for n in manifest.relies_on if not host.has_any(n.any_of)]
    if absent:
        needs = "; ".join(f"{n.what} (one of {', '.join(n.any_of)})" for n in absent)
        checks.stop("cpu", "fail", f"{host.cpu} lacks what the file relies on: {needs}")
    told = "; ".join(n.what for n in manifest.relies_on)
    checks.say("cpu", "pass", told or "no instructions beyond the packages' own")
    pins = _lock((folder / "requirements.txt").read_bytes(), checks)
    _claims(folder, manifest, checks)
    foreign = [name for name, ours in CODE.items() if (folder / name).read_bytes() != ours.read_bytes()]
    if foreign:
        told = f"{' and '.join(foreign)} is not edgebuild's own: what it answers here, and how fast, is its own word"
        checks.say("code", "inconclusive", told)
    _documents(folder, manifest, pins, checks)
    return manifest, pins


def _files(folder: Path, manifest: Manifest, checks: Checks) -> None:
    present, recorded = set(files_of(folder)), set(manifest.files)
    changed = sorted(name for name in present & recorded if sha256(folder / name) != manifest.files[name])
    for what, names in (
        ("missing", sorted(recorded - present)),
        ("not in the manifest", sorted(present - recorded)),
        ("changed since it was packed", changed),
    ):
        if names:
            checks.stop("hashes", "fail", f"{', '.join(names[:5])}: {what}")
    samples = {n for n in present if n.startswith(f"{GOLDEN}/")}
    if manifest.model.path not in _MODELS:
        checks.stop("manifest", "fail", f"model.path: {manifest.model.path}: no bundle of ours names its model so")
    wanted = {*_ALWAYS, *_MODELS[manifest.model.path]}
    if lacking := sorted(wanted - present):
        checks.stop("manifest", "fail", f"{', '.join(lacking)}: in no bundle of ours is this left out")
    if more := sorted(present - wanted - samples):
        checks.stop("manifest", "fail", f"{', '.join(more[:5])}: no bundle of ours holds such a file")
    if set(manifest.golden.samples) != samples:
        checks.stop("manifest", "fail", "golden.samples: not the files of the folder golden")
    if not are_ours(samples):
        checks.stop("manifest", "fail", "golden.samples: not one to four photos, turned.jpg and alpha.png")
    try:
        digest = file_hash(folder / manifest.model.path)
    except InputError as error:
        checks.stop("model", "fail", str(error))
    if digest != manifest.model.sha256:
        checks.stop("manifest", "fail", f"model.sha256: not that of {manifest.model.path}")
    checks.say("hashes", "pass", f"{len(recorded)} files as packed")


def _lock(content: bytes, checks: Checks) -> tuple[Pin, ...]:
    try:
        pins = parse_pins(content)
    except BadLock as error:
        checks.stop("lock", "fail", f"{error}; only versions and hashes are given to pip")
    if not pins or not all(p.hashes for p in pins):
        told = "requirements.txt has no hashes: it was packed where the package index could not be reached"
        checks.stop("lock", "inconclusive", f"{told}; pack it again with `edgebuild bundle`")
    return pins


def _claims(folder: Path, manifest: Manifest, checks: Checks) -> None:
    """Compare the claims with what the manifest itself shows."""
    claims, model, golden = manifest.evidence, manifest.model, manifest.golden

    def wrong(told: str) -> None:
        checks.stop("claims", "fail", told)

    subject = claims.latency.subject
    for name in ("runtime", "precision", "threads", "sha256"):
        timed, packed = getattr(subject, name), getattr(model, name)
        if timed != packed:
            wrong(f"the latency is of another file or setting: {name} {timed} was timed, {packed} is packed")
    if runtime_of(Path(model.path)) != model.runtime:
        wrong(f"{model.path} is no file for {model.runtime}")
    if (model.runtime, model.precision) not in {(f.runtime, p) for f in FORMATS.values() for p in f.precisions}:
        wrong(f"{model.runtime} has no files in {model.precision}")
    try:
        operators = operators_of(folder / model.path)
    except InputError as error:
        checks.stop("model", "fail", str(error))
    if is_quantized(operators) != (model.precision == "int8"):
        wrong(f"the precision is claimed as {model.precision}; the operators of {model.path} say otherwise")
    if claims.latency.processes < (least := least_processes(claims.latency.attempts)):
        wrong(f"a bound of 99 % is claimed from {claims.latency.processes} processes; it needs {least}")
    if not claims.latency.p50_ms <= claims.latency.p90_ms <= claims.latency.p90_upper_ms:
        wrong("the latency's p50, p90 and upper bound are not in this order")
    if claims.latency.p90_lower_ms > claims.latency.p90_ms:
        wrong("the latency's lower bound is over its p90")
    if claims.latency.p90_upper_ms > claims.latency.limit_ms:
        wrong(f"a pass is claimed at {claims.latency.p90_upper_ms} ms, over the limit {claims.latency.limit_ms}")
    number = {c: i for i, c in enumerate(manifest.classes)}
    if len(number) != len(manifest.classes):
        wrong("a class is named twice")
    unknown = {label for _, *labels in manifest.recorded for label in labels} - set(number)
    if unknown:
        wrong(f"recorded: {sorted(unknown)[0]!r} is no class of this model")
    guess_of: dict[str, str] = {}
    for digest, _, guess in manifest.recorded:
        if guess_of.setdefault(digest, guess) != guess:
            wrong(f"recorded: the image {digest[:12]} has two different predictions")
    if len(manifest.recorded) > _REPEATS * len(guess_of):
        told = f"{len(manifest.recorded)} recorded rows are of only {len(guess_of)} different images"
        checks.stop("claims", "inconclusive", f"{told}, so the F1 is mostly that of repeats")
    truth, guesses = (np.array([number[row[i]] for row in manifest.recorded]) for i in (1, 2))
    _quality(manifest, truth, guesses, wrong)
    logits = [np.array(s.logits) for s in golden.samples.values()]
    if any(len(values) != len(number) for values in logits):
        wrong(f"a golden sample has not one logit for each of the {len(number)} classes")
    recorded = np.stack(logits)
    typical = float(np.median(reach(recorded)))
    drift = 0.0 if manifest.relies_on else claims.portability.max_diff
    allowed = golden_tolerance(model.precision, recorded, drift)
    if not math.isclose(golden.tolerance, allowed, rel_tol=_CLOSE):
        wrong(f"golden.tolerance is {golden.tolerance:.3g}; what is recorded gives {allowed:.3g}")
    if golden.tolerance > typical / 2:
        told = f"logits of about {typical:.3g} may differ by {golden.tolerance:.3g}, so the samples show little"
        checks.stop("golden samples", "inconclusive", told)
    for (name, sample), values in zip(golden.samples.items(), recorded, strict=True):
        if manifest.classes[int(values.argmax())] != sample.label or near_tie(values, allowed) != sample.near_tie:
            checks.stop("labels", "fail", f"{name}: the recorded label is not that of its largest logit")
    told = f"F1 {claims.quality.f1_macro:.4f} is that of the {len(manifest.recorded)} recorded predictions. "
    told += (
        "The packer's word: the predictions until they are made again, true classes, the latency with its threads and "
        "its host, portability, parameters, MACs"
    )
    checks.say("claims", "pass", told)


def _quality(manifest: Manifest, truth: np.ndarray, guesses: np.ndarray, wrong: Callable[[str], None]) -> None:
    claimed, classes = manifest.evidence.quality, manifest.classes
    found = figures(guesses, truth, classes)
    if claimed.selected_on != (claimed.split == "val"):
        wrong(f"quality: measured on {claimed.split}, but selected_on is {claimed.selected_on}")
    if set(claimed.f1_per_class) != set(classes):
        wrong("quality.f1_per_class: not the classes of this model")
    pairs = {name: (getattr(claimed, name), found[name]) for name in ("f1_macro", "accuracy")}
    pairs |= {f"f1_per_class.{c}": (claimed.f1_per_class[c], found["f1_per_class"][c]) for c in classes}
    allowed = dict.fromkeys(pairs, _CLOSE)
    low, high = (
        f1_interval(truth, guesses, len(classes))
        if len(truth) * len(classes) <= _BOOTSTRAPPED
        else (min(claimed.f1_low, found["f1_macro"]), max(claimed.f1_high, found["f1_macro"]))
    )
    pairs |= {"f1_low": (claimed.f1_low, low), "f1_high": (claimed.f1_high, high)}
    for name, (said, right) in pairs.items():
        if abs(said - right) > allowed.get(name, _CLOSE_INTERVAL):
            wrong(f"quality.{name} is claimed as {said:.4f}; the recorded labels give {right:.4f}")


def _documents(folder: Path, manifest: Manifest, pins: tuple[Pin, ...], checks: Checks) -> None:
    """Compare the model card and the bill of materials, which follow from the manifest and the lock alone."""
    ours = version_of("edgebuild") or "unknown"
    if manifest.edgebuild != ours:
        told = f"packed by edgebuild {manifest.edgebuild[:40]}, this is {ours}"
        checks.stop("documents", "inconclusive", f"{told}: its model card cannot be verified; use that version")
    if (folder / CARD).read_bytes() != model_card(manifest).encode():
        checks.stop("documents", "fail", f"{CARD} says something else than the manifest")
    expected = sbom(manifest.model.path, manifest.model.sha256, pins, manifest.model.precision)
    if (folder / SBOM).read_bytes() != expected.encode():
        checks.stop("documents", "fail", f"{SBOM} lists something else than the model and requirements.txt")
    if any(p.name == "torch" for p in pins):
        checks.stop("lock", "fail", "requirements.txt names torch, ten times the size of all else")
