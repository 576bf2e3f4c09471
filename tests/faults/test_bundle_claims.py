"""Bundles whose manifest, lock or documents claim what is not so: refused by reading them."""

import json

import numpy as np
import onnx
import pytest

from export import sandbox
from export.artifact import sha256
from export.bundle import read_bundle
from export.checks import Limits
from export.errors import ExportError
from export.lock import parse_pins, render_pins
from export.manifest import Quality, known_part
from export.parity import quality
from export.preflight import check
from tests.faults.bundles import cause, edit, refused, replace_text, seal


def test_a_cpu_that_lacks_what_is_relied_on(bundle):
    edit(bundle, lambda m: m.update(relies_on=[{"what": "a unit of the future", "any_of": ["avx1024"]}]))
    refused(bundle, "cpu", "lacks what the file relies on: a unit of the future (one of avx1024)")


def test_a_newer_manifest(bundle):
    edit(bundle, lambda m: m.update(format=99))
    refused(bundle, "manifest", "format: Input should be 3, got '99'; pack it again with this version of edgebuild")


def test_a_manifest_that_names_a_model_elsewhere(bundle):
    edit(bundle, lambda m: m["model"].update(path="../model.onnx"))
    refused(bundle, "manifest", "model.path", "got '../model.onnx'")


def test_other_labels_in_the_text_than_in_the_manifest(bundle):
    (bundle / "labels.txt").write_text("f\ne\nd\nc\nb\na\n")
    seal(bundle)
    refused(bundle, "labels", "another order")


WRONG = {
    "a tolerance that is no number": lambda m: m["golden"].update(tolerance="large"),
    "a tolerance that allows all": lambda m: m["golden"].update(tolerance=float("inf")),
    "logits that are not finite": lambda m: m["golden"]["samples"]["golden/alpha.png"].update(
        logits=[float("nan")] * 6
    ),
    "no golden samples": lambda m: m["golden"].update(samples={}),
    "a golden sample that is none": lambda m: m["golden"]["samples"].pop("golden/alpha.png"),
    "recorded labels that are numbers": lambda m: m.update(recorded=[["0" * 64, 1, 2]]),
    "no recorded labels": lambda m: m.update(recorded=[]),
    "one recorded label": lambda m: m.update(recorded=m["recorded"][:1]),
    "a class name of two lines": lambda m: m.update(classes=["a\nb", *m["classes"][1:]]),
    "a class name with what cannot be seen": lambda m: m.update(classes=["a\u200b", *m["classes"][1:]]),
    "a class name with a blank at its end": lambda m: m.update(classes=["a ", *m["classes"][1:]]),
    "a host that turns the text around it": lambda m: m["evidence"]["host"].update(cpu="\u202exeb"),
    "a latency that is no number": lambda m: m["evidence"]["latency"].update(p90_ms="fast"),
    "an F1 over 1": lambda m: m["evidence"]["quality"].update(f1_macro=1.5),
    "a verdict that is no pass": lambda m: m["evidence"].update(verdict="fail"),
    "no evidence": lambda m: m.pop("evidence"),
    "a list": lambda m: m.update(files=[]),
    "another runtime": lambda m: m["model"].update(runtime="os; import evil"),
    "a file that is not ours to name": lambda m: m["files"].update({"../../etc/passwd": "0" * 64}),
}


@pytest.mark.parametrize("change", WRONG)
def test_a_manifest_that_is_not_whole(bundle, change):
    edit(bundle, WRONG[change])
    refused(bundle, "manifest")


H = "0" * 64
LOCKS = {
    "an index": b"--extra-index-url http://127.0.0.1:9/\n",
    "source packages": b"--no-binary :all:\n",
    "a project": b"-e .\n",
    "a URL": b"evil @ file:///evil.whl\n",
    "another file": b"-r /etc/x\n",
    "a comment that hides an option": b"# x \\\n--no-binary=evil\n",
    "a comment that hides a folder": b"# \\\n--find-links=.\n",
    "a comment": b"# numpy\n",
    "an option behind a pin": b"evil==1.0 --config-settings=x=y\n",
    "an option in place of a hash": b"evil==1.0 \\\n    --no-binary=evil\n",
    "a marker": b"evil==1.0 ; python_version > '3'\n",
    "an extra": b"evil[x]==1.0\n",
    "any version": b"evil==*\n",
    "a variable": b"evil==${HOME}\n",
    "a form feed": b"evil==1.0\x0c--find-links=.\n",
    "a line separator": "evil==1.0\u2028--find-links=.\n".encode(),
    "a next line": b"evil==1.0\xc2\x85--find-links=.\n",
    "a carriage return": b"evil==1.0\r--find-links=.\n",
    "a byte order mark": b"\xef\xbb\xbfevil==1.0\n",
    "UTF-16": "evil==1.0\n".encode("utf-16"),
    "a line that goes on": b"evil==1.0 \\\n",
    "an empty line": b"\n",
    "a tab": b"evil==1.0\t\n",
    "another spelling": b"Torch==1.0\n",
    "a name that is not normalised": b"evil_x==1.0\n",
    "a name twice": b"evil==1.0\nevil==2.0\n",
    "another kind of hash": b"evil==1.0 \\\n    --hash=md5:" + b"0" * 32 + b"\n",
    "a hash of capitals": b"evil==1.0 \\\n    --hash=sha256:" + b"A" * 64 + b"\n",
    "a hash of nothing": b"    --hash=sha256:" + H.encode() + b"\n",
}


