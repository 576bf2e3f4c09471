"""The process that times: `python -P -m latency.worker`.

Reads one request a line from stdin (JSON), answers one line on stdout, with empty lines before it as signs of life. One
request and end of input: a fresh process. Many: the warm process of a search. What cannot be timed is answered with
{"error": ..., "input": whether it was what was given}. The requests are the keys of _ANSWERS, each with "silence_s":
after so long without a sign of life this process ends itself, since whoever asked may be out of reach (null: never);
and "next_within_s": the same for the time until the next request.
"""

import contextlib
import gc
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from latency.errors import InputError, LatencyError
from latency.host import this_host
from latency.lock import hold_lock
from latency.records import ProcessRun, Subject
from latency.runners import Session, open_session, runner
from latency.runners.kernel import random_input
from latency.sampling import Beat, Plan, Step, slow_down, take_turns, tick_ns, time_once, warm_up

Answer = dict[str, Any]
_controls: dict[tuple[str, int], Session] = {}
"""The control by runtime and threads: loaded once in a process."""
_LEAST_MEMORY = 2**32
_allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def time_files(request: Answer, beat: Beat) -> Answer:
    """{"subjects": [...], "plan": ..., "control": path, "slowdowns": [...]}: one ProcessRun for each subject, all
    timed in turn, with the control of the first one's runtime and threads. slowdowns: see `sampling.slow_down`."""
    subjects, plan = [Subject(**s) for s in request["subjects"]], Plan(**request["plan"])
    _pin(subjects[0].pin)
    started = [_start(s, plan, beat) for s in subjects]
    peak_mib = _peak_mib()
    first = subjects[0]
    key = (first.runtime, first.threads)
    if key not in _controls:
        _controls[key] = open_session(Path(request["control"]), first.runtime, "f32", first.threads)
    control = _step(_controls[key])
    warm_up(control, plan, beat=beat)
    with _in_our_words(first, "running"):
        steps = [
            slow_down(step, share, beat) if share else step
            for (_, step, _), share in zip(started, request["slowdowns"], strict=True)
        ]
        *taken, control_ms = take_turns([*steps, control], plan, beat=beat)
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    runs = [
        ProcessRun(
            **facts,
            samples_ms=tuple(samples),
            control_ms=tuple(control_ms),
            peak_mib=peak_mib,
            effective_precision=session.effective_precision,
            settings={**session.settings, "cpus": affinity},
            clock_ns=tick_ns(),
        )
        for (session, _, facts), samples in zip(started, taken, strict=True)
    ]
    return {"runs": [asdict(r) for r in runs]}


def _start(subject: Subject, plan: Plan, beat: Beat) -> tuple[Session, Step, dict[str, Any]]:
    """Load, first inference, warm-up."""
    began = time.perf_counter_ns()
    with _in_our_words(subject, "loading", InputError):
        session = open_session(Path(subject.path), subject.runtime, subject.precision, subject.threads, subject.batch)
    load_ms = (time.perf_counter_ns() - began) / 1e6
    step = _step(session)
    with _in_our_words(subject, "running"):
        cold_ms = time_once(step)
        problem = _problem(step())
        warmup = warm_up(step, plan, beat=beat)
    if problem:
        raise InputError(f"{subject.path}: its output {problem}, so its time means nothing; export it again")
    return session, step, {"load_ms": load_ms, "cold_ms": cold_ms, "warmup": warmup}


@contextlib.contextmanager
def _in_our_words(subject: Subject, doing: str, kind: type[LatencyError] = LatencyError) -> Iterator[None]:
    """A runtime fails in its own, with exceptions of any type."""
    try:
        yield
    except LatencyError:
        raise
    except Exception as error:
        told = str(error).strip() or type(error).__name__
        raise kind(f"{subject.path}: {subject.runtime} failed while {doing} it: {told}") from error


def _problem(output: object) -> str | None:
    """Why an output for a random input says nothing."""
    if not isinstance(output, np.ndarray) or output.dtype.kind not in "fiub":
        return "is no array of numbers"
    if output.size == 0:
        return "is empty"
    if output.dtype.kind == "f" and not np.isfinite(output).all():
        return "is not finite for a random input"
    return None


def _step(session: Session) -> Step:
    images = random_input(session.shape, session.dtype)
    return lambda: session.infer(images)


def _pin(cpus: tuple[int, ...] | list[int] | None) -> None:
    """Hold this process to these CPUs, or let it go to all that it was allowed at its start."""
    if not hasattr(os, "sched_setaffinity"):
        if cpus:
            raise InputError("this system cannot pin a process to a CPU; leave --pin out")
        return
    missing = sorted(set(cpus or ()) - _allowed)
    if missing:
        raise InputError(
            f"no CPU {', '.join(map(str, missing))} to pin to; allowed here: {', '.join(map(str, sorted(_allowed)))}"
        )
    os.sched_setaffinity(0, cpus or _allowed)


def _peak_mib() -> float:
    """Of this process. getrusage would report its parent's where that was larger: Linux carries it through exec."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def profile_file(request: Answer, beat: Beat) -> Answer:
    """{"subjects": [one], "runs": n}: its kernels."""
    subject = Subject(**request["subjects"][0])
    _pin(subject.pin)
    path = Path(subject.path)
    profile = runner(subject.runtime, path, subject.precision).profile
    with _in_our_words(subject, "profiling", InputError):
        kernels = profile(path, subject.precision, subject.threads, subject.batch, request["runs"])
    return {"kernels": [asdict(k) for k in kernels]}


def describe_host(request: Answer, beat: Beat) -> Answer:
    return this_host().as_dict()


def lock_machine(request: Answer, beat: Beat) -> Answer:
    """Answers once this machine is ours, which it is for as long as this process lives."""
    hold_lock()
    return {}


def ping(request: Answer, beat: Beat) -> Answer:
    return {}


_ANSWERS: dict[str, Callable[[Answer, Beat], Answer]] = {
    "time": time_files,
    "profile": profile_file,
    "host": describe_host,
    "lock": lock_machine,
    "ping": ping,
}


@contextlib.contextmanager
def _private_stdout() -> Iterator[TextIO]:
    """The real stdout for answers; whatever a runtime prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with answers:
        yield answers


def _beats(answers: TextIO, silence_s: int | None) -> Beat:
    """A sign of life, at most one a second: whoever reads it takes time from a core."""
    last = 0.0

    def beat() -> None:
        nonlocal last
        if time.monotonic() - last >= 1:
            last = time.monotonic()
            answers.write("\n")
            answers.flush()
            signal.alarm(silence_s or 0)  # its default action ends a loop in native code too

    beat()
    return beat


def _bound_memory() -> None:
    """To a part of the machine's: a small file may ask for all of it, and the system would end whatever else runs."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = max(_LEAST_MEMORY, machine // 4)
    if most == resource.RLIM_INFINITY or allowed < most:
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, most))


def main() -> None:
    _bound_memory()
    gc.disable()  # a collection inside a sample would be our time, not the model's
    with _private_stdout() as answers:
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = _ANSWERS[request["do"]](request, _beats(answers, request["silence_s"]))
            except LatencyError as error:
                answer = {"error": str(error), "input": isinstance(error, InputError)}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
            signal.alarm(request["next_within_s"] or 0)
            gc.collect()


if __name__ == "__main__":
    main()
