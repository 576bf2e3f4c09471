"""Sandboxes by bubblewrap, unprivileged: no network, one disk of a given size, an empty environment and home."""

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from ast import literal_eval
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from export import bounded, rehearsal, seccomp
from export.errors import ExportError
from export.lock import FETCH_TIMEOUT_S, Pin, render_pins

_ENVIRONMENT = {
    "HOME": f"{rehearsal.DISK}/home",
    "TMPDIR": f"{rehearsal.DISK}/tmp",
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
}
"""Everything that a process in the sandbox sees of the environment."""
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
_NETWORK = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/gai.conf", "/etc/ssl", "/etc/pki")
_STARTS_S = 60
_FETCH_DISK = 2**32
_SAID = 4000
_MAX_FILES = 128
"""Open files of a process. With rehearsal.MAX_TASKS processes that is a quarter of a million, of a table that the whole
machine shares."""
_MAX_ANSWER_BYTES = 8 * rehearsal.MAX_OUTPUT_BYTES
"""JSON escapes may take six characters for one byte."""
PIP_OPTIONS = (
    *("--quiet", "--disable-pip-version-check", "--no-input"),
    *("--require-hashes", "--no-deps", "--only-binary", ":all:"),
)
_PIP_KEYS = (
    *("index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "proxy"),
    *("timeout", "default-timeout", "retries"),
)
"""The part of the user's pip configuration that is used: where packages come from, and nothing else."""
_PIP_FILES = ("cert", "client-cert")
_PIP_SECTIONS = ("global", "download", ":env:")
"""In pip's order: later sections override earlier ones."""
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


class SandboxBroken(ExportError):
    """The sandbox ended, hung, or gave no valid answer."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Step(_Part):
    """One process. code: its exit code, None if it was killed for time. said: the end of its output. roomy: the same
    run with more memory. wrote: the output file that was asked for, None if it could not be read."""

    code: int | None
    seconds: Annotated[FiniteFloat, Field(ge=0)]
    peak_bytes: Annotated[int, Field(ge=0)]
    said: Annotated[str, Field(max_length=_SAID)]
    roomy: "Step | None" = None
    wrote: str | None = None


class Answer(_Part):
    """The driver's answer to a request. problem: the system's error if a file could not be copied. exceeded: what all
    processes were killed for (see `rehearsal.Watch`)."""

    steps: dict[str, Step]
    disk_peak_bytes: Annotated[int, Field(ge=0)]
    disk_full: bool
    exceeded: Literal["", "memory", "tasks", "host", "watch"] = ""
    problem: Annotated[str, Field(max_length=_SAID)] = ""
    bytes: dict[str, int] = {}
    requires: dict[str, list[str]] = {}


@dataclass(frozen=True)
class Given:
    """What is visible inside the sandbox, read-only, as /given/NAME."""

    bundle: Path
    fetched: Path
    images: Path


def available() -> str | None:
    """Why there can be no sandbox on this machine, or None."""
    if sys.platform != "linux":
        return "bubblewrap is for Linux only"
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed: install the package `bubblewrap`"
    tried = subprocess.run([*_command({}, 2**20), "/bin/true"], capture_output=True, text=True, env=_ENVIRONMENT)
    return f"bubblewrap cannot make a sandbox here: {tried.stderr.strip()}" if tried.returncode else None


class Sandbox:
    """A bubblewrap that runs `export.rehearsal`, which answers one request at a time.

    An answer is bounded in time and size, whatever runs inside. Closing the sandbox kills everything in it.
    """

    def __init__(self, command: list[str], settings: Mapping[str, str] | None = None, network: bool = False) -> None:
        """settings: more environment variables. They are not part of the command, which other users can see."""
        self._said = b""
        program = seccomp.program(network)
        with tempfile.TemporaryFile() as file:
            file.write(program or b"")
            file.seek(0)
            filtered = ["--seccomp", str(file.fileno())] if program else []
            self._process = subprocess.Popen(
                [command[0], *filtered, *command[1:]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**_ENVIRONMENT, **(settings or {})},
                pass_fds=(file.fileno(),),
                preexec_fn=_begin,
            )
        assert self._process.stderr
        self._listener = threading.Thread(target=self._listen, args=(self._process.stderr,), daemon=True)
        self._listener.start()

    def ask(self, within_s: float, do: str, **request: Any) -> Answer:
        """Send a request and return the answer. Raises SandboxBroken if there is none within `within_s` seconds."""
        process = self._process
        assert process.stdin and process.stdout
        timer = threading.Timer(within_s, process.kill)  # which kills the sandbox, and so closes all pipes
        timer.daemon = True
        timer.start()
        line = b""
        try:
            with contextlib.suppress(OSError):
                process.stdin.write(json.dumps({"do": do, **request}).encode() + b"\n")
                process.stdin.flush()
                line = process.stdout.readline(_MAX_ANSWER_BYTES)
            late = not timer.is_alive()
        finally:
            timer.cancel()
        if late:
            raise SandboxBroken(f"'{do}' was not done within {within_s:.0f} s, and did not end when it should")
        if not line.endswith(b"\n"):
            self.close()
            self._listener.join(rehearsal.LAST_WORDS_S)
            said = self._said.decode(errors="replace").strip()
            raise SandboxBroken(f"it ended at '{do}', or said far too much: {said[-500:] or 'without a word'}")
        try:
            return Answer.model_validate_json(line)
        except ValidationError as error:
            raise SandboxBroken(f"its answer to '{do}' is none: {error.errors()[0]['msg']}") from error

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]  # both are pipes

    def _listen(self, stream: IO[bytes]) -> None:
        while part := stream.read1(4096):  # type: ignore[attr-defined]  # a BufferedReader
            self._said = (self._said + part)[-_SAID:]


def _begin() -> None:
    """Prepare the new process: drop this one's keys, lift the limits that it set itself (`export.bounded`), and limit
    open files and queued signals, which the machine or the user has a fixed number of."""
    seccomp.leave_keyring()
    for limit in bounded.LIMITS:
        _, most = resource.getrlimit(limit)
        resource.setrlimit(limit, (most, most))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_SIGPENDING, (0, 0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_FILES, _MAX_FILES))


@contextmanager
def opened(given: Given, disk_bytes: int) -> Iterator[Sandbox]:
    """A sandbox without a network."""
    with tempfile.TemporaryDirectory() as folder:
        binds = {f"/given/{name}": path for name, path in vars(given).items()}
        sandbox = Sandbox(_driven(binds, disk_bytes, Path(folder)))
        try:
            yield sandbox
        finally:
            sandbox.close()


def fetch(pins: tuple[Pin, ...], folder: Path, wheels: Path | None) -> Answer:
    """Download the wheels of a lock into `folder`/wheels, create an environment for them in `folder`/env, and write the
    lock as pip reads it into `folder`/requirements.txt.

    wheels: a folder of wheels to use instead of the package index. pip runs in a sandbox of its own, the only one with
    a network. It reads a list that is written here from parsed pins, and a configuration that only says where packages
    come from. No code of a package is run.
    """
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        requirements = folder / "requirements.txt"
        requirements.write_text(render_pins(pins), encoding="ascii")
        binds = {"/given/fetched/requirements.txt": requirements}
        options = list(PIP_OPTIONS)
        settings: dict[str, str] = {}
        if wheels is not None:
            binds["/given/wheels"] = wheels
            options += ["--no-index", "--find-links", "/given/wheels"]
        else:
            config, seen = _pip_config()
            (work / "pip.conf").write_text(config, encoding="utf-8")
            binds |= {"/given/pip.conf": work / "pip.conf", **{str(p): p for p in seen}}
            binds |= {path: Path(path) for path in _NETWORK if Path(path).exists()}
            settings = {"PIP_CONFIG_FILE": "/given/pip.conf"}
            settings |= {k: v for k, v in os.environ.items() if k.lower() in _PROXIES}
        network = wheels is None
        sandbox = Sandbox(_driven(binds, _FETCH_DISK, work, out=folder, network=network), settings, network)
        try:
            return sandbox.ask(2 * FETCH_TIMEOUT_S + _STARTS_S, "fetch", options=options, timeout_s=FETCH_TIMEOUT_S)
        finally:
            sandbox.close()


def _pip_config() -> tuple[str, list[Path]]:
    """A pip.conf with the package sources of the user's pip, and the local files and folders that it names."""
    listed = subprocess.run(
        [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "config", "list"],
        capture_output=True,
        text=True,
        errors="replace",
    ).stdout
    found: dict[str, dict[str, str]] = {section: {} for section in _PIP_SECTIONS}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.partition(".")
        if section in found and key in (*_PIP_KEYS, *_PIP_FILES):
            with contextlib.suppress(ValueError, SyntaxError):
                found[section][key] = str(literal_eval(value))
    settings = {k: v for section in _PIP_SECTIONS for k, v in found[section].items()}
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        if name in os.environ:
            settings.setdefault("cert", os.environ[name])
    paths = [Path(settings[key]) for key in _PIP_FILES if key in settings]
    paths += _local(settings.get("find-links", ""))
    # The pages of a local index link to files beside the index.
    paths += [
        p.parent if len(p.parts) > 2 else p
        for k in ("index-url", "extra-index-url")
        for p in _local(settings.get(k, ""))
    ]
    lines = [f"{key} = {' '.join(value.split())}" for key, value in settings.items()]
    return "\n".join(["[global]", *lines, ""]), [p for p in paths if p.is_absolute() and p.exists()]


def _local(urls: str) -> list[Path]:
    found = [urlsplit(word) for word in urls.split()]
    return [Path(unquote(url.path)) for url in found if url.scheme in ("", "file")]


def _python() -> str:
    """The base interpreter, not the one of a virtual environment."""
    return str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())


