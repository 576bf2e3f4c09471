"""Inside the sandbox: an empty environment from the bundle's own lock, then the runs that were asked for.

Standard library only: it is run by the bare Python. One request (JSON) on stdin, one answer on stdout. All that is
written lies under one folder, the sandbox's only disk; nothing here judges, that is done outside.
"""

import contextlib
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

_TAIL = 2000
_LAST_WORDS_S = 5
_MAX_ROWS_BYTES = 2**26
_FULL = 2**18
"""A disk with less than that left was full: what failed for want of space leaves a little."""
_ROOMY = 4
"""A run that failed for want of memory is done once more with this many times the limit, to see what it needed."""
_MEMORY_WORDS = ("MemoryError", "bad_alloc", "Cannot allocate memory", "failed to map", "out of memory")


class Disk:
    """The most that was ever used, looked at every few milliseconds."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.peak, self._stop = folder, 0, threading.Event()
        found = os.statvfs(folder)
        self.size = found.f_blocks * found.f_frsize
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def used(self) -> int:
        found = os.statvfs(self.folder)
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        self.peak = max(self.peak, used)
        return used

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.used()

    def close(self) -> int:
        self._stop.set()
        self._thread.join()
        self.used()
        return self.peak


def run(command: list[str], memory: int | None, timeout_s: float | None) -> dict[str, Any]:
    """One process: its code (None: killed for time), seconds, peak memory and the end of what it said. What it started
    and left behind is killed."""

    def limit() -> None:
        if memory:
            resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))

    said = b""

    def listen(stream: IO[bytes]) -> None:  # to no file: the disk may be full
        nonlocal said
        while part := stream.read1(4096):  # type: ignore[attr-defined]  # a BufferedReader
            said = (said + part)[-_TAIL:]

    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        preexec_fn=limit,
        start_new_session=True,
    )

    def end() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    listener = threading.Thread(target=listen, args=(process.stdout,))
    timer = threading.Timer(timeout_s or threading.TIMEOUT_MAX, end)
    listener.start()
    timer.start()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    timer.cancel()
    end()
    listener.join(_LAST_WORDS_S)
    process.returncode = os.waitstatus_to_exitcode(status)
    late = timeout_s is not None and seconds >= timeout_s and process.returncode < 0
    return {
        "code": None if late else process.returncode,
        "seconds": seconds,
        "peak_bytes": usage.ru_maxrss * 1024,
        "said": said.decode(errors="replace"),
    }


def main(request: dict[str, Any]) -> dict[str, Any]:
    disk = Path(request["disk"])
    watch = Disk(disk)
    answer: dict[str, Any] = {"steps": {}, "bytes": {}}
    try:
        _rehearse(request, disk, watch, answer)
    except OSError as error:  # copytree's own is one too, and holds a list of what could not be copied
        answer["problem"] = str(error)[-_TAIL:]
    answer["disk_peak_bytes"] = watch.close()
    answer["disk_full"] = answer["disk_peak_bytes"] >= watch.size - _FULL
    return answer


def _rehearse(request: dict[str, Any], disk: Path, watch: Disk, answer: dict[str, Any]) -> None:
    memory = request["memory_bytes"]
    for name in ("home", "tmp"):
        (disk / name).mkdir()
    shutil.copytree("/given/bundle", disk / "bundle", ignore=shutil.ignore_patterns("__pycache__"))
    answer["bytes"]["bundle"] = watch.used()
    shutil.copytree("/given/wheels", disk / "wheels")  # pip holds all that it downloads until it has installed it
    before = watch.used()
    python = str(disk / "env/bin/python")
    install = ["-m", "pip", "install", "--quiet", "--require-hashes", "--only-binary", ":all:", "--no-index"]
    install += ["--disable-pip-version-check", "--no-cache-dir", "--find-links", str(disk / "wheels")]
    commands = {
        "venv": [sys.executable, "-m", "venv", str(disk / "env")],
        "install": [python, *install, "-r", str(disk / "bundle/requirements.txt")],
    }
    for name, command in commands.items():
        answer["steps"][name] = step = run(command, memory, None)
        if step["code"]:
            return
    shutil.rmtree(disk / "wheels")
    answer["bytes"]["environment"] = watch.used() - answer["bytes"]["bundle"]
    answer["bytes"]["wheels"] = before - answer["bytes"]["bundle"]
    for asked in request["runs"]:
        out = disk / "out.json"
        command = [
            python,
            *(a.replace("{bundle}", str(disk / "bundle")).replace("{out}", str(out)) for a in asked["args"]),
        ]
        answer["steps"][asked["name"]] = step = run(command, memory, asked["timeout_s"])
        if step["code"] != 0:
            if memory and any(word in step["said"] for word in _MEMORY_WORDS):
                step["roomy"] = run(command, _ROOMY * memory, asked["timeout_s"])
            return
        if "images" not in asked:
            continue
        rows = _rows(out)
        if rows is None or len(rows) != asked["images"]:
            told = "no JSON array" if rows is None else f"{len(rows)} labels"
            answer["problem"] = f"predict.py ended well and wrote {told} for {asked['images']} images"
            return
        if asked.get("keep"):
            step["rows"] = rows
        out.unlink()


def _rows(path: Path) -> list[Any] | None:
    """What predict.py wrote, or None: no array, no plain file, or far too large."""
    try:
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_ROWS_BYTES:
            return None
        rows = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return rows if isinstance(rows, list) else None


if __name__ == "__main__":
    print(json.dumps(main(json.load(sys.stdin))))
