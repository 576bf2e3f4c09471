"""Reading what a stranger wrote takes no more memory and time than this machine can spare."""

import json
import os
import resource
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from export import bounded
from export.checks import Limits
from export.preflight import preflight
from tests.faults.bundles import cause, edit, seal


def ask(do, **more):
    return bounded.ask("tests.faults.greedy", {"do": do, **more})


def within(seconds, condition):
    ends = time.monotonic() + seconds
    while not condition() and time.monotonic() < ends:
        time.sleep(0.05)
    return condition()


def test_an_answer_comes_back_as_it_was_given():
    assert ask("echo", what=["ä", 1.5, None]) == ["ä", 1.5, None]


@pytest.mark.parametrize("do", ["memory", "time", "death"])
def test_too_much_is_told_as_that(do, monkeypatch):
    monkeypatch.setitem(bounded.LIMITS, resource.RLIMIT_CPU, 2)
    with pytest.raises(bounded.Exceeded, match="it took over"):
        ask(do)


def test_a_fault_of_this_machine_stays_one():
    with pytest.raises(OSError, match="No space left") as caught:
        ask("disk")
    assert (caught.value.errno, caught.value.filename) == (28, "/somewhere")


def test_what_was_ended_from_outside_is_no_fault_of_what_it_read():
    """As the kernel does where the machine is out of memory."""
    with pytest.raises(bounded.Unreadable, match="ended from outside: code -9"):
        ask("killed")


def test_what_nobody_foresaw_is_told(capfd):
    with pytest.raises(bounded.Unreadable, match=r"KeyError in greedy\.py, line \d+: 'x'"):
        ask("bug")
    assert capfd.readouterr().err == ""


ASKS = """
import sys
sys.path.insert(0, sys.argv[1])
from export import bounded
bounded.ask("tests.faults.greedy", {"do": "wait", "file": sys.argv[2]})
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_ends_the_one_that_asks_ends_it_too_after_it_has_cleaned_up(number, tmp_path):
    file = tmp_path / "file"
    root = str(Path(bounded.__file__).parent.parent)
    command = [sys.executable, "-c", ASKS, root, str(file)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    assert within(60, file.is_file)
    if number == signal.SIGINT:  # a terminal sends it to all
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert "greedy" not in said.replace("tests.faults.greedy", ""), "nothing is said by the one that was asked"
    assert within(60, lambda: not file.exists())


def test_what_cannot_be_read_gets_no_pass(bundle, monkeypatch):
    monkeypatch.setattr(bounded, "ask", _raises(bounded.Unreadable("TypeError: x")))
    found = preflight(bundle, Limits())
    assert (found.verdict, "TypeError: x" in found.reasons[0]) == ("inconclusive", True)
    monkeypatch.setattr(bounded, "ask", _raises(bounded.Exceeded("it took over 3.2 GB of memory")))
    assert cause(preflight(bundle, Limits())).name == "reading"


def _raises(error):
    def ask(*_):
        raise error

    return ask


def _many(value, size=5_000_000):
    return "[" + ",".join([value] * (size // (len(value) + 1))) + "]"


def _numbered(count):
    return "{" + ",".join(f'"{i}":1' for i in range(count)) + "}"


LARGE = {
    "numbers for rows": ("recorded", _many("1")),
    "lists for classes": ("classes", _many("[]")),
    "objects for needs": ("relies_on", _many("{}")),
    "numbers for hashes": ("files", _numbered(400_000)),
    "numbers for samples": ("golden", f'{{"tolerance":1,"samples":{_numbered(300_000)}}}'),
    "an unknown key that holds much": ("more", _many("1")),
}


LONG = ("numbers for samples", "numbers for hashes")


@pytest.mark.parametrize("what", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in LARGE])
def test_a_large_manifest_is_refused_in_seconds(bundle, what):
    """Each of these took minutes, or more memory than there is."""
    key, text = LARGE[what]
    edit(bundle, lambda m: m.update({key: "HERE"}))
    path = bundle / "manifest.json"
    path.write_text(path.read_text().replace('"HERE"', text))
    assert cause(preflight(bundle, Limits())).name in ("manifest", "reading")


def test_a_key_at_the_end_of_many_that_is_there_twice(bundle):
    path = bundle / "manifest.json"
    many = _numbered(300_000)[:-1] + ',"299999":1}'
    path.write_text(path.read_text().replace('"relies_on": []', f'"relies_on": [], "files": {many}', 1))
    assert cause(preflight(bundle, Limits())).name == "manifest"


def test_a_model_of_millions_of_empty_nodes(bundle):
    nodes = b"\x0a\x00" * 1_000_000
    (bundle / "model.onnx").write_bytes(b"\x08\x08\x3a" + _varint(len(nodes)) + nodes)
    seal(bundle)
    found = preflight(bundle, Limits())
    assert found.verdict in ("fail", "inconclusive"), found


def _varint(number):
    found = b""
    while number > 127:
        found += struct.pack("B", number & 127 | 128)
        number >>= 7
    return found + bytes([number])


@pytest.mark.slow
def test_a_good_manifest_is_still_read(bundle):
    assert json.loads((bundle / "manifest.json").read_text())["format"] == 3
    found = preflight(bundle, Limits())
    assert not [c for c in found.checks if c.name in ("reading", "manifest")], found
