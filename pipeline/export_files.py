"""`edgebuild export`: files of any format, from a run or from a checkpoint."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from export.formats import FORMATS, Source, write_formats
from export.preprocess import find_images
from export.quantize import calibration_images
from latency.files import model_files
from latency.host import INT8_DOT, this_host
from pipeline.config import Quantize
from pipeline.errors import PipelineError
from pipeline.run import run_one
from pipeline.ship.candidates import run_source
from pipeline.ship.stages import write_f32
from pipeline.stages import Run
from pipeline.training.checkpoint import load_checkpoint, restore


def export_run(run: Run, names: tuple[str, ...], folder: Path | None) -> list[dict[str, Any]]:
    """The stage, and any further format into `exports` of the run folder. folder: all into it, instead."""
    run_one("export", run)
    here = [] if folder else [n for n in names if run.has("export", FORMATS[n].file)]
    made = {n: run.file("export", FORMATS[n].file) for n in here}
    told = "made and checked by the stage"
    rows: dict[str, dict[str, Any]] = {
        n: {"format": n, "status": "passed", "reason": told, "path": str(f), "size_bytes": _size(f)}
        for n, f in made.items()
    }
    others = [n for n in names if n not in made]
    if others:
        for written in write_formats(run_source(run), others, folder or run.folder / "exports"):
            rows[written.format] = asdict(written)
    return [rows[n] for n in names]


def _size(file: Path) -> int:
    return sum(f.stat().st_size for f in model_files(file))


def export_checkpoint(
    checkpoint: Path, model: Path | None, names: tuple[str, ...], images: Path | None, folder: Path
) -> list[dict[str, Any]]:
    """images: a folder to calibrate INT8 on. Raises PipelineError."""
    spec, card, state = load_checkpoint(checkpoint, model)
    calibration = None
    if images is not None:
        paths = find_images(images) if images.exists() else []
        if not paths:
            raise PipelineError(f"--images {images}: no image found there")
        calibration = calibration_images(paths, card.preprocess, Quantize().images, seed=0)
    with tempfile.TemporaryDirectory() as work:
        source = write_f32(restore(spec, state, checkpoint), card, Path(work))
        written = write_formats(Source(source, card, calibration, not this_host().has_any(INT8_DOT)), names, folder)
    return [asdict(w) for w in written]
