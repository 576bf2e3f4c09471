"""Workers placed by Ray: on this machine, and on a cluster of two nodes of which one dies."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import optuna
import pytest
from optuna.storages import RDBStorage

from pipeline.search.cluster import TARGET, placed, share_of
from pipeline.search.tally import TRAINED, fate
from pipeline.study import database_url, own_trials
from tests.conftest import ROOT
from tests.processes import children, signal_all

pytestmark = pytest.mark.slow


def search(cli, tiny, folder, *more, settings=(), cwd=None):
    settings = [part for s in settings for part in ("--set", s)]
    return cli("search", "-c", tiny, "--run-dir", folder, "--json", *more, *settings, cwd=cwd)


def test_two_workers_on_this_machine(cli, tiny, tmp_path):
    """In a folder whose own `models/` is none of theirs."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models/__init__.py").write_text("raise SystemExit('the decoy was imported')")
    done = search(cli, tiny, tmp_path / "r", "--workers", "2", settings=["search.trials=6"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["trained"] in (6, 7)  # both may have looked at once
    assert result["over_limit_trained"] == 0
    rows = json.loads((tmp_path / "r/search/trials.json").read_text())["trials"]
    assert len({r["worker"] for r in rows}) == 2
    assert "at nice" not in done.stderr  # a cluster of its own
    assert f"search: 2 workers of {(os.cpu_count() or 2) // 2} num_cpus" in done.stderr
    assert "trial 0: " in done.stderr  # what the workers say arrives here
    more = search(cli, tiny, tmp_path / "r", settings=["search.trials=8"])  # one process goes on where they were
    assert more.returncode == 0, more.stderr
    assert json.loads(more.stdout)["trained"] == 8
    chosen = cli("select", "--run-dir", tmp_path / "r")
    assert chosen.returncode == 0, chosen.stderr


@pytest.mark.parametrize(
    ("nodes", "count", "share"),
    [
        ([{"CPU": 8}], 2, {"num_cpus": 4}),
        ([{"CPU": 8}, {"CPU": 2}], 3, {"num_cpus": 2}),
        ([{"CPU": 1}, {"CPU": 1}], 3, {"num_cpus": 0.5}),
        ([{"CPU": 4, "GPU": 1}], 2, {"num_cpus": 2, "num_gpus": 0.5}),
        ([{"CPU": 8, "GPU": 2}], 3, {"num_cpus": 2, "num_gpus": 0.5}),
        ([{"CPU": 16, "GPU": 1}, *[{"CPU": 16}] * 8], 9, {"num_cpus": 16}),
    ],
)
def test_all_workers_can_be_placed(nodes, count, share):
    totals = {k: sum(n.get(k, 0) for n in nodes) for k in ("CPU", "GPU")}
    ray = SimpleNamespace(
        nodes=lambda: [{"Alive": True, "Resources": n} for n in nodes], cluster_resources=lambda: totals
    )
    found = share_of(ray, count, "auto")
    assert found == share
    assert placed(nodes, found["num_cpus"], found.get("num_gpus", 0)) >= count


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # else Ray takes 127.0.0.1 for this host's own address
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    from ray.cluster_utils import Cluster

    made = Cluster()
    common = {"node_ip_address": "127.0.0.1", "include_dashboard": False, "object_store_memory": 2 * 10**8}
    yield lambda **more: made.add_node(**common, **more), made
    for node in reversed(list(made.list_all_nodes())):
        processes = node_processes(node)
        made.remove_node(node, allow_graceful=False)
        signal_all(processes, signal.SIGKILL)  # what the killed parent leaves


def node_processes(node):
    """The workers and agents of a node of the cluster."""
    return children(next(process for kind, process in node.live_processes() if kind == "raylet").pid)


def test_a_node_that_dies_loses_no_trial(cli, tiny, tmp_path, cluster, postgres, monkeypatch):
    add, made = cluster
    monkeypatch.setenv("PGPASSWORD", "pass:word@1")  # before the nodes start, whose workers need it too
    bare = postgres.replace(":pass%3Aword%401", "")
    add(num_cpus=1, resources={TARGET: 1})
    second = add(num_cpus=1, resources={TARGET: 1})
    settings = ["search.trials=6", "search.epochs=3", f"search.storage={bare}", "search.study=cluster"]
    storage, killed = RDBStorage(database_url(postgres, None)), {}

    def at_work():
        trials = optuna.load_study(study_name="cluster", storage=storage).trials
        finished = [t.number for t in trials if t.state.is_finished()]
        workers = {t.user_attrs["worker"] for t in trials if not t.state.is_finished() and "worker" in t.user_attrs}
        return finished if len(finished) >= 3 and len(workers) == 2 else []

    def kill_in_mid_study():
        """While a worker of the second node has a trial in hand, and some are finished. Its processes are stopped for
        the second look, so that none finishes that trial between the look and the end."""
        while "at" not in killed:
            time.sleep(0.2)
            with contextlib.suppress(KeyError):
                if not at_work():
                    continue
                processes = node_processes(second)
                signal_all(processes, signal.SIGSTOP)
                time.sleep(0.2)  # for what they had already sent to the database
                if finished := at_work():
                    signal_all(processes, signal.SIGKILL)
                    made.remove_node(second, allow_graceful=False)
                    killed["at"] = finished
                else:
                    signal_all(processes, signal.SIGCONT)

    killer = threading.Thread(target=kill_in_mid_study, daemon=True)
    killer.start()
    more = ("--ray", made.address, "--workers", "2")
    done = search(cli, tiny, tmp_path / "r", *more, settings=settings)
    assert done.returncode == 0, done.stderr
    killer.join(10)
    assert killed.get("at"), "the node was not killed in time"
    assert "runs its workers at nice 15, so timings wait for any other process there" in done.stderr  # Ray's default
    result = json.loads(done.stdout)
    assert result["trained"] + result["stopped_early"] in (6, 7)
    study = optuna.load_study(study_name="cluster", storage=storage)
    assert all(study.trials[n].state.is_finished() for n in killed["at"])
    assert all(t.state.is_finished() for t in own_trials(study))
    again = [t for t in own_trials(study) if "again_of" in t.user_attrs]
    assert again, "what the dead node had in hand was not tried again"
    assert study.trials[again[0].user_attrs["again_of"]].params.items() <= again[0].params.items()
    trained = {t.user_attrs["training"] for t in study.trials if fate(t) == TRAINED}
    assert len(trained) == result["trained"]
    assert "word" not in done.stderr.replace("keyword", "")


def test_what_a_cluster_lacks_is_told(cli, tiny, tmp_path, cluster):
    add, made = cluster
    add(num_cpus=1)
    for storage, code, text in (
        (None, 2, "search.storage: a study that several machines share needs a database server"),
        ("postgresql://me:secret@127.0.0.1:1/db", 2, "give no password in it, but in ~/.pgpass on every node"),
        ("postgresql://me@127.0.0.1:1/db", 4, f"no node of the cluster has the resource {TARGET}, so there is nowhere"),
    ):
        settings = [f"search.storage={storage}"] if storage else []
        done = search(cli, tiny, tmp_path / "r", "--ray", made.address, settings=settings)
        assert done.returncode == code, done.stderr
        assert text in done.stderr
        assert "secret" not in done.stderr


def test_no_cluster_at_the_address(cli, tiny, tmp_path):
    url = "postgresql://me@127.0.0.1:1/db"
    done = search(cli, tiny, tmp_path / "r", "--ray", "127.0.0.1:1", settings=[f"search.storage={url}"])
    assert done.returncode == 4
    assert "--ray 127.0.0.1:1: no cluster of Ray answers" in done.stderr


def test_ray_is_named_where_it_is_missing(tiny, tmp_path):
    hide = "import sys; sys.modules['ray'] = None; from edgebuild.__main__ import main; main()"
    command = [sys.executable, "-c", hide, "search", "-c", tiny, "--run-dir", tmp_path / "r", "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 4
    assert "--workers and --ray need Ray: pip install 'edgebuild[ray]'" in done.stderr
