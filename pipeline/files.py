"""Files that are complete or absent (written beside, then renamed), and records that reveal later changes."""

import glob
import json
import os
import stat
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from export.artifact import sha256
from latency.files import is_utf8
from models.language import canonical_hash
from pipeline.errors import PipelineError

_DIGEST = "digest"
LOCK = ".lock"
"""In every run folder that edgebuild made."""
_FILES = ("config.yaml", "result.json", "attempts.json", "report.html", "report.md", "log.txt", ".id", LOCK)
_FOLDERS = (".work", ".cache", ".aside", "study", "exports", "tensorboard")
"""Of a run folder, beside the folders of its stages."""
_HEX = 32


def refuse_odd_path(path: Path) -> None:
    """Raises PipelineError for a path that no text can name, such as that of a config or a report."""
    if not is_utf8(path):
        raise PipelineError(f"{str(path)!a}: this path is not UTF-8, so no text can name it: rename it")


def write_text(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def seal(record: dict[str, Any]) -> dict[str, Any]:
    """Add a digest to a record, by which `read_record` detects damage and edits by hand. It is not a signature: anyone
    can compute another one."""
    plain = json.loads(json.dumps({k: v for k, v in record.items() if k != _DIGEST}))
    return {**plain, _DIGEST: canonical_hash(plain)}


def write_record(path: Path, record: dict[str, Any]) -> None:
    write_json(path, seal(record))


def read_record(path: Path, shape: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """Read a record of `write_record`. None if there is no such file, or if it is not as it was written.

    shape: what it must hold, name -> type, for records whose digest somebody may have computed anew.
    """
    try:
        if not path.is_file():  # a named pipe would never end
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get(_DIGEST) != seal(record)[_DIGEST]:
        return None
    if not all(isinstance(record.get(name), kind) for name, kind in (shape or {}).items()):
        return None
    return record


def refuse_other_folder(folder: Path) -> None:
    """Check that a folder is new, empty, or one that edgebuild made: what lies in a run folder may be replaced. Raises
    PipelineError."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / LOCK).exists() and read_record(folder / "result.json", {"stages": list}) is None:
        raise PipelineError(
            f"{folder}: not empty, and not a run folder (it has no {LOCK}); give another --run-dir, or, if it was "
            f"one, `touch {folder / LOCK}`"
        )


def refuse_odd_files(folder: Path) -> None:
    """Check that a run folder holds nothing but files and folders, each where we would write one: to open a named pipe
    would take for ever. Raises PipelineError."""
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            try:
                if not stat.S_ISREG(path.stat().st_mode):
                    raise PipelineError(f"{path}: a pipe, a socket or a device; remove it from the run folder")
            except FileNotFoundError as error:
                if path.is_symlink():
                    raise PipelineError(f"{path}: a broken link; remove it from the run folder") from error
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name in _FOLDERS and not path.is_dir():
            raise PipelineError(f"{path}: a file where a folder belongs; remove it from the run folder")
        if path.name in _FILES and path.is_dir():
            raise PipelineError(f"{path}: a folder where a file belongs; remove it from the run folder")


def file_digest(path: Path) -> str:
    """sha256 of a file. Cached within this process, by size, times and inode."""
    found = path.stat()
    return _file_digest(path, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


@lru_cache(maxsize=4096)
def _file_digest(path: Path, *_state: int) -> str:
    return sha256(path)


def keep(partial: Path, folder: Path, stem: str) -> Path:
    """Move a finished file into `folder`, named by the stem and its own sha256, so that `kept` detects damage."""
    path = folder / f"{stem}.{sha256(partial)[:_HEX]}{partial.suffix}"
    partial.replace(path)
    return path


def kept(folder: Path, stem: str, suffix: str) -> Path | None:
    """The file that `keep` stored under this stem, or None. A file whose contents do not match its name is removed."""
    for path in folder.glob(f"{glob.escape(stem)}.{'[0-9a-f]' * _HEX}{suffix}"):
        if file_digest(path).startswith(path.name.removeprefix(f"{stem}.").removesuffix(suffix)):
            return path
        path.unlink()
    return None


def templates(folder: Path, autoescape: bool = False) -> Any:
    """Jinja's environment of a folder of templates, in which a name that is not given is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def read_json(path: Path) -> Any:
    """Raises PipelineError naming the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PipelineError(f"{path}: not readable as JSON: {error}") from error
