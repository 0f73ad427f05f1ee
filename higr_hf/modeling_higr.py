"""HiGR: a hierarchical slate recommender (arXiv 2512.24787) as a `transformers` model.

Three stages turn a history into a slate: a *context encoder* over the history's units, a heavy *slate planner* that
writes one plan vector a slot, and a light *item generator* that spells the semantic ID of each slot's item from its
plan vector. All of it lives in [`HiGRModel`], whose hidden states are aligned with the flat token sequence (position t
predicts token t + 1), so that [`HiGRForSlateGeneration`] is one linear layer on top and any causal-LM trainer works.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .catalog_higr import SIDTrie
from .configuration_higr import HiGRConfig
from .generation_higr import SlateGenerationMixin
from .item_item_higr import ItemItemScores
from .layers_higr import HiGRDropout, KeyValue, additive_mask, rotary_table
from .layout_higr import SlateLayout, SlateQueries, level_offsets
from .prior_higr import path_logits
from .repeats_higr import RepeatScores
from .stages_higr import ContextEncoder, ItemEmbeddings, ItemGenerator, PlanProjection, SemanticIDHead, SlatePlanner
from .trends_higr import TrendScores
from .weights_higr import load_checked

if TYPE_CHECKING:
    # Saving copies the files that this one names in relative imports: the pipeline travels with every checkpoint.
    from .pipeline_higr import SlateRecommendationPipeline  # noqa: F401


@dataclass
class HiGRModelOutput(ModelOutput):
    """What the three stages computed.

    Args:
        last_hidden_state (`FloatTensor [B, T, d + L]`, *optional*):
            Aligned with the flat tokens: position t predicts token t + 1. The last L entries name, one-hot, which
            group of the vocabulary comes next (see [`SemanticIDHead`]). Given when no `slate_queries` were passed.
        generator_states (`FloatTensor [B, Q, L, d]`, *optional*):
            State from which code l of the query's target item is predicted. Given with `slate_queries`.
        prior_logits (tuple of L `FloatTensor [B, Q, size of the group]`, *optional*):
            What the catalogue prior adds to the logits of each level. Given with `slate_queries`.
        plans (`FloatTensor [B, Q, d]`): One plan vector a query.
        unit_codes (`LongTensor [B, U, L]`): Codes of every unit of the input, -1 where there is none.
        unit_items (`LongTensor [B, U]`, *optional*): Catalogue index of every unit, -1 where it is no known item.
    """

    last_hidden_state: torch.FloatTensor | None = None
    generator_states: torch.FloatTensor | None = None
    prior_logits: tuple[torch.FloatTensor, ...] | None = None
    plans: torch.FloatTensor | None = None
    unit_codes: torch.LongTensor | None = None
    unit_items: torch.LongTensor | None = None


@dataclass
class HiGRSlateOutput(ModelOutput):
    """What [`HiGRForSlateGeneration`] returns.

    Args:
        loss (`FloatTensor []`, *optional*): With `labels`: mean cross-entropy over the labelled tokens. With
            `slate_queries`: generator loss + `dense_loss_weight` × dense loss.
        logits (`FloatTensor [B, T, vocab_size]`, *optional*): Flat next-token logits.
        generator_loss (`FloatTensor []`, *optional*): Cross-entropy a code token, over all target codes.
        dense_loss (`FloatTensor []`, *optional*): Cross-entropy over the catalogue, over all targets in it.
        plans (`FloatTensor [B, Q, d]`, *optional*): One plan vector a query.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    generator_loss: torch.FloatTensor | None = None
    dense_loss: torch.FloatTensor | None = None
    plans: torch.FloatTensor | None = None


class HiGRPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation shared by the HiGR models."""

    config_class = HiGRConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ("HiGREncoderLayer", "HiGRPlannerLayer", "HiGRGeneratorLayer")
    # The Trainer divides the loss by the accumulation steps itself; our losses are means over one batch.
    accepts_loss_kwargs = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load from a directory or the Hub, see [`~transformers.PreTrainedModel.from_pretrained`].

        Raises:
            ValueError: for a truncated or corrupt weights file, by its name; for a configuration whose sizes are not
                those of the weights, before anything is allocated; for `use_safetensors=False`.
        """
        return load_checked(super().from_pretrained, cls, pretrained_model_name_or_path, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, SemanticIDHead):
            nn.init.normal_(module.proj, std=std)
        elif isinstance(module, PlanProjection):  # before its base class
            nn.init.eye_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, nn.Embedding):
            wide = self.config.embedding_range
            if wide is None:
                wide = std if self.config.catalog_prior else self.config.hidden_size**-0.5
            nn.init.normal_(module.weight, std=wide)
            if module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, ItemItemScores):
            module.neighbours.zero_()
            module.weights.zero_()
        elif isinstance(module, TrendScores):
            module.events.zero_()
        elif isinstance(module, RepeatScores):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, HiGRModel):
            # Buffers that a checkpoint does not hold come from here, never from uninitialised memory.
            module.item_codes.fill_(-1)
            module.item_active.fill_(True)


