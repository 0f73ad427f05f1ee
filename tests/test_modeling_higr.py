from __future__ import annotations

import pytest
import torch

from higr_hf import HiGRConfig, HiGRForSlateGeneration, HiGRModel
from higr_hf.layout_higr import SlateLayout, SlateQueries

HISTORY, SLATE = [3, 4, 5, 6], [7, 8, 9, 10]


def log_probs(model, rows):
    """Flat next-token log-probabilities of a padded batch, gathered at the tokens themselves."""
    with torch.no_grad():
        logits = model(**rows).logits
    picked = logits[:, :-1].log_softmax(-1).gather(-1, rows["input_ids"][:, 1:, None]).squeeze(-1)
    return torch.cat([torch.zeros(len(picked), 1), picked], dim=1)


def test_the_layout_reads_units_from_the_tokens(tester):
    config = tester.config()
    wish = config.feature_offset + 2
    prompt = tester.prompt(config, [3, 4])
    feedback = config.feature_offset + 1
    row = [*prompt[:4], feedback, *prompt[4:], wish, *tester.item_tokens(config, [5])]
    layout = SlateLayout.parse(torch.tensor([row]), None, config)
    assert layout.unit.tolist() == [[0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4]]
    assert layout.num_units.tolist() == [5]
    assert layout.num_history.tolist() == [3]
    assert layout.wish.tolist() == [wish]
    assert layout.codes[0, 1].tolist() == tester.codes[3].tolist()
    assert layout.codes[0, 4].tolist() == tester.codes[5].tolist()
    assert layout.codes[0, [0, 3]].eq(-1).all()
    assert layout.boundary.tolist() == [
        [True, *[False] * 3, True, *[False] * 2, True, False, True, False, False, True]
    ]


def test_flat_queries_start_a_slate_at_every_history_position(tester):
    config = tester.config()
    layout = SlateLayout.parse(torch.tensor([tester.flat(config, [3, 4], [5, 6])]), None, config)
    queries = SlateQueries.flat(layout)
    # units: <bos> 3 4 <slate> 5 6 <eos>
    assert queries.context.tolist() == [[1, 2, 3, 3, 3, 3, 3]]
    assert queries.slot.tolist() == [[0, 0, 0, 0, 1, 2, 3]]
    assert queries.previous.tolist() == [[-1, -1, -1, -1, 4, 5, 6]]
    assert queries.target.tolist() == [[1, 2, 3, 4, 5, 6, -1]]
    assert queries.masks(7)[1][0, 0, 4].tolist() == [False, False, False, True, True, False, False]


@pytest.mark.parametrize("catalog_prior", [False, True])
def test_each_position_is_a_distribution_over_its_own_group(tester, catalog_prior):
    model = tester.model(catalog_prior=catalog_prior)
    config = model.config
    row = tester.flat(config, HISTORY, SLATE)
    with torch.no_grad():
        probs = model(torch.tensor([row])).logits.softmax(-1)[0]
    offsets = [*config.level_offsets, config.vocab_size]
    for position, token in enumerate(row):
        level = sum(token >= offset for offset in config.level_offsets) - 1
        group = level + 1 if 0 <= level < config.num_levels - 1 else 0
        inside = slice(0, offsets[1]) if group == 0 else slice(offsets[group], offsets[group + 1])
        assert probs[position, inside].sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("catalog_prior", [False, True])
