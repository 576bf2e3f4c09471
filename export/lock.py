"""The Python packages of a bundle: exact versions with the hashes of their wheels.

A bundle's requirements.txt consists of pins in one exact spelling. `parse_pins` accepts that spelling only, so a file
that passes cannot mean more to pip than it means here; and pip only ever reads what `render_pins` wrote.
"""

import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata

from packaging.markers import Marker
from packaging.utils import canonicalize_name
from packaging.version import Version

from export.errors import ExportError

FETCH_TIMEOUT_S = 300
_TIMEOUT_S = 120
_MAX_BYTES, _MAX_VERSION = 2**18, 100
_PIN = re.compile(r"([a-z0-9](?:[a-z0-9-]*[a-z0-9])?)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)", re.ASCII)
_HASH = re.compile(r"    --hash=sha256:([0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True)
class Pin:
    """A package by its normalised name, its version, and the sha256 of each wheel that may be installed."""

    name: str
    version: str
    hashes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lock:
    """problem: why the pins have no hashes, or None."""

    pins: tuple[Pin, ...]
    problem: str | None = None

    @property
    def text(self) -> str:
        """The bundle's requirements.txt."""
        return render_pins(self.pins)


class BadLock(ExportError):
    """A requirements.txt that holds anything but pins."""


def render_pins(pins: Iterable[Pin]) -> str:
    """The one spelling: a line for each pin and for each of its hashes, as uv and pip-tools write them."""
    return "".join(
        " \\\n".join([f"{p.name}=={p.version}", *(f"    --hash=sha256:{h}" for h in p.hashes)]) + "\n" for p in pins
    )


def parse_pins(content: bytes) -> tuple[Pin, ...]:
    """The pins of a requirements.txt. Raises BadLock for anything but pins in their one spelling: a comment, an option,
    a URL, a marker, other white space, a name that is not normalised or that appears twice."""
    if len(content) > _MAX_BYTES:
        raise BadLock(f"requirements.txt is larger than {_MAX_BYTES / 1e3:.0f} kB")
    try:
        lines = content.decode("ascii").split("\n")
    except UnicodeDecodeError as error:
        raise BadLock(f"requirements.txt: byte {error.start} is not ASCII") from error
    pins: list[Pin] = []
    for number, line in enumerate(lines[:-1], 1):
        body = line.removesuffix(" \\")
        pin, digest = _PIN.fullmatch(body), _HASH.fullmatch(body)
        if pin and _is_version(pin[2]):
            pins.append(Pin(pin[1], pin[2]))
        elif digest and pins:
            pins[-1] = Pin(pins[-1].name, pins[-1].version, (*pins[-1].hashes, digest[1]))
        else:
            raise BadLock(f"requirements.txt, line {number}: expected a version or a hash, got {line[:100]!r}")
    # Catches what single lines do not show: a continuation too many or too few, or a missing last newline.
    if render_pins(pins).encode() != content:
        raise BadLock("requirements.txt: a line does not continue or end as it should")
    names = [p.name for p in pins]
    if twice := sorted(n for n, count in Counter(names).items() if count > 1):
        raise BadLock(f"requirements.txt names {', '.join(twice)} more than once")
    if spelled := [n for n in names if canonicalize_name(n) != n]:
        raise BadLock(f"requirements.txt: {spelled[0]} is not the package's normalised name")
    return tuple(pins)


def _is_version(text: str) -> bool:
    try:
        Version(text[: _MAX_VERSION + 1])
    except ValueError:  # InvalidVersion is one
        return False
    return len(text) <= _MAX_VERSION


def lock(runtime: str) -> Lock:
    """Of all wheels of the versions installed here, whatever their platform, by `uv pip compile`.

    The package index must be reached for the hashes; where it cannot be, the lock has versions only and says why.
    Raises ExportError where a package is not installed.
    """
    pins = tuple(Pin(name, version) for name, version in requirements(runtime))
    options = ["--generate-hashes", "--no-deps", "--only-binary", ":all:", "--no-header", "--no-annotate", "--quiet"]
    try:
        with tempfile.TemporaryDirectory() as nowhere:  # where no project has settings for uv
            done = subprocess.run(
                [sys.executable, "-P", "-m", "uv", "pip", "compile", *options, "-"],
                input=render_pins(pins).encode(),
                capture_output=True,
                timeout=_TIMEOUT_S,
                cwd=nowhere,
            )
    except subprocess.TimeoutExpired:
        return Lock(pins, f"the package index did not answer within {_TIMEOUT_S} s")
    if done.returncode:
        return Lock(pins, " ".join(done.stderr.decode(errors="replace").split()) or f"uv exited with {done.returncode}")
    try:
        return Lock(parse_pins(done.stdout))
    except BadLock as error:
        return Lock(pins, f"uv wrote something other than pins: {error}")


def closure(roots: Iterable[str], requires: dict[str, list[str]]) -> set[str]:
    """The packages that `roots` need, themselves included, by normalised name.

    requires: package -> its requirements, as in wheel metadata. A package that is missing there needs nothing. Raises
    packaging's own errors for malformed markers.
    """
    found: set[str] = set()
    pending = list(roots)
    while pending:
        name = canonicalize_name(pending.pop())
        if name in found:
            continue
        found.add(name)
        for requirement in requires.get(name, []):
            text, _, marker = requirement.partition(";")
            needed = re.match(r"[A-Za-z0-9._-]+", text.strip())
            if needed and (not marker.strip() or Marker(marker).evaluate({"extra": ""})):
                pending.append(needed.group())
    return found


def roots(runtime: str) -> list[str]:
    """The packages that a bundle imports."""
    return [runtime, "numpy", "pillow"]


def requirements(runtime: str) -> tuple[tuple[str, str], ...]:
    """(package, version) of the runtime, numpy and Pillow, and of all that those need, as installed here. Raises
    ExportError where one is not."""
    try:
        requires: dict[str, list[str]] = {}
        while (names := closure(roots(runtime), requires)) != set(requires):
            requires |= {n: list(metadata.requires(n) or []) for n in names - set(requires)}
        return tuple(sorted((name, metadata.version(name)) for name in requires))
    except metadata.PackageNotFoundError as error:
        raise ExportError(f"{error.name} is not installed, so its version cannot be pinned for the bundle") from error
