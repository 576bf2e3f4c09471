"""The timing commands from outside: what other programs read, exit codes, and errors."""

import inspect
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import onnx
import pytest

from latency import check, compare, selftest
from latency.machine import CONTROL
from latency.records import Subject
from pipeline.cli import latency as cli_latency
from pipeline.cli.app import GATE_PROCESSES, gate_command
from pipeline.errors import PipelineError
from pipeline.regression import as_junit, as_markdown, built, read_baseline, worst
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """A repository of git with two revisions: `quick`, and one whose network takes about twice as long."""
    folder = tmp_path_factory.mktemp("repository")
    network = runpy.run_path(str(ROOT / "ci" / "make_control.py"))["network"]

    def git(*args):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *args], cwd=folder, check=True)

    git("init", "-q")
    onnx.save(network((16, 24, 32), 112), folder / "source.onnx")
    git("add", ".")
    git("commit", "-qm", "quick")
    git("tag", "quick")
    onnx.save(network((24, 40, 48), 112), folder / "source.onnx")
    git("commit", "-qam", "slow")
    (folder / "quick.onnx").write_bytes(
        subprocess.run(["git", "show", "quick:source.onnx"], cwd=folder, capture_output=True, check=True).stdout
    )
    return folder


def test_measure_gives_what_other_programs_read(cli, tmp_path):
    done = cli("latency", "measure", CONTROL, "--runtime", "openvino", "--threads", "1", "--processes", "2", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    (row,) = result["measurements"]
    assert (row["path"], row["runtime"], row["precision"]) == (str(CONTROL), "openvino", "f32")
    assert row["effective_precision"] == "f32"
    assert row["summary"].keys() >= {"p50_ms", "p90_ms", "p90_upper_ms", "p99_ms", "min_ms", "spread", "peak_mib"}
    assert len(row["runs"]) == 2
    assert len(row["runs"][0]["samples_ms"]) == 200
    assert result["host"]["cpu"]


def test_measure_shows_a_table_and_a_histogram(cli):
    done = cli("latency", "measure", CONTROL, "--processes", "1", "--pin", str(min(os.sched_getaffinity(0))))
    assert done.returncode == 0, done.stderr
    assert "p90_upper_ms" in done.stdout
    assert " ms ████" in done.stdout
    assert "200 samples in 1 processes" in done.stdout


def test_each_runtime_is_a_row_of_its_own(cli):
    done = cli("latency", "measure", CONTROL, "--runtime", "onnxruntime,openvino", "--processes", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert [m["runtime"] for m in json.loads(done.stdout)["measurements"]] == ["onnxruntime", "openvino"]


def test_compare_gives_what_other_programs_read(cli, networks):
    done = cli("latency", "compare", networks / "quick.onnx", networks / "source.onnx", "--processes", "8", "--json")
    result = json.loads(done.stdout)
    assert result.keys() >= {"verdict", "ratio", "low", "high", "band", "processes", "reasons", "measurements"}
    assert result["low"] <= result["ratio"] <= result["high"]
    if result["verdict"] == "inconclusive":  # a busy machine
        assert done.returncode == 3
    else:
        assert (done.returncode, result["verdict"]) == (0, "slower")


@pytest.mark.slow
def test_check_of_revisions_built_by_a_command_fails_for_the_slower_one(cli, networks, tmp_path):
    reports = ["--markdown", tmp_path / "report.md", "--junit", tmp_path / "report.xml"]
    revisions = ["--build", "cp source.onnx model.onnx", "--base-rev", "quick"]
    done = cli("latency", "check", "model.onnx", *revisions, "--processes", "8", *reports, "--json", cwd=networks)
    result = json.loads(done.stdout)
    (row,) = result["files"]
    case = ElementTree.parse(tmp_path / "report.xml").find("testcase")
    text = (tmp_path / "report.md").read_text()
    if result["verdict"] == "inconclusive":  # a busy machine
        assert done.returncode == 3
        assert case.find("error") is not None
    else:
        assert (done.returncode, result["verdict"]) == (1, "fail")
        assert row["low"] > row["threshold"]
        assert row["processes"] == 16, "confirmed by a second set"
        assert "confirmed in fresh processes" in case.find("failure").get("message")
        assert "| `model.onnx` | ❌ fail |" in text
    assert row["head_sha256"] != row["base_sha256"]
    left = subprocess.run(["git", "worktree", "list"], cwd=networks, capture_output=True, text=True, check=True).stdout
    assert len(left.splitlines()) == 1, "the checkout of the base is gone"


def test_check_of_a_file_with_itself_passes(cli, networks):
    file = networks / "quick.onnx"
    done = cli("latency", "check", file, "--base", file, "--processes", "8")
    assert done.returncode in (0, 3), done.stderr
    assert ("verdict: pass" in done.stdout) == (done.returncode == 0)


def test_a_stored_baseline_of_another_host_is_inconclusive(cli, tmp_path):
    measured = cli("latency", "measure", CONTROL, "--processes", "8", "--json").stdout
    stored = tmp_path / "baseline.json"
    stored.write_text(measured)
    done = cli("latency", "check", CONTROL, "--baseline", stored, "--processes", "8")
    assert done.returncode in (0, 3), done.stderr
    document = json.loads(measured)
    document["measurements"][0]["host"] |= {"cpu": "Another CPU"}
    stored.write_text(json.dumps(document))
    done = cli("latency", "check", CONTROL, "--baseline", stored)
    assert done.returncode == 3
    assert "Another CPU then" in done.stdout


def test_reports_tell_all_three_verdicts():
    def row(name, verdict, **more):
        known = {"ratio": 1.1, "low": 1.05, "high": 1.15, "threshold": 1.02} if verdict != "inconclusive" else {}
        blank = dict.fromkeys(("ratio", "low", "high", "threshold"))
        return {"name": name, "verdict": verdict, "processes": 12, "reasons": (), **blank, **known, **more}

    bad = "b|<c>\n# approved\x01`@team.onnx"
    rows = [row("a.onnx", "pass"), row(bad, "fail", reasons=("slow & <sure>",)), row("d", "inconclusive")]
    host = {"cpu": "CPU", "cores": 2, "versions": {"numpy": "2"}}
    result = {"verdict": worst(rows), "files": rows, "host": host}
    assert result["verdict"] == "fail"
    assert worst([rows[0], rows[2]]) == "inconclusive"
    suite = ElementTree.fromstring(as_junit(result))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    assert suite.find("testcase[2]/failure").get("message") == "slow & <sure>"
    text = as_markdown(result)
    assert (
        "| `b\\|<c>\N{REPLACEMENT CHARACTER}# approved\N{REPLACEMENT CHARACTER}'@team.onnx` | ❌ fail | 1.100 |" in text
    )
    assert "\n# approved" not in text


def test_profile_of_a_file(cli):
    done = cli("latency", "profile", CONTROL, "--runs", "5")
    assert done.returncode == 0, done.stderr
    assert "Conv" in done.stdout
    assert "share" in done.stdout


@pytest.mark.slow
def test_costs_of_blocks(cli):
    done = cli("latency", "profile", "--blocks", "--channels", "16", "--size", "16", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    rows = {r["block"]: r for r in result["rows"]}
    assert rows["Conv 3x3"]["macs"] == 16 * 16 * 16 * 16 * 9
    assert all(form in rows["MBConv x4"] for form in result["forms"])


def test_calibrate(inside):
    done = inside("latency", "calibrate", "--pair", "1.3223,54.565", "--limit-s", "60", "--json")
    assert 1.40 <= json.loads(done.stdout)["limit_ms"] <= 1.46


@pytest.mark.slow
def test_doctor_shows_the_last_selftest(cli, tmp_path):
    cache = {"XDG_CACHE_HOME": str(tmp_path)}
    done = cli("doctor", env=cache)
    assert done.returncode == 0, done.stderr
    assert "never tested: `edgebuild latency selftest`" in done.stdout
    tested = cli("latency", "selftest", "--rounds", "16", env=cache)
    assert tested.returncode == 0, tested.stderr
    assert "false alarm" in tested.stdout
    assert "last selftest" in cli("doctor", env=cache).stdout


REFUSED = {
    "no model": (["latency", "measure", "FILE"], 2, "cannot load it"),
    "no such file": (["latency", "measure", "none.onnx"], 2, "none.onnx: no such file"),
    "an unknown runtime": (["latency", "measure", CONTROL, "--runtime", "tflite"], 2, "known: onnxruntime, openvino"),
    "no such CPU": (["latency", "measure", CONTROL, "--pin", "4096"], 2, "no CPU 4096 to pin to"),
    "CPUs that are no numbers": (["latency", "measure", CONTROL, "--pin", "a"], 2, "expected numbers of CPUs"),
    "a batch that is not the file's": (["latency", "measure", CONTROL, "--batch", "8"], 2, "not at a batch of 8"),
    "bf16 in ONNX Runtime": (["latency", "measure", CONTROL, "--precision", "bf16"], 2, "has no bf16 kernels"),
    "no base": (["latency", "check", CONTROL], 2, "give the base by one of"),
    "a revision without a command": (["latency", "check", CONTROL, "--base-rev", "x"], 2, "go together"),
    "bases for heads": (["latency", "check", CONTROL, CONTROL, "--base", CONTROL], 2, "2 head files and 1 base files"),
    "a build that writes elsewhere": (
        ["latency", "check", "/tmp/m.onnx", "--build", "true", "--base-rev", "HEAD"],
        2,
        "give paths below this folder",
    ),
    "an empty revision": (["latency", "check", CONTROL, "--base-rev", ""], 2, "give the base by one of"),
    "a report nowhere": (
        ["latency", "check", CONTROL, "--base", CONTROL, "--junit", "none/x.xml"],
        2,
        "--junit none/x.xml: it cannot be written (its folder does not exist); nothing was done",
    ),
    "no baseline": (["latency", "check", CONTROL, "--baseline", "FILE"], 2, "not readable as JSON"),
    "no address": (["latency", "measure", CONTROL, "--target", "ftp://x"], 2, "expected local, or ssh://"),
    "no host there": (["latency", "measure", CONTROL, "--target", "ssh://127.0.0.1:1"], 4, "nothing listens"),
    "a pair that is none": (["latency", "calibrate", "--pair", "1", "--limit-s", "60"], 2, "expected MS,SECONDS"),
    "images of no bundle": (["latency", "measure", CONTROL, "--images", "."], 2, "give one bundle's folder"),
    "neither file nor blocks": (["latency", "profile"], 2, "give a FILE, or --blocks"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_reason(inside, tmp_path, name):
    args, code, message = REFUSED[name]
    (tmp_path / "model.onnx").write_text("nothing")
    done = inside(*("model.onnx" if a == "FILE" else a for a in args), cwd=tmp_path)
    assert message in done.stderr
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_a_build_that_fails_is_told_with_its_last_words(inside, networks):
    args = ["--build", r"printf 'caf\351\n' >&2; echo broken >&2; exit 7", "--base-rev", "quick"]  # Latin-1
    done = inside("latency", "check", "model.onnx", *args, cwd=networks)
    assert done.returncode == 4
    assert "ended with code 7" in done.stderr
    assert "broken" in done.stderr
    for revision in ("no-such-rev", "--force"):
        done = inside("latency", "check", "model.onnx", "--build", "true", f"--base-rev={revision}", cwd=networks)
        assert done.returncode == 2
        assert revision in done.stderr


def test_a_baseline_is_of_the_file_and_not_of_its_namesake(tmp_path):
    document = json.loads((ROOT / "tests" / "golden" / "measurement-1.json").read_text())
    stored = tmp_path / "stored.json"

    def store(*rows):
        stored.write_text(json.dumps({"measurements": [document | row for row in rows]}))

    def head(path, precision="f32"):
        return Subject(path, "onnxruntime", precision, 1, "")

    store({"path": "out/f32/model.onnx"}, {"path": "out/int8/model.onnx", "precision": "int8"})
    assert read_baseline(stored, [head("out/int8/model.onnx", "int8")])[0].subject.precision == "int8"
    assert read_baseline(stored, [head("elsewhere/model.onnx", "int8")])[0].subject.precision == "int8"
    with pytest.raises(PipelineError, match=r"0 measurements for elsewhere/model\.onnx, expected one"):
        read_baseline(stored, [head("elsewhere/model.onnx", "bf16")])
    store({"path": "a/model.onnx"})
    with pytest.raises(PipelineError, match=r"0 measurements for b/model\.onnx, expected one"):
        read_baseline(stored, [head("a/model.onnx"), head("b/model.onnx")])
    store({"path": "m.xml", "precision": "f32"}, {"path": "m.xml", "precision": "bf16"})
    assert read_baseline(stored, [head("m.xml", "bf16")])[0].subject.precision == "bf16"
    store({"path": "m.xml", "host": {"key": "x"}})
    with pytest.raises(PipelineError, match="no output of `edgebuild latency measure --json`"):
        read_baseline(stored, [head("m.xml")])


BAD_BASELINE = {
    "samples in words": ("runs", 0, "samples_ms", ["a"]),
    "samples of nothing": ("runs", 0, "samples_ms", [0.0] * 100),
    "negative samples": ("runs", 0, "samples_ms", [-1.0]),
    "an endless sample": ("runs", 0, "samples_ms", [10**400]),
    "samples of less than the clock can tell": ("runs", 0, "samples_ms", [5e-324] * 100),
    "a plan without an end": ("plan", {"samples": 10**30}),
    "a plan of a day": ("plan", {"seconds": 1e5}),
    "no control": ("runs", 0, "control_ms", []),
    "blocks of nothing": ("runs", 0, "block", 0),
    "memory in words": ("runs", 0, "peak_mib", "x"),
    "no runs": ("runs", []),
    "a path that is none": ("path", 5),
    "a host that is none": ("host", 5),
    "cores in words": ("host", "cores", "x"),
}


@pytest.mark.parametrize("what", BAD_BASELINE)
def test_a_baseline_that_nobody_measured_is_refused(tmp_path, what):
    document = json.loads((ROOT / "tests" / "golden" / "measurement-1.json").read_text())
    *way, key, value = BAD_BASELINE[what]
    place = document
    for step in way:
        place = place[step]
    place[key] = value
    (tmp_path / "stored.json").write_text(json.dumps({"measurements": [document]}))
    with pytest.raises(PipelineError, match="no output of `edgebuild latency measure --json`"):
        read_baseline(tmp_path / "stored.json", [Subject(document["path"], "onnxruntime", "f32", 1, "")])


TOO_MUCH = [
    ("latency", "measure", CONTROL, "--processes", "1" + "0" * 20),
    ("latency", "profile", CONTROL, "--runs", "100000000000"),
    ("latency", "selftest", "--rounds", "1" + "0" * 20),
    ("latency", "measure", CONTROL, "--target", "ssh://[::1"),
    ("gate", CONTROL, "--limit-ms", "1", "--processes", "1" + "0" * 20),
]


@pytest.mark.parametrize("args", TOO_MUCH, ids=lambda args: args[-1])
def test_numbers_and_addresses_that_no_machine_has(inside, args):
    done = inside(*args)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr


def test_revisions_are_built_in_the_folder_that_the_command_was_given_in(networks):
    below = networks / "below"
    below.mkdir(exist_ok=True)
    (below / "file").write_text("x")
    subprocess.run(["git", "add", "."], cwd=below, check=True)
    subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "below"], cwd=below, check=True
    )
    here = Path.cwd()
    os.chdir(below)
    try:
        with built([Path("out")], "pwd > out", "HEAD", None, print) as (heads, bases):
            assert bases[0].read_text().strip().endswith("checkout/below")
            assert heads[0].read_text().strip() == str(below)
    finally:
        os.chdir(here)


def test_an_unexpected_error_is_not_the_exit_code_of_a_limit_that_was_not_kept(cli, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import latency.calibrate as c\nc.calibrate = None\n")
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = cli("latency", "calibrate", "--pair", "1,50", "--limit-s", "60", env={"PYTHONPATH": paths})
    assert done.returncode == 4
    assert "Traceback" in done.stderr


def test_the_defaults_of_the_commands_are_those_of_the_functions():
    """Written twice, since the command line must not import numpy to show its help."""

    def default(command, name):
        return inspect.signature(command).parameters[name].default

    assert default(cli_latency.compare_command, "processes") == compare.PROCESSES
    assert default(cli_latency.compare_command, "band") == compare.BAND
    assert default(cli_latency.check_command, "processes") == check.PROCESSES
    assert default(cli_latency.check_command, "allow") == check.ALLOWED
    assert default(cli_latency.selftest_command, "rounds") == selftest.ROUNDS
    assert GATE_PROCESSES == default(cli_latency.measure_command, "processes") == 9
    assert default(gate_command, "processes") is None, "so that it is seen where it is given for a run"


def test_the_documented_module_runs_without_the_launcher():
    done = subprocess.run([sys.executable, "-m", "latency.worker"], cwd=ROOT, input="", capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
