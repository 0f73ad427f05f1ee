"""A living catalogue: items join without training, leave for good, and no semantic ID ever changes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from higr_hf import HiGRConfig, HiGRForSlateGeneration, HiGRTokenizer, load_checkpoint, save_checkpoint
from higr_hf.checkpoint import CheckpointError
from higr_hf.configuration_higr import SLATE_MODES
from higr_hf.living import add_items, remove_items, restore_items, update_catalog
from higr_hf.semantic_ids import fit_semantic_ids
from higr_hf.trends_higr import NEWEST
from tests.model_tester import ADDED_SCORES, fill_tables

RNG = np.random.default_rng(5)
EMBEDDINGS = RNG.normal(size=(30, 6)).astype("float32")
NEW = RNG.normal(size=(9, 6)).astype("float32")


@pytest.fixture(scope="module")
def fitted():
    return fit_semantic_ids(EMBEDDINGS, method="rq-kmeans", codebook_sizes=(4, 4, 4), progress=False)


def make_parts(fitted, **changes):
    """Model, tokenizer and quantiser of a catalogue of 30 items."""
    ids = [f"i{row}" for row in range(len(fitted.codes))]
    tokenizer = HiGRTokenizer.from_codes(ids, fitted.codes, fitted.codebook_sizes, titles=[f"T{i}" for i in ids])
    torch.manual_seed(3)
    config = HiGRConfig(
        codebook_sizes=list(fitted.codebook_sizes), num_items=30, hidden_size=16, intermediate_size=32,
        encoder_layers=1, planner_layers=1, initializer_range=0.4, slate_size=4, max_history=12,
        tokenizer_fingerprint=tokenizer.fingerprint, **changes,
    )  # fmt: skip
    model = HiGRForSlateGeneration(config).eval()
    model.set_catalog(torch.tensor(fitted.codes))
    return fill_tables(model), tokenizer, fitted.model


@pytest.fixture
def parts(fitted):
    return make_parts(fitted)


def slate_ids(model, tokenizer, histories, **options) -> list[list[str]]:
    prompts = tokenizer.encode_prompts(histories)
    items = model.generate(**prompts, return_dict_in_generate=True, **options).slates
    return [[tokenizer.item_ids[item] for item in row] for row in items.tolist()]


def test_nothing_speaks_for_new_items_beside_the_plans(fitted, tmp_path):
    model, tokenizer, quantizer = make_parts(fitted, **ADDED_SCORES)
    now, histories = torch.tensor([NEWEST]), torch.tensor([[1, 2, 1]])
    scorers = ((model.model.item_item, histories), (model.model.repeats, histories), (model.model.trends, now))
    before = [scorer(told) for scorer, told in scorers]
    add_items(model, tokenizer, quantizer, [f"n{row}" for row in range(9)], NEW)
    for (scorer, told), old in zip(scorers, before, strict=True):
        grown = scorer(told)
        assert old.any() and torch.equal(grown[:, :30], old)
        assert grown.shape == (1, 39) and not grown[:, 30:].any()
    save_checkpoint(tmp_path / "grown", model, tokenizer)
    again, names = load_checkpoint(tmp_path / "grown")
    assert slate_ids(again, names, [["i1", "n3"]]) == slate_ids(model, tokenizer, [["i1", "n3"]])


def test_new_items_join_without_changing_the_old_ones(parts):
    model, tokenizer, quantizer = parts
    codes, ids, old = tokenizer.codes.copy(), list(tokenizer.item_ids), model.model.embeddings.embed_items.weight
    old, fingerprint, version = old.detach().clone(), tokenizer.fingerprint, tokenizer.catalog_version
    flat = tokenizer("<a_0><b_0><c_0><slate>", return_tensors="pt")["input_ids"]
    prompts = tokenizer.encode_prompts([["i1", "i2"], ["i29"]])
    before = model(**prompts).logits
    indices = add_items(model, tokenizer, quantizer, [f"n{row}" for row in range(9)], NEW, titles=["New"] * 9)

    assert indices.tolist() == list(range(30, 39)) and tokenizer.item_ids[:30] == ids
    assert np.array_equal(tokenizer.codes[:30], codes)
    assert len({tuple(code) for code in tokenizer.codes.tolist()}) == 39
    assert np.array_equal(model.model.item_codes.numpy(), tokenizer.codes)
    assert model.config.num_items == 39 and tokenizer.catalog_version == version + 1
    assert model.config.tokenizer_fingerprint == tokenizer.fingerprint != fingerprint
    weight = model.model.embeddings.embed_items.weight
    assert torch.equal(weight[:31], old) and weight.shape == (40, 16) and not weight[31:].any()
    assert weight.requires_grad
    # What the model thinks of old items and of the vocabulary is untouched.
    assert torch.equal(model(**tokenizer.encode_prompts([["i1", "i2"], ["i29"]])).logits, before)
    assert torch.equal(tokenizer("<a_0><b_0><c_0><slate>", return_tensors="pt")["input_ids"], flat)


def test_a_new_item_is_known_by_the_sum_of_its_codes(parts):
    model, tokenizer, quantizer = parts
    add_items(model, tokenizer, quantizer, ["new"], NEW[:1])
    embeddings = model.model.embeddings
    tokens = torch.tensor(tokenizer.codes[30]) + torch.tensor(model.config.level_offsets)
    torch.testing.assert_close(model.item_vectors()[30], embeddings.embed_tokens(tokens).sum(0))


def test_the_semantic_id_is_the_quantisers_own_where_it_is_free(parts):
    model, tokenizer, quantizer = parts
    raw = quantizer.encode(torch.tensor(NEW)).numpy()
    taken = {tuple(code) for code in tokenizer.codes.tolist()}
    indices = add_items(model, tokenizer, quantizer, [f"n{row}" for row in range(9)], NEW)
    for code, index in zip(raw.tolist(), indices.tolist(), strict=True):
        if tuple(code) not in taken:
            assert tokenizer.codes[index].tolist() == code
        taken.add(tuple(tokenizer.codes[index].tolist()))


@pytest.mark.parametrize("mode", SLATE_MODES)
def test_new_items_can_be_recommended_and_read(parts, mode):
    model, tokenizer, quantizer = parts
    indices = add_items(model, tokenizer, quantizer, [f"n{row}" for row in range(9)], NEW)
    only = slate_ids(model, tokenizer, [["i3", "n0", "n1"]], allowed=indices.tolist(), slate_size=9, slate_mode=mode)
    assert sorted(only[0]) == [f"n{row}" for row in range(9)]
    everything = slate_ids(model, tokenizer, [[]], slate_size=39, num_beams=39, slate_mode=mode)
    assert sorted(everything[0]) == sorted(tokenizer.item_ids)


@pytest.mark.parametrize("mode", SLATE_MODES)
@pytest.mark.parametrize("sampled", [False, True])
def test_removed_items_never_come_out(parts, mode, sampled):
    model, tokenizer, _ = parts
    first = slate_ids(model, tokenizer, [["i1"]], slate_mode=mode)[0]
    removed = [*first, "i1", "i5"]
    version = tokenizer.catalog_version
    remove_items(model, tokenizer, removed)
    assert tokenizer.catalog_version == version + 1
    left = tokenizer.num_items - len(set(removed))
    options = {"slate_mode": mode, "do_sample": True, "temperature": 5.0} if sampled else {"slate_mode": mode}
    # Every legal item is asked for: what is missing from the slate can come out of no other call.
    every = slate_ids(model, tokenizer, [["i1", removed[0]], []], slate_size=left, num_beams=30, **options)
    for slate in every:
        assert sorted(slate) == sorted(set(tokenizer.item_ids) - set(removed))
    with pytest.raises(ValueError, match=f"only {left} legal items"):
        slate_ids(model, tokenizer, [[]], slate_size=left + 1, **options)
    allowed = tokenizer.items_to_indices([removed[0], removed[1]]).tolist()
    with pytest.raises(ValueError, match="only 0 legal items"):
        slate_ids(model, tokenizer, [[]], slate_size=1, allowed=allowed, **options)


def test_a_removed_item_comes_back_as_it_was(parts):
    model, tokenizer, _ = parts
    before = slate_ids(model, tokenizer, [["i1"]])
    remove_items(model, tokenizer, before[0])
    assert not set(before[0]) & set(slate_ids(model, tokenizer, [["i1"]])[0])
    restore_items(model, tokenizer, before[0])
    assert slate_ids(model, tokenizer, [["i1"]]) == before


def test_a_removed_items_semantic_id_is_not_given_away(parts):
    model, tokenizer, quantizer = parts
    remove_items(model, tokenizer, ["i4"])
    index = add_items(model, tokenizer, quantizer, ["twin"], EMBEDDINGS[4:5])[0]
    assert tokenizer.codes[index].tolist() != tokenizer.codes[4].tolist()
    assert tokenizer.codes[index][:2].tolist() == tokenizer.codes[4][:2].tolist()  # its nearest free neighbour


def test_a_changed_catalogue_is_saved_and_loaded(parts, tmp_path):
    model, tokenizer, quantizer = parts
    save_checkpoint(tmp_path / "v0", model, tokenizer)
    old = HiGRTokenizer.from_pretrained(tmp_path / "v0")
    add_items(model, tokenizer, quantizer, ["n0", "n1"], NEW[:2])
    remove_items(model, tokenizer, ["i7", "n1"])
    save_checkpoint(tmp_path / "v2", model, tokenizer)
    loaded, reread = load_checkpoint(tmp_path / "v2")
    assert reread.catalog_version == 2 and reread.fingerprint == tokenizer.fingerprint
    assert loaded.config.num_items == 32
    assert slate_ids(loaded, reread, [["n0", "i7"]], slate_size=30) == slate_ids(
        model, tokenizer, [["n0", "i7"]], slate_size=30
    )
    with pytest.raises(ValueError, match="does not belong to the model"):
        loaded.check_tokenizer(old)
    with pytest.raises(CheckpointError, match="number of items"):
        save_checkpoint(tmp_path / "mixed", loaded, old)


def test_training_goes_on_with_the_grown_catalogue(parts):
    model, tokenizer, quantizer = parts
    add_items(model, tokenizer, quantizer, ["n0"], NEW[:1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    prompts = tokenizer([tokenizer.build_prompt(["i1", "i2"]) + tokenizer.build_completion(["n0", "n0"])])
    ids = torch.tensor(prompts["input_ids"])
    # Unit 0 is <bos>; the query reads item n0 in its history, so its own row gets a gradient.
    model.train()(ids, labels=ids).loss.backward()
    optimizer.step()
    assert model.model.embeddings.embed_items.weight[31].any()


def test_without_item_embedding_the_codes_are_all_there_is(fitted):
    ids = [f"i{row}" for row in range(30)]
    tokenizer = HiGRTokenizer.from_codes(ids, fitted.codes, fitted.codebook_sizes)
    config = HiGRConfig.from_preset("tiny", codebook_sizes=[4, 4, 4], num_items=30, item_embedding=False)
    model = HiGRForSlateGeneration(config).eval()
    model.set_catalog(torch.tensor(fitted.codes))
    add_items(model, tokenizer, fitted.model, ["n0"], NEW[:1])
    assert model.item_vectors().shape == (31, 64)


def slate_of_everything(model, size: int) -> torch.Tensor:
    options = {"slate_size": size, "slate_mode": "first_plan", "return_dict_in_generate": True}  # the fastest mode
    return model.generate(torch.tensor([[1, 3]]), **options).slates[0]


@given(st.lists(st.sampled_from(["add", "remove", "restore"]), min_size=1, max_size=6), st.integers(0, 2**16))
def test_any_run_of_changes_keeps_model_and_tokenizer_together(fitted, steps, seed):
    rng = np.random.default_rng(seed)
    ids = [f"i{row}" for row in range(30)]
    tokenizer = HiGRTokenizer.from_codes(ids, fitted.codes, fitted.codebook_sizes)
    config = HiGRConfig(
        codebook_sizes=[4, 4, 4], num_items=30, hidden_size=8, intermediate_size=8, encoder_layers=1, planner_layers=1,
        initializer_range=0.4,
    )  # fmt: skip
    model = HiGRForSlateGeneration(config).eval()
    model.set_catalog(torch.tensor(fitted.codes))
    counter = itertools.count()
    for step in steps:
        codes, removed = tokenizer.codes.copy(), set(np.flatnonzero(~tokenizer.active).tolist())
        chosen = rng.choice(tokenizer.num_items, 3, replace=False).tolist()
        if step == "add":
            fresh = [f"n{next(counter)}" for _ in range(2)]
            add_items(model, tokenizer, fitted.model, fresh, rng.normal(size=(2, 6)).astype("float32"))
        elif step == "remove":
            remove_items(model, tokenizer, chosen)
            removed |= set(chosen)
        else:
            restore_items(model, tokenizer, chosen)
            removed -= set(chosen)
        assert np.array_equal(tokenizer.codes[: len(codes)], codes)
        left = tokenizer.num_items - len(removed)
        slate = slate_of_everything(model, left)
        assert set(slate.tolist()) == set(range(tokenizer.num_items)) - removed
        model.check_tokenizer(tokenizer)
    assert tokenizer.catalog_version == len(steps)


@pytest.mark.parametrize(
    ("ids", "rows", "message"),
    [
        (["i1"], NEW[:1], "in the catalogue already"),
        (["n", "n"], NEW[:2], "rows 30 and 31"),
        (["n"], NEW[:2], "1 new items with 2 embeddings"),
        (["n"], NEW[:1, :3], r"\[N >= 1, 6\]"),
        (["n"], NEW[:1] * np.nan, "NaN"),
        ([f"n{row}" for row in range(40)], np.zeros((40, 6), "float32"), "only 34 free semantic IDs"),
    ],
)
def test_items_that_cannot_join_change_nothing(parts, ids, rows, message):
    model, tokenizer, quantizer = parts
    fingerprint = tokenizer.fingerprint
    with pytest.raises(ValueError, match=message):
        add_items(model, tokenizer, quantizer, ids, rows)
    assert tokenizer.fingerprint == fingerprint == model.config.tokenizer_fingerprint
    assert model.config.num_items == 30 == len(model.model.item_codes)


def test_nothing_joins_for_nothing(parts):
    model, tokenizer, quantizer = parts
    assert len(add_items(model, tokenizer, quantizer, [], np.empty((0, 6)))) == 0 and tokenizer.catalog_version == 0


def test_a_tokenizer_of_another_model_is_refused(parts, fitted):
    model, _, quantizer = parts
    ids = [f"i{row}" for row in range(30)]
    shuffled = HiGRTokenizer.from_codes(ids, fitted.codes[::-1], fitted.codebook_sizes)
    with pytest.raises(ValueError, match="does not belong to the model"):
        add_items(model, shuffled, quantizer, ["n"], NEW[:1])
    with pytest.raises(ValueError, match="semantic ID never changes"):
        update_catalog(model, shuffled)
    with pytest.raises(ValueError, match="only grows"):
        update_catalog(model, HiGRTokenizer.from_codes(ids[:5], fitted.codes[:5], fitted.codebook_sizes))
    with pytest.raises(ValueError, match="codebook sizes"):
        update_catalog(model, HiGRTokenizer.from_codes(ids, fitted.codes, (5, 4, 4)))
