"""The whole way of an image, file to logits, timed in fresh processes: what a submission of many images takes.

Run as `python -P -m export.all_in`: one request (JSON) on stdin, one answer on stdout. A claim apart from the gate's.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.artifact import Artifact
from export.errors import ExportError
from export.preprocess import Preprocess
from latency.lock import timing_lock
from latency.measure import own_process
from latency.runners import open_session

IMAGES = 100
PROCESSES = 5


@dataclass(frozen=True)
class AllIn:
    """By process: seconds until the model is loaded, mean milliseconds an image for decode + resize and inference."""

    start_s: tuple[float, ...]
    decode_ms: tuple[float, ...]
    infer_ms: tuple[float, ...]

    def predict_s(self, images: int) -> tuple[float, float, float]:
        """(lowest, median, highest) seconds for so many images, one after the other, over the processes."""
        totals = [
            start + images * (decode + infer) / 1e3
            for start, decode, infer in zip(self.start_s, self.decode_ms, self.infer_ms, strict=True)
        ]
        return min(totals), float(np.median(totals)), max(totals)


def measure_all_in(artifact: Artifact, preprocess: Preprocess, paths: Sequence[Path], threads: int) -> AllIn:
    """Time up to IMAGES of `paths` in PROCESSES fresh processes. Raises ExportError."""
    request = {
        "path": str(artifact.path),
        "runtime": artifact.runtime,
        "precision": artifact.precision,
        "threads": threads,
        "preprocess": preprocess.as_dict(),
        "images": [str(p) for p in paths[:IMAGES]],
    }
    command, environment = own_process("export.all_in")
    answers = []
    with timing_lock():
        for _ in range(PROCESSES):
            done = subprocess.run(
                command,
                input=json.dumps(request),
                capture_output=True,
                text=True,
                env=environment,
            )
            if done.returncode:
                raise ExportError(f"{artifact.path}: the all-in timing died: {done.stderr.strip().splitlines()[-1:]}")
            answers.append(json.loads(done.stdout.splitlines()[-1]))
    return AllIn(*(tuple(a[k] for a in answers) for k in ("start_s", "decode_ms", "infer_ms")))


def _run(request: dict[str, Any]) -> dict[str, float]:
    start = time.perf_counter()
    session = open_session(Path(request["path"]), request["runtime"], request["precision"], request["threads"])
    preprocess = Preprocess(**request["preprocess"])
    session.infer(preprocess.load(request["images"][0])[None])
    start_s = time.perf_counter() - start
    decode = infer = 0.0
    for path in request["images"]:
        began = time.perf_counter()
        image = preprocess.load(path)[None]
        decoded = time.perf_counter()
        session.infer(image)
        decode, infer = decode + decoded - began, infer + time.perf_counter() - decoded
    count = len(request["images"])
    return {"start_s": start_s, "decode_ms": 1e3 * decode / count, "infer_ms": 1e3 * infer / count}


if __name__ == "__main__":
    print(json.dumps(_run(json.load(sys.stdin))))