def test_the_head_s_weight_gives_the_logits(tester, catalog_prior):
    """Trainers of the DPO family never call the model: they multiply hidden states with the head's weight."""
    model = tester.model(catalog_prior=catalog_prior)
    batch = tester.batch([tester.flat(model.config, HISTORY, SLATE)])
    with torch.no_grad():
        hidden = model.model(**batch).last_hidden_state
        by_weight = hidden @ model.get_output_embeddings().weight.T
        assert torch.allclose(by_weight, model(**batch).logits, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("encoder", ["causal", "bidirectional"])
@pytest.mark.parametrize("catalog_prior", [False, True])
def test_padding_changes_nothing(tester, side, encoder, catalog_prior):
    model = tester.model(encoder_attention=encoder, catalog_prior=catalog_prior)
    long, short = tester.flat(model.config, HISTORY, SLATE), tester.flat(model.config, [11], [1, 2, 3, 4])
    together = tester.batch([long, short], side=side, pad_to=40)
    padded = log_probs(model, together)
    for number, row in enumerate((long, short)):
        alone = log_probs(model, tester.batch([row]))
        real = together["attention_mask"][number].bool()
        assert torch.allclose(padded[number][real][1:], alone[0][1:], atol=1e-4)


@pytest.mark.parametrize("unit", range(1, 9))
def test_changing_an_item_changes_no_earlier_prediction(tester, unit):
    model = tester.model()
    items = [*HISTORY, *SLATE]
    changed = list(items)
    changed[unit - 1] = 20
    before, after = (tester.batch([tester.flat(model.config, row[:4], row[4:])]) for row in (items, changed))
    first_token = 1 + 3 * (unit - 1) + (1 if unit > 4 else 0)  # <slate> stands behind the fourth item
    with torch.no_grad():
        a, b = model(**before), model(**after)
    assert torch.allclose(a.logits[:, :first_token], b.logits[:, :first_token], atol=1e-5)
    query = unit - 1 if unit <= 4 else unit  # units before the changed one; <slate> is unit 5
    assert torch.allclose(a.plans[:, : query + 1], b.plans[:, : query + 1], atol=1e-5)
    assert not torch.allclose(a.logits[:, first_token:], b.logits[:, first_token:], atol=1e-3)


def test_a_sequence_cut_inside_an_item_still_runs(tester):
    model = tester.model()
    row = tester.flat(model.config, HISTORY, SLATE)
    whole = log_probs(model, tester.batch([row]))
    for end in range(2, len(row)):
        cut = log_probs(model, tester.batch([row[:end]]))
        # A feature or a longer item could follow a cut, so only finished tokens are compared.
        assert torch.allclose(cut[0], whole[0, :end], atol=1e-4)
    left_cut = log_probs(model, tester.batch([row[2:]]))
    assert left_cut.isfinite().all()


@pytest.mark.parametrize("catalog_prior", [False, True])
def test_slate_queries_give_the_same_loss_as_the_flat_reading(tester, catalog_prior):
    """One window over the last slate is what the flat reading computes from `<slate>` on."""
    model = tester.model(dense_loss_weight=0.0, catalog_prior=catalog_prior)
    config = model.config
    flat = tester.batch([tester.flat(config, HISTORY, SLATE)])
    labels = flat["input_ids"].clone()
    labels[:, : 1 + 12 + 1] = -100
    labels[:, -1] = -100
    expected = model(**flat, labels=labels).loss
    sequence = torch.tensor([[config.bos_token_id, *tester.item_tokens(config, HISTORY + SLATE)]])
    queries = [[5, slot, 0, 4 + slot if slot else -1, 5 + slot, 0] for slot in range(4)]
    got = model(sequence, slate_queries=torch.tensor([queries])).loss
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_dense_loss_is_a_softmax_over_the_catalogue(tester):
    model = tester.model()
    config = model.config
    sequence = torch.tensor([[config.bos_token_id, *tester.item_tokens(config, HISTORY)]])
    queries = torch.tensor([[[4, 0, 0, -1, 4, 0], [1, 0, 1, -1, -1, 0]]])
    with torch.no_grad():
        out = model(sequence, slate_queries=queries)
        plan = model.model(sequence, slate_queries=queries).plans[0, 0]
        table = model.model.embeddings
        vectors = [
            sum(
                table.embed_tokens.weight[offset + code]
                for offset, code in zip(config.level_offsets, row, strict=True)
            )
            + table.embed_items.weight[index + 1]
            for index, row in enumerate(tester.codes.tolist())
        ]
        scores = torch.stack([plan @ vector for vector in vectors])
    assert out.dense_loss.item() == pytest.approx(-scores.log_softmax(0)[HISTORY[3]].item(), rel=1e-4)
    assert out.loss.item() == pytest.approx((out.generator_loss + out.dense_loss).item(), rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "mean"},
        {"pooling": "max"},
        {"generator_context": False},
        {"shared_generator": False},
        {"item_embedding": False, "dense_head": False},
        {"encoder_attention": "bidirectional"},
        {"generator_layers": 2},
        {"catalog_prior": True},
    ],
    ids=str,
)
def test_every_option_trains_all_its_parameters(tester, options):
    model = tester.model(**options).train()
    sequence = torch.tensor([[1, *tester.item_tokens(model.config, HISTORY + SLATE)]])
    queries = [[5, slot, 0, 4 + slot if slot else -1, 5 + slot, 0] for slot in range(4)]
    out = model(sequence, slate_queries=torch.tensor([queries]))
    out.loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    assert out.loss.isfinite()


@pytest.mark.parametrize("pooling", ["sum", "mean", "max"])
def test_units_and_catalogue_items_pool_alike(tester, pooling):
    """A decoded item is fed back as a catalogue vector; in training it came from its tokens."""
    model = tester.model(pooling=pooling).model
    ids = torch.tensor([[1, *tester.item_tokens(model.config, [5, 6])]])
    layout = SlateLayout.parse(ids, None, model.config)
    units = model.embeddings.units(ids, layout, model.trie().lookup(layout.codes))
    index = torch.tensor([[5, 6]])
    assert torch.allclose(units[:, 1:], model.embeddings.items(tester.codes[index], index), atol=1e-5)


