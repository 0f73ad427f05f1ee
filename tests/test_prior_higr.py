"""The catalogue prior: its codes multiply to a softmax over items, and its gradients are that softmax's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from higr_hf.prior_higr import MISSING_CODE, CatalogPrior, path_logits
from tests.model_tester import HiGRModelTester


@pytest.fixture
def setting():
    tester = HiGRModelTester()
    model = tester.model(catalog_prior=True)
    plans = torch.randn(tester.num_items, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
    return tester, model, plans


def of_targets(logits: tuple[torch.Tensor, ...], codes: torch.Tensor, offset: int) -> torch.Tensor:
    """Sum of the added logits at each row's own codes; special tokens stand before the codes of level 0."""
    row = torch.arange(len(codes))
    return sum(group[row, codes[:, level] + (offset if level == 0 else 0)] for level, group in enumerate(logits))


def test_the_codes_shares_multiply_to_a_softmax_over_the_catalogue(setting):
    tester, model, plans = setting
    trie, vectors = model.model.trie(), model.model.ranked_item_vectors()
    added = path_logits(trie, model.config, plans, vectors, trie.prefixes(tester.codes))
    got = of_targets(added, tester.codes, model.config.level_offsets[0])
    expected = (plans @ model.item_vectors().T).log_softmax(-1).diagonal()
    torch.testing.assert_close(got, expected)
    for tensor in (plans, model.model.embeddings.embed_tokens.weight, model.model.embeddings.embed_items.weight):
        ours, theirs = (torch.autograd.grad(x.sum(), tensor, retain_graph=True)[0] for x in (got, expected))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_every_code_of_a_level_has_its_share_or_is_missing(setting):
    tester, model, plans = setting
    trie, config = model.model.trie(), model.config
    nodes = trie.prefixes(tester.codes)
    added = path_logits(trie, config, plans, model.model.ranked_item_vectors(), nodes)
    scores = (plans @ model.item_vectors().T).exp()
    for row, codes in enumerate(tester.codes.tolist()):
        for level in range(config.num_levels):
            below = (tester.codes[:, :level] == torch.tensor(codes[:level])).all(1)
            first = config.level_offsets[0] if level == 0 else 0
            for code in range(config.codebook_sizes[level]):
                item = below & (tester.codes[:, level] == code)
                share = (scores[row, item].sum() / scores[row, below].sum()).log().item()
                wanted = share if bool(item.any()) else MISSING_CODE
                assert added[level][row, first + code].item() == pytest.approx(wanted, abs=1e-4)


def test_a_search_and_a_path_read_the_same_logits(setting):
    tester, model, plans = setting
    trie, vectors = model.model.trie(), model.model.ranked_item_vectors()
    nodes = trie.prefixes(tester.codes)
    path = path_logits(trie, model.config, plans, vectors, nodes)
    prior = CatalogPrior(trie, model.config, plans, vectors)
    for level in range(model.config.num_levels):
        logits = prior.logits(level, nodes[:, max(level - 1, 0)])
        torch.testing.assert_close(logits, path[level])


@pytest.mark.parametrize("with_added", [False, True])
def test_scoring_plan_vectors_in_blocks_changes_nothing(setting, monkeypatch, with_added):
    tester, model, _ = setting
    trie, vectors = model.model.trie(), model.model.ranked_item_vectors().detach().requires_grad_()
    generator = torch.Generator().manual_seed(3)
    plans = torch.randn(50, 16, generator=generator, requires_grad=True)
    added = torch.randn(50, tester.num_items, generator=generator) if with_added else None
    nodes = trie.prefixes(tester.codes[torch.arange(50) % tester.num_items])
    weights = torch.randn(50, model.config.largest_group, generator=generator)
    results = []
    for cached in (2**18, 16 * tester.num_items):  # one block, and four
        monkeypatch.setattr("higr_hf.prior_higr.CACHED_SCORES", cached)
        logits = path_logits(trie, model.config, plans, vectors, nodes, added)
        total = sum((level * weights[:, : level.shape[1]]).sum() for level in logits)
        results.append((*logits, *torch.autograd.grad(total, (plans, vectors))))
    for whole, blocks in zip(*results, strict=True):
        torch.testing.assert_close(blocks, whole, atol=1e-5, rtol=1e-4)


def test_below_an_unknown_prefix_nothing_is_added(setting):
    _, model, plans = setting
    trie, vectors = model.model.trie(), model.model.ranked_item_vectors()
    nodes = torch.full((len(plans), 3), -1)
    added = path_logits(trie, model.config, plans, vectors, nodes)
    assert not any(level.any() for level in added[1:])
    sum(level.sum() for level in added).backward()
    assert plans.grad.isfinite().all()


@settings(max_examples=30)
@given(st.data())
def test_prefixes_name_every_node_of_an_item_and_nothing_else(data):
    tester = HiGRModelTester()
    trie = tester.model().model.trie()
    codes = [data.draw(st.integers(-1, size - 1)) for size in tester.codebook_sizes]
    nodes = trie.prefixes(torch.tensor(codes)).tolist()
    for level, node in enumerate(nodes):
        prefix = torch.tensor(codes[: level + 1])
        below = (tester.codes[:, : level + 1] == prefix).all(1).nonzero().flatten().tolist()
        if not below or -1 in codes[: level + 1]:
            assert node == -1
        else:
            first, last = trie.first_rank[level][node], trie.first_rank[level][node + 1]
            assert sorted(trie.order[first:last].tolist()) == below


def test_scores_far_apart_stay_finite(setting):
    tester, model, _ = setting
    plans = 1e3 * torch.randn(4, 16, generator=torch.Generator().manual_seed(2))
    plans.requires_grad_()
    trie = model.model.trie()
    added = path_logits(trie, model.config, plans, model.model.ranked_item_vectors(), trie.prefixes(tester.codes[:4]))
    loss = -of_targets(added, tester.codes[:4], model.config.level_offsets[0]).sum()
    loss.backward()
    assert loss.isfinite()
    assert plans.grad.isfinite().all()


def test_an_unspoken_generator_leaves_the_catalogue_softmax(setting):
    """The slate loss of a generator that says nothing is the cross-entropy of a softmax over the catalogue."""
    tester, model, _ = setting
    config = model.config
    with torch.no_grad():
        model.lm_head.proj.zero_()
        # The special tokens that share the softmax of level 0 are put out of the way.
        sequence = torch.tensor([[config.bos_token_id, *tester.item_tokens(config, [3, 5, 9])]])
        queries = torch.tensor([[[3, 0, 0, -1, 3, 0]]])
        loss = model(sequence, slate_queries=queries).generator_loss * config.num_levels
        plan = model.model(sequence, slate_queries=queries).plans[0, 0]
        expected = -(model.item_vectors() @ plan).log_softmax(0)[9]
        # A share of 1/K a special token stands beside the codes' whole of 1.
        others = config.level_offsets[0] / config.codebook_sizes[0]
    assert loss.item() == pytest.approx(expected.item() + torch.tensor(1 + others).log().item(), rel=1e-4)


def test_a_model_without_a_catalogue_says_so():
    model = HiGRModelTester().model(catalog_prior=True)
    model.model.item_codes.fill_(-1)
    model.model._trie = None
    with pytest.raises(ValueError, match="no catalogue"):
        model(torch.tensor([[1, 3]]))
