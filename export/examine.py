"""What can be checked of a bundle by reading it: what fails here is never run."""

import re
from pathlib import Path

from export.artifact import sha256
from export.bundle import MANIFEST, files_of
from export.checks import Checks
from export.errors import ExportError
from export.manifest import Manifest, read_manifest
from export.unpack import BadArchive, unpack
from latency.host import Host

_PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+_-]+(\s+--hash=sha256:[0-9a-f]{64})*")


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


def examine(folder: Path, host: Host, checks: Checks) -> Manifest:
    try:
        manifest = read_manifest(folder / MANIFEST)
    except ExportError as error:
        checks.stop("manifest", "fail", str(error))
    if any(not (p.is_file() or p.is_dir()) or p.is_symlink() for p in folder.rglob("*")):
        checks.stop("hashes", "fail", "the folder holds links or devices; a bundle holds files only")
    # What Python left there is not copied into the sandbox.
    present = {name for name in files_of(folder) if "__pycache__" not in name.split("/")}
    recorded = manifest.files
    missing, unknown = sorted(set(recorded) - present), sorted(present - set(recorded))
    changed = sorted(name for name in present & set(recorded) if sha256(folder / name) != recorded[name])
    for what, names in (
        ("missing", missing),
        ("not in the manifest", unknown),
        ("changed since it was packed", changed),
    ):
        if names:
            checks.stop("hashes", "fail", f"{', '.join(names[:5])}: {what}")
    lacking = sorted({"predict.py", "preprocess.py", "labels.txt", "requirements.txt", manifest.model.path} - present)
    if lacking:
        checks.stop("manifest", "fail", f"{', '.join(lacking)}: in no bundle of ours is this left out")
    if sorted(manifest.golden.samples) != sorted(n for n in present if n.startswith("golden/")):
        checks.stop("manifest", "fail", "golden.samples: not the files of the folder golden")
    checks.say("hashes", "pass", f"{len(recorded)} files as packed")
    if (folder / "labels.txt").read_text(encoding="utf-8", errors="replace").split("\n") != [*manifest.classes, ""]:
        checks.stop("labels", "fail", "labels.txt and the manifest name other classes, or another order")
    absent = [n for n in manifest.relies_on if not host.has_any(n.any_of)]
    if absent:
        needs = "; ".join(f"{n.what} (one of {', '.join(n.any_of)})" for n in absent)
        checks.stop("cpu", "fail", f"{host.cpu} lacks what the file relies on: {needs}")
    told = "; ".join(n.what for n in manifest.relies_on)
    checks.say("cpu", "pass", told or "no instructions beyond the packages' own")
    _lock((folder / "requirements.txt").read_text(encoding="utf-8", errors="replace"), checks)
    return manifest


def _lock(text: str, checks: Checks) -> None:
    """Exact versions with hashes and nothing else: an option in it would be obeyed by pip, outside of the sandbox."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
    other = [line for line in lines if not _PIN.fullmatch(line.strip())]
    if other:
        checks.stop("lock", "fail", f"requirements.txt holds more than versions and hashes: {other[0].strip()[:100]}")
    bare = [line for line in lines if "--hash" not in line]
    if bare or not lines:
        told = "requirements.txt has no hashes: it was packed where the package index could not be reached"
        checks.stop("lock", "inconclusive", f"{told}; pack it again with `edgebuild bundle`")
    if any(line.startswith("torch==") for line in lines):
        checks.stop("lock", "fail", "requirements.txt names torch, ten times the size of all else")
