"""One lock for the machine: a measurement holds it alone, trainings of ours share it among themselves."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = Path(tempfile.gettempdir()) / "edgebuild-timing.lock"


@contextmanager
def timing_lock(shared: bool = False) -> Iterator[None]:
    """Wait for the machine; `shared` for work that disturbs timings (training), alone for the timing itself."""
    # Opened for reading only: flock needs no more, and another user's lock file is not writable. Created only where it
    # is missing: Linux refuses O_CREAT on another user's file in a sticky folder (fs.protected_regular).
    try:
        descriptor = os.open(LOCK, os.O_RDONLY)
    except FileNotFoundError:
        descriptor = os.open(LOCK, os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
