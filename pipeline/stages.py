"""Stages and the run folder: what is done, what a stage depends on, and what is not done again.

The output of a stage is used as it was written or not at all. Its manifest carries a digest of itself and the sha256 of
every file, and `Run.file` compares a file with that before anything reads it.

A stage is a function that fills a folder. It works in `.work/NAME-KEY`, which is renamed to `NAME` when complete, its
manifest written last; the key is the hash of everything the stage depends on, so the same key is not run twice and a
killed stage finds its own half-done work. No workflow engine: `pipeline.run.STAGES` is a list.
"""

import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from export.all_in import MODULES
from export.artifact import sha256
from latency.files import model_files
from latency.host import Host, version_of
from latency.machine import Machine
from latency.target import machine_of
from models.documents import dump_yaml, read_yaml
from models.language import SpecError, canonical_hash
from pipeline import FORMAT
from pipeline.config import DRAWN, BuildConfig, anchored, check_config
from pipeline.data.tree import SPLITS
from pipeline.errors import ChangedOutput, EnvironmentProblem, PipelineError
from pipeline.files import (
    LOCK,
    file_digest,
    read_record,
    refuse_odd_files,
    refuse_odd_path,
    refuse_other_folder,
    write_record,
    write_text,
)
from pipeline.show.log import log

MANIFEST, RESULT = "manifest.json", "result.json"
_ASIDE = ".aside"
"""Where outcomes lie that may be taken up again."""
_SHAPE = {"stage": str, "key": str, "final": bool, "outputs": dict, "seconds": float | int, "summary": dict}
"""The fields of a stage manifest that this module reads, with their types."""
SCRATCH = "scratch"
"""In a stage's folder: what it goes on from after a kill, such as checkpoints; gone once the stage is complete."""
_VERSIONS = ("edgebuild", "torch", "timm", "onnx", "onnxruntime", "openvino", "nncf", "optuna", "numpy")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Crew:
    """Who searches: so many workers of Ray, on the cluster at an address or on this machine. Without either: this
    process alone."""

    workers: int | None = None
    ray: str | None = None


@dataclass(frozen=True)
class Run:
    """A run folder and the config it is run with. crew: no part of the config, for it changes no result's meaning."""

    folder: Path
    config: BuildConfig
    say: Say
    crew: Crew = Crew()

    @cached_property
    def machine(self) -> Machine:
        """What everything is timed on."""
        return machine_of(self.config.target, MODULES)

    @cached_property
    def host(self) -> Host:
        return self.machine.host()

    @cached_property
    def worker(self) -> str:
        """Identity of this run folder among the workers of a shared study."""
        path = self.folder / ".id"
        try:
            return uuid.UUID(path.read_text()).hex
        except (OSError, ValueError):
            write_text(path, uuid.uuid4().hex)
            return path.read_text()

    @property
    def cache(self) -> Path:
        """Decoded images; may be deleted at any time."""
        return self.folder / ".cache"

    def path(self, stage: str, name: str) -> Path:
        """Where a stage's file belongs, whether it exists or not."""
        return self.folder / stage / name

    def has(self, stage: str, name: str) -> bool:
        """Whether a finished stage wrote a file of that name."""
        manifest = self.manifest(stage)
        return manifest is not None and name in manifest["outputs"]

    def file(self, stage: str, name: str) -> Path:
        """A file of a finished stage. Raises ChangedOutput if it is not as the stage wrote it."""
        path, digest = self.path(stage, name), self.output_hash(stage, name)
        if not path.is_file():
            raise ChangedOutput(f"{path}: it is gone since the stage {stage} wrote it; {self._again(stage)}")
        if file_digest(path) != digest:
            raise ChangedOutput(f"{path}: it was changed since the stage {stage} wrote it; {self._again(stage)}")
        return path

    def model(self, stage: str, name: str) -> Path:
        """A model file of a finished stage, verified together with the weights beside it. Raises ChangedOutput."""
        path = self.file(stage, name)
        for file in model_files(path):
            self.file(stage, file.name)
        return path

    def read(self, stage: str, name: str) -> Any:
        """A JSON file of a finished stage. Raises ChangedOutput."""
        return json.loads(self.file(stage, name).read_text(encoding="utf-8"))

    def manifest(self, stage: str) -> dict[str, Any] | None:
        """The manifest of a stage. None if the stage is not done, or its manifest is damaged or of another version."""
        manifest = read_record(self.path(stage, MANIFEST), _SHAPE)
        return manifest if manifest and manifest.get("format") == FORMAT else None

    def output_hash(self, stage: str, name: str) -> str:
        """sha256 of a finished stage's file, from its manifest. Raises ChangedOutput."""
        manifest = self.manifest(stage)
        if manifest is None or name not in manifest["outputs"]:
            raise ChangedOutput(
                f"{self.path(stage, name)}: the stage {stage} is not done, or its manifest is damaged; "
                f"{self._again(stage)}"
            )
        digest: str = manifest["outputs"][name]
        return digest

    def _again(self, stage: str) -> str:
        return f"`edgebuild run --run-dir {self.folder}` does that stage again"


