"""The main job: every stage to a verdict, result.json and the report."""

import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latency.errors import LatencyError
from models.language import SpecError, canonical_hash
from pipeline import FORMAT, precheck
from pipeline.attempts import SetAside, read_attempts, set_aside, take_back
from pipeline.config import DRAWN
from pipeline.data.stage import DATA
from pipeline.errors import NoCandidate, PipelineError
from pipeline.files import read_record, seal, write_json
from pipeline.search.basis import open_search, trials_of
from pipeline.search.insight import importances_by_objective
from pipeline.search.select import SELECT, is_another
from pipeline.search.stage import SEARCH
from pipeline.search.tally import rows_of
from pipeline.ship import stages as ship
from pipeline.ship.gate import GATE
from pipeline.ship.race import VERIFY
from pipeline.show.live import enter_stage
from pipeline.show.log import LOG, log
from pipeline.stages import RESULT, Done, Run, Stage, current, damage, key_of, perform
from pipeline.training import distill, teach

UNFINISHED = "unfinished"
_USED = 0.85
"""Under this share of the limit a larger candidate is proposed."""

STAGES: tuple[Stage, ...] = (
    DATA,
    SEARCH,
    SELECT,
    teach.TEACH,
    distill.DISTILL,
    ship.EXPORT,
    ship.QUANTIZE,
    VERIFY,
    GATE,
    ship.BUNDLE,
    ship.PREFLIGHT,
)


_FIRST: dict[str, tuple[Stage, ...]] = {"search": (DATA,)}
_FIRST_OF_NAMED = {
    "select": (DATA,),
    "teach": (DATA, SELECT),
    "distill": (DATA, SELECT),
}
"""What takes seconds is part of a user's first step: the data, and the choice of an architecture that is named."""
_UNWANTED = {
    "search": "the config names an architecture (student.model), so there is nothing to search",
    "teach": "the config asks for no teacher (distill.weight is 0)",
}


def run_all(run: Run) -> dict[str, Any]:
    """Every stage that is not current, in order, until a verdict; what result.json holds.

    Where no file of the chosen candidate passes the gate, it is set aside, and the stages from `select` on are done
    again for the next one: until one passes, none is left, or the time for it is over.
    """
    precheck.check_before(run)
    if (judged := run.manifest(GATE.name)) is None or not judged["final"]:
        for doubtful in take_back(run):
            run.say(f"select: trial {doubtful.trial} is tried again, for the host was disturbed when it was set aside")
    done: dict[str, Done] = {}
    reasons, began = _until_verdict(run, STAGES, done), time.monotonic()
    while reasons and GATE.name in done and (found := _next_aside(run, done, time.monotonic() - began)):
        set_aside(run, found)
        run.say(f"run: {found.reason}; on to the next candidate")
        before, again = dict(done), _until_verdict(run, STAGES[STAGES.index(SELECT) :], done)
        if done[SELECT.name] is before[SELECT.name]:  # none keeps the limit when it is timed again
            take_back(run, found)
            run.say(f"run: no other candidate keeps the limit: {'; '.join(again)}")
            break
        reasons = again
    result = _result(run, list(done.values()), reasons)
    write_json(run.folder / RESULT, result)
    try:
        report(run, result)
    except Exception:  # a picture of what happened must not cost a run its verdict
        log(run.folder, traceback.format_exc())
        run.say(
            f"report: it could not be written (why: {run.folder / LOG}); `edgebuild report --run-dir {run.folder}` "
            "tries again"
        )
    return result


def _until_verdict(run: Run, stages: Sequence[Stage], done: dict[str, Done]) -> list[str]:
    """Do these stages, in order, up to a verdict, and add them to `done`; why it is no pass, as far as the gate."""
    wanted = [s for s in STAGES if s.wanted(run.config)]
    for number, stage in enumerate(wanted, 1):
        if stage not in stages:
            continue
        enter_stage(f"{stage.name} ({number} of {len(wanted)})")
        try:
            done[stage.name] = perform(stage, run)
        except NoCandidate as error:
            return [str(error)]
        if stage is DATA and teach.TEACH.wanted(run.config):
            teach.check_origin(run)
        if stage is GATE and done[stage.name].summary["verdict"] != "pass":
            reasons: list[str] = done[stage.name].summary["reasons"]
            return reasons
    return []


