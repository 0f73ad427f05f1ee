"""How much arithmetic and memory traffic decoding a batch of slates takes at least."""

from __future__ import annotations

from dataclasses import dataclass

from ..configuration_higr import SLATE_MODES, HiGRConfig

MODES = (*SLATE_MODES, "flat")


@dataclass(frozen=True)
class Work:
    """Attributes:
    operations: floating-point operations of matrix products and attention, an addition and a multiplication being
        two. Norms, activations, softmaxes and the search are left out.
    elements: numbers read: weights, once for every pass through their module, and keys and values that attention
        looks at. Activations are left out.
    """

    operations: int
    elements: int

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.elements + other.elements)


def decoding_work(
    config: HiGRConfig,
    mode: str,
    *,
    batch: int,
    history: int,
    slate_size: int,
    num_beams: int,
    use_cache: bool = True,
) -> Work:
    """Count the work of one call of `generate`.

    Every history has `history` items, and every prefix of the search as many children as its codebook has codes.

    Args:
        config: sizes of the model.
        mode: a decoding mode of HiGR, or `flat` for the flat decoder of the same configuration.
        batch: B.
        history: H, items a prompt.
        slate_size: M.
        num_beams: W.
        use_cache: whether keys and values of earlier slots and codes are kept.

    Raises:
        ValueError: for an unknown mode.

    Example:
        >>> config = HiGRConfig.from_preset("tiny", codebook_sizes=[64, 64, 64])
        >>> sizes = {"batch": 1, "history": 50, "slate_size": 5, "num_beams": 10}
        >>> flat, once = (decoding_work(config, mode, **sizes) for mode in ("flat", "plan_once"))
        >>> flat.elements > 3 * once.elements
        True
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}; got {mode!r}.")
    count = _Counter(config, batch, history + 1)  # <bos> is a unit too
    readers = config.planner_layers
    if config.generator_context or mode == "flat":
        readers += config.generator_layers
    total = count.encoder() + count.context_keys(readers)
    if mode == "flat":
        return total + _flat(count, slate_size, num_beams, use_cache)
    if mode in ("plan_once", "verified"):
        total += count.planner(new=slate_size, past=0)
        total += _items(count, slate_size, max(num_beams, slate_size), True)
        if mode == "verified":  # the same once more, with the draft's own items beside the hypotheses
            total += count.planner(new=slate_size, past=0)
            total += _items(count, slate_size, max(num_beams, slate_size), True, beside=slate_size - 1)
        return total
    if mode == "first_plan":
        return total + count.planner(new=1, past=0) + _items(count, 1, max(num_beams, slate_size), True)
    for slot in range(slate_size):
        total += count.planner(new=1, past=slot) if use_cache else count.planner(new=slot + 1, past=0)
        total += _items(count, 1, num_beams, use_cache)
    return total


def _items(count: _Counter, slots: int, num_beams: int, use_cache: bool, beside: int = 0) -> Work:
    """Generator passes and heads that spell the items of some slots at once, `beside` hypotheses riding along."""
    total, beams = Work(0, 0), 1
    for depth, size in enumerate(count.config.codebook_sizes):
        rows = slots * beams
        new, past = (1, depth) if use_cache else (depth + 1, 0)
        total += count.block(count.config.generator_layers, rows, new, past, count.config.generator_context)
        total += count.head(rows, depth)
        beams = min(num_beams, beams * size) + min(beside, beams * size)
    return total


def _flat(count: _Counter, slate_size: int, num_beams: int, use_cache: bool) -> Work:
    """Passes of the flat decoder, one a token, over all hypotheses."""
    config, total, beams, token = count.config, Work(0, 0), 1, 0
    layers = config.planner_layers + config.generator_layers
    for _ in range(slate_size):
        for depth, size in enumerate(config.codebook_sizes):
            new, past = (1, token) if use_cache else (token + 1, 0)
            total += count.block(layers, beams, new, past) + count.head(beams, depth)
            beams, token = min(num_beams, beams * size), token + 1
    return total


class _Counter:
    """Work of single passes for one batch of prompts with U units each."""

    def __init__(self, config: HiGRConfig, batch: int, units: int) -> None:
        self.config, self.batch, self.units = config, batch, units
        self.width = config.hidden_size
        self.square, self.mlp = config.hidden_size**2, 2 * config.hidden_size * config.intermediate_size

    def _linear(self, vectors: int, weights: int) -> Work:
        return Work(2 * vectors * weights, weights)

    def _attention(self, queries: int, keys: int, shared_by: int = 1) -> Work:
        """Scores and weighted sum; the keys and values are read once for every `shared_by` queries."""
        return Work(4 * queries * keys * self.width, 2 * (queries // shared_by) * keys * self.width)

    def encoder(self) -> Work:
        """The context encoder over all units."""
        vectors = self.batch * self.units
        layer = self._linear(vectors, 4 * self.square + self.mlp) + self._attention(vectors, self.units, self.units)
        return _times(layer, self.config.encoder_layers)

    def context_keys(self, layers: int) -> Work:
        """Keys and values of the context for cross-attention."""
        return self._linear(self.batch * self.units, 2 * self.square * layers)

    def block(self, layers: int, rows: int, new: int, past: int, context: bool = True) -> Work:
        """Cross-attention, self-attention and feed-forward over `new` positions of `rows` rows an example."""
        queries = self.batch * rows * new
        layer = self._linear(queries, 4 * self.square + self.mlp) + self._attention(queries, past + new, new)
        if context:  # the rows of an example read one context
            layer += self._linear(queries, 2 * self.square) + self._attention(queries, self.units, rows * new)
        return _times(layer, layers)

    def planner(self, new: int, past: int) -> Work:
        """One pass of the planner over `new` slots, and the projection of its plans."""
        return self.block(self.config.planner_layers, 1, new, past) + self._linear(self.batch * new, self.square)

    def head(self, rows: int, depth: int) -> Work:
        """Logits of one group of the vocabulary."""
        size = self.config.codebook_sizes[depth] + (self.config.level_offsets[0] if depth == 0 else 0)
        return self._linear(self.batch * rows, size * self.width)


def _times(work: Work, number: int) -> Work:
    return Work(number * work.operations, number * work.elements)