@pytest.mark.parametrize("what", LOCKS)
def test_a_lock_of_more_than_pins_never_reaches_pip(bundle, what, monkeypatch):
    monkeypatch.setattr(sandbox, "fetch", lambda *_: pytest.fail("pip was run"))
    path = bundle / "requirements.txt"
    path.write_bytes(LOCKS[what] + path.read_bytes())
    seal(bundle)
    refused(bundle, "lock", "requirements.txt")


def test_a_lock_whose_last_line_has_no_end(bundle):
    path = bundle / "requirements.txt"
    path.write_bytes(path.read_bytes()[:-1])
    seal(bundle)
    refused(bundle, "lock", "a line does not continue or end as it should")


def test_what_pip_is_given_is_written_here_from_the_pins(locks):
    for lock in locks.values():
        assert render_pins(parse_pins(lock.text.encode())) == lock.text
        assert all(pin.hashes for pin in lock.pins)


def test_a_lock_that_names_torch(bundle):
    path = bundle / "requirements.txt"
    path.write_text(f"{path.read_text()}torch==2.13.0 \\\n    --hash=sha256:{H}\n")
    seal(bundle)
    refused(bundle, "lock", "requirements.txt names torch")


def test_a_lock_without_hashes_cannot_be_told(bundle):
    (bundle / "requirements.txt").write_text("numpy==2.0\n")
    seal(bundle)
    found = check(bundle, Limits())
    assert found.verdict == "inconclusive"
    assert "requirements.txt has no hashes" in found.reasons[0]