def _next_aside(run: Run, done: dict[str, Done], passed_s: float) -> SetAside | None:
    """The chosen candidate, to be set aside for another; None where there is no other, or no time for it. passed_s:
    since the first gate."""
    trial, judged = done[SELECT.name].summary["trial"], done[GATE.name].summary
    if trial is None or run.config.select.trial is not None:
        return None
    found = SetAside(
        trial,
        max(1.0, judged["latency"]["p90_ms"] / done[SELECT.name].summary["latency_ms"]),
        judged["verdict"] == "fail",
        f"trial {trial} was set aside: the gate said {judged['verdict']}: {'; '.join(judged['reasons'])}",
    )
    if not is_another(run, (*read_attempts(run).aside, found)):
        run.say(
            f"run: {found.reason}; no other candidate is likely to pass if it, too, takes {found.slower:.2f} times as "
            "long as expected"
        )
        return None
    once_more = sum(done[s.name].seconds for s in STAGES[STAGES.index(SELECT) :] if s.name in done)
    if passed_s + once_more > 60 * run.config.gate.more_minutes:
        run.say(
            f"run: another candidate would take about {once_more / 60:.0f} min more; gate.more_minutes is "
            f"{run.config.gate.more_minutes:g}"
        )
        return None
    return found


def report(run: Run, result: dict[str, Any], pictures: bool = False) -> Path:
    """Write the report of a result, with pictures if asked; the path of its HTML. Raises EnvironmentProblem."""
    from pipeline.report.facts import gather  # plotly and the templates: a second that no other command needs
    from pipeline.report.write import write_report

    try:
        facts = gather(run, result, *_candidates(run, result))
    except (LookupError, TypeError, AttributeError, ValueError) as error:  # records whose digest was computed anew
        log(run.folder, traceback.format_exc())
        raise PipelineError(
            f"{run.folder}: its records are not as edgebuild writes them ({error!r:.200}; {LOG} says where): remove "
            f"that stage's folder, and `edgebuild run --run-dir {run.folder}` does it again"
        ) from error
    return write_report(run.folder, facts, pictures)


def standing(run: Run) -> dict[str, Any]:
    """What result.json holds, where it is of this config and these stages; else how far they have come, as the same
    record, its verdict `unfinished` before the gate."""
    harmed = [text for s in STAGES if (text := damage(s.name, run, gone_too=False))]
    path = run.folder / RESULT
    result = read_record(path, {"stages": list, "config": str})
    if path.is_file() and result is None:
        harmed.append(f"{RESULT} is damaged, or was edited")
    for text in harmed:
        run.say(f"report: {text}: it is not used")
    if result and not harmed and result["config"] == _config_hash(run) and _of_these_stages(result, run):
        if (manifest := run.manifest(DATA.name)) and not _belongs(DATA, manifest, run):
            run.say("report: the photos have changed since; this tells of those that there were")
        return result
    done: list[Done] = []
    reasons: list[str] = []
    for stage in (s for s in STAGES if s.wanted(run.config)):
        manifest = run.manifest(stage.name)
        wrong = damage(stage.name, run, gone_too=False)
        if wrong or manifest is None or not _belongs(stage, manifest, run):
            why = f"{wrong}; " if wrong else ""
            reasons = [f"not finished; {why}{stage.name} is next: `edgebuild run --run-dir {run.folder}`"]
            break
        done.append(Done(stage.name, manifest["key"], manifest["seconds"], True, manifest["summary"]))
        if stage is GATE and manifest["summary"]["verdict"] != "pass":
            reasons = manifest["summary"]["reasons"]
            break
    result = _result(run, done, reasons)
    return result if result["model"] else seal(result | {"verdict": UNFINISHED})


def _of_these_stages(result: dict[str, Any], run: Run) -> bool:
    return all((m := run.manifest(s["name"])) and m["key"] == s["key"] for s in result["stages"])


def _belongs(stage: Stage, manifest: dict[str, Any], run: Run) -> bool:
    """Whether a stage is of the config as it stands. What cannot be looked at any more (photos that were moved,
    weights, a board that is off) speaks against nothing."""
    if stage is DATA and not Path(run.config.data.root).is_dir() and run.config.data.root != DRAWN:
        return True
    try:
        return bool(manifest["key"] == key_of(stage, run)[0])
    except (PipelineError, LatencyError, SpecError) as error:
        run.say(f"{stage.name}: taken as it is: {error}")
        return True


