"""The part of the Hugging Face Hub's protocol that downloads need, on loopback: listing, tree, HEAD, GET, ranges."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMITS = {"main": "a" * 40, "v2": "b" * 40}


class HubServer(ThreadingHTTPServer):
    """Models by name and commit: `models["org/name"][commit]` is a folder. `requests` has (method, path) of all asked.

    gated: models that may not be read. cut: names of files whose first answer breaks off in the middle.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: dict[str, dict[str, Path]] = {}
        self.gated: set[str] = set()
        self.cut: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fetched(self) -> set[str]:
        """Names of the files whose content was asked for."""
        paths = (path for method, path in self.requests if method == "GET" and "/resolve/" in path)
        return {path.split("/resolve/")[1].split("/", 1)[1] for path in paths}


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A server that answers until the block ends."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append((self.command, path))
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?(/.*)?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = api or file
        if found is None or found[1] not in self.server.models:
            return self._error(401, "RepoNotFound")
        if found[1] in self.server.gated:
            return self._error(403, "GatedRepo")
        revision = (file[2] if file else api and api[3]) or "main"
        commit = COMMITS.get(revision, revision)
        folder = self.server.models[found[1]].get(commit)
        if folder is None:
            return self._error(404, "RevisionNotFound", commit)
        if file:
            return self._file(folder / file[3], commit)
        names = sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file())
        if api and api[2] == "tree":
            entries = [
                {"type": "file", "path": n, "size": (folder / n).stat().st_size, "oid": _etag(folder / n)}
                for n in names
            ]
            return self._json(entries)
        siblings = [{"rfilename": name} for name in names]
        return self._json(
            {"_id": "1", "id": found[1], "modelId": found[1], "sha": commit, "siblings": siblings, "tags": []}
        )

    def _file(self, path: Path, commit: str) -> None:
        if not path.is_file():
            self._error(404, "EntryNotFound", commit)
            return
        data, start = path.read_bytes(), 0
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            self.server.ranges.append(path.name)
            start = int(wanted[1])
        part = data[start:]
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("ETag", f'"{_etag(path)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if self.command == "GET":
            if path.name in self.server.cut:
                self.server.cut.discard(path.name)
                self.wfile.write(part[: len(part) // 2])
                self.close_connection = True
                return
            self.wfile.write(part)

    def _json(self, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def _error(self, status: int, code: str, commit: str = "") -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
