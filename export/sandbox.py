"""Bubblewrap: no network, one disk of a given size, an empty environment, a home of its own. Unprivileged."""

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export import rehearsal
from export.errors import ExportError
from export.lock import FETCH_TIMEOUT_S

DISK = "/disk"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
_OVERHEAD_S = 300
"""To copy, make the environment and install, before the runs that have limits of their own."""


class SandboxMissing(ExportError):
    """It cannot be had here, so nothing was run."""


@dataclass(frozen=True)
class Given:
    """What is visible inside, for reading only."""

    bundle: Path
    wheels: Path
    images: Path | None


def available() -> str | None:
    """Why there is no sandbox here, or None."""
    if sys.platform != "linux":
        return "bubblewrap is for Linux only"
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed: install the package `bubblewrap`"
    tried = subprocess.run([*_command(None, 2**20), "/bin/true"], capture_output=True, text=True)
    return f"bubblewrap cannot make a sandbox here: {tried.stderr.strip()}" if tried.returncode else None


def rehearse(given: Given, disk_bytes: int, request: dict[str, Any], runs_s: float) -> dict[str, Any]:
    """The answer of `export.rehearsal` to a request; runs_s: what all its runs may take. Raises SandboxMissing."""
    with tempfile.TemporaryDirectory() as folder:
        driver = Path(folder) / "rehearsal.py"
        shutil.copyfile(rehearsal.__file__, driver)
        command = [*_command(given, disk_bytes, driver), _python(), "-I", "/given/rehearsal.py"]
        try:
            done = subprocess.run(
                command,
                input=json.dumps({**request, "disk": DISK}),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=runs_s + _OVERHEAD_S,
            )
        except subprocess.TimeoutExpired as error:
            raise SandboxMissing(f"the rehearsal did not end within {error.timeout:.0f} s") from error
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        raise SandboxMissing(f"the rehearsal died: {done.stderr.strip() or f'code {done.returncode}'}") from error
    return answer


def fetch(requirements: Path, folder: Path, wheels: Path | None) -> str | None:
    """The lock's wheels into `folder`, from the package index or from a folder; no code of theirs is run.
    What pip said where it could not."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--require-hashes",
    ]
    command += ["--only-binary", ":all:", "--dest", str(folder), "--requirement", str(requirements)]
    if wheels is not None:
        command += ["--no-index", "--find-links", str(wheels)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"Connection to the package index: no answer within {FETCH_TIMEOUT_S} s"
    return done.stderr.strip() or f"pip ended with code {done.returncode}" if done.returncode else None


def _python() -> str:
    """The interpreter itself, not that of a virtual environment."""
    return str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())


def _command(given: Given | None, disk_bytes: int, driver: Path | None = None) -> list[str]:
    command = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    for path in _SYSTEM:
        if Path(path).is_symlink():
            command += ["--symlink", str(Path(path).readlink()), path]
        elif Path(path).exists():
            command += ["--ro-bind", path, path]
    if not Path(sys.base_prefix).is_relative_to("/usr"):
        command += ["--ro-bind", sys.base_prefix, sys.base_prefix]
    command += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    command += ["--size", str(disk_bytes), "--tmpfs", DISK]
    for name, path in (vars(given) if given else {}).items():
        if path is not None:
            command += ["--ro-bind", str(path.resolve()), f"/given/{name}"]
    if driver:
        command += ["--ro-bind", str(driver), "/given/rehearsal.py"]
    settings = {"HOME": f"{DISK}/home", "TMPDIR": f"{DISK}/tmp", "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    for name, value in settings.items():
        command += ["--setenv", name, value]
    return [*command, "--remount-ro", "/", "--chdir", DISK]
