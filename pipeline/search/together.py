"""A search by several workers, placed by Ray: on the cores of this machine, or on the nodes of a cluster.

Each worker is the loop of `pipeline.search.loop`, with the study as the only state that they share: it draws, has its
candidate timed, trains, tells. A timing is a task of Ray that only a node with the resource TARGET takes, one at a
time; when a node dies, the task is done again on another. A worker that dies is started again by Ray, and what it had
in hand is tried again. Photos and weights come from the machine that started the search.
"""

import os
import pickle
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import optuna
import torch
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from export.all_in import MODULES
from export.artifact import ModelCard
from latency.target import machine_of
from models.joined import JoinedSpace
from models.pretrained import Normalisation
from models.spec import ModelSpec
from pipeline.config import NO_FILE, BuildConfig
from pipeline.data.index import Index
from pipeline.data.stage import load_index
from pipeline.errors import EnvironmentProblem, PipelineError
from pipeline.passwords import has_password
from pipeline.search.basis import Search, candidate_timer, open_search
from pipeline.search.cluster import TARGET, alive, check_nodes, cluster, share_of, targets
from pipeline.search.loop import conclude, prepare, work
from pipeline.search.measured import CandidateTimer, Timing
from pipeline.search.tally import Tally, used_up
from pipeline.stages import Run
from pipeline.study import GRACE_S, mark_interrupted, own_trials, take_up, take_up_lost
from pipeline.training.begin import begin, load_arrays
from pipeline.training.checkpoint import pixels
from pipeline.training.inputs import Arrays

_LOOK_S = 1.0


def search_together(run: Run) -> dict[str, Any]:
    """As `pipeline.search.loop.run_search`. Raises PipelineError."""
    try:
        import ray
    except ImportError as error:
        raise EnvironmentProblem("--workers and --ray need Ray: pip install 'edgebuild[ray]'") from error
    if run.crew.ray is not None and (run.config.search.storage or "sqlite").startswith("sqlite"):
        raise PipelineError(
            "search.storage: a study that several machines share needs a database server, such as "
            "postgresql://user@host/database; SQLite is a file on this one"
        )
    if run.crew.ray is not None and has_password(run.config.search.storage or ""):
        raise PipelineError(
            "search.storage: a cluster of Ray keeps and shows the command that started a search: give no password in "
            "it, but in ~/.pgpass on every node, or as PGPASSWORD before `ray start`"
        )
    with cluster(ray, run.crew.ray):
        try:
            return _search_on(ray, run)
        except ray.exceptions.RayError as error:
            if isinstance(cause := getattr(error, "cause", error), ray.exceptions.RayError):
                told = (str(cause).strip() or type(cause).__name__).splitlines()[-1]
                where = run.crew.ray or "(this machine)"
                raise EnvironmentProblem(f"--ray {where}: Ray cannot go on: {told}") from error
            raise cause from error  # an error of ours, in a worker


