"""A Llama over the same semantic IDs, decoded by transformers' own `generate`: what one has without this package."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

from ..baselines.onerec.search import has_legal_left
from ..catalog_higr import Legality
from ..configuration_higr import HiGRConfig


class SlateTrieProcessor(LogitsProcessor):
    """Lets only tokens through that lead to a legal item which the hypothesis does not hold yet.

    The prefix tree is walked with tensors, all hypotheses at once, as HiGR's own search does it:
    `prefix_allowed_tokens_fn` would call Python for each of them.

    Args:
        legal: what each prompt may be given.
        config: the vocabulary.
        batch_size: B, prompts.
        prompt_length: tokens before the slate.
    """

    def __init__(self, legal: Legality, config: HiGRConfig, batch_size: int, prompt_length: int) -> None:
        self.legal, self.trie, self.config = legal, legal.trie, config
        self.batch_size, self.prompt_length = batch_size, prompt_length
        self.offsets = torch.tensor(config.level_offsets, device=self.trie.order.device)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores `[B·W, V]` with everything else at -inf."""
        levels, trie = self.config.num_levels, self.trie
        beams = len(input_ids) // self.batch_size
        written = input_ids[:, self.prompt_length :].unflatten(0, (self.batch_size, beams))
        slots, depth = divmod(written.shape[2], levels)
        whole = written[..., : slots * levels].unflatten(2, (slots, levels)) - self.offsets
        items = trie.lookup(whole) if slots else written[..., :0]
        ranks = torch.where(items >= 0, trie.rank[items.clamp(min=0)], -1)
        begun = written[..., slots * levels :] - self.offsets[:depth]
        # A dead beam may have spelled what is no item: its node only has to be some valid one.
        nodes = trie.prefixes(begun)[..., -1].clamp(min=0) if depth else written.new_zeros(written.shape[:2])
        children, exists = trie.children(depth, nodes)
        exists = exists & has_legal_left(self.legal, depth, nodes, children, ranks)
        token = trie.node_code[depth][children] + self.offsets[depth]
        # Children that do not exist are written to the padding token, which is then closed.
        token = torch.where(exists, token, self.config.pad_token_id).flatten(0, 1)
        open_ = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, token, True)
        open_[:, self.config.pad_token_id] = False
        return scores.masked_fill(~open_, float("-inf"))


def build_llama(config: HiGRConfig, max_history: int, slate_size: int) -> LlamaForCausalLM:
    """A Llama of HiGR's width whose blocks have about as many weights as all of HiGR's stages.

    Args:
        config: the HiGR it stands beside.
        max_history: items of the longest prompt.
        slate_size: M.
    """
    # A block is 12 d²: four projections, and three matrices of 8/3 d each; HiGR's cross-attending blocks have two d²
    # more for each of two projections.
    square, mlp = config.hidden_size**2, 2 * config.hidden_size * config.intermediate_size
    weights = config.encoder_layers * (4 * square + mlp)
    weights += (config.planner_layers + config.generator_layers) * (8 * square + mlp)
    inner = -(-8 * config.hidden_size // 3)
    block = 4 * square + 3 * config.hidden_size * inner
    llama = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=inner,
        num_hidden_layers=max(1, round(weights / block)),
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_attention_heads,
        max_position_embeddings=(max_history + slate_size) * config.num_levels + 2,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
    )
    return LlamaForCausalLM(llama).eval()


@torch.inference_mode()
def generate_slates(
    model: LlamaForCausalLM,
    config: HiGRConfig,
    legal: Legality,
    input_ids: torch.Tensor,
    slate_size: int,
    num_beams: int,
    use_cache: bool = True,
) -> torch.Tensor:
    """Slates by transformers' `generate`, greedy or by beam search.

    Args:
        model: from [`build_llama`].
        config: the vocabulary.
        legal: what each prompt may be given.
        input_ids (`LongTensor [B, T]`): prompts of one length.
        slate_size: M.
        num_beams: W.
        use_cache: keep keys and values.

    Returns:
        `LongTensor [B, M]` item indices.
    """
    length = slate_size * config.num_levels
    sequences = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=length,
        num_beams=num_beams,
        do_sample=False,
        use_cache=use_cache,
        eos_token_id=None,
        logits_processor=LogitsProcessorList([SlateTrieProcessor(legal, config, *input_ids.shape)]),
    )
    codes = sequences[:, input_ids.shape[1] :].unflatten(1, (slate_size, config.num_levels))
    return legal.trie.lookup(codes - torch.tensor(config.level_offsets, device=codes.device))
