"""How much of a search's result is the sampler's doing: its ten minutes, played many times on a fitted surrogate.

`python ci/bench/samplers_bench.py [--seeds 32] [--samplers lineage filter tpe ehvi ...]`. One seed of `search_bench.py`
takes half an hour and its F1 is noisy, so five seeds tell samplers apart only where they differ much. Here trees are
fitted to the latency, F1 and parameters of all that `search_bench.json` has of one host, and each sampler of
`pipeline.search.samplers` searches what they predict; F1 has the noise that was seen where one candidate was trained
again. A reject and a training take as long as the real ones did, and drawing as long as it does. `lineage` and `filter`
are the baselines of `search_bench.py`. No early stopping here.

What comes out holds for that space and those photos, as far as the trees do (R2 is shown). JSON beside.
"""

import argparse
import json
import os
import sys
import time
import warnings
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # each process has one core
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import optuna
from optuna.trial import TrialState
from scipy import stats
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.model_selection import KFold, cross_val_score

from models.joined import JoinedSpace
from models.language import canonical_hash
from models.space import SearchSpace
from pipeline.files import write_json
from pipeline.search.ehvi import draws
from pipeline.search.front import hypervolume
from pipeline.search.gaussian import Code
from pipeline.search.samplers import sampler
from pipeline.study import quiet_optuna

CLASSES = 6
POOLS = 4
"""Draws of the space that the seeds share."""


@dataclass(frozen=True)
class World:
    """What takes the place of photos and clock. noise: of one F1; told: what it was fitted to, and how well."""

    space: JoinedSpace
    limit_ms: float
    minutes: float
    code: Code
    log_ms: Any
    f1: Any
    log_params: Any
    noise: float
    reject_s: float
    train_s: Any
    told: dict[str, float]

    def latency_ms(self, params: dict[str, Any]) -> float:
        return float(np.exp(self.log_ms.predict(self.code([params]))[0]))

    def macro_f1(self, params: dict[str, Any]) -> float:
        return float(self.f1.predict(self.code([params]))[0])

    def count(self, params: dict[str, Any]) -> float:
        return float(np.exp(self.log_params.predict(self.code([params]))[0]))


@cache
def world(source: Path, name: str) -> World:
    """Raises SystemExit where the JSON has too few trainings of that space."""
    known = json.loads(source.read_text()).get(name, {"rows": {}, "hosts": {}, "again": {}})
    hosts = {seed: host["key"] for seed, host in known["hosts"].items()}
    seeds = [seed for seed in known["rows"] if hosts[seed] == next(iter(hosts.values()))]
    rows = [r for seed in seeds for arm in known["rows"][seed].values() for r in arm]
    trained = [r for r in rows if r["fate"] == "trained"]
    if len(trained) < 50:
        sys.exit(f"{source}: {len(trained)} trainings of {name}; run search_bench.py --space {name} first")
    space = JoinedSpace((SearchSpace.load(name),))
    code = Code({n: d for draw in draws(space, 0) for n, d in draw.distributions.items()})

    def fitted(own: list[dict[str, Any]], values: Any) -> tuple[Any, float]:
        inputs, trees = code([r["parameters"] for r in own]), ExtraTreesRegressor(100, random_state=0)
        folds = KFold(10, shuffle=True, random_state=0)
        return trees.fit(inputs, values), float(cross_val_score(trees, inputs, values, cv=folds, scoring="r2").mean())

    log_ms, latency_r2 = fitted(rows, np.log([r["latency_ms"] for r in rows]))
    f1, f1_r2 = fitted(trained, np.array([max(r["f1_by_epoch"]) for r in trained]))
    log_params, _ = fitted(rows, np.log([r["params"] for r in rows]))
    noise = np.sqrt(fmean(np.var(f, ddof=1) for seed in seeds for f in known["again"][seed].values() if len(f) > 1))
    takes = [r for r in trained if r["seconds"] > 2]  # what was trained before takes none
    told = {
        "measured": len(rows),
        "trained": len(trained),
        "r2 of latency": latency_r2,
        "r2 of F1": f1_r2,
        "noise": noise,
    }
    return World(
        space,
        known["recipe"]["limit_ms"],
        known["recipe"]["minutes"],
        code,
        log_ms,
        f1,
        log_params,
        noise,
        median(r["seconds"] for r in rows if r["fate"] == "rejected"),
        stats.theilslopes([r["seconds"] for r in takes], [r["latency_ms"] for r in takes]),
        told,
    )


