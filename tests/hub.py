"""A stand-in for the Hugging Face hub: its protocol on this machine, and its failures.

As the hub does, it states a file's commit, SHA-256 and size in an answer that redirects
to another host, which has the bytes and takes ranges. Each fault is met once.

    python -m tests.hub FILE  # a JSON object of what Hub takes, and port; prints the port
"""

import functools
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from tests.conftest import ROOT

RESOLVE = re.compile(
    r"/datasets/(?P<repository>[^/]+/[^/]+)/resolve/(\w+)/(?P<name>.+)"
)


class Hub(ThreadingHTTPServer):
    """The files of one folder as a data set, of one commit.

    Args:
        folder: The files.
        repository: The data set.
        commit: The only commit.
        faults: For each file, what goes wrong at the next requests of its bytes, in
            turn: ``{}`` nothing; ``{"status": 500}``, with ``headers``; ``{"cut": n}``
            the connection ends after n bytes; ``{"short": n}`` the answer does;
            ``{"damaged": 1}`` a byte is another one; ``{"long": n}`` n bytes too many
            come; ``{"die": n}`` the server is
            killed after n bytes; ``{"hang": n}`` nothing comes after n bytes.
        stated: Headers that the hub states otherwise, for all files.
        head_faults: As *faults*, for the requests of what is stated.
        log: Where a line is written for each request of bytes.
    """

    daemon_threads = True

    def __init__(
        self,
        folder: Path,
        repository: str,
        commit: str,
        *,
        port: int = 0,
        faults: dict[str, list[dict[str, Any]]] | None = None,
        head_faults: dict[str, list[dict[str, Any]]] | None = None,
        stated: dict[str, str | None] | None = None,
        log: Path | None = None,
    ) -> None:
        self.folder, self.repository, self.commit = Path(folder), repository, commit
        self.faults, self.head_faults = faults or {}, head_faults or {}
        self.stated = stated or {}
        self.log = log
        self.requests: list[tuple[str, str]] = []  # name and range of bytes asked for
        self.hanging = threading.Event()
        self.released = threading.Event()
        super().__init__(("127.0.0.1", port), Answer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def note(self, name: str, asked: str) -> None:
        self.requests.append((name, asked))
        if self.log is not None:
            with open(self.log, "a") as file:
                print(name, asked, file=file)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(
            target=functools.partial(self.serve_forever, poll_interval=0.01)
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that was killed hangs up."""


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        found = RESOLVE.fullmatch(self.path)
        name = found["name"] if found else ""
        fault = (self.server.head_faults.get(name) or [{}]).pop(0)
        if "status" in fault:
            self.refuse(fault["status"], fault.get("headers", {}))
        else:
            self.redirect()

    def do_GET(self) -> None:
        if self.path.startswith("/bytes/"):
            self.send_bytes(self.path.removeprefix("/bytes/"))
        else:
            self.redirect()

    def redirect(self) -> None:
        hub, found = self.server, RESOLVE.fullmatch(self.path)
        if found is None or found["repository"] != hub.repository:
            self.refuse(404, {"X-Error-Code": "RepoNotFound"})
            return
        if found[2] != hub.commit:
            self.refuse(404, {"X-Error-Code": "RevisionNotFound"})
            return
        path = hub.folder / found["name"]
        if not path.exists():
            self.refuse(404, {"X-Error-Code": "EntryNotFound"})
            return
        content = path.read_bytes()
        headers = {
            "X-Repo-Commit": hub.commit,
            "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Linked-Size": str(len(content)),
            "X-Xet-Hash": "0" * 64,
            "ETag": '"0123456789abcdef"',
            "Location": f"http://localhost:{hub.server_port}/bytes/{path.name}",
            "Content-Length": "0",
        } | hub.stated
        self.answer(HTTPStatus.FOUND, headers)

    def send_bytes(self, name: str) -> None:
        hub = self.server
        asked = self.headers.get("Range", "")
        hub.note(name, asked)
        fault = (hub.faults.get(name) or [{}]).pop(0)
        if "status" in fault:
            self.refuse(fault["status"], fault.get("headers", {}))
            return
        content = (hub.folder / name).read_bytes()
        if "damaged" in fault:
            content = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
        content += bytes(fault.get("long", 0))
        if "short" in fault:
            content = content[: fault["short"]]
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
        if asked and start >= len(content):
            self.refuse(416, {"Content-Range": f"bytes */{len(content)}"})
            return
        headers = {"Content-Length": str(len(content) - start)}
        if asked:
            headers["Content-Range"] = (
                f"bytes {start}-{len(content) - 1}/{len(content)}"
            )
        status = HTTPStatus.PARTIAL_CONTENT if asked else HTTPStatus.OK
        self.answer(status, headers)
        stop = min(fault.get(kind, len(content)) for kind in ("cut", "die", "hang"))
        self.wfile.write(content[start:stop])
        self.wfile.flush()
        if "hang" in fault:
            hub.hanging.set()
            hub.released.wait()
        if "die" in fault:
            os.kill(os.getpid(), signal.SIGKILL)
        if stop < len(content):
            self.close_connection = True

    def refuse(self, status: int, headers: dict[str, str]) -> None:
        self.answer(status, {"Content-Length": "0"} | headers)

    def answer(self, status: int, headers: dict[str, str | None]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()


class HubProcess:
    """A hub in a process of its own, which a fault can kill.

    Args:
        settings: What ``Hub`` takes, as JSON has it.
        port: One of an earlier hub, or 0.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], port: int = 0) -> None:
        file = folder / "hub.json"
        file.write_text(json.dumps(settings | {"port": port}))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.hub", str(file)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


if __name__ == "__main__":
    with Hub(**json.loads(Path(sys.argv[1]).read_text())) as hub:
        print(hub.server_port, flush=True)
        signal.pause()
