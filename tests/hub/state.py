"""What a Hub remembers: accounts, repositories with their commits, the store of large files. No HTTP in here."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import threading
from dataclasses import dataclass, field
from typing import Any

from tests.hub import card_rules

BRANCH = "main"
LARGE = (".safetensors", ".parquet", ".png", ".arrow", ".bin")
MAX_REGULAR = 10 * 2**20


class Refusal(Exception):
    """An answer other than 2xx: status, X-Error-Code and X-Error-Message."""

    def __init__(self, status: int, code: str | None = None, message: str = "") -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True)
class Account:
    """Who a token stands for, and whether it may write."""

    name: str
    role: str = "write"


@dataclass(frozen=True)
class Blob:
    """A file's content, and whether it lies in the store of large files."""

    content: bytes
    large: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """git's own name of the blob, of the pointer where the file is a large one."""
        content = self.content
        if self.large:
            content = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(content)}\n"
            ).encode()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class Commit:
    """All files of a repository at one time."""

    oid: str
    files: dict[str, Blob]
    message: str
    parent: str | None


@dataclass
class Repository:
    """A repository and its history."""

    id: str
    type: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def add(self, files: dict[str, Blob], message: str, parent: str | None, branch: str = BRANCH) -> Commit:
        """Make the branch point at a new commit."""
        text = json.dumps([self.id, message, parent, {path: blob.oid for path, blob in files.items()}])
        commit = Commit(hashlib.sha1(text.encode()).hexdigest(), files, message, parent)
        self.commits[commit.oid] = commit
        self.branches[branch] = commit.oid
        return commit

    def at(self, revision: str) -> Commit:
        """The commit of a branch, a tag or a commit id."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[oid]

    def file(self, revision: str, path: str) -> tuple[Commit, Blob]:
        """A file as it was at a revision."""
        commit = self.at(revision)
        if path not in commit.files:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        return commit, commit.files[path]


class Hub:
    """Accounts, repositories and large files, with the checks that the real one makes.

    Attributes:
        accounts: token -> who it is.
        repositories: (type, id) -> repository.
        store: sha256 -> content of the large files that arrived.
    """

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.store: dict[str, bytes] = {}
        self.lock = threading.RLock()

    # ---- who may do what

    def account(self, token: str | None) -> Account | None:
        """Who asks; a token that nobody has is refused."""
        if token is None:
            return None
        if token not in self.accounts:
            raise Refusal(401, None, "Invalid credentials in Authorization header")
        return self.accounts[token]

    def readable(self, kind: str, name: str, account: Account | None) -> Repository:
        """A repository, if there is one that the account may see."""
        repository = self.repositories.get((kind, name))
        if repository is not None and not (repository.private and not _owns(account, name)):
            return repository
        # What must stay hidden and what does not exist look alike.
        raise Refusal(401 if account is None else 404, "RepoNotFound", "Repository not found")

    def writable(self, kind: str, name: str, account: Account | None) -> Repository:
        """A repository that the account may change."""
        repository = self.readable(kind, name, account)
        if account is None:
            raise Refusal(401, None, "Invalid username or password.")
        if not _owns(account, name) or account.role != "write":
            raise Refusal(403, None, f"{account.name} has no write access to {name}")
        return repository

    # ---- what the endpoints do

    def create(self, account: Account | None, body: dict[str, Any]) -> Repository:
        """POST /api/repos/create."""
        if account is None:
            raise Refusal(401, None, "Invalid username or password.")
        kind, owner = body.get("type") or "model", body.get("organization") or account.name
        name = f"{owner}/{body['name']}"
        if owner != account.name or account.role != "write":
            raise Refusal(403, None, f"You don't have the rights to create a {kind} under the namespace {owner}")
        if kind == "space" and body.get("sdk") not in ("gradio", "docker", "static"):
            raise Refusal(400, None, "a Space needs an sdk")
        if (kind, name) in self.repositories:
            raise Refusal(409, None, f"You already created this {kind} repo")
        repository = Repository(name, kind, private=body.get("visibility") == "private")
        repository.add({".gitattributes": Blob(b"*.safetensors filter=lfs\n")}, "initial commit", None)
        self.repositories[kind, name] = repository
        return repository

    def preupload(self, repository: Repository, revision: str, files: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """POST .../preupload: which files are large ones, and which are there already."""
        there = repository.at(revision).files
        answers = []
        for file in files:
            path, size, sample = file["path"], file["size"], base64.b64decode(file["sample"], validate=True)
            if len(sample) != min(size, 512):
                raise Refusal(400, None, f"{path}: the sample has {len(sample)} bytes, the file {size}")
            blob = there.get(path)
            answers.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if is_large(path, size, sample) else "regular",
                    "shouldIgnore": False,
                    "oid": None if blob is None else blob.sha256 if blob.large else blob.oid,
                }
            )
        return answers

    def receive(self, oid: str, size: int, content: bytes) -> None:
        """PUT of a large file: only what was announced is kept."""
        if len(content) != size or hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, None, f"{len(content)} bytes arrived that are not {oid} of {size} bytes")
        self.store[oid] = content

    def commit(self, repository: Repository, branch: str, lines: list[dict[str, Any]]) -> Commit:
        """POST .../commit: everything or nothing."""
        if branch not in repository.branches:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        parent = repository.at(branch)
        if not lines or lines[0].get("key") != "header" or not lines[0]["value"].get("summary"):
            raise Refusal(400, None, "the first line must be a header with a summary")
        wanted = lines[0]["value"].get("parentCommit")
        if wanted is not None and wanted != parent.oid:
            raise Refusal(412, None, "The branch has moved since you read it")
        files, touched = dict(parent.files), set()
        for line in lines[1:]:
            path = _checked_path(line["value"]["path"])
            if path in touched:
                raise Refusal(400, None, f"{path} stands in the commit twice")
            touched.add(path)
            if line["key"] == "file":
                files[path] = _regular(path, line["value"])
            elif line["key"] == "lfsFile":
                files[path] = self._large(path, line["value"])
            elif line["key"] == "deletedFile":
                if files.pop(path, None) is None:
                    raise Refusal(404, "EntryNotFound", "A file with this name doesn't exist")
            else:
                raise Refusal(400, None, f"unknown operation {line['key']}")
        if not touched:
            raise Refusal(400, None, "the commit changes nothing")
        if "README.md" in touched and "README.md" in files:
            errors, _ = card_rules.validate(files["README.md"].content.decode(), repository.type)
            if errors:
                raise Refusal(400, None, "; ".join(errors))
        return repository.add(files, lines[0]["value"]["summary"], parent.oid, branch)

    def _large(self, path: str, value: dict[str, Any]) -> Blob:
        if value.get("algo") != "sha256" or value["oid"] not in self.store:
            raise Refusal(400, None, f"{path} refers to a large file that never arrived")
        content = self.store[value["oid"]]
        if value.get("size", len(content)) != len(content):
            raise Refusal(400, None, f"{path} has {len(content)} bytes, the commit says {value['size']}")
        return Blob(content, large=True)


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether a file goes to the store of large files."""
    return size > 0 and (path.endswith(LARGE) or size > MAX_REGULAR or b"\0" in sample)


def _owns(account: Account | None, name: str) -> bool:
    return account is not None and name.split("/")[0] == account.name


def _checked_path(path: str) -> str:
    parts = path.split("/")
    if path.startswith("/") or any(part in ("", ".", "..", ".git") for part in parts) or "\\" in path:
        raise Refusal(400, None, f"{path!r} is no path inside a repository")
    return path


def _regular(path: str, value: dict[str, Any]) -> Blob:
    if value.get("encoding") != "base64":
        raise Refusal(400, None, f"{path}: the encoding must be base64")
    try:
        content = base64.b64decode(value["content"], validate=True)
    except binascii.Error as error:
        raise Refusal(400, None, f"{path}: {error}") from None
    if is_large(path, len(content), content[:512]):
        raise Refusal(400, None, f"{path} must be sent as a large file")
    return Blob(content)
