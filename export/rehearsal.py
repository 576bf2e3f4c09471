"""The driver inside the sandbox: it carries out requests, one JSON line each, and judges nothing.

Standard library only, because the bare Python runs it. Everything is written below one folder, the sandbox's only disk.
The stranger's processes are its children. Each of them, and everything it started, is dead before the next request is
read. None of them can reach this process or its answers, and their output is passed on only up to a limit.
"""

import contextlib
import ctypes
import email
import itertools
import json
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import IO, Any

DISK = Path("/disk")
GIVEN = Path("/given")
REQUIREMENTS = GIVEN / "fetched/requirements.txt"
OUT = Path("/out")
ENV = DISK / "env"
_PIP = (str(ENV / "bin/python"), "-I", "-m", "pip", "--isolated")
_TAIL = 2000
LAST_WORDS_S = 5
MAX_OUTPUT_BYTES = 2**24
_FULL = 2**18
"""A disk with fewer free bytes than this was full: a write that fails for lack of space leaves a few."""
_ROOMY = 4
"""A run that failed for lack of memory is repeated with this many times the limit, to see how much it needs."""
_MEMORY_WORDS = ("MemoryError", "bad_alloc", "Cannot allocate memory", "failed to map", "out of memory")
_LEAST_MEMORY = 2**30
_LEAST_LEFT = 0.05
"""Share of the machine's memory that must be free for others."""
MAX_TASKS = 2000
"""Processes and threads of a rehearsal at one time."""
_OWN_MEMORY = 2**31
"""Memory limit of this process: a package's metadata can be compressed a thousandfold."""
_DISK_EVERY_S, _MEMORY_EVERY = 0.005, 10
_METADATA = re.compile(r"[^/]+\.dist-info/METADATA")
_MAX_METADATA = 2**21
_SET_DUMPABLE = 4  # prctl's PR_SET_DUMPABLE


class Watch:
    """Polls the disk for its peak usage, and kills all children once they exceed together what no limit on a single
    process would prevent. If it cannot, it kills them too.

    exceeded: "memory", they held half of the machine's; "tasks", they were over MAX_TASKS; "host", the machine had
    almost no memory left, which they may hold in ways that are not counted here; "watch", they could not be watched;
    else "".
    """

    def __init__(self) -> None:
        found = os.statvfs(DISK)
        self.size, self.peak, self.exceeded = found.f_blocks * found.f_frsize, 0, ""
        # The disk is a tmpfs, so it uses memory too, up to its own size.
        machine = _memory_of_machine()
        self._allowed = max(_LEAST_MEMORY, machine["MemTotal"] - self.size) // 2
        self._shared_before = machine["Shmem"]
        threading.Thread(target=self._watch, daemon=True).start()

    def used(self) -> int:
        found = os.statvfs(DISK)
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        self.peak = max(self.peak, used)
        return used

    def _watch(self) -> None:
        try:
            for turn in itertools.count():
                time.sleep(_DISK_EVERY_S)
                self.used()
                if turn % _MEMORY_EVERY == 0 and (exceeded := self._excess()):
                    self.exceeded = exceeded
                    end_children()
        finally:
            self.exceeded = "watch"
            while True:
                end_children()
                time.sleep(_DISK_EVERY_S)

    def _excess(self) -> str:
        """What the processes hold: what is resident, their page tables, and shared memory of the machine that is not on
        the disk. A process can hold shared memory that counts as resident in none (pages that it has dropped)."""
        machine = _memory_of_machine()
        shared = machine["Shmem"] - self._shared_before - self.used()
        held = tasks = 0
        for entry in os.scandir("/proc"):
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError, ValueError):
                    status = _numbers(Path(entry.path, "status"))
                    held += (status.get("VmRSS", 0) + status.get("VmPTE", 0)) * 1024
                    tasks += status.get("Threads", 0)
        if max(held, shared) > self._allowed:
            return "memory"
        if tasks > MAX_TASKS:
            return "tasks"
        return "host" if machine["MemAvailable"] < _LEAST_LEFT * machine["MemTotal"] else ""


def _memory_of_machine() -> dict[str, int]:
    """Return the figures of /proc/meminfo in bytes, by name."""
    return {name: kib * 1024 for name, kib in _numbers(Path("/proc/meminfo")).items()}


def _numbers(path: Path) -> dict[str, int]:
    """The lines of a file of /proc that are a name, a colon and a number, with its unit or without."""
    found = re.findall(r"^(\w+):\s*(\d+)(?: kB)?$", path.read_text(), re.MULTILINE)
    return {name: int(number) for name, number in found}


def end_children() -> None:
    """Kill every other process in the sandbox, in one system call, so that none can fork in between."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(-1, signal.SIGKILL)


def run(command: list[str], memory: int | None, timeout_s: float | None, out: Path | None = None) -> dict[str, Any]:
    """Run one process. Returns its exit code (None: killed for time), seconds, peak memory and the end of its output.
    out: a file for stdout, which otherwise is part of that output."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        most = memory or resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))

    said = b""

    def listen(stream: IO[bytes]) -> None:  # to no file: the disk may be full
        nonlocal said
        while part := stream.read1(4096):  # type: ignore[attr-defined]  # a BufferedReader
            said = (said + part)[-_TAIL:]

    with out.open("wb") if out else contextlib.nullcontext() as stdout:
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.PIPE if stdout else subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            preexec_fn=limit,
        )
    listener = threading.Thread(target=listen, args=(process.stderr or process.stdout,), daemon=True)
    timer = threading.Timer(timeout_s or threading.TIMEOUT_MAX, end_children)
    listener.start()
    timer.start()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    timer.cancel()
    end_children()
    with contextlib.suppress(ChildProcessError):
        while True:  # reap what it left behind
            os.wait()
    listener.join(LAST_WORDS_S)
    process.returncode = os.waitstatus_to_exitcode(status)
    late = timeout_s is not None and seconds >= timeout_s and process.returncode < 0
    return {
        "code": None if late else process.returncode,
        "seconds": seconds,
        "peak_bytes": usage.ru_maxrss * 1024,
        "said": said.decode(errors="replace"),
    }


