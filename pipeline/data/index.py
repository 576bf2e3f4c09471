"""The labelled images: which there are, in which split, and which are of no use."""

import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from export.artifact import sha256
from export.preprocess import ImageError, Preprocess, has_several_frames
from models.language import canonical_hash
from pipeline import FORMAT
from pipeline.data.tree import ALL, SPLITS, look_through
from pipeline.errors import PipelineError

_PROBE = Preprocess(32)
_DARK, _FLAT = 24, 2
"""Grey levels out of 255. A thumbnail that is never brighter, or never differs by more, shows almost nothing."""
_HELD_OUT = 0.15
"""Of each class, for each split that is not there."""
_LEAST_TO_SPLIT = 4


@dataclass(frozen=True)
class Sample:
    """path: relative to the root. sha256: of the file's bytes."""

    path: str
    label: int
    sha256: str


def check_unchanged(path: Path, sample: Sample) -> None:
    """Raises PipelineError for a file of other bytes than those that were read."""
    if sha256(path) != sample.sha256:
        told = "it was changed since the data was read; run again, and the stage data reads it anew"
        raise PipelineError(f"{path}: {told}")


@dataclass(frozen=True)
class Index:
    """What was found under `root`, which in a file of an index is relative to it where the images lie beside it.
    skipped: path -> why it cannot be used. passed_over: reason -> {"count", "examples"} of what is no image of a class.
    noted: what the user should know about images that are used -> their paths."""

    root: str
    classes: tuple[str, ...]
    splits: dict[str, tuple[Sample, ...]]
    skipped: dict[str, str]
    passed_over: dict[str, dict[str, Any]] = field(default_factory=dict)
    noted: dict[str, tuple[str, ...]] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def hash(self) -> str:
        """Of the images' bytes, labels and splits; where they lie does not matter."""
        what = [self.classes, {s: [(x.label, x.sha256) for x in v] for s, v in self.splits.items()}]
        return canonical_hash(what)

    @property
    def final_split(self) -> str:
        """The split for the final figures: test where there is one, else val, which then was also chosen on."""
        return "test" if self.splits.get("test") else "val"

    def paths(self, split: str) -> list[Path]:
        return [Path(self.root) / s.path for s in self.splits[split]]

    def unchanged(self, split: str) -> list[Path]:
        """The same paths, once every file is seen to be what was read. Raises PipelineError."""
        paths = self.paths(split)
        for path, sample in zip(paths, self.splits[split], strict=True):
            check_unchanged(path, sample)
        return paths

    def labels(self, split: str) -> list[int]:
        return [s.label for s in self.splits[split]]

    def counts(self) -> dict[str, dict[str, int]]:
        """split -> class -> images."""
        found = {split: Counter(self.labels(split)) for split in self.splits}
        return {split: {c: n[i] for i, c in enumerate(self.classes)} for split, n in found.items()}

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Index":
        values = json.loads(path.read_text(encoding="utf-8"))
        values["classes"] = tuple(values["classes"])
        values.pop("dark", None)  # what earlier versions wrote in place of `noted`
        values["noted"] = {k: tuple(v) for k, v in values.get("noted", {}).items()}
        values["splits"] = {k: tuple(Sample(**s) for s in v) for k, v in values["splits"].items()}
        return cls(**values | {"root": str(path.resolve().parent / values["root"])})


