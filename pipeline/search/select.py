"""The stage `select`: one architecture, by the rule, of those that were trained, after the best were measured again."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

from models.build import profile
from models.documents import dump_yaml
from models.space import Hyper
from models.spec import ModelSpec
from pipeline import FORMAT
from pipeline.attempts import SetAside, read_attempts
from pipeline.data.stage import load_index
from pipeline.errors import NoCandidate
from pipeline.search.basis import candidate_timer
from pipeline.search.choose import Row, Rule, by_the_rule, choose, keeps, pareto
from pipeline.search.finalists import Again, handling_ms, look_again, submission
from pipeline.search.limits import best_form, told_over
from pipeline.search.tally import TRAINED, nearest_miss
from pipeline.stages import Run, Stage
from pipeline.training.checkpoint import is_pretrained, student_card


def _rule(run: Run, aside: Sequence[SetAside]) -> Rule:
    select = run.config.select
    return Rule(
        run.config.latency.limit_ms,
        select.f1_floor,
        select.f1_band,
        select.latency_band,
        select.input_size,
        {a.trial: a.reason for a in aside},
        max((a.slower for a in aside), default=1.0),
    )


def _inputs(run: Run) -> dict[str, Any]:
    if run.config.student.model:
        return {
            "model": _named(run).document(),
            "hyper": _named_hyper(run).as_dict(),
            "latency": run.config.latency.model_dump(),
            "measure": run.config.search.measure,
            "limits": run.config.limits.model_dump(),
            "host": run.host.key,
            "classes": load_index(run).classes,
        }
    return {
        "trials": run.output_hash("search", "trials.json"),
        "select": run.config.select.model_dump(),
        "limit_ms": run.config.latency.limit_ms,
        "latency": "at rest",
        "submission": run.config.submission.model_dump(),
        "host": run.host.key,
        **({"aside": [asdict(a) for a in aside]} if (aside := read_attempts(run).aside) else {}),
    }


def _select(run: Run, work: Path) -> dict[str, Any]:
    return _select_named(run, work) if run.config.student.model else _select_found(run, work)


# --- an architecture that the config names ---------------------------------------------------------------------------


def _named(run: Run) -> ModelSpec:
    return ModelSpec.load(run.config.student.model or "").with_classes(len(load_index(run).classes))


def _named_hyper(run: Run) -> Hyper:
    student = run.config.student
    usual = 3e-4 if is_pretrained(_named(run), student.weights) else 3e-3
    return Hyper(student.optimizer, student.learning_rate or usual, student.batch, student.n_select)


def _select_named(run: Run, work: Path) -> dict[str, Any]:
    """Measured like any other."""
    spec, limit_ms = _named(run), run.config.latency.limit_ms
    shape = profile(spec)
    card = student_card(spec, load_index(run).classes, run.config.data.fit)
    with candidate_timer(run.config, run.folder / "study", run.machine) as timer:
        best, over = best_form(run.config, timer.time(spec, card, run.config.seed), shape.params)
    told = f"{run.config.student.model}: p90 {best.p90_ms:.3f} ms ({best.form})"
    if over["latency"] > 0:
        raise NoCandidate(f"{told} is over the limit of {limit_ms:g} ms; raise latency.limit_ms, or name a smaller one")
    if max(over.values()) > 0:
        raise NoCandidate(f"{told}: {told_over(over)}; raise it (limits), or name a smaller one")
    run.say(f"select: {told}, {shape.params} parameters")
    measurement = {
        "latency_ms": best.p90_ms,
        "form": best.form,
        "params": shape.params,
        "macs": shape.macs,
        "host": run.host.key,
    }
    student = {
        "format": FORMAT,
        "trial": None,
        "chosen_by": "config",
        "measurement": measurement,
        "hyper": _named_hyper(run).as_dict(),
        "model": spec.document(),
    }
    _write_student(work, student)
    path = "select/student.yaml"
    return {"trial": None, "student": path, "measurement": measurement, "table": []}


# --- one that the search found ---------------------------------------------------------------------------------------


def _select_found(run: Run, work: Path) -> dict[str, Any]:
    result, rule = run.read("search", "trials.json"), _rule(run, read_attempts(run).aside)
    # One network that was drawn several times is one candidate, by its first trial.
    by_training = {t["training"]: t for t in reversed(result["trials"]) if t["state"] == TRAINED}
    trials = {t["trial"]: t for t in sorted(by_training.values(), key=lambda t: t["trial"])}
    asked = [t for t in result["trials"] if t["trial"] == run.config.select.trial and t["state"] == TRAINED]
    wanted = by_training[asked[0]["training"]]["trial"] if asked else run.config.select.trial
    if not trials:
        raise NoCandidate(
            f"no candidate keeps the limit: {nearest_miss(result['trials'], result['limit_ms'])}; raise "
            "latency.limit_ms, or search a space of smaller networks or inputs (search.space, search.input_sizes)"
        )
    rows = [Row(t["trial"], t["f1_macro"], t["latency_ms"], t["params"], t["input_size"]) for t in trials.values()]
    hopeful = [_hopeful(r, trials[r.trial], rule) for r in rows]
    first, table = choose(hopeful, rule, wanted)
    again = _finalists(run, rule, trials, hopeful, first, work)
    finalists = [again[r.trial].of(r) for r in rows if r.trial in again]
    chosen, compared = choose(finalists, rule, wanted)
    reasons = {r.trial: r for r in compared}
    behind = f"by the rule behind the {len(finalists)} that were measured again"
    if wanted is not None:
        behind = f"trial {wanted} was asked for (select.trial)"
    seen = {r.trial: r.latency_ms for r in rows}
    shown = [reasons.get(r.trial) or replace(r, latency_ms=seen[r.trial], reason=r.reason or behind) for r in table]
    handling = handling_ms(run, list(trials.values())) if run.config.submission.images else {}
    front = pareto(rows)
    trial, looked = trials[chosen.trial], again[chosen.trial]
    student = {
        "format": FORMAT,
        "trial": chosen.trial,
        "study": result["study"],
        "chosen_by": "rule" if wanted is None else "person",
        "rule": run.config.select.model_dump(exclude={"trial"}) | {"limit_ms": run.config.latency.limit_ms},
        "measurement": {
            "f1_macro": chosen.f1_macro,
            "f1_by_seed": list(looked.f1_by_seed),
            "latency_ms": chosen.latency_ms,
            "p90s_ms": list(looked.p90s_ms),
            "while_searching_ms": trial["latency_ms"],
            "form": looked.form,
            "size_bytes": looked.size_bytes,
            **{k: trial[k] for k in ("params", "macs")},
            "host": run.host.key,
        },
        "hyper": trial["hyper"],
        "model": trial["spec"],
    }
    _write_student(work, student)
    return {
        "trial": chosen.trial,
        "latency_ms": chosen.latency_ms,
        "student": "select/student.yaml",
        "table": [
            {
                **asdict(row),
                "pareto": row.trial in front,
                "size_bytes": trials[row.trial]["size_bytes"],
                "form": trials[row.trial]["form"],
                **submission(run, row, handling),
            }
            for row in sorted(shown, key=lambda r: (-r.f1_macro, r.trial))
        ],
    }


def is_another(run: Run, aside: Sequence[SetAside]) -> bool:
    """Whether the rule leaves a candidate once these are set aside, as far as the last choice can tell."""
    manifest = run.manifest("select")
    keys = ("trial", "f1_macro", "latency_ms", "params", "input_size")
    rows = [Row(**{k: r[k] for k in keys}) for r in manifest["summary"]["table"]] if manifest else []
    return any(keeps(r, _rule(run, aside)) for r in rows)


def _hopeful(row: Row, trial: dict[str, Any], rule: Rule) -> Row:
    """A near miss, as if it kept the limit: it may, when it is timed again."""
    return replace(row, latency_ms=min(row.latency_ms, rule.limit_ms)) if trial["over_limit"]["latency"] <= 0 else row


def _finalists(
    run: Run, rule: Rule, trials: dict[int, Any], rows: list[Row], first: Row, work: Path
) -> dict[int, Again]:
    """As many as asked for that keep the rule after they were measured again, and those that did not, in the order of
    the rule. Those that are compared are timed in turn: where one drops out, the others again with its successor."""
    select = run.config.select
    if select.trial is not None:
        return look_again(run, [trials[first.trial]], work)
    order, again = by_the_rule(rows, rule), dict[int, Again]()
    kept: list[Row] = []
    while missing := list(islice(order, select.finalists - len(kept))):
        asked = kept + missing
        again |= look_again(run, [trials[r.trial] for r in asked], work)
        kept = [r for r in asked if keeps(again[r.trial].of(r), rule)]
    return again


def _write_student(work: Path, student: dict[str, Any]) -> None:
    (work / "student.yaml").write_text(dump_yaml(student, default_flow_style=None))


SELECT = Stage("select", ("data", "search"), _inputs, _select)
