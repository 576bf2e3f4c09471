"""Every command line of README and docs runs, on a small run of its own, or is marked as not run and why."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer

from export import sandbox
from pipeline.cli.app import app
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"(?:<!-- not run: (?P<why>.+?) -->\n)?```(?P<kind>\w*)\n(?P<lines>.*?)```", re.DOTALL)


def blocks():
    """(page, reason why it is not run or None, its lines) of each block of commands."""
    for page in PAGES:
        for found in _BLOCK.finditer(page.read_text(encoding="utf-8")):
            if found["kind"] in ("console", "sh", "bash"):
                lines = [re.sub(r"\s{2,}#.*", "", line) for line in found["lines"].splitlines()]
                yield page, found["why"], [line for line in lines if line and not line.startswith(("#", "$ "))]


COMMANDS = sorted({line for _, why, lines in blocks() if why is None for line in lines})


def inline():
    """Commands in backquotes in the text."""
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        yield from (" ".join(code.split()) for code in re.findall(r"`(edgebuild [^`]+)`", text))


INLINE = sorted(set(inline()))


def test_all_that_is_not_run_says_why_and_all_else_is_ours():
    assert len(COMMANDS) > 30
    assert [c for c in COMMANDS if not c.startswith("edgebuild ")] == []
    for page, why, lines in blocks():
        assert why is None or len(why) > 10, (page, lines)


@pytest.mark.parametrize("line", INLINE)
def test_a_command_in_the_text_is_one_that_there_is(line):
    """Name and options; its files need not exist."""
    words = shlex.split(line.replace("| ", ""))[1:]
    command = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        if words[0].startswith("-"):
            break
        assert words[0] in command.commands, line
        command = command.commands[words.pop(0)]
    known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
    unknown = [
        w for w in words if w.startswith("-") and not re.fullmatch(r"-?\d.*", w) and w.split("=")[0] not in known
    ]
    assert unknown == []


@pytest.fixture(scope="module")
def workspace(tiny, tiny_run, tmp_path_factory):
    """A folder with the files that the docs speak of."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(tiny.parent / "photos", folder / "photos")
    shutil.copyfile(tiny, folder / "build.yaml")
    run = folder / "runs/build"
    shutil.copytree(tiny_run, run)
    for source, names in (
        (run / "export/model.onnx", ("a.onnx", "b.onnx", "model.onnx")),
        (run / "export/model.xml", ("b.xml",)),
        (run / "export/model.bin", ("b.bin",)),
        (run / "distill/student.safetensors", ("student.safetensors",)),
        (run / "bundle/bundle.tar.gz", ("bundle.tar.gz",)),
    ):
        for name in names:
            shutil.copyfile(source, folder / name)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_runs(cli, workspace, tmp_path, line):
    if "preflight" in line and (why := sandbox.available()):
        pytest.skip(why)
    place = tmp_path / "here"
    shutil.copytree(workspace, place)
    words = shlex.split(line)[1:]
    if words[0] == "init":
        (place / "build.yaml").unlink()
    done = cli(*words[: words.index(">")] if ">" in words else words, cwd=place)
    assert done.returncode in (0, 3), f"{line}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    if words[0] == "init":
        assert Path(place / "build.yaml").is_file()
