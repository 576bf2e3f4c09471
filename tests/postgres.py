"""A PostgreSQL server for tests: started on loopback, with a password, and ended with them."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

USER, PASSWORD = "edge", "pass:word@1"


class Missing(Exception):
    """What of a server this machine lacks."""


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        raise Missing("needs a PostgreSQL server (Debian: postgresql)")
    return found[-1].parent


def _account() -> dict:
    """It refuses to run as root."""
    if os.getuid():
        return {}
    try:
        account = pwd.getpwnam("postgres")
    except KeyError:
        raise Missing("PostgreSQL refuses to run as root, and there is no account `postgres`") from None
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


@contextmanager
def server(durable: bool = False):
    """The URL of an empty database, password included. durable: as it is run for real; tests need not wait for its
    disk. Raises Missing."""
    binaries, account = _binaries(), _account()
    folder = Path(tempfile.mkdtemp(prefix="edgebuild-pg-"))  # not below pytest's own, which only we may enter
    if account:
        os.chown(folder, account["user"], account["group"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    secret = folder / "password"
    secret.write_text(PASSWORD)
    secret.chmod(0o644)
    data = folder / "data"
    common = {"cwd": folder, "check": True, "capture_output": True, **account}
    login = ["-U", USER, "--auth=scram-sha-256", f"--pwfile={secret}"]
    subprocess.run([binaries / "initdb", "-D", data, *login, "--no-sync"], **common)
    fsync = "on" if durable else "off"
    settings = f"-c listen_addresses=127.0.0.1 -c port={port} -c fsync={fsync} -c unix_socket_directories={folder}"
    control = [binaries / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", settings]
    subprocess.run([*control, "start"], **common)
    try:
        yield f"postgresql://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "stop", "-m", "immediate"], **common)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres():
    with ExitStack() as opened:
        try:
            url = opened.enter_context(server())
        except Missing as missing:
            pytest.skip(str(missing))
        yield url
