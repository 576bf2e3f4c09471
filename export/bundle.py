"""The bundle: a folder, and an archive of it, that labels images where neither edgebuild nor torch is installed."""

import gzip
import json
import re
import shutil
import tarfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from export import FORMAT, preprocess
from export.artifact import Artifact, ModelCard, sha256
from export.errors import ExportError
from export.parity import logits_of
from export.preprocess import Preprocess

_TEMPLATES = Path(__file__).parent / "templates"
GOLDEN_SAMPLES = 4


def write_bundle(
    folder: Path, artifact: Artifact, card: ModelCard, threads: int, samples: np.ndarray, evidence: dict[str, Any]
) -> Path:
    """Fill `folder` and write `folder`.tar.gz beside it; the archive's path.

    samples: uint8 (n, size, size, 3), the golden inputs. evidence: verdict, latency, quality and host, as in
    result.json. The manifest, written last, names each file with its sha256.
    """
    folder.mkdir(parents=True)
    for file in artifact.files:
        shutil.copy(file, folder / f"model{file.suffix}")
    shipped = Artifact(folder / f"model{artifact.path.suffix}", artifact.runtime, artifact.precision)
    shutil.copyfile(preprocess.__file__, folder / "preprocess.py")
    shutil.copyfile(_TEMPLATES / "predict.py", folder / "predict.py")
    (folder / "labels.txt").write_text("".join(f"{c}\n" for c in card.classes), encoding="utf-8")
    (folder / "requirements.txt").write_text("".join(f"{r}\n" for r in requirements(artifact.runtime)))
    golden = samples[:GOLDEN_SAMPLES]
    np.savez_compressed(folder / "golden.npz", images=golden, logits=logits_of(shipped, golden))
    files = sorted(p.name for p in folder.iterdir())
    manifest = {
        "format": FORMAT,
        "model": {
            "path": shipped.path.name,
            "runtime": artifact.runtime,
            "precision": artifact.precision,
            "threads": threads,
            "sha256": shipped.subject(threads).sha256,
        },
        "classes": list(card.classes),
        "preprocess": card.preprocess.as_dict(),
        "evidence": evidence,
        "files": {name: sha256(folder / name) for name in files},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return _archive(folder)


@dataclass(frozen=True)
class Bundle:
    """What a bundle's manifest says that a timing needs."""

    artifact: Artifact
    preprocess: Preprocess
    threads: int


def read_bundle(folder: Path) -> Bundle:
    """Raises ExportError where the folder is none, or its model is not the one of the manifest."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        model = manifest["model"]
        if Path(model["path"]).name != model["path"]:
            raise ExportError(f"{folder}: its manifest names a model outside of it: {model['path']!r}")
        bundle = Bundle(
            Artifact(folder / model["path"], model["runtime"], model["precision"]),
            Preprocess(**manifest["preprocess"]),
            int(model["threads"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"{folder}: no bundle of edgebuild: {error!r}; give the folder that holds manifest.json"
        ) from error
    if bundle.artifact.subject(bundle.threads).sha256 != model["sha256"]:
        raise ExportError(f"{bundle.artifact.path}: differs from the manifest's sha256; unpack the archive again")
    return bundle


def requirements(runtime: str) -> list[str]:
    """Pins of the runtime, numpy and Pillow, and of all that those need, at the versions installed here."""
    pins: dict[str, str] = {}
    pending = [runtime, "numpy", "pillow"]
    while pending:
        name = pending.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in pins:
            continue
        try:
            pins[key] = metadata.version(name)
        except metadata.PackageNotFoundError as error:
            raise ExportError(f"{name} is not installed, so its version cannot be pinned for the bundle") from error
        for requirement in metadata.requires(name) or []:
            text, _, marker = requirement.partition(";")
            found = re.match(r"[A-Za-z0-9._-]+", text)
            if found and _applies(marker):
                pending.append(found.group())
    return [f"{name}=={version}" for name, version in sorted(pins.items())]


def _applies(marker: str) -> bool:
    if not marker.strip():
        return True
    from packaging.markers import Marker

    return Marker(marker).evaluate({"extra": ""})


def _archive(folder: Path) -> Path:
    """A .tar.gz with the same bytes for the same files: no times, no owners, sorted."""

    def anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode = 0, 0, 0, "", "", 0o644
        return info

    path = folder.with_name(folder.name + ".tar.gz")
    with (
        path.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for file in sorted(folder.iterdir()):
            archive.add(file, arcname=f"{folder.name}/{file.name}", filter=anonymous)
    return path