def fetch(request: dict[str, Any]) -> dict[str, Any]:
    """Create an environment, download the pinned wheels with its pip, and copy both to OUT. Read from the metadata what
    the wheels require. No code of a wheel is run."""
    steps = {"venv": run([sys.executable, "-m", "venv", str(ENV)], None, request["timeout_s"])}
    if steps["venv"]["code"] == 0:
        options = [*request["options"], "--dest", str(DISK / "wheels"), "--requirement", str(REQUIREMENTS)]
        steps["fetch"] = run([*_PIP, "download", *options], None, request["timeout_s"])
    answer: dict[str, Any] = {"steps": steps}
    if all(step["code"] == 0 for step in steps.values()):
        for name in ("env", "wheels"):
            shutil.copytree(DISK / name, OUT / name, symlinks=True)
        answer["requires"] = {wheel.name.split("-")[0]: requires(wheel) for wheel in (DISK / "wheels").iterdir()}
    return answer


def requires(wheel: Path) -> list[str]:
    """The requirements in the metadata of a wheel: of the one file that pip reads, up to a limit."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if _METADATA.fullmatch(n)]
        with archive.open(name) as file:
            content = file.read(_MAX_METADATA + 1)
    if len(content) > _MAX_METADATA:
        raise ValueError(f"{wheel.name}: its metadata is larger than {_MAX_METADATA / 1e6:.0f} MB")
    return email.message_from_bytes(content).get_all("Requires-Dist") or []


def prepare(request: dict[str, Any], watch: Watch) -> dict[str, Any]:
    """Install the wheels into the environment, offline, and measure what that takes."""
    answer: dict[str, Any] = {"steps": {}, "bytes": {}}
    shutil.copytree(GIVEN / "bundle", DISK / "bundle")
    answer["bytes"]["bundle"] = watch.used()
    shutil.copytree(GIVEN / "fetched/wheels", DISK / "wheels")  # on the disk, where pip would keep its downloads
    answer["bytes"]["wheels"] = watch.used() - answer["bytes"]["bundle"]
    shutil.copytree(GIVEN / "fetched/env", ENV, symlinks=True)
    options = [*request["options"], "--no-cache-dir", "--no-index", "--find-links", str(DISK / "wheels")]
    command = [*_PIP, "install", *options, "--requirement", str(REQUIREMENTS)]
    answer["steps"]["install"] = run(command, request["memory_bytes"], request["timeout_s"])
    shutil.rmtree(DISK / "wheels")
    answer["bytes"]["environment"] = watch.used() - answer["bytes"]["bundle"]
    return answer


def label(request: dict[str, Any]) -> dict[str, Any]:
    """Run the environment's Python. With `form`, pass that output option to predict.py and return what it wrote."""
    memory, timeout_s, form = request["memory_bytes"], request["timeout_s"], request.get("form")
    out = DISK / "tmp" / "out"
    form_args = [f"--{form}", str(out)] if form and form != "stdout" else []
    command = [str(ENV / "bin/python"), *request["args"], *form_args]
    step = run(command, memory, timeout_s, out if form == "stdout" else None)
    if step["code"] != 0 and memory and any(word in step["said"] for word in _MEMORY_WORDS):
        step["roomy"] = run(command, _ROOMY * memory, timeout_s)
    if form and step["code"] == 0:
        step["wrote"] = written(out)
    with contextlib.suppress(OSError):
        out.unlink()
    return {"steps": {request["name"]: step}}


def written(path: Path) -> str | None:
    """The text of an output file, or None if it is missing, not a regular file, too large or not UTF-8."""
    try:
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_OUTPUT_BYTES:
            return None
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def main() -> None:
    """Raises SystemExit outside a sandbox, where killing all processes would kill the user's."""
    if os.getpid() != 1 or Path(__file__).parent != GIVEN:
        sys.exit("this is started by export.sandbox, inside bubblewrap, and by nothing else")
    # From here on no child can read, trace or write to this process. Nor can one end it: of the signals that they send,
    # process 1 gets those that it handles, and Python handles this one.
    ctypes.CDLL(None).prctl(_SET_DUMPABLE, 0, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    resource.setrlimit(resource.RLIMIT_DATA, (_OWN_MEMORY, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    for name in ("home", "tmp"):
        (DISK / name).mkdir()
    watch = Watch()
    does = {"fetch": fetch, "prepare": lambda request: prepare(request, watch), "label": label}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = does[request["do"]](request)
        except (OSError, ValueError, zipfile.BadZipFile) as error:  # shutil.Error too, which lists what was not copied
            answer = {"steps": {}, "problem": str(error)[-_TAIL:]}
        watch.used()
        answer["disk_peak_bytes"], answer["disk_full"] = watch.peak, watch.peak >= watch.size - _FULL
        answer["exceeded"] = watch.exceeded
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
