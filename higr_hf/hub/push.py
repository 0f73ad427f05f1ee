"""Pushing a release: one commit that holds all of it, into a repository that is looked at first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationDelete, HfApi, RepoCard, get_token
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from ..cards.check import check_card
from ..cards.render import PLACEHOLDER
from ..item_table_higr import SIDS_FILE
from .errors import HubError, explained
from .files import CARD, INDEX, WEIGHTS, ReleaseFile, dataset_files, release_files, space_files

MAIN = "main"


@dataclass(frozen=True)
class PushResult:
    """Where a release is.

    Attributes:
        repo_id: with the owner.
        repo_type: `model`, `dataset` or `space`.
        commit: id of the commit; load with `revision=` this to get these files for ever.
        url: of the commit.
        files: what the release consists of.
        changed: False when the repository held exactly these files before.
    """

    repo_id: str
    repo_type: str
    commit: str
    url: str
    files: tuple[str, ...]
    changed: bool


def push_release(
    repo_id: str,
    *,
    model: str | Path | None = None,
    tokenizer: str | Path | None = None,
    quantizer: str | Path | None = None,
    **options: object,
) -> PushResult:
    """Upload a model (its tokenizer is part of it), a tokenizer or a quantiser, or several of them, in one commit.

    Args:
        repo_id: `name` or `owner/name`.
        model, tokenizer, quantizer: directories, see [`release_files`].
        **options: of [`push_files`].

    Returns:
        Where it is.

    Raises:
        CheckpointError: for a directory that is not whole.
        HubError: see [`push_files`]; also for a release without a card.

    Example:
        >>> push_release("me/higr-movielens", model="runs/quickstart/model", private=True)
    """
    return push_files(release_files(model, tokenizer, quantizer), repo_id, **options)


def push_dataset(repo_id: str, directory: str | Path, **options: object) -> PushResult:
    """Upload a preference dataset and its card, written by `higr_hf.cards.write_dataset_card`, in one commit.

    Args:
        repo_id: `name` or `owner/name`.
        directory: holds `<split>.parquet` and `README.md`.
        **options: of [`push_files`].

    Returns:
        Where it is; `datasets.load_dataset(repo_id, revision=result.commit)` reads it.

    Raises:
        HubError: see [`push_files`].
    """
    return push_files(dataset_files(directory), repo_id, repo_type="dataset", **options)


def push_space(repo_id: str, directory: str | Path, **options: object) -> PushResult:
    """Upload a Space, written by `higr_hf.app.space.write_space`, in one commit.

    Args:
        repo_id: `name` or `owner/name`.
        directory: holds `app.py`, `requirements.txt` and `README.md`.
        **options: of [`push_files`].

    Returns:
        Where it is.

    Raises:
        HubError: see [`push_files`].
    """
    return push_files(space_files(directory), repo_id, repo_type="space", **options)


def push_files(
    files: Sequence[ReleaseFile],
    repo_id: str,
    *,
    repo_type: str = "model",
    branch: str = MAIN,
    tag: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    message: str = "Upload a release of higr_hf",
    replace: bool = False,
) -> PushResult:
    """Upload files in one commit: a reader sees the repository before it or after it, never between.

    A repository that does not exist is made. One that does is added to: its history stays, and weights of the version
    before that this one does not have go in the same commit. Pushing the same files twice changes nothing.

    Args:
        files: with a card among them.
        repo_id: `name` or `owner/name`.
        repo_type: `model`, `dataset` or `space`.
        branch: where to; made from `main` when it is missing.
        tag: name to give the commit, such as `v1.0`.
        private: whether a repository that is made is private. An existing one is not changed: asking for a private
            upload to a public repository is an error.
        token: by default HF_TOKEN, or what `hf auth login` stored.
        message: of the commit.
        replace: push into a repository that holds something else.

    Raises:
        HubError: for a missing or wrong token, missing rights, a repository of something else, a card that the Hub
            refuses, a broken connection; the message says what to do. Nothing is half-uploaded then.
    """
    _check_release(files, repo_type)
    if "/" not in repo_id:
        with explained(repo_id, "asking who owns the token for"):
            repo_id = f"{HfApi(token=token).whoami()['name']}/{repo_id}"
    elif (token or get_token()) is None:
        raise HubError(f"There is no token for {repo_id}: run `hf auth login`, or set HF_TOKEN to one that may write.")
    api = HfApi(token=token, library_name="higr_hf")
    with explained(repo_id, "looking for"):
        there = _existing(api, repo_id, repo_type, private)
        if there and not replace:
            _check_kind(api, repo_id, repo_type, files)
    if not there:
        with explained(repo_id, "creating"):
            sdk = {"space_sdk": "gradio"} if repo_type == "space" else {}
            api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, **sdk)
    with explained(repo_id, "preparing a branch of"):
        if branch != MAIN:
            api.create_branch(repo_id, branch=branch, repo_type=repo_type, exist_ok=True)
        info = api.repo_info(repo_id, repo_type=repo_type, revision=branch)
    if tag is not None:
        with explained(repo_id, "looking at the tags of"):
            _check_tag(api, repo_id, repo_type, tag, info.sha)
    stale = _stale_weights([entry.rfilename for entry in info.siblings or []], files)
    operations = [_addressed(file, repo_id).operation() for file in files]
    operations += [CommitOperationDelete(path) for path in stale]
    with explained(repo_id, "uploading to"):
        commit = api.create_commit(
            repo_id,
            operations,
            commit_message=message,
            repo_type=repo_type,
            revision=branch,
            # Somebody else's commit in between would mix two releases.
            parent_commit=info.sha,
        )
    if tag is not None:
        with explained(repo_id, f"giving the tag {tag} to"):
            if not _check_tag(api, repo_id, repo_type, tag, commit.oid):
                api.create_tag(repo_id, tag=tag, revision=commit.oid, repo_type=repo_type)
    names = tuple(sorted(file.path for file in files))
    return PushResult(repo_id, repo_type, commit.oid, commit.commit_url, names, changed=commit.oid != info.sha)


def _check_release(files: Sequence[ReleaseFile], repo_type: str) -> None:
    paths = [file.path for file in files]
    if len(set(paths)) != len(paths):
        raise HubError(f"Two files would have one name: {sorted({path for path in paths if paths.count(path) > 1})}.")
    card = next((file for file in files if file.path == CARD), None)
    if card is None:
        raise HubError(
            f"The release has no {CARD}, so nobody would know what it is: write one with `higr_hf.cards.write_card`, "
            "or give the report of the run to `training.push --report`."
        )
    problems = check_card(card.content().decode("utf-8", errors="replace"), repo_type)
    if problems:
        raise HubError(f"{card.source if isinstance(card.source, Path) else CARD}: {' '.join(problems)}")


def _addressed(file: ReleaseFile, repo_id: str) -> ReleaseFile:
    """The card with the repository's id in its examples, which was not known when it was written."""
    if file.path != CARD:
        return file
    return ReleaseFile(CARD, file.content().replace(PLACEHOLDER.encode(), repo_id.encode()))