def _driven(
    binds: Mapping[str, Path],
    disk_bytes: int,
    folder: Path,
    out: Path | None = None,
    network: bool = False,
) -> list[str]:
    """The command that starts `export.rehearsal` in a sandbox, from a copy in `folder`."""
    driver = folder / "rehearsal.py"
    shutil.copyfile(rehearsal.__file__, driver)
    seen = {**binds, "/given/rehearsal.py": driver}
    return [*_command(seen, disk_bytes, out, network), _python(), "-I", "/given/rehearsal.py"]


def _command(
    binds: Mapping[str, Path],
    disk_bytes: int,
    out: Path | None = None,
    network: bool = False,
) -> list[str]:
    command = [shutil.which("bwrap") or "bwrap", "--unshare-all", "--die-with-parent", "--new-session"]
    command += ["--cap-drop", "ALL"]
    command += ["--as-pid-1"]  # else bubblewrap is, and its /proc entry opens our pipes to all inside
    command += ["--share-net"] * network
    for path in _SYSTEM:
        if Path(path).is_symlink():
            command += ["--symlink", str(Path(path).readlink()), path]
        elif Path(path).exists():
            command += ["--ro-bind", path, path]
    if not Path(sys.base_prefix).is_relative_to("/usr"):
        command += ["--ro-bind", sys.base_prefix, sys.base_prefix]
    # Read-only: the kernel lets root, though it has no capability in here, write the machine's settings in /proc/sys.
    command += ["--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    # No terminals: their number is limited for the whole machine.
    command += ["--size", "4096", "--tmpfs", "/dev/pts", "--remount-ro", "/dev/pts"]
    command += ["--size", str(disk_bytes), "--tmpfs", str(rehearsal.DISK)]
    for inside, given in binds.items():
        command += ["--ro-bind", str(given.resolve()), inside]
    if out is not None:
        command += ["--bind", str(out.resolve()), str(rehearsal.OUT)]
    return [*command, "--remount-ro", "/", "--chdir", str(rehearsal.DISK)]
