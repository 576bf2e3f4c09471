"""The docs say what is: generated pages are current, every command, option and key is there, quoted messages exist."""

import ast
import re
import sys
from pathlib import Path

import pytest
import typer

from pipeline.cli.app import app
from pipeline.config import BuildConfig
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "ci"))

import make_docs

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(group, path=("edgebuild",)):
    """(path, command) of all, groups left out."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = list(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", make_docs.pages())
def test_a_generated_page_is_what_the_code_says(name):
    written = (make_docs.REFERENCE / name).read_text(encoding="utf-8")
    assert written == make_docs.pages()[name], "run `make docs`"


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(p) for p, _ in COMMANDS])
def test_every_command_has_an_example_and_all_its_options_on_the_page(path, command):
    page = (make_docs.REFERENCE / "cli.md").read_text(encoding="utf-8")
    section = page.split(f"## `{' '.join(path)}`\n")[1]
    section = re.split(r"\n##+ `", section)[0]
    assert f"\n{' '.join(path)}" in section, "no example in its docstring"
    for param in command.params:
        shown = param.opts if param.param_type_name == "option" else [param.name]
        for name in shown:
            assert name in section, name
        assert getattr(param, "help", ""), f"{name} says nothing"


def keys(schema, section, prefix=""):
    for key, value in section["properties"].items():
        refs = [value.get("$ref"), *(o.get("$ref") for o in value.get("anyOf", []))]
        inner = next((r for r in refs if r), None)
        if inner:
            yield from keys(schema, schema["$defs"][inner.rpartition("/")[2]], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value.get("description", "")


def test_every_config_key_is_described():
    schema = BuildConfig.model_json_schema()
    page = (make_docs.REFERENCE / "config.md").read_text(encoding="utf-8")
    found = dict(keys(schema, schema))
    assert len(found) > 80
    for key, description in found.items():
        assert len(description) > 10, f"{key} says nothing of itself"
        assert f"| `{key}` |" in page


def test_messages_in_the_troubleshooting_are_those_of_the_code():
    """Each heading in backquotes is part of a text that the program (or, for one, torch) really writes."""
    texts = []
    for file in (f for package in ("edgebuild", "models", "latency", "export", "pipeline") for f in files(package)):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    everything = "\n".join(texts)
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    assert len(quoted) > 15
    for message in quoted:
        assert message in everything or message == "operator torchvision::nms does not exist", message


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_links_and_pictures_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, target


def test_files_that_the_docs_name_exist():
    for page in PAGES:
        for name in re.findall(r"`((?:models|latency|export|pipeline|tests|ci)/[\w./-]+)`", page.read_text("utf-8")):
            assert (ROOT / name).exists(), f"{page.name}: {name}"