@dataclass(frozen=True)
class Stage:
    """inputs: all that it depends on, as JSON. work: fills the folder given, returns what `--json` prints.

    final: whether the outcome stands; an inconclusive verdict is asked for again by the next run. resumes: goes on with
    its own half-done work; any other begins in an empty folder. wanted: whether a config asks for it at all. kept: an
    outcome that another one replaces is put aside, and taken up again when a run comes back to what it depends on.
    """

    name: str
    needs: tuple[str, ...]
    inputs: Callable[[Run], dict[str, Any]]
    work: Callable[[Run, Path], dict[str, Any]]
    final: Callable[[dict[str, Any]], bool] = lambda summary: True
    resumes: bool = False
    wanted: Callable[[BuildConfig], bool] = lambda config: True
    kept: bool = False


@dataclass(frozen=True)
class Done:
    name: str
    key: str
    seconds: float
    skipped: bool
    summary: dict[str, Any]


@contextmanager
def open_run(folder: Path, config: BuildConfig, say: Say) -> Iterator[Run]:
    """Create or open a run folder, for this process alone. Raises EnvironmentProblem where another one has it."""
    refuse_odd_path(folder.absolute())
    refuse_other_folder(folder)
    _refuse_images_inside(folder, config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise EnvironmentProblem(f"{folder}: cannot be written: {error.strerror}; give another --run-dir") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EnvironmentProblem(
                f"{folder}: another edgebuild is at work on this run folder; wait for it, or give another --run-dir"
            ) from error
        if not _is_still(descriptor, folder / LOCK):
            raise EnvironmentProblem(
                f"{folder}: its {LOCK} was removed while it was opened; give the same command again"
            )
        refuse_odd_files(folder)
        config = anchored(config)
        write_text(folder / "config.yaml", dump_yaml(config.model_dump(mode="json")))

        def told(text: str) -> None:
            log(folder, text)
            say(text)

        log(folder, f"edgebuild {version_of('edgebuild')} begins, process {os.getpid()}")
        yield Run(folder, config, told)
    finally:
        os.close(descriptor)


def _is_still(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one of that name: a lock on a file that was removed keeps nobody out."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _refuse_images_inside(folder: Path, config: BuildConfig) -> None:
    """Stages replace folders of a run folder, and every folder of data.root is a class. Raises PipelineError where one
    of the two lies in the other."""
    if config.data.root == DRAWN:
        return
    ours, theirs = Path(os.path.realpath(folder)), Path(os.path.realpath(config.data.root))
    classes = [theirs / split for split in SPLITS] if (theirs / SPLITS[0]).is_dir() else [theirs]
    if any(ours.is_relative_to(place) for place in classes):
        raise PipelineError(
            f"{folder}: the run folder would be a class of data.root, {config.data.root}; give a --run-dir outside "
            "of it"
        )
    if theirs.is_relative_to(ours):
        raise PipelineError(
            f"data.root: {config.data.root} lies in the run folder, {folder}, whose folders are replaced; give another "
            "--run-dir"
        )


def run_config(folder: Path) -> dict[str, Any]:
    """The config of an existing run folder, as a document to be overridden. Raises PipelineError."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise PipelineError(
            f"{folder}: no run folder (it has no config.yaml); start with `edgebuild search -c CONFIG "
            f"--run-dir {folder}` or `edgebuild run`"
        )
    try:
        if not path.read_bytes().endswith(b"\n"):  # the first lines of a config are a config too, of other meaning
            raise PipelineError(f"{path}: it was cut short")
        document = read_yaml(path)
        if not isinstance(document, dict):
            raise PipelineError(f"{path}: it holds no config")
        check_config(document, str(path))
    except (PipelineError, SpecError) as error:
        given = f"give the config that the run was begun with: -c CONFIG --run-dir {folder}"
        raise PipelineError(f"{error}; if you did not edit it, {given}") from error
    return document


def key_of(stage: Stage, run: Run) -> tuple[str, dict[str, Any]]:
    inputs = json.loads(json.dumps(stage.inputs(run)))
    return canonical_hash([FORMAT, stage.name, inputs]), inputs


def current(stage: Stage, run: Run) -> dict[str, Any] | None:
    """The manifest of a stage whose inputs are unchanged and whose outputs are intact."""
    return _kept(stage, run, key_of(stage, run)[0])


def _kept(stage: Stage, run: Run, key: str) -> dict[str, Any] | None:
    manifest = run.manifest(stage.name)
    if manifest is None or not manifest["final"] or manifest["key"] != key:
        return None
    return None if damage(stage.name, run) else manifest


def damage(stage: str, run: Run, gone_too: bool = True) -> str | None:
    """What differs from the stage's manifest, or None. gone_too: count missing files as well."""
    if not run.path(stage, MANIFEST).is_file():
        return None
    manifest = run.manifest(stage)
    if manifest is None:
        return f"{stage}/{MANIFEST} is damaged, or of another version"
    for name, digest in manifest["outputs"].items():
        path = run.path(stage, name)
        if not path.is_file():
            if gone_too:
                return f"{stage}/{name} is gone"
        elif file_digest(path) != digest:
            return f"{stage}/{name} was changed since it was written"
    return None


def perform(stage: Stage, run: Run) -> Done:
    """Do a stage, or skip it where it is current."""
    key, inputs = key_of(stage, run)
    manifest = _kept(stage, run, key) or _taken_up(stage, run, key)
    if manifest is not None:
        run.say(f"{stage.name}: done before, nothing it depends on has changed")
        return Done(stage.name, key, manifest["seconds"], True, manifest["summary"])
    if harmed := damage(stage.name, run):
        run.say(f"{stage.name}: {harmed}: it is done again")
    (run.folder / RESULT).unlink(missing_ok=True)  # it tells of what is done anew now
    work = run.folder / ".work" / f"{stage.name}-{key}"
    if not stage.resumes:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    run.say(f"{stage.name}: begins")
    began = time.perf_counter()
    summary = stage.work(run, work)
    seconds = round(time.perf_counter() - began, 2)
    inside = {p.relative_to(work): p for p in sorted(work.rglob("*")) if p.is_file()}
    outputs = {n.as_posix(): sha256(p) for n, p in inside.items() if n.parts[0] not in (SCRATCH, MANIFEST)}
    manifest = {
        "format": FORMAT,
        "stage": stage.name,
        "key": key,
        "final": stage.final(summary),
        "inputs": inputs,
        "outputs": outputs,
        "versions": versions(),
        "host": run.host.key,
        "seconds": seconds,
        "summary": summary,
    }
    write_record(work / MANIFEST, manifest)
    _put_aside(stage, run)
    _replace_folder(work, run.folder / stage.name)
    shutil.rmtree(run.folder / stage.name / SCRATCH, ignore_errors=True)
    run.say(f"{stage.name}: done in {seconds:.1f} s")
    return Done(stage.name, key, seconds, False, summary)


def _put_aside(stage: Stage, run: Run) -> None:
    """Keep the outcome that is about to be replaced."""
    manifest = run.manifest(stage.name) if stage.kept else None
    if manifest is not None and manifest["final"] and not damage(stage.name, run):
        place = run.folder / _ASIDE / f"{stage.name}-{manifest['key']}"
        place.parent.mkdir(exist_ok=True)
        _replace_folder(run.folder / stage.name, place)


def _taken_up(stage: Stage, run: Run, key: str) -> dict[str, Any] | None:
    """The manifest of an outcome that was put aside, which is the stage's again."""
    place = run.folder / _ASIDE / f"{stage.name}-{key}"
    if not stage.kept or not place.is_dir():
        return None
    _put_aside(stage, run)
    _replace_folder(place, run.folder / stage.name)
    return _kept(stage, run, key)


def versions() -> dict[str, str]:
    return {package: version for package in _VERSIONS if (version := version_of(package))}


def _replace_folder(source: Path, target: Path) -> None:
    """A kill between the two renames loses the old stage, which is out of date anyway, and never leaves half of one."""
    aside = source.with_name(source.name + ".old")
    shutil.rmtree(aside, ignore_errors=True)
    if target.is_dir():
        target.rename(aside)
    target.unlink(missing_ok=True)  # a file or a link that somebody put there
    source.rename(target)
    shutil.rmtree(aside, ignore_errors=True)
