from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset, load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from higr_hf import HiGRTokenizer, UnknownItemError
from higr_hf.alignment import (
    PreferenceError,
    PreferenceSettings,
    build_preferences,
    check_preferences,
    check_texts,
    ensure_rendered,
    load_preferences,
    preference_report,
    push_preferences,
    render,
    save_preferences,
)
from higr_hf.data import leave_last_out, synthetic_log
from higr_hf.data.encoding import EncodedSequence, FeatureEdges, TokenLayout, encode_sequences
from tests.model_tester import HiGRModelTester

RANKING_ONLY = {"ranking": 1.0}


def catalogue(shift: int = 0, **features) -> HiGRTokenizer:
    tester = HiGRModelTester()
    ids = [f"i{(item + shift) % tester.num_items}" for item in range(tester.num_items)]
    return HiGRTokenizer.from_codes(ids, tester.codes.numpy(), tester.codebook_sizes, **features)


def split(*users: dict) -> Dataset:
    """Rows of a train split; items are numbers, feedback 1 to 5, an effective view is 4 or more."""
    rows = []
    for number, user in enumerate(users):
        items, feedback = user["items"], user.get("feedback", [5.0] * len(user["items"]))
        rows.append(
            {
                "user_id": f"u{number}",
                "history_item_ids": [f"i{item}" for item in items],
                "history_feedback": [float(value) for value in feedback],
                "history_timestamps": [1000 + 60 * place for place in range(len(items))],
                "history_views": [value >= 4 for value in feedback],
                "history_negatives": [f"i{item}" for item in user.get("negatives", [])],
            }
        )
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(24, 6))


def test_every_objective_of_a_user(vectors):
    train = split({"items": range(10), "feedback": [5, 5, 1, 4, 4, 5, 3, 4, 2, 5], "negatives": [2, 20, 8]})
    pairs = build_preferences(train, catalogue(), PreferenceSettings(slate_size=3), embeddings=vectors)
    assert pairs["objective"] == ["ranking", "interest", "diversity"]
    for row in pairs:
        assert row["history_item_ids"] == [f"i{item}" for item in range(7)]
        assert row["history_feedback"] == [5, 5, 1, 4, 4, 5, 3]
        assert row["chosen_item_ids"] == ["i9", "i7", "i8"]
    ranking, interest, diversity = pairs["rejected_item_ids"]
    assert sorted(ranking) == ["i7", "i8", "i9"] and ranking != ["i9", "i7", "i8"]
    replaced = set(interest) - {"i9", "i7", "i8"}
    assert replaced == {"i20", "i2"}, "i8 is disliked but stands in the slate"
    assert diversity[0] == "i9"
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = unit @ unit[9]
    candidates = [item for item in range(24) if item not in {*range(10)}]
    nearest = sorted(candidates, key=lambda item: -similarity[item])[:2]
    assert diversity[1:] == [f"i{item}" for item in nearest]

    tokenizer = catalogue()
    assert pairs[0]["prompt"] == tokenizer.build_prompt([f"i{item}" for item in range(7)])
    assert pairs[0]["chosen"] == tokenizer.build_completion(["i9", "i7", "i8"])
    assert preference_report(pairs)["pairs"] == {"ranking": 1, "interest": 1, "diversity": 1}


def test_only_views_and_several_windows():
    train = split({"items": range(8), "feedback": [5, 4, 5, 4, 1, 5, 1, 4]})
    options = PreferenceSettings(slate_size=2, objectives=RANKING_ONLY, positives="views", windows=3)
    pairs = build_preferences(train, catalogue(), options)
    assert pairs["chosen_item_ids"] == [["i5", "i7"], ["i2", "i3"]], "the third would have no history"
    assert [len(history) for history in pairs["history_item_ids"]] == [5, 2]


def test_negatives_outside_the_history_come_first():
    train = split({"items": range(6), "negatives": [0, 1, 2, 15]})
    options = {"slate_size": 2, "objectives": {"interest": 1.0}}
    pairs = build_preferences(train, catalogue(), PreferenceSettings(swaps=1, **options))
    assert "i15" in pairs[0]["rejected_item_ids"]
    unseen = build_preferences(train, catalogue(), PreferenceSettings(unseen_only=True, **options))
    assert len({"i0", "i1", "i2"} & set(unseen[0]["rejected_item_ids"])) == 0


