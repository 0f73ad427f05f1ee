"""How much arithmetic a training step takes at least."""

from __future__ import annotations

from ..configuration_higr import HiGRConfig


def training_work(config: HiGRConfig, *, batch: int, units: int, queries: int, flat: bool = False) -> int:
    """Count the floating-point operations of one step's matrix products and attentions, forwards and backwards.

    An addition and a multiplication are two. A product's gradients are two products of its size, so a step is three
    times its forward pass. Norms, activations, softmaxes, the optimiser and what is computed a second time to save
    memory are left out.

    Args:
        config: sizes of the model.
        batch: B, sequences.
        units: U, units of the longest of them, `<bos>` among them.
        queries: Q, slots asked for in a sequence, the padded ones among them.
        flat: whether the decoder is the flat one of the same configuration.

    Example:
        >>> config = HiGRConfig.from_preset("base", codebook_sizes=[128, 128, 128])
        >>> sizes = {"batch": 8, "units": 56, "queries": 64}
        >>> round(training_work(config, **sizes, flat=True) / training_work(config, **sizes), 1)
        2.3
    """
    width, levels = config.hidden_size, config.num_levels
    square, mlp = width**2, 2 * width * config.intermediate_size
    rows, slots = batch * units, batch * queries

    def attention(vectors: int, keys: int) -> int:
        return 4 * vectors * keys * width

    def block(vectors: int, among: int, context: bool) -> int:
        """Self-attention among so many vectors, the feed-forward layer, and attention to the encoded history."""
        work = 2 * vectors * (4 * square + mlp) + attention(vectors, among)
        if context:
            work += 2 * rows * 2 * square + 2 * vectors * 2 * square + attention(vectors, units)
        return work

    encoder = config.encoder_layers * block(rows, units, False)
    if flat:
        layers = config.planner_layers + config.generator_layers
        decoder = layers * block(slots * levels, queries * levels, True)
    else:
        decoder = config.planner_layers * block(slots, queries, True) + 2 * slots * square
        decoder += config.generator_layers * block(slots * levels, levels, config.generator_context)
    head = 2 * slots * width * (config.level_offsets[0] + sum(config.codebook_sizes))
    prior = 2 * slots * width * config.num_items if config.catalog_prior else 0
    return 3 * (encoder + decoder + head + prior)


__all__ = ["training_work"]
