"""The stage `search`: by this process alone, or by a crew."""

from pathlib import Path
from typing import Any

from pipeline import FORMAT
from pipeline.files import write_json
from pipeline.passwords import without_password
from pipeline.search.basis import candidate_timer, open_search, trials_of
from pipeline.search.insight import importances_by_objective
from pipeline.search.loop import run_search
from pipeline.search.together import search_together
from pipeline.stages import Crew, Run, Stage


def _inputs(run: Run) -> dict[str, Any]:
    search, opened = run.config.search, open_search(run)
    return {
        "study": opened.study_name,
        "meaning": opened.meaning,
        "storage": search.storage and without_password(search.storage),
        "sampler": search.sampler,
        "start": search.start,
        "trials": search.trials,
        "max_asked": search.max_asked,
        "max_minutes": search.max_minutes,
    }


def _search(run: Run, work: Path) -> dict[str, Any]:
    if run.crew == Crew():
        search = open_search(run)
        with candidate_timer(run.config, run.folder / "study", run.machine) as timer:
            result = run_search(search, timer)
    else:
        result = search_together(run)
    shares = importances_by_objective(trials_of(run, result["study"]))
    write_json(work / "trials.json", {"format": FORMAT, **result, "importances": shares})
    return {k: v for k, v in result.items() if k != "trials"}


SEARCH = Stage("search", ("data",), _inputs, _search, resumes=True, wanted=lambda c: c.student.model is None)
