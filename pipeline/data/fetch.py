"""Data sets from the Hugging Face hub, checked against a known hash and laid out in splits that anybody gets alike."""

import hashlib
import random
import re
import shutil
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from export.artifact import sha256
from export.preprocess import SUFFIXES, ImageError, Preprocess
from models.language import first_line
from pipeline.errors import EnvironmentProblem, PipelineError
from pipeline.stages import Say

_HELD_OUT = 0.15
_SPLIT_SEED = 42


@dataclass(frozen=True)
class Source:
    """An archive of ROOT/CLASS/photo in a repository of the hub. photos: as many as it holds."""

    repo: str
    file: str
    sha256: str
    photos: int
    licence: str


SOURCES = {
    "trashnet": Source(
        "garythung/trashnet",
        "dataset-resized.zip",
        "c060e8abfe5d6de0578ca15be1ed8ad0794a865d333c3473d53d1d9ad6e38b8c",
        2527,
        "MIT, Copyright (c) 2017 Gary Thung; cite https://github.com/garythung/trashnet",
    )
}


def fetch(source: Source, folder: Path, say: Say) -> dict[str, Any]:
    """Download (or go on with a download), check, and lay out as folder/SPLIT/CLASS/photo. Photos that stand under two
    labels are left out. Raises PipelineError, EnvironmentProblem."""
    if folder.exists():
        raise PipelineError(f"{folder}: exists already; give a new folder")
    archive = _download(source, say)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        classes, left_out = _unpack(source, archive, partial)
        counts = _lay_out(classes, partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {"folder": str(folder), "counts": counts, "left_out": left_out, "licence": source.licence}


def _download(source: Source, say: Say) -> Path:
    from httpx2 import HTTPError
    from huggingface_hub import hf_hub_download

    where = f"the hub's {source.repo}/{source.file}"
    say(f"fetching {where}")
    try:
        path = Path(hf_hub_download(source.repo, source.file, repo_type="dataset"))
    except (OSError, HTTPError) as error:
        raise EnvironmentProblem(
            f"{where}: cannot be downloaded: {first_line(error)}; connect to the network and give the same command, "
            "which goes on from where it stopped"
        ) from error
    found = sha256(path)
    if found != source.sha256:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise EnvironmentProblem(
            f"{where}: its sha256 is {found}, expected {source.sha256}: it is damaged, or not the set that the figures "
            "here are of; it was thrown away, try again"
        )
    return path


def _unpack(source: Source, archive: Path, folder: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """(class -> its photos in the order of their numbers, names of those that stand under two labels)."""
    by_pixels: defaultdict[str, list[Path]] = defaultdict(list)
    probe = Preprocess(64)
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            name = PurePosixPath(info.filename)
            if len(name.parts) != 3 or name.suffix.lower() not in SUFFIXES or name.name.startswith("."):
                continue  # a folder, or what macOS adds
            path = folder / "all" / name.parts[1] / name.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.read(info))
            try:
                by_pixels[hashlib.sha256(probe.load(path).tobytes()).hexdigest()].append(path)
            except ImageError as error:
                raise EnvironmentProblem(f"{source.file}: {name}: {error}") from error
    if (count := sum(map(len, by_pixels.values()))) != source.photos:
        raise EnvironmentProblem(f"{source.file}: {count} photos, expected {source.photos}")
    twice = [p for paths in by_pixels.values() if len({p.parent for p in paths}) > 1 for p in paths]
    classes: defaultdict[str, list[Path]] = defaultdict(list)
    for path in (p for paths in by_pixels.values() for p in paths if p not in twice):
        classes[path.parent.name].append(path)
    return {c: sorted(paths, key=_number) for c, paths in sorted(classes.items())}, sorted(p.name for p in twice)


def _number(path: Path) -> tuple[int, str]:
    digits = re.search(r"\d+", path.name)
    return int(digits[0]) if digits else -1, path.name


def split_of(name: str, photos: Sequence[str]) -> dict[str, list[str]]:
    """70 / 15 / 15 of a class, by a seed of its own: the splits of the README's figures. photos: in order."""
    order = list(photos)
    random.Random(f"{_SPLIT_SEED}-{name}").shuffle(order)
    held = round(_HELD_OUT * len(order))
    return {"train": order[2 * held :], "val": order[:held], "test": order[held : 2 * held]}


def _lay_out(classes: dict[str, list[Path]], folder: Path) -> dict[str, dict[str, int]]:
    """split -> class -> photos."""
    counts: dict[str, dict[str, int]] = {"train": {}, "val": {}, "test": {}}
    for name, paths in classes.items():
        for split, photos in split_of(name, [p.name for p in paths]).items():
            (folder / split / name).mkdir(parents=True)
            for photo in photos:
                (folder / "all" / name / photo).rename(folder / split / name / photo)
            counts[split][name] = len(photos)
    shutil.rmtree(folder / "all")
    return counts
