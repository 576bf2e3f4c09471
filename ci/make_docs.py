"""Write the generated pages of docs/reference from the code: the command line, the config, the model language.

python ci/make_docs.py; tests/docs/test_pages.py holds that the pages are what this writes.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import typer  # noqa: E402
from typer.cli import get_docs_for_click  # noqa: E402

from models.blocks import BUILDERS  # noqa: E402
from models.language import ACTIVATIONS, BLOCKS, KINDS, Block  # noqa: E402
from pipeline.cli.app import app  # noqa: E402
from pipeline.config import BuildConfig  # noqa: E402

REFERENCE = ROOT / "docs" / "reference"
_HEAD = "<!-- Written by `make docs` from the code: change it there. -->\n\n"
NOT_RUN = {
    "target: ssh": "needs a board",
    "ssh://": "needs a board",
    "--ray": "needs a cluster",
    "data fetch": "needs the network",
    "selftest": "takes a minute, and has a test of its own",
    "--check-proxy": "needs five trained candidates, and has a test of its own",
    "narrow": "needs ten trained candidates, and has a test of its own",
    "round2.yaml": "is what narrow writes",
    "--build": "needs a repository with that revision",
    "--baseline": "needs a measurement of an earlier day",
}
"""Part of a command -> why the test of the docs does not run it."""


def pages() -> dict[str, str]:
    """File name -> content."""
    return {
        "cli.md": _HEAD + command_line(),
        "config.md": _HEAD + config(),
        "model-language.md": _HEAD + model_language(),
        "build.schema.json": json.dumps(BuildConfig.model_json_schema(), indent=1) + "\n",
    }


def command_line() -> str:
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name="edgebuild"), name="edgebuild")
    text = text.replace("# `edgebuild`\n", "# Command line\n", 1)
    # Its lists of commands cut each line at 45 characters; the first sentence of the section is what they begin with.
    firsts = dict(re.findall(r"^#+ `(edgebuild [a-z -]+)`\n\n(.+?\.)(?:\s|$)", text, re.MULTILINE))

    def whole(found: re.Match[str]) -> str:
        section = text[: found.start()].rpartition("\n# ")[2] if found.start() else ""
        groups = re.findall(r"^#+ `(edgebuild [a-z -]+)`$", section, re.MULTILINE)
        group = groups[-1] if groups else "edgebuild"
        name = f"{group} {found[1]}"
        return f"* `{found[1]}`: {firsts.get(name, found[2])}"

    text = re.sub(r"^\* `([a-z-]+)`: (.+)$", whole, text, flags=re.MULTILINE)
    return re.sub(r"^Examples?: ((?:.+\n)+)", lambda m: _examples(m[1]), text, flags=re.MULTILINE)


def _examples(text: str) -> str:
    commands = re.split(r";\s+", " ".join(text.split()))
    return "".join(f"{_mark(c)}```console\n{c}\n```\n" for c in commands)


def _mark(command: str) -> str:
    why = next((why for part, why in NOT_RUN.items() if part in command), None)
    return f"<!-- not run: {why} -->\n" if why else ""


def config() -> str:
    schema = BuildConfig.model_json_schema()
    lines = [
        "# Config keys",
        "",
        "A `build.yaml` has these sections; every key can be set on the command line too, `--set seed=1` for example.",
        "`edgebuild config show -c build.yaml` prints all of them as they stand. For completion and checks in an",
        "editor, write the schema (`edgebuild config schema > build.schema.json`, or [this one](build.schema.json))",
        "beside your config and begin that with `# yaml-language-server: $schema=build.schema.json`.",
        "",
    ]
    top = [(k, v) for k, v in schema["properties"].items() if _section(v, schema) is None]
    lines += _table("", top, schema)
    for key, value in schema["properties"].items():
        lines += _section_lines(key, value, schema)
    return "\n".join(lines) + "\n"


def _section(value: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any] | None:
    refs = [value.get("$ref"), *(o.get("$ref") for o in value.get("anyOf", []))]
    name = next((r for r in refs if r), None)
    return schema["$defs"][name.rpartition("/")[2]] if name else None


def _section_lines(path: str, value: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    section = _section(value, schema)
    if section is None:
        return []
    own = [(k, v) for k, v in section["properties"].items() if _section(v, schema) is None]
    about = " ".join(filter(None, (value.get("description"), section.get("description"))))
    lines = [f"## {path}", "", _flat(about), "", *_table(path + ".", own, schema)]
    for key, inner in section["properties"].items():
        lines += _section_lines(f"{path}.{key}", inner, schema)
    return lines


def _table(prefix: str, keys: list[tuple[str, dict[str, Any]]], schema: dict[str, Any]) -> list[str]:
    lines = ["| key | values | default | |", "| --- | --- | --- | --- |"]
    for key, value in keys:
        default = f"`{json.dumps(value['default'])}`" if "default" in value else "required"
        lines.append(f"| `{prefix}{key}` | {_kind(value)} | {default} | {_flat(value.get('description', ''))} |")
    return [*lines, ""]


def _kind(value: dict[str, Any]) -> str:
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_kind(o) for o in value["anyOf"]))
    if "enum" in value:
        return ", ".join(f"`{v}`" for v in value["enum"])
    if value.get("type") == "array":
        if "prefixItems" in value:
            return f"{len(value['prefixItems'])} of: {_kind(value['prefixItems'][0])}"
        return f"list of: {_kind(value.get('items', {}))}"
    if r"\d" in value.get("pattern", ""):
        return "a size, as 500MB"
    names = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false", "null": "null"}
    bounds = [
        f"{sign} {value[key]:g}"
        for key, sign in (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
        if key in value
    ]
    return " ".join([names.get(value.get("type", ""), "mapping"), ", ".join(bounds)]).strip()


def _flat(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def model_language() -> str:
    lines = [
        "# Model language",
        "",
        "A network is a list of `[repeat, module, args]`; see `models/spec.py` for the whole document and its rules.",
        "`edgebuild model show FILE` prints what a file comes to. Numbers of channels follow `width_multiple` where it",
        "says so, repeats over 1 follow `depth_multiple`.",
        "",
        "| module | arguments | channels scaled | the stride is on |",
        "| --- | --- | --- | --- |",
    ]
    assert set(BLOCKS) <= set(BUILDERS)
    for name, block in BLOCKS.items():
        lines.append(f"| `{name}` | {_arguments(block)} | {'yes' if block.scaled else 'no'} | {block.stride_on} |")
    lines += ["", "## Kinds of arguments", "", "| kind | what it takes |", "| --- | --- |"]
    lines += [f"| {kind} | {_flat(told)} |" for kind, (_, told) in KINDS.items()]
    lines += ["", f"Activations: {', '.join(f'`{a}`' for a in ACTIVATIONS)}, or null for none.", ""]
    return "\n".join(lines)


def _arguments(block: Block) -> str:
    def one(arg: Any) -> str:
        default = "" if arg.default is ... else f" = {json.dumps(arg.default)}"
        return f"`{arg.name}` ({arg.kind}){default}"

    return ", ".join(one(a) for a in block.args) or "none"


def main() -> None:
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name, content in pages().items():
        (REFERENCE / name).write_text(content, encoding="utf-8")
        print(REFERENCE.relative_to(ROOT) / name)


if __name__ == "__main__":
    main()
