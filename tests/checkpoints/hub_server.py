"""A small model hub on loopback: the hub's listing, resolve and redirect, with faults on demand.

Real HTTP in a thread of the test, or a program: ``python tests/checkpoints/hub_server.py FOLDER [--port N]
[--rate N]`` serves ``FOLDER/<owner>/<name>/…``. Large files are answered by a redirect to another host
name, as the hub does. Knows nothing of the code under test.
"""

import argparse
import hashlib
import json
import re
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 32 * 1024
"""Files from this size (bytes) on are kept as LFS objects and identified by their SHA-256."""
_PIECE = 16 * 1024


@dataclass
class Repo:
    """One repository: its files, who may read it and how it misbehaves."""

    files: dict[str, bytes]
    revisions: tuple[str, ...] = ("main",)
    token: str | None = None  # needed to read files; the listing stays open, as the hub does for gated ones
    corrupt: set[str] = field(default_factory=set)  # sent with one byte changed
    hold: dict[str, int] = field(default_factory=dict)  # stop after so many bytes of an answer, until released
    cut: dict[str, int] = field(default_factory=dict)  # end the connection after so many bytes, once
    fail: dict[str, list[int]] = field(default_factory=dict)  # answer these statuses first
    announce: dict[str, int] = field(default_factory=dict)  # sizes that the listing tells instead of the true ones
    ignore_range: bool = False

    @property
    def commit(self) -> str:
        parts = [f"{name}:{_oid(content)}" for name, content in sorted(self.files.items())]
        return hashlib.sha1("\n".join(parts).encode()).hexdigest()


@dataclass
class Served:
    """One request for a file's bytes, as the log keeps it."""

    path: str
    start: int
    sent: int
    status: int
    authorized: bool


