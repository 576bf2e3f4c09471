"""The log of a run folder: all that was said, with the time, and what ended it."""

import re
from datetime import datetime
from pathlib import Path

LOG = "log.txt"
_PASSWORD = re.compile(r"(://[^\s:/@]*):[^\s/]*@")
"""Of a URL in a traceback of somebody else's: our own texts have none."""


def log(folder: Path, text: str) -> None:
    """Add a text under the time of now; further lines of it are set in."""
    safe = _PASSWORD.sub(r"\1:***@", text.rstrip()).replace("\n", "\n    ")
    with (folder / LOG).open("a", encoding="utf-8") as file:
        file.write(f"{datetime.now().astimezone().isoformat(' ', 'seconds')}  {safe}\n")
