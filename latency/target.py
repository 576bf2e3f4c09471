"""Where `target` of a config points: this machine, or a board that is reached by SSH.

The board needs Python, numpy and a runtime. What runs there travels as a zipapp, files lie in its cache folder by their
hash; each timing process is an `ssh` of OpenSSH's in batch mode, so keys, ports and jump hosts are those of the user's
ssh configuration. A lost connection is an error, never a verdict.
"""

import atexit
import contextlib
import hashlib
import io
import re
import shlex
import subprocess
import tarfile
import threading
import uuid
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from latency.errors import InputError, LatencyError
from latency.host import Host
from latency.lock import said_when_long
from latency.machine import LOCAL, Machine, Worker

_HERE = Path(__file__).resolve().parent
_KEPT = 8
"""Sets of files on the board; older ones are deleted, so that a search of hundreds of candidates fills no disk."""
_LOCK_S, _PULSE_S = 60, 15
_OPTIONS = ("BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3")
_PROBLEMS = {
    "Host key verification failed": "its host key is unknown or has changed; connect once by hand (ssh) and check the "
    "fingerprint",
    "Permission denied (": "it refuses our key; try `ssh` by hand, or set one up with ssh-copy-id",
    "Could not resolve": "no such host; check the name in target",
    "Connection refused": "nothing listens on that port; check the port in target, and sshd there",
    "No route to host": "it cannot be reached; check the network and the address in target",
    "Connection timed out": "it does not answer; check the network and the address in target",
    "closed by": "the connection was lost; measure again",
    "Connection reset": "the connection was lost; measure again",
    "Broken pipe": "the connection was lost; measure again",
    "not responding": "the connection was lost; measure again",
}
"""What OpenSSH's messages mean for the user."""
_MAIN = """import runpy, sys
if sys.version_info < (3, 11):
    sys.exit("edgebuild needs Python 3.11 or later here; this is " + sys.version.split()[0])
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def machine_of(target: str, modules: Mapping[str, Path] | None = None) -> Machine:
    """local, or ssh://[user@]host[:port][/path/of/its/python]. modules: further files for the board, by their path in
    the zipapp. Raises InputError."""
    if target == "local":
        return LOCAL
    try:
        url = urlsplit(target)
        host, port = url.hostname, url.port
        written = url.netloc.rpartition("@")[2]
        if host and written.lower().startswith(host):  # OpenSSH's own names of hosts have case
            host = written[: len(host)]
    except ValueError as error:
        raise InputError(f"target {target!r}: {error}") from error
    if url.password is not None:
        raise InputError("target: no password in the address; SSH is used with keys (ssh-copy-id)")
    fine = re.fullmatch(r"[\w.:-]+", host or "") and re.fullmatch(r"[\w.-]*", url.username or "")
    more = url.query or url.fragment or port == 0 or re.search(r"\s", target)
    if url.scheme != "ssh" or not fine or more or f"{host}".startswith("-") or f"{url.username}".startswith("-"):
        raise InputError(f"target {target!r}: expected local, or ssh://user@host[:port][/path/of/its/python]")
    destination = f"{url.username}@{host}" if url.username else f"{host}"
    return SshMachine(destination, port, url.path or "python3", modules or {})


def _keep(holder: Worker, done: threading.Event, lost: list[LatencyError]) -> None:
    """Ask the holder of the lock whether it still lives, now and then, and once more at the end."""
    try:
        while True:
            last = done.wait(_PULSE_S)
            holder.ask("ping", silence_s=_LOCK_S, next_within_s=_LOCK_S)
            if last:
                return
    except LatencyError as error:
        lost.append(error)


class SshMachine:
    def __init__(self, destination: str, port: int | None, python: str, modules: Mapping[str, Path]) -> None:
        self._destination, self._python, self._modules = destination, python, modules
        options = [part for option in _OPTIONS for part in ("-o", option)]
        self._ssh = ["ssh", *options, *(["-p", str(port)] if port else []), destination]
        self._session = uuid.uuid4().hex
        self._placed: OrderedDict[str, None] = OrderedDict()

    def command(self, module: str) -> tuple[list[str], None]:
        app = f"{self._home}/{self._app}"
        return [*self._ssh, f"exec {shlex.quote(self._python)} {shlex.quote(app)} {module}"], None

    def place(self, files: Sequence[Path]) -> list[str]:
        """Uploads them, unless that was done before, to a folder of this session, deleted at its end. Raises
        LatencyError."""
        archive, names = _tar(files)
        key = hashlib.sha256(archive).hexdigest()[:32]
        folder = f"{self._home}/{self._session}/{key}"
        if key not in self._placed:
            self._upload(archive, folder)
        self._placed[key] = None
        self._placed.move_to_end(key)
        return [f"{folder}/{name}" for name in names]

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Held by a process there, which lets it go when it is not told once a minute that we are still here."""
        done, lost = threading.Event(), list[LatencyError]()
        with Worker(self) as holder:
            with said_when_long(f"waiting for another measurement or training on {self._destination}"):
                holder.ask("lock", silence_s=None, next_within_s=_LOCK_S)
            pulse = threading.Thread(target=_keep, args=(holder, done, lost), daemon=True)
            pulse.start()
            try:
                yield
            finally:
                done.set()
                pulse.join()
            if lost:
                raise LatencyError(
                    f"{self._destination}: the connection that held the timing lock was lost, so another measurement "
                    f"may have disturbed this one; measure again ({lost[0]})"
                )

    def host(self) -> Host:
        return self._host

    def problem(self, stderr: str) -> str | None:
        for text, meaning in _PROBLEMS.items():
            for line in stderr.splitlines():
                if text in line:
                    return f"{self._destination}: {meaning} ({line.strip()})"
        return None

    @cached_property
    def _host(self) -> Host:
        with Worker(self) as worker:
            return Host.from_dict(worker.ask("host", []))

    @cached_property
    def _home(self) -> str:
        """Our folder there, with the zipapp in it and a folder for this session."""
        folder = '"${XDG_CACHE_HOME:-$HOME/.cache}/edgebuild/board"'
        part = f"{self._app}.$$"
        clean = "{ find . -mindepth 1 -maxdepth 1 -mtime +30 -exec rm -rf {} + || true; }"  # what killed sessions left
        script = f"mkdir -p {folder} && cd {folder} && {clean} && mkdir {self._session} && "
        said = self._run(f"{script}cat > {part} && mv {part} {self._app} && pwd", self._zipapp)
        home = said.decode(errors="surrogateescape").rstrip("\n").rpartition("\n")[2]
        if not home.startswith("/"):
            raise LatencyError(f"{self._destination}: its shell ran no command: it said {home[-80:]!a}")
        atexit.register(self._leave, home)
        return home

    def _leave(self, home: str) -> None:
        with contextlib.suppress(LatencyError):  # out of reach: the next session there cleans up, in time
            self._run(f"rm -rf {shlex.quote(f'{home}/{self._session}')}", b"")

    @property
    def _app(self) -> str:
        return f"edgebuild-{hashlib.sha256(self._zipapp).hexdigest()[:16]}.pyz"

    @cached_property
    def _zipapp(self) -> bytes:
        """This package, and the further modules; the same bytes for the same files."""
        own = {f"latency/{p.relative_to(_HERE).as_posix()}": p for p in _HERE.rglob("*.py")}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
            texts = {name: path.read_text(encoding="utf-8") for name, path in (own | dict(self._modules)).items()}
            for name, text in sorted({**texts, "__main__.py": _MAIN}.items()):
                packed.writestr(zipfile.ZipInfo(name), text)
        return buffer.getvalue()

    def _upload(self, archive: bytes, folder: str) -> None:
        old = list(self._placed)[: max(0, len(self._placed) - _KEPT + 1)]
        for key in old:
            del self._placed[key]
        gone = " ".join(shlex.quote(f"{self._home}/{self._session}/{key}") for key in old)
        part, there = shlex.quote(f"{folder}.part"), shlex.quote(folder)
        self._run(f"rm -rf {part} {gone} && mkdir {part} && tar xf - -C {part} && mv {part} {there}", archive)

    def _run(self, script: str, data: bytes) -> bytes:
        try:
            done = subprocess.run([*self._ssh, script], input=data, capture_output=True, timeout=600)
        except FileNotFoundError as error:
            raise LatencyError("ssh is not installed here; install OpenSSH's client") from error
        except subprocess.TimeoutExpired as error:
            raise LatencyError(f"{self._destination}: no answer to an upload within 600 s") from error
        if done.returncode:
            detail = done.stderr.decode(errors="replace").strip()
            raise LatencyError(self.problem(detail) or f"{self._destination}: {detail or 'ssh failed'}")
        return done.stdout


def _tar(files: Sequence[Path]) -> tuple[bytes, list[str]]:
    """(archive, names in it); the same bytes for the same files."""
    root = files[0].parent
    names = [f.relative_to(root).as_posix() if f.is_relative_to(root) else f.name for f in files]
    if len(set(names)) < len(names):
        names = [f"{i}-{f.name}" for i, f in enumerate(files)]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for file, name in zip(files, names, strict=True):
            data = file.read_bytes()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue(), names