class Hub:
    """The server and what it remembers. ``log`` grows while requests run."""

    def __init__(self, port: int = 0, rate: float | None = None) -> None:
        self.repos: dict[str, Repo] = {}
        self.log: list[Served] = []
        self.listings = 0
        self.unknown_tokens: set[str] = set()
        self.rate = rate  # bytes per second of one answer
        self.held: Counter[str] = Counter()
        self.changed = threading.Condition()
        self.release = threading.Event()
        self.server = _Server(("127.0.0.1", port), type("Bound", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Hub":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def wait_held(self, count: int, timeout: float = 120) -> None:
        """Return once ``count`` answers have stopped at their hold."""
        with self.changed:
            if not self.changed.wait_for(lambda: sum(self.held.values()) >= count, timeout):
                raise TimeoutError(f"only {dict(self.held)} are held")

    def sent(self, path: str) -> int:
        """Bytes of a file sent so far, over all requests."""
        return sum(entry.sent for entry in self.log if entry.path == path)

    def forget(self) -> None:
        """Empty the log."""
        self.log.clear()
        self.held.clear()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a killed client is what the tests are about
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            return self._listing(match[1], match[3] or "main", tree=match[2] == "tree")
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(match[1], match[2], match[3])
        if match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            return self._bytes(self.hub.repos[match[1]], match[2])
        self._refuse(404, "", "no such page")

    def _find(self, repo_id: str, revision: str) -> Repo | None:
        repo = self.hub.repos.get(repo_id)
        if self.headers.get("Authorization", "").removeprefix("Bearer ") in self.hub.unknown_tokens:
            self._refuse(401, "", "Invalid credentials in Authorization header")
            return None
        if repo is None:
            self._refuse(401, "RepoNotFound", "Repository not found")
        elif revision not in (*repo.revisions, repo.commit):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repo

    def _listing(self, repo_id: str, revision: str, *, tree: bool) -> None:
        self.hub.listings += 1
        repo = self._find(repo_id, revision)
        if repo is None:
            return
        entries = []
        for name, content in repo.files.items():
            size = repo.announce.get(name, len(content))
            lfs = {"sha256": _oid(content), "size": size, "pointerSize": 134}
            entry: dict[str, Any] = {"size": size}
            if len(content) >= LARGE:
                entry["lfs"] = {"oid": lfs["sha256"], **lfs} if tree else lfs
            blob = _blob(content)
            entries.append(
                {"type": "file", "path": name, "oid": blob, **entry}
                if tree
                else {"rfilename": name, "blobId": blob, **entry}
            )
        body = entries if tree else {"id": repo_id, "modelId": repo_id, "sha": repo.commit, "siblings": entries}
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _resolve(self, repo_id: str, revision: str, name: str) -> None:
        repo = self._find(repo_id, revision)
        if repo is None:
            return None
        if repo.token and self.headers.get("Authorization") != f"Bearer {repo.token}":
            status = 403 if self.headers.get("Authorization") else 401
            return self._refuse(status, "GatedRepo", f"Access to model {repo_id} is restricted")
        if name not in repo.files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        if repo.fail.get(name):
            return self._refuse(repo.fail[name].pop(0), "", "try again")
        content = repo.files[name]
        known = {"X-Repo-Commit": repo.commit, "ETag": f'"{_oid(content)}"'}
        if len(content) < LARGE:
            return self._bytes(repo, name, known)
        linked = {"X-Linked-Size": str(len(content)), "X-Linked-Etag": known["ETag"]}
        elsewhere = f"http://localhost:{self.hub.port}/cdn/{repo_id}/{name}"
        self._send(302, b"", {**known, **linked, "Location": elsewhere})

    def _bytes(self, repo: Repo, name: str, headers: dict[str, str] | None = None) -> None:
        content = repo.files[name]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and not repo.ignore_range else 0
        if start >= len(content) and start:
            return self._refuse(416, "", "range not satisfiable")
        answer = {**(headers or {}), "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if start:
            answer["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        status = 206 if start else 200
        entry = Served(name, start, 0, status, "Authorization" in self.headers)
        if self.command == "GET":
            self.hub.log.append(entry)
        if name in repo.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        self._send(status, content[start:], answer, entry, repo.hold.get(name), repo.cut.pop(name, None))

    def _refuse(self, status: int, code: str, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._send(status, body, headers)

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str],
        entry: Served | None = None,
        hold: int | None = None,
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        end = min(len(body), *(limit for limit in (hold, cut) if limit is not None), len(body))
        try:
            self._write(body[:end], entry)
            if hold is not None and end == hold and entry:
                with self.hub.changed:
                    self.hub.held[entry.path] += 1
                    self.hub.changed.notify_all()
                self.hub.release.wait(300)
                self._write(body[end:], entry)
            elif end < len(body):
                self.close_connection = True
        except OSError:  # the client went away
            self.close_connection = True

    def _write(self, body: bytes, entry: Served | None) -> None:
        for begin in range(0, len(body), _PIECE):
            piece = body[begin : begin + _PIECE]
            if entry:
                entry.sent += len(piece)  # before: the client may be done before this thread goes on
            self.wfile.write(piece)
            if self.hub.rate:
                time.sleep(len(piece) / self.hub.rate)
        self.wfile.flush()


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _oid(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if len(content) >= LARGE else _blob(content)


def read_repos(folder: Path) -> dict[str, Repo]:
    """Return every ``owner/name`` below a folder as a repository."""
    repos = {}
    for place in sorted(folder.glob("*/*")):
        files = {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}
        repos[str(place.relative_to(folder))] = Repo(files)
    return repos


def main() -> int:
    """Serve a folder until interrupted."""
    parser = argparse.ArgumentParser(description="Serve FOLDER/<owner>/<name>/… as a model hub on loopback.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--rate", type=float, help="bytes per second of one answer")
    options = parser.parse_args()
    with Hub(options.port, options.rate) as hub:
        hub.repos = read_repos(options.folder)
        print(f"HF_ENDPOINT={hub.url}  {', '.join(hub.repos)}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
