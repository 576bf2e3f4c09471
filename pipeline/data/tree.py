"""What a data folder contains: splits, classes, images, and everything that is passed over, with the reason.

Data comes in the layouts of other tools: `valid/`, `Val/`, `training/`. Such names are understood. A layout that can be
read in two ways is refused, and everything that is not used is named.
"""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.preprocess import SUFFIXES
from pipeline.errors import PipelineError

SPLITS = ("train", "val", "test")
ALL = "all"
"""The name of the only tree of a root without splits."""
_ALIASES = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "testing", "tst", "holdout"),
}
_SPLIT_OF = {alias: split for split, aliases in _ALIASES.items() for alias in aliases}
_DETECTION = {"images", "labels", "annotations", "masks"}
_NOT_OURS = ("__macosx", "@eadir", "thumbs.db", "desktop.ini")
"""What operating systems and storage leave in folders. Names that begin with a dot are left out as well."""
_CONVERT = "not read here: convert them to JPEG or PNG, for example with `magick mogrify -format jpg`"
_KNOWN_IMAGES = (".heic", ".heif", ".avif", ".jp2", ".jxl", ".raw", ".cr2", ".nef", ".arw", ".dng", ".svg", ".psd")
_JOINERS = "\u200c\u200d"
"""Unseen, but some scripts need them."""
_EXAMPLES = 3


@dataclass
class PassedOver:
    """reason -> how many files or folders, and the first few of them, relative to the root."""

    found: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def note(self, reason: str, path: str) -> None:
        self.found[reason].append(path)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        return {
            reason: {"count": len(paths), "examples": sorted(paths)[:_EXAMPLES]}
            for reason, paths in sorted(self.found.items())
        }


@dataclass(frozen=True)
class Tree:
    """splits: split (or ALL) -> class -> its images, sorted."""

    splits: dict[str, dict[str, list[Path]]]
    passed_over: dict[str, dict[str, Any]]

    def images(self) -> Iterator[Path]:
        return (path for classes in self.splits.values() for paths in classes.values() for path in paths)


def look_through(root: Path) -> Tree:
    """List a data folder. Raises PipelineError for a layout that has no meaning, or two."""
    passed = PassedOver()
    folders = _folders(root, root, passed)
    named: dict[str, list[Path]] = defaultdict(list)
    for folder in folders:
        if split := _SPLIT_OF.get(folder.name.lower()):
            named[split].append(folder)
    for split, several in named.items():
        if len(several) > 1:
            names = " and ".join(f"{f.name}/" for f in several)
            raise PipelineError(f"{root}: {names} both mean {split}/; keep one of them, or merge them")
    if named and "train" not in named:
        names = ", ".join(f"{f[0].name}/" for f in named.values())
        others = ", ".join(f"{f.name}/" for f in folders if f not in [x for v in named.values() for x in v])
        raise PipelineError(
            f"{root}: it holds {names} but no train/{f' (beside {others})' if others else ''}: name the folder of "
            f"the training images train/, or give the folder that holds all splits{_WAY_OUT}"
        )
    if named:
        for folder in folders:
            if _SPLIT_OF.get(folder.name.lower()) is None:
                passed.note("folders beside train/ that are no split", f"{folder.name}/")
        splits = {split: _classes(named[split][0], root, passed) for split in SPLITS if split in named}
        for split, classes in splits.items():
            _refuse_what_is_no_class(named[split][0], classes)
        _refuse_groups(named["train"][0])
    else:
        _refuse_what_looks_like_splits(root, folders)
        splits = {ALL: _classes(root, root, passed, folders)}
    return Tree(splits, passed.as_dict())


