"""Three ways to search, the same wall time each: the lineage's loop, the same with a filter, and edgebuild's.

`python ci/bench/search_bench.py --data TRASHNET [--space cpu] [--limit-ms 0.4] [--minutes 10]`. Same space, same short
training, same measurement of each candidate (its exported model, on this CPU), nothing shared between arms:

- lineage: every candidate is trained, however slow; Optuna's TPE with three objectives, told what was found;
- filter: candidates over the limit are told PRUNED untrained, but no constraint: the sampler learns nothing of why;
- ours: `pipeline.search.loop` as it is by default; `--arms ours:tpe` and the like: with another `search.sampler`.

What finishes after the time is up does not count. The best F1 of many trainings flatters whoever trains most, so the
candidate that has it is trained again after the time, with three other seeds. Resumable: each arm is stored when it is
done, and a seed's arms must be of one host. Table on screen, every trial in the JSON beside. Nothing else may run
meanwhile. Seeds begin at 1, for the sampler was developed on 0.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import optuna

from export.errors import ExportError
from latency.errors import LatencyError
from latency.host import this_host
from latency.machine import LOCAL
from models.build import profile
from models.language import SpecError
from models.pretrained import Normalisation
from pipeline.config import Stop, check_config
from pipeline.data.stage import DATA
from pipeline.files import write_text
from pipeline.search.basis import Search, candidate_timer, open_search
from pipeline.search.front import hypervolume
from pipeline.search.limits import best_form
from pipeline.search.loop import run_search
from pipeline.search.stopping import Curve, replay
from pipeline.search.tally import fate
from pipeline.stages import Run, perform
from pipeline.study import DETAILS, open_study, own_trials
from pipeline.training.begin import load_arrays
from pipeline.training.checkpoint import student_card

ARMS = ("lineage", "filter", "ours")
AGAIN = 3
DEPTH = 5
"""Of a trial in the JSON: space, rows, seed, arm, number. What lies as deep is laid out on one line."""


@dataclass(frozen=True)
class Row:
    """A trial: when it ended after the arm began, how long it took, and what was found. over: share over the limit;
    parameters: as it was drawn; measure_s: of the
    seconds, those for its latency, where it is known."""

    end_s: float
    seconds: float
    fate: str
    over: float
    latency_ms: float
    params: int
    f1_by_epoch: list[float]
    parameters: dict[str, Any] = field(default_factory=dict)
    measure_s: float = 0.0


class _TimeUp(Exception):
    """Ends what is under way."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Some networks of `lineage` train for half an hour, and what ends after the time counts for nothing."""

    def end(*_: Any) -> None:
        raise _TimeUp

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with suppress(_TimeUp):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def baseline(search: Search, filtered: bool, seed: int, minutes: float) -> list[Row]:
    """The loop that the lineage wrote by hand, with our measurement and our training."""
    study = open_study(
        search.url, "baseline", ("maximize", "minimize", "minimize"), ("macro F1", "p90 [ms]", "parameters")
    )
    study.sampler = optuna.samplers.TPESampler(seed=seed)
    began, rows = time.perf_counter(), []
    with time_limit(60 * minutes), candidate_timer(search.config, search.folder, LOCAL) as timer:
        while (start := time.perf_counter()) - began < 60 * minutes:
            trial = study.ask()
            try:
                candidate = search.space.suggest(trial, len(search.index.classes))
                card = student_card(candidate.spec, search.index.classes, search.config.data.fit)
                params = profile(candidate.spec).params
                timings = timer.time(candidate.spec, card, search.config.seed)
            except (SpecError, ExportError, LatencyError):  # ours passes over it too
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            best, over = best_form(search.config, timings, params)
            curve: list[float] = []
            if filtered and over["latency"] > 0:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                fit = search.trainer.train(candidate, "", lambda epoch: None, trial.params)
                curve = [e.f1_macro for e in fit.history]
                study.tell(trial, [max(curve), best.p90_ms, params])
            now = time.perf_counter()
            became = "trained" if curve else "rejected"
            rows.append(
                Row(now - began, now - start, became, over["latency"], best.p90_ms, params, curve, trial.params)
            )
    return rows


def ours(search: Search) -> list[Row]:
    with candidate_timer(search.config, search.folder, LOCAL) as timer:
        study, began = search.open(), time.time()
        run_search(search, timer)
    rows = []
    for t in own_trials(study):
        if (became := fate(t)) is None:
            continue
        a, end = t.user_attrs, t.datetime_complete
        assert end is not None and t.duration is not None
        curve = a.get("f1_by_epoch", [])
        rows.append(
            Row(
                end.timestamp() - began,
                t.duration.total_seconds(),
                became,
                a["over_limit"]["latency"],
                a["latency_ms"],
                a[DETAILS]["params"],
                curve,
                t.params,
                a[DETAILS]["measure_s"],
            )
        )
    return sorted(rows, key=lambda r: r.end_s)


