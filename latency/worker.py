"""The process that times: `python -P -m latency.worker`.

Reads one request a line from stdin (JSON), answers one line on stdout. One request and end of input: a fresh process.
Many: the warm process of a search. A file that cannot be timed is answered with {"error": ...}.
"""

import contextlib
import gc
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from latency.errors import LatencyError
from latency.records import ProcessRun
from latency.runners import Session, open_session
from latency.sampling import Plan, collect, time_once, warm_up

CONTROL = Path(__file__).with_name("control.onnx")
"""A small fixed network, timed along with every file: what changes in it is the host's doing."""
_CONTROL_PLAN = Plan(samples=60, seconds=0.3, warmup_seconds=0.3)


def random_input(session: Session) -> np.ndarray:
    rng = np.random.default_rng(0)
    if session.dtype == "uint8":
        return rng.integers(0, 256, session.shape, dtype=np.uint8)
    return rng.standard_normal(session.shape).astype(np.float32)


def run(request: dict[str, Any], controls: dict[tuple[str, int], Session]) -> ProcessRun:
    """Load, first inference, warm-up, samples; then the control of that runtime and threads, kept in `controls`."""
    plan = Plan(**request["plan"])
    start = time.perf_counter_ns()
    session = open_session(Path(request["path"]), request["runtime"], request["precision"], request["threads"])
    load_ms = (time.perf_counter_ns() - start) / 1e6
    images = random_input(session)
    try:
        cold_ms = time_once(lambda: session.infer(images))
        warmup = warm_up(lambda: session.infer(images), plan)
        samples = collect(lambda: session.infer(images), plan)
    except Exception as error:  # a runtime may fail at the first inference in its own words
        raise LatencyError(f"{request['path']}: {request['runtime']} failed while running it: {error}") from error
    key = (request["runtime"], request["threads"])
    if key not in controls:
        controls[key] = open_session(CONTROL, request["runtime"], "f32", request["threads"])
    control = controls[key]
    control_input = random_input(control)
    warm_up(lambda: control.infer(control_input), _CONTROL_PLAN)
    control_samples = collect(lambda: control.infer(control_input), _CONTROL_PLAN)
    return ProcessRun(
        load_ms=load_ms,
        cold_ms=cold_ms,
        warmup=warmup,
        samples_ms=tuple(samples),
        control_ms=tuple(control_samples),
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        effective_precision=session.effective_precision,
        settings=session.settings,
    )


@contextlib.contextmanager
def _private_stdout() -> Iterator[TextIO]:
    """The real stdout for answers; whatever a runtime prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with answers:
        yield answers


def main() -> None:
    gc.disable()  # a collection inside a sample would be our time, not the model's
    controls: dict[tuple[str, int], Session] = {}
    with _private_stdout() as answers:
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = asdict(run(request, controls))
            except LatencyError as error:
                answer = {"error": str(error)}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
            gc.collect()


if __name__ == "__main__":
    main()
