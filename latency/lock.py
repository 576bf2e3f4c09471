"""One lock for the machine: a measurement holds it alone, trainings of ours share it among themselves."""

import fcntl
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FOLDER = Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())
LOCK = _FOLDER / "edgebuild-timing.lock"
_log = logging.getLogger(__name__)


def hold_lock(shared: bool = False) -> int:
    """Wait for the machine; it is ours until the descriptor is closed, or this process ends."""
    # Opened for reading only: flock needs no more, and another user's lock file is not writable. Created only where it
    # is missing: Linux refuses O_CREAT on another user's file in a sticky folder (fs.protected_regular).
    try:
        descriptor = os.open(LOCK, os.O_RDONLY)
    except FileNotFoundError:
        descriptor = os.open(LOCK, os.O_RDONLY | os.O_CREAT, 0o644)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        _log.warning("waiting for another measurement or training of edgebuild on this machine (%s)", LOCK)
        fcntl.flock(descriptor, kind)
    return descriptor


@contextmanager
def timing_lock(shared: bool = False) -> Iterator[None]:
    """`shared` for work that disturbs timings (training), alone for the timing itself."""
    descriptor = hold_lock(shared)
    try:
        yield
    finally:
        os.close(descriptor)
