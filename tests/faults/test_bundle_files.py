"""Spoiled bundles that are refused by reading them: nothing of theirs is run."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from export import sandbox
from export.checks import Limits
from export.preflight import preflight
from tests.faults.bundles import cause, edit, flip_byte, refused, seal


@pytest.mark.parametrize("name", ["model.onnx", "labels.txt", "predict.py", "preprocess.py", "golden/alpha.png"])
def test_a_changed_byte(bundle, name):
    flip_byte(bundle / name)
    refused(bundle, "hashes", name, "changed since it was packed")


def test_a_missing_file(bundle):
    (bundle / "preprocess.py").unlink()
    refused(bundle, "hashes", "preprocess.py: missing")


def test_an_additional_file(bundle):
    (bundle / "numpy.py").write_text("")
    refused(bundle, "hashes", "numpy.py: not in the manifest")


def test_a_truncated_archive(good, tmp_path):
    path = tmp_path / "bundle.tar.gz"
    path.write_bytes(good.read_bytes()[:-5000])
    refused(path, "archive", "damaged")


def test_no_archive(tmp_path):
    path = tmp_path / "bundle.tar.gz"
    path.write_text("text")
    refused(path, "archive", "damaged, or no .tar.gz")


def packed(path, *members, top=True):
    with tarfile.open(path, "w:gz") as archive:
        if top:
            folder = tarfile.TarInfo("bundle")
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(folder)
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("name", ["bundle/../../escaped", "/tmp/edgebuild-escaped"])
def test_a_path_that_leaves_the_folder(tmp_path, name):
    path = packed(tmp_path / "evil.tar.gz", (tarfile.TarInfo(name), b"x"))
    found = preflight(path, Limits())
    assert found.verdict == "fail"
    assert not (tmp_path.parent / "escaped").exists()
    assert not Path("/tmp/edgebuild-escaped").exists()
    assert cause(found).name in ("archive", "manifest")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_a_link_or_a_device_in_the_archive(tmp_path, kind):
    member = tarfile.TarInfo("bundle/model.onnx")
    member.type, member.linkname = kind, "/etc/passwd"
    refused(packed(tmp_path / "evil.tar.gz", (member, b"")), "archive", "neither a file nor a folder")


def test_an_archive_that_unpacks_to_too_much(tmp_path):
    path = tmp_path / "bomb.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        member = tarfile.TarInfo("bundle/zeros")
        member.size = 2**31
        archive.addfile(member, _Zeros(member.size))
    assert path.stat().st_size < 2**25
    refused(path, "archive", "unpacks to more than")


def header(kind, size, name="bundle/x"):
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def test_a_long_name_is_not_read_into_memory(tmp_path):
    path = tmp_path / "bomb.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as archive:
        archive.write(header(tarfile.GNUTYPE_LONGNAME, 2**27))
        archive.write(b"x" * 2**27)
    refused(path, "archive", "a header of 134217728 bytes")


def test_headers_without_end(tmp_path):
    """A sparse file's map goes on from block to block, and all of it is kept."""
    path = tmp_path / "bomb.tar.gz"
    sparse = bytearray(header(tarfile.GNUTYPE_SPARSE, 512))
    sparse[482] = 1  # the map goes on
    sparse[148:156] = b"%06o\0 " % (sum(sparse[:148]) + 8 * ord(" ") + sum(sparse[156:]))
    more = (b"00000000001\0" * 42).ljust(504, b"\0") + b"\1" + bytes(7)
    with gzip.open(path, "wb", compresslevel=1) as archive:
        archive.write(sparse)
        archive.write(more * (2**25 // len(more)))
    refused(path, "archive", "of headers")


class _Zeros(io.RawIOBase):
    def __init__(self, size):
        self.left = size

    def read(self, size=-1):
        size = min(size, self.left)
        self.left -= size
        return bytes(size)


def test_a_cpu_that_lacks_what_is_relied_on(bundle):
    edit(bundle, lambda m: m.update(relies_on=[{"what": "a unit of the future", "any_of": ["avx1024"]}]))
    refused(bundle, "cpu", "lacks what the file relies on: a unit of the future (one of avx1024)")


def test_a_newer_manifest(bundle):
    edit(bundle, lambda m: m.update(format=99))
    refused(bundle, "manifest", "format: Input should be 2, got '99'")


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
    "a slice of numbers": lambda m: m.update(slice={"0" * 64: [1, 2]}),
    "no evidence": lambda m: m.pop("evidence"),
    "a list": lambda m: m.update(files=[]),
    "another runtime": lambda m: m["model"].update(runtime="os; import evil"),
    "a file that is not ours to name": lambda m: m["files"].update({"../../etc/passwd": "0" * 64}),
}


@pytest.mark.parametrize("change", WRONG)
def test_a_manifest_that_is_not_whole(bundle, change):
    edit(bundle, WRONG[change])
    refused(bundle, "manifest")


@pytest.mark.parametrize(
    "line",
    ["--extra-index-url http://127.0.0.1:9/", "--no-binary :all:", "-e .", "evil @ file:///evil.whl", "-r /etc/x"],
)
def test_a_lock_with_options_never_reaches_pip(bundle, line, monkeypatch):
    monkeypatch.setattr(sandbox, "fetch", lambda *_: pytest.fail("pip was run"))
    path = bundle / "requirements.txt"
    path.write_text(f"{line}\n{path.read_text()}")
    seal(bundle)
    refused(bundle, "lock", "requirements.txt holds more than versions and hashes", line)


def test_a_lock_without_hashes_cannot_be_told(bundle):
    (bundle / "requirements.txt").write_text("numpy==2.0\n")
    seal(bundle)
    found = preflight(bundle, Limits())
    assert found.verdict == "inconclusive"
    assert "requirements.txt has no hashes" in found.reasons[0]


def test_without_a_sandbox_nothing_is_run_and_nothing_pretended(bundle, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    found = preflight(bundle, Limits())
    assert found.verdict == "inconclusive"
    assert "bubblewrap is not installed" in found.reasons[0]
    assert "nothing of the bundle was run" in found.reasons[0]
