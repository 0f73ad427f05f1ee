"""HiGRTokenizer: vocabulary, text, items, files, and a process that does not have the package."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from higr_hf.item_table_higr import ItemTable, UnknownItemError
from higr_hf.tokenization_higr import HiGRTokenizer
from higr_hf.vocabulary_higr import SIDVocabulary

IDS = ["milk", "bread", "tea", "jam"]
CODES = np.array([[0, 1, 2], [1, 0, 0], [1, 0, 1], [1, 2, 0]])
SIZES = [2, 3, 4]


def make(**kwargs) -> HiGRTokenizer:
    kwargs = {"num_feedback_levels": 3, "num_time_buckets": 2, "titles": [i.title() for i in IDS], **kwargs}
    return HiGRTokenizer.from_codes(IDS, CODES, SIZES, **kwargs)


@pytest.fixture(scope="module")
def tokenizer() -> HiGRTokenizer:
    return make()


@st.composite
def catalogues(draw) -> HiGRTokenizer:
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=8))
    legal = [st.integers(0, size - 1) for size in sizes]
    rows = draw(st.lists(st.tuples(*legal), min_size=1, max_size=12, unique=True))
    ids = draw(st.lists(st.text(min_size=1, max_size=6), min_size=len(rows), max_size=len(rows), unique=True))
    features = draw(st.integers(0, 3)), draw(st.integers(0, 2))
    return HiGRTokenizer.from_codes(ids, np.array(rows), sizes, *features)


# ---- vocabulary and text


def test_vocabulary_order_is_special_feedback_time_codes(tokenizer):
    expected = "<pad> <bos> <eos> <slate> <unk> <f_0> <f_1> <f_2> <t_0> <t_1> <a_0> <a_1> <b_0> <b_1> <b_2> <c_0>"
    assert tokenizer.convert_ids_to_tokens(range(16)) == expected.split()
    assert len(tokenizer) == tokenizer.vocab_size == 5 + 3 + 2 + 2 + 3 + 4
    assert (tokenizer.feature_offset, tokenizer.level_offsets) == (5, (10, 12, 15))
    ids = tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.slate_token_id
    assert (*ids, tokenizer.unk_token_id) == (0, 1, 2, 3, 4)
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3, 4]


def test_level_letters_skip_the_feature_letters():
    tokens = SIDVocabulary([1] * 8, 1, 1).tokens
    assert tokens[5:] == [f"<{letter}_0>" for letter in "ftabcdeghi"]
    with pytest.raises(ValueError, match="9 levels"):
        SIDVocabulary([1] * 9)


def test_prompt_and_completion(tokenizer):
    assert tokenizer.build_prompt([]) == "<bos><slate>"
    text = tokenizer.build_prompt(["milk", "tea"], feedback=[2, None], time_buckets=[-1, 1], wish=0)
    assert text == "<bos><a_0><b_1><c_2><f_2><a_1><b_0><c_1><t_1><slate><f_0>"
    assert tokenizer.build_completion(["jam", 0]) == "<a_1><b_2><c_0><a_0><b_1><c_2>"
    assert tokenizer.encode_items(["jam"]) == tokenizer.items_to_text([3])
    assert (
        tokenizer.token_ids_to_text(tokenizer(text)["input_ids"])
        == text
        == tokenizer.decode(tokenizer(text).input_ids)
    )


def test_history_is_cut_item_aligned_and_oldest_first(tokenizer):
    cut = tokenizer.build_prompt(["milk", "bread", "tea"], feedback=[0, 1, 2], max_history=2)
    assert cut == "<bos><a_1><b_0><c_0><f_1><a_1><b_0><c_1><f_2><slate>"
    assert tokenizer.build_prompt(["milk"], max_history=0) == "<bos><slate>"
    # Unknown items do not use up the places of known ones, and their features go with them.
    mixed = tokenizer.build_prompt(["milk", "?", "tea"], feedback=[0, 1, 2], max_history=2, on_unknown="skip")
    assert mixed == "<bos><a_0><b_1><c_2><f_0><a_1><b_0><c_1><f_2><slate>"


@pytest.mark.parametrize("text", ["<bos><a_1>", "<a_1>", "  <bos><a_1>", "<bos><f_1><a_1>", ""])
def test_bos_is_prepended_once_and_nothing_is_appended(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert ids.count(1) == 1 and ids[0] == 1
    assert ids == tokenizer(tokenizer.decode(ids))["input_ids"] == tokenizer.encode(text)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids["<bos>" not in text :]


def test_a_pair_is_one_sequence(tokenizer):
    assert tokenizer("<bos><a_0>", "<a_1>")["input_ids"] == [1, 10, 11]
    assert tokenizer([("<bos><a_0>", "<a_1>")])["input_ids"] == [[1, 10, 11]]


def test_offsets_count_in_the_callers_text(tokenizer):
    for text in ("<bos><a_1><b_0>", " <bos> <a_1><b_0>", "<a_1><b_0>"):
        encoded = tokenizer(text, return_offsets_mapping=True)
        spans = [text[start:end] for start, end in encoded["offset_mapping"]]
        assert spans[1:] == ["<a_1>", "<b_0>"]
    batch = tokenizer(["<bos><a_1>", "<a_1><b_0>"], return_offsets_mapping=True, padding=True)
    assert batch["offset_mapping"] == [[(0, 0), (0, 0), (5, 10)], [(0, 0), (0, 5), (5, 10)]]


def test_pretokenized_input_and_foreign_text(tokenizer):
    assert tokenizer(["<bos>", "<a_1>"], is_split_into_words=True)["input_ids"] == [1, 11]
    assert tokenizer([["<bos>", "<a_1>"], ["<a_0>"]], is_split_into_words=True)["input_ids"] == [[1, 11], [1, 10]]
    assert tokenizer("<a_1> \n <a_0>")["input_ids"] == [1, 11, 10]
    assert tokenizer("<a_9>hello")["input_ids"] == [1, 4, 4]


def test_batches_are_padded_on_the_left(tokenizer):
    batch = tokenizer.encode_prompts([["milk"], []], wish=1)
    assert batch["input_ids"].tolist() == [[1, 10, 13, 17, 3, 6], [0, 0, 0, 1, 3, 6]]
    assert batch["attention_mask"].tolist() == [[1] * 6, [0, 0, 0, 1, 1, 1]]
    assert batch["input_ids"].dtype == torch.int64
    slates = tokenizer.encode_slates([["milk"], ["tea"]])
    assert slates["input_ids"].tolist() == [[10, 13, 17], [11, 12, 16]]


@settings(max_examples=60, deadline=None)
@given(catalogues(), st.data())
def test_items_text_and_tokens_round_trip(tokenizer, data):
    rows = data.draw(st.lists(st.integers(0, tokenizer.num_items - 1), max_size=8))
    levels = [
        st.none() | st.integers(-1, max(-1, size - 1)) for size in tokenizer.sid_vocabulary.feature_sizes.values()
    ]
    feedback, times = ([data.draw(level) for _ in rows] for level in levels)
    items = [tokenizer.index_to_item(row) for row in rows]
    text = tokenizer.encode_items(items, feedback, times)
    token_ids = tokenizer.items_to_token_ids(rows, feedback, times)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == token_ids
    assert tokenizer.decode(token_ids) == text
    assert tokenizer.token_ids_to_items(token_ids) == tokenizer.text_to_items(text) == items
    prompt = tokenizer(tokenizer.build_prompt(items, feedback, times))["input_ids"]
    assert prompt == [1, *token_ids, 3]
    assert tokenizer.token_ids_to_items(prompt) == items


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 18)), st.lists(st.integers(0, 18)))
def test_concatenated_text_gives_concatenated_tokens(tokenizer, left, right):
    texts = [tokenizer.token_ids_to_text(ids) for ids in (left, right)]
    both = tokenizer("".join(texts), add_special_tokens=False)["input_ids"]
    assert both == left + right
    with_bos = tokenizer("".join(texts))["input_ids"]
    assert with_bos == (left + right if (left + right)[:1] == [1] else [1, *left, *right])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 20), max_size=30))
def test_parsing_agrees_with_a_plain_loop(tokenizer, ids):
    layout, units, previous_is_code = tokenizer.sid_vocabulary, [], False
    for token in ids:
        level = next((n for n, o in enumerate(layout.level_offsets) if o <= token < o + SIZES[n]), None)
        if level is not None and (level == 0 or not previous_is_code):
            units.append([])
        if level is not None:
            units[-1].append((level, token - layout.level_offsets[level]))
        previous_is_code = level is not None
    sids = {tuple(enumerate(row)): item for row, item in zip(CODES.tolist(), IDS, strict=True)}
    assert tokenizer.token_ids_to_items(ids) == [sids.get(tuple(unit)) for unit in units]


def test_illegal_sids_are_none_and_batches_stay_nested(tokenizer):
    ids = tokenizer("<a_0><b_0><c_0><a_1><b_0><c_1><slate><b_0><c_0><f_0><a_1><b_0>")["input_ids"]
    expected = [None, "tea", None, None]
    assert tokenizer.token_ids_to_items(ids) == expected
    assert tokenizer.token_ids_to_items(torch.tensor([ids, ids])) == [expected, expected]
    assert tokenizer.token_ids_to_indices(np.array(ids)).tolist() == [-1, 2, -1, -1]
    assert tokenizer.token_ids_to_items([]) == []
    with pytest.raises(ValueError, match="integers"):
        tokenizer.token_ids_to_items([0.5])


# ---- bad input


def test_unknown_items_are_named_with_a_way_out(tokenizer):
    with pytest.raises(UnknownItemError, match=r"'wine' \(position 1\).*on_unknown='skip'"):
        tokenizer.build_prompt(["milk", "wine"])
    with pytest.raises(ValueError, match="index 4"):
        tokenizer.index_to_item(4)
    with pytest.raises(ValueError, match="index -1"):
        tokenizer.index_to_item(-1)
    with pytest.raises(ValueError, match="wrap it in a list"):
        tokenizer.build_prompt("milk")
    with pytest.raises(ValueError, match="neither a string id nor an integer"):
        tokenizer.build_prompt([1.5])
    assert tokenizer.items_to_indices(["jam", "wine"], on_unknown="skip").tolist() == [3, -1]
    assert (tokenizer.item_to_index("tea"), tokenizer.index_to_item(np.int64(2))) == (2, "tea")


@pytest.mark.parametrize("value", [3, 0.5, -2, float("nan")])
def test_features_out_of_range_are_refused(tokenizer, value):
    with pytest.raises(ValueError, match=r"feedback\[0\] is .*0\.\.2"):
        tokenizer.encode_items(["milk"], feedback=[value])


def test_feature_lists_of_another_length_are_refused(tokenizer):
    with pytest.raises(ValueError, match="feedback has 2 values for 1 items"):
        tokenizer.encode_items(["milk"], feedback=[0, 1])
    with pytest.raises(ValueError, match="without this feature"):
        make(num_feedback_levels=0).build_prompt([], wish=0)
    with pytest.raises(ValueError, match="max_history"):
        tokenizer.build_prompt([], max_history=-1)


@pytest.mark.parametrize(
    ("ids", "codes", "message"),
    [
        ([], np.zeros((0, 3), dtype=int), "no items"),
        (["a", "b"], [[0, 0, 0], [0, 0, 0]], r"'a' \(row 0\) and 'b' \(row 1\) share the semantic ID \[0, 0, 0\]"),
        (["a", "a"], [[0, 0, 0], [0, 0, 1]], "'a' stands in rows 0 and 1"),
        (["a"], [[0, 3, 0]], r"'a' \(row 0\) has code 3 at level 1"),
        (["a"], [[0, -1, 0]], "code -1 at level 1"),
        (["a"], [[0.0, 1.0, 0.0]], "dtype float64"),
        (["a"], [[0, 1]], r"shape \(1, 2\), expected .*\(1, 3\)"),
        ([7], [[0, 0, 0]], r"item_ids\[0\] is 7"),
        ([""], [[0, 0, 0]], "non-empty"),
    ],
)
def test_bad_catalogues_are_refused(ids, codes, message):
    with pytest.raises(ValueError, match=message):
        HiGRTokenizer.from_codes(ids, np.array(codes), SIZES)


def test_one_item_and_one_level():
    tokenizer = HiGRTokenizer.from_codes(["only"], np.array([[0]]), [1])
    assert tokenizer.build_prompt(["only"]) == "<bos><a_0><slate>"
    assert tokenizer.token_ids_to_items([5]) == ["only"]


def test_lookup_does_not_overflow_at_eight_levels_of_1024_codes():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1024, (500, 8))
    table = ItemTable([str(i) for i in range(500)], codes, [1024] * 8)
    assert table.lookup(codes).tolist() == list(range(500))
    assert table.lookup(rng.integers(0, 1024, (500, 8))).tolist() == [-1] * 500
    assert table.lookup([[0] * 7 + [1024], [-1] * 8]).tolist() == [-1, -1]


# ---- a catalogue that changes


def test_added_items_leave_the_old_ones_alone():
    tokenizer = make()
    before, text = tokenizer.fingerprint, tokenizer.encode_items(IDS)
    assert tokenizer.add_items(["oil"], np.array([[0, 0, 3]]), ["Oil"]).tolist() == [4]
    assert tokenizer.encode_items(IDS) == text and tokenizer.codes[:4].tolist() == CODES.tolist()
    assert tokenizer.encode_items(["oil"]) == "<a_0><b_0><c_3>" and tokenizer.titles[-1] == "Oil"
    assert tokenizer.fingerprint != before and tokenizer.catalog_version == 1
    for ids, codes, message in (
        (["tea"], [[0, 0, 0]], "'tea' is in the catalogue already"),
        (["new"], [[1, 0, 1]], "'tea' .* and 'new' .* share"),
        (["new"], [[0, 0]], "codes of new items have shape"),
    ):
        with pytest.raises(ValueError, match=message):
            tokenizer.add_items(ids, np.array(codes))
    assert tokenizer.num_items == 5, "a refused call changes nothing"


def test_removed_items_keep_index_and_sid(tmp_path):
    tokenizer = make()
    before = tokenizer.fingerprint
    tokenizer.remove_items(["bread"])
    assert tokenizer.active.tolist() == [True, False, True, True] and tokenizer.fingerprint != before
    assert tokenizer.text_to_items(tokenizer.encode_items(["bread", "jam"])) == ["bread", "jam"]
    tokenizer.save_pretrained(tmp_path)
    loaded = HiGRTokenizer.from_pretrained(tmp_path)
    assert loaded.active.tolist() == tokenizer.active.tolist() and loaded.catalog_version == 1
    loaded.restore_items(["bread"])
    assert loaded.fingerprint == before
    with pytest.raises(ValueError, match="at least one active item"):
        loaded.remove_items(IDS)


# ---- files


def test_save_and_load_keep_everything(tokenizer, tmp_path):
    saved = tokenizer.save_pretrained(tmp_path)
    assert all(os.path.isfile(path) for path in saved)
    expected = {"tokenizer.json", "tokenizer_config.json", "item_sids.safetensors", "items.json"}
    code = {"tokenization_higr.py", "item_table_higr.py", "vocabulary_higr.py"}
    assert set(os.listdir(tmp_path)) == expected | code
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["auto_map"] == {"AutoTokenizer": ["tokenization_higr.HiGRTokenizer", None]}
    loaded = HiGRTokenizer.from_pretrained(tmp_path)
    assert loaded.fingerprint == tokenizer.fingerprint == config["fingerprint"]
    assert (loaded.item_ids, loaded.titles) == (IDS, tokenizer.titles)
    assert loaded.codes.dtype == np.int64 and loaded.codes.tolist() == CODES.tolist()
    assert loaded.padding_side == "left" and loaded.slate_token_id == 3 and loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded("<bos><a_1>")["input_ids"] == [1, 11]
    # Saving again over the same directory, from the loaded one, changes no file.
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    loaded.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_fingerprint_tells_layouts_and_catalogues_apart_but_not_titles():
    prints = {make().fingerprint, make(num_feedback_levels=2).fingerprint, make(num_time_buckets=3).fingerprint}
    prints.add(HiGRTokenizer.from_codes(IDS[::-1], CODES, SIZES, 3, 2).fingerprint)
    prints.add(HiGRTokenizer.from_codes(IDS, CODES, [2, 3, 5], 3, 2).fingerprint)
    assert len(prints) == 5
    assert make(titles=None).fingerprint == make().fingerprint


def test_copies_and_added_tokens_survive(tokenizer, tmp_path):
    # `Dataset.map` hands a tokenizer to its worker processes this way; no file is read so.
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert other.fingerprint == tokenizer.fingerprint and other.build_prompt(["tea"]) == tokenizer.build_prompt(
            ["tea"]
        )
    grown = make(model_max_length=64)
    grown.add_tokens(["<country_nl>"])
    grown.save_pretrained(tmp_path)
    loaded = HiGRTokenizer.from_pretrained(tmp_path)
    assert loaded("<country_nl><a_0>")["input_ids"] == [1, 19, 10] and loaded.model_max_length == 64
    assert loaded.token_ids_to_items([19, 10, 13, 17]) == ["milk"]


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _rewrite_sids(path, **changes):
    metadata = {"higr-item-table-1": json.dumps({"fingerprint": make().fingerprint, "version": 0})}
    save_file({**load_file(path), **changes}, path, metadata=metadata)


CORRUPTIONS = {
    "sids cut": ("item_sids.safetensors", _cut, r"item_sids.safetensors is truncated or corrupt"),
    "sids empty": ("item_sids.safetensors", lambda p: p.write_bytes(b""), r"item_sids.safetensors is truncated"),
    "sids missing": ("item_sids.safetensors", lambda p: p.unlink(), r"lacks item_sids.safetensors"),
    "items cut": ("items.json", _cut, r"items.json is truncated or corrupt"),
    "items missing": ("items.json", lambda p: p.unlink(), r"lacks items.json"),
    "items foreign": ("items.json", lambda p: p.write_text("[]"), r"items.json is not an item list"),
    "vocabulary cut": ("tokenizer.json", _cut, r"tokenizer.json is truncated or corrupt"),
    "config cut": ("tokenizer_config.json", _cut, r"tokenizer_config.json is truncated or corrupt"),
    "other codes": (
        "item_sids.safetensors",
        lambda p: _rewrite_sids(p, codes=CODES[::-1].copy()),
        r"fingerprint .* tokenizer_config.json says",
    ),
    "duplicate codes": (
        "item_sids.safetensors",
        lambda p: _rewrite_sids(p, codes=np.zeros((4, 3), dtype=np.int64)),
        r"inconsistent: Items 'milk' .* share",
    ),
    "no metadata": (
        "item_sids.safetensors",
        lambda p: save_file(load_file(p), p),
        r"item_sids.safetensors is not an item table",
    ),
    "too few rows": (
        "item_sids.safetensors",
        lambda p: _rewrite_sids(p, codes=CODES[:2]),
        r"'codes' is I64 \[2, 3\], expected I64 \[4, 3\]",
    ),
    "wrong dtype": (
        "item_sids.safetensors",
        lambda p: _rewrite_sids(p, codes=CODES.astype(np.float32)),
        r"'codes' is F32",
    ),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_damaged_files_are_named(tokenizer, tmp_path, name):
    file, damage, message = CORRUPTIONS[name]
    tokenizer.save_pretrained(tmp_path)
    damage(tmp_path / file)
    with pytest.raises(ValueError, match=message):
        HiGRTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("file", ["item_sids.safetensors", "items.json", "tokenizer_config.json"])
def test_files_of_two_saves_are_not_mixed(tokenizer, tmp_path, file):
    tokenizer.save_pretrained(tmp_path / "one")
    other = HiGRTokenizer.from_codes(IDS[::-1], CODES, SIZES, 3, 2)
    other.save_pretrained(tmp_path / "two")
    (tmp_path / "one" / file).write_bytes((tmp_path / "two" / file).read_bytes())
    with pytest.raises(ValueError, match="does not belong to"):
        HiGRTokenizer.from_pretrained(tmp_path / "one")


def test_vocabulary_of_another_layout_is_refused(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    make(num_time_buckets=1)._tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"'<t_1>' the id None"):
        HiGRTokenizer.from_pretrained(tmp_path)


def test_a_failed_save_leaves_the_previous_tokenizer(tokenizer, tmp_path, monkeypatch):
    tokenizer.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ItemTable, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        make(num_feedback_levels=0).save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    file = tmp_path / "items.json"
    with pytest.raises(ValueError, match="is a file"):
        tokenizer.save_pretrained(file)


def test_constructing_without_a_catalogue_says_how_to(tmp_path):
    with pytest.raises(ValueError, match="from_codes"):
        HiGRTokenizer()
    with pytest.raises(ValueError, match=r"lacks tokenizer.json and item_sids.safetensors and items.json"):
        HiGRTokenizer(codebook_sizes=[2])


SCRIPT = """
import sys
sys.modules["higr_hf"] = None  # as on a machine where it is not installed
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(tokenizer).__module__.startswith("transformers_modules."), type(tokenizer)
batch = tokenizer.encode_prompts([["milk", "tea"], []], feedback=[[2, None], []])
print(tokenizer.fingerprint, batch["input_ids"].tolist(), tokenizer.token_ids_to_items(batch["input_ids"]))
tokenizer.save_pretrained(sys.argv[2])
again = AutoTokenizer.from_pretrained(sys.argv[2], trust_remote_code=True)
assert again.fingerprint == tokenizer.fingerprint
"""


def test_a_process_without_the_package_loads_it(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "one")
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "one"), str(tmp_path / "two")],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    batch = tokenizer.encode_prompts([["milk", "tea"], []], feedback=[[2, None], []])
    expected = f"{tokenizer.fingerprint} {batch['input_ids'].tolist()} {[['milk', 'tea'], []]}"
    assert done.stdout.strip().splitlines()[-1] == expected


def test_a_large_catalogue_loads_in_seconds(tmp_path):
    n = 200_000
    codes = np.stack(np.unravel_index(np.random.default_rng(0).permutation(64**3)[:n], (64, 64, 64)), axis=1)
    tokenizer = HiGRTokenizer.from_codes([f"item-{i}" for i in range(n)], codes, [64, 64, 64])
    tokenizer.save_pretrained(tmp_path)
    start = time.perf_counter()
    loaded = HiGRTokenizer.from_pretrained(tmp_path)
    seconds = time.perf_counter() - start
    assert loaded.item_to_index("item-199999") == n - 1
    assert loaded.token_ids_to_indices(loaded.items_to_token_ids([5, 7])).tolist() == [5, 7]
    assert seconds < 10, f"{seconds:.1f} s for {n} items"