@cache
def _pool(source: Path, name: str, number: int) -> list[Any]:
    return draws(world(source, name).space, number)


def played(source: Path, name: str, arm: str, seed: int) -> dict[str, float]:
    """One search. chosen_f1: what is to be expected of the candidate that was best as it was trained."""
    warnings.simplefilter("ignore")
    quiet_optuna()
    it, rng, pool = world(source, name), np.random.default_rng(seed), _pool(source, name, seed % POOLS)
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"])
    if baseline := arm in ("lineage", "filter"):
        study.sampler = optuna.samplers.TPESampler(seed=seed)
    clock_s, found, asked = 0.0, [], 0
    while clock_s < 60 * it.minutes:
        began = time.perf_counter()
        if not baseline:
            study.sampler = sampler(arm, lambda: pool, it.limit_ms, it.space.flat, seed, asked)
        trial = study.ask()
        it.space.suggest(trial, CLASSES)
        asked += 1
        clock_s += time.perf_counter() - began
        ms = it.latency_ms(trial.params)
        over = ms / it.limit_ms - 1
        if not baseline:
            trial.set_constraint("latency", over)
            trial.set_user_attr("latency_ms", ms)
            trial.set_user_attr("over_limit", {"latency": over})
        if over > 0 and arm != "lineage":
            clock_s += it.reject_s
            study.tell(trial, state=TrialState.PRUNED)
            continue
        expected = it.macro_f1(trial.params)
        f1 = float(np.clip(rng.normal(expected, it.noise), 0, 1))
        clock_s += max(it.reject_s, it.train_s.intercept + it.train_s.slope * ms)
        trial.set_user_attr("training", canonical_hash([trial.params, asked]))
        trial.set_user_attr("f1_by_epoch", [f1])
        trial.set_user_attr("f1_macro", f1)
        study.tell(trial, [f1, ms, it.count(trial.params)])
        if clock_s <= 60 * it.minutes and over <= 0:
            found.append((f1, ms, expected))
    return {
        "asked": asked,
        "trained_under_the_limit": len(found),
        "best_f1": max((f for f, _, _ in found), default=0.0),
        "chosen_f1": max(found, default=(0.0, 0.0, 0.0))[2],
        "hypervolume": hypervolume([(f, ms) for f, ms, _ in found], it.limit_ms),
        "expected_hypervolume": hypervolume([(f, ms) for _, ms, f in found], it.limit_ms),
    }


def show(found: dict[str, list[dict[str, float]]], against: str) -> None:
    for key in next(iter(found.values()))[0]:
        print(f"{key}: mean over seeds, deviation; more than {against} (95 %)")
        for arm, runs in found.items():
            values = np.array([r[key] for r in runs])
            gain, told = values - [r[key] for r in found.get(against, runs)], ""
            if np.ptp(gain):
                low, high = stats.ttest_1samp(gain, 0.0).confidence_interval()
                told = f"; {gain.mean():+.3f} ({low:+.3f} to {high:+.3f})"
            print(f"    {arm:8} {values.mean():.3f} +- {values.std(ddof=1):.3f}{told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="cpu")
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--samplers", nargs="+", default=["lineage", "filter", "random", "nsga2", "tpe", "ehvi"])
    parser.add_argument("--source", type=Path, default=Path(__file__).with_name("search_bench.json"))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    it = world(args.source, args.space)
    print(", ".join(f"{k} {v:.3g}" for k, v in it.told.items()), flush=True)
    jobs = [(args.source, args.space, arm, seed) for seed in range(args.seeds) for arm in args.samplers]
    with get_context("fork").Pool(len(os.sched_getaffinity(0))) as workers:
        runs = workers.starmap(played, jobs, chunksize=1)
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in args.samplers}
    for (_, _, arm, _), run in zip(jobs, runs, strict=True):
        found[arm].append(run)
    show(found, "filter")
    write_json(args.output, {"fitted": it.told, "limit_ms": it.limit_ms, "minutes": it.minutes, "found": found})


if __name__ == "__main__":
    main()
