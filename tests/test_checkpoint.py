"""Checkpoints are whole or refused: failing writes, kills, damaged files, parts that do not belong together."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from higr_hf import HiGRForSlateGeneration, HiGRTokenizer, load_checkpoint, save_checkpoint
from higr_hf.checkpoint import CheckpointError
from higr_hf.utils import atomic
from tests.model_tester import HiGRModelTester


def make_tokenizer(tester: HiGRModelTester, **changes) -> HiGRTokenizer:
    arguments = {
        "item_ids": [f"i{item}" for item in range(tester.num_items)],
        "codes": tester.codes.numpy(),
        "codebook_sizes": tester.codebook_sizes,
        "num_feedback_levels": 3,
        "num_time_buckets": 2,
    }
    return HiGRTokenizer.from_codes(**{**arguments, **changes})


def make(**overrides) -> tuple[HiGRForSlateGeneration, HiGRTokenizer]:
    tester = HiGRModelTester()
    return tester.model(**overrides), make_tokenizer(tester)


def slates(model, tokenizer) -> list:
    return model.generate(**tokenizer.encode_prompts([["i1", "i2"], []])).tolist()


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("template") / "model", *make())


@pytest.fixture
def checkpoint(template, tmp_path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "model"))


# ---- saving


def test_what_is_saved_is_loaded(tmp_path):
    model, tokenizer = make(tokenizer_fingerprint=None)
    source = tmp_path / "logo.bin"
    source.write_bytes(b"\x00\xff")
    extra = {"README.md": "# Slates é\n", "results/report.json": b"{}", "logo.bin": source}
    directory = save_checkpoint(tmp_path / "runs" / "model", model, tokenizer, extra)
    assert model.config.tokenizer_fingerprint == tokenizer.fingerprint
    assert (directory / "README.md").read_text(encoding="utf-8") == "# Slates é\n"
    assert (directory / "results" / "report.json").read_bytes() == b"{}"
    assert (directory / "logo.bin").read_bytes() == b"\x00\xff"
    loaded, its_tokenizer = load_checkpoint(directory)
    assert not loaded.training and its_tokenizer.fingerprint == loaded.config.tokenizer_fingerprint
    assert slates(loaded, its_tokenizer) == slates(model, tokenizer)
    assert load_checkpoint(str(directory), dtype=torch.bfloat16)[0].dtype == torch.bfloat16
    # Saving again replaces the whole: nothing of the first save is left.
    save_checkpoint(directory, loaded, its_tokenizer)
    assert not (directory / "README.md").exists() and os.listdir(directory.parent) == ["model"]


@pytest.mark.parametrize("name", ["../README.md", "config.json", "/etc/higr", "modeling_higr.py"])
def test_extra_files_stay_beside_the_checkpoints_own(tmp_path, name):
    with pytest.raises(ValueError, match="outside the checkpoint or one of its own files"):
        save_checkpoint(tmp_path / "model", *make(), {name: "x"})
    assert not (tmp_path / "model").exists() and os.listdir(tmp_path) == []


def test_sharded_weights_are_a_checkpoint_too(checkpoint):
    model, tokenizer = load_checkpoint(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    model.save_pretrained(checkpoint, max_shard_size="20KB")
    shards = sorted(checkpoint.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert slates(*load_checkpoint(checkpoint)) == slates(model, tokenizer)
    shards[1].write_bytes(shards[1].read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=f"{shards[1].name} is truncated or corrupt"):
        load_checkpoint(checkpoint)
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=f"{shards[1].name} is missing"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("part", ["weights", "tokenizer", "readme", "fsync"])
def test_a_failing_write_keeps_the_old_checkpoint(checkpoint, monkeypatch, part):
    before = slates(*load_checkpoint(checkpoint))
    other = make(initializer_range=0.2)
    assert slates(*other) != before

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    extra = {}
    if part == "weights":
        monkeypatch.setattr(HiGRForSlateGeneration, "save_pretrained", full)
    elif part == "tokenizer":
        monkeypatch.setattr(HiGRTokenizer, "save_vocabulary", full)
    elif part == "readme":
        extra = {"README.md": checkpoint / "no such file"}
    else:
        monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="No s"):
        save_checkpoint(checkpoint, *other, extra)
    monkeypatch.undo()
    assert os.listdir(checkpoint.parent) == ["model"]
    assert slates(*load_checkpoint(checkpoint)) == before


def in_a_child(action) -> int:
    """Run `action` in a fork, which shares what is imported here: 0, 3 for an `OSError`, -n for a kill by signal n."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            action()
            status = 0
        except OSError:
            status = 3
        finally:  # the child must never come back into the tests
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("limit", [100, 20_000, 50_000])
def test_a_disk_that_really_fills_keeps_the_old_checkpoint(checkpoint, limit):
    before, other = slates(*load_checkpoint(checkpoint)), make(initializer_range=0.2)

    def save():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit then fails like one on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        save_checkpoint(checkpoint, *other)

    assert in_a_child(save) == 3
    assert slates(*load_checkpoint(checkpoint)) == before
    assert os.listdir(checkpoint.parent) == ["model"]


@pytest.mark.parametrize(
    ("function", "call"), [("fsync", 1), ("fsync", 6), ("fsync", 20), ("rename", 1), ("rename", 2), ("rmtree", 2)]
)
def test_a_kill_leaves_one_whole_checkpoint(checkpoint, function, call):
    before, other = slates(*load_checkpoint(checkpoint)), make(initializer_range=0.2)
    after = slates(*other)
    module = shutil if function == "rmtree" else os

    def save():
        original, calls = getattr(module, function), []

        def killing(*args, **kwargs):
            calls.append(args)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(module, function, killing)
        save_checkpoint(checkpoint, *other)

    assert in_a_child(save) == -signal.SIGKILL
    # Only after the second rename is the new one in place.
    assert slates(*load_checkpoint(checkpoint)) == (after if function == "rmtree" else before)
    save_checkpoint(checkpoint, *other)
    assert slates(*load_checkpoint(checkpoint)) == after


