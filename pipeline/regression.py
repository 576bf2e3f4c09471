"""`edgebuild latency check` for several files: where head and base come from, and its reports."""

import contextlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any
from xml.etree import ElementTree

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from export.errors import first_problem
from latency.check import Check, check, check_stored
from latency.compare import SAME
from latency.errors import InputError
from latency.host import Host
from latency.machine import Machine
from latency.measure import Tick
from latency.records import Measurement, Subject
from pipeline.errors import EnvironmentProblem, PipelineError
from pipeline.files import read_json


@dataclass(frozen=True)
class Arm:
    """A file to check, and what against: a file to be timed with it, or a stored measurement."""

    name: str
    head: Subject
    base: Subject | Measurement


def check_arms(
    arms: Sequence[Arm], allowed: float, processes: int, machine: Machine, tick: Tick
) -> list[dict[str, Any]]:
    """One row an arm. Raises LatencyError."""
    rows = []
    for arm in arms:
        found: Check
        if isinstance(arm.base, Measurement):
            found, taken = check_stored(arm.head, arm.base, allowed, processes, machine, tick)
            base_hash = arm.base.subject.sha256
        else:
            found, taken = check(arm.head, arm.base, allowed, processes, machine, tick=tick)
            base_hash = arm.base.sha256
        rows.append(
            {
                "name": arm.name,
                "head_sha256": arm.head.sha256,
                "base_sha256": base_hash,
                **asdict(found),
                "measurements": [m.as_dict() for m in taken],
            }
        )
    return rows


def worst(rows: Sequence[dict[str, Any]]) -> str:
    verdicts = {row["verdict"] for row in rows}
    return next(v for v in ("fail", "inconclusive", "pass") if v in verdicts)


_Milliseconds = Annotated[list[Annotated[FiniteFloat, Field(ge=1e-6, le=1e9)]], Field(min_length=1)]
_Count = Annotated[int, Field(ge=1)]
_Samples = Annotated[int, Field(ge=1, le=100_000)]
_Seconds = Annotated[FiniteFloat, Field(ge=0, le=3600)]


class _StoredPart(BaseModel):
    model_config = ConfigDict(strict=True)


class _StoredRun(_StoredPart):
    samples_ms: _Milliseconds
    control_ms: _Milliseconds
    peak_mib: FiniteFloat
    effective_precision: str
    settings: dict[str, Any]
    clock_ns: _Count = 1
    block: _Count = 1


class _StoredHost(_StoredPart):
    cpu: str
    isa: list[str]
    cores: _Count
    system: str
    python: str
    versions: dict[str, str]


class _StoredPlan(_StoredPart):
    """By which the head is timed too."""

    samples: _Samples = 1
    seconds: _Seconds = 0
    least: _Samples = 1
    warmup_seconds: _Seconds = 0


class _StoredMeasurement(_StoredPart):
    path: str
    runtime: str
    precision: str
    threads: _Count
    sha256: str
    batch: _Count | None = None
    pin: list[int] | None = None
    runs: Annotated[list[_StoredRun], Field(min_length=1)]
    plan: _StoredPlan = _StoredPlan()
    host: _StoredHost


class _Stored(_StoredPart):
    """What `Measurement.from_dict` takes for granted of a file that anybody may have written."""

    measurements: list[_StoredMeasurement]


def read_baseline(path: Path, heads: Sequence[Subject]) -> list[Measurement]:
    """The stored measurement of each head: of its path as it was given then, else of its file name where that is of one
    file only and not of another head; among several of one file, the one that was run alike. Raises PipelineError."""
    document = read_json(path)
    try:
        _Stored.model_validate(document)
        stored = [Measurement.from_dict(m) for m in document["measurements"]]
        for measurement in stored:
            Host.from_dict(measurement.host)
    except (ValidationError, InputError, KeyError, TypeError) as error:
        told = ": ".join(first_problem(error)) if isinstance(error, ValidationError) else error
        raise PipelineError(f"{path}: no output of `edgebuild latency measure --json`: {told}") from error
    given = {head.path for head in heads}
    found = []
    for head in heads:
        same = [m for m in stored if m.subject.path == head.path]
        others = [m for m in stored if m.subject.path not in given]
        same = same or [m for m in others if Path(m.subject.path).name == Path(head.path).name]
        if len(same) > 1:
            same = [m for m in same if _run_alike(m.subject) == _run_alike(head)]
        if len(same) != 1:
            known = ", ".join(m.subject.path for m in stored)
            raise PipelineError(f"{path}: {len(same)} measurements for {head.path}, expected one; it has {known}")
        found.append(same[0])
    return found


def _run_alike(subject: Subject) -> tuple[Any, ...]:
    return tuple(getattr(subject, name) for name in ("runtime", "precision", *SAME))


