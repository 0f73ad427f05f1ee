"""A loopback double of the Hub's HTTP API: it checks what it is sent, and breaks where a test asks it to.

Start one with [`serve`]. A client in a process of its own needs [`HubServer.environment`] before it imports
`huggingface_hub`, which reads the address once.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub import card_rules
from tests.hub.state import Account, Blob, Commit, Hub, Refusal, Repository

_REPO = r"(?P<repo>[^/]+/[^/]+)"
_API = rf"/api/(?P<kind>model|dataset|space)s/{_REPO}"


@dataclass
class Fault:
    """What goes wrong, once or more often, for the requests that match.

    Args:
        method: of the request.
        path: regular expression that is searched in the path.
        kind: `cut` reads `after` bytes of the body and hangs up; `status` answers `status`; `lost` does what was asked
            and hangs up without an answer; `hold` sets `reached` and waits for `released`, then hangs up.
        times: how often.
    """

    method: str
    path: str
    kind: str
    after: int = 0
    status: int = 500
    times: int = 1
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)


class HubServer(Hub):
    """A [`Hub`] that is listening.

    Attributes:
        url: where.
        store_url: where large files lie: another host, as with the real one, which must never see a token.
        faults: what is to go wrong; a fault that is used up does nothing.
        requests: `(method, path)` of every request, in order of arrival.
    """

    def __init__(self) -> None:
        super().__init__()
        self.url = self.store_url = ""
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []

    def add_account(self, name: str, token: str, role: str = "write") -> None:
        """Let a token in."""
        self.accounts[token] = Account(name, role)

    def files(self, name: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """What a repository holds, by path."""
        return {path: blob.content for path, blob in self.repositories[kind, name].at(revision).files.items()}

    def seen(self, method: str, path: str) -> int:
        """How many requests matched."""
        return sum(seen == method and re.search(path, where) is not None for seen, where in self.requests)

    def environment(self, home: Any, token: str | None) -> dict[str, str]:
        """Variables for a client's process: this server, this token, and caches under `home`."""
        variables = {
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HOME": str(home),
            "HF_MODULES_CACHE": f"{home}/modules",
            "OMP_NUM_THREADS": "1",
        }
        return variables | ({"HF_TOKEN": token} if token else {})

    def fault(self, method: str, path: str) -> Fault | None:
        """The fault that a request meets."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None


@contextmanager
def serve() -> Iterator[HubServer]:
    """A running [`HubServer`]."""
    hub = HubServer()
    with _listening(hub) as hub.url, _listening(hub) as hub.store_url:
        try:
            yield hub
        finally:
            for fault in hub.faults:
                fault.released.set()


@contextmanager
def _listening(hub: HubServer) -> Iterator[str]:
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _HangUp(Exception):
    """The connection ends here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *arguments: Any) -> None:
        pass

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        path, self.query = unquote(parts.path), parse_qs(parts.query)
        self.hub.requests.append((self.command, path))
        fault = self.hub.fault(self.command, path)
        try:
            if fault is not None:
                self._break(fault)
            body = self._body()
            try:
                if fault is not None and fault.kind == "status":
                    raise Refusal(fault.status, None, "The server has a bad day")
                with self.hub.lock:
                    account = self.hub.account(self._token())
                    answer = self._route(path, body, account)
            except Refusal as refusal:
                answer = self._refused(refusal)
            if fault is not None and fault.kind == "lost":
                raise _HangUp
            self._send(*answer)
        except (_HangUp, BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    # ---- reading and answering

    def _break(self, fault: Fault) -> None:
        if fault.kind == "cut":
            # No more than there is: a client that has sent everything waits for the answer, not the other way round.
            self.rfile.read(min(fault.after, int(self.headers.get("Content-Length", 0))))
            raise _HangUp
        if fault.kind == "hold":
            fault.reached.set()
            fault.released.wait(60)
            raise _HangUp

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        size = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(size)
        if len(body) != size:
            raise _HangUp  # the client went away in the middle
        return body

    def _token(self) -> str | None:
        header = self.headers.get("Authorization")
        if header is None:
            return None
        if not header.startswith("Bearer "):
            raise Refusal(401, None, "Invalid credentials in Authorization header")
        return header.removeprefix("Bearer ")

    def _refused(self, refusal: Refusal) -> tuple[int, dict[str, str], bytes]:
        headers = {"X-Error-Message": refusal.message}
        if refusal.code is not None:
            headers["X-Error-Code"] = refusal.code
        return refusal.status, headers, json.dumps({"error": refusal.message}).encode()

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # ---- the endpoints

    def _route(self, path: str, body: bytes, account: Account | None) -> tuple[int, dict[str, str], bytes]:
        for method, pattern, endpoint in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                result = endpoint(self, body, account, **match.groupdict())
                return result if isinstance(result, tuple) else (200, {}, json.dumps(result).encode())
        raise Refusal(404, None, f"This double has no {self.command} {path}")

    def whoami(self, body: bytes, account: Account | None) -> Any:
        if account is None:
            raise Refusal(401, None, "Invalid username or password.")
        token = {"accessToken": {"displayName": "test", "role": account.role}}
        return {"type": "user", "name": account.name, "orgs": [], "auth": token}

    def create(self, body: bytes, account: Account | None) -> Any:
        content = json.loads(body)
        kind, owner = content.get("type") or "model", content.get("organization") or (account and account.name)
        prefix = "" if kind == "model" else f"{kind}s/"
        url = f"{self.hub.url}/{prefix}{owner}/{content['name']}"
        try:
            self.hub.create(account, content)
        except Refusal as refusal:
            if refusal.status != 409:
                raise
            message = json.dumps({"error": refusal.message, "url": url}).encode()
            return 409, {"X-Error-Message": refusal.message}, message
        return {"url": url}

    def validate_yaml(self, body: bytes, account: Account | None) -> Any:
        content = json.loads(body)
        errors, warnings = card_rules.validate(content["content"], content["repoType"])
        answer = {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}
        return (400 if errors else 200), {}, json.dumps(answer).encode()

    def preupload(self, body: bytes, account: Account | None, kind: str, repo: str, revision: str) -> Any:
        repository = self.hub.writable(kind, repo, account)
        return {"files": self.hub.preupload(repository, revision, json.loads(body)["files"])}

    def batch(self, body: bytes, account: Account | None, repo: str, kind: str | None) -> Any:
        self.hub.writable(kind or "model", repo, account)
        content = json.loads(body)
        if content["operation"] != "upload" or content["hash_algo"] != "sha256" or "basic" not in content["transfers"]:
            raise Refusal(422, None, "only basic uploads of sha256 objects are known here")
        objects = []
        for entry in content["objects"]:
            oid, size = entry["oid"], entry["size"]
            answer = {"oid": oid, "size": size}
            if oid not in self.hub.store:  # what arrived once is not asked for again
                answer["actions"] = {
                    "upload": {"href": f"{self.hub.store_url}/store/{oid}?size={size}", "header": {}},
                    "verify": {"href": f"{self.hub.url}/api/verify", "header": {}},
                }
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def put(self, body: bytes, account: Account | None, oid: str) -> Any:
        self._without_token()
        self.hub.receive(oid, int(self.query["size"][0]), body)
        return 200, {"ETag": f'"{oid}"'}, b""

    def verify(self, body: bytes, account: Account | None) -> Any:
        content = json.loads(body)
        if len(self.hub.store.get(content["oid"], b"")) != content["size"]:
            raise Refusal(404, None, "This object never arrived")
        return {}

    def commit(self, body: bytes, account: Account | None, kind: str, repo: str, revision: str) -> Any:
        repository = self.hub.writable(kind, repo, account)
        if self.headers.get("Content-Type") != "application/x-ndjson":
            raise Refusal(400, None, "a commit is application/x-ndjson")
        commit = self.hub.commit(repository, revision, [json.loads(line) for line in body.splitlines()])
        prefix = "" if kind == "model" else f"{kind}s/"
        url = f"{self.hub.url}/{prefix}{repo}/commit/{commit.oid}"
        return {"success": True, "commitOid": commit.oid, "commitUrl": url}

    def point(self, body: bytes, account: Account | None, kind: str, repo: str, what: str, name: str) -> Any:
        """POST .../branch/{name}, and .../tag/{revision} with the tag's name in the body."""
        repository, content = self.hub.writable(kind, repo, account), json.loads(body)
        if what == "tag":
            revision, name, there = name, content["tag"], repository.tags
        else:
            revision, there = content.get("startingPoint", "main"), repository.branches
        if name in there:
            raise Refusal(409, None, f"Reference {name} already exists")
        there[name] = repository.at(revision).oid
        return {}

    def info(self, body: bytes, account: Account | None, kind: str, repo: str, revision: str | None = None) -> Any:
        repository = self.hub.readable(kind, repo, account)
        commit = repository.at(revision or "main")
        names = {"id": repo, "modelId": repo, "author": repo.split("/")[0], "sha": commit.oid}
        state = {"private": repository.private, "disabled": False, "gated": False, "tags": [], "downloads": 0}
        return names | state | {"likes": 0, "siblings": [{"rfilename": path} for path in sorted(commit.files)]}

    def refs(self, body: bytes, account: Account | None, kind: str, repo: str) -> Any:
        repository = self.hub.readable(kind, repo, account)

        def listed(there: dict[str, str], prefix: str) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"refs/{prefix}/{n}", "targetCommit": oid} for n, oid in there.items()]

        return {
            "branches": listed(repository.branches, "heads"),
            "tags": listed(repository.tags, "tags"),
            "converts": [],
        }

    def tree(
        self, body: bytes, account: Account | None, kind: str, repo: str, revision: str, folder: str | None = None
    ) -> Any:
        commit, start = self._readable(kind, repo, revision, account), f"{folder}/" if folder else ""
        entries, recursive = {}, self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        for path, blob in sorted(commit.files.items()):
            if not path.startswith(start):
                continue
            inner = path.removeprefix(start).split("/")
            for depth in range(1, len(inner)):
                if recursive or depth == 1:
                    name = start + "/".join(inner[:depth])
                    entries[name] = {"type": "directory", "path": name, "size": 0, "oid": "0" * 40}
            if recursive or len(inner) == 1:
                entries[path] = _entry(path, blob)
        if folder and not entries:
            raise Refusal(404, "EntryNotFound", f"{folder} does not exist")
        return list(entries.values())

    def paths_info(self, body: bytes, account: Account | None, kind: str, repo: str, revision: str) -> Any:
        commit = self._readable(kind, repo, revision, account)
        if self.headers.get("Content-Type", "").startswith("application/json"):
            wanted = json.loads(body)["paths"]
        else:
            wanted = parse_qs(body.decode())["paths"]
        return [_entry(path, commit.files[path]) for path in wanted if path in commit.files]

    def resolve(
        self, body: bytes, account: Account | None, repo: str, revision: str, file: str, kind: str | None
    ) -> Any:
        repository = self.hub.readable(kind or "model", repo, account)
        commit, blob = repository.file(revision, file)
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if blob.large:
            linked = {"X-Linked-ETag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
            return 302, headers | linked | {"Location": f"{self.hub.store_url}/store/{blob.sha256}"}, b""
        return 200, headers | {"ETag": f'"{blob.oid}"'}, blob.content

    def download(self, body: bytes, account: Account | None, oid: str) -> Any:
        self._without_token()
        if oid not in self.hub.store:
            raise Refusal(404, None, "No such object")
        return 200, {"ETag": f'"{oid}"', "Content-Type": "application/octet-stream"}, self.hub.store[oid]

    def _without_token(self) -> None:
        if "Authorization" in self.headers:
            raise Refusal(400, None, "a token was sent to the store of large files")

    def _readable(self, kind: str, repo: str, revision: str, account: Account | None) -> Commit:
        repository: Repository = self.hub.readable(kind, repo, account)
        return repository.at(revision)


def _entry(path: str, blob: Blob) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.oid}
    if blob.large:
        entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 134}
    return entry


