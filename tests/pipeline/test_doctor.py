"""What `edgebuild doctor` says of a machine, and what to do about each problem."""

import json

import pytest

from latency.host import this_host
from pipeline import doctor


def test_it_tells_what_a_user_asks_of_a_machine(cli, tmp_path):
    cache = {"XDG_CACHE_HOME": str(tmp_path)}
    done = cli("doctor", "--json", env=cache)
    assert done.returncode == 0, done.stderr
    told, host = json.loads(done.stdout), this_host()
    assert told["host"]["cpu"] == host.cpu
    assert told["cores"]["allowed"] == host.cores
    assert told["memory_mib"]["available"] > 0
    assert all(free > 0 for free in told["disk_gb"].values())
    used = {(r["runtime"], r["asked"]): r["used"] for r in told["precisions"]}
    assert used["onnxruntime", "f32"] == used["openvino", "f32"] == "f32"
    assert used["onnxruntime", "bf16"].startswith("not here: ONNX Runtime's CPU provider has no bf16 kernels")
    assert (used["openvino", "bf16"] == "bf16") == host.has_bf16
    assert "whether timings can be trusted here was never tested: `edgebuild latency selftest`" in told["problems"]
    shown = cli("doctor", env=cache).stdout
    for line in told["problems"]:
        if not any(word in line for word in ("load", "MiB", "GB")):  # which may have changed between the two
            assert f"problem: {line}\n" in shown


@pytest.mark.parametrize("text", ["{", "", "[]", "{}", '"x"', '{"smallest": "many", "unrest": null}'])
def test_a_damaged_selftest_was_never_done(text, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    record = tmp_path / "edgebuild" / f"selftest-{this_host().key}.json"
    record.parent.mkdir()
    record.write_text(text)
    assert any("was never tested" in problem for problem in doctor.examine()["problems"])


def test_a_quota_is_a_problem_for_timings(tmp_path, monkeypatch):
    """A container's --cpus stops a process in the middle of what it does, however many cores it sees."""
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    monkeypatch.setattr(doctor, "_CGROUP", tmp_path)
    found = doctor.examine()
    assert found["cores"]["quota"] == 0.5
    assert any("a quota holds this container to 0.5 of" in p for p in found["problems"])
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert doctor.examine()["cores"]["quota"] is None


def test_little_memory_is_a_problem(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text(f"{1512 * 2**20}\n")
    (tmp_path / "memory.current").write_text(f"{1000 * 2**20}\n")
    monkeypatch.setattr(doctor, "_CGROUP", tmp_path)
    assert any(p.startswith("512 MiB of memory are free: training may need 2 GB") for p in doctor.examine()["problems"])


@pytest.mark.parametrize("tool", ["qemu-x86_64", "ssh"])
def test_a_tool_that_is_missing_is_a_note(monkeypatch, tool):
    which = doctor.shutil.which
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None if name == tool else which(name))
    found = doctor.examine()
    assert any(tool in note for note in found["notes"])
    assert not any(tool in problem for problem in found["problems"])
