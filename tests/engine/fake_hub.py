"""A hub on 127.0.0.1 that speaks as much as the real client library needs: one public model, one gated one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote

REPO, GATED = "org/tiny", "org/gated"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves the files of `folder` as org/tiny. `asked`: files that were sent; `broken`: it fails from now on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.broken = False
        self.url = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        if self.broken:
            return 500, {}, b""
        if GATED in path:
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        if REPO not in path:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        _, _, rest = path.partition(f"{REPO}/")
        what, _, rest = rest.partition("/")
        revision, _, name = rest.partition("/")
        if revision not in ("main", "v1", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if what == "revision":
            return 200, {}, json.dumps({"id": REPO, "sha": COMMIT, "siblings": []}).encode()
        if what == "tree":
            return 200, {}, json.dumps([self._entry(path) for path in self._files()]).encode()
        data = (self.folder / name).read_bytes()
        return 200, {"ETag": f'"{sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}, data

    def _files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def _entry(self, path: Path) -> dict[str, object]:
        data = path.read_bytes()
        name = str(path.relative_to(self.folder))
        return {"type": "file", "path": name, "size": len(data), "oid": sha1(data).hexdigest()}


@contextmanager
def serving(folder: Path) -> Iterator[FakeHub]:
    """A hub as long as the context lasts."""
    hub = FakeHub(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._send(body=False)

        def do_GET(self) -> None:
            if "/resolve/" in self.path:
                hub.asked.append(self.path.rpartition("/")[2])
            self._send(body=True)

        def _send(self, *, body: bool) -> None:
            status, headers, data = hub.answer(unquote(self.path.partition("?")[0]))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
