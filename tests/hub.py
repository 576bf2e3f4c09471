"""A stand-in of the Hugging Face hub on this machine: as much of its protocol as downloads need."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_COMMIT = "0" * 39 + "1"


@dataclass
class Hub:
    """files: path under the host -> content. breaks: how many answers end after half of their bytes. requests: those
    that were answered, as (method, path, range asked for)."""

    files: dict[str, bytes]
    breaks: int = 0
    url: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def environment(self, cache: Path) -> dict[str, str]:
        """For a process that shall take this for the hub."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path, asked = self.path.split("?")[0], self.headers.get("Range")
            hub.requests.append((self.command, path, asked))
            if path.startswith("/api/models/"):
                name = path.removeprefix("/api/models/").split("/revision/")[0]
                told = json.dumps({"id": name, "sha": _COMMIT, "siblings": [], "private": False, "tags": []})
                self._send(200, told.encode(), {"Content-Type": "application/json"}, body)
                return
            content = hub.files.get(path)
            if content is None:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": _COMMIT}, body)
                return
            digest = hashlib.sha256(content).hexdigest()
            headers = {"ETag": f'"{digest}"', "X-Repo-Commit": _COMMIT, "Accept-Ranges": "bytes"}
            start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._send(206 if start else 200, content[start:], headers, body)

        def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if not body:
                return
            if hub.breaks and len(content) > 1:
                hub.breaks -= 1
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
                return
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
