"""The best of a search, looked at again: timed in every form that can ship, the fastest of these in fresh processes, in
turn, and trained with further seeds if asked.

The fastest of 200 measured at 2 % noise flatters itself by about 5 %, and one timing in a warm process is within 15 %
of what fresh processes take at rest: what is chosen shall keep the limit in a process of its own, as the gate will time
it.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

from export.all_in import PARTS, measure_all_in
from export.artifact import Artifact
from export.preprocess import Preprocess
from latency.measure import measure
from models.spec import ModelSpec
from pipeline.data.stage import load_index
from pipeline.files import read_json, write_json
from pipeline.rest import p90s_at_rest_ms
from pipeline.search.basis import candidate_timer, open_search
from pipeline.search.choose import Row
from pipeline.search.limits import best_form
from pipeline.search.measured import Form, Timing, write_form
from pipeline.search.score import score
from pipeline.search.short import candidate_of
from pipeline.show.live import bar
from pipeline.stages import Run
from pipeline.training.checkpoint import student_card

Trial = dict[str, Any]
"""As `pipeline.search.tally.summary` has it."""


@dataclass(frozen=True)
class Again:
    """form: the fastest in which it can ship. p90_ms: at rest, by fresh processes, of which p90s_ms are as they were
    timed; macro F1 by seed, that of the search first."""

    form: str
    size_bytes: int
    p90_ms: float
    p90s_ms: tuple[float, ...]
    f1_by_seed: tuple[float, ...]

    def of(self, row: Row) -> Row:
        # It became a finalist by its first F1, which flatters it; the further seeds do not know of that.
        f1_macro = mean(self.f1_by_seed[1:] or self.f1_by_seed)
        return replace(row, latency_ms=self.p90_ms, f1_macro=f1_macro, processes=len(self.p90s_ms))


def look_again(run: Run, trials: Sequence[Trial], work: Path) -> dict[int, Again]:
    """By trial. The measurements are added to `work`/measurements.json. Raises LatencyError, ExportError."""
    select, limit_ms = run.config.select, run.config.latency.limit_ms
    best = _best_forms(run, trials)
    with tempfile.TemporaryDirectory() as folder:
        subjects = [
            _artifact(run, t, best[t["trial"]].form, Path(folder)).subject(run.config.latency.threads) for t in trials
        ]
        with bar("timing the finalists in turn") as tick:
            found = measure(subjects, select.processes, machine=run.machine, tick=tick)
    again = {}
    for trial, measured, p90_ms in zip(trials, found, p90s_at_rest_ms(run, found), strict=True):
        timing = best[trial["trial"]]
        as_timed = median(measured.p90s_ms)
        run.say(
            f"select: trial {trial['trial']}: p90 {p90_ms:.3f} ms at rest ({timing.form}), by {select.processes} fresh "
            f"processes, {as_timed:.3f} as timed ({trial['latency_ms']:.3f} while searching)"
        )
        more = _more_seeds(run, trial) if p90_ms <= limit_ms else []
        f1_by_seed = (trial["f1_macro"], *more)
        again[trial["trial"]] = Again(timing.form, timing.size_bytes, p90_ms, tuple(measured.p90s_ms), f1_by_seed)
        if more:
            run.say(f"select: trial {trial['trial']}: F1 {trial['f1_macro']:.4f}, other seeds {more}")
    path = work / "measurements.json"
    known = read_json(path) if path.is_file() else []
    write_json(path, [*known, *(m.as_dict() for m in found)])
    return again


def _best_forms(run: Run, trials: Sequence[Trial]) -> dict[int, Timing]:
    """Of every form that can ship: a search times only those that won for its first candidates."""
    found = {}
    with candidate_timer(run.config, run.folder / "study", run.machine, all_forms=True) as timer:
        for trial in trials:
            spec = ModelSpec.parse(trial["spec"])
            card = student_card(spec, load_index(run).classes, run.config.data.fit)
            timings = timer.time(spec, card, run.config.seed)
            found[trial["trial"]], _ = best_form(run.config, timings, trial["params"])
    return found


def _artifact(run: Run, trial: Trial, form: str, folder: Path) -> Artifact:
    spec = ModelSpec.parse(trial["spec"])
    card = student_card(spec, load_index(run).classes, run.config.data.fit)
    place = folder / str(trial["trial"])
    place.mkdir()
    return write_form(spec, card, run.config.seed, Form(*form.split("-")), place / "model.onnx", run.host)


def _more_seeds(run: Run, trial: Trial) -> list[float]:
    if run.config.select.seeds == 1:
        return []
    trainer = open_search(run).trainer
    candidate = candidate_of(trial)
    seeds = range(run.config.seed + 1, run.config.seed + run.config.select.seeds)
    return [trainer.repeated(candidate, seed, f"select: trial {trial['trial']}, seed {seed}") for seed in seeds]


def handling_ms(run: Run, trials: Sequence[Trial]) -> dict[int, float]:
    """By input size: what a photo of val/ costs before it is inferred (read, decode, resize), mean, on the target."""
    index = load_index(run)
    found: dict[int, float] = {}
    for trial in trials:
        size = trial["input_size"]
        if size not in found:
            with tempfile.TemporaryDirectory() as folder:
                artifact = _artifact(run, trial, trial["form"], Path(folder))
                preprocess = Preprocess(size, run.config.data.fit)
                photos, threads = index.paths("val"), run.config.latency.threads
                all_in = measure_all_in(artifact, preprocess, photos, threads, run.machine).summary()
            found[size] = sum(all_in["parts"][p]["mean_ms"] for p in PARTS if p != "infer")
    return found


def submission(run: Run, row: Row, handling: dict[int, float]) -> dict[str, Any]:
    """What a submission of so many images is reckoned to take, by p90 and so rather too long, and its score."""
    asked = run.config.submission
    if asked.images is None:
        return {}
    seconds = asked.images * (handling[row.input_size] + row.latency_ms) / 1e3
    return {
        "submission_s": seconds,
        **({"score": score(row.f1_macro, seconds, asked.score)} if asked.score else {}),
    }