_READ = ("GET", "HEAD")
_ROUTES = [
    (_READ, r"/api/whoami-v2", _Handler.whoami),
    (("POST",), r"/api/repos/create", _Handler.create),
    (("POST",), r"/api/validate-yaml", _Handler.validate_yaml),
    (("POST",), r"/api/verify", _Handler.verify),
    (("PUT",), r"/store/(?P<oid>[0-9a-f]{64})", _Handler.put),
    (_READ, r"/store/(?P<oid>[0-9a-f]{64})", _Handler.download),
    (("POST",), rf"/(?:(?P<kind>dataset|space)s/)?{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    (("POST",), rf"{_API}/preupload/(?P<revision>.+)", _Handler.preupload),
    (("POST",), rf"{_API}/commit/(?P<revision>.+)", _Handler.commit),
    (("POST",), rf"{_API}/(?P<what>branch|tag)/(?P<name>.+)", _Handler.point),
    (("POST",), rf"{_API}/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    (_READ, rf"{_API}/refs", _Handler.refs),
    (_READ, rf"{_API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", _Handler.tree),
    (_READ, rf"{_API}(?:/revision/(?P<revision>.+))?", _Handler.info),
    (_READ, rf"/(?:(?P<kind>dataset|space)s/)?{_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", _Handler.resolve),
]
