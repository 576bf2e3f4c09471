"""Every kind of error as a user sees it: the exact text (what failed, where, what to do next) and the exit code."""

import ast
import errno
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch

from export import sandbox
from export.artifact import Artifact
from export.errors import ExportError, FormatError
from export.formats import parse_formats
from export.lock import BadLock, parse_pins
from export.mixed import CannotReach, keep_f1
from export.parity import logits_of
from export.preprocess import ImageError, Preprocess
from export.sandbox import Given, SandboxBroken
from export.unpack import BadArchive, unpack
from latency.errors import InputError, LatencyError
from latency.machine import CONTROL
from latency.records import Subject
from latency.runners import open_session
from latency.target import machine_of
from models.language import SpecError
from models.spec import ModelSpec
from pipeline.cli.edge import explain
from pipeline.config import load_config
from pipeline.errors import ChangedOutput, EnvironmentProblem, NoCandidate, OutOfMemory, PipelineError
from pipeline.search.choose import Rule, choose
from pipeline.stages import open_run
from pipeline.training.loop import _what_fits
from tests.conftest import ROOT

PACKAGES = ("models", "latency", "export", "pipeline")
NOT_SHOWN = {"Ended", "Exceeded", "Unreadable", "_Hopeless"}
"""Caught where they are raised for."""


def spec_error(tmp_path):
    (tmp_path / "net.yaml").write_text("INPUT_SIZE: [64, 64]\nbackbone:\n- [1, InvertedResidualv4, [16, 3, 1]]\n")
    ModelSpec.load(tmp_path / "net.yaml")


def input_error(tmp_path):
    Subject.of(tmp_path / "gone.onnx")


def latency_error(tmp_path):
    machine_of("ssh://nobody@127.0.0.1:9", ()).host()


