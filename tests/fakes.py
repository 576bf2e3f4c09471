"""A runtime with a scripted clock, that reads a JSON file for a model: for statistics without a real clock."""

import json
from itertools import cycle
from pathlib import Path

import numpy as np

from latency.errors import InputError
from latency.runners import Runner
from latency.runners.kernel import Kernel, fixed_shape

DTYPES = {"float32", "uint8"}


class ScriptedSession:
    """Answers with the flattened sum over the first axis; each inference moves `clock` on by the next duration."""

    def __init__(self, path: Path, precision: str, threads: int, batch: int | None) -> None:
        try:
            model = json.loads(path.read_text())
        except ValueError as error:
            raise InputError(f"{path}: the scripted runtime cannot load it: {error}") from error
        if len(model["inputs"]) != 1:
            raise InputError(f"{path}: expected one input, got {len(model['inputs'])}")
        if model["dtype"] not in DTYPES:
            raise InputError(f"{path}: the input is {model['dtype']}; expected one of uint8, float32")
        self.shape, self.dtype = fixed_shape(path, "in0", model["inputs"][0], batch), model["dtype"]
        self.effective_precision, self.settings = precision, {"threads": threads}
        self._durations_ms, self.now_ns = cycle(model["durations_ms"]), 0

    def infer(self, images: np.ndarray) -> np.ndarray:
        self.now_ns += round(1e6 * next(self._durations_ms))
        return np.asarray(images, np.float32).reshape(1, -1)[:, :64]

    def clock(self) -> int:
        return self.now_ns


def scripted_profile(path: Path, precision: str, threads: int, batch: int | None, runs: int) -> list[Kernel]:
    session = ScriptedSession(path, precision, threads, batch)
    before = session.now_ns
    for _ in range(runs):
        session.infer(np.zeros(session.shape, session.dtype))
    return [Kernel("whole", "Scripted", "fake", precision, (session.now_ns - before) / runs / 1e6)]


SCRIPTED = Runner((".json",), ScriptedSession, scripted_profile)


def write_scripted(path: Path, inputs=((1, 3, 112, 112),), dtype="float32", durations_ms=(1.0,)) -> Path:
    document = {"inputs": [list(i) for i in inputs], "dtype": dtype, "durations_ms": list(durations_ms)}
    path.write_text(json.dumps(document))
    return path
