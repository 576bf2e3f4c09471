"""What a bundle needs of Python packages: exact versions, with the hashes of their files."""

import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata

from packaging.markers import Marker

from export.errors import ExportError

FETCH_TIMEOUT_S = 300
_TIMEOUT_S = 120


@dataclass(frozen=True)
class Lock:
    """text: of requirements.txt. pins: package and version. problem: why it has no hashes, or None."""

    text: str
    pins: tuple[tuple[str, str], ...]
    problem: str | None = None


def lock(runtime: str) -> Lock:
    """Of all wheels of the versions installed here, whatever their platform, by `uv pip compile`.

    The package index must be reached for the hashes; where it cannot be, the lock has versions only and says why.
    Raises ExportError where a package is not installed.
    """
    pins = requirements(runtime)
    plain = "".join(f"{name}=={version}\n" for name, version in pins)
    options = ["--generate-hashes", "--no-deps", "--only-binary", ":all:", "--no-header", "--no-annotate", "--quiet"]
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "uv", "pip", "compile", *options, "-"],
            input=plain,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return Lock(plain, pins, f"the package index did not answer within {_TIMEOUT_S} s")
    if done.returncode:
        return Lock(plain, pins, " ".join(done.stderr.split()) or f"uv ended with code {done.returncode}")
    return Lock(done.stdout, pins)


def requirements(runtime: str) -> tuple[tuple[str, str], ...]:
    """(package, version) of the runtime, numpy and Pillow, and of all that those need, as installed here."""
    pins: dict[str, str] = {}
    pending = [runtime, "numpy", "pillow"]
    while pending:
        name = re.sub(r"[-_.]+", "-", pending.pop()).lower()
        if name in pins:
            continue
        try:
            pins[name] = metadata.version(name)
        except metadata.PackageNotFoundError as error:
            raise ExportError(f"{name} is not installed, so its version cannot be pinned for the bundle") from error
        for requirement in metadata.requires(name) or []:
            text, _, marker = requirement.partition(";")
            found = re.match(r"[A-Za-z0-9._-]+", text)
            if found and (not marker.strip() or Marker(marker).evaluate({"extra": ""})):
                pending.append(found.group())
    return tuple(sorted(pins.items()))