def _existing(api: HfApi, repo_id: str, repo_type: str, private: bool | None) -> bool:
    """Whether the repository exists; an error where a private upload would be public."""
    try:
        info = api.repo_info(repo_id, repo_type=repo_type)
    except RepositoryNotFoundError as error:
        # A wrong token is told apart from a repository that does not exist yet; the Hub answers 401 to both.
        if error.response is not None and error.response.status_code == 401:
            api.whoami()
        return False
    if private and not info.private:
        raise HubError(
            f"{repo_id} exists and everyone can read it, but a private upload was asked for: make it private in its "
            "settings first, or choose another name."
        )
    return True


def _check_kind(api: HfApi, repo_id: str, repo_type: str, files: Sequence[ReleaseFile]) -> None:
    """A release may follow an earlier one of its kind; anything else in its place is a mistake."""
    names = {entry.rfilename for entry in api.repo_info(repo_id, repo_type=repo_type).siblings or []}
    if names <= {".gitattributes", CARD}:
        return

    def remote(name: str) -> bytes | None:
        if name not in names:
            return None
        return Path(api.hf_hub_download(repo_id, name, repo_type=repo_type)).read_bytes()

    local = {file.path: file for file in files}
    if repo_type == "model":
        found = _model_kind(remote("config.json"), SIDS_FILE in names)
        wanted = _model_kind(local["config.json"].content() if "config.json" in local else None, SIDS_FILE in local)
        # A model brings its tokenizer, so it may follow a tokenizer; the other way round it would lose its own.
        fits = found == wanted or (found, wanted) == ("a tokenizer", "higr")
    else:
        found = {"dataset": "other rows", "space": "another app"}[repo_type]
        fits = "higr" in (RepoCard((remote(CARD) or b"").decode(errors="replace")).data.get("tags") or [])
    if not fits:
        raise HubError(
            f"{repo_id} exists and holds something else ({found}): choose another name, or ask to replace it."
        )


def _model_kind(config: bytes | None, has_items: bool) -> str:
    """What a model repository holds, by its configuration."""
    if config is None:
        return "a tokenizer" if has_items else "files of another kind"
    try:
        return str(json.loads(config).get("model_type"))
    except (ValueError, AttributeError):
        return "a config.json that cannot be read"


def _stale_weights(there: Sequence[str], files: Sequence[ReleaseFile]) -> list[str]:
    """Weights of an earlier version: beside other weights of today they would be loaded, or shown, in their place."""
    now = {file.path for file in files}
    folders = {path.rpartition("/")[0] for path in now}
    return sorted(
        path
        for path in there
        if path not in now
        and path.rpartition("/")[0] in folders
        and (path.endswith(".parquet") or path.rpartition("/")[2] in (WEIGHTS, INDEX) or _is_shard(path))
    )


def _is_shard(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name.startswith("model-") and name.endswith(".safetensors")


def _check_tag(api: HfApi, repo_id: str, repo_type: str, tag: str, commit: str | None) -> bool:
    """Whether the tag names the commit already; an error where it names another one, for tags are not moved."""
    try:
        named = api.repo_info(repo_id, repo_type=repo_type, revision=tag).sha
    except RevisionNotFoundError:
        return False
    if named != commit:
        raise HubError(
            f"{repo_id} has a tag {tag} already, on commit {str(named)[:12]}: give this version another one."
        )
    return True
