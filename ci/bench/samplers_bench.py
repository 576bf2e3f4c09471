"""How much of the hypervolume is the sampler's doing: ten minutes of search, played many times on a fitted surrogate.

`python ci/bench/samplers_bench.py [--seeds 32] [--samplers lineage filter tpe ehvi ...]`. One seed of `search_bench.py`
takes half an hour and its F1 is noisy, so five seeds tell samplers apart only where they differ much. Here Gaussian
processes of latency and of F1 are fitted to all that `search_bench.json` has measured and trained, and each sampler of
`pipeline.samplers` searches what they predict, with the noise that they found. A reject and a training take as long as
the real ones did. `lineage` and `filter` are the baselines of `search_bench.py`. No early stopping here.

What is a figure of the surrogate holds for this space and these photos only. JSON beside.
"""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # each process has one core
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import optuna
from optuna.trial import TrialState
from scipy import stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.model_selection import KFold, cross_val_score

from models.joined import JoinedSpace
from models.space import SearchSpace
from pipeline.ehvi import Draw, draws
from pipeline.files import write_json
from pipeline.front import hypervolume
from pipeline.gaussian import Code
from pipeline.samplers import sampler
from pipeline.study import quiet_optuna

CLASSES = 6
SOURCE = Path(__file__).with_name("search_bench.json")


@dataclass(frozen=True)
class World:
    """What takes the place of photos and clock. r2: of the two models, in cross-validation by tenths."""

    space: JoinedSpace
    limit_ms: float
    minutes: float
    code: Code
    log_ms: GaussianProcessRegressor
    f1: GaussianProcessRegressor
    log_params: GaussianProcessRegressor
    reject_s: float
    train_s: Any
    r2: dict[str, float]
    rows: dict[str, int]

    def latency_ms(self, params: dict[str, Any], rng: np.random.Generator) -> float:
        return float(np.exp(_drawn(self.log_ms, self.code([params]), rng)))

    def macro_f1(self, params: dict[str, Any], rng: np.random.Generator) -> float:
        return float(np.clip(_drawn(self.f1, self.code([params]), rng), 0, 1))


def _drawn(model: GaussianProcessRegressor, row: Any, rng: np.random.Generator) -> float:
    noise = np.sqrt(model.kernel_.k2.noise_level) * model._y_train_std
    return float(model.predict(row)[0] + rng.normal(0, noise))


@cache
def world(name: str) -> World:
    """Raises SystemExit where the JSON has no trainings of that space."""
    known = json.loads(SOURCE.read_text()).get(name, {"rows": {}})
    rows = [r for arms in known["rows"].values() for arm in arms.values() for r in arm if r["parameters"]]
    trained = [r for r in rows if r["fate"] == "trained"]
    if len(trained) < 50:
        sys.exit(f"{SOURCE.name}: {len(trained)} trainings of {name}; run search_bench.py --space {name} first")
    space = JoinedSpace((SearchSpace.load(name),))
    code = Code({n: d for draw in draws(space, 0) for n, d in draw.distributions.items()})

    def fitted(own: list[dict[str, Any]], values: Any) -> tuple[GaussianProcessRegressor, float]:
        inputs = code([r["parameters"] for r in own])
        kernel = ConstantKernel() * Matern(np.full(inputs.shape[1], 1.5), (0.2, 50.0), nu=2.5) + WhiteKernel(0.1)
        model = GaussianProcessRegressor(kernel, normalize_y=True)
        folds = KFold(10, shuffle=True, random_state=0)
        return model.fit(inputs, values), float(cross_val_score(model, inputs, values, cv=folds, scoring="r2").mean())

    log_ms, latency_r2 = fitted(rows, np.log([r["latency_ms"] for r in rows]))
    log_params, _ = fitted(rows, np.log([r["params"] for r in rows]))
    f1, f1_r2 = fitted(trained, np.array([max(r["f1_by_epoch"]) for r in trained]))
    takes = [r for r in trained if r["seconds"] > 2]  # what was trained before takes none
    return World(
        space,
        known["recipe"]["limit_ms"],
        known["recipe"]["minutes"],
        code,
        log_ms,
        f1,
        log_params,
        median(r["seconds"] for r in rows if r["fate"] == "rejected"),
        stats.theilslopes([r["seconds"] for r in takes], [r["latency_ms"] for r in takes]),
        {"latency": latency_r2, "f1": f1_r2},
        {"measured": len(rows), "trained": len(trained)},
    )