@contextlib.contextmanager
def built(
    files: Sequence[Path], command: str, base_rev: str, head_rev: str | None, say: Callable[[str], None]
) -> Iterator[tuple[list[Path], list[Path]]]:
    """(head files, base files), each made by `command` in a checkout of its revision; without `head_rev`, in this one.

    The files are paths below the current folder, which the base has too. Raises PipelineError, EnvironmentProblem
    where the command fails.
    """
    outside = [str(f) for f in files if f.is_absolute() or ".." in f.parts]
    if outside:
        raise PipelineError(
            f"{', '.join(outside)}: with --build, give paths below this folder, where the command writes"
        )
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(_worktree(base_rev, say))
        head = stack.enter_context(_worktree(head_rev, say)) if head_rev else Path()
        for folder, rev in ((base, base_rev), (head, head_rev or "this checkout")):
            say(f"building {rev}: {command}")
            done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, errors="replace")
            if done.returncode:
                told = (done.stderr or done.stdout).strip().splitlines()[-3:]
                raise EnvironmentProblem(
                    f"{command!r} in {rev} ended with code {done.returncode}" + "".join(f"\n  {line}" for line in told)
                )
            missing = [str(f) for f in files if not (folder / f).is_file()]
            if missing:
                raise PipelineError(f"{command!r} in {rev} left no {', '.join(missing)}")
        yield [head / f for f in files], [base / f for f in files]


@contextlib.contextmanager
def _worktree(rev: str, say: Callable[[str], None]) -> Iterator[Path]:
    """A checkout of a revision beside this one, for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="edgebuild-base-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch) / "checkout"
        commit = _git("rev-parse", "--verify", "--end-of-options", f"{rev}^{{commit}}")
        below = _git("rev-parse", "--show-prefix")
        _git("worktree", "add", "--detach", str(folder), commit)
        try:
            if not (folder / below).is_dir():
                raise PipelineError(f"{rev} has no folder {below}, from which the command is to be run")
            yield folder / below
        finally:
            try:
                _git("worktree", "remove", "--force", str(folder))
            except (
                PipelineError
            ) as error:  # as where the command left files of another user: no reason to lose a verdict
                say(f"left behind: {error}")


def _git(*args: str) -> str:
    """What git prints. Raises PipelineError with its own words."""
    try:
        done = subprocess.run(["git", *args], capture_output=True, text=True, errors="replace")
    except FileNotFoundError as error:
        raise EnvironmentProblem("git is not installed; give the base file itself with --base") from error
    if done.returncode:
        raise PipelineError(f"git {' '.join(args)}: {done.stderr.strip()}")
    return done.stdout.strip()


_MARKS = {"pass": "✅ pass", "fail": "❌ fail", "inconclusive": "❔ inconclusive"}


def as_markdown(result: dict[str, Any]) -> str:
    """A table for a pull request."""
    lines = [
        f"### Latency: {result['verdict']}",
        "",
        "| file | verdict | head / base | 99 % bounds | threshold | processes |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["files"]:
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.3f}"
        bounds = "-" if row["ratio"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
        threshold = "-" if row["threshold"] is None else f"{row['threshold']:.3f}"
        cells = (_code(row["name"]), _MARKS[row["verdict"]], ratio, bounds, threshold, str(row["processes"]))
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- {_code(row['name'])}: {reason}" for row in result["files"] for reason in row["reasons"])]
    host = result["host"]
    told = ", ".join(f"{name} {version}" for name, version in host["versions"].items())
    return "\n".join([*lines, "", f"{host['cpu']}, {host['cores']} cores; {told}", ""])


def _plain(name: str) -> str:
    """A file's name without what would break a line or a document: control characters and lone surrogates."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)


def _code(name: str) -> str:
    """As code in a table, where neither a mention nor a heading nor a tag means anything."""
    return "`" + _plain(name).replace("`", "'").replace("|", "\\|") + "`"


def as_junit(result: dict[str, Any]) -> bytes:
    """One test case a file: a fail is a failure, inconclusive an error, so that neither passes in silence."""
    count = {v: sum(row["verdict"] == v for row in result["files"]) for v in _MARKS}
    suite = ElementTree.Element(
        "testsuite",
        name="edgebuild latency check",
        tests=str(len(result["files"])),
        failures=str(count["fail"]),
        errors=str(count["inconclusive"]),
    )
    for row in result["files"]:
        case = ElementTree.SubElement(suite, "testcase", classname="latency", name=_plain(row["name"]))
        kind = {"fail": "failure", "inconclusive": "error"}.get(row["verdict"])
        if kind:
            ElementTree.SubElement(case, kind, message=_plain("; ".join(row["reasons"])), type=row["verdict"])
        if row["ratio"] is not None:
            output = ElementTree.SubElement(case, "system-out")
            output.text = (
                f"head/base {row['ratio']:.4f}, 99 % bounds {row['low']:.4f} to {row['high']:.4f}, threshold "
                f"{row['threshold']:.4f}, {row['processes']} processes"
            )
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
