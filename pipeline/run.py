"""The main job: every stage to a verdict, and result.json."""

from typing import Any

from pipeline import FORMAT, distill, find, precheck, race, search_stage, select, ship, teach
from pipeline.errors import NoCandidate, PipelineError
from pipeline.files import write_json
from pipeline.stages import Done, Run, Stage, current, perform

STAGES: tuple[Stage, ...] = (
    find.DATA,
    search_stage.SEARCH,
    select.SELECT,
    teach.TEACH,
    distill.DISTILL,
    ship.EXPORT,
    ship.QUANTIZE,
    race.VERIFY,
    ship.GATE,
    ship.BUNDLE,
    ship.PREFLIGHT,
)


_FIRST: dict[str, tuple[Stage, ...]] = {"search": (find.DATA,)}
_FIRST_OF_NAMED = {
    "select": (find.DATA,),
    "teach": (find.DATA, select.SELECT),
    "distill": (find.DATA, select.SELECT),
}
"""What takes seconds is part of a user's first step: the data, and the choice of an architecture that is named."""
_UNWANTED = {
    "search": "the config names an architecture (student.model), so there is nothing to search",
    "teach": "the config asks for no teacher (distill.weight is 0)",
}


def run_all(run: Run) -> dict[str, Any]:
    """Every stage that is not current, in order, until a verdict; what result.json holds."""
    precheck.check_before(run)
    done: list[Done] = []
    reasons: list[str] = []
    for stage in STAGES:
        if not stage.wanted(run.config):
            continue
        try:
            done.append(perform(stage, run))
        except NoCandidate as error:
            reasons = [str(error)]
            break
        if stage is find.DATA and teach.TEACH.wanted(run.config):
            teach.check_origin(run)
        if stage is ship.GATE and done[-1].summary["verdict"] != "pass":
            reasons = done[-1].summary["reasons"]
            break
    result = _result(run, done, reasons)
    write_json(run.folder / "result.json", result)
    return result


def run_one(name: str, run: Run) -> Done:
    """One stage alone. Raises PipelineError naming the stage that must come first."""
    by_name = {s.name: s for s in STAGES}
    stage = by_name[name]
    if not stage.wanted(run.config):
        raise PipelineError(f"{name}: {_UNWANTED[name]}")
    if name == "search":
        precheck.check_students(run)
    for quick in (_FIRST_OF_NAMED if run.config.student.model else _FIRST).get(name, ()):
        perform(quick, run)
    for first in stage.needs:
        if by_name[first].wanted(run.config):
            need(name, first, run)
    return perform(stage, run)


def need(what: str, first: str, run: Run) -> None:
    """Raises PipelineError where the stage `first`, which `what` stands on, is missing or out of date."""
    stage, command = next(s for s in STAGES if s.name == first), f"`edgebuild {_command(first)} --run-dir {run.folder}`"
    if run.manifest(first) is None:
        raise PipelineError(f"{what}: needs the stage {first} first: {command}")
    if current(stage, run) is None:
        raise PipelineError(f"{what}: the stage {first} is out of date, its config or input has changed: {command}")


def _command(stage: str) -> str:
    return "search" if stage == "data" else stage


def _result(run: Run, done: list[Done], reasons: list[str]) -> dict[str, Any]:
    finished = {d.name: d.summary for d in done}
    search = finished.get("search", {})
    result: dict[str, Any] = {
        "format": FORMAT,
        "verdict": "fail",
        "reasons": reasons,
        "model": None,
        "latency": None,
        "quality": None,
        "submission": None,
        "search": {k: search.get(k, 0) for k in ("asked", "rejected_untrained", "trained", "over_limit_trained")},
        "stages": [{"name": d.name, "seconds": d.seconds, "skipped": d.skipped} for d in done],
        "host": run.host.as_dict(),
        "bundle": finished.get("bundle"),
        "preflight": finished.get("preflight"),
    }
    if "gate" in finished:
        judged = finished["gate"]
        result |= {
            "verdict": judged["verdict"],
            "model": ship.model_facts(run),
            "latency": judged["latency"],
            "quality": finished["verify"]["quality"],
            "submission": judged["submission"],
        }
    rehearsed = finished.get("preflight")
    if rehearsed and _binding(run, rehearsed["verdict"]):
        result |= {"verdict": rehearsed["verdict"], "reasons": [f"preflight: {r}" for r in rehearsed["reasons"]]}
    return result


def _binding(run: Run, verdict: str) -> bool:
    """A failed rehearsal always counts; one that could not tell (no sandbox here) where limits were asked for."""
    asked = any(value is not None for value in run.config.preflight.model_dump().values())
    return verdict == "fail" or (verdict == "inconclusive" and asked)
