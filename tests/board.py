"""A real sshd on the loopback interface, with keys made for the test."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import children


@dataclass(frozen=True)
class Board:
    """target: its address, with this interpreter as the board's Python. home: where its cache lies."""

    target: str
    home: Path
    process: subprocess.Popen
    config: Path

    @property
    def sessions(self) -> list[int]:
        """The server's processes for open connections."""
        return children(self.process.pid)


@pytest.fixture(scope="session")
def ssh_server(tmp_path_factory):
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if sshd is None or shutil.which("ssh") is None:
        pytest.skip("needs OpenSSH's server and client (Debian: openssh-server)")
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host\nPidFile {folder}/pid\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/user.pub\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f"UsePAM no\nSetEnv XDG_CACHE_HOME={folder}/cache\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where a server of root's separates its privileges
    log = (folder / "log").open("w")
    server = subprocess.Popen([sshd, "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    else:
        pytest.fail(f"sshd did not start: {(folder / 'log').read_text()}")
    yield folder, port, server
    server.terminate()
    server.wait()


@pytest.fixture
def board(ssh_server, tmp_path, monkeypatch):
    """`ssh` finds the keys of the test by a wrapper that adds -F; it is the real one."""
    folder, port, server = ssh_server
    host_key = (folder / "host.pub").read_text().strip()
    (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}\n")
    config = tmp_path / "config"
    config.write_text(
        f"Host *\n  IdentityFile {folder}/user\n  IdentitiesOnly yes\n  UserKnownHostsFile {tmp_path}/known_hosts\n"
        "  GlobalKnownHostsFile /dev/null\n"
    )
    wrapper = tmp_path / "bin" / "ssh"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {config} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    target = f"ssh://{getpass.getuser()}@127.0.0.1:{port}{sys.executable}"
    home = folder / "cache" / "edgebuild" / "board"
    shutil.rmtree(home, ignore_errors=True)  # of a test before: a board that nothing was sent to yet
    return Board(target, home, server, config)