def again(search: Search, rows: list[Row], minutes: float) -> list[float]:
    """Macro F1 of the candidate with the best one under the limit, with other seeds."""
    kept = under_the_limit(rows, search.config.latency.limit_ms, minutes)
    if not kept:
        return []
    best = max(kept, key=lambda r: max(r.f1_by_epoch))
    candidate = search.space.suggest(optuna.trial.FixedTrial(best.parameters), len(search.index.classes))
    return [round(search.trainer.repeated(candidate, 1000 + n, ""), 4) for n in range(AGAIN)]


def arm(
    name: str, seed: int, args: argparse.Namespace, folder: Path, controls: dict[str, str]
) -> tuple[list[Row], list[float]]:
    config = check_config(
        {
            "seed": seed,
            "data": {"root": str(args.data)},
            "latency": {"limit_ms": args.limit_ms},
            "student": {"weights": args.weights or "none"},
            "search": {
                **({"sampler": name.partition(":")[2]} if ":" in name else {}),
                "space": args.space,
                "trials": 100_000,
                "max_asked": 100_000,
                "max_minutes": args.minutes,
                "epochs": args.epochs,
                "subset": args.subset,
            },
            "select": {"input_size": None},
        },
        "the benchmark",
    )
    work = folder / f"{args.space}-{seed}-{name}"
    shutil.rmtree(work, ignore_errors=True)  # half an arm is none
    work.mkdir(parents=True)
    (work / ".cache").symlink_to(folder / ".cache")  # decoded once for all arms, before the first begins
    run = Run(work, config, lambda text: print(f"  {text}", flush=True))
    perform(DATA, run)
    search = open_search(run)
    measurements = search.folder / "measurements"
    measurements.mkdir(parents=True)
    for file, text in controls.items():  # all arms of a seed count in the same milliseconds
        (measurements / file).write_text(text)
    for size in search.space.input_sizes:
        load_arrays(run, search.index, size, Normalisation((0.0,) * 3, (1.0,) * 3))
    rows = ours(search) if name.startswith("ours") else baseline(search, name == "filter", seed, args.minutes)
    controls |= {file.name: file.read_text() for file in measurements.glob("control-*")}
    return rows, again(search, rows, args.minutes)


def under_the_limit(rows: list[Row], limit_ms: float, minutes: float) -> list[Row]:
    """Trained to the end, and in time."""
    return [r for r in rows if r.end_s <= 60 * minutes and r.fate == "trained" and r.latency_ms <= limit_ms]


def figures(rows: list[Row], repeated: list[float], limit_ms: float, minutes: float) -> dict[str, float]:
    kept = [(max(r.f1_by_epoch), r.latency_ms) for r in under_the_limit(rows, limit_ms, minutes)]
    rows = [r for r in rows if r.end_s <= 60 * minutes]
    spent = sum(r.seconds for r in rows)
    return {
        "asked": len(rows),
        "trained": sum(bool(r.f1_by_epoch) for r in rows),
        "over-limit trainings": sum(r.over > 0 and bool(r.f1_by_epoch) for r in rows),
        "share of time over the limit": sum(r.seconds for r in rows if r.over > 0) / max(spent, 1e-9),
        "best F1 under the limit": max((f1 for f1, _ in kept), default=0.0),
        "the same, trained again": mean(repeated) if repeated else 0.0,
        "hypervolume": hypervolume(kept, limit_ms),
    }


def reached_s(rows: list[Row], f1: float) -> float | None:
    """When a search first had a candidate that is as good. rows: `under_the_limit`."""
    return min((r.end_s for r in rows if max(r.f1_by_epoch) >= f1), default=None)


def interval(values: list[float]) -> str:
    """Mean and 95 % interval of Student's t over the seeds."""
    if len(values) < 2 or not np.ptp(values):
        return f"{mean(values):.4g}"
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval()
    return f"{mean(values):.4g} ({low:.4g} to {high:.4g})"


def show(
    done: dict[str, dict[str, list[Row]]], repeated: dict[str, dict[str, list[float]]], limit_ms: float, minutes: float
) -> dict[str, Any]:
    """Over the seeds of which every arm that any has is there."""
    names = list(dict.fromkeys(a for arms in done.values() for a in arms))
    seeds = [s for s, arms in done.items() if set(arms) == set(names)]
    if not seeds:
        return {}
    found = {a: [figures(done[s][a], repeated[s][a], limit_ms, minutes) for s in seeds] for a in names}
    print(f"\n{len(seeds)} seeds, {minutes:g} minutes an arm, limit {limit_ms:g} ms; mean (95 % over the seeds)")
    for key in next(iter(found.values()))[0]:
        print(f"{key}:")
        for name, rows in found.items():
            print(f"    {name:10} {interval([f[key] for f in rows])}")
    differences, share = {}, {}
    for own in (a for a in names if a.startswith("ours")):
        for other in (a for a in names if not a.startswith("ours")):
            for key in ("best F1 under the limit", "the same, trained again", "hypervolume"):
                gain = [o[key] - b[key] for o, b in zip(found[own], found[other], strict=True)]
                differences[f"{own} - {other}: {key}"] = gain
                print(f"{own} - {other}, {key}: {interval(gain)}")
            best = [f["best F1 under the limit"] for f in found[other]]
            own_rows = [under_the_limit(done[s][own], limit_ms, minutes) for s in seeds]
            after = [reached_s(rows, f1) for rows, f1 in zip(own_rows, best, strict=True)]
            times = [s and round(s / (60 * minutes), 3) for s in after]
            share[f"{own}: {other}"] = times
            print(f"share of the time after which {own} has the best F1 of {other} (None: not in time): {times}")
    return {"figures": found, "differences": differences, "share_of_time_to_the_others_best": share}