# ---- parts that do not belong together


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook_sizes": (3, 4, 5)}, r"codebook sizes of the model \[3, 4, 4\], of the tokenizer \[3, 4, 5\]"),
        ({"num_feedback_levels": 2}, "feedback levels of the model 3, of the tokenizer 2"),
        ({"num_time_buckets": 0}, "time buckets of the model 2, of the tokenizer 0"),
        ({"item_ids": ["x"], "codes": np.array([[0, 0, 0]])}, "number of items of the model 24, of the tokenizer 1"),
        ({"codes": HiGRModelTester().codes.numpy()[[1, 0, *range(2, 24)]]}, r"2 items have another .* 'i0' \(row 0\)"),
    ],
)
def test_model_and_tokenizer_must_agree(tmp_path, changes, message):
    tester = HiGRModelTester()
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(tmp_path / "model", tester.model(), make_tokenizer(tester, **changes))
    assert os.listdir(tmp_path) == []


def test_removed_items_must_be_removed_in_both(tmp_path):
    model, tokenizer = make()
    tokenizer.remove_items(["i4"])
    with pytest.raises(CheckpointError, match=r"'i4' \(row 4\), is removed from the tokenizer but not from the model"):
        save_checkpoint(tmp_path / "model", model, tokenizer)
    model.model.item_active[4] = False
    loaded, its_tokenizer = load_checkpoint(save_checkpoint(tmp_path / "model", model, tokenizer))
    assert not loaded.model.item_active[4] and not its_tokenizer.active[4]
    its_tokenizer.restore_items(["i4"])
    loaded.config.tokenizer_fingerprint = None
    with pytest.raises(CheckpointError, match="is removed from the model only"):
        save_checkpoint(tmp_path / "model", loaded, its_tokenizer)


def test_a_model_needs_its_catalogue(tmp_path):
    tester = HiGRModelTester()
    with pytest.raises(CheckpointError, match=r"call `model.set_catalog\(tokenizer.codes\)` first"):
        save_checkpoint(tmp_path / "model", HiGRForSlateGeneration(tester.config()), make_tokenizer(tester))


def test_a_model_keeps_to_its_tokenizer(checkpoint, tmp_path):
    model, _ = load_checkpoint(checkpoint)
    renamed = make_tokenizer(HiGRModelTester(), item_ids=[f"j{item}" for item in range(24)])
    with pytest.raises(CheckpointError, match="does not belong to the model"):
        save_checkpoint(tmp_path / "other", model, renamed)
    renamed.save_pretrained(checkpoint)
    with pytest.raises(CheckpointError, match=f"{checkpoint}: This tokenizer does not belong to the model"):
        load_checkpoint(checkpoint)


def test_weights_of_another_catalogue_are_refused(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.item_codes"] = weights["model.item_codes"].flip(0)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"items have another semantic ID in the model than in the tokenizer"):
        load_checkpoint(checkpoint)


# ---- damaged directories


def test_there_must_be_a_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no checkpoint directory"):
        load_checkpoint(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty/config.json is missing"):
        load_checkpoint(tmp_path / "empty")


@pytest.mark.parametrize(
    "name",
    [
        "config.json", "model.safetensors", "item_sids.safetensors", "items.json", "tokenizer.json",
        "tokenizer_config.json",
    ],
)  # fmt: skip
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "cut", "garbage"])
def test_a_damaged_file_is_named(checkpoint, name, damage):
    path = checkpoint / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        damaged = {"empty": b"", "half": content[: len(content) // 2], "cut": content[:-3], "garbage": b"\x00" * 64}
        path.write_bytes(damaged[damage])
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(checkpoint)
    assert name in str(caught.value), caught.value
    assert "missing" in str(caught.value) if damage == "missing" else "truncated or corrupt" in str(caught.value)


def test_one_flipped_bit_of_a_weight_is_found(checkpoint):
    path, sums = checkpoint / "model.safetensors", checkpoint / "SHA256SUMS"
    weights = load_file(path)
    weights["model.planner.proj.weight"].view(torch.int32)[0, 0] ^= 1  # no size, shape or fingerprint gives it away
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model.safetensors is not the file that was saved"):
        load_checkpoint(checkpoint)
    sums.write_text("../../secret  ../x\n")
    with pytest.raises(CheckpointError, match="line 1 is no checksum of a file beside it"):
        load_checkpoint(checkpoint)
    sums.unlink()
    load_checkpoint(checkpoint)  # changed on purpose


@pytest.mark.parametrize("size", [0, 5, 1000, -1])
def test_plain_loading_names_truncated_weights(checkpoint, size):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"{path} is truncated or corrupt .*save or download the model again"):
        HiGRForSlateGeneration.from_pretrained(checkpoint)


def test_weights_must_fit_the_configuration(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    removed = weights.pop("model.planner.proj.weight")
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing keys \['model.planner.proj.weight'\]"):
        load_checkpoint(checkpoint)
    weights |= {"model.planner.proj.weight": removed, "model.planner.more": removed.clone()}
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"unexpected keys \['model.planner.more'\]"):
        load_checkpoint(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_checkpoint(checkpoint)
