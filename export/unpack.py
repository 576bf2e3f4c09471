"""A stranger's archive, unpacked without trusting it: nothing outside the folder, no links, no devices, no bombs."""

import errno
import hashlib
import io
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from export.artifact import sha256
from export.errors import ExportError
from export.manifest import PLAIN

MAX_BYTES = 2**28
MAX_FILES = 10_000
_BLOCK = 512
_GZIP = 31
"""zlib's wbits of a gzip stream: its checksum and length are compared at its end."""
_MAX_HEADERS_BYTES = 2**24
_MAX_NAME = 200
_MAX_READ = 2**16
"""tarfile reads a name or attributes that need more than a block whole; no file of a bundle has such long ones."""


class BadArchive(ExportError):
    """It is damaged, or not to be unpacked."""


class _Bounded(io.BufferedReader):
    """A tar whose headers cannot fill the memory: tarfile keeps them all, and trusts the sizes that they name."""

    def __init__(self, tar: Path, archive: Path) -> None:
        super().__init__(io.FileIO(tar))
        self._archive, self._headers = archive, 0

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_READ:
            raise BadArchive(f"{self._archive}: a header of {size} bytes; a bundle's are far smaller")
        self._headers += size * (size == _BLOCK)
        if self._headers > _MAX_HEADERS_BYTES:
            raise BadArchive(
                f"{self._archive}: over {_MAX_HEADERS_BYTES / 1e6:.0f} MB of headers; a bundle has far fewer"
            )
        return super().read(size)


def write_tar(folder: Path, names: Sequence[str], stream: Any) -> None:
    """Write files of a folder as a tar: the same bytes for the same files. No times, owners or modes; USTAR headers.
    stream: a binary file to write to."""
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(names):
            member = tarfile.TarInfo(f"{folder.name}/{name}")
            member.size, member.mode = (folder / name).stat().st_size, 0o644
            with (folder / name).open("rb") as content:
                archive.addfile(member, content)


def unpack(archive: Path, folder: Path, max_bytes: int = MAX_BYTES) -> Path:
    """Unpack into `folder`; returns the one top folder of the archive. Raises BadArchive.

    Only regular files are accepted, in the top folder or one below it. Sizes are added up before any byte is written,
    and headers are bounded. Finally the files are packed again and compared with the archive, byte for byte: tar has so
    many dialects that another program might otherwise unpack something else.
    """
    try:
        with tempfile.TemporaryDirectory() as scratch:
            plain = Path(scratch) / "plain.tar"
            _decompress(archive, plain, max_bytes + _MAX_HEADERS_BYTES)
            with _Bounded(plain, archive) as stream:
                names = _extract(archive, stream, folder, max_bytes)
            tops = list(folder.iterdir())
            if len(tops) != 1 or not tops[0].is_dir():
                raise BadArchive(f"{archive}: expected one folder in it, found {len(tops)} entries at the top")
            again = _Digest()
            write_tar(tops[0], names, again)
            if sha256(plain) != again.found.hexdigest():
                raise BadArchive(
                    f"{archive}: it is not packed as edgebuild packs a bundle; unpack it yourself and give the folder"
                )
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # not the archive's fault
        told = re.sub(r"Error -\d+ while decompressing data: ", "", str(error))
        if isinstance(error, ValueError | OverflowError):  # in the words of whatever line of tarfile met it
            told = "its headers are not those of tar"
        raise BadArchive(f"{archive}: damaged, or no .tar.gz ({told}); get it again, compare its sha256") from error
    return tops[0]


def _decompress(archive: Path, target: Path, most: int) -> None:
    """Write the one gzip stream that a regular file is, up to `most` bytes of it. Raises BadArchive."""
    descriptor = os.open(archive, os.O_RDONLY | os.O_NONBLOCK)  # which waits for no writer of a named pipe
    with os.fdopen(descriptor, "rb") as packed, target.open("wb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BadArchive(f"{archive}: no regular file")
        stream, total = zlib.decompressobj(_GZIP), 0
        while not stream.eof:
            waiting = stream.unconsumed_tail or packed.read(_MAX_READ)
            if not waiting:
                raise EOFError("it ends within its data")
            part = stream.decompress(waiting, _MAX_READ)
            total += len(part)
            if total > most:
                raise BadArchive(f"{archive}: unpacks to more than {most / 1e6:.0f} MB; a bundle is far smaller")
            file.write(part)
        if stream.unused_data or packed.read(1):
            raise BadArchive(f"{archive}: something follows its end; get it again, compare its sha256")


class _Digest:
    """A file to write to, of which only the sha256 and the size are kept."""

    def __init__(self) -> None:
        self.found, self.size = hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.found.update(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size


def _extract(archive: Path, stream: _Bounded, folder: Path, max_bytes: int) -> list[str]:
    """Names of the files below the archive's top folder."""
    total = 0
    names: list[str] = []
    seen: set[str] = set()
    with tarfile.open(fileobj=stream, mode="r:") as packed:
        for count, member in enumerate(packed):
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse() or member.size < 0:
                raise BadArchive(f"{archive}: holds {member.name[:_MAX_NAME]!r}, which is not a regular file")
            total += member.size
            if total > max_bytes or count >= MAX_FILES:
                raise BadArchive(
                    f"{archive}: unpacks to more than {max_bytes / 1e6:.0f} MB, or {MAX_FILES} files; a bundle is far "
                    "smaller"
                )
            parts = PurePosixPath(member.name).parts
            if len(member.name) > _MAX_NAME or not 2 <= len(parts) <= 3 or member.name != "/".join(parts):
                raise BadArchive(f"{archive}: holds {member.name[:_MAX_NAME]!r}; a bundle has no such place")
            if ".." in parts or parts[0] == "/":
                raise BadArchive(f"{member.name!r} in the archive reaches outside of its folder")
            if not re.fullmatch(PLAIN, parts[0]):
                raise BadArchive(f"{archive}: its folder is called {parts[0]!r}; give it a plain name")
            name = "/".join(parts[1:])
            if name.lower() in seen:
                raise BadArchive(f"{archive}: holds {name!r} twice, or under names that differ in case alone")
            target = folder.joinpath(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            content = packed.extractfile(member)
            assert content is not None  # it is a file
            with content, target.open("xb") as file:
                shutil.copyfileobj(content, file, _MAX_READ // 2)
            names.append(name)
            seen.add(name.lower())
    return names
