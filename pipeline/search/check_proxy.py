"""Is the short training of a search a fair judge? Some of its candidates are trained in full, and the ranks compared.

`edgebuild search --check-proxy N`, of those that were not stopped early. In full: `distill.epochs` on all of train/,
with the labels alone, so that what is compared is the length. How far repeated short trainings of one candidate differ
says how much of a rank is luck.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
from scipy import stats

from pipeline import FORMAT
from pipeline.errors import PipelineError
from pipeline.files import write_json
from pipeline.search.basis import open_search
from pipeline.search.short import candidate_of
from pipeline.search.tally import TRAINED
from pipeline.stages import Run

_REPEATED, _SEEDS = 3, 3
"""Short trainings are repeated for so many candidates, with so many further seeds each."""


@dataclass(frozen=True)
class Rank:
    """Spearman's correlation of ranks, with its 95 % interval, and Kendall's tau."""

    spearman: float
    low: float
    high: float
    kendall: float


def rank_correlation(short: Sequence[float], full: Sequence[float]) -> Rank:
    """The interval by Fisher's z with the standard error of Bonett and Wright (Psychometrika 65, 2000, eq. 3):
    sqrt((1 + r^2 / 2) / (n - 3)). nan where all of one side are equal."""
    if min(np.ptp(short), np.ptp(full)) == 0:
        return Rank(math.nan, math.nan, math.nan, math.nan)
    r = float(stats.spearmanr(short, full).statistic)
    tau = float(stats.kendalltau(short, full).statistic)
    z = math.atanh(min(max(r, -1 + 1e-9), 1 - 1e-9))
    half = stats.norm.ppf(0.975) * math.sqrt((1 + r**2 / 2) / (len(short) - 3))
    return Rank(r, min(r, math.tanh(z - half)), max(r, math.tanh(z + half)), tau)


def repeat_noise(repeats: Sequence[Sequence[float]]) -> float:
    """Standard deviation of F1 between trainings of one candidate with different seeds, pooled over candidates."""
    return math.sqrt(fmean(float(np.var(r, ddof=1)) for r in repeats))


def check_proxy(run: Run, count: int) -> dict[str, Any]:
    """count: 5 at the least, for fewer pairs have no interval to speak of. Raises PipelineError where fewer were
    trained. What was trained is kept, so a killed check goes on."""
    result, trainer = run.read("search", "trials.json"), open_search(run).trainer
    distinct = {t["training"]: t for t in result["trials"] if t["state"] == TRAINED}
    trained = sorted(distinct.values(), key=lambda t: -t["f1_macro"])
    if len(trained) < count:
        raise PipelineError(
            f"--check-proxy {count}: the search trained {len(trained)} different candidates to their end: raise "
            "search.trials, or check fewer"
        )
    # Evenly over the ranks, the best and the worst included: the best alone would say nothing of the order of the rest.
    chosen = [trained[round(i * (len(trained) - 1) / (count - 1))] for i in range(count)]
    epochs = run.config.distill.epochs
    pairs = []
    for i, t in enumerate(chosen, 1):
        name = f"check {i} of {count}: trial {t['trial']}, {epochs} epochs"
        full = trainer.at_length(candidate_of(t), epochs, name)
        pairs.append({"trial": t["trial"], "short": t["f1_macro"], "full": full})
        run.say(f"{name}: F1 {full:.4f}, {t['f1_macro']:.4f} after the short training")
    repeats = []
    for t in [chosen[round(i * (count - 1) / (_REPEATED - 1))] for i in range(_REPEATED)]:
        seeds = range(run.config.seed + 1, run.config.seed + 1 + _SEEDS)
        names = [f"check: trial {t['trial']} again, seed {s}" for s in seeds]
        again = [trainer.repeated(candidate_of(t), s, n) for s, n in zip(seeds, names, strict=True)]
        repeats.append({"trial": t["trial"], "f1_by_seed": [t["f1_macro"], *again]})
    rank = rank_correlation([p["short"] for p in pairs], [p["full"] for p in pairs])
    found = {
        "format": FORMAT,
        "study": result["study"],
        "short_epochs": run.config.search.epochs,
        "short_subset": run.config.search.subset,
        "full_epochs": epochs,
        "pairs": pairs,
        "rank": {k: v if math.isfinite(v) else None for k, v in asdict(rank).items()},
        "repeats": repeats,
        # By the search's own F1 they were chosen, as the best and the worst, so it is no fair draw.
        "repeat_sd": repeat_noise([r["f1_by_seed"][1:] for r in repeats]),
        "short_sd_between_candidates": float(np.std([p["short"] for p in pairs], ddof=1)),
    }
    write_json(run.folder / "study" / "proxy.json", found)
    return found