def test_gradient_checkpointing_and_eager_attention_change_nothing(tester):
    batch = tester.batch([tester.flat(tester.config(), HISTORY, SLATE)])
    results = []
    for checkpointing, attention in ((False, "sdpa"), (True, "sdpa"), (False, "eager")):
        model = tester.model(dropout=0.0)
        model.set_attn_implementation(attention)
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        loss = model(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        results.append((loss.detach(), model.model.planner.proj.weight.grad))
    for loss, gradient in results[1:]:
        assert torch.allclose(loss, results[0][0], atol=1e-5)
        assert torch.allclose(gradient, results[0][1], atol=1e-4)


def test_bf16_runs_and_stays_close(tester):
    batch = tester.batch([tester.flat(tester.config(), HISTORY, SLATE)])
    exact = tester.model(initializer_range=0.1)
    rough = tester.model(initializer_range=0.1).to(torch.bfloat16)
    assert torch.allclose(log_probs(exact, batch), log_probs(rough, batch).float(), atol=0.15)
    assert rough.generate(batch["input_ids"][:, :14]).shape == (1, 14 + 4 * 3 + 1)


def test_feature_tokens_are_inputs_and_never_count(tester):
    model = tester.model()
    config = model.config
    plain = [config.bos_token_id, *tester.item_tokens(config, [3, 4])]
    feature = config.feature_offset
    told = [*plain[:4], feature, *plain[4:]]
    ids = torch.tensor([told])
    with torch.no_grad():
        out = model(ids, labels=ids)
        kept = ids.clone()
        kept[0, 4] = -100
        assert out.loss == model(ids, labels=kept).loss
        # Before a feature token nothing is predicted: every token of the group is as likely.
        group = out.logits[0, 3, : config.level_offsets[1]]
        other = model(torch.tensor([[*plain[:4], feature + 1, *plain[4:]]])).logits
    assert group.max() == group.min()
    assert not torch.allclose(out.logits[0, 4], other[0, 4])  # and after it the feature is known


def test_saving_and_loading_keeps_weights_catalogue_and_defaults(tester, tmp_path):
    model = tester.model()
    batch = tester.batch([tester.prompt(model.config, HISTORY)])
    expected = model.generate(batch["input_ids"], return_dict_in_generate=True)
    model.save_pretrained(tmp_path)
    loaded = HiGRForSlateGeneration.from_pretrained(tmp_path)
    got = loaded.generate(batch["input_ids"], return_dict_in_generate=True)
    assert got.slates.equal(expected.slates)
    assert got.scores.equal(expected.scores)
    assert loaded.generation_config.do_sample is False
    assert loaded.generation_config.num_beams == model.config.num_beams
    base = HiGRModel.from_pretrained(tmp_path)
    assert base.item_codes.equal(tester.codes)


def test_a_catalogue_that_does_not_fit_is_refused(tester):
    model = tester.model()
    with pytest.raises(ValueError, match="configured for 24 items of 3 levels"):
        model.set_catalog(tester.codes[:5])
    with pytest.raises(ValueError, match="has no catalogue"):
        HiGRForSlateGeneration(tester.config()).generate(torch.tensor([[1, 3]]))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("codebook_sizes", [], "codebook_sizes"),
        ("codebook_sizes", [2**31, 2**31], "2\\^62"),
        ("hidden_size", 18, "multiple of"),
        ("pooling", "median", "pooling must be one of"),
        ("slate_size", 0, "slate_size must be at least 1"),
        ("dropout", 1.0, "dropout must lie in"),
        ("num_items", -1, "num_items must not be negative"),
    ],
)
def test_a_configuration_that_cannot_work_names_the_field(tester, field, value, message):
    with pytest.raises(ValueError, match=message):
        tester.config(**{field: value})


def test_presets_exist_and_unknown_ones_are_named():
    base = HiGRConfig.from_preset("base")
    assert (base.hidden_size, base.intermediate_size, base.planner_layers, base.generator_layers) == (512, 2048, 14, 2)
    with pytest.raises(ValueError, match="'huge'"):
        HiGRConfig.from_preset("huge")


def test_fresh_weights_are_drawn_as_the_configuration_says():
    def fresh(**options):
        config = HiGRConfig.from_preset("tiny", codebook_sizes=[64, 64, 64], num_items=500, **options)
        torch.manual_seed(0)
        return HiGRForSlateGeneration(config).model

    with_prior, without, chosen = fresh(catalog_prior=True), fresh(), fresh(catalog_prior=True, embedding_range=0.3)
    for model, expected in ((with_prior, 0.02), (without, 64**-0.5), (chosen, 0.3)):
        for table in (model.embeddings.embed_tokens, model.embeddings.embed_items):
            assert table.weight[1:].std().item() == pytest.approx(expected, rel=0.05)
            assert not table.weight[0].any()
        assert model.planner.proj.weight.equal(torch.eye(64))
        assert model.planner.layers[0].mlp.up_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