def export_error(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    logits_of(Artifact(tmp_path / "model.onnx", "onnxruntime", "f32"), np.zeros((1, 8, 8, 3), np.uint8))


def format_error(tmp_path):
    parse_formats("onnx-int9")


def image_error(tmp_path):
    (tmp_path / "photo.jpg").write_text("no photo")
    Preprocess(32).load(tmp_path / "photo.jpg")


def bad_archive(tmp_path):
    (tmp_path / "bundle.tar.gz").write_text("no archive")
    unpack(tmp_path / "bundle.tar.gz", tmp_path / "out")


def cannot_reach(tmp_path):
    images = np.zeros((2, *open_session(CONTROL, "onnxruntime", "f32", 1).shape[1:]), np.float32)
    keep_f1(CONTROL, "onnxruntime", _no_int8, _no_int8, images, lambda artifact: 0.1, 0.9, tmp_path / "m.onnx", 0.0)


def bad_lock(tmp_path):
    parse_pins(b"# a comment \\\n--no-binary=evil\n")


def changed_output(tmp_path):
    with open_run(tmp_path / "run", load_config("demo"), str) as run:
        run.read("verify", "race.json")


def sandbox_broken(tmp_path, monkeypatch):
    """A kernel that lets nobody make namespaces."""
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with sandbox.opened(Given(tmp_path, tmp_path, tmp_path), 2**20) as box:
        box.ask(9, "prepare")


def pipeline_error(tmp_path):
    (tmp_path / "build.yaml").write_text("data: {root: x}\nlatency: {limt_ms: 1}\n")
    load_config(tmp_path / "build.yaml")


def environment_problem(tmp_path):
    with open_run(tmp_path / "run", load_config("demo"), str), open_run(tmp_path / "run", load_config("demo"), str):
        pass


def out_of_memory(tmp_path):
    def learn(indices):
        if len(indices) > 4:
            raise MemoryError
        return 0.0

    try:
        learn(np.arange(32))
    except MemoryError as error:
        raise _what_fits(error, learn, np.arange(32)) from error


def no_candidate(tmp_path):
    choose([], Rule(1.4, 0.4, 0.02, 0.1, 168))


def interrupt(tmp_path):
    raise KeyboardInterrupt


def full_disk(tmp_path):
    with Path("/dev/full").open("w") as file:
        file.write("x" * 10_000)
        file.flush()


def database_gone(tmp_path):
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/study.db")
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("DROP TABLE studies")
    optuna.create_study(storage=storage)


def memory(tmp_path):
    torch.empty(2**60, dtype=torch.uint8)


SHOWN = {
    SpecError: (
        spec_error,
        2,
        "{tmp}/net.yaml: layer 0: module: unknown block 'InvertedResidualv4' (did you mean 'InvertedResidualv3'?); "
        "known: Conv, DWConv, FixedConv, InvertedResidualv2, InvertedResidualv3, MBConv, Bottleneck, Fire, "
        "ShuffleNetV2, MaxPool, AvgPool, GlobalAvgPool, Flatten, Linear, UniversalInvertedResidual, LCBlock, "
        "GhostBottleneck, RepVGG, MobileOne, Timm",
    ),
    InputError: (input_error, 2, "{tmp}/gone.onnx: no such file"),
    LatencyError: (
        latency_error,
        4,
        "nobody@127.0.0.1: nothing listens on that port; check the port in target, and sshd there (ssh: connect to "
        "host 127.0.0.1 port 9: Connection refused)",
    ),
    ExportError: (
        export_error,
        4,
        "{tmp}/model.onnx: ONNX Runtime cannot load it: [ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load model from "
        "{tmp}/model.onnx failed:Protobuf parsing failed.; export it again",
    ),
    FormatError: (
        format_error,
        2,
        "--format onnx-int9: expected some of onnx, ort, onnx-int8, onnx-int8-tensor, onnx-int8-u8, "
        "onnx-int8-u8-tensor, openvino, openvino-f16, openvino-int8, openvino-int8-fast, with commas "
        "(did you mean 'onnx-int8'?)",
    ),
    ImageError: (
        image_error,
        2,
        "{tmp}/photo.jpg: cannot identify image file '{tmp}/photo.jpg'; replace it, or leave it out",
    ),
    BadArchive: (
        bad_archive,
        4,
        "{tmp}/bundle.tar.gz: damaged, or no .tar.gz (incorrect header check); get it again, compare its sha256",
    ),
    CannotReach: (
        cannot_reach,
        4,
        "onnxruntime INT8 cannot be made to keep F1 0.9000 within 0 s: 0 of 13 layers ranked, best F1 0.0000; raise "
        "quantize.max_f1_drop or quantize.seconds",
    ),
    BadLock: (
        bad_lock,
        4,
        "requirements.txt, line 1: expected a version or a hash, got '# a comment \\\\'",
    ),
    SandboxBroken: (
        sandbox_broken,
        4,
        "it ended at 'prepare', or said far too much: bwrap: No permissions to create a new namespace",
    ),
    ChangedOutput: (
        changed_output,
        2,
        "{tmp}/run/verify/race.json: the stage verify is not done, or its manifest is damaged; `edgebuild run "
        "--run-dir {tmp}/run` does that stage again",
    ),
    PipelineError: (
        pipeline_error,
        2,
        "{tmp}/build.yaml: latency.limit_ms: missing; set it in the file or with --set latency.limit_ms=VALUE\n"
        "{tmp}/build.yaml: latency.limt_ms: unknown key (did you mean 'limit_ms'?); known here: limit_ms, runtimes, "
        "precisions, threads, processes",
    ),
    EnvironmentProblem: (
        environment_problem,
        4,
        "{tmp}/run: another edgebuild is at work on this run folder; wait for it, or give another --run-dir",
    ),
    OutOfMemory: (
        out_of_memory,
        4,
        "out of memory in training with a batch of 32 images; one of 4 fits: lower the batch to that",
    ),
    NoCandidate: (no_candidate, 1, "no candidate was trained, so there is none to choose from"),
    KeyboardInterrupt: (
        interrupt,
        130,
        "interrupted; what was finished is kept, the same command goes on from there",
    ),
    OSError: (
        full_disk,
        4,
        "the disk is full; free some space, or give a --run-dir on another disk; what was finished is kept, the same "
        "command goes on from there",
    ),
    optuna.exceptions.StorageInternalError: (
        database_gone,
        4,
        "search.storage: the database can be used no more: it went away, or refuses to be written; what was told is "
        "kept, the same command goes on from there",
    ),
    RuntimeError: (memory, 4, "out of memory; lower the batch sizes or the input size"),
}
"""Kind -> (what raises it for real, exit code, the text)."""


@pytest.mark.parametrize("kind", SHOWN, ids=lambda k: k.__name__)
def test_an_error_says_what_where_and_what_next(kind, tmp_path, monkeypatch):
    if kind is LatencyError and shutil.which("ssh") is None:
        pytest.skip("needs an SSH client")
    raises, code, text = SHOWN[kind]
    more = (monkeypatch,) if raises is sandbox_broken else ()
    with pytest.raises(kind) as caught:
        raises(tmp_path, *more)
    assert type(caught.value) is kind or kind is OSError
    told = explain(caught.value)
    assert told is not None
    assert told == (text.replace("{tmp}", str(tmp_path)), code)


def test_every_kind_of_error_of_ours_is_in_the_table():
    found = set()
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            for node in (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)):
                bases = {b.id for b in node.bases if isinstance(b, ast.Name)}
                if any(b.endswith(("Error", "Exception", "Problem")) for b in bases):
                    found.add(node.name)
    assert len(found) > 10
    assert found == {kind.__name__ for kind in SHOWN if kind.__module__.split(".")[0] in PACKAGES} | NOT_SHOWN


