"""A stranger's archive, unpacked without trusting it: nothing outside the folder, no links, no devices, no bombs."""

import gzip
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from export.errors import ExportError

MAX_BYTES = 2**28
_MAX_FILES = 10_000
_BLOCK = 512
_MAX_HEADERS_BYTES = 2**24
_MAX_READ = 2**16
"""tarfile reads a name or attributes that need more than a block whole; no file of a bundle has such long ones."""


class BadArchive(ExportError):
    """It is damaged, or not to be unpacked."""


class _Bounded(gzip.GzipFile):
    """Headers cannot fill the memory: tarfile keeps them all, and trusts the sizes that they name."""

    headers = 0

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _MAX_READ:
            raise BadArchive(f"{self.name}: a header of {size} bytes; a bundle's are far smaller")
        self.headers += size * (size == _BLOCK)
        if self.headers > _MAX_HEADERS_BYTES:
            raise BadArchive(f"{self.name}: over {_MAX_HEADERS_BYTES / 1e6:.0f} MB of headers; a bundle has far fewer")
        return super().read(size)


def unpack(archive: Path, folder: Path, max_bytes: int = MAX_BYTES) -> Path:
    """Into `folder`; the one top folder of the archive. Raises BadArchive.

    Absolute paths, `..`, links and devices are refused, by Python's own data filter too where it has one (from 3.11.4);
    sizes are added up from the headers before any byte is written; headers are bounded too.
    """
    try:
        with _Bounded(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as packed:
            total = 0
            for count, member in enumerate(packed):
                total += member.size
                if total > max_bytes or count >= _MAX_FILES:
                    raise BadArchive(
                        f"{archive}: unpacks to more than {max_bytes / 1e6:.0f} MB, or {_MAX_FILES} files; a bundle is "
                        "far smaller"
                    )
                if not (member.isfile() or member.isdir()):
                    raise BadArchive(f"{archive}: holds {member.name!r}, which is neither a file nor a folder")
                _put(packed, member, folder)
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError, OverflowError, RecursionError) as error:
        raise BadArchive(f"{archive}: damaged, or no .tar.gz ({error}); get it again, compare its sha256") from error
    tops = list(folder.iterdir())
    if len(tops) != 1 or not tops[0].is_dir():
        raise BadArchive(f"{archive}: expected one folder in it, found {len(tops)} entries at the top")
    return tops[0]


def _put(packed: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Content only: owners, modes and times of a stranger's are not taken over."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise BadArchive(f"{member.name!r} in the archive reaches outside of its folder")
    if hasattr(tarfile, "data_filter"):
        tarfile.data_filter(member, str(folder))
    target = folder / name
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    content = packed.extractfile(member)
    assert content is not None  # it is a file
    with content, target.open("xb") as file:
        shutil.copyfileobj(content, file, _MAX_READ // 2)
