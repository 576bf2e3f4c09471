"""What can be checked of a bundle by reading it: what fails here is never run."""

import json
import re
from pathlib import Path

import numpy as np

from export.artifact import sha256
from export.bundle import FORMAT, MANIFEST, Bundle, files_of, read_bundle
from export.checks import Checks
from export.errors import ExportError
from export.unpack import BadArchive, unpack
from latency.host import Host


def unpacked(path: Path, folder: Path, checks: Checks) -> Path:
    if path.is_dir():
        return path
    folder.mkdir()
    try:
        found = unpack(path, folder)
    except BadArchive as error:
        checks.stop("archive", "fail", str(error))
    checks.say("archive", "pass", f"{path.stat().st_size / 1e6:.2f} MB, unpacks safely")
    return found


def examine(folder: Path, host: Host, checks: Checks) -> Bundle:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        recorded = dict(manifest["files"])
        if manifest["format"] != FORMAT:
            checks.stop("manifest", "fail", f"format {manifest['format']}; a rehearsal needs {FORMAT}: pack it again")
    except (OSError, ValueError, KeyError, TypeError) as error:
        checks.stop("manifest", "fail", f"{folder / MANIFEST}: not readable: {error!r}")
    if any(p.is_symlink() for p in folder.rglob("*")):
        checks.stop("hashes", "fail", "the folder holds links; a bundle holds files only")
    present = set(files_of(folder)) - {f for f in files_of(folder) if "__pycache__" in f}
    missing, unknown = sorted(set(recorded) - present), sorted(present - set(recorded))
    changed = sorted(name for name in present & set(recorded) if sha256(folder / name) != recorded[name])
    for what, names in (
        ("missing", missing),
        ("not in the manifest", unknown),
        ("changed since it was packed", changed),
    ):
        if names:
            checks.stop("hashes", "fail", f"{', '.join(names)}: {what}")
    checks.say("hashes", "pass", f"{len(recorded)} files as packed")
    try:
        bundle = read_bundle(folder)
        needs = [(str(n["what"]), list(n["any_of"])) for n in bundle.manifest["relies_on"]]
        labels = (folder / "labels.txt").read_text(encoding="utf-8").splitlines()
        golden = bundle.manifest["golden"]
        named = [str(name) for name in golden["samples"]]
        finite = all(np.isfinite(s["logits"]).all() for s in golden["samples"].values()) and golden["tolerance"] > 0
        complete = bool(named) and all(name in recorded for name in named)
        dict(bundle.manifest["slice"])
        str(bundle.manifest["evidence"]["host"]["key"])
        dict(bundle.manifest["evidence"]["portability"])
        locked = (folder / "requirements.txt").read_text()
    except (ExportError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        checks.stop("manifest", "fail", f"not whole: {error!r}")
    if not complete or not finite:
        checks.stop("golden samples", "fail", "none are recorded, or what is recorded is not finite")
    if labels != bundle.manifest["classes"]:
        checks.stop("labels", "fail", "labels.txt and the manifest name other classes, or another order")
    lacking = [f"{what} (one of {', '.join(flags)})" for what, flags in needs if not host.has_any(flags)]
    if lacking:
        checks.stop("cpu", "fail", f"{host.cpu} lacks what the file relies on: {'; '.join(lacking)}")
    checks.say("cpu", "pass", "; ".join(what for what, _ in needs) or "no instructions beyond the packages' own")
    if not re.search(r"--hash=sha256:[0-9a-f]{64}", locked):
        told = "requirements.txt has no hashes: it was packed where the package index could not be reached"
        checks.stop("lock", "inconclusive", f"{told}; pack it again with `edgebuild bundle`")
    if re.search(r"^torch\b", locked, re.MULTILINE):
        checks.say("lock", "fail", "requirements.txt names torch, ten times the size of all else")
    return bundle
