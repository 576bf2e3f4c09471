"""What goes wrong around a run: no network, weights of another network, two at once, a full disk, an interrupt."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import save_file

from models import torchvision_ops
from models.language import SpecError
from models.pretrained import network, normalisation
from tests.conftest import ROOT

torchvision_ops.ensure()


def test_a_hub_that_cannot_be_reached_is_said_before_anything_is_searched(cli, tiny, tmp_path):
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    done = cli("run", "-c", tiny, "--set", "teacher.weights=hub", "--run-dir", tmp_path / "r", env=env)
    assert done.returncode == 4, done.stderr
    assert "the weights of 'mobilenetv3_small_050' cannot be downloaded" in done.stderr
    assert "--set teacher.weights=FILE.safetensors" in done.stderr
    assert "Traceback" not in done.stderr
    assert "search: begins" not in done.stderr


def test_weights_that_do_not_fit_are_said_before_anything_is_searched(inside, tiny, tmp_path):
    import timm

    save_file(timm.create_model("lcnet_050").state_dict(), tmp_path / "other.safetensors")
    weights = f"teacher.weights={tmp_path / 'other.safetensors'}"
    done = inside("run", "-c", tiny, "--set", weights, "--run-dir", tmp_path / "r")
    assert done.returncode == 2, done.stderr
    assert "does not fit mobilenetv3_small_050" in done.stderr
    assert "search: begins" not in done.stderr


def test_weights_of_another_network_name_the_keys(tmp_path):
    import timm

    save_file(timm.create_model("lcnet_050").state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(SpecError, match=r"does not fit mobilenetv3_small_050: \d+ keys missing \(.*unexpected"):
        network("mobilenetv3_small_050", str(tmp_path / "other.safetensors"), 3, "teacher")


def test_a_head_of_another_size_is_replaced(tmp_path):
    import timm

    save_file(timm.create_model("mobilenetv3_small_050").state_dict(), tmp_path / "own.safetensors")
    model = network("mobilenetv3_small_050", str(tmp_path / "own.safetensors"), 3, "teacher")
    assert model.get_classifier().out_features == 3
    norm = normalisation("mobilenetv3_small_050")
    assert norm.mean == pytest.approx(tuple(255 * m for m in model.pretrained_cfg["mean"]))


def test_real_weights_bring_their_own_normalisation(lite0_weights):
    network("tf_efficientnet_lite0", str(lite0_weights), 6, "teacher")
    norm = normalisation("tf_efficientnet_lite0")
    assert norm.mean == norm.std == (127.5, 127.5, 127.5)


def test_a_second_run_on_the_same_folder_is_refused(inside, tiny, tmp_path):
    with (tmp_path / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = inside("search", "-c", tiny, "--run-dir", tmp_path)
    assert done.returncode == 4
    assert f"{tmp_path}: another edgebuild is at work on this run folder" in done.stderr


def test_a_run_folder_that_cannot_be_written(inside, tiny, tmp_path):
    (tmp_path / "file").write_text("")
    done = inside("search", "-c", tiny, "--run-dir", tmp_path / "file" / "run")
    assert done.returncode == 4
    assert "cannot be written" in done.stderr


def start(*args):
    return subprocess.Popen(
        [sys.executable, "-m", "edgebuild", *map(str, args)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in what a shell runs behind it
    )


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_one_line_and_code_130(tiny, tmp_path, sent):
    process = start("search", "-c", tiny, "--run-dir", tmp_path / "r")
    for line in process.stderr:
        if line.startswith("search: begins"):
            break
    time.sleep(1)
    process.send_signal(sent)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; what was finished is kept, the same command goes on from there" in rest
    assert "Traceback" not in rest


_LOSES_IT = """
import os, signal, typer
from pipeline.cli.edge import guarded, say

class Thing:
    def __del__(self):
        os.kill(os.getpid(), signal.{sent})

def work():
    thing = Thing()
    del thing  # what is raised in there is lost
    say("one more trial")
    say("and one more")

typer.run(guarded(work))
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_gets_lost_in_a_library_counts_at_the_next_line_told(sent):
    done = subprocess.run(
        [sys.executable, "-c", _LOSES_IT.format(sent=sent.name)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert done.returncode == 130, done.stderr
    assert "one more trial" in done.stderr
    assert "and one more" not in done.stderr
    assert "interrupted; what was finished is kept" in done.stderr
    assert "Exception ignored" not in done.stderr


_IN_A_CALLBACK = """
import os, signal, onnx, onnxsim, typer
from onnx import helper
from onnxsim import onnx_simplifier
from pipeline.cli.edge import guarded, say

run = onnx_simplifier.PyModelExecutor.Run

def interrupted(self, *args):
    os.kill(os.getpid(), signal.SIGTERM)
    return run(self, *args)

onnx_simplifier.PyModelExecutor.Run = interrupted
nodes = [
    helper.make_node("Constant", [], ["a"], value_float=1.0),
    helper.make_node("Add", ["a", "a"], ["b"]),
    helper.make_node("Add", ["x", "b"], ["y"]),
]
x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, []) for n in "xy")
model = helper.make_model(helper.make_graph(nodes, "g", [x], [y]))

def work():
    onnxsim.simplify(model)
    say("simplified")
    say("and one more")

typer.run(guarded(work))
"""


def test_an_interrupt_while_c_calls_python_back_is_one_line():
    done = subprocess.run(
        [sys.executable, "-c", _IN_A_CALLBACK],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert "simplified" in done.stderr
    assert "and one more" not in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["data demo {folder}", "config show -c demo > {folder}"])
def test_a_file_that_may_not_grow_is_said_and_code_4(tmp_path, command, unbuffered):
    """By a limit on the size of a file, which fails with another error than a full disk."""
    told = f"{sys.executable} -m edgebuild {command.format(folder=tmp_path / 'x')}"
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 1; {told}"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 4, done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x").is_dir()


def can_mount() -> bool:
    unshare = shutil.which("unshare")
    return bool(unshare) and subprocess.run([unshare, "-rm", "true"], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="needs user namespaces to mount a small disk")
@pytest.mark.parametrize("size", ["150k", "1m"])
def test_a_full_disk_is_said_and_code_4(tiny, tmp_path, size):
    """150 kB hold no study; 1 MB holds it and no decoded images."""
    only = "--set search.measure=[onnxruntime-f32]"
    command = f"exec {sys.executable} -m edgebuild search -c {tiny} {only} --run-dir {tmp_path}/r"
    script = f"mount -t tmpfs -o size={size} tmpfs {tmp_path} && {command}"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 4, done.stderr
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