class HiGRModel(HiGRPreTrainedModel):
    """Context encoder, slate planner and item generator, without a head.

    Example:

    ```python
    >>> import torch
    >>> from higr_hf import HiGRConfig, HiGRModel
    >>> config = HiGRConfig.from_preset("tiny", codebook_sizes=[4, 4], item_embedding=False, dense_head=False)
    >>> model = HiGRModel(config).eval()
    >>> a, b = config.level_offsets
    >>> ids = torch.tensor([[config.bos_token_id, a + 1, b + 2, config.slate_token_id, a, b]])
    >>> model(ids).last_hidden_state.shape  # width 64, and one more for each of the two levels
    torch.Size([1, 6, 66])

    ```
    """

    def __init__(self, config: HiGRConfig) -> None:
        super().__init__(config)
        self.embeddings = ItemEmbeddings(config)
        self.encoder = ContextEncoder(config)
        self.planner = SlatePlanner(config)
        copies = 1 if config.shared_generator else config.slate_size
        self.generators = nn.ModuleList(ItemGenerator(config) for _ in range(copies))
        self.item_item = ItemItemScores(config) if config.item_item_decays else None
        self.repeats = RepeatScores(config) if config.repeat_decays else None
        self.trends = TrendScores(config) if config.trend_days else None
        self.dropout = HiGRDropout(config.dropout)
        self.gradient_checkpointing = False
        self.register_buffer("item_codes", torch.full((config.num_items, config.num_levels), -1, dtype=torch.long))
        self.register_buffer("item_active", torch.ones(config.num_items, dtype=torch.bool))
        self._trie: SIDTrie | None = None
        self._trie_source: tuple | None = None
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embeddings, `[vocab_size, d]`."""
        return self.embeddings.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embeddings."""
        self.embeddings.embed_tokens = value

    @torch.no_grad()
    def set_catalog(self, codes: torch.Tensor, active: torch.Tensor | None = None) -> None:
        """Give the model its catalogue, so that it can decode items and knows their vectors.

        Args:
            codes (`LongTensor [N, L]`): unique semantic IDs by item index; N must be `config.num_items`.
            active (`BoolTensor [N]`, *optional*): `False` for removed items, which are read in histories but never
                recommended; all are active when left out.

        Raises:
            ValueError: when the shape does not fit the configuration, a code is outside its level, or two items share
                a semantic ID.
        """
        codes = torch.as_tensor(codes, dtype=torch.long)
        if tuple(codes.shape) != tuple(self.item_codes.shape):
            raise ValueError(
                f"The model was configured for {self.config.num_items} items of {self.config.num_levels} levels; the "
                f"catalogue given has shape {list(codes.shape)}. Build the config with num_items={len(codes)}."
            )
        SIDTrie.build(codes, self.config.codebook_sizes)
        self.item_codes.copy_(codes)
        self.item_active.copy_(torch.ones(len(codes), dtype=torch.bool) if active is None else torch.as_tensor(active))
        self._trie = None

    def _catalog_source(self) -> tuple:
        return self.item_codes.data_ptr(), self.item_codes.device, self.item_codes._version

    @property
    def has_catalog(self) -> bool:
        """Whether the model can decode items: a catalogue has been set, or came with the checkpoint."""
        if self._trie is not None and self._trie_source == self._catalog_source():
            return True
        return self.config.num_items > 0 and bool((self.item_codes[0] >= 0).all())

    def trie(self) -> SIDTrie:
        """The catalogue's prefix tree, built on first use on the device the catalogue is on.

        Raises:
            ValueError: when the model has no catalogue.
        """
        source = self._catalog_source()
        if self._trie is None or self._trie_source != source:
            if not self.has_catalog:
                raise ValueError(
                    "This model has no catalogue. Build its config with num_items=N and call "
                    "`model.set_catalog(tokenizer.codes)`, or load a checkpoint that was saved with one."
                )
            self._trie, self._trie_source = SIDTrie.build(self.item_codes, self.config.codebook_sizes), source
        return self._trie

    def unit_items(self, layout: SlateLayout) -> torch.Tensor | None:
        """Catalogue index of every unit `[B, U]`, -1 for units that are no known item; `None` without a catalogue."""
        return self.trie().lookup(layout.codes) if self.has_catalog else None

    def rotary(self, positions: torch.Tensor) -> KeyValue:
        """Rotary tables of unit positions `[B, T]`."""
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        dtype = self.planner.norm.weight.dtype
        return rotary_table(positions, head_dim, self.config.rope_theta, dtype)

    def encode(self, units: torch.Tensor, num_history: torch.Tensor) -> tuple[torch.Tensor, KeyValue]:
        """Encode the history.

        Args:
            units (`[B, U, d]`): unit vectors.
            num_history (`LongTensor [B]`): how many of them are history.

        Returns:
            The context `[B, U, d]` and the rotary tables of its positions.
        """
        rotary = self.rotary(torch.arange(units.shape[1], device=units.device)[None])
        return self.encoder(self.dropout(units), num_history, rotary), rotary

    def query_inputs(
        self, encoded: torch.Tensor, queries: SlateQueries, fed: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What the planner is fed, one vector a query.

        The sum of four: the item of the slot before (or the slate's start where none is fed), the slot's number, the
        wish, and the encoder's state of the newest event that the query may see.

        Args:
            encoded (`[B, U, d]`): the encoded history.
            queries: the queries.
            fed (`[B, Q, d]`, *optional*): vectors of the items fed; used where `queries.previous >= 0`.

        Returns:
            `[B, Q, d]`.
        """
        start = self.embeddings.embed_tokens.weight[self.config.slate_token_id]
        inputs = start.expand(*queries.slot.shape, -1)
        if fed is not None:
            inputs = torch.where(queries.previous[..., None] >= 0, fed, inputs)
        newest = (queries.context - 1).clamp(min=0)[..., None].expand(-1, -1, encoded.shape[-1])
        inputs = inputs + encoded.gather(1, newest)
        return inputs + self.planner.slots(queries.slot) + self.embeddings.embed_tokens(queries.wish)

    def spell(
        self, plans: torch.Tensor, codes: torch.Tensor, slot: torch.Tensor, context: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Teacher-forced item generation for all queries at once.

        Args:
            plans (`[B, Q, d]`): plan vectors.
            codes (`LongTensor [B, Q, L]`): codes of each query's target (anything where there is none).
            slot (`LongTensor [B, Q]`): slot of each query.
            context (`[B, U, d]`): the encoded history.
            mask (`[B, 1, Q, U]`): the history each query may see, boolean or additive.

        Returns:
            `[B, Q, L, d]`: states from which code l is predicted.
        """
        levels = self.config.num_levels
        offsets = level_offsets(self.config, codes.device)
        tokens = self.embeddings.embed_tokens((codes.clamp(min=0) + offsets)[..., :-1])
        steps = torch.cat([plans.unsqueeze(2), tokens], dim=2)
        mask = mask.repeat_interleave(levels, dim=2)
        if self.config.shared_generator:
            return self.generators[0](steps, self.generators[0].key_values(context), mask)[0]
        states = torch.zeros_like(steps)
        for index, generator in enumerate(self.generators):
            last = index == len(self.generators) - 1
            chosen = (slot >= index) if last else (slot == index)
            mine = generator(steps, generator.key_values(context), mask)[0]
            states = torch.where(chosen[..., None, None], mine, states)
        return states

    def ranked_item_vectors(self) -> torch.Tensor:
        """The vector of every catalogue item in the order of the prefix tree, `[N, d]`, differentiable."""
        order = self.trie().order
        return self.embeddings.items(self.item_codes[order], order)

    def prior_logits(
        self,
        plans: torch.Tensor,
        codes: torch.Tensor,
        added: torch.Tensor | None = None,
        spoken: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """What the catalogue prior adds to the logits on the way to each query's target.

        Args:
            plans (`[B, Q, d]`): plan vectors.
            codes (`LongTensor [B, Q, L]`): codes of the targets, -1 where there is none.
            added (`FloatTensor [B, Q, N]`, *optional*): item-item scores.
            spoken (`LongTensor [B, Q, S]` and `FloatTensor [B, Q, S]`, *optional*): repeat scores of some items.

        Returns:
            A level a tensor `[B, Q, size of the group]`.

        Raises:
            ValueError: when the model has no catalogue.
        """
        nodes = self.trie().prefixes(codes).flatten(0, 1)
        added = None if added is None else added.flatten(0, 1)
        spoken = None if spoken is None else tuple(part.flatten(0, 1) for part in spoken)
        vectors = self.ranked_item_vectors()
        logits = path_logits(self.trie(), self.config, plans.flatten(0, 1), vectors, nodes, added, spoken)
        return tuple(level.unflatten(0, plans.shape[:2]).to(plans.dtype) for level in logits)

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        slate_queries: torch.LongTensor | None = None,
        **kwargs,
    ) -> HiGRModelOutput:
        r"""
        Args:
            input_ids (`LongTensor [B, T]`): flat tokens.
            attention_mask (`[B, T]`, *optional*): 1 for real tokens; padding may stand on either side.
            slate_queries (`LongTensor [B, Q, 6]`, *optional*): which slots to predict, see [`SlateQueries`]; made by
                `SlateCollator` to train many slates of a history at once. Without it the flat causal-LM reading is
                used.
            **kwargs: `use_cache`, `position_ids` and the like, which trainers send; not used.

        Returns:
            [`HiGRModelOutput`].
        """
        if input_ids is None or input_ids.dim() != 2 or input_ids.shape[1] == 0:
            raise ValueError("input_ids must have shape [batch, tokens] with at least one token (`<bos>`).")
        layout = SlateLayout.parse(input_ids, attention_mask, self.config)
        counted = self.item_item is not None or self.repeats is not None
        named = self.config.item_embedding or counted or slate_queries is not None
        items = self.unit_items(layout) if named else None
        units = self.embeddings.units(input_ids, layout, items)
        context, context_rotary = self.encode(units, layout.num_history)

        queries = SlateQueries.flat(layout) if slate_queries is None else SlateQueries.unpack(slate_queries)
        context_mask, self_mask = (additive_mask(mask, context.dtype) for mask in queries.masks(layout.size))
        rotary = self.rotary(queries.context + queries.slot)
        # A search feeds back items it has chosen, of which no feedback or time is known: so does training.
        has_features = self.config.num_feedback_levels + self.config.num_time_buckets > 0
        bare = self.embeddings.units(input_ids, layout, items, with_features=False) if has_features else units
        fed = bare.gather(1, queries.previous.clamp(min=0)[..., None].expand(-1, -1, units.shape[-1]))
        plans, _ = self.planner(
            self.dropout(self.query_inputs(context, queries, fed)),
            self.planner.key_values(context, context_rotary),
            context_mask,
            self_mask,
            rotary,
        )
        index = queries.target.clamp(min=0)[..., None].expand(-1, -1, self.config.num_levels)
        codes = layout.codes.gather(1, index)
        states = self.spell(plans, codes, queries.slot, context, context_mask)
        prior = None
        if self.config.catalog_prior:
            added = None if self.item_item is None else self.item_item.of_queries(items, queries.context)
            spoken = None if self.repeats is None else self.repeats.of_queries(items, queries.context)
            prior = self.prior_logits(plans, codes, added, spoken)
        if slate_queries is not None:
            return HiGRModelOutput(
                generator_states=states, prior_logits=prior, plans=plans, unit_codes=layout.codes, unit_items=items
            )
        if prior is not None:
            groups = [nn.functional.pad(logits, (0, self.config.largest_group - logits.shape[-1])) for logits in prior]
            states = torch.cat([states, torch.stack(groups, dim=2)], dim=-1)
        hidden = self._to_flat(states, layout)
        return HiGRModelOutput(last_hidden_state=hidden, plans=plans, unit_codes=layout.codes, unit_items=items)

    def _to_flat(self, states: torch.Tensor, layout: SlateLayout) -> torch.Tensor:
        """Bring `states [B, U, L, d]` to the flat positions that predict from them, and append the group's one-hot.

        The last token of a unit asks for the next unit's first code; a code inside an item for the item's next code.
        A position that is followed by a feature token predicts nothing we model: it gets a zero state, a uniform
        distribution that teaches and costs nothing. So does every history position of a bidirectional encoder, which
        has already seen what it would predict.
        """
        levels, width = self.config.num_levels, states.shape[-1]
        inner = (layout.level >= 0) & (layout.level < levels - 1)  # more codes of this item follow
        inside = inner & (layout.unit > 0)
        query = torch.where(inside, layout.unit - 1, layout.unit)
        step = torch.where(inside, layout.level + 1, 0)
        known = inside | (layout.boundary & ~inner)
        if self.config.encoder_attention == "bidirectional":
            known = known & (query >= layout.num_history[:, None])
        index = (query.clamp(0, layout.size - 1) * levels + step)[..., None].expand(-1, -1, width)
        hidden = states.flatten(1, 2).gather(1, index)
        hidden = torch.where(known[..., None], hidden, 0)
        group = torch.where(inner, layout.level + 1, 0)
        return torch.cat([hidden, nn.functional.one_hot(group, levels).to(hidden.dtype)], dim=-1)


class HiGRForSlateGeneration(HiGRPreTrainedModel, SlateGenerationMixin):
    """HiGR with its head: trains on slates or as a flat causal language model, and generates slates.

    Example:

    ```python
    >>> import torch
    >>> from higr_hf import HiGRConfig, HiGRForSlateGeneration
    >>> codes = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    >>> config = HiGRConfig.from_preset("tiny", codebook_sizes=[4, 4], num_items=16)
    >>> model = HiGRForSlateGeneration(config).eval()
    >>> model.set_catalog(codes)
    >>> a, b = config.level_offsets
    >>> prompt = torch.tensor([[config.bos_token_id, a + 1, b + 2, config.slate_token_id]])
    >>> out = model.generate(prompt, slate_size=3, exclude=[[6]], return_dict_in_generate=True)
    >>> out.slates.shape, 6 in out.slates
    (torch.Size([1, 3]), False)

    ```
    """

    _tied_weights_keys = None

    def __init__(self, config: HiGRConfig) -> None:
        super().__init__(config)
        self.model = HiGRModel(config)
        self.lm_head = SemanticIDHead(config)
        self.post_init()
        # A fresh object: attributes set on a default one are lost on reload, and a leaked sampling default is silent.
        self.generation_config = GenerationConfig(
            do_sample=False,
            num_beams=config.num_beams,
            pad_token_id=config.pad_token_id,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
        )

    def get_output_embeddings(self) -> SemanticIDHead:
        """The head; `weight` is `[vocab_size, d + L]`."""
        return self.lm_head

    def set_output_embeddings(self, value: SemanticIDHead) -> None:
        """Replace the head."""
        self.lm_head = value

    def set_catalog(self, codes: torch.Tensor, active: torch.Tensor | None = None) -> None:
        """See [`HiGRModel.set_catalog`]."""
        self.model.set_catalog(codes, active)

    def check_tokenizer(self, tokenizer) -> None:
        """Refuse a tokenizer that names items differently from the one this model was trained with.

        Raises:
            ValueError: when the fingerprints differ.
        """
        expected = self.config.tokenizer_fingerprint
        found = getattr(tokenizer, "fingerprint", None)
        if expected is not None and found != expected:
            raise ValueError(
                f"This tokenizer does not belong to the model: its fingerprint is {found}, the model was trained with "
                f"{expected}. Load the tokenizer from the model's own directory."
            )

    def item_vectors(self) -> torch.Tensor:
        """The vector of every catalogue item, `[N, d]`, differentiable."""
        index = torch.arange(self.config.num_items, device=self.model.item_codes.device)
        return self.model.embeddings.items(self.model.item_codes, index)

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        slate_queries: torch.LongTensor | None = None,
        **kwargs,
    ) -> HiGRSlateOutput:
        r"""
        Args:
            input_ids (`LongTensor [B, T]`): flat tokens.
            attention_mask (`[B, T]`, *optional*): 1 for real tokens.
            labels (`LongTensor [B, T]`, *optional*): token ids, -100 where no loss is wanted; shifted inside. Feature
                tokens are inputs and never count.
            slate_queries (`LongTensor [B, Q, 6]`, *optional*): train on these slots instead, see [`SlateQueries`].

        Returns:
            [`HiGRSlateOutput`].
        """
        outputs = self.model(input_ids, attention_mask=attention_mask, slate_queries=slate_queries, **kwargs)
        if slate_queries is not None:
            return self._slate_loss(outputs, SlateQueries.unpack(slate_queries))
        logits = self.lm_head(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            first_code = self.config.level_offsets[0]
            is_feature = (labels >= self.config.feature_offset) & (labels < first_code)
            targets = labels.masked_fill(is_feature, -100)[:, 1:]
            loss = nn.functional.cross_entropy(
                logits[:, :-1].float().flatten(0, 1), targets.flatten(), ignore_index=-100
            )
        return HiGRSlateOutput(loss=loss, logits=logits, plans=outputs.plans)

    def _slate_loss(self, outputs: HiGRModelOutput, queries: SlateQueries) -> HiGRSlateOutput:
        """Cross-entropy over the codes of every target, and over the catalogue for the dense head."""
        # Unasked queries are ignored by label, not by indexing: no shape depends on the data, nothing waits for a GPU.
        asked = queries.target >= 0
        target = queries.target.clamp(min=0)
        if self.config.catalog_prior:  # it knows nothing of codes that are no item's
            asked = asked & (outputs.unit_items.gather(1, target) >= 0)
        codes = outputs.unit_codes.gather(1, target[..., None].expand(-1, -1, self.config.num_levels))
        codes = codes.masked_fill(~asked[..., None], -100)
        total = 0.0
        for level in range(self.config.num_levels):
            logits = self.lm_head.group_logits(outputs.generator_states[:, :, level], level)
            if outputs.prior_logits is not None:
                logits = logits + outputs.prior_logits[level]
            logits = logits.float()
            labels = codes[:, :, level]
            if level == 0:  # the group of level 0 also holds the special tokens
                labels = torch.where(labels >= 0, labels + self.config.level_offsets[0], labels)
            total = total + nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        # A batch without targets has loss 0, not NaN.
        generator_loss = total / (asked.sum() * self.config.num_levels).clamp(min=1)
        loss, dense_loss = generator_loss, None
        if self.config.dense_head and self.config.dense_loss_weight:
            items = outputs.unit_items.gather(1, target)
            items = torch.where(asked & (items >= 0), items, -100)
            scores = (outputs.plans @ self.item_vectors().T).float()
            dense_loss = nn.functional.cross_entropy(scores.flatten(0, 1), items.flatten(), reduction="sum")
            dense_loss = dense_loss / (items >= 0).sum().clamp(min=1)
            loss = loss + self.config.dense_loss_weight * dense_loss
        return HiGRSlateOutput(
            loss=loss,
            generator_loss=generator_loss.detach(),
            plans=None,
            dense_loss=None if dense_loss is None else dense_loss.detach(),
        )


HiGRModel.register_for_auto_class("AutoModel")
HiGRForSlateGeneration.register_for_auto_class("AutoModelForCausalLM")

__all__ = [
    "HiGRForSlateGeneration",
    "HiGRModel",
    "HiGRModelOutput",
    "HiGRPreTrainedModel",
    "HiGRSlateOutput",
]
