"""A page that follows a run, only for browsers on this machine: nobody else can ask, and nothing can be changed."""

from __future__ import annotations

import hashlib
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from btard.audit.files import CONFIG, LEDGER, METRICS, STATUS, SUMMARY, TIMINGS
from btard.harness.run_folder import RunFolderError
from btard.watch.folder import read_run
from btard.watch.page import content_of, json_of, page_of

LOOPBACK = "127.0.0.1"
WATCHED = (METRICS, STATUS, CONFIG, TIMINGS, LEDGER, SUMMARY)


class Watcher:
    """The newest page of the run in `folder`; read again once a file of it has changed."""

    def __init__(self, folder: Path) -> None:
        """Errors: RunFolderError if there is no run."""
        self._folder = folder
        self._lock = threading.Lock()
        self._state: tuple[tuple[str, int, int], ...] | None = None
        self._run = read_run(folder)
        self.page, self.data, self.tag = "", "", ""
        self.look()

    def look(self) -> None:
        """Bring `page`, `data` and its `tag` up to date. What cannot be read at the moment stays as it was."""
        with self._lock:
            state = self._files()
            if state == self._state:
                return
            try:
                self._run = read_run(self._folder)
            except (RunFolderError, OSError):  # in the middle of being written anew
                return
            content = content_of(self._run)
            self._state, self.data = state, json_of(content)
            self.page = page_of(content, live=True)
            self.tag = f'"{hashlib.sha256(self.data.encode()).hexdigest()[:32]}"'

    def _files(self) -> tuple[tuple[str, int, int], ...]:
        """Name, size and time of the files behind the page."""
        found = []
        for name in WATCHED:
            try:
                told = (self._run.folder / name).stat()
            except OSError:
                continue
            found.append((name, told.st_size, told.st_mtime_ns))
        return tuple(found)


class Server(ThreadingHTTPServer):
    """Serves one page on loopback; `port` 0 is any free port."""

    daemon_threads = True

    def __init__(self, watcher: Watcher, port: int) -> None:
        self.watcher = watcher
        super().__init__((LOOPBACK, port), _Handler)

    @property
    def address(self) -> str:
        return f"http://{LOOPBACK}:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "btard", ""

    def do_GET(self) -> None:
        # A page of somebody else that has its name resolve to this machine must not read the run.
        allowed = {f"{name}:{self.server.server_port}" for name in (LOOPBACK, "localhost")}
        if self.headers.get("Host") not in allowed:
            return self.send_error(HTTPStatus.FORBIDDEN, "only for this machine")
        watcher = self.server.watcher
        watcher.look()
        if self.path == "/":
            return self._answer("text/html; charset=utf-8", watcher.page)
        if self.path != "/data.json":
            return self.send_error(HTTPStatus.NOT_FOUND)
        if self.headers.get("If-None-Match") == watcher.tag:
            self.send_response(HTTPStatus.NOT_MODIFIED)
            self.send_header("ETag", watcher.tag)
            return self.end_headers()
        return self._answer("application/json", watcher.data, watcher.tag)

    def _answer(self, kind: str, text: str, tag: str = "") -> None:
        body = text.encode()
        self.send_response(HTTPStatus.OK)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("X-Frame-Options", "DENY"),
            *([("ETag", tag)] if tag else []),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: nobody wants a line every two seconds."""