def _refuse_what_looks_like_splits(root: Path, folders: list[Path]) -> None:
    inside = {f: _below(f) for f in folders}
    if len(folders) == 1 and inside[folders[0]]:
        names = ", ".join(sorted(inside[folders[0]])[:5])
        raise PipelineError(
            f"{root}: it holds one folder, {folders[0].name}/, with {names} in it; did you mean {folders[0]}?"
        )
    if {f.name.lower() for f in folders} and {f.name.lower() for f in folders} <= _DETECTION:
        names = ", ".join(f"{f.name}/" for f in folders)
        raise PipelineError(
            f"{root}: {names} look like a data set for detection or segmentation, not like classes; lay the images "
            "out as train/CLASS/*.jpg"
        )
    for folder, below in inside.items():
        splits = sorted(n for n in below if n.lower() in _SPLIT_OF)
        if len({_SPLIT_OF[n.lower()] for n in splits}) > 1:
            raise PipelineError(
                f"{folder}: it holds {', '.join(splits)}, so {folder.name} is no class; lay the images out as "
                "train/CLASS and val/CLASS, split above class"
            )
    for folder, below in inside.items():
        if below == {folder.name} and not any(p.is_file() and p.suffix.lower() in SUFFIXES for p in folder.iterdir()):
            raise PipelineError(
                f"{folder}: it holds one folder, of its own name; move what is in {folder / folder.name} up by one"
            )
    of_split = {f.name: split for f in folders if (split := _split_in(f.name))}
    if len(set(of_split.values())) > 1:
        raise PipelineError(
            f"{root}: {', '.join(of_split)} look like splits; name them {', '.join(_named(of_split))}{_WAY_OUT}"
        )
    if shared := _shared(inside.values()):
        holders = ", ".join([f.name for f, below in inside.items() if shared[0] in _alike(below)][:3])
        raise PipelineError(
            f"{root}: {holders} hold the same folders ({', '.join(shared[:5])}), so they look like splits or "
            f"groups, and these like the classes; name the splits train/, val/ and test/{_WAY_OUT}"
        )


_WAY_OUT = ", or, if they are classes, put all of them into train/"
_OF_A_CLASS = {"images", "image", "img", "imgs"}
"""Folders that some data sets have inside each class."""


def _below(folder: Path) -> set[str]:
    """Names of the folders inside a folder. Empty if it cannot be read, which `_images` reports."""
    try:
        return {p.name for p in folder.iterdir() if p.is_dir() and not _left_out(p.name)}
    except OSError:
        return set()


def _alike(names: set[str]) -> set[str]:
    """Names without the differences that systems and people make: of case and of Unicode form."""
    return {unicodedata.normalize("NFC", name).casefold() for name in names}


def _shared(inside: Iterable[set[str]]) -> list[str]:
    """Names that several folders have inside them, but for those that each class may have."""
    counted = Counter(name for below in inside for name in _alike(below))
    return sorted(name for name, count in counted.items() if count > 1 and name not in _OF_A_CLASS)


def _split_in(name: str) -> str | None:
    """The split that a word of a name means: training_set, seg_test, train2017, TestData."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    return next((_SPLIT_OF[word.lower()] for word in words if word.lower() in _SPLIT_OF), None)


def _named(of_split: dict[str, str]) -> list[str]:
    return [f"{split}/" for split in SPLITS if split in of_split.values()]


def _refuse_what_is_no_class(folder: Path, classes: dict[str, list[Path]]) -> None:
    """Check the class folders of a split. Raises PipelineError."""
    names = {name.lower() for name in classes}
    if names and names <= _DETECTION:
        raise PipelineError(
            f"{folder}: {', '.join(f'{n}/' for n in classes)} look like a data set for detection or segmentation, not "
            "like classes; lay the images out as train/CLASS/*.jpg"
        )
    if len(names) == 1 and (names & set(_SPLIT_OF) or names == {folder.name.lower()}):
        raise PipelineError(
            f"{folder}: it holds one folder, {next(iter(classes))}/, which is no class; move what is in it up by one"
        )


def _refuse_groups(train: Path) -> None:
    """Refuse train/2023/cat, train/2023/dog beside train/2024/cat, train/2024/dog. Raises PipelineError."""
    inside = {p.name: _below(p) for p in sorted(train.iterdir()) if p.is_dir() and not _left_out(p.name)}
    shared = _shared(inside.values())
    if len(shared) > 1:
        raise PipelineError(
            f"{train}: {', '.join(list(inside)[:3])} hold the same folders ({', '.join(shared[:5])}), so these look "
            "like the classes; lay the images out as train/CLASS/*.jpg"
        )


def _left_out(name: str) -> bool:
    return name.startswith(".") or name.lower() in _NOT_OURS


def _folders(folder: Path, root: Path, passed: PassedOver) -> list[Path]:
    """The folders inside a folder. Its files belong to no class and are passed over."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise PipelineError(f"{folder}: this folder cannot be read: {error.strerror}") from error
    found = []
    for path in entries:
        relative = path.relative_to(root).as_posix()
        if _left_out(path.name):
            passed.note("hidden, or left by a system", relative + "/" * path.is_dir())
        elif path.is_dir():
            found.append(path)
        elif path.suffix.lower() in SUFFIXES:
            passed.note("images that lie in no class folder", relative)
        else:
            _note_file(path, relative, passed)
    return found


