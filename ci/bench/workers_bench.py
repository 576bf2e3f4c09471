"""What further workers bring: 1 and 2 on this machine, and a simulation of 8 to 256 on a cluster.

`python ci/bench/workers_bench.py --data TRASHNET [--rounds 2] [--stages search_bench.json]`. The same candidates are
trained by one process with all cores, by one worker of Ray and by two with half of the cores each; in turn. Told are
the whole command, and from the first candidate's begin to the last one's end: Ray and its workers take long to start.
The simulation takes its stage times from what `search_bench.py` recorded of our search: a candidate waits for one of
the nodes that may time, is timed there, and is rejected or trained by its worker elsewhere. Table on screen, JSON
beside; without --data the measured part of it is left as it was.
"""

import argparse
import heapq
import json
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from latency.host import this_host
from models.joined import JoinedSpace
from models.space import SearchSpace
from pipeline.files import write_json
from pipeline.study import database_url, load_study

ARMS = {"one process": (), "--workers 1": ("--workers", "1"), "--workers 2": ("--workers", "2")}
CANDIDATES = 8
HOURS = 2.0
ENOUGH = 0.95


def searched_s(data: Path, arm: str, folder: Path) -> tuple[float, float]:
    """Seconds of `edgebuild search` for the same candidates: of the whole command, and of the candidates alone."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    space, start = JoinedSpace((SearchSpace.load("cpu"),)), []
    for _ in range(CANDIDATES):
        trial = study.ask()
        space.suggest(trial, 6)
        start.append(trial.params)
    search = {"start": start, "trials": CANDIDATES, "epochs": 4, "subset": 0.5, "stop": {"share": 0}}
    config = {"data": {"root": str(data.resolve())}, "latency": {"limit_ms": 100}, "search": search}
    (folder / "bench.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "edgebuild", "search", "-c", "bench.yaml", "--json", *ARMS[arm]]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True)
    whole_s = time.perf_counter() - began
    url = database_url(None, folder / "runs/bench/study")
    trials = [t for t in load_study(url, json.loads(done.stdout)["study"]).trials if t.state.is_finished()]
    assert len(trials) == CANDIDATES, f"{arm}: {len(trials)} candidates, and not those that the others had"
    begins, ends = [t.datetime_start for t in trials], [t.datetime_complete for t in trials]
    return whole_s, (max(ends) - min(begins)).total_seconds()  # type: ignore[type-var, operator]


def simulate(
    workers: int, nodes: int, timing_s: np.ndarray, training_s: np.ndarray, kept: float
) -> tuple[float, float]:
    """(trainings an hour, share of the time that the timing nodes are busy). Each worker is at one candidate at a time;
    the nodes take whoever came first."""
    rng, end = np.random.default_rng(0), 3600 * HOURS
    free = [0.0] * nodes
    ready = [(float(t), w) for w, t in enumerate(rng.uniform(0, timing_s.mean(), workers))]
    heapq.heapify(ready)
    heapq.heapify(free)
    trainings, busy = 0, 0.0
    while ready and ready[0][0] < end:
        now, worker = heapq.heappop(ready)
        begins = max(now, heapq.heappop(free))
        took = float(rng.choice(timing_s))
        heapq.heappush(free, begins + took)
        busy += took
        done = begins + took
        if rng.random() < kept:
            done += float(rng.choice(training_s))
            trainings += done < end
        heapq.heappush(ready, (done, worker))
    return trainings / HOURS, busy / (nodes * end)


def simulation(rows: list[dict[str, Any]]) -> dict[str, Any]:
    timing_s = np.array([r["measure_s"] for r in rows])
    training_s = np.array([r["seconds"] - r["measure_s"] for r in rows if r["fate"] != "rejected"])
    kept = len(training_s) / len(rows)
    print(
        f"\nsimulation, from {len(rows)} candidates: timing {timing_s.mean():.2f} s each, {kept:.0%} are trained, "
        f"{training_s.mean():.1f} s each; {HOURS:g} hours"
    )
    alone = 3600 * kept / (timing_s.mean() + kept * training_s.mean())
    table: dict[str, Any] = {}
    print("workers   trainings an hour, and how busy 1, 2, 4, 8, 16, 32 timing nodes are; nodes needed for 95 %")
    for workers in (1, 2, 8, 16, 32, 64, 128, 256):
        found = {n: simulate(workers, n, timing_s, training_s, kept) for n in (1, 2, 4, 8, 16, 32)}
        ideal = alone * workers
        most = range(1, workers + 1)

        def rate(nodes: int, workers: int = workers) -> float:
            return simulate(workers, nodes, timing_s, training_s, kept)[0]

        needed = most[min(bisect_left(most, ENOUGH * ideal, key=rate), workers - 1)]
        table[str(workers)] = {"by_nodes": found, "ideal": ideal, "nodes_needed": needed}
        cells = "  ".join(f"{rate:6.0f} ({busy:4.0%})" for rate, busy in found.values())
        print(f"{workers:7}   {cells}   {needed}")
    return {"timing_s": timing_s.mean(), "training_s": training_s.mean(), "kept": kept, "table": table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--stages", type=Path, default=Path(__file__).with_name("search_bench.json"))
    args = parser.parse_args()
    output = Path(__file__).with_suffix(".json")
    record: dict[str, Any] = json.loads(output.read_text()) if output.is_file() else {}
    if args.data:
        seconds: dict[str, list[tuple[float, float]]] = {arm: [] for arm in ARMS}
        for round_ in range(args.rounds):
            for arm in list(ARMS)[:: 1 if round_ % 2 == 0 else -1]:
                with tempfile.TemporaryDirectory() as folder:
                    seconds[arm].append(searched_s(args.data, arm, Path(folder)))
                    whole_s, work_s = seconds[arm][-1]
                    print(
                        f"{arm}: {CANDIDATES} candidates in {work_s:.0f} s, the command in {whole_s:.0f} s", flush=True
                    )
        for arm, values in seconds.items():
            whole, work = (np.array(seconds["one process"]) / np.array(values)).T
            print(
                f"{arm:14} {np.median(work):.2f} times one process ({work.min():.2f} to {work.max():.2f}); "
                f"the whole command {np.median(whole):.2f} ({whole.min():.2f} to {whole.max():.2f})"
            )
        record |= {"seconds": seconds, "host": this_host().as_dict()}
    if args.stages.is_file():
        seeds = json.loads(args.stages.read_text())["cpu"]["rows"].values()
        record["simulation"] = simulation([r for arms in seeds for r in arms.get("ours", []) if r.get("measure_s")])
    write_json(output, record)


if __name__ == "__main__":
    main()
