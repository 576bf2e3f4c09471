"""The whole way of an image, file to logits, timed in fresh processes: what a submission of many images takes.

Run as `python -P -m export.all_in`: one request (JSON) on stdin, one answer on stdout. A claim apart from the gate's.
"""

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from export.artifact import Artifact, evenly
from export.errors import ExportError
from export.preprocess import Preprocess
from latency.bounds import percentile
from latency.machine import LOCAL, Machine
from latency.runners import open_session

IMAGES = 100
PROCESSES = 5
_TIMEOUT_S = 600
PARTS = ("read", "decode", "resize", "infer")
_HERE = Path(__file__).resolve().parent
MODULES = {
    f"export/{name}.py": _HERE / f"{name}.py" for name in ("__init__", "errors", "artifact", "preprocess", "all_in")
}
"""What a board needs besides `latency` to run this, and Pillow."""


@dataclass(frozen=True)
class AllIn:
    """By process. start_s: seconds until the first image is labelled. parts_ms: for each of PARTS, one time an image;
    reading is from the page cache. decode_full_ms: decoding without the decoder's own down-scaling. labels_changed:
    images that it labels otherwise."""

    start_s: tuple[float, ...]
    parts_ms: dict[str, tuple[tuple[float, ...], ...]]
    decode_full_ms: tuple[tuple[float, ...], ...]
    labels_changed: int
    images: int

    def predict_s(self, images: int) -> tuple[float, float, float]:
        """(lowest, median, highest) seconds for so many images, one after the other, over the processes."""
        per_image = np.sum([np.mean(self.parts_ms[p], axis=1) for p in PARTS], axis=0)
        totals = np.array(self.start_s) + images * per_image / 1e3
        return float(totals.min()), float(np.median(totals)), float(totals.max())

    def summary(self) -> dict[str, Any]:
        """p50, p90 and mean of each part in ms: medians over the processes."""

        def row(by_process: Sequence[tuple[float, ...]]) -> dict[str, float]:
            return {
                "p50_ms": median(percentile(s, 50) for s in by_process),
                "p90_ms": median(percentile(s, 90) for s in by_process),
                "mean_ms": median(float(np.mean(s)) for s in by_process),
            }

        return {
            "start_s": median(self.start_s),
            "parts": {part: row(self.parts_ms[part]) for part in PARTS},
            "decode_at_full_size": row(self.decode_full_ms),
            "labels_changed_by_scaled_decoding": self.labels_changed,
            "images": self.images,
            "processes": len(self.start_s),
        }


def measure_all_in(
    artifact: Artifact, preprocess: Preprocess, paths: Sequence[Path], threads: int, machine: Machine = LOCAL
) -> AllIn:
    """Time up to IMAGES of `paths`, taken evenly, in PROCESSES fresh processes. Raises ImageError for a file that
    cannot be read, ExportError, LatencyError."""
    chosen = evenly(paths, IMAGES)
    for path in chosen:
        preprocess.load(path)
    answers = []
    with machine.lock():
        request = {
            "path": machine.place(list(artifact.files))[0],
            "runtime": artifact.runtime,
            "precision": artifact.precision,
            "threads": threads,
            "preprocess": preprocess.as_dict(),
            "images": machine.place(chosen),
        }
        command, environment = machine.command("export.all_in")
        for _ in range(PROCESSES):
            try:
                done = subprocess.run(
                    command,
                    input=json.dumps(request),
                    capture_output=True,
                    text=True,
                    env=environment,
                    timeout=_TIMEOUT_S,
                )
            except subprocess.TimeoutExpired as error:
                raise ExportError(f"{artifact.path}: {len(chosen)} images took over {_TIMEOUT_S} s all in") from error
            if done.returncode:
                told = done.stderr.strip()
                last = told.splitlines()[-1] if told else f"code {done.returncode}"
                raise ExportError(machine.problem(told) or f"{artifact.path}: the all-in timing died: {last}")
            answers.append(json.loads(done.stdout.splitlines()[-1]))
    return AllIn(
        start_s=tuple(a["start_s"] for a in answers),
        parts_ms={part: tuple(tuple(a["parts_ms"][part]) for a in answers) for part in PARTS},
        decode_full_ms=tuple(tuple(a["decode_full_ms"]) for a in answers),
        labels_changed=answers[0]["labels_changed"],
        images=len(chosen),
    )


def _run(request: dict[str, Any]) -> dict[str, Any]:
    signal.alarm(_TIMEOUT_S)  # ends this process where nobody else can: on a board that lost us
    start = time.perf_counter()
    session = open_session(Path(request["path"]), request["runtime"], request["precision"], request["threads"])
    preprocess = Preprocess(**request["preprocess"])
    session.infer(preprocess.load(request["images"][0])[None])
    start_s = time.perf_counter() - start
    parts: dict[str, list[float]] = {part: [] for part in PARTS}
    full, changed = [], 0
    for path in request["images"]:
        marks = [time.perf_counter()]
        data = Path(path).read_bytes()
        marks.append(time.perf_counter())
        image = preprocess.decode(io.BytesIO(data))
        marks.append(time.perf_counter())
        array = preprocess.resize(image)[None]
        marks.append(time.perf_counter())
        label = session.infer(array).argmax()
        marks.append(time.perf_counter())
        for part, took in zip(PARTS, np.diff(marks) * 1e3, strict=True):
            parts[part].append(took)
        began = time.perf_counter()
        whole = preprocess.decode(io.BytesIO(data), scaled=False)
        full.append((time.perf_counter() - began) * 1e3)
        changed += int(session.infer(preprocess.resize(whole)[None]).argmax() != label)
    return {"start_s": start_s, "parts_ms": parts, "decode_full_ms": full, "labels_changed": changed}


if __name__ == "__main__":
    print(json.dumps(_run(json.load(sys.stdin))))