def test_without_a_sandbox_nothing_is_run_and_nothing_pretended(bundle, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    found = check(bundle, Limits())
    assert found.verdict == "inconclusive"
    assert "bubblewrap is not installed" in found.reasons[0]
    assert "nothing of the bundle was run" in found.reasons[0]


def _swap_recorded(manifest):
    """As many right ones as before, and the same F1, but other images."""
    rows = manifest["recorded"]
    for row in rows:
        row[2] = row[1]


def _both(name, value):
    """Changed in what was timed as in what is packed."""

    def change(manifest):
        for subject in (manifest["model"], manifest["evidence"]["latency"]["subject"]):
            subject[name] = value

    return change


CLAIMS = {
    "a better F1": (lambda m: m["evidence"]["quality"].update(f1_macro=0.99), "quality.f1_macro is claimed as 0.9900"),
    "a better accuracy": (lambda m: m["evidence"]["quality"].update(accuracy=1.0), "quality.accuracy"),
    "a better class": (lambda m: m["evidence"]["quality"]["f1_per_class"].update(a=1.0), "quality.f1_per_class.a"),
    "a narrower interval": (
        lambda m: m["evidence"]["quality"].update(f1_low=m["evidence"]["quality"]["f1_macro"]),
        "quality.f1_low",
    ),
    "other recorded labels": (_swap_recorded, "quality.f1_macro"),
    "a label of no class": (lambda m: m["recorded"][0].__setitem__(2, "z"), "'z' is no class of this model"),
    "a split that chose nothing": (lambda m: m["evidence"]["quality"].update(split="val"), "selected_on is False"),
    "more threads": (lambda m: m["model"].update(threads=4), "threads 1 was timed, 4 is packed"),
    "another precision": (lambda m: m["model"].update(precision="int8"), "precision f32 was timed, int8 is packed"),
    "another file's latency": (
        lambda m: m["evidence"]["latency"]["subject"].update(sha256="0" * 64),
        "sha256 000000000000",
    ),
    "a pass over the limit": (lambda m: m["evidence"]["latency"].update(p90_upper_ms=2.0), "over the limit"),
    "a tolerance of its own": (lambda m: m["golden"].update(tolerance=1.0), "golden.tolerance is 1"),
    "two predictions of one image": (
        lambda m: m["recorded"].insert(0, [m["recorded"][0][0], "a", "a" if m["recorded"][0][2] != "a" else "b"]),
        "has two different predictions",
    ),
    "a bound from too few processes": (
        lambda m: m["evidence"]["latency"].update(processes=6),
        "a bound of 99 % is claimed from 6 processes",
    ),
    "a p90 under its p50": (lambda m: m["evidence"]["latency"].update(p50_ms=0.65), "not in this order"),
    "a class twice": (lambda m: m["classes"].__setitem__(1, "a"), "named twice"),
    "int8 of an f32 file": (
        _both("precision", "int8"),
        "the precision is claimed as int8; the operators of model.onnx say otherwise",
    ),
    "a precision that the runtime has not": (_both("precision", "bf16"), "onnxruntime has no files in bf16"),
    "a lower bound over the p90": (lambda m: m["evidence"]["latency"].update(p90_lower_ms=0.65), "over its p90"),
    "too few processes for so many attempts": (
        lambda m: m["evidence"]["latency"].update(attempts=20),
        "from 9 processes; it needs",
    ),
    "a runtime for other files": (_both("runtime", "openvino"), "model.onnx is no file for openvino"),
}


@pytest.mark.parametrize("what", CLAIMS)
def test_a_claim_that_the_manifest_itself_contradicts(bundle, what):
    change, told = CLAIMS[what]
    digest = json.loads((bundle / "manifest.json").read_text())["evidence"]["latency"]["subject"]["sha256"]
    edit(bundle, change)
    if what == "a class twice":
        (bundle / "labels.txt").write_text("a\na\nc\nd\ne\nf\n")
    seal(bundle)
    if what == "another file's latency":  # sealing would make it right
        edit(bundle, change)
    else:
        assert digest == json.loads((bundle / "manifest.json").read_text())["model"]["sha256"]
    refused(bundle, "claims", told)


def test_a_drift_that_would_excuse_anything(bundle):
    def change(manifest):
        manifest["evidence"]["portability"].update(max_diff=1e3)
        manifest["golden"]["tolerance"] = 2e3
        for sample in manifest["golden"]["samples"].values():
            sample["near_tie"] = True

    edit(bundle, change)
    seal(bundle)
    found = check(bundle, Limits())
    assert found.verdict == "inconclusive"
    assert "so the samples show little" in found.reasons[0]


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("MODEL_CARD.md", "Macro F1 0.", "Macro F1 1."),
        ("MODEL_CARD.md", "threads: 1", "threads: 4"),
        ("sbom.cdx.json", "numpy", "scipy"),
        ("sbom.cdx.json", '"name": "model.onnx"', '"name": "other.onnx"'),
    ],
)
def test_a_document_that_says_something_else(bundle, file, old, new):
    replace_text(bundle / file, old, new)
    edit(bundle, lambda m: m["files"].update({file: sha256(bundle / file)}))
    refused(bundle, "documents", file)


def test_a_bundle_of_another_version_cannot_be_verified(bundle):
    edit(bundle, lambda m: m.update(edgebuild="9.9"))
    seal(bundle)
    found = check(bundle, Limits())
    assert found.verdict == "inconclusive"
    assert "packed by edgebuild 9.9" in found.reasons[0]


@pytest.mark.parametrize("content", [b"[" * 60_000, b"{", b"", b"null", b"\xff", b'{"format": 3, "format": 3}'])
def test_a_manifest_that_is_no_json_of_ours(bundle, content):
    """Nor is it repeated as Python would write its bytes."""
    (bundle / "manifest.json").write_bytes(content)
    refused(bundle, "manifest")
    assert "b'" not in cause(check(bundle, Limits())).told
    done = read_bundle_error(bundle)
    assert "manifest.json" in done


def read_bundle_error(folder):
    with pytest.raises(ExportError) as caught:
        read_bundle(folder)
    return str(caught.value)


def test_one_image_over_and_over_shows_little(bundle):
    def change(manifest):
        manifest["recorded"] += [manifest["recorded"][0]] * 300
        number = {c: i for i, c in enumerate(manifest["classes"])}
        truth, guesses = (np.array([number[row[i]] for row in manifest["recorded"]]) for i in (1, 2))
        found = quality(guesses, truth, manifest["classes"], "test")
        manifest["evidence"]["quality"] = known_part(Quality, found)

    edit(bundle, change)
    seal(bundle)
    found = check(bundle, Limits())
    assert found.verdict == "inconclusive"
    assert "320 recorded rows are of only 20 different images" in found.reasons[0]


