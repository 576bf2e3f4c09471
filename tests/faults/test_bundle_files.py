"""Spoiled bundles that are refused by reading them: nothing of theirs is run."""

import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from export import rehearsal
from export.checks import Limits
from export.preflight import check
from export.unpack import write_tar
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


@pytest.mark.parametrize(
    "name",
    [
        "__pycache__/preprocess.cpython-311.pyc",
        "preprocess.pyc",
        "preprocess.cpython-311-x86_64-linux-gnu.so",
        "usercustomize.py",
        "model.bin",
        ".hidden",
    ],
)
def test_code_that_rides_along(bundle, tmp_path, name):
    """In a folder and in an archive; and where the manifest names it too."""
    path = bundle / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    place = name.split("/")[0] if name.startswith("__") else name
    if name.count("/") < 2:
        archive = packed_folder(bundle, tmp_path / "bundle.tar.gz")
        refused(archive, "hashes", f"{name}: not in the manifest")
    assert place.split("/")[-1] in cause(check(bundle, Limits())).told
    seal(bundle)
    assert cause(check(bundle, Limits())).name in ("manifest", "hashes")


def test_an_additional_wheel_that_the_manifest_names(bundle):
    (bundle / "numpy-9.9-py3-none-any.whl").write_bytes(b"x")
    seal(bundle)
    refused(bundle, "manifest", "numpy-9.9-py3-none-any.whl: no bundle of ours holds such a file")


def test_an_empty_folder(bundle, tmp_path):
    (bundle / "numpy").mkdir()
    refused(bundle, "hashes", "numpy: not in the manifest")


def packed_folder(folder, path):
    with gzip.open(path, "wb") as stream:
        write_tar(folder, [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()], stream)
    return path


CUTS = {
    "by 40 bytes": lambda data: data[:-40],
    "by its length": lambda data: data[:-4],
    "by its checksum": lambda data: data[:-8],
    "by one byte": lambda data: data[:-1],
    "a wrong checksum": lambda data: data[:-8] + bytes(4) + data[-4:],
    "a wrong length": lambda data: data[:-4] + b"\1\2\3\4",
    "more behind it": lambda data: data + b"more",
    "another archive behind it": lambda data: data + data,
    "zeros behind it, which gzip passes over one by one": lambda data: data + bytes(50_000_000),
    "an endless name in its header": lambda data: data[:3] + b"\x08" + data[4:10] + b"x" * 50_000_000,
}


@pytest.mark.parametrize("cut", CUTS)
def test_an_archive_that_does_not_end_as_it_should(good, tmp_path, cut):
    path = tmp_path / "bundle.tar.gz"
    path.write_bytes(CUTS[cut](good.read_bytes()))
    refused(path, "archive", str(path))


def test_a_named_pipe_is_no_archive(tmp_path):
    os.mkfifo(tmp_path / "bundle.tar.gz")
    refused(tmp_path / "bundle.tar.gz", "archive", "no regular file")


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
            archive.addfile(tarfile.TarInfo("bundle/first"))
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("name", ["bundle/../../escaped", "/tmp/edgebuild-escaped", "bundle/../x", "./bundle/x", "x"])
def test_a_path_that_leaves_the_folder(tmp_path, name):
    path = packed(tmp_path / "evil.tar.gz", (tarfile.TarInfo(name), b"x"), top=False)
    refused(path, "archive", name.split("/")[-1])
    assert not (tmp_path.parent / "escaped").exists()
    assert not Path("/tmp/edgebuild-escaped").exists()


@pytest.mark.parametrize("top", ["-rf", ".ssh", "~", "a b", "$(id)", "b\u202eundle", "b\x1b[2J"])
def test_a_folder_whose_name_means_more_than_itself(bundle, tmp_path, top):
    path = packed_folder(bundle.rename(tmp_path / top), tmp_path / "bundle.tar.gz")
    refused(path, "archive", "give it a plain name")


@pytest.mark.parametrize("names", [("x", "x"), ("x", "X")])
def test_a_file_that_is_there_twice(tmp_path, names):
    members = [(tarfile.TarInfo(f"bundle/{name}"), b"x") for name in names]
    refused(packed(tmp_path / "evil.tar.gz", *members), "archive", "twice, or under names that differ in case alone")


