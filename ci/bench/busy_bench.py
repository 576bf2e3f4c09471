"""How right is a search about the time of its candidates while something else runs here?

`python ci/bench/busy_bench.py [--candidates N] [--processes N]`. Random candidates of two spaces, untrained, timed as a
search times them: at rest, beside a niced busy loop, beside a training on one core, and beside both, each as a study of
its own. The truth is fresh processes at rest, before and after. Each candidate has two limits of its own: one that it
keeps by 10 % (to reject it is wrong) and one that it is 10 % over (to train it is a waste). The rule before (p90 over
the drift of the control's median since the first second, rejected by its 99 % lower bound) is reckoned from the same
samples. Table on screen, JSON beside.
"""

import argparse
import contextlib
import math
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import optuna

from export.artifact import Artifact
from latency.bounds import ALPHA, percentile, quantile_bounds
from latency.calm import calm_of, calm_runs, seen_in
from latency.host import this_host
from latency.measure import extend, measure
from latency.records import Measurement, ProcessRun
from models.space import SearchSpace
from models.spec import ModelSpec
from pipeline.files import read_json, write_json
from pipeline.search.measured import CandidateTimer, Form, forms, write_form
from pipeline.training.checkpoint import student_card

_LOOP = "import os\nos.nice(19)\nwhile True: pass"
_TRAINING = """
import torch
torch.set_num_threads(1)
net = torch.nn.Sequential(*(torch.nn.Conv2d(3 if i == 0 else 32, 32, 3, padding=1) for i in range(6)))
optimizer, images = torch.optim.AdamW(net.parameters()), torch.randn(16, 3, 96, 96)
while True:
    optimizer.zero_grad()
    net(images).square().mean().backward()
    optimizer.step()
"""
CONDITIONS = {"at rest": (), "niced loop": (_LOOP,), "training": (_TRAINING,), "both": (_LOOP, _TRAINING)}
KEPT, OVER, FAR = 1.1, 1 / 1.1, 0.2
"""Limits of a candidate, in units of its p90."""
_SHARE, _MOST = 0.5, 2
"""The share of processes that must have been at rest. Until then more are timed, up to _MOST times as many."""


class Timer(CandidateTimer):
    """A timer whose limit can be set for each candidate."""

    @property
    def folder(self) -> Path:
        return self._folder

    def against(self, limit_ms: float) -> "Timer":
        self._limit_ms, self._plan = limit_ms, replace(self._plan, hopeless_ms=2 * limit_ms)
        return self


@contextlib.contextmanager
def beside(programs: tuple[str, ...]) -> Iterator[None]:
    running = [subprocess.Popen([sys.executable, "-c", text]) for text in programs]
    time.sleep(5 if running else 0)
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def candidates(count: int) -> list[ModelSpec]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    spaces = [SearchSpace.load("cpu"), SearchSpace.load("pretrained")]
    return [spaces[i % 2].suggest(study.ask(), 6).spec for i in range(count)]


def artifacts_of(specs: list[ModelSpec], wanted: list[Form], folder: Path) -> list[Artifact]:
    """All forms of the first candidate, then of the next."""
    artifacts: list[Artifact] = []
    for i, spec in enumerate(specs):
        place = folder / str(i)
        place.mkdir()
        card = student_card(spec, tuple("abcdef"), "squash")
        artifacts += [write_form(spec, card, 0, form, place / "candidate.onnx", this_host()) for form in wanted]
    return artifacts


def fresh(artifacts: list[Artifact], processes: int, known: list[Measurement]) -> list[Measurement]:
    """The known processes of each file and more of them, in turn, until enough of each were at rest."""
    wanted = len(known[0].runs if known else ()) + processes
    for count in (processes, *[1] * (_MOST * processes)):
        found = measure([a.subject(1) for a in artifacts], count)
        known = [extend(a, b) for a, b in zip(known, found, strict=True)] if known else found
        if min(map(len, at_rest(known))) >= _SHARE * wanted:
            break
    return known


def at_rest(measured: list[Measurement], which: slice = slice(None)) -> list[list[float]]:
    """p90 in ms of the processes of each in which the control was at rest; which: of the processes of each."""
    calm = {
        runtime: calm_of([c for m in measured if m.subject.runtime == runtime for c in seen_in(m.runs)])
        for runtime in {m.subject.runtime for m in measured}
    }
    return [[r.p90_ms for r in calm_runs(m.runs[which], calm[m.subject.runtime])] for m in measured]


def fastest_ms(p90s_ms: list[list[float]], forms: int) -> list[float]:
    """By candidate, of its fastest form; nan where no process of a form was at rest."""
    medians = [median(found) if found else math.nan for found in p90s_ms]
    return [min(medians[i : i + forms]) for i in range(0, len(medians), forms)]


def before(run: ProcessRun, first_ms: float) -> tuple[float, float]:
    """(p90, its lower bound) by the rule before."""
    drift = run.control_p50_ms / first_ms
    return run.p90_ms / drift, quantile_bounds(list(run.samples_ms), 0.9, ALPHA)[0] / drift


