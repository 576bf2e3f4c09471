"""Terminals, pipes and places to write: no traceback, and nothing timed for what cannot be kept."""

import json
import os
import subprocess
import sys

import pytest

from latency.machine import CONTROL
from pipeline.cli.edge import check_writable
from pipeline.errors import PipelineError
from tests.conftest import ROOT, draw_photos

EDGEBUILD = [sys.executable, "-m", "edgebuild"]


def shell(command, **env):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "EDGEBUILD": " ".join(EDGEBUILD), **env}
    return subprocess.run(["bash", "-c", command], capture_output=True, env=env, timeout=300)


def test_a_reader_that_has_had_enough():
    done = shell("$EDGEBUILD config show -c demo | head -1; echo ${PIPESTATUS[0]}")
    assert b"Traceback" not in done.stderr
    assert done.stderr == b""
    assert done.stdout.splitlines()[0] == b"seed: 0"


@pytest.mark.parametrize("command", ["config schema", "model show cpu_small"])
def test_a_reader_that_is_gone_before_anything_is_printed(command):
    """By typer's echo, and by rich's tables."""
    done = shell(f"$EDGEBUILD {command} --quiet | true; echo ${{PIPESTATUS[0]}}")
    assert b"Traceback" not in done.stderr
    assert done.stdout.strip() in (b"0", b"141")


@pytest.mark.parametrize("close", [">&-", "2>&-"])
def test_closed_streams(close):
    done = shell(f"$EDGEBUILD model show cpu_small {close}; echo code $?")
    assert b"Traceback" not in done.stderr
    assert b"code 0" in done.stdout


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["--help", "model show cpu_small"])
def test_a_full_disk_behind_stdout(command, unbuffered):
    done = shell(f"$EDGEBUILD {command} > /dev/full; echo code $?", PYTHONUNBUFFERED=unbuffered)
    assert b"Traceback" not in done.stderr
    assert b"code 4" in done.stdout
    assert b"the disk is full" in done.stderr


@pytest.mark.parametrize("command", ["gate none.onnx --limit-ms 5", "run -c none", "gate --limit-ms much", "none"])
@pytest.mark.parametrize("ended", ["2>/dev/full; echo code $?", "2>&1 >/dev/null | true; echo code ${PIPESTATUS[0]}"])
def test_a_message_that_cannot_be_written_leaves_the_exit_code(command, ended):
    assert b"code 2" in shell(f"$EDGEBUILD {command} {ended}").stdout


@pytest.mark.parametrize("encoding", ["ascii", "cp437"])
def test_a_terminal_that_lacks_characters(tmp_path, encoding):
    draw_photos(tmp_path / "photos", train=4, val=4)
    for split in ("train", "val"):
        (tmp_path / "photos" / split / "dots").rename(tmp_path / "photos" / split / "Grün-垃圾-😀")
    done = shell(f"$EDGEBUILD data check {tmp_path / 'photos'}", PYTHONIOENCODING=encoding, PYTHONUTF8="0", LC_ALL="C")
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Gr" in done.stdout


UNWRITABLE = {
    "gone/out": "its folder does not exist",
    "folder": "it is a folder",
    "file/out": "its folder does not exist",
    "x" * 300: "File name too long",
    "nul\0byte": "embedded null byte",
}


@pytest.mark.parametrize("place", UNWRITABLE, ids=ascii)
def test_what_makes_a_place_one_that_cannot_be_written(tmp_path, place):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    with pytest.raises(PipelineError) as caught:
        check_writable("-o", tmp_path / place)
    assert f"it cannot be written ({UNWRITABLE[place]}); nothing was done" in str(caught.value)


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path):
    (tmp_path / "file").write_text("kept")
    check_writable("-o", tmp_path / "file")
    check_writable("-o", tmp_path / "new")
    assert (tmp_path / "file").read_text() == "kept"
    assert not (tmp_path / "new").exists()


COMMANDS = {
    "--markdown": ["latency", "check", CONTROL, "--base", CONTROL, "--markdown"],
    "--junit": ["latency", "check", CONTROL, "--base", CONTROL, "--junit"],
    "init -o": ["init", "photos", "--limit-ms", "1", "--weights", "none", "-o"],
    "data demo": ["data", "demo"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_it_is_noticed_before_anything_is_timed(cli, tmp_path, command):
    draw_photos(tmp_path / "photos", train=4, val=4)
    done = cli(*COMMANDS[command], "gone/out", cwd=tmp_path, timeout=60)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert "gone/out: it cannot be written (its folder does not exist); nothing was done" in done.stderr
    assert done.stdout == ""
    assert "measuring" not in done.stderr


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["latency", "measure", CONTROL, "--threads", "5000"], "Invalid value for '--threads'"),
        (["gate", CONTROL, "--limit-ms", "nan"], "expected a number, got nan"),
        (["latency", "compare", CONTROL, CONTROL, "--band", "nan"], "--band"),
        (["init", "x", "--limit-ms", "inf"], "expected a number, got inf"),
        (
            ["latency", "calibrate", "--pair", "1,2", "--pair", "2,4", "--limit-s", "nan"],
            "--limit-s: expected a number",
        ),
    ],
)
def test_numbers_that_are_none(cli, args, told):
    done = cli(*args, env={"COLUMNS": "200"})
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_no_room_for_temporary_files(cli, tmp_path):
    """Python looks through several folders for one that it can write to; here there is none."""
    code = (
        "import tempfile, sys\ntempfile._candidate_tempdir_list = lambda: ['/proc/nowhere']\n"
        f"sys.argv = ['edgebuild', 'latency', 'measure', {str(CONTROL)!r}, '--processes', '1']\n"
        "from edgebuild.__main__ import main\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 4, done.stderr
    assert "no folder for temporary files can be written: free some space, or name one in TMPDIR" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_name_that_no_file_can_have(cli, tmp_path):
    done = cli("config", "show", "-c", "x" * 5000)
    assert done.returncode == 4
    assert "File name too long" in done.stderr
    assert "Traceback" not in done.stderr


def test_json_of_names_that_are_not_utf_8(cli, tmp_path):
    draw_photos(tmp_path / "photos", train=4, val=4)
    path = tmp_path / "photos/train/dots" / os.fsdecode(b"caf\xe9.jpg")
    path.write_bytes(b"no image")
    done = cli("data", "check", tmp_path / "photos", "--json")
    assert done.returncode == 0, done.stderr
    assert "train/dots/caf\udce9.jpg" in json.loads(done.stdout)["skipped"]
    assert cli("data", "check", tmp_path / "photos").returncode == 0