def _candidates(run: Run, result: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(rows of the search, what each objective hangs on), of one that is under way too."""
    done = {s["name"] for s in result["stages"]}
    if "search" in done:
        found = run.read("search", "trials.json")
        return found["trials"], found.get("importances", {})
    begun = run.config.search.storage or (run.folder / "study" / "study.db").is_file()
    if not begun or "data" not in done or not SEARCH.wanted(run.config):
        return [], {}
    try:
        trials = trials_of(run, open_search(run).study_name)
    except (PipelineError, LatencyError, SpecError) as error:  # begun on another host, or its database is out of reach
        run.say(f"report: nothing of the search: {error}")
        return [], {}
    return rows_of(trials), importances_by_objective(trials)


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
    for first in _all_needs(stage, by_name):
        if by_name[first].wanted(run.config):
            need(name, first, run)
    enter_stage(name)
    return perform(stage, run)


def _all_needs(stage: Stage, by_name: dict[str, Stage]) -> list[str]:
    """The stages that it stands on, and those that they stand on, in order."""
    found = set(stage.needs)
    for earlier in reversed(STAGES):
        if earlier.name in found:
            found |= set(by_name[earlier.name].needs)
    return [s.name for s in STAGES if s.name in found]


def need(what: str, first: str, run: Run) -> None:
    """Raises PipelineError where the stage `first`, which `what` stands on, is missing or out of date."""
    stage, command = next(s for s in STAGES if s.name == first), f"`edgebuild {_command(first)} --run-dir {run.folder}`"
    if run.manifest(first) is None:
        raise PipelineError(f"{what}: needs the stage {first} first: {command}")
    if harmed := damage(first, run):
        raise PipelineError(f"{what}: {harmed}: `edgebuild run --run-dir {run.folder}` does the stage {first} again")
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
        "stages": [{"name": d.name, "seconds": d.seconds, "skipped": d.skipped, "key": d.key} for d in done],
        "config": _config_hash(run),
        "host": _host(run),
        "hint": None,
        "bundle": finished.get("bundle"),
        "preflight": finished.get("preflight"),
    }
    if "gate" in finished:
        judged = finished["gate"]
        result |= {
            "verdict": judged["verdict"],
            "model": ship.model_facts(run),
            "latency": judged["latency"],
            "quality": judged["quality"],
            "submission": judged["submission"],
        }
        result["hint"] = _hint(run, judged, finished.get("select", {}))
    rehearsed = finished.get("preflight")
    if rehearsed and _binding(run, rehearsed["verdict"]):
        result |= {"verdict": rehearsed["verdict"], "reasons": [f"preflight: {r}" for r in rehearsed["reasons"]]}
    return seal(result)


def _hint(run: Run, judged: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any] | None:
    """Where much of the limit is unused: a larger candidate that keeps it too, and how to try it."""
    upper_ms, limit_ms = judged["latency"]["p90_upper_ms"], run.config.latency.limit_ms
    if judged["verdict"] != "pass" or chosen.get("trial") is None or upper_ms > _USED * limit_ms:
        return None
    aside = {a["trial"] for a in judged["aside"]}
    larger = [
        row
        for row in chosen["table"]
        if chosen["latency_ms"] < row["latency_ms"] <= limit_ms and row["trial"] not in aside
    ]
    if not larger:
        return None
    best = max(larger, key=lambda row: (row["f1_macro"], -row["latency_ms"]))
    told = (
        f"{upper_ms / limit_ms:.0%} of the limit are used; trial {best['trial']}, which is larger, takes "
        f"{best['latency_ms']:.3f} ms and had macro F1 {best['f1_macro']:.4f} after its short training"
    )
    return {"told": told, "trial": best["trial"]}


def _config_hash(run: Run) -> str:
    return canonical_hash(run.config.model_dump(mode="json"))


def _host(run: Run) -> dict[str, Any]:
    """What times; where it cannot be reached, as the last gate saw it."""
    try:
        return run.host.as_dict()
    except LatencyError:
        if not run.has("gate", "measurement.json"):
            raise
        known: dict[str, Any] = run.read("gate", "measurement.json")["host"]
        return known


def _binding(run: Run, verdict: str) -> bool:
    """A failed rehearsal always counts; one that could not tell (no sandbox here) where limits were asked for."""
    asked = any(value is not None for value in run.config.preflight.model_dump().values())
    return verdict == "fail" or (verdict == "inconclusive" and asked)
