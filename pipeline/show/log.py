"""The log of a run folder: all that was said, with the time, and what ended it."""

import contextlib
import os
from datetime import datetime
from pathlib import Path

from pipeline.passwords import masked

LOG = "log.txt"


def log(folder: Path, text: str) -> None:
    """Add a text under the time of now; further lines of it are set in. On a full disk it is lost, and ends nothing."""
    line = f"{datetime.now().astimezone().isoformat(' ', 'seconds')}  " + masked(text).rstrip().replace("\n", "\n    ")
    with (
        contextlib.suppress(OSError),
        open(folder / LOG, "a", encoding="utf-8", errors="backslashreplace", opener=_at_once) as file,
    ):
        file.write(f"{line}\n")


def _at_once(path: str, flags: int) -> int:
    """Open a file without waiting for a reader, for which a named pipe in its place would wait."""
    return os.open(path, flags | os.O_NONBLOCK, 0o644)