ODD = {
    "macs beyond all floats": lambda m: m["evidence"].update(macs=10**400),
    "a version of many digits": lambda m: m.update(edgebuild="1" * 5000),
    "a host of several lines": lambda m: m["evidence"]["host"].update(system="Linux\n\n## Verified"),
    "a file name of several lines": lambda m: m["preprocess"].update(fit="squash\n"),
}


@pytest.mark.parametrize("what", ODD)
def test_values_that_would_break_the_documents(bundle, what):
    edit(bundle, ODD[what])
    refused(bundle, "manifest")


def test_a_key_of_the_manifest_twice(bundle):
    path = bundle / "manifest.json"
    path.write_text(path.read_text().replace("{", '{"format": 3,', 1))
    refused(bundle, "manifest", "the key 'format' is there twice")


def test_a_version_of_thousands_of_digits_in_the_lock(bundle):
    path = bundle / "requirements.txt"
    path.write_text(f"evil=={'1' * 5000}\n{path.read_text()}")
    seal(bundle)
    refused(bundle, "lock", "requirements.txt, line 1")


UNCHECKED = {
    "a confusion of its own": lambda m: m["evidence"]["quality"].update(confusion=[[1]]),
    "a figure that nothing knows": lambda m: m["evidence"]["quality"].update(top1=1.0),
    "another latency": lambda m: m["evidence"]["latency"].update(p99_ms=1e-5),
    "a submission": lambda m: m["evidence"].update(submission={"predicted_s": 1e-3}),
    "a part of its own": lambda m: m.update(certified=True),
}


@pytest.mark.parametrize("what", UNCHECKED)
def test_a_claim_that_nothing_can_be_compared_with_is_refused(bundle, what):
    edit(bundle, UNCHECKED[what])
    refused(bundle, "manifest")


def _named_like_int8(bundle):
    model = onnx.load(bundle / "model.onnx")
    model.graph.node[0].name = "NotQLinearConv"
    onnx.save(model, bundle / "model.onnx")
    edit(bundle, _both("precision", "int8"))


def test_the_name_of_a_node_makes_no_int8_file(bundle):
    _named_like_int8(bundle)
    seal(bundle)
    refused(bundle, "claims", "the precision is claimed as int8")


@pytest.mark.parametrize("location", [b"\xff\xfe", b"a" * 5000, b"golden"])
def test_weights_in_a_place_that_is_none(bundle, location):
    model = onnx.load(bundle / "model.onnx")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="L" * len(location))
    content = model.SerializeToString().replace(b"L" * len(location), location)
    (bundle / "model.onnx").write_bytes(content)
    edit(bundle, lambda m: m["files"].update({"model.onnx": sha256(bundle / "model.onnx")}))
    assert cause(check(bundle, Limits())).name in ("model", "manifest")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["model"].pop("sha256"),
        *(lambda m, t=t: m["model"].update(threads=t) for t in (float("inf"), 0, -5, True, "1")),
        *(lambda m, v=v: m["model"].update(runtime=v) for v in (5, None, [])),
        *(lambda m, v=v: m["model"].update(precision=v) for v in (5, None, {})),
        lambda m: m.update(model=[]),
        lambda m: m.update(preprocess=5),
    ],
)
def test_a_manifest_for_a_timing_that_is_none(bundle, change):
    edit(bundle, change)
    assert "no bundle of edgebuild" in read_bundle_error(bundle)


BROKEN = {"no fields": b"\x08\x80", "nothing": b"", "a mark of another format": b"\x12\x06xxORTM"}


@pytest.mark.parametrize("what", BROKEN)
def test_a_model_that_is_none(bundle, what):
    (bundle / "model.onnx").write_bytes(BROKEN[what])
    seal(bundle)
    refused(bundle, "model", "model.onnx: it")


def test_a_machine_without_memory_makes_no_environment_and_says_so(bundle, monkeypatch):
    ended = sandbox.Answer(steps={}, disk_peak_bytes=0, disk_full=False, exceeded="host")
    monkeypatch.setattr(sandbox, "available", lambda: None)
    monkeypatch.setattr(sandbox, "fetch", lambda *_: ended)
    found = check(bundle, Limits())
    assert (found.verdict, found.checks[-1].name) == ("inconclusive", "sandbox")
    assert "was ended: this machine was almost out of memory" in found.checks[-1].told