def test_a_models_own_slates_are_rejected_in_place_of_the_chosen_ones():
    train = split({"items": range(8)}, {"items": [1, 2]}, {"items": range(9, 1, -1), "feedback": [5, 4] * 4})
    asked = []

    def recommend(batch) -> np.ndarray:
        asked.append(batch)
        return np.array([[10 + row, 20, 21] for row in range(len(batch["history_indices"]))])

    options = PreferenceSettings(slate_size=3, objectives={"ranking": 1.0, "on_policy": 1.0}, windows=2)
    pairs = build_preferences(train, catalogue(), options, recommend=recommend)
    assert preference_report(pairs)["pairs"] == {"ranking": 2, "on_policy": 4}
    assert preference_report(pairs)["users_without_any_pair"] == 1
    own = pairs.filter(lambda row: row["objective"] == "on_policy")
    assert own["user_id"][:] == ["u0", "u0", "u2", "u2"]
    assert own["rejected_item_ids"][:] == [[f"i{10 + row}", "i20", "i21"] for row in range(4)]
    assert own["chosen_item_ids"][:2] == [["i5", "i6", "i7"], ["i2", "i3", "i4"]]
    (batch,) = asked
    assert [row.tolist() for row in batch["history_indices"]] == [[0, 1, 2, 3, 4], [0, 1], [9, 8, 7, 6, 5], [9, 8]]
    assert [row.tolist() for row in batch["exclude_indices"]] == [[*range(8)]] * 2 + [[*range(2, 10)]] * 2
    assert batch["history_feedback"][3] == [5, 4]
    with pytest.raises(PreferenceError, match="pass it as `recommend`"):
        build_preferences(train, catalogue(), options)
    with pytest.raises(PreferenceError, match=r"user 'u0': `recommend` gave the slate \[1, -1\], expected 3 items"):
        build_preferences(train, catalogue(), options, recommend=lambda batch: np.array([[1, -1]] * 4))


def test_users_without_a_pair_are_counted_by_reason():
    train = split(
        {"items": range(6), "feedback": [5, 5, 5, 5, 4, 5]},
        {"items": range(6)},
        {"items": range(6)},
        {"items": [1, 2]},
    )
    pairs = build_preferences(train, catalogue(), PreferenceSettings(slate_size=3, objectives=RANKING_ONLY))
    report = preference_report(pairs)
    assert report["pairs"] == {"ranking": 1}
    assert report["users_without_a_pair"] == {"ranking": {"all feedback equal": 2, "too few events": 1}}
    assert report["users_without_any_pair"] == 3
    with pytest.raises(
        PreferenceError, match=r"no user has a pair for the objective 'interest': no negative feedback"
    ):
        build_preferences(train, catalogue(), PreferenceSettings(slate_size=3, objectives={"interest": 1.0}))


def test_shares_and_seeds():
    train = split(*({"items": range(8), "feedback": [5, 4, 3, 2, 5, 4, 3, 2]} for _ in range(60)))

    def users(**options) -> list[str]:
        chosen = PreferenceSettings(slate_size=3, **{"objectives": RANKING_ONLY, **options})
        return build_preferences(train, catalogue(), chosen)["user_id"][:]

    assert len(users(share=0.1)) == 6
    assert users(share=0.1) == users(share=0.1) != users(share=0.1, seed=1)
    assert 15 < len(users(objectives={"ranking": 0.5})) < 45


def test_removed_items_stand_in_no_slate(vectors):
    tokenizer = catalogue()
    tokenizer.remove_items(["i9", "i11"])
    train = split({"items": range(10), "feedback": [5, 4, 3, 5, 4, 3, 5, 4, 3, 5], "negatives": [11, 12]})
    pairs = build_preferences(train, tokenizer, PreferenceSettings(slate_size=3), embeddings=vectors)
    for row in pairs:
        assert not {"i9", "i11"} & {*row["chosen_item_ids"], *row["rejected_item_ids"]}


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), windows=st.integers(1, 3), positives=st.sampled_from(["engaged", "views"]))
def test_what_is_built_passes_the_checks(seed, windows, positives):
    log = synthetic_log(num_users=12, num_items=24, num_topics=3, length=16, noise=0.4, seed=seed)
    tokenizer = catalogue()
    options = PreferenceSettings(slate_size=3, windows=windows, positives=positives, seed=seed)
    embeddings = np.random.default_rng(seed).normal(size=(24, 4))
    train = leave_last_out(log, slate_size=3)["train"]
    try:
        pairs = build_preferences(train, tokenizer, options, embeddings=embeddings, max_history=5)
    except PreferenceError as error:
        assert "no user has a pair" in str(error)
        return
    check_preferences(pairs, tokenizer)
    check_texts(pairs, tokenizer, max_history=5, max_length=64)
    sequences = dict(zip(train["user_id"], train["history_item_ids"], strict=True))
    for row in pairs:
        history = row["history_item_ids"]
        assert sequences[row["user_id"]][: len(history)] == history
        later = sequences[row["user_id"]][len(history) :]
        assert set(row["chosen_item_ids"]) <= set(later)
        assert tokenizer.text_to_items(row["prompt"]) == history[-5:]