def test_what_is_not_expected_keeps_its_traceback():
    assert explain(ValueError("a mistake of ours")) is None
    assert explain(OSError(errno.EPERM, "not permitted")) is None


TYPOS = {
    "a command": (["serch"], "Error: No such command 'serch'. Did you mean 'search', 'teach'?\n"),
    "a command of a group": (["latency", "mesure"], "Error: No such command 'mesure'. Did you mean 'measure'?\n"),
    "an option": (
        ["gate", "--limt-ms", "1"],
        "Error: No such option: --limt-ms (Possible options: --limit-ms)\n",
    ),
    "a config": (
        ["run", "-c", "trashnt"],
        "edgebuild: config 'trashnt': no such file, and no shipped one of that name (did you mean 'trashnet'?); "
        "shipped: demo, lineage-round1, lineage-round2, trashnet, trashnet-quick\n",
    ),
    "a value": (
        ["search", "-c", "mine.yaml", "--set", "search.sampler=ehv"],
        "edgebuild: mine.yaml: search.sampler: expected ehvi, tpe, gp, nsga2, nsga3, random, sweep, got 'ehv' (did you "
        "mean 'ehvi'?)\n",
    ),
    "a runtime": (
        ["latency", "measure", str(CONTROL), "--runtime", "onnxruntim"],
        "edgebuild: unknown runtime 'onnxruntim' (did you mean 'onnxruntime'?); known: onnxruntime, openvino\n",
    ),
    "a precision": (
        ["latency", "measure", str(CONTROL), "--precision", "int9"],
        "edgebuild: unknown precision 'int9' (did you mean 'int8'?); known: f32, bf16, int8\n",
    ),
    "a model of the zoo": (
        ["model", "show", "cpu_smal"],
        "edgebuild: model 'cpu_smal': no such file, and no shipped one of that name (did you mean 'cpu_small'?); "
        "shipped: cpu_small, lineage_student, mobilenetv3_small\n",
    ),
}


@pytest.mark.parametrize("what", TYPOS)
def test_a_typo_gets_a_suggestion(cli, tmp_path, what):
    (tmp_path / "mine.yaml").write_text("data: {root: x}\nlatency: {limit_ms: 1}\n")
    args, text = TYPOS[what]
    done = cli(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.endswith(text)
    assert done.stdout == ""


def _no_int8(path, keep):
    path.write_bytes(CONTROL.read_bytes())
