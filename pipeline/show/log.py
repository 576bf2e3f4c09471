"""The log of a run folder: all that was said, with the time, and what ended it."""

import contextlib
import re
from datetime import datetime
from pathlib import Path

LOG = "log.txt"
_PASSWORDS = (
    (re.compile(r"(://[^\s:/@]*):\S*@"), r"\1:***@"),
    (re.compile(r"([?&][^=\s&]*password[^=\s&]*=)[^&\s]*", re.IGNORECASE), r"\1***"),
)
"""Of a URL in a traceback of somebody else's: our own texts have none."""


def log(folder: Path, text: str) -> None:
    """Add a text under the time of now; further lines of it are set in. On a full disk it is lost, and ends nothing."""
    for pattern, told in _PASSWORDS:
        text = pattern.sub(told, text)
    line = f"{datetime.now().astimezone().isoformat(' ', 'seconds')}  " + text.rstrip().replace("\n", "\n    ")
    with contextlib.suppress(OSError), (folder / LOG).open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"{line}\n")
