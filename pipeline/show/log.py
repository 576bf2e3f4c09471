"""The log of a run folder: all that was said, with the time, and what ended it."""

import contextlib
from datetime import datetime
from pathlib import Path

from pipeline.passwords import masked

LOG = "log.txt"


def log(folder: Path, text: str) -> None:
    """Add a text under the time of now; further lines of it are set in. On a full disk it is lost, and ends nothing."""
    line = f"{datetime.now().astimezone().isoformat(' ', 'seconds')}  " + masked(text).rstrip().replace("\n", "\n    ")
    with contextlib.suppress(OSError), (folder / LOG).open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"{line}\n")