@pytest.mark.parametrize(
    "names",
    [{"photo-0.png": "Turned.jpg"}, {"turned.jpg": "con.jpg"}, {f"photo-{i}.png": f"x{i}.png" for i in range(4)}],
)
def test_golden_samples_that_are_none_of_ours(bundle, names):
    for old, new in names.items():
        (bundle / "golden" / old).rename(bundle / "golden" / new)

    def change(manifest):
        samples = manifest["golden"]["samples"]
        manifest["golden"]["samples"] = {
            f"golden/{names.get(Path(name).name, Path(name).name)}": sample for name, sample in samples.items()
        }

    edit(bundle, change)
    seal(bundle)
    refused(bundle, "manifest", "not one to four photos, turned.jpg and alpha.png")


KINDS = [
    *(tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE, tarfile.CONTTYPE),
    tarfile.GNUTYPE_SPARSE,
]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_a_regular_file_in_the_archive(tmp_path, kind):
    member = tarfile.TarInfo("bundle/model.onnx")
    member.type, member.linkname = kind, "/etc/passwd"
    refused(packed(tmp_path / "evil.tar.gz", (member, b"")), "archive", "which is not a regular file")


def test_a_negative_size_does_not_lower_the_sum(tmp_path):
    path = tmp_path / "evil.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as archive:
        archive.write(header(tarfile.REGTYPE, -(2**40)))
        archive.write(header(tarfile.REGTYPE, 2**30, "bundle/y"))
        archive.write(bytes(2**20))
    refused(path, "archive", "not a regular file")


def test_folders_without_end(tmp_path):
    with tarfile.open(tmp_path / "deep.tar.gz", "w:gz") as archive:
        for depth in range(100, 2000, 100):
            archive.addfile(tarfile.TarInfo("bundle/" + "a/" * depth + "x"))
    refused(tmp_path / "deep.tar.gz", "archive", "a bundle has no such place")


def _other_mode(member):
    member.mode = 0o755
    return member


def _other_owner(member):
    member.uname = "root"
    return member


@pytest.mark.parametrize("change", [_other_mode, _other_owner])
def test_an_archive_that_was_packed_by_another_program(bundle, tmp_path, change):
    """Its files may be the same to us, and others to tar."""
    path = tmp_path / "bundle.tar.gz"
    with tarfile.open(path, "w:gz", format=tarfile.USTAR_FORMAT) as archive:
        for file in sorted(p for p in bundle.rglob("*") if p.is_file()):
            archive.add(file, f"bundle/{file.relative_to(bundle)}", filter=change)
    refused(path, "archive", "it is not packed as edgebuild packs a bundle; unpack it yourself and give the folder")


def test_a_sparse_file_that_tar_would_read_otherwise(good, tmp_path):
    """Two entries of its map overlap: one program takes the first, another the last."""
    data = bytearray(gzip.decompress(good.read_bytes()))
    at = data.index(b"bundle/predict.py\0")
    data[at + 156 : at + 157] = tarfile.GNUTYPE_SPARSE
    data[at + 148 : at + 156] = b"%06o\0 " % (sum(data[at : at + 148]) + 8 * 32 + sum(data[at + 156 : at + 512]))
    path = tmp_path / "bundle.tar.gz"
    path.write_bytes(gzip.compress(bytes(data)))
    refused(path, "archive", "not a regular file")


def test_bytes_that_hide_in_the_padding(good, tmp_path):
    data = bytearray(gzip.decompress(good.read_bytes()))
    at = data.index(b"bundle/labels.txt\0") + 512
    data[at + 100] = 1
    path = tmp_path / "bundle.tar.gz"
    path.write_bytes(gzip.compress(bytes(data)))
    refused(path, "archive", "it is not packed as edgebuild packs a bundle")


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


def test_folders_in_folders(bundle):
    """Not gone into, however deep."""
    (bundle / "golden" / "/".join("d" * 35)).mkdir(parents=True)
    refused(bundle, "hashes", "d: not in the manifest")


def test_a_wheel_is_asked_for_its_requirements_by_the_file_that_pip_reads(tmp_path):
    path = tmp_path / "evil-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("evil-1.0.dist-info/METADATA", "Name: evil\nRequires-Dist: numpy\n")
        wheel.writestr("pillow-99.egg-info/PKG-INFO", "Name: Pillow\nRequires-Dist: evil\n")
    assert rehearsal.requires(path) == ["numpy"]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("evil-1.0.dist-info/METADATA", b" " * 2**23)
    with pytest.raises(ValueError, match="its metadata is larger than"):
        rehearsal.requires(path)
