"""The double refuses what the Hub refuses, so that a push that it takes is one that the Hub would take."""

from __future__ import annotations

import hashlib

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub.state import Blob, Refusal, Repository


@pytest.fixture
def repository(hub) -> Repository:
    return hub.create(hub.accounts["ann-writes"], {"name": "toy", "organization": None})


def header(**value) -> dict:
    return {"key": "header", "value": {"summary": "A commit", **value}}


def regular(path: str, content: str = "eA==") -> dict:
    return {"key": "file", "value": {"path": path, "content": content, "encoding": "base64"}}


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([regular("a.txt")], 400),  # no header
        ([header()], 400),  # nothing to do
        ([header(parentCommit="0" * 40), regular("a.txt")], 412),
        ([header(), regular("../a.txt")], 400),
        ([header(), regular("a/.git/config")], 400),
        ([header(), regular("a.txt"), regular("a.txt")], 400),
        ([header(), regular("a.txt", "not base64!")], 400),
        ([header(), regular("model.safetensors")], 400),  # must go to the store
        ([header(), {"key": "lfsFile", "value": {"path": "m", "algo": "sha256", "oid": "0" * 64}}], 400),
        ([header(), {"key": "deletedFile", "value": {"path": "a.txt"}}], 404),
        ([header(), {"key": "rename", "value": {"path": "a.txt"}}], 400),
        ([header(), regular("README.md", "LS0tCmxpY2Vuc2U6IDEKLS0tCg==")], 400),  # license: 1
    ],
)
def test_a_wrong_commit_is_refused_and_leaves_no_trace(hub, repository, lines, status):
    before = repository.at("main")
    with pytest.raises(Refusal) as refusal:
        hub.commit(repository, "main", lines)
    assert refusal.value.status == status and repository.at("main") is before


def test_only_what_was_announced_is_stored(hub):
    oid = hashlib.sha256(b"four").hexdigest()
    for size, content in ((5, b"four"), (4, b"FOUR"), (4, b"fou")):
        with pytest.raises(Refusal):
            hub.receive(oid, size, content)
    assert hub.store == {}
    hub.receive(oid, 4, b"four")
    assert hub.store == {oid: b"four"}


def test_git_names_of_blobs():
    # `printf hello | git hash-object --stdin`
    assert Blob(b"hello").oid == "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"
    assert Blob(b"hello", large=True).oid != Blob(b"hello").oid


def test_every_refusal_is_the_error_that_huggingface_hub_knows(client):
    api = HfApi()
    api.create_repo("ann/open")
    api.create_repo("ann/secret", private=True)
    upload = {"path_in_repo": "a.txt", "path_or_fileobj": b"x"}
    commit = api.upload_file(repo_id="ann/open", **upload)
    assert api.hf_hub_download("ann/open", "a.txt", revision=commit.oid)
    for expected, call in (
        (RepositoryNotFoundError, lambda: api.repo_info("ann/none")),
        (RepositoryNotFoundError, lambda: HfApi(token="bob-writes").repo_info("ann/secret")),
        (RepositoryNotFoundError, lambda: HfApi(token=False).repo_info("ann/secret")),
        (RevisionNotFoundError, lambda: api.repo_info("ann/open", revision="nope")),
        (RemoteEntryNotFoundError, lambda: api.hf_hub_download("ann/open", "b.txt")),
    ):
        with pytest.raises(expected):
            call()
    for status, call in (
        (401, lambda: HfApi(token="wrong").whoami()),
        (403, lambda: HfApi(token="bob-writes").upload_file(repo_id="ann/open", **upload)),
        (403, lambda: HfApi(token="ann-reads").create_repo("ann/more")),
        (403, lambda: api.create_repo("bob/mine")),
        (409, lambda: api.create_repo("ann/open")),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            call()
        assert error.value.response.status_code == status
    assert api.whoami()["name"] == "ann"
    assert api.create_repo("ann/open", exist_ok=True).repo_id == "ann/open"


def test_a_repository_reads_back_file_by_file(client):
    api, content = HfApi(), b"\0" * 600
    api.create_repo("ann/data", repo_type="dataset")
    operations = [
        CommitOperationAdd("deep/er/a.txt", b"text"),
        CommitOperationAdd("deep/b.parquet", content),
        CommitOperationAdd("empty.txt", b""),
    ]
    api.create_commit("ann/data", operations, commit_message="Files", repo_type="dataset")
    api.create_tag("ann/data", tag="v1", repo_type="dataset")
    api.create_branch("ann/data", branch="next", repo_type="dataset")
    tree = {entry.path: entry for entry in api.list_repo_tree("ann/data", repo_type="dataset", recursive=True)}
    assert {".gitattributes", "deep", "deep/er", "deep/er/a.txt", "deep/b.parquet", "empty.txt"} == set(tree)
    assert tree["deep/b.parquet"].lfs.size == 600 and tree["deep/er/a.txt"].lfs is None
    inside = api.list_repo_tree("ann/data", "deep/er", repo_type="dataset")
    assert [entry.path for entry in inside] == ["deep/er/a.txt"]
    assert len(api.get_paths_info("ann/data", ["empty.txt", "none"], repo_type="dataset")) == 1
    refs = api.list_repo_refs("ann/data", repo_type="dataset")
    assert [tag.name for tag in refs.tags] == ["v1"] and {branch.name for branch in refs.branches} == {"main", "next"}
    path = api.hf_hub_download("ann/data", "deep/b.parquet", repo_type="dataset", revision="v1")
    with open(path, "rb") as stream:
        assert stream.read() == content


def test_cards_are_checked(client):
    ModelCard("---\nlicense: mit\n---\n# Good").validate()
    for metadata, word in (
        ("license: mine", "license"),
        ("license: other", "license_name"),
        ("datasets: [a b]", "datasets"),
        ("tags: [1]", "tags"),
        ("license: [", "YAML"),
        ("model-index: [{name: m, results: [{task: {type: t}, dataset: {type: d, name: d}, metrics: []}]}]", "empty"),
    ):
        with pytest.raises(ValueError, match=word):
            client_validate(metadata)


def client_validate(metadata: str) -> None:
    """By way of the API: `ModelCard` itself refuses to be built from some of them."""
    HfApi()._validate_yaml(f"---\n{metadata}\n---\n# Bad", repo_type="model")
