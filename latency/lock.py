"""One lock for the machine: a measurement holds it alone, trainings of ours share it among themselves."""

import fcntl
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from latency.errors import LatencyError

_FOLDER = Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())  # TMPDIR may differ between users
LOCK = _FOLDER / "edgebuild-timing.lock"
_QUEUE = LOCK.with_suffix(".queue")
"""Whoever wants LOCK waits for it with this one in hand: trainings that overlap would else keep a measurement out for
ever, since flock lets a new sharer in before one that waits to be alone."""
_PATIENCE_S = 3.0
"""Waiting that is not worth a word."""
_QUIET_S = 300.0
"""For so long the same is not said again: beside another run, every timing waits."""
_said: dict[str, float] = {}
_log = logging.getLogger(__name__)


def hold_lock(shared: bool = False) -> int:
    """Wait for the machine; it is ours until the descriptor is closed, or this process ends. Raises LatencyError."""
    queue, descriptor = _open(_QUEUE), _open(LOCK)
    try:
        with said_when_long(f"waiting for another measurement or training of edgebuild on this machine ({LOCK})"):
            fcntl.flock(queue, fcntl.LOCK_EX)
            fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    except BaseException:
        os.close(descriptor)
        raise
    finally:
        os.close(queue)
    return descriptor


@contextmanager
def said_when_long(message: str) -> Iterator[None]:
    """Log `message`, if the body takes longer than a moment and it was not said lately."""
    timer = threading.Timer(_PATIENCE_S, _say, (message,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _say(message: str) -> None:
    now = time.monotonic()
    if now - _said.get(message, -_QUIET_S) >= _QUIET_S:
        _said[message] = now
        _log.warning("%s", message)


def _open(path: Path) -> int:
    # Opened for reading only: flock needs no more, and another user's lock file is not writable. Created only where it
    # is missing: Linux refuses O_CREAT on another user's file in a sticky folder (fs.protected_regular).
    try:
        try:
            return os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
            os.fchmod(descriptor, 0o644)  # whatever the umask: others must be able to wait for it
            return descriptor
    except PermissionError as error:
        raise LatencyError(f"{path}: the timing lock cannot be opened; have its owner remove it") from error


@contextmanager
def timing_lock(shared: bool = False) -> Iterator[None]:
    """`shared` for work that disturbs timings (training), alone for the timing itself."""
    descriptor = hold_lock(shared)
    try:
        yield
    finally:
        os.close(descriptor)
