"""A stranger's archive, unpacked without trusting it: nothing outside the folder, no links, no devices, no bombs."""

import tarfile
import zlib
from pathlib import Path

from export.errors import ExportError

MAX_BYTES = 2**28
_MAX_FILES = 10_000


class BadArchive(ExportError):
    """It is damaged, or not to be unpacked."""


def unpack(archive: Path, folder: Path, max_bytes: int = MAX_BYTES) -> Path:
    """Into `folder`; the one top folder of the archive. Raises BadArchive.

    Python's data filter refuses absolute paths, `..`, links that leave the folder and devices; sizes are added up from
    the headers before any byte is written.
    """
    try:
        with tarfile.open(archive, "r:gz") as packed:
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
                packed.extract(member, folder, filter="data")
    except tarfile.FilterError as error:
        raise BadArchive(f"{archive}: reaches outside of its folder: {error}") from error
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError, OverflowError, RecursionError) as error:
        raise BadArchive(f"{archive}: damaged, or no .tar.gz: {error}") from error
    tops = list(folder.iterdir())
    if len(tops) != 1 or not tops[0].is_dir():
        raise BadArchive(f"{archive}: expected one folder in it, found {len(tops)} entries at the top")
    return tops[0]
