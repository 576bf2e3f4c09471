"""The machine that a file is timed on: this one, or one reached by SSH (`latency.target`).

A machine starts `latency.worker` processes, makes files visible to them, and has a lock of its own.
"""

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from latency.errors import InputError, LatencyError
from latency.files import model_files
from latency.host import Host, this_host
from latency.lock import timing_lock
from latency.records import ProcessRun, Subject
from latency.runners.kernel import Kernel
from latency.sampling import BLOCK, RESUMED, Plan

CONTROL = Path(__file__).with_name("control.onnx")
"""A small fixed network, timed along with every file: what changes in it is the host's doing."""
_ROOT = Path(__file__).resolve().parent.parent
SILENCE_S = 120
"""A process that gave no sign of life for so long hangs. There is one a second, between blocks."""
_GRACE_S = 10
"""The process ends itself that much later than it is ended from here."""


class Machine(Protocol):
    def command(self, module: str) -> tuple[list[str], dict[str, str] | None]:
        """(command, environment) that runs a module of ours there in a fresh process."""
        ...

    def place(self, files: Sequence[Path]) -> list[str]:
        """The paths there of files of ours, all in one folder. Raises LatencyError."""
        ...

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """The timing lock of that machine, held alone."""
        ...

    def host(self) -> Host: ...

    def problem(self, stderr: str) -> str | None:
        """What a process of `command` said at its death, where that is a known trouble of the way there."""
        ...


class LocalMachine:
    def command(self, module: str) -> tuple[list[str], dict[str, str] | None]:
        paths = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))  # ours first, then the user's
        environment = os.environ | {"PYTHONPATH": paths, "PYTHONWARNINGS": "ignore"}
        return [sys.executable, "-P", "-m", module], environment

    def place(self, files: Sequence[Path]) -> list[str]:
        return [str(f) for f in files]

    def lock(self) -> contextlib.AbstractContextManager[None]:
        return timing_lock()

    def host(self) -> Host:
        return this_host()

    def problem(self, stderr: str) -> str | None:
        return None


LOCAL = LocalMachine()


class Worker:
    """A process of `latency.worker` on a machine, for one request or for many."""

    def __init__(self, machine: Machine = LOCAL) -> None:
        self._machine = machine
        self._unread = b""
        command, environment = machine.command("latency.worker")
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close; a pipe that nobody reads would fill)
        try:
            self._process: Any = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, env=environment
            )
        except FileNotFoundError as error:
            raise LatencyError(f"{command[0]} is not installed here") from error

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._stderr.close()

    def time(self, subjects: list[Subject], plan: Plan, slowdowns: Sequence[float] = ()) -> list[ProcessRun]:
        """One run for each subject, taken in turn in this process. slowdowns: shares of real work added to them, for
        tests of a comparison. Raises LatencyError where a file cannot be timed, or the process dies or hangs."""
        (control,) = self._machine.place([CONTROL])
        shares = list(slowdowns) or [0.0] * len(subjects)
        answer = self.ask("time", subjects, plan=asdict(plan), control=control, slowdowns=shares)
        return [ProcessRun.from_dict(r) for r in answer["runs"]]

    def profile(self, subject: Subject, runs: int) -> list[Kernel]:
        """Raises LatencyError."""
        silence_s = SILENCE_S * (1 + runs // BLOCK)  # there is no sign of life between its inferences
        return [Kernel(**k) for k in self.ask("profile", [subject], silence_s, runs=runs)["kernels"]]

    def ask(
        self,
        do: str,
        subjects: Sequence[Subject] = (),
        silence_s: int | None = SILENCE_S,
        next_within_s: int | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """The answer of `latency.worker`. Raises LatencyError, in the words of the answer where there is one."""
        placed = [replace(s, path=self._machine.place(model_files(Path(s.path)))[0]) for s in subjects]
        what = ", ".join(dict.fromkeys(s.path for s in subjects)) or f"the request {do!r}"
        limits = {"silence_s": silence_s and silence_s + _GRACE_S, "next_within_s": next_within_s}
        request = {"do": do, "subjects": [asdict(s) for s in placed], **limits, **more}
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise LatencyError(self._died(what)) from None
        while not (line := self._line(what, silence_s)):
            pass  # a sign of life
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError as error:
            told = line.decode(errors="replace")[:80]
            raise LatencyError(
                f"{what}: {told!r} came before the answer: let no start-up file of a shell or of Python print there"
            ) from error
        if not isinstance(answer, dict):
            raise LatencyError(f"{what}: {line.decode(errors='replace')[:80]!r} is no answer of edgebuild's")
        if "error" not in answer:
            return answer
        message = str(answer["error"])
        for ours, theirs in zip(subjects, placed, strict=True):
            message = message.replace(theirs.path, ours.path)
        raise InputError(message) if answer.get("input") else LatencyError(message)

    def _line(self, what: str, silence_s: int | None) -> bytes:
        """The next line, without its end."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(silence_s):
                    self._process.kill()
                    raise LatencyError(
                        f"{what}: the timing process gave no sign of life for {silence_s} s; it was ended. It hangs, "
                        f"or {RESUMED + BLOCK} inferences take longer than that"
                    )
                data = os.read(self._process.stdout.fileno(), 2**16)
                if not data:
                    raise LatencyError(self._died(what))
                self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _died(self, what: str) -> str:
        code = self._process.wait()
        self._stderr.seek(0)
        told = self._stderr.read().decode(errors="replace").strip()
        if problem := self._machine.problem(told):
            return f"{what}: {problem}"
        return f"{what}: the timing process died with code {code}" + (f": {told.splitlines()[-1]}" if told else "")
