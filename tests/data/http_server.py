"""A loopback web server that breaks off, changes its files or refuses ranges, as a test asks it to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer:
    """What the server gives and how, and the requests that it saw.

    Attributes:
        files: path -> content.
        etag: version sent with every file; `None` for none.
        break_after: cut the next so many answers off after this many bytes, e.g. `[100, 100]`.
        ranges: whether Range requests are honoured.
        statuses: path -> HTTP status to answer with instead.
        requests: `(path, Range header or None)` of every request.
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.kinds: dict[str, str] = {}
        self.etag: str | None = '"v1"'
        self.break_after: list[int] = []
        self.ranges = True
        self.statuses: dict[str, int] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""


@contextmanager
def serve() -> Iterator[FileServer]:
    """A running `FileServer` at `server.url`."""
    state = FileServer()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_GET(self):
            state.requests.append((self.path, self.headers.get("Range")))
            state.headers.append(dict(self.headers))
            status = state.statuses.get(self.path, 200 if self.path in state.files else 404)
            if status != 200:
                self.send_error(status)
                return
            body, start = state.files[self.path], 0
            asked = self.headers.get("Range")
            if asked and state.ranges and self.headers.get("If-Range", state.etag) == state.etag:
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                if start >= len(body):
                    self.send_error(416)
                    return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            if state.etag:
                self.send_header("ETag", state.etag)
            self.send_header("Content-Type", state.kinds.get(self.path, "application/octet-stream"))
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            limit = state.break_after.pop(0) if state.break_after else len(body)
            self.wfile.write(body[start : start + limit])

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
