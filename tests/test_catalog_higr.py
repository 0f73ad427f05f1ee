from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from higr_hf.catalog_higr import Legality, SIDTrie


@st.composite
def catalogues(draw):
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    total = 1
    for size in sizes:
        total *= size
    flat = draw(st.lists(st.integers(0, total - 1), min_size=1, max_size=min(total, 30), unique=True))
    rows = []
    for number in flat:
        row = []
        for size in reversed(sizes):
            row.append(number % size)
            number //= size
        rows.append(row[::-1])
    return torch.tensor(rows), sizes


@given(catalogues())
def test_walking_the_trie_finds_every_item_once(catalogue):
    codes, sizes = catalogue
    trie = SIDTrie.build(codes, sizes)
    found = {}
    frontier = [((), 0)]
    for depth in range(len(sizes)):
        following = []
        for prefix, node in frontier:
            nodes, exists = trie.children(depth, torch.tensor([node]))
            for child, there in zip(nodes[0].tolist(), exists[0].tolist(), strict=True):
                if there:
                    following.append(((*prefix, int(trie.node_code[depth][child])), child))
        frontier = following
    for prefix, node in frontier:
        found[prefix] = int(trie.order[trie.first_rank[-1][node]])
    assert found == {tuple(row): index for index, row in enumerate(codes.tolist())}


@given(catalogues(), st.data())
def test_counts_below_every_node_match_a_plain_count(catalogue, data):
    codes, sizes = catalogue
    trie = SIDTrie.build(codes, sizes)
    number = len(codes)
    items = st.integers(-1, number - 1)
    rows = data.draw(st.lists(st.lists(items, min_size=5, max_size=5), min_size=1, max_size=3))
    excluded = torch.tensor(rows)
    kind = data.draw(st.sampled_from(["all", "shared", "per row"]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    shape = {"all": None, "shared": (number,), "per row": (len(rows), number)}[kind]
    allowed = None if shape is None else torch.rand(shape, generator=generator) < 0.6
    legality = Legality(trie, len(rows), allowed, excluded[:, :3])
    legality.exclude(excluded[:, 3:])  # in two portions, with repetitions between them
    for row in range(len(rows)):
        mask = torch.ones(number, dtype=torch.bool)
        if allowed is not None:
            mask = (allowed if kind == "shared" else allowed[row]).clone()
        mask[excluded[row][excluded[row] >= 0]] = False
        assert int(legality.remaining()[row]) == int(mask.sum())
        for depth in range(len(sizes)):
            parents = torch.arange(len(trie.child_start[depth]) - 1).expand(len(rows), -1)
            children, legal = (part[row] for part in legality.children(depth, parents))
            ends = trie.first_rank[depth]
            expected = [n for n in range(len(ends) - 1) if mask[trie.order[ends[n] : ends[n + 1]]].any()]
            assert children[legal].tolist() == expected


@given(catalogues())
def test_lookup_inverts_the_table_and_refuses_everything_else(catalogue):
    codes, sizes = catalogue
    trie = SIDTrie.build(codes, sizes)
    assert trie.lookup(codes).tolist() == list(range(len(codes)))
    incomplete = codes.clone()
    incomplete[:, -1] = -1
    assert (trie.lookup(incomplete) == -1).all()
    known = {tuple(row) for row in codes.tolist()}
    every = torch.cartesian_prod(*(torch.arange(size) for size in sizes)).reshape(-1, len(sizes))
    unknown = torch.tensor([row for row in every.tolist() if tuple(row) not in known], dtype=torch.long)
    if len(unknown):
        assert (trie.lookup(unknown) == -1).all()


@pytest.mark.parametrize(
    ("codes", "sizes", "message"),
    [
        ([[0, 0], [1, 1], [0, 0]], [2, 2], r"Items 0 and 2 share the semantic ID \[0, 0\]"),
        ([[0, 2]], [2, 2], "Item 0 has code 2 at level 1"),
        ([[0, 1, 1]], [2, 2], r"shape \[items, 2\]"),
    ],
)
def test_a_bad_catalogue_names_the_item(codes, sizes, message):
    with pytest.raises(ValueError, match=message):
        SIDTrie.build(torch.tensor(codes), sizes)


def test_an_empty_catalogue_is_refused():
    with pytest.raises(ValueError, match="catalogue is empty"):
        SIDTrie.build(torch.empty(0, 2, dtype=torch.long), [2, 2])
