"""The one reader of YAML: what it means, and what it refuses before it fills the memory."""

import time

import pytest

from models.documents import MAX_BYTES, dump_yaml, parse_yaml, read_yaml
from models.language import SpecError

MEANS = {
    "{a: 1, b: 1.5, c: text, d: null, e: true}": {"a": 1, "b": 1.5, "c": "text", "d": None, "e": True},
    "{a: no, b: yes, c: on, d: off}": {"a": "no", "b": "yes", "c": "on", "d": "off"},
    "{a: 2020-01-01, b: 1:30, c: 1_000}": {"a": "2020-01-01", "b": "1:30", "c": "1_000"},
    "{a: 1e-4, b: 0x10, c: 010, d: -3, e: +.5}": {"a": 1e-4, "b": 16, "c": 10, "d": -3, "e": 0.5},
    "{a: '1', b: \"true\", c: ~, d: }": {"a": "1", "b": "true", "c": None, "d": None},
    "a: &x [1, 2]\nb: *x\n": {"a": [1, 2], "b": [1, 2]},
    "": None,
    "\ufeffa: 1": {"a": 1},
}


@pytest.mark.parametrize("text", MEANS)
def test_what_a_text_means(text, tmp_path):
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    assert read_yaml(tmp_path / "x.yaml") == MEANS[text]


REFUSED = {
    "a key twice": ("latency: {limit_ms: 1}\nlatency: {limit_ms: 1000}", "line 2: the key 'latency' is there twice"),
    "a deep key twice": ("a:\n  b: 1\n  b: 2", "line 3: the key 'b' is there twice"),
    "a key twice in quotes": ("{a: 1, 'a': 2}", "the key 'a' is there twice"),
    "a tag": ("a: !!int abc", "line 1: the tag 'tag:yaml.org,2002:int'"),
    "a tag of Python": ("!!python/object/apply:os.system ['true']", "tags are not read here"),
    "a tag of our own": ("a: !x 1", "the tag '!x'"),
    "binary": ("a: !!binary aGVsbG8=", "tags are not read here"),
    "a set": ("!!set {a, b}", "tags are not read here"),
    "a number as a key": ("1: a", "line 1: a key must be text"),
    "a list as a key": ("[1, 2]: a", "line 1: a key must be text"),
    "nothing as a key": ("~: a", "a key must be text"),
    "not a number": ("a: .nan", ".nan is no number"),
    "infinity": ("a: -.inf", "-.inf is no number"),
    "a number beyond all": ("a: 1e999", "1e999 is larger than any number can be"),
    "a number of many digits": (f"a: {'9' * 5000}", "a number of 5000 digits"),
    "two documents": ("a: 1\n---\nb: 2", "not readable as YAML"),
    "a cycle": ("a: &x [*x]", "line 1: the alias *x stands for what holds it"),
    "a cycle of two": ("a: &x {b: &y [*x]}", "the alias *x stands for what holds it"),
    "an alias to nothing": ("a: *x", "not readable as YAML"),
    "nesting": ("[" * 5000, "nested more than 24 deep"),
    "nesting in blocks": ("\n".join(" " * i + "a:" for i in range(60)), "nested more than 24 deep"),
    "a control character": ("a: \x07", "not readable as YAML"),
    "half a mapping": ("{a: 1", "not readable as YAML"),
    "a merge": ("a: &x {b: 1}\nc: {<<: *x, <<: *x}", "the key '<<' is there twice"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_names_the_line(what):
    text, told = REFUSED[what]
    with pytest.raises(SpecError) as caught:
        parse_yaml(text, "build.yaml")
    assert str(caught.value).startswith("build.yaml")
    assert told in str(caught.value)


def bomb(levels, width):
    """Each level holds the one before it ten times over."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize("text", [bomb(9, 10), bomb(20, 4), "a: &a [x]\nb: [" + "*a, " * 60_000 + "]"])
def test_a_bomb_of_aliases_is_refused_in_no_time(text):
    began = time.monotonic()
    with pytest.raises(SpecError, match=r"aliases counted as what they stand for|larger than"):
        parse_yaml(text, "x")
    assert time.monotonic() - began < 30


def test_a_file_that_is_too_large_is_not_read_whole(tmp_path):
    path = tmp_path / "x.yaml"
    with path.open("wb") as file:
        file.truncate(2**34)
    with pytest.raises(SpecError, match=r"larger than 256 KiB|is not UTF-8|not readable"):
        read_yaml(path)
    assert MAX_BYTES == 2**18


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"a: \xff")
    with pytest.raises(SpecError, match="byte 3 is not UTF-8"):
        read_yaml(tmp_path / "x.yaml")
    with pytest.raises(SpecError, match="cannot be read: No such file"):
        read_yaml(tmp_path / "gone.yaml")


@pytest.mark.parametrize(
    "value", ["1", "1e5", "no", "true", "~", "0x10", ".5", "", "2020-01-01", "a: b", "é\n", 1e-7, None]
)
def test_what_is_written_is_read_back(value):
    assert parse_yaml(dump_yaml({"a": value, "b": [value]}), "x") == {"a": value, "b": [value]}
