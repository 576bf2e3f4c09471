"""Fresh processes, one after the other, several files in turn; and the warm process of a search."""

import contextlib
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from latency.errors import LatencyError
from latency.host import this_host
from latency.lock import timing_lock
from latency.records import Measurement, ProcessRun, Target
from latency.sampling import Plan

_ROOT = Path(__file__).resolve().parent.parent
_TIMEOUT_S = 120.0
"""A process that has not answered by then hangs; loading and 1 s of samples take a few seconds."""


def own_process(module: str) -> tuple[list[str], dict[str, str]]:
    """(command, environment) that runs a module of ours in a fresh process, whatever folder it is started in."""
    environment = os.environ | {"PYTHONPATH": str(_ROOT), "PYTHONWARNINGS": "ignore"}
    return [sys.executable, "-P", "-m", module], environment


def measure(
    targets: Iterable[Target],
    processes: int,
    plan: Plan | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> list[Measurement]:
    """Time each target in `processes` fresh processes; the targets take turns, and each round begins with the next.

    `tick(done, total)` is called after each process. Raises LatencyError.
    """
    targets = list(targets)
    runs: dict[Target, list[ProcessRun]] = {t: [] for t in targets}
    with timing_lock():
        for i in range(processes):
            for j in range(len(targets)):
                target = targets[(i + j) % len(targets)]
                with Worker() as worker:
                    runs[target].append(worker.time(target, plan or Plan()))
                tick(i * len(targets) + j + 1, processes * len(targets))
    host = this_host().as_dict()
    return [Measurement(t, tuple(runs[t]), host) for t in targets]


def extend(measurement: Measurement, more: Measurement) -> Measurement:
    """One measurement of both; they must be of the same file on the same host."""
    if measurement.target != more.target or measurement.host["key"] != more.host["key"]:
        raise LatencyError("measurements of different files or hosts cannot be put together")
    return Measurement(measurement.target, measurement.runs + more.runs, measurement.host)


class Worker:
    """A process of `latency.worker`, for one request, or for many (`stay`), whose chatter then nobody would read."""

    def __init__(self, stay: bool = False) -> None:
        command, environment = own_process("latency.worker")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if not stay else subprocess.DEVNULL,
            env=environment,
            text=True,
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            if self._process.stdin:
                self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            if stream:
                stream.close()

    def time(self, target: Target, plan: Plan) -> ProcessRun:
        """Raises LatencyError where the file cannot be timed, or the process dies or hangs."""
        request = {**asdict(target), "plan": asdict(plan)}
        answer = json.loads(self._ask(json.dumps(request), target.path))
        if "error" in answer:
            raise LatencyError(answer["error"])
        return ProcessRun.from_dict(answer)

    def _ask(self, line: str, path: str) -> str:
        process: Any = self._process
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise LatencyError(self._died(path)) from None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(_TIMEOUT_S):
                process.kill()
                raise LatencyError(f"{path}: the timing process gave no answer within {_TIMEOUT_S:.0f} s; it was ended")
        answer: str = process.stdout.readline()
        if not answer:
            raise LatencyError(self._died(path))
        return answer

    def _died(self, path: str) -> str:
        code = self._process.wait()
        detail = self._process.stderr.read().strip().splitlines() if self._process.stderr else []
        return f"{path}: the timing process died with code {code}" + (f": {detail[-1]}" if detail else "")


class WarmTimer:
    """Times the candidates of a search in one warm process, which is started again where it died."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def __enter__(self) -> "WarmTimer":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._worker:
            self._worker.close()

    def time(self, target: Target, plan: Plan) -> Measurement:
        """One measurement with a single run. Raises LatencyError."""
        with timing_lock():
            if self._worker is None:
                self._worker = Worker(stay=True)
            try:
                run = self._worker.time(target, plan)
            except LatencyError:
                self._worker.close()
                self._worker = None
                raise
        return Measurement(target, (run,), this_host().as_dict())