def test_features_are_those_of_evaluation():
    edges = FeatureEdges(feedback=(2.5, 3.5), time=(50.0,))
    tokenizer = catalogue(num_feedback_levels=3, num_time_buckets=2)
    train = split({"items": range(8), "feedback": [5, 1, 3, 4, 2, 5, 4, 1]})
    options = PreferenceSettings(slate_size=2, objectives=RANKING_ONLY)
    (prompt,) = build_preferences(train, tokenizer, options, edges=edges, max_history=4, wish=2)["prompt"]
    (whole,) = encode_sequences(train, tokenizer, edges)
    history = EncodedSequence(whole.items[2:6], whole.feedback[2:6], whole.time[2:6])
    assert tokenizer(prompt)["input_ids"] == TokenLayout.of(tokenizer).prompt(history, wish=2).tolist()
    with pytest.raises(PreferenceError, match="the feedback edges make 3 levels, the tokenizer has tokens for 0"):
        build_preferences(train, catalogue(), options, edges=edges)


def test_another_tokenizer_renders_anew():
    train = split({"items": range(8), "feedback": [5, 4, 3, 5, 4, 3, 5, 4]})
    first, second = catalogue(), catalogue(shift=5)
    pairs = build_preferences(train, first, PreferenceSettings(slate_size=3, objectives=RANKING_ONLY))
    with pytest.raises(PreferenceError, match="rendered with another tokenizer"):
        check_texts(pairs, second, max_history=10, max_length=None)
    again = ensure_rendered(pairs, second)
    assert again["chosen"] != pairs["chosen"]
    assert second.text_to_items(again[0]["chosen"]) == pairs[0]["chosen_item_ids"]
    assert preference_report(again) == preference_report(pairs)
    assert ensure_rendered(again, second) is again
    assert ensure_rendered(again, second, max_history=2) is not again
    assert second.text_to_items(render(pairs, second, max_history=2)[0]["prompt"]) == pairs[0]["history_item_ids"][-2:]


def test_saved_as_an_ordinary_dataset(tmp_path, monkeypatch):
    train = split({"items": range(8), "feedback": [5, 4, 3, 5, 4, 3, 5, 4]}, {"items": range(4)})
    tokenizer = catalogue()
    pairs = build_preferences(train, tokenizer, PreferenceSettings(slate_size=3, objectives=RANKING_ONLY))
    folder = save_preferences(pairs, tmp_path / "pairs")
    loaded = load_preferences(folder)
    assert loaded.to_list() == pairs.to_list()
    assert preference_report(loaded) == preference_report(pairs)
    assert ensure_rendered(loaded, tokenizer, max_history=None, wish=None) is loaded
    card = (folder / "README.md").read_text()
    assert "| ranking | 1 | 1 all feedback equal |" in card and tokenizer.fingerprint in card
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    plain = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert plain["chosen"][:] == pairs["chosen"][:]

    (folder / "train.parquet").write_bytes((folder / "train.parquet").read_bytes()[:-20])
    with pytest.raises(PreferenceError, match="truncated or corrupt"):
        load_preferences(folder)
    (folder / "train.parquet").unlink()
    with pytest.raises(PreferenceError, match=r"train\.parquet is missing"):
        load_preferences(folder)
    with pytest.raises(PreferenceError, match="there is no directory"):
        load_preferences(tmp_path / "nowhere")


def test_pushed_and_loaded_from_the_hub(client):
    train = split({"items": range(8), "feedback": [5, 4, 3, 5, 4, 3, 5, 4]})
    pairs = build_preferences(train, catalogue(), PreferenceSettings(slate_size=3, objectives=RANKING_ONLY))
    result = push_preferences(pairs, "ann/pairs", source="toy", licence="CC BY 4.0", private=True)
    assert result.repo_type == "dataset"
    loaded = load_preferences("ann/pairs", revision=result.commit)
    assert loaded.to_list() == pairs.to_list()
    assert preference_report(loaded) == preference_report(pairs)


def test_settings_that_cannot_be_used():
    for options, message in (
        ({"objectives": {"novelty": 1.0}}, "there is no objective 'novelty'"),
        ({"objectives": {"ranking": 2.0}}, "between 0 and 1"),
        ({"objectives": {"ranking": 0.0}}, "no objective has a share above 0"),
        ({"share": 0.0}, "share must lie above 0"),
        ({"slate_size": 1}, "slate_size must be at least 2"),
        ({"swaps": 0}, "swaps must be at least 1"),
        ({"permutation": "shuffle"}, "permutation must be one of"),
        ({"positives": "clicks"}, "positives must be one of"),
    ):
        with pytest.raises(PreferenceError, match=message):
            PreferenceSettings(**options)


