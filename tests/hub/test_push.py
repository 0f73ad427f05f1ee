"""Pushing: one commit or nothing, again and again, and every refusal says the way out."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import HfApi, constants

from higr_hf import load_checkpoint
from higr_hf.app.space import write_space
from higr_hf.hub import HubError, model_files, push_dataset, push_files, push_release, push_space
from tests.hub.conftest import REPORT, make_parts
from tests.hub.server import Fault
from training import push
from training._args import run as run_script


def holds(hub, name: str, kind: str = "model") -> set[str]:
    return set(hub.files(name, kind=kind)) - {".gitattributes"}


def test_a_release_is_one_commit(client, parts):
    result = push_release("toy", model=parts / "model", quantizer=parts / "quantizer", private=True, tag="v1")
    assert (result.repo_id, result.repo_type, result.changed) == ("ann/toy", "model", True)
    repository = client.repositories["model", "ann/toy"]
    assert repository.private and len(repository.commits) == 2 and repository.tags == {"v1": result.commit}
    assert repository.at("main").oid == result.commit and result.commit in result.url
    assert holds(client, "ann/toy") == set(result.files)
    for path, content in client.files("ann/toy").items():
        local = parts / ("quantizer" if path.startswith("quantizer/") or "crq_vae" in path else "model")
        if path not in (".gitattributes", "README.md"):
            assert content == (local / path.removeprefix("quantizer/")).read_bytes(), path
    card = client.files("ann/toy")["README.md"].decode()
    assert 'model="ann/toy"' in card and "OWNER/NAME" not in card
    assert "OWNER/NAME" in (parts / "model" / "README.md").read_text()


def test_pushing_again_changes_nothing_and_a_new_version_replaces_all_of_the_old(client, run):
    first = push_release("ann/toy", model=run / "model", tag="v1")
    again = push_release("ann/toy", model=run / "model", tag="v1")
    assert (again.commit, again.changed) == (first.commit, False)
    model, _ = load_checkpoint(run / "model")
    (run / "model" / "model.safetensors").unlink()
    model.save_pretrained(run / "model", max_shard_size="20KB")
    second = push_release("ann/toy", model=run / "model", tag="v2")
    assert second.changed and "model.safetensors" not in holds(client, "ann/toy")
    assert holds(client, "ann/toy") == set(second.files)
    # What was pinned is as it was.
    assert set(client.files("ann/toy", first.commit)) - {".gitattributes"} == set(first.files)
    assert client.repositories["model", "ann/toy"].tags == {"v1": first.commit, "v2": second.commit}
    with pytest.raises(HubError, match="has a tag v1 already"):
        push_release("ann/toy", model=run / "model", tag="v1")


def test_a_branch_of_its_own(client, parts):
    main = push_release("ann/toy", tokenizer=parts / "tokenizer")
    other = push_release("ann/toy", model=parts / "model", branch="next")
    repository = client.repositories["model", "ann/toy"]
    assert repository.branches == {"main": main.commit, "next": other.commit}


def test_preferences_are_a_dataset(client, parts):
    for changed in (True, False):
        result = push_dataset("ann/pairs", parts / "preferences", private=True)
        assert (result.repo_type, result.changed) == ("dataset", changed)
    assert holds(client, "ann/pairs", "dataset") == {"README.md", "train.parquet"}
    assert b'load_dataset("ann/pairs"' in client.files("ann/pairs", kind="dataset")["README.md"]


# ---- refusals


@pytest.mark.parametrize(
    ("repo_id", "token", "message"),
    [
        ("ann/toy", "wrong", "refuses the token .*set HF_TOKEN"),
        ("toy", "wrong", "refuses the token .*set HF_TOKEN"),
        ("ann/toy", "", "no token for ann/toy: run `hf auth login`"),
        ("toy", "", "refuses the token|no token"),
        ("bob/toy", "ann-writes", "may not do this .*push under your own name"),
        ("ann/toy", "ann-reads", "may not do this .*write access"),
        ("a/b/c", "ann-writes", "'a/b/c' is no repository id"),
        ("ann/to y", "ann-writes", "'ann/to y' is no repository id"),
    ],
)
def test_who_may_not(client, parts, monkeypatch, repo_id, token, message):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=message):
        push_release(repo_id, model=parts / "model")
    assert client.repositories == {} and client.store == {}


def test_someone_elses_private_repository_looks_like_none(client, parts, monkeypatch):
    push_release("ann/toy", model=parts / "model", private=True)
    monkeypatch.setenv("HF_TOKEN", "bob-writes")
    with pytest.raises(HubError, match="may not do this"):
        push_release("ann/toy", model=parts / "model")


def test_a_private_upload_never_goes_to_a_public_repository(client, parts):
    push_release("ann/toy", model=parts / "model")
    with pytest.raises(HubError, match="everyone can read it"):
        push_release("ann/toy", model=parts / "model", private=True)
    HfApi().create_repo("ann/pairs", repo_type="dataset")
    with pytest.raises(HubError, match="everyone can read it"):
        push_dataset("ann/pairs", parts / "preferences", private=True)
    assert holds(client, "ann/pairs", "dataset") == set()


def test_something_else_is_not_overwritten(client, parts):
    api = HfApi()
    for name, path, content, found in (
        ("ann/bert", "config.json", b'{"model_type": "bert"}', "bert"),
        ("ann/broken", "config.json", b"{", "cannot be read"),
        ("ann/files", "holiday.txt", b"photo", "files of another kind"),
    ):
        api.create_repo(name)
        api.upload_file(repo_id=name, path_in_repo=path, path_or_fileobj=content)
        before = client.files(name)
        with pytest.raises(HubError, match=f"holds something else .*{found}"):
            push_release(name, model=parts / "model")
        assert client.files(name) == before
    assert push_release("ann/bert", model=parts / "model", replace=True).changed
    # A part alone would take the configuration, or the tokenizer, of the model that is there.
    for part in ("tokenizer", "quantizer"):
        with pytest.raises(HubError, match="holds something else"):
            push_release("ann/bert", **{part: parts / part})
    api.create_repo("ann/rows", repo_type="dataset")
    api.upload_file(repo_id="ann/rows", path_in_repo="data/a.parquet", path_or_fileobj=b"PAR1\0", repo_type="dataset")
    with pytest.raises(HubError, match="other rows"):
        push_dataset("ann/rows", parts / "preferences")


def test_a_space_is_pushed_whole_and_only_over_one_of_ours(client, parts, tmp_path):
    folder = write_space(tmp_path / "page", [str(parts / "model")])
    result = push_space("page", folder, private=True)
    assert (result.repo_id, result.repo_type, result.changed) == ("ann/page", "space", True)
    assert client.repositories["space", "ann/page"].private
    assert holds(client, "ann/page", kind="space") == set(result.files)
    assert {"app.py", "requirements.txt", "space.json", "model-1/model.safetensors"} < set(result.files)
    assert not push_space("page", folder).changed
    (folder / "app.py").unlink()
    with pytest.raises(HubError, match=r"has no app.py: write a Space with"):
        push_space("page", folder)
    api = HfApi(endpoint=client.url)
    api.create_repo("ann/mine", repo_type="space", space_sdk="static")
    api.upload_file(repo_id="ann/mine", path_in_repo="index.html", path_or_fileobj=b"<p>", repo_type="space")
    with pytest.raises(HubError, match="another app"):
        push_space("ann/mine", write_space(tmp_path / "page", [str(parts / "model")]))


def test_a_card_is_asked_for_and_checked(client, run):
    card = run / "model" / "README.md"
    good = card.read_text()
    for text, message in (
        (None, "no README.md"),
        ("# No metadata", "no metadata"),
        ("---\nlicense: other\n---\n# Bare", "license_name and license_link"),
        (good.replace("license: cc-by-4.0", "license: my-own"), "The Hub refuses the card .*license"),
    ):
        if text is None:
            card.unlink()
        else:
            card.write_text(text)
        with pytest.raises(HubError, match=message):
            push_release("ann/toy", model=run / "model")
    assert all(set(repository.at("main").files) == {".gitattributes"} for repository in client.repositories.values())


# ---- what breaks on the way


@pytest.mark.parametrize(
    "fault",
    [
        Fault("PUT", "/store/", "cut", after=1000),
        Fault("PUT", "/store/", "status", status=503),
        Fault("PUT", "/store/", "lost"),
        Fault("POST", "/preupload/", "status", status=500),
        Fault("POST", "/batch", "cut"),
        Fault("POST", "/api/verify", "status", status=504),
    ],
    ids=lambda fault: f"{fault.path}-{fault.kind}",
)
def test_a_short_breakdown_is_not_noticed(client, parts, fault):
    client.faults = [fault]
    result = push_release("ann/toy", model=parts / "model")
    assert fault.times == 0 and holds(client, "ann/toy") == set(result.files)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("PUT", "/store/", "cut", after=1000, times=99), "broke off .*Run the same command again"),
        (Fault("PUT", "/store/", "status", times=99), "cannot answer .*status 500.*Run the same command again"),
        (Fault("POST", "/commit/", "status", status=502), "cannot answer .*Run the same command again"),
        (Fault("POST", "/commit/", "cut"), "broke off .*Run the same command again"),
        (Fault("POST", "/commit/", "lost"), "broke off .*Run the same command again"),
        (Fault("POST", "/commit/", "status", status=412), "changed by somebody else"),
        (Fault("POST", "/repos/create", "cut"), "broke off while creating"),
        (Fault("POST", "/repos/create", "lost"), "broke off while creating"),
        (Fault("GET", "/api/models/", "status", status=500, times=99), "cannot answer"),
    ],
    ids=lambda value: f"{value.path}-{value.kind}" if isinstance(value, Fault) else "",
)
def test_a_long_breakdown_leaves_nothing_half_visible_and_can_be_repeated(client, parts, fault, message):
    before = push_release("ann/earlier", tokenizer=parts / "tokenizer")
    client.faults = [fault]
    with pytest.raises(HubError, match=message):
        push_release("ann/toy", model=parts / "model")
    complete = {file.path for file in model_files(parts / "model")}
    if ("model", "ann/toy") in client.repositories:
        assert holds(client, "ann/toy") in (set(), complete)
    fault.times = 0
    result = push_release("ann/toy", model=parts / "model")
    assert holds(client, "ann/toy") == set(result.files) == complete
    assert client.repositories["model", "ann/earlier"].at("main").oid == before.commit


def test_what_has_arrived_is_not_sent_twice(client, parts):
    client.faults = [Fault("POST", "/commit/", "status", status=500)]
    with pytest.raises(HubError):
        push_release("ann/toy", model=parts / "model")
    sent = client.seen("PUT", "/store/")
    assert sent == len(client.store) == 3  # weights, item table, plot
    push_release("ann/toy", model=parts / "model")
    assert client.seen("PUT", "/store/") == sent


def test_two_people_at_once_do_not_mix_their_versions(client, parts, tmp_path, monkeypatch):
    push_release("ann/toy", model=parts / "model")
    other = make_parts(tmp_path / "other", initializer_range=0.2)
    repository, receive = client.repositories["model", "ann/toy"], client.receive

    def receive_and_move(oid: str, size: int, content: bytes) -> None:
        receive(oid, size, content)
        repository.add(dict(repository.at("main").files), "In between", repository.at("main").oid)

    monkeypatch.setattr(client, "receive", receive_and_move)
    with pytest.raises(HubError, match="changed by somebody else"):
        push_release("ann/toy", model=other / "model")
    assert repository.at("main").message == "In between"


def test_offline_is_said(client, parts, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        push_release("ann/toy", model=parts / "model")
    assert client.requests == []


def test_two_files_of_one_name(client, parts):
    files = model_files(parts / "model")
    with pytest.raises(HubError, match=r"one name: \['config.json'\]"):
        push_files([*files, files[0]], "ann/toy")


# ---- the script


def test_the_script_pushes_everything_with_its_cards(client, run, capsys):
    write_space(run / "space", ["ann/toy"])
    (run / "model" / "README.md").unlink()
    (run / "report.json").write_text(json.dumps(REPORT))
    options = [f"--{part}={run / part}" for part in ("model", "tokenizer", "quantizer", "preferences", "space")]
    options += ["--repo_id=ann/toy", f"--report={run}", "--tag=v1", "--private=true"]
    assert push.main([*options, "--dry_run=true"]) == [] and client.requests == []
    model, pairs, page = push.main(options)
    said = capsys.readouterr().out
    assert f'revision="{model.commit}"' in said
    assert f'load_dataset("ann/toy-preferences", revision="{pairs.commit}")' in said
    assert "quantizer/model.safetensors" in said and "nothing was sent" in said
    assert holds(client, "ann/toy") == set(model.files) and "plots/training.png" in model.files
    assert (page.repo_type, page.repo_id) == ("space", "ann/toy-space")
    assert all(repository.private for repository in client.repositories.values())
    assert [result.changed for result in push.main(options)] == [False, False, False]
    assert "holds exactly this already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to push"),
        (["--model={run}/model"], "--repo_id is missing"),
        (["--preferences={run}/preferences"], "--repo_id is missing"),
        (["--preferences={run}/preferences", "--repo_id=ann/x", "--report={run}"], "--report makes the card"),
        (["--model={run}/none", "--repo_id=ann/x"], "There is no checkpoint directory"),
        (["--model={run}/model", "--repo_id=ann/x", "--report={run}/none"], "There is no report"),
        (["--model={run}/model", "--repo_id=bob/x"], "may not do this"),
        (["--model={run}/model", "--repo_id=ann/x", "--quantizer={run}/model"], "no whole quantiser"),
    ],
)
def test_the_script_says_what_is_wrong_in_one_line(client, parts, capsys, options, message):
    with pytest.raises(SystemExit) as ended:
        run_script(lambda: push.main([option.format(run=parts) for option in options]))
    said = f"{ended.value} {capsys.readouterr().err}"
    assert ended.value.code not in (0, None) and message in said and "Traceback" not in said
    assert client.store == {}
