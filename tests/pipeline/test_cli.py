"""The command line from outside: output, exit codes, and what a user reads when something is wrong."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from latency.machine import CONTROL
from models.spec import ZOO
from tests.conftest import ROOT


def test_model_show_as_json_is_all_of_stdout(inside):
    done = inside("model", "show", ZOO / "lineage_student.yaml", "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert (shown["params"], shown["input_size"]) == (663_436, 168)
    assert shown["macs"] == sum(layer["macs"] for layer in shown["layers"])
    assert shown["hash"]


def test_data_check(inside, tiny):
    done = inside("data", "check", tiny.parent / "photos", "--json")
    assert json.loads(done.stdout)["counts"]["train"] == {"checks": 16, "dots": 16, "stripes": 16}


@pytest.mark.parametrize(("limit", "code", "verdict"), [("1000", 0, "pass"), ("0.01", 1, "fail")])
def test_gate_judges_any_file(cli, limit, code, verdict):
    done = cli("gate", CONTROL, "--limit-ms", limit, "--processes", "7", "--json")
    result = json.loads(done.stdout)
    if result["verdict"] == "inconclusive":  # a busy machine: the third answer, with its own exit code
        assert done.returncode == 3
        assert "disturbed" in result["reasons"][0]
    else:
        assert (done.returncode, result["verdict"]) == (code, verdict)


def test_too_few_processes_are_inconclusive(cli):
    done = cli("gate", CONTROL, "--limit-ms", "1000", "--processes", "2")
    assert done.returncode == 3
    assert "verdict: inconclusive" in done.stdout


REFUSED = {
    "an unknown config": (["run", "-c", "dmeo"], 2, "config 'dmeo': no such file, and no shipped one of that name"),
    "a missing data folder": (["run", "-c", "demo", "--set", "data.root=nowhere"], 2, "nowhere: no such folder"),
    "a limit of zero": (["run", "-c", "demo", "--set", "latency.limit_ms=0"], 2, "latency.limit_ms: Input should be"),
    "an unknown key": (["run", "-c", "demo", "--set", "serach.trials=1"], 2, "did you mean 'search'?"),
    "no run folder": (["distill", "--run-dir", "none"], 2, "none: no run folder"),
    "no config and no folder": (["search"], 2, "give -c CONFIG, or --run-dir"),
    "a gate without a limit": (["gate", str(CONTROL)], 2, "--limit-ms: give the limit in milliseconds"),
    "a gate of nothing": (["gate", "none.onnx", "--limit-ms", "1"], 2, "none.onnx: no such file"),
    "a gate of no model": (["gate", __file__, "--limit-ms", "1"], 2, "no runtime for '.py' files"),
    "an unknown teacher": (["run", "-c", "demo", "--set", "teacher.name=mobilenetv3_smal_050"], 2, "timm has no model"),
    "missing weights": (
        ["run", "-c", "demo", "--set", "teacher.weights=w.safetensors"],
        2,
        "w.safetensors: no such file",
    ),
    "a wrong model": (["model", "show", "cpu_smal"], 2, "did you mean 'cpu_small'?"),
    "preflight of nothing": (["preflight", "none.tar.gz"], 2, "BUNDLE none.tar.gz: no such file or folder"),
    "a size that is none": (
        ["preflight", ".", "--disk", "much"],
        2,
        "--disk much: expected a size such as 500MB or 1GiB",
    ),
    "a size of which the beginning is one": (
        ["preflight", ".", "--memory", "1,5GB"],
        2,
        "--memory 1,5GB: expected a size",
    ),
    "a size with a sum behind it": (["config", "show", "-c", "demo", "--set", "limits.size=2GB+1"], 2, "got '2GB+1'"),
    "a range of sizes": (["config", "show", "-c", "demo", "--set", "limits.size=100-200MB"], 2, "got '100-200MB'"),
    "an unknown format": (["export", "--format", "onx", "--run-dir", "r"], 2, "--format onx: expected some of onnx"),
    "a checkpoint of nothing": (
        ["export", "--checkpoint", "none.safetensors"],
        2,
        "none.safetensors: no such checkpoint",
    ),
    "an unknown command": (["serach"], 2, "No such command 'serach'"),
    "options of a file for the gate of a run": (
        ["gate", "--run-dir", "r", "--processes", "15"],
        2,
        "gate: --limit-ms, --processes, --target and the like are of a FILE; for a run set its config",
    ),
    "options of a bundle for the preflight of a run": (
        ["preflight", "--run-dir", "r", "--disk", "1GB"],
        2,
        "preflight: --disk, --images and the like are of a BUNDLE; for a run set its config",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(inside, case, tmp_path):
    args, code, text = REFUSED[case]
    done = inside(*args, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_space_that_cannot_meet_the_limit_fails_with_the_nearest_miss(cli, tiny, tmp_path):
    limits = ["--set", "latency.limit_ms=0.02", "--set", "search.max_asked=2"]
    folder = tmp_path / "r"
    done = cli("search", "-c", tiny, *limits, "--run-dir", folder)
    assert done.returncode == 0, done.stderr
    assert not (folder / "study/trained").exists()

    # what the folder keeps is a config, and a stage or a report needs no other
    assert yaml.safe_load((folder / "config.yaml").read_text())["latency"]["limit_ms"] == 0.02
    done = cli("select", "--run-dir", folder)
    assert done.returncode == 1
    assert "no candidate keeps the limit" in done.stderr
    done = cli("report", "--run-dir", folder, "--json")
    assert json.loads(done.stdout)["verdict"] == "unfinished", done.stderr
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "not finished; select is next" in report
    assert 'id="plot-pareto"' in report

    # more may be asked for: the study goes on where it was
    done = cli("run", "-c", tiny, *limits[:2], "--set", "search.max_asked=4", "--run-dir", folder, "--json")
    assert done.returncode == 1, done.stderr
    assert "trial 2:" in done.stderr
    assert "trial 1:" not in done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads((folder / "result.json").read_text())
    assert (result["verdict"], result["model"]) == ("fail", None)
    assert result["search"] == {"asked": 4, "rejected_untrained": 4, "trained": 0, "over_limit_trained": 0}
    assert "the nearest of 4 measured candidates takes" in result["reasons"][0]
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert '<p class="verdict fail">fail</p>' in report
    assert "the nearest of 4 measured candidates takes" in report
    done = cli("distill", "--run-dir", folder)
    assert done.returncode == 2
    assert "distill: needs the stage select first: `edgebuild select --run-dir" in done.stderr


def completed(words):
    """What a shell offers for the last of these words."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "_EDGEBUILD_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    code = "import sys; sys.argv[0] = 'edgebuild'; from edgebuild.__main__ import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    ).stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["edgebuild", "sel"], ["select"]),
        (["edgebuild", "latency", "me"], ["measure"]),
        (["edgebuild", "run", "--set", "latency.li"], ["latency.limit_ms="]),
        (["edgebuild", "run", "--set", "search.stop.s"], ["search.stop.share=", "search.stop.similar="]),
        (["edgebuild", "run", "-c", "trashnet"], ["trashnet", "trashnet-quick"]),
        (["edgebuild", "run", "--device", "c"], ["cpu", "cuda"]),
    ],
)
def test_a_shell_completes_commands_keys_and_configs(words, offered):
    assert completed(words) == offered


def test_the_version(cli):
    from latency.host import version_of

    assert cli("--version").stdout == f"edgebuild {version_of('edgebuild')}\n"
