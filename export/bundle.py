"""The bundle: a folder, and an archive of it, that labels images where neither edgebuild nor torch is installed."""

import gzip
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from export import preprocess
from export.artifact import Artifact, ModelCard, evenly, sha256
from export.documents import CARD, SBOM, model_card, sbom
from export.errors import ExportError
from export.golden import PHOTOS, write_golden
from export.lock import Lock
from export.manifest import FORMAT, MANIFEST, Claims, known_part, parse_manifest
from export.preprocess import Preprocess
from export.unpack import write_tar
from latency.host import version_of

CODE = {"predict.py": Path(__file__).parent / "templates/predict.py", "preprocess.py": Path(preprocess.__file__)}
"""The programs of a bundle, and what they are copies of."""


@dataclass(frozen=True)
class Evidence:
    """What is known of the file that is packed.

    facts: verdict, latency, quality, host, params, macs and portability, as in gate.json. Of these the manifest has
    what a reader of the bundle can compare with something.
    photos: path, class and given label of each image of the split that the quality was measured on. relies_on: as from
    `portability.relies_on`. drift: largest difference of a logit seen on an older CPU.
    """

    facts: dict[str, Any]
    photos: Sequence[tuple[Path, str, str]]
    relies_on: Sequence[dict[str, Any]] = ()
    drift: float = 0.0


def write_bundle(
    folder: Path, artifact: Artifact, card: ModelCard, threads: int, lock: Lock, evidence: Evidence
) -> Path:
    """Fill `folder` and write `folder`.tar.gz beside it; the archive's path. The manifest, written last, names each
    file with its sha256. Raises ExportError where the artifact is not the file that the evidence is of."""
    folder.mkdir(parents=True)
    for file in artifact.files:
        shutil.copy(file, folder / f"model{file.suffix}")
    shipped = Artifact(folder / f"model{artifact.path.suffix}", artifact.runtime, artifact.precision)
    digest = shipped.subject(threads).sha256
    timed = evidence.facts["latency"]["subject"]["sha256"]
    if digest != timed:
        raise ExportError(
            f"{artifact.path}: sha256 {digest[:12]} is not that of the file that was timed ({timed[:12]}); "
            "nothing is known of it: measure it again"
        )
    for name, source in CODE.items():
        shutil.copyfile(source, folder / name)
    (folder / "labels.txt").write_text("".join(f"{c}\n" for c in card.classes), encoding="utf-8")
    (folder / "requirements.txt").write_text(lock.text)
    (folder / SBOM).write_text(sbom(shipped.path.name, digest, lock.pins, artifact.precision), encoding="utf-8")
    arrays = np.stack([card.preprocess.load(p) for p, _, _ in evenly(evidence.photos, PHOTOS)])
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "edgebuild": version_of("edgebuild") or "unknown",
        "model": {
            "path": shipped.path.name,
            "runtime": artifact.runtime,
            "precision": artifact.precision,
            "threads": threads,
            "sha256": digest,
        },
        "classes": list(card.classes),
        "preprocess": card.preprocess.as_dict(),
        "relies_on": list(evidence.relies_on),
        "golden": write_golden(folder, shipped, card, arrays, evidence.drift),
        "recorded": [[sha256(p), t, g] for p, t, g in evidence.photos],
        "evidence": known_part(Claims, evidence.facts),
    }
    # What a rehearsal would not accept is not packed.
    checked = parse_manifest(json.dumps(manifest | {"files": {}}))
    (folder / CARD).write_text(model_card(checked), encoding="utf-8")
    manifest["files"] = {name: sha256(folder / name) for name in files_of(folder)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return _archive(folder)


def files_of(folder: Path) -> list[str]:
    """All files under it but the manifest, by their paths in the bundle."""
    found = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())
    return sorted(name for name in found if name != MANIFEST)


@dataclass(frozen=True)
class Bundle:
    """What a bundle's manifest says that a timing needs."""

    artifact: Artifact
    preprocess: Preprocess
    threads: int


class _Model(BaseModel):
    """What a manifest of any format says of its model."""

    model_config = ConfigDict(strict=True)

    path: str
    runtime: str
    precision: str
    threads: Annotated[int, Field(ge=1)]
    sha256: str


def read_bundle(folder: Path) -> Bundle:
    """Raises ExportError where the folder is none, or its model is not the one of the manifest."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] not in range(1, FORMAT + 1):
            raise ExportError(f"{path}: a bundle of format {manifest['format']}; this version reads 1 to {FORMAT}")
        model = _Model.model_validate(manifest["model"])
        if Path(model.path).name != model.path:
            raise ExportError(f"{path}: names a model outside of the bundle: {model.path!r}")
        bundle = Bundle(
            Artifact(folder / model.path, model.runtime, model.precision),
            Preprocess(**manifest["preprocess"]),
            model.threads,
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ExportError(
            f"{folder}: no bundle of edgebuild: {' '.join(str(error).split())}; give the folder that holds {MANIFEST}"
        ) from error
    if bundle.artifact.subject(bundle.threads).sha256 != model.sha256:
        raise ExportError(f"{bundle.artifact.path}: differs from the manifest's sha256; unpack the archive again")
    return bundle


def _archive(folder: Path) -> Path:
    """A .tar.gz with the same bytes for the same files."""
    path = folder.with_name(folder.name + ".tar.gz")
    with path.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as packed:
        write_tar(folder, [*files_of(folder), MANIFEST], packed)
    return path
