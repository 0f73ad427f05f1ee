"""The blocks HiGR is built of: rotary attention over one's own sequence or a context, and a feed-forward layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_higr import HiGRConfig
from .norm_higr import HiGRRMSNorm

KeyValue = tuple[torch.Tensor, torch.Tensor]
Rotary = tuple[torch.Tensor, torch.Tensor]


def rotary_table(positions: torch.Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Rotary:
    """Cosines and sines of rotary position embedding (RoFormer, arXiv 2104.09864).

    Computed on the fly from the positions, so that no buffer has to survive loading and any length works.

    Args:
        positions (`LongTensor [B, T]`): position of every vector.
        head_dim (`int`): even size of a head.
        theta (`float`): base of the wavelengths.
        dtype (`torch.dtype`): of the result; the angles themselves are float32.

    Returns:
        Two tensors of shape `[B, 1, T, head_dim]`; the sines of the first half have their sign turned.
    """
    inverse = theta ** (-torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim)
    angle = positions[:, None, :, None].float() * inverse
    sine = angle.sin()
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos().to(dtype), torch.cat([-sine, sine], dim=-1).to(dtype)


def rotate(x: torch.Tensor, rotary: Rotary | None) -> torch.Tensor:
    """Turn `x [B, heads, T, head_dim]` by its positions' angles; `None` leaves it as it is."""
    if rotary is None:
        return x
    cos, sin = rotary
    return (x.roll(x.shape[-1] // 2, dims=-1) * sin).addcmul_(x, cos)


class HiGRDropout(nn.Dropout):
    """`nn.Dropout` whose mask is drawn eight elements at a time on a CPU.

    Drawing a mask element by element takes a tenth of a small model's training step there. The rate is met to 1/256,
    and the kept elements are scaled by the rate that was really drawn, so the expectation is exact. A subclass of
    `nn.Dropout`, so that trainers which switch dropout off find it.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[...]` to `[...]`."""
        if not self.training or self.p == 0:
            return x  # a dozen calls that do nothing show in the time of one slate
        if x.device.type != "cpu":
            return super().forward(x)
        dropped = max(1, round(self.p * 256))
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        # Compared as numbers of x's kind, bytes being exact in all of them: a mask of booleans is slow to convert.
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape).to(x.dtype).ge_(dropped)
        return x * kept.mul_(256 / (256 - dropped))


def additive_mask(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What attention adds to its scores: 0 where a boolean mask is `True`, -inf elsewhere.

    `sdpa` takes both kinds and makes this one of a boolean mask anew in every layer, forwards and backwards.

    Args:
        visible (`BoolTensor`): any shape; no row may be all `False`.
        dtype (`torch.dtype`): that of the queries.
    """
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, float("-inf"))


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out; takes boolean (`True` = visible) and additive masks as `sdpa` does.

    Args:
        query (`[B, heads, Q, head_dim]`), key, value (`[B, heads, T, head_dim]`): inputs.
        attention_mask (broadcastable to `[B, heads, Q, T]`, *optional*): what each query sees.

    Returns:
        `[B, Q, heads, head_dim]` and the probabilities `[B, heads, Q, T]`.
    """
    weights = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        weights = weights.masked_fill(~attention_mask, torch.finfo(weights.dtype).min)
    elif attention_mask is not None:
        weights = weights + attention_mask
    weights = weights.float().softmax(dim=-1).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class HiGRAttention(nn.Module):
    """Multi-head attention, to one's own sequence or to a context, with keys and values that can be kept.

    Projections have no bias. Queries and keys are turned by the rotary tables that the caller passes.
    """

    def __init__(self, config: HiGRConfig) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = nn.Dropout(config.attention_dropout)
        self.is_causal = False  # masks are always explicit
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def key_value(self, source: torch.Tensor, rotary: Rotary | None) -> KeyValue:
        """Keys and values of `source [B, T, d]`, each `[B, heads, T, head_dim]`."""
        return rotate(self._heads(self.k_proj(source)), rotary), self._heads(self.v_proj(source))

    def forward(
        self,
        hidden_states: torch.Tensor,
        key_value: KeyValue,
        attention_mask: torch.Tensor | None,
        rotary: Rotary | None,
    ) -> torch.Tensor:
        """Attend.

        Args:
            hidden_states (`[B, Q, d]`): the queries' vectors.
            key_value: what `key_value` returned for the source, `[B, heads, T, head_dim]` each.
            attention_mask (broadcastable to `[B, heads, Q, T]`, *optional*): boolean, `True` where visible, or what
                [`additive_mask`] makes of it.
            rotary: the queries' tables.

        Returns:
            `[B, Q, d]`.
        """
        query = rotate(self._heads(self.q_proj(hidden_states)), rotary)
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, _ = attend(
            self,
            query,
            *key_value,
            attention_mask,
            scaling=self.scaling,
            # An nn.Dropout holds the rate, so that trainers which switch dropout off find it.
            dropout=self.attention_dropout.p if self.training else 0.0,
            is_causal=False,
        )
        return self.o_proj(output.flatten(2))

    def step(self, hidden_states: torch.Tensor, past: list[KeyValue]) -> torch.Tensor:
        """Self-attention of one new position over the few before it, without rotation.

        Attention kernels work a head of a row at a time; over two or three positions of thousands of rows a product a
        position is several times faster.

        Args:
            hidden_states (`[..., W, d]`): the newest position of W hypotheses.
            past: see [`HiGRGeneratorLayer.step`]; the newest keys and values are appended.

        Returns:
            `[..., W, d]`.
        """
        query, key, value = (
            proj(hidden_states).unflatten(-1, (self.num_heads, self.head_dim))
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        past.append((key, value))
        if len(past) == 1:  # it sees itself alone
            return self.o_proj(value.flatten(-2))
        scores = torch.stack([(query * keys).sum(-1) for keys, _ in past])
        weights = (scores * self.scaling).float().softmax(0).to(query.dtype).unsqueeze(-1)
        output = weights[0] * past[0][1]
        for weight, (_, values) in zip(weights[1:], past[1:], strict=True):
            output = torch.addcmul(output, weight, values)
        return self.o_proj(output.flatten(-2))


class HiGRFeedForward(nn.Module):
    """Two linear layers with an activation between, without bias."""

    def __init__(self, config: HiGRConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., d]` to `[..., d]`."""
        return self.down_proj(self.act(self.up_proj(x)))


def make_norm(config: HiGRConfig) -> HiGRRMSNorm:
    """The normalisation used everywhere."""
    return HiGRRMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class HiGREncoderLayer(GradientCheckpointingLayer):
    """Pre-norm self-attention and feed-forward over the history's units."""

    def __init__(self, config: HiGRConfig) -> None:
        super().__init__()
        self.self_attn_norm, self.self_attn = make_norm(config), HiGRAttention(config)
        self.mlp_norm, self.mlp = make_norm(config), HiGRFeedForward(config)
        self.dropout = HiGRDropout(config.dropout)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        """`hidden_states [B, U, d]`, `attention_mask` bool `[B or 1, 1, U, U]` to `[B, U, d]`."""
        return self.extend(hidden_states, attention_mask, rotary)[0]

    def extend(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        rotary: Rotary,
        past: KeyValue | None = None,
    ) -> tuple[torch.Tensor, KeyValue]:
        """The same for U units that follow P others, whose keys and values were kept.

        Args:
            hidden_states (`[B, U, d]`): the units.
            attention_mask (`BoolTensor [B or 1, 1, U, P + U]`): what each unit sees.
            rotary: tables of the units' positions.
            past: this layer's keys and values of the units before, `[B, heads, P, head_dim]`.

        Returns:
            `[B, U, d]`, and the keys and values of these U units alone.
        """
        normed = self.self_attn_norm(hidden_states)
        key_value = seen = self.self_attn.key_value(normed, rotary)
        if past is not None:
            seen = (torch.cat([past[0], key_value[0]], dim=2), torch.cat([past[1], key_value[1]], dim=2))
        attended = self.self_attn(normed, seen, attention_mask, rotary)
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states))), key_value


class HiGRPlannerLayer(GradientCheckpointingLayer):
    """Cross-attention to the history → self-attention among the slate's slots → feed-forward, each pre-normed."""

    def __init__(self, config: HiGRConfig) -> None:
        super().__init__()
        self.cross_attn_norm, self.cross_attn = make_norm(config), HiGRAttention(config)
        self.self_attn_norm, self.self_attn = make_norm(config), HiGRAttention(config)
        self.mlp_norm, self.mlp = make_norm(config), HiGRFeedForward(config)
        self.dropout = HiGRDropout(config.dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        context: KeyValue,
        context_mask: torch.Tensor,
        self_mask: torch.Tensor | None,
        rotary: Rotary,
        past: KeyValue | None = None,
    ) -> tuple[torch.Tensor, KeyValue]:
        """One block over the planner's queries.

        Args:
            hidden_states (`[B, Q, d]`): the queries.
            context: keys and values of the encoded history for this layer, `[B, heads, U, head_dim]`.
            context_mask (`BoolTensor [B, 1, Q, U]`): the history each query may see.
            self_mask (`BoolTensor [B, 1, Q, Q]`, *optional*): the queries each query may see.
            rotary: tables of the queries' positions.
            past: this layer's self-attention keys and values of earlier slots.

        Returns:
            `[B, Q, d]`, and the self-attention keys and values including the new ones.
        """
        attended = self.cross_attn(self.cross_attn_norm(hidden_states), context, context_mask, rotary)
        hidden_states = hidden_states + self.dropout(attended)
        normed = self.self_attn_norm(hidden_states)
        key_value = self.self_attn.key_value(normed, rotary)
        if past is not None:
            key_value = (torch.cat([past[0], key_value[0]], dim=2), torch.cat([past[1], key_value[1]], dim=2))
        attended = self.self_attn(normed, key_value, self_mask, rotary)
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states))), key_value


class HiGRGeneratorLayer(GradientCheckpointingLayer):
    """The planner's block over the codes of one item; rows (slots or beams) never see each other.

    Its attentions carry no rotation: what an item is spelled from lies in the plan vector, the context's states
    already know their places, and the order of a few codes comes from the step embeddings.
    """

    def __init__(self, config: HiGRConfig) -> None:
        super().__init__()
        if config.generator_context:
            self.cross_attn_norm, self.cross_attn = make_norm(config), HiGRAttention(config)
        self.self_attn_norm, self.self_attn = make_norm(config), HiGRAttention(config)
        self.mlp_norm, self.mlp = make_norm(config), HiGRFeedForward(config)
        self.dropout = HiGRDropout(config.dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        context: KeyValue | None,
        context_mask: torch.Tensor | None,
        past: KeyValue | None = None,
    ) -> tuple[torch.Tensor, KeyValue]:
        """One block over R rows of S code positions each.

        Args:
            hidden_states (`[B, R, S, d]`): rows of the batch's examples.
            context: keys and values of the encoded history, `[B, heads, U, head_dim]`; all rows of an example read the
                same ones, so beams cost no copies.
            context_mask (`BoolTensor [B, 1, R·S or 1, U]`): the history each position may see.
            past: this layer's keys and values of earlier code positions, `[B·R, heads, S', head_dim]`.

        Returns:
            `[B, R, S, d]`, and the self-attention keys and values including the new ones.
        """
        batch, rows, steps, width = hidden_states.shape
        if context is not None:
            flat = self.cross_attn_norm(hidden_states).reshape(batch, rows * steps, width)
            attended = self.cross_attn(flat, context, context_mask, None)
            hidden_states = hidden_states + self.dropout(attended).reshape(batch, rows, steps, width)
        normed = self.self_attn_norm(hidden_states).reshape(batch * rows, steps, width)
        key_value = self.self_attn.key_value(normed, None)
        if past is not None:
            key_value = (torch.cat([past[0], key_value[0]], dim=2), torch.cat([past[1], key_value[1]], dim=2))
        mask = None
        if steps > 1:
            total = key_value[0].shape[2]
            mask = torch.ones(steps, total, dtype=torch.bool, device=normed.device).tril(total - steps)[None, None]
        attended = self.self_attn(normed, key_value, mask, None).reshape(batch, rows, steps, width)
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states))), key_value

    def step(
        self,
        hidden_states: torch.Tensor,
        context: KeyValue | None,
        context_mask: torch.Tensor | None,
        past: list[KeyValue],
    ) -> torch.Tensor:
        """The newest code position of every hypothesis of an item beam; for decoding.

        Args:
            hidden_states (`[B, R, W, d]`): one position of W hypotheses for each of R slots.
            context, context_mask: see `forward`.
            past: keys and values `[B, R, W or 1, heads, head_dim]` of the positions before, one entry each; the newest
                is appended. Width 1 is shared by all hypotheses.

        Returns:
            `[B, R, W, d]`.
        """
        if context is not None:
            flat = self.cross_attn_norm(hidden_states).flatten(1, 2)
            attended = self.cross_attn(flat, context, context_mask, None)
            hidden_states = hidden_states + attended.view_as(hidden_states)
        hidden_states = hidden_states + self.self_attn.step(self.self_attn_norm(hidden_states), past)
        return hidden_states + self.mlp(self.mlp_norm(hidden_states))
