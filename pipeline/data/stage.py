"""The stage `data`: which photos there are."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.language import canonical_hash
from pipeline.config import DRAWN
from pipeline.data import demo
from pipeline.data.index import Index, alike_classes, contradictions, list_files, repeated, scan, summary
from pipeline.stages import Run, Stage


def _data_inputs(run: Run) -> dict[str, Any]:
    if run.config.data.root == DRAWN:
        return {"root": DRAWN, "seed": run.config.seed}
    root = Path(run.config.data.root)
    files = list_files(root) if root.is_dir() else []
    return {"root": os.path.realpath(root), "seed": run.config.seed, "files": canonical_hash(files)}


def _data(run: Run, work: Path) -> dict[str, Any]:
    if run.config.data.root == DRAWN:
        if Path(DRAWN).is_dir():
            run.say(f"data: data.root {DRAWN} is the drawn set, not the folder {DRAWN} here: for that, give ./{DRAWN}")
        demo.write(work / "images", run.config.seed)
        index = replace(scan(work / "images", run.config.seed), root="images")
    else:
        index = scan(Path(run.config.data.root), run.config.seed)
    index.save(work / "index.json")
    for path, reason in index.skipped.items():
        run.say(f"data: {path}: skipped: {reason}")
    for reason, found in index.passed_over.items():
        run.say(f"data: passed over: {found['count']} {reason} ({', '.join(found['examples'])})")
    for what, paths in index.noted.items():
        run.say(f"data: {len(paths)} images {what} ({', '.join(paths[:3])})")
    for names in alike_classes(index):
        run.say(f"data: the classes {' and '.join(names)} differ only in case; they are kept separate")
    if several := contradictions(index):
        run.say(f"data: {len(several)} images have several labels, such as {' and '.join(several[0][:2])}")
    for split, count in repeated(index).items():
        run.say(
            f"data: {count} files of {split}/ stand in a split before it too, which flatters its figures: take them out"
        )
    return summary(index)


def load_index(run: Run) -> Index:
    """What the stage found. Raises ChangedOutput."""
    return Index.load(run.file("data", "index.json"))


DATA = Stage("data", (), _data_inputs, _data)
