"""What a trial costs beside export, timing and training, in a study that already has 1,000: SQLite beside PostgreSQL.

`python ci/bench/overhead_bench.py [--trials 1000] [--storage postgresql://...]`. `pipeline.search.loop` runs as it is;
its timer and its trainer answer at once with drawn figures, since what they take is not asked for here.
Without --storage a server is started on loopback where PostgreSQL is installed. Both studies take turns. JSON beside.
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
from pipeline.config import check_config
from pipeline.data.index import Index
from pipeline.files import write_json
from pipeline.search.basis import Search
from pipeline.search.loop import step
from pipeline.search.measured import Timing
from pipeline.search.short import Trainer
from pipeline.training.loop import Fit
from pipeline.training.progress import Epoch
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
    drawing_s = 0.0
    fill = 0

    @property
    def trainer(self) -> Trainer:  # type: ignore[override]
        base = Trainer(self.config, 6, self.arrays_for, self.begin, {}, "", self.folder / "trained")
        return DrawnTrainer(**base.__dict__)

    def sampler(self, asked: int) -> optuna.samplers.BaseSampler:
        """Its drawing clocked; what only fills the study is drawn at random."""
        if asked < self.fill:
            return optuna.samplers.RandomSampler(seed=asked)
        drawing = super().sampler(asked)
        for name in ("infer_relative_search_space", "sample_relative"):
            setattr(drawing, name, self._clocked(getattr(drawing, name)))
        return drawing

    def _clocked(self, own: Any) -> Any:
        def clocked(*args: Any) -> Any:
            began = time.perf_counter()
            found = own(*args)
            type(self).drawing_s += time.perf_counter() - began
            return found

        return clocked


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
    """(all of it, of which drawing) in seconds, of each further trial."""
    timer = DrawnTimer()
    for _ in range(count):
        BenchSearch.drawing_s, began = 0.0, time.perf_counter()
        assert step(search, study, timer) is None
        yield time.perf_counter() - began, BenchSearch.drawing_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--timed", type=int, default=30)
    parser.add_argument("--storage")
    args = parser.parse_args()
    with ExitStack() as stack:
        BenchSearch.fill = args.trials
        urls: dict[str, str | None] = {"SQLite": None}
        try:
            urls["PostgreSQL"] = args.storage or stack.enter_context(server(durable=True))
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
            f"drawing {np.median(ask):.0f} ms ({ask.min():.0f} to {ask.max():.0f})"
        )
    write_json(
        Path(__file__).with_suffix(".json"), {"trials": args.trials, "rows": rows, "host": this_host().as_dict()}
    )


if __name__ == "__main__":
    main()