def list_files(root: Path) -> list[tuple[str, int, int, int]]:
    """(relative path, bytes, mtime and ctime in ns) of each image file, as a cheap sign of changes. A file that
    replaced another one has a new ctime, which cannot be set."""
    stats = ((p.relative_to(root).as_posix(), p.stat()) for p in look_through(root).images())
    return sorted((name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats)


def scan(root: Path, seed: int) -> Index:
    """Read every image once; unreadable ones are set aside. Raises PipelineError for a tree of no use."""
    if not root.is_dir():
        raise PipelineError(f"data.root: {root}: no such folder; give one with --set data.root=FOLDER")
    tree = look_through(root)
    trees = tree.splits
    if "train" in trees:
        _same_classes(root, trees)
        files = {s: [(p, c) for c, paths in tree.items() for p in paths] for s, tree in trees.items()}
        if "val" not in trees:
            files |= _split(trees["train"], seed, ("val",))
        classes = tuple(sorted(trees["train"]))
    else:
        classes = tuple(sorted(trees[ALL]))
        files = _split(trees[ALL], seed, ("val", "test"))
    drawn = set(files) - set(trees)  # splits that are ours
    if not any(files.values()):
        found = f"; passed over: {told_passed_over(tree.passed_over)}" if tree.passed_over else ""
        raise PipelineError(
            f"{root}: no image found; expected train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg{found}"
        )
    if len(classes) < 2:
        raise PipelineError(
            f"{root}: found {len(classes)} class ({', '.join(classes)}); a classifier needs two or more"
        )
    read = _read_all(root, classes, files)
    index = _once(read, drawn)
    for split, counts in index.counts().items():
        empty = [c for c, n in counts.items() if n == 0]
        if not empty:
            continue
        if all(read.counts()[split][c] for c in empty):
            raise PipelineError(
                f"{root}: {split}: all images of class {', '.join(empty)} stand in another split or class too, byte "
                f"for byte{_told_contradictions(read)}; remove the copies, or add images of its own"
            )
        raise PipelineError(
            f"{root}: {split}: no readable image of class {', '.join(empty)}; add some, or remove "
            "the class from all splits"
        )
    return replace(index, passed_over=tree.passed_over)


def told_passed_over(passed_over: dict[str, dict[str, Any]]) -> str:
    """In a line."""
    return "; ".join(f"{v['count']} {reason} ({', '.join(v['examples'])})" for reason, v in passed_over.items())


def contradictions(index: Index) -> list[list[str]]:
    """Groups of identical files with different labels."""
    by_bytes: dict[str, list[Sample]] = defaultdict(list)
    for samples in index.splits.values():
        for sample in samples:
            by_bytes[sample.sha256].append(sample)
    return [sorted(s.path for s in same) for same in by_bytes.values() if len({s.label for s in same}) > 1]


def alike_classes(index: Index) -> list[list[str]]:
    """Return groups of classes whose names differ only in case."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for name in index.classes:
        by_name[name.casefold()].append(name)
    return [names for names in by_name.values() if len(names) > 1]


def _told_contradictions(index: Index) -> str:
    found = contradictions(index)
    return f" ({len(found)} images have several labels, such as {' and '.join(found[0][:2])})" if found else ""


def _same_classes(root: Path, trees: dict[str, dict[str, list[Path]]]) -> None:
    for split, tree in trees.items():
        missing, extra = sorted(set(trees["train"]) - set(tree)), sorted(set(tree) - set(trees["train"]))
        if missing or extra:
            what = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has {', '.join(extra)} beside"] * bool(extra)
            raise PipelineError(
                f"{root}: the classes differ between splits: against train, {split} {' and '.join(what)}; give each "
                f"split a folder of images for each class, or move {split}/ away if its images have no labels"
            )


def _split(tree: dict[str, list[Path]], seed: int, wanted: Sequence[str]) -> dict[str, list[tuple[Path, str]]]:
    """15 % of each class for each split that is wanted, the rest to train on. Each class is shuffled by itself, so that
    a new class leaves the others' split alone."""
    files: dict[str, list[tuple[Path, str]]] = {s: [] for s in ("train", *wanted)}
    for name, paths in tree.items():
        if 0 < len(paths) < _LEAST_TO_SPLIT:
            raise PipelineError(
                f"class {name}: {len(paths)} images cannot be split into {', '.join(files)}; "
                f"add some (at least {_LEAST_TO_SPLIT}) or lay out {' and '.join(files)} yourself"
            )
        order = list(paths)
        random.Random(f"{seed}-{name}").shuffle(order)
        for split in wanted:
            count = max(1, round(_HELD_OUT * len(paths))) if paths else 0
            files[split] += [(p, name) for p in order[:count]]
            order = order[count:]
        files["train"] += [(p, name) for p in order]
    return {s: sorted(v) for s, v in files.items()}


def _once(index: Index, drawn: set[str]) -> Index:
    """The splits drawn here without files that stand in an earlier split already, byte for byte: they move there."""
    splits = dict(index.splits)
    for split in (s for s in SPLITS[1:] if s in drawn & set(splits)):
        for other in SPLITS[: SPLITS.index(split)]:
            known = {s.sha256 for s in splits[other]}
            moved = tuple(s for s in splits[split] if s.sha256 in known)
            splits[other] += moved
            splits[split] = tuple(s for s in splits[split] if s.sha256 not in known)
    return replace(index, splits=splits)


def repeated(index: Index) -> dict[str, int]:
    """split -> how many of its files stand in train/ or val/ before it as well."""
    seen: set[str] = set()
    found = {}
    for split in (s for s in SPLITS if s in index.splits):
        found[split] = sum(s.sha256 in seen for s in index.splits[split])
        seen |= {s.sha256 for s in index.splits[split]}
    return {split: count for split, count in found.items() if count}


def _read_all(root: Path, classes: tuple[str, ...], files: dict[str, list[tuple[Path, str]]]) -> Index:
    noted: dict[str, list[str]] = defaultdict(list)

    def read(item: tuple[Path, str]) -> Sample | tuple[str, str]:
        path, name = item
        relative = path.relative_to(root).as_posix()
        try:
            seen = _PROBE.load(path)
            if seen.max() < _DARK or np.ptp(seen.reshape(-1, 3), axis=0).max() < _FLAT:
                noted["are nearly black or of a single colour"].append(relative)
            if has_several_frames(path):
                noted["have several frames or pages; only the first is used"].append(relative)
            digest = sha256(path)
        except (ImageError, OSError) as error:
            return relative, str(error)
        return Sample(relative, classes.index(name), digest)

    splits: dict[str, tuple[Sample, ...]] = {}
    skipped: dict[str, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for split, items in files.items():
            found = list(pool.map(read, items))
            splits[split] = tuple(x for x in found if isinstance(x, Sample))
            skipped.update(x for x in found if isinstance(x, tuple))
    used = {s: v for s, v in splits.items() if v or s != "test"}
    return Index(str(root.resolve()), classes, used, skipped, noted={k: tuple(sorted(noted[k])) for k in sorted(noted)})


def summary(index: Index) -> dict[str, Any]:
    """What `data check --json` prints."""
    shared = Counter(s.sha256 for samples in index.splits.values() for s in samples)
    return {
        "root": index.root,
        "classes": list(index.classes),
        "counts": index.counts(),
        "skipped": index.skipped,
        "passed_over": index.passed_over,
        "noted": {k: list(v) for k, v in index.noted.items()},
        "alike_classes": alike_classes(index),
        "contradictions": contradictions(index),
        "identical_files": sum(n - 1 for n in shared.values()),
        "repeated": repeated(index),
        "hash": index.hash,
    }
