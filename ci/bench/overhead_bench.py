"""What a trial costs beside export, timing and training, in a study that already has 1,000: SQLite beside PostgreSQL.

`python ci/bench/overhead_bench.py [--trials 1000] [--storage postgresql://...]`. The loop of `pipeline.search` runs as
it is; its timer and its trainer answer at once with drawn figures, since what they take is not asked for here. Without
--storage a server is started on loopback where PostgreSQL is installed. Both studies take turns. JSON beside.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import optuna

from latency.host import this_host
from pipeline import search as searching
from pipeline.config import check_config
from pipeline.data import Index
from pipeline.files import write_json
from pipeline.measured import Timing
from pipeline.progress import Epoch
from pipeline.search import Search
from pipeline.short import Trainer
from pipeline.study import alive, one_at_a_time, take_up_lost
from pipeline.tally import Tally, all_at_work, used_up
from pipeline.train import Fit
from tests.postgres import Missing, server

LIMIT_MS = 1.0


class DrawnTimer:
    """Some latency for each graph, over the limit for a third or so."""

    def time(self, spec: Any, card: Any, seed: int) -> list[Timing]:
        ms = 0.4 + (int(spec.hash, 16) % 1000) / 1000 * 0.9
        return [Timing(f, ms, ms, 1.0, "f32", 10**6) for f in ("openvino-f32", "openvino-bf16", "onnxruntime-f32")]


class DrawnTrainer(Trainer):
    def train(self, candidate: Any, name: str, on_epoch: Any, params: Any) -> Fit:
        rng = np.random.default_rng(int(candidate.spec.hash, 16) % 2**32)
        epochs = [Epoch(e, 1.0, 1.0, float(rng.uniform(0.2, 0.6)), 0.5, 100.0) for e in range(4)]
        for epoch in epochs:
            on_epoch(epoch)
        return Fit({}, max(epochs, key=lambda e: e.f1_macro), tuple(epochs))


class BenchSearch(Search):
    @property
    def trainer(self) -> Trainer:  # type: ignore[override]
        base = Trainer(self.config, 6, self.arrays_for, self.begin, {}, "", self.folder / "trained")
        return DrawnTrainer(**base.__dict__)


def opened(folder: Path, storage: str | None) -> Search:
    section = {"trials": 10**6, "max_asked": 10**6, "max_minutes": 10**6, "stop": {"share": 0}, "epochs": 4}
    document = {
        "data": {"root": "none"},
        "latency": {"limit_ms": LIMIT_MS},
        "search": {**section, "storage": storage},
    }
    index = Index("none", tuple("abcdef"), {"train": (), "val": ()}, {})
    nothing: Any = None  # images and networks are what the stand-ins do without
    return BenchSearch(
        check_config(document, "bench"), index, nothing, nothing, "none", folder, "bench", "me", lambda text: None
    )


def trials(search: Search, study: optuna.Study, count: int) -> Iterator[tuple[float, float]]:
    """(all of it, of which Optuna's drawing) in seconds, of each further trial: what `pipeline.search.work` does."""
    timer = DrawnTimer()
    for _ in range(count):
        began, drawing = time.perf_counter(), [0.0]
        take_up_lost(study)
        tally = Tally.of(study, LIMIT_MS)
        assert not used_up(tally, search.config)
        assert not all_at_work(tally, search.config)
        study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,))
        study.sampler = clocked(searching.sampler("tpe", True, 0, tally.asked, 0), drawing)
        with one_at_a_time(search.url):
            trial = study.ask()
        with alive(study, trial, search.worker):
            searching._evaluate(study, trial, search, timer)
        yield time.perf_counter() - began, drawing[0]


def clocked(sampler: optuna.samplers.BaseSampler, drawing: list[float]) -> optuna.samplers.BaseSampler:
    own = sampler.sample_relative

    def timed(*args: Any) -> dict[str, Any]:
        began = time.perf_counter()
        found = own(*args)
        drawing[0] += time.perf_counter() - began
        return found

    sampler.sample_relative = timed  # type: ignore[method-assign]
    return sampler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--timed", type=int, default=30)
    parser.add_argument("--storage")
    args = parser.parse_args()
    with ExitStack() as stack:
        urls: dict[str, str | None] = {"SQLite": None}
        try:
            urls["PostgreSQL"] = args.storage or stack.enter_context(server())
        except Missing as missing:
            print(f"without PostgreSQL: {missing}")
        studies = {}
        for name, url in urls.items():
            search = opened(Path(stack.enter_context(tempfile.TemporaryDirectory())), url)
            studies[name] = (search, search.open())
            for done, _ in enumerate(trials(*studies[name], args.trials), 1):
                if done % 100 == 0:
                    print(f"{name}: {done} trials", flush=True)
        rows: dict[str, list[tuple[float, float]]] = {name: [] for name in studies}
        for _ in range(args.timed):
            for name, both in studies.items():
                rows[name] += list(trials(*both, 1))
    print(f"{args.timed} trials each in turn, after {args.trials}; {this_host().cpu}")
    for name, values in rows.items():
        own = 1e3 * np.array([whole - drawn for whole, drawn in values])
        ask = 1e3 * np.array([drawn for _, drawn in values])
        print(
            f"{name:12} ours {np.median(own):.0f} ms ({own.min():.0f} to {own.max():.0f}), "
            f"Optuna's drawing {np.median(ask):.0f} ms ({ask.min():.0f} to {ask.max():.0f})"
        )
    write_json(
        Path(__file__).with_suffix(".json"), {"trials": args.trials, "rows": rows, "host": this_host().as_dict()}
    )


if __name__ == "__main__":
    main()
