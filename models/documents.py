"""The only reader of YAML: strict, so that a file means what it seems to mean, and bounded, so that no file can exhaust
the memory. No torch in here.

Values are those of YAML 1.2's core schema (null, true, false, numbers, text): `no`, `1:30` and `2020-01-01` are text.
Duplicate keys, tags, keys that are not text and several documents in a file are refused. Anchors and aliases are
allowed as long as what they expand to stays small.
"""

import math
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from models.language import SpecError

MAX_BYTES = 2**18
_MAX_DEPTH = 24
_MAX_NODES = 50_000
"""Counting every alias as everything that it expands to."""
_MAX_DIGITS = 40
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NO_NUMBER = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def read_yaml(path: Path) -> Any:
    """Read a YAML file. Raises SpecError naming the file and the line."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        return parse_yaml(content.decode("utf-8-sig"), str(path))
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not readable as YAML: byte {error.start} is not UTF-8") from error


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML. source: named in errors. Raises SpecError."""
    if len(text) > MAX_BYTES:
        raise SpecError(f"{source}: larger than {MAX_BYTES // 2**10} KiB; expected a configuration or an architecture")
    try:
        _check_events(text, source)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise SpecError(f"{source}: not readable as YAML: {error}") from error
    return None if node is None else _value(node, source)


def dump_yaml(value: Any, **options: Any) -> str:
    """Write a value as YAML that `parse_yaml` reads back as the same value. options: passed to `yaml.dump`."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, **options))


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Quote text that would be read as a number: PyYAML writes by an older version of YAML."""
    numbers = (_INT, _FLOAT, _NO_NUMBER, _NULL, _BOOL)
    return dumper.represent_scalar(_TEXT, text, "'" if any(n.fullmatch(text) for n in numbers) else None)


_TEXT = "tag:yaml.org,2002:str"
_Dumper.add_representer(str, _represent_text)


def _check_events(text: str, source: str) -> None:
    """Check depth, size and tags before anything is built. This pass holds one event at a time."""
    sizes: dict[str | None, int | None] = {}
    """anchor -> number of nodes that it stands for; None while it is being read, when an alias to it would never end"""
    open_nodes: list[tuple[str | None, int]] = []
    count = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            size = sizes.get(event.anchor, 0)
            if size is None:
                raise SpecError(f"{_at(event, source)}: the alias *{event.anchor} stands for what holds it")
            count += size
        elif isinstance(event, yaml.NodeEvent):
            tag = getattr(event, "tag", None)
            if tag is not None:
                raise SpecError(f"{_at(event, source)}: the tag {tag!r}: tags are not read here; leave it out")
            count += 1
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor, count - 1))
                if event.anchor:
                    sizes[event.anchor] = None
                if len(open_nodes) > _MAX_DEPTH:
                    raise SpecError(f"{_at(event, source)}: nested more than {_MAX_DEPTH} deep")
            elif event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor:
                sizes[anchor] = count - before
        if count > _MAX_NODES:
            raise SpecError(
                f"{_at(event, source)}: more than {_MAX_NODES} values, aliases counted as what they stand for"
            )


def _value(node: yaml.Node, source: str) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, source)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, source) for item in node.value]
    assert isinstance(node, yaml.MappingNode)
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key: Hashable = _scalar(key_node, source) if isinstance(key_node, yaml.ScalarNode) else None
        if not isinstance(key, str):
            raise SpecError(f"{_at(key_node, source)}: a key must be text; put it in quotes")
        if key in found:
            raise SpecError(f"{_at(key_node, source)}: the key {key!r} is there twice; keep one of them")
        found[key] = _value(value_node, source)
    return found


def _scalar(node: yaml.ScalarNode, source: str) -> Any:
    text: str = node.value
    if node.style is not None:  # in quotes, or a block of text
        return text
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _NO_NUMBER.fullmatch(text):
        raise SpecError(f"{_at(node, source)}: {text} is no number that means anything here")
    if len(text) > _MAX_DIGITS and (_INT.fullmatch(text) or _FLOAT.fullmatch(text)):
        raise SpecError(f"{_at(node, source)}: a number of {len(text)} digits")
    if _INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    if _FLOAT.fullmatch(text):
        number = float(text)
        if not math.isfinite(number):
            raise SpecError(f"{_at(node, source)}: {text} is larger than any number can be here")
        return number
    return text


def _at(where: Any, source: str) -> str:
    """where: a node or an event."""
    return f"{source}, line {where.start_mark.line + 1}"
