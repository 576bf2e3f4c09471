"""Files that are whole or not there: written beside, then renamed."""

import json
import os
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError


def write_text(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


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
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path}: not readable as JSON: {error}") from error
