"""Processes of this machine that a test watches, stops or ends, by their ids."""

import contextlib
import os
import subprocess
from collections.abc import Iterable


def children(pid: int) -> list[int]:
    done = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
    return [int(child) for child in done.stdout.split()]


def signal_all(pids: Iterable[int], number: int) -> None:
    """Processes that have ended meanwhile are passed over."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
