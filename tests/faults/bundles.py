"""Bundles of which something is wrong, and what a rehearsal says of them.

A fault that a hash would find is found by it; the others are sealed again, as a wrong tool would have packed them.
"""

import contextlib
import json

import pytest

from export import sandbox
from export.artifact import sha256
from export.bundle import files_of
from export.checks import Limits
from export.documents import CARD, SBOM, model_card, sbom
from export.errors import ExportError
from export.lock import parse_pins
from export.manifest import parse_manifest
from export.preflight import check
from latency.files import file_hash

needs_sandbox = pytest.mark.skipif(bool(sandbox.available()), reason=f"no sandbox: {sandbox.available()}")


def edit(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def seal(folder):
    """Write the hashes and the documents anew, as whoever packed it like this would have."""

    def change(manifest):
        if (folder / "model.onnx").exists():
            digest = file_hash(folder / "model.onnx")
            manifest["model"]["sha256"] = manifest["evidence"]["latency"]["subject"]["sha256"] = digest
        with contextlib.suppress(ExportError):  # what is no manifest, or no lock, has no documents
            checked = parse_manifest(json.dumps(manifest))
            (folder / CARD).write_text(model_card(checked))
            pins = parse_pins((folder / "requirements.txt").read_bytes())
            (folder / SBOM).write_text(sbom(checked.model.path, checked.model.sha256, pins, checked.model.precision))
        manifest["files"] = {name: sha256(folder / name) for name in files_of(folder)}

    edit(folder, change)


def replace_text(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def flip_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cause(found):
    assert found.verdict == "fail", found
    (failed,) = [c for c in found.checks if c.verdict == "fail"]
    return failed


def refused(path, name, *told, limits=None, photos=(), wheels=None):
    failed = cause(check(path, limits or Limits(), photos, wheels=wheels))
    assert failed.name == name, failed
    for text in told:
        assert text in failed.told, failed.told