def searched(specs: list[ModelSpec], true_ms: list[float], wanted: list[Form]) -> list[dict[str, Any]]:
    """What a search that begins now sees of each candidate, against each of its two limits."""
    rows: list[dict[str, Any]] = []
    first: dict[str, float] = {}
    with contextlib.ExitStack() as opened:
        timer, strict, far = (
            opened.enter_context(Timer(Path(opened.enter_context(tempfile.TemporaryDirectory())), wanted, 1, 1.0))
            for _ in range(3)
        )
        for spec, truth in zip(specs, true_ms, strict=True):
            card = student_card(spec, tuple("abcdef"), "squash")
            row: dict[str, Any] = {}
            for name, limited in (
                ("kept", timer.against(KEPT * truth)),
                ("over", strict.against(OVER * truth)),
                ("far_over", far.against(FAR * truth)),
            ):
                began = time.perf_counter()
                best = limited.time(spec, card, 0)[0]
                row[f"{name}_s"] = time.perf_counter() - began
                row[name] = {"p90_ms": best.p90_ms, "lower_ms": best.p90_lower_ms, "form": best.form}
            old = []
            for form in wanted:
                record = read_json(next(timer.folder.glob(f"{spec.hash}-{spec.input_size}-{form}-1-*.json")))
                run = ProcessRun.from_dict(record["runs"][0])
                reference = first.setdefault(form.runtime, percentile(run.control_ms, 50))
                old.append(before(run, reference))
            row["before"] = min(old)
            rows.append(row)
        for row, spec, truth in zip(rows, specs, true_ms, strict=True):  # at rest as it is known in the end
            card = student_card(spec, tuple("abcdef"), "squash")
            row["at_the_end_ms"] = timer.against(KEPT * truth).time(spec, card, 0)[0].p90_ms
    return rows


def told(rows: list[dict[str, Any]], true_ms: list[float]) -> dict[str, float]:
    truth = np.array(true_ms)
    new = np.array([r["at_the_end_ms"] for r in rows]) / truth - 1
    old = np.array([r["before"][0] for r in rows]) / truth - 1
    return {
        "error": float(np.median(np.abs(new))),
        "error_95": float(np.quantile(np.abs(new), 0.95)),
        "error_before": float(np.median(np.abs(old))),
        "error_95_before": float(np.quantile(np.abs(old), 0.95)),
        "false_rejects": sum(r["kept"]["lower_ms"] > KEPT * t for r, t in zip(rows, true_ms, strict=True)),
        "false_rejects_before": sum(r["before"][1] > KEPT * t for r, t in zip(rows, true_ms, strict=True)),
        "false_accepts": sum(r["over"]["lower_ms"] <= OVER * t for r, t in zip(rows, true_ms, strict=True)),
        "false_accepts_before": sum(r["before"][1] <= OVER * t for r, t in zip(rows, true_ms, strict=True)),
        "seconds": float(np.mean([r["kept_s"] for r in rows])),
        "seconds_far_over": float(np.mean([r["far_over_s"] for r in rows])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=24)
    parser.add_argument("--processes", type=int, default=4)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    host, specs = this_host(), candidates(args.candidates)
    wanted = forms(("onnxruntime", "openvino"), ("f32", "bf16"), host)
    with tempfile.TemporaryDirectory() as folder:
        artifacts = artifacts_of(specs, wanted, Path(folder))
        measured = fresh(artifacts, args.processes, [])
        guess = fastest_ms(at_rest(measured), len(wanted))
        by_condition: dict[str, list[dict[str, Any]]] = {}
        for name, programs in CONDITIONS.items():
            with beside(programs):
                by_condition[name] = searched(specs, guess, wanted)
            print(f"{name}: done", file=sys.stderr)
        measured = fresh(artifacts, args.processes, measured)
    calm = at_rest(measured)
    true_ms = fastest_ms(calm, len(wanted))
    halves = [fastest_ms(at_rest(measured, half), len(wanted)) for half in (slice(0, None, 2), slice(1, None, 2))]
    noise = [abs(a / b - 1) for a, b in zip(*halves, strict=True) if a == a and b == b]
    print(
        f"{len(specs)} candidates, {len(wanted)} forms each, on {host.cpu}; truth: {len(measured[0].runs)} processes, "
        f"of which {min(map(len, calm))} to {max(map(len, calm))} were at rest"
    )
    print(f"two halves of the truth differ by {median(noise):.1%}, 95 % within {np.quantile(noise, 0.95):.1%}")
    summary = {name: told(rows, true_ms) for name, rows in by_condition.items()}
    for name, found in summary.items():
        print(
            f"{name:11} error {found['error']:.1%}, 95 % within {found['error_95']:.1%} (before: "
            f"{found['error_before']:.1%}, {found['error_95_before']:.1%}); false rejects {found['false_rejects']} "
            f"({found['false_rejects_before']}), false accepts {found['false_accepts']} "
            f"({found['false_accepts_before']}); {found['seconds']:.2f} s a near miss, "
            f"{found['seconds_far_over']:.2f} s where it is far over"
        )
    record = {"summary": summary, "truth_ms": true_ms, "calm_ms": calm, "rows": by_condition, "host": host.as_dict()}
    write_json(Path(__file__).with_suffix(".json"), record)


if __name__ == "__main__":
    main()