def test_data_that_cannot_be_used(vectors):
    train = split({"items": range(8), "feedback": [5, 4, 3, 5, 4, 3, 5, 4], "negatives": [20]})
    tokenizer = catalogue()
    options = PreferenceSettings(slate_size=3)
    with pytest.raises(PreferenceError, match=r"history_negatives.*negative_rule"):
        build_preferences(train.remove_columns("history_negatives"), tokenizer, options, embeddings=vectors)
    with pytest.raises(PreferenceError, match="need item embeddings"):
        build_preferences(train, tokenizer, options)
    with pytest.raises(PreferenceError, match=r"shape \[3, 6\], the tokenizer 24 items"):
        build_preferences(train, tokenizer, options, embeddings=vectors[:3])
    broken = vectors.copy()
    broken[4, 1] = np.nan
    with pytest.raises(PreferenceError, match=r"embedding of item 'i4' \(row 4\) is not finite"):
        build_preferences(train, tokenizer, options, embeddings=broken)
    with pytest.raises(UnknownItemError, match="i99"):
        build_preferences(split({"items": [1, 2, 99, 3, 4]}), tokenizer, options, embeddings=vectors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rejected_item_ids": ["i1", "i2"]}, r"row 0 \(user 'u0'\): 3 items chosen but 2 rejected"),
        ({"rejected_item_ids": ["i1", "i2", "i3"]}, "the same slate"),
        ({"rejected_item_ids": ["i1", "i2", "i2"]}, "names an item twice"),
        ({"rejected_item_ids": ["i1", "i2", "i77"]}, "item 'i77' of rejected_item_ids is not in"),
        ({"history_item_ids": ["i78"]}, "item 'i78' of history_item_ids is not in"),
        ({"chosen_item_ids": [], "rejected_item_ids": []}, "the chosen slate is empty"),
        ({"objective": "novelty"}, "the objective 'novelty' is none of"),
    ],
)
def test_rows_that_cannot_be_used(change, message):
    row = {
        "user_id": "u0",
        "objective": "ranking",
        "history_item_ids": ["i5"],
        "chosen_item_ids": ["i1", "i2", "i3"],
        "rejected_item_ids": ["i3", "i2", "i1"],
    }
    tokenizer = catalogue()
    render(Dataset.from_list([row]), tokenizer)
    with pytest.raises(PreferenceError, match=message):
        render(Dataset.from_list([{**row, **change}]), tokenizer)


def test_slates_of_several_sizes_are_refused():
    rows = [
        {"user_id": "u", "objective": "ranking", "history_item_ids": [], "chosen_item_ids": a, "rejected_item_ids": b}
        for a, b in ((["i1", "i2"], ["i2", "i1"]), (["i1", "i2", "i3"], ["i2", "i1", "i3"]))
    ]
    with pytest.raises(PreferenceError, match="has slates of 3 items, the rows before it 2"):
        check_preferences(Dataset.from_list(rows), catalogue())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "<bos>what to watch<slate>"}, "is no history followed by <slate>"),
        ({"prompt": "<bos>{0}"}, "is no history followed by <slate>"),
        ({"prompt": "<bos>{0}{1}{2}{3}<slate>"}, "holds 4 items, the model reads 3"),
        ({"chosen": "{0}<a_0>"}, "the chosen slate .* is not made of items"),
        ({"chosen": "{0}{0}"}, "names an item twice"),
        ({"chosen": "{0}"}, "1 items chosen but 2 rejected"),
        ({"chosen": "{1}{0}"}, "the same slate"),
        ({"chosen": ""}, "is not made of items"),
    ],
)
def test_texts_that_cannot_be_used(change, message):
    tokenizer = catalogue()
    item = [tokenizer.encode_items([f"i{number}"]) for number in range(4)]
    row = {"prompt": "<bos>{2}<slate>", "chosen": "{0}{1}", "rejected": "{1}{0}"}

    def dataset(**fields: str) -> Dataset:
        return Dataset.from_list([{name: text.format(*item) for name, text in {**row, **fields}.items()}])

    check_texts(dataset(), tokenizer, max_history=3, max_length=12)
    with pytest.raises(PreferenceError, match="need 12 tokens, max_length is 11: render with a smaller max_history"):
        check_texts(dataset(), tokenizer, max_history=3, max_length=11)
    with pytest.raises(PreferenceError, match=message):
        check_texts(dataset(**change), tokenizer, max_history=3, max_length=64)