def _search_on(ray: ModuleType, run: Run) -> dict[str, Any]:
    near = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    where: dict[str, Any] = {"resources": {TARGET: 1}}
    if run.config.target != "local":
        where = {"scheduling_strategy": near}  # it is reached from here, and a lock there keeps timings apart
    origin = Origin(run.config, run.folder.resolve(), run.worker, run.host.key)
    check_nodes(ray, run)
    search = open_search(run)
    timer = RayTimer(ray.remote(_time).options(num_cpus=0, max_retries=-1, **where), origin)
    study = prepare(search, timer)
    home = ray.remote(Home).options(num_cpus=0, scheduling_strategy=near).remote(origin)
    given = ray.put(Given(search.index, search.space, search.weights, _weights(search)))
    count = run.crew.workers or max(1, int(ray.cluster_resources().get("CPU", 1)) // 2)
    share = share_of(ray, count, os.environ.get("EDGEBUILD_DEVICE", "auto"))
    run.say(f"search: {count} workers of {', '.join(f'{v:g} {k}' for k, v in share.items())}")
    kind = ray.remote(SearchWorker).options(max_restarts=-1, max_task_retries=-1, **share)
    workers = [kind.remote(origin, number, timer, home, given) for number in range(count)]
    try:
        reason = _watch(ray, run, study, home, [w.work.remote() for w in workers], share["num_cpus"])
    except KeyboardInterrupt:
        mark_interrupted(study, run.worker)  # the workers, which Ray kills, cannot
        raise
    return conclude(search, study, reason)


def _watch(ray: ModuleType, run: Run, study: optuna.Study, home: Any, at_work: list[Any], cpus: float) -> str:
    """Pass on what the workers say until they are done; why they are. cpus: of a worker."""
    reason, told, reached = "", set[str](), time.monotonic()
    while at_work:
        done, at_work = ray.wait(at_work, timeout=_LOOK_S)
        for line in ray.get(home.take_lines.remote()):
            run.say(line)
        for ref in done:
            reason = ray.get(ref)
        try:
            take_up_lost(study)
            over = used_up(Tally.of(own_trials(study), run.config.latency.limit_ms), run.config)
            if over and not study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                return over  # whoever is still asked for has lost its node and cannot be placed again
            reached = time.monotonic()
        except StorageInternalError:  # the workers, in mid-training, may not even notice
            if time.monotonic() - reached > GRACE_S:
                raise
        waits = []
        if run.config.target == "local" and not targets(ray):
            waits.append(f"no node with {TARGET} is left: timings wait until one joins the cluster")
        if not any(n["Resources"].get("CPU", 0) >= cpus for n in alive(ray)):
            waits.append(f"no node with {cpus:g} CPUs for a worker is left: workers wait until one joins the cluster")
        for wait in (w for w in waits if w not in told):
            told.add(wait)
            run.say(f"search: {wait}")
    return reason


# --- what runs elsewhere ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Origin:
    """The search as it was started, and where; worker: the identity of its run folder."""

    config: BuildConfig
    folder: Path
    worker: str
    host_key: str

    def studies(self) -> Path:
        """Where records lie: in the run folder where this is its machine, else in a folder that goes with this
        process; what counts is in the study."""
        return self.folder / "study" if self.is_here() else Path(_scratch().name)

    def is_here(self) -> bool:
        identity = self.folder / ".id"
        return identity.is_file() and identity.read_text() == self.worker


@cache
def _scratch() -> Any:
    return tempfile.TemporaryDirectory(prefix="edgebuild-")


_timers: dict[bytes, CandidateTimer] = {}
"""Of this process, with the warm processes that they keep."""


def _timer(origin: Origin) -> CandidateTimer:
    key = pickle.dumps(origin)
    if key not in _timers:
        machine = machine_of(origin.config.target, MODULES)
        if machine.host().key != origin.host_key:  # a node that joined later than the others were looked at
            raise EnvironmentProblem(
                f"--ray: a node with the resource {TARGET} is another kind of host than the search began with, and "
                "milliseconds of two kinds do not mix: take it out of the cluster, then search on"
            )
        _timers[key] = candidate_timer(origin.config, origin.studies(), machine)
    return _timers[key]


def _time(origin: Origin, spec: dict[str, Any], card: str, seed: int) -> list[Timing]:
    return _timer(origin).time(ModelSpec.parse(spec), ModelCard.from_json(card), seed)


@dataclass(frozen=True)
class RayTimer:
    """A timer whose work is done wherever the cluster has a target."""

    task: Any
    origin: Origin

    def time(self, spec: ModelSpec, card: ModelCard, seed: int) -> list[Timing]:
        import ray

        asked = self.task.remote(self.origin, spec.document(), card.to_json(), seed)
        try:
            found: list[Timing] = ray.get(asked)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        return found


class Home:
    """On the machine where the search was started: the photos, decoded, and what the workers say."""

    def __init__(self, origin: Origin) -> None:
        self._run = Run(origin.folder, origin.config, print)
        self._index = load_index(self._run)
        self._arrays: dict[int, dict[str, Any]] = {}
        self._lines: list[str] = []

    def arrays(self, size: int) -> dict[str, Any]:
        """Of Arrays: references to what lies in the object store, which each node fetches once."""
        import ray

        if size not in self._arrays:
            found = load_arrays(self._run, self._index, size, Normalisation((), ()))
            parts = {k: np.asarray(getattr(found, k)) for k in ("train", "train_labels", "val", "val_labels")}
            self._arrays[size] = {k: ray.put(v) for k, v in parts.items()}
        return self._arrays[size]

    def tell(self, line: str) -> None:
        self._lines.append(line)

    def take_lines(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines


@dataclass(frozen=True)
class Given:
    """What every worker has from the machine where the search was started. weights: of the network that students begin
    with, as a file's bytes, where it is a file."""

    index: Index
    space: JoinedSpace
    weights_key: str
    weights: bytes | None


def _weights(search: Search) -> bytes | None:
    weights = search.config.student.weights
    return None if weights in NO_FILE or not search.space.networks else Path(weights).read_bytes()


class SearchWorker:
    """One worker; when Ray starts it again, it takes up what it had in hand."""

    def __init__(self, origin: Origin, number: int, timer: RayTimer, home: Any, given: Given) -> None:
        import ray

        self._timer, self._home = timer, home
        self._arrays: dict[int, dict[str, Any]] = {}
        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        torch.set_num_threads(max(1, int(cpus)))
        config = origin.config
        if given.weights is not None:
            file = Path(_scratch().name) / f"{given.weights_key}.safetensors"
            file.write_bytes(given.weights)
            config = config.model_copy(update={"student": config.student.model_copy(update={"weights": str(file)})})
        say = self._home.tell.remote
        run = Run(origin.folder, config, say)
        self._search = Search(
            config,
            given.index,
            self._arrays_for,
            lambda spec, seed: begin(run, spec, seed),
            given.weights_key,
            origin.studies(),
            origin.host_key,
            f"{origin.worker}/{number}",
            say,
            number,
            given.space,
            at_home=origin.is_here(),
        )

    def work(self) -> str:
        study = self._search.open()
        take_up(study, self._search.worker, alone=False)
        return work(self._search, study, self._timer)

    def _arrays_for(self, spec: ModelSpec) -> Arrays:
        import ray

        size, norm = spec.input_size, pixels(spec)
        if size not in self._arrays:
            found = ray.get(self._home.arrays.remote(size))
            self._arrays[size] = dict(zip(found, ray.get(list(found.values())), strict=True))
        return Arrays(**self._arrays[size], mean=norm.mean, std=norm.std)
