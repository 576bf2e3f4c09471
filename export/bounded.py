"""A function of ours that reads a stranger's bytes, run in a process of its own, bounded in memory and time.

Parsers take far more memory than what they read, or far more time, where somebody meant them to. No check of every
parser can be complete; the limits of a process are.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latency.machine import LOCAL

MEMORY_BYTES = 3 * 2**30
CPU_S = 600
LIMITS = {resource.RLIMIT_DATA: MEMORY_BYTES, resource.RLIMIT_CPU: CPU_S}
"""Soft limits: the processes that it starts may lift them for themselves."""
ENDED = 128 + signal.SIGTERM
"""Exit code of the process if SIGTERM ended it."""
_ENDS_WITHIN_S = 15
"""Time for the process to clean up after SIGTERM."""
_BY_ITS_LIMITS = (signal.SIGXCPU, signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS)
"""What ends a process that has used up its time, or whose allocator gave up. SIGKILL comes from outside: the kernel
sends it where the machine is out of memory."""
_SET_PDEATHSIG = 1
"""prctl's PR_SET_PDEATHSIG: the signal of a process whose parent has died."""


class Exceeded(Exception):
    """It took more memory or time than it may."""


class Unreadable(Exception):
    """It failed in a way that nobody foresaw, or was ended by somebody else."""


def ask(module: str, request: dict[str, Any]) -> Any:
    """What a module that calls `answer` at its start says to a request, both as JSON. Raises Exceeded, Unreadable, and
    OSError where this machine is to blame, such as for a full disk."""
    command, environment = LOCAL.command(module)

    def limit() -> None:
        for kind, soft in LIMITS.items():
            _, most = resource.getrlimit(kind)
            resource.setrlimit(kind, (soft if most == resource.RLIM_INFINITY else min(soft, most), most))
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it by way of this process
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGTERM)

    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, preexec_fn=limit
    ) as process:
        try:
            said, _ = process.communicate(json.dumps(request).encode("ascii"))
        except BaseException:  # it has files and processes to clean up
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_ENDS_WITHIN_S)
            process.kill()
            raise
    if process.returncode == ENDED:
        raise KeyboardInterrupt
    try:
        answer = json.loads(said)
    except ValueError:
        if -process.returncode in _BY_ITS_LIMITS:
            raise Exceeded(f"it took over {MEMORY_BYTES / 1e9:.1f} GB of memory or {CPU_S} s of a CPU") from None
        raise Unreadable(f"the process that reads it was ended from outside: code {process.returncode}") from None
    if "os_error" in answer:
        raise OSError(*answer["os_error"])
    if "memory" in answer:
        raise Exceeded(f"it took over {MEMORY_BYTES / 1e9:.1f} GB of memory")
    if "unforeseen" in answer:
        raise Unreadable(answer["unforeseen"])
    return answer["result"]


def answer(function: Callable[[dict[str, Any]], Any]) -> None:
    """In that process: answer the one request on stdin. What else is printed goes to stderr. SIGTERM, which also comes
    at the end of whoever asked, ends it after it has cleaned up."""

    def end(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        sys.exit(ENDED)

    signal.signal(signal.SIGTERM, end)
    out = os.dup(1)
    os.dup2(2, 1)
    try:
        reply = {"result": function(json.load(sys.stdin))}
    except MemoryError:
        reply = {"memory": True}
    except OSError as error:
        reply = {"os_error": [error.errno, error.strerror, error.filename and os.fsdecode(error.filename)]}
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        reply = {"unforeseen": f"{type(error).__name__} in {where}: {error}"[:500]}
    with os.fdopen(out, "w", encoding="ascii") as file:
        file.write(json.dumps(reply))
