"""A cluster of Ray as a search needs it: connected to or started, its nodes looked at, and shared out among workers."""

import contextlib
import math
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from latency.host import KEYS, this_host, version_of
from pipeline.errors import EnvironmentProblem
from pipeline.stages import Run

TARGET = "edgebuild_target"
"""The custom resource of the nodes that may time: 1 each."""
_CONNECT_S = 10
_ROOT = Path(__file__).resolve().parent.parent.parent


@contextlib.contextmanager
def cluster(ray: ModuleType, address: str | None) -> Iterator[None]:
    """A cluster that is there, or one of this machine alone, on loopback, for as long as this lasts."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own 15 makes what is timed wait for any other process
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "3600000")  # else what times is never warm
    own: dict[str, Any] = {"_node_ip_address": "127.0.0.1", "resources": {TARGET: 1}, "include_dashboard": False}
    try:
        _answers(address)
        with contextlib.chdir(_ROOT):  # Ray's workers import from here first, and a user's `models/` is not ours
            ray.init(
                address=address or "local",
                runtime_env={"env_vars": {"EDGEBUILD_DEVICE": os.environ.get("EDGEBUILD_DEVICE", "auto")}},
                log_to_driver=False,
                logging_level="ERROR",
                **({} if address else own),
            )
    except (OSError, ValueError, RuntimeError) as error:
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EnvironmentProblem(f"--ray {address or '(this machine)'}: no cluster of Ray answers: {told}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _answers(address: str | None) -> None:
    """Ray itself asks for minutes. Raises OSError, or ValueError for a port that is none."""
    host, colon, port = (address or "").rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()


def alive(ray: ModuleType) -> list[dict[str, Any]]:
    return [n for n in ray.nodes() if n["Alive"]]


def targets(ray: ModuleType) -> list[dict[str, Any]]:
    return [n for n in alive(ray) if n["Resources"].get(TARGET, 0) >= 1]


def check_nodes(ray: ModuleType, run: Run) -> None:
    """All must have this edgebuild, and those that may time be what the gate will time on. Raises
    EnvironmentProblem."""
    timing = [n["NodeID"] for n in targets(ray)] if run.config.target == "local" else []
    if run.config.target == "local" and not timing:
        raise EnvironmentProblem(
            f"--ray {run.crew.ray}: no node of the cluster has the resource {TARGET}, so there is nowhere to time: "
            f"start one on the target with ray start --address={run.crew.ray} --resources '{{\"{TARGET}\": 1}}'"
        )
    affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    for node in alive(ray):
        there, name = affinity(node["NodeID"], soft=False), node["NodeManagerAddress"]
        asked = ray.remote(_about).options(num_cpus=0, scheduling_strategy=there).remote()
        try:
            host, version, nice = ray.get(asked)
        except ray.exceptions.RayError as error:  # it cannot read what it was asked
            told = str(error).strip().splitlines()[-1]
            raise EnvironmentProblem(
                f"--ray {run.crew.ray}: the node {name} does not run edgebuild: {told}; install edgebuild "
                f"{version_of('edgebuild')} there, for the Python that `ray start` is called with"
            ) from error
        if version != version_of("edgebuild"):
            raise EnvironmentProblem(
                f"--ray {run.crew.ray}: the node {name} has edgebuild {version}, this machine "
                f"{version_of('edgebuild')}: install the same"
            )
        if node["NodeID"] not in timing:
            continue
        ours = run.host.as_dict()
        different = [k for k in KEYS if host[k] != ours[k]]
        if different:
            raise EnvironmentProblem(
                f"--ray {run.crew.ray}: the node {name} has the resource {TARGET}, but is no host like this one, on "
                f"which the gate times: {', '.join(different)} differ; start the search on such a node, or give the "
                "board as target: ssh://..."
            )
        if nice > 0:
            run.say(
                f"--ray {run.crew.ray}: the node {name} runs its workers at nice {nice}, so timings wait for any other "
                "process there: set RAY_worker_niceness=0 before `ray start`"
            )


def share_of(ray: ModuleType, count: int, device: str) -> dict[str, float]:
    """What of the cluster each worker has: whole CPUs where all can be placed with them, and a part of a GPU where all
    can be placed with that too."""
    nodes, able = [n["Resources"] for n in alive(ray)], ray.cluster_resources()
    cpus, gpus = able.get("CPU", 1), able.get("GPU", 0) if device != "cpu" else 0
    shares = range(int(cpus // count), 0, -1) or [1 / math.ceil(count / cpus)]
    share = next((s for s in shares if placed(nodes, s, 0) >= count), shares[-1])
    part = 1 / math.ceil(count / gpus) if gpus else 0
    return {"num_cpus": float(share)} | ({"num_gpus": part} if part and placed(nodes, share, part) >= count else {})


def placed(nodes: Sequence[dict[str, float]], cpus: float, gpus: float) -> int:
    """How many workers of so many CPUs, and of that part of one GPU, the nodes take."""
    by_cpu = [int(n.get("CPU", 0) / cpus + 1e-9) for n in nodes]
    by_gpu = [int(n.get("GPU", 0)) * int(1 / gpus + 1e-9) if gpus else math.inf for n in nodes]
    return sum(int(min(both)) for both in zip(by_cpu, by_gpu, strict=True))


def _about() -> tuple[dict[str, Any], str | None, int]:
    return this_host().as_dict(), version_of("edgebuild"), os.getpriority(os.PRIO_PROCESS, 0)
