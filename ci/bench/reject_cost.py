"""What a rejected candidate costs, from trial to verdict, without and with INT8, beside torch's newer exporter.

`python ci/bench/reject_cost.py [--draws N]`. Random draws of the `cpu` space are built, exported, loaded and timed in
the forms of this host, all in turn, whose order turns too: against a limit that they are over more than twice, which
ends their timing early, and in full, as a near miss is. Table on screen, JSON beside.
"""

import argparse
import io
import sys
import tempfile
import time
import warnings
from contextlib import ExitStack
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import optuna
import torch

from export.onnx_export import deployable
from latency.host import this_host
from models.build import build, profile
from models.space import SearchSpace
from pipeline.files import write_json
from pipeline.search.measured import CandidateTimer, Form, forms
from pipeline.training.checkpoint import student_card

FAR_MS, NEAR_MS = 0.05, 50.0
"""Limits: none of the space comes near the first; under the second no timing ends early."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=12)
    draws = parser.parse_args().draws
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space, host = SearchSpace.load("cpu"), this_host()
    runtimes, plain = ("onnxruntime", "openvino"), ("f32", "bf16")
    usual = forms(runtimes, plain, host)
    every = forms(runtimes, (*plain, "int8"), host, tuple(f"{r}-{p}" for r in runtimes for p in (*plain, "int8")))
    with ExitStack() as opened:

        def timer(wanted: list[Form], limit_ms: float) -> CandidateTimer:
            folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
            return opened.enter_context(CandidateTimer(folder, wanted, 1, limit_ms))

        timers = {
            "a reject": timer(usual, FAR_MS),
            "a near miss": timer(usual, NEAR_MS),
            "a reject, INT8 too": timer(every, FAR_MS),
            "a near miss, INT8 too": timer(every, NEAR_MS),
            "the newer exporter alone": None,
        }
        seconds: dict[str, list[float]] = {name: [] for name in timers}
        for i in range(draws + 1):  # the first one pays for imports and the start of the warm processes
            trial = study.ask()
            space.suggest(trial, 6)
            for name in [*timers][i % len(timers) :] + [*timers][: i % len(timers)]:
                began = time.perf_counter()
                spec = space.suggest(trial, 6).spec
                card = student_card(spec, tuple("abcdef"), "squash")
                if (asked := timers[name]) is not None:
                    profile(spec)
                    asked.time(spec, card, seed=0)
                else:
                    image = torch.zeros(2, spec.input_size, spec.input_size, 3, dtype=torch.uint8)
                    ours = deployable(build(spec, 0), card)
                    torch.onnx.export(ours, (image,), io.BytesIO(), dynamo=True, verbose=False)
                seconds[name] += [time.perf_counter() - began] * bool(i)
    ratio = np.array(seconds["the newer exporter alone"]) / np.array(seconds["a reject"])
    print(f"{draws} draws of `cpu`, {len(usual)} forms each, {len(every)} with INT8, on {host.cpu}")
    for name, values in seconds.items():
        print(f"{name:28} median {np.median(values):.2f} s, {min(values):.2f} to {max(values):.2f} s")
    spread = f"{ratio.min():.1f} to {ratio.max():.1f}"
    print(f"the newer exporter alone takes {np.median(ratio):.1f} times a whole reject ({spread})")
    record = {"seconds": seconds, "ratio": ratio.tolist(), "host": host.as_dict()}
    write_json(Path(__file__).with_suffix(".json"), record)


if __name__ == "__main__":
    main()