def show_stopping(done: dict[str, dict[str, list[Row]]], epochs: int) -> dict[str, Any]:
    """What `search.stop` as it is by default would have done to the studies that trained everything to the end."""
    rule, found = Stop(), []
    for arms in done.values():
        for rows in (rows for name, rows in arms.items() if not name.startswith("ours")):
            whole = [Curve(r.latency_ms, tuple(r.f1_by_epoch)) for r in rows if len(r.f1_by_epoch) == epochs]
            if not whole:
                continue
            points, past = [(max(c.f1), c.latency_ms) for c in whole], replay(whole, epochs, rule)
            kept, slowest = [p for i, p in enumerate(points) if i not in past.stopped], max(ms for _, ms in points)
            found.append(
                {
                    "trained": len(whole),
                    "stopped": len(past.stopped),
                    "epochs_saved": past.epochs_saved / past.epochs,
                    "best_f1_missed": max(points)[0] - max(kept)[0],
                    "hypervolume_missed": 1 - hypervolume(kept, slowest) / hypervolume(points, slowest),
                }
            )
    print(f"\nearly stopping ({rule}), replayed on {len(found)} studies in which all were trained to the end:")
    for key in found[0] if found else ():
        print(f"    {key:20} {', '.join(f'{f[key]:.3g}' for f in found)}")
    return {"rule": rule.model_dump(), "studies": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--space", default="cpu")
    parser.add_argument("--weights", help="of a network that a space begins with")
    parser.add_argument("--limit-ms", type=float, default=0.4)
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--seeds", nargs="+", default=["1", "2", "3", "4", "5"])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--subset", type=float, default=0.5)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    host = this_host()
    recipe = {k: getattr(args, k) for k in ("space", "weights", "limit_ms", "minutes", "epochs", "subset")}
    recipe["weights"] = recipe["weights"] and Path(recipe["weights"]).name
    record: dict[str, Any] = json.loads(args.output.read_text()) if args.output.is_file() else {}
    space = record.setdefault(args.space, {"recipe": recipe, "hosts": {}, "controls": {}, "rows": {}, "again": {}})
    if space["recipe"] != recipe:
        sys.exit(f"{args.output}: has another recipe for {args.space}, {space['recipe']}; give another --output")
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / ".cache").mkdir()
        for seed in args.seeds:
            rows, repeated = space["rows"].setdefault(seed, {}), space["again"].setdefault(seed, {})
            if space["hosts"].setdefault(seed, host.as_dict())["key"] != host.key and set(rows) < set(args.arms):
                sys.exit(
                    f"{args.output}: seed {seed} was begun on another host, and arms of two do not pair; give others"
                )
            controls = space["controls"].setdefault(seed, {})
            turn = int(seed) % len(args.arms)
            for name in [*args.arms[turn:], *args.arms[:turn]]:
                if name not in rows:
                    print(f"{args.space}, seed {seed}, {name}", flush=True)
                    found, repeated[name] = arm(name, int(seed), args, Path(scratch), controls)
                    rows[name] = [rounded(r) for r in found]
                    write_text(args.output, laid_out(record) + "\n")
    done = {s: {a: [Row(**r) for r in rows] for a, rows in space["rows"][s].items()} for s in args.seeds}
    space["summary"] = show(done, space["again"], args.limit_ms, args.minutes)
    space["stopping"] = show_stopping(done, args.epochs)
    write_text(args.output, laid_out(record) + "\n")


def laid_out(value: Any, depth: int = DEPTH) -> str:
    """As JSON."""
    if not depth or not value or not isinstance(value, dict | list):
        return json.dumps(value)
    if isinstance(value, dict):
        lines, (begin, end) = [f"{json.dumps(k)}: {laid_out(v, depth - 1)}" for k, v in value.items()], "{}"
    else:
        lines, (begin, end) = [laid_out(v, depth - 1) for v in value], "[]"
    margin = "\n" + " " * (DEPTH - depth)
    return begin + ",".join(f"{margin} {line}" for line in lines) + margin + end


def rounded(row: Row) -> dict[str, Any]:
    values = asdict(row) | {"f1_by_epoch": [round(f, 4) for f in row.f1_by_epoch]}
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}


if __name__ == "__main__":
    main()