def _classes(folder: Path, root: Path, passed: PassedOver, folders: list[Path] | None = None) -> dict[str, list[Path]]:
    classes: dict[str, list[Path]] = {}
    for path in _folders(folder, root, passed) if folders is None else folders:
        name = _class_name(path)
        if name in classes:
            raise PipelineError(f"{path}: another folder has this class name, in another Unicode form; rename one")
        classes[name] = sorted(_images(path, root, passed))
    return classes


def _class_name(folder: Path) -> str:
    """The class name in Unicode's form NFC, because systems differ in the form they write. Raises PipelineError."""
    shown = ascii(folder.name)
    try:
        name = unicodedata.normalize("NFC", os.fsencode(folder.name).decode())
    except UnicodeDecodeError as error:
        raise PipelineError(f"{folder.parent}: the folder {shown} has a name that is not UTF-8: rename it") from error
    if any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in name):
        raise PipelineError(
            f"{folder.parent}: the folder {shown} has a line break or another control character in its name, which no "
            "file of labels can hold: rename it"
        )
    if name != name.strip() or any(unicodedata.category(c) == "Cf" and c not in _JOINERS for c in name):
        raise PipelineError(
            f"{folder.parent}: the name of the folder {shown} starts or ends with whitespace, or contains an "
            "invisible character: rename it"
        )
    return name


def _images(folder: Path, root: Path, passed: PassedOver) -> Iterator[Path]:
    """All image files below a class folder. Links to folders are not followed, because they may form a cycle."""

    def unreadable(error: OSError) -> None:
        passed.note(f"cannot be read: {error.strerror}", os.path.relpath(error.filename, root))

    for place, folders, files in os.walk(folder, onerror=unreadable):
        for name in list(folders):
            relative = os.path.relpath(Path(place, name), root)
            if _left_out(name):
                folders.remove(name)
                passed.note("hidden, or left by a system", f"{relative}/")
            elif Path(place, name).is_symlink():
                passed.note("links to folders, which are not followed", relative)
        for name in files:
            path = Path(place, name)
            relative = os.path.relpath(path, root)
            if _left_out(name):
                passed.note("hidden, or left by a system", relative)
            elif path.is_symlink() and not path.exists():
                passed.note("broken links", relative)
            elif path.suffix.lower() in SUFFIXES and path.is_file():
                yield path
            else:
                _note_file(path, relative, passed)


def _note_file(path: Path, relative: str, passed: PassedOver) -> None:
    suffix = path.suffix.lower()
    if path.is_symlink() and not path.exists():
        passed.note("broken links", relative)
    elif suffix in _KNOWN_IMAGES:
        passed.note(f"{suffix} images, {_CONVERT}", relative)
    else:
        passed.note(f"{suffix} files" if suffix else "files without a suffix", relative)