def played(name: str, arm: str, seed: int) -> dict[str, float]:
    """One search. f1, hypervolume: as the search found them; expected_: the same without the luck of the draw."""
    warnings.simplefilter("ignore")
    quiet_optuna()
    it, rng, pool = world(name), np.random.default_rng(seed), _pool(name)
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"])
    if baseline := arm in ("lineage", "filter"):
        study.sampler = optuna.samplers.TPESampler(seed=seed)
    clock_s, found, asked = 0.0, [], 0
    while clock_s < 60 * it.minutes:
        if not baseline:
            study.sampler = sampler(arm, lambda: pool, it.limit_ms, it.space.flat, seed, asked)
        trial = study.ask()
        it.space.suggest(trial, CLASSES)
        asked += 1
        ms = it.latency_ms(trial.params, rng)
        over = ms / it.limit_ms - 1
        clock_s += it.reject_s
        if not baseline:
            trial.set_constraint("latency", over)
            trial.set_user_attr("latency_ms", ms)
            trial.set_user_attr("over_limit", {"latency": over})
        if over > 0 and arm != "lineage":
            study.tell(trial, state=TrialState.PRUNED)
            continue
        f1 = it.macro_f1(trial.params, rng)
        clock_s += max(1.0, it.train_s.intercept + it.train_s.slope * ms)
        trial.set_user_attr("f1_by_epoch", [f1])
        trial.set_user_attr("f1_macro", f1)
        study.tell(trial, [f1, ms, float(np.exp(it.log_params.predict(it.code([trial.params]))[0]))])
        if clock_s <= 60 * it.minutes and over <= 0:
            found.append((f1, ms, float(it.f1.predict(it.code([trial.params]))[0])))
    return {
        "asked": asked,
        "trained_under_the_limit": len(found),
        "f1": max((f for f, _, _ in found), default=0.0),
        "hypervolume": hypervolume([(f, ms) for f, ms, _ in found], it.limit_ms),
        "expected_f1": max((f for _, _, f in found), default=0.0),
        "expected_hypervolume": hypervolume([(f, ms) for _, ms, f in found], it.limit_ms),
    }


@cache
def _pool(name: str) -> list[Draw]:
    return draws(world(name).space, 1)


def show(found: dict[str, list[dict[str, float]]], against: str) -> None:
    keys: Sequence[str] = list(next(iter(found.values()))[0])
    for key in keys:
        print(f"{key}: mean over seeds, deviation; less {against} (95 %)")
        for arm, runs in found.items():
            values = np.array([r[key] for r in runs])
            gain = values - [r[key] for r in found.get(against, runs)]
            told = ""
            if np.ptp(gain):
                low, high = stats.ttest_1samp(gain, 0.0).confidence_interval()
                told = f"; {gain.mean():+.3f} ({low:+.3f} to {high:+.3f})"
            print(f"    {arm:8} {values.mean():.3f} +- {values.std(ddof=1):.3f}{told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="cpu")
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--samplers", nargs="+", default=["lineage", "filter", "random", "nsga2", "tpe", "ehvi"])
    args = parser.parse_args()
    it = world(args.space)
    print(f"fitted to {it.rows['measured']} measured, {it.rows['trained']} trained; R2 {it.r2}", flush=True)
    jobs = [(args.space, arm, seed) for seed in range(args.seeds) for arm in args.samplers]
    with get_context("fork").Pool(len(os.sched_getaffinity(0))) as workers:
        runs = workers.starmap(played, jobs, chunksize=1)
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in args.samplers}
    for (_, arm, _), run in zip(jobs, runs, strict=True):
        found[arm].append(run)
    show(found, "filter")
    write_json(
        Path(__file__).with_suffix(".json"), {"r2": it.r2, "rows": it.rows, "limit_ms": it.limit_ms, "found": found}
    )


if __name__ == "__main__":
    main()
