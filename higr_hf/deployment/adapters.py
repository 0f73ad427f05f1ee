"""LoRA on the slate planner (arXiv 2106.09685): a few per cent of the weights, for a shop, a season or a taste."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import LoraConfig

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")


def planner_lora(r: int = 8, projections: Sequence[str] = ("q_proj", "v_proj"), **settings: Any) -> LoraConfig:
    """A `peft.LoraConfig` that reaches the linear layers of the planner's blocks and nothing else.

    Both attentions of a block (cross-attention to the history, self-attention among slots) have `q_proj`, `k_proj`,
    `v_proj` and `o_proj`; its feed-forward has `up_proj` and `down_proj`. Embeddings, encoder, item generator and head
    stay as they are, so semantic IDs mean what they meant and an adapter fits every catalogue version of the model.

    Args:
        r: rank.
        projections: names among `PROJECTIONS`.
        **settings: further fields of `LoraConfig`, such as `lora_alpha` or `lora_dropout`.

    Raises:
        ImportError: without `peft`.
        ValueError: for a projection that the planner does not have.

    Example:

    ```python
    >>> from peft import get_peft_model
    >>> from higr_hf import HiGRConfig, HiGRForSlateGeneration
    >>> from higr_hf.deployment import planner_lora
    >>> model = HiGRForSlateGeneration(HiGRConfig.from_preset("tiny", codebook_sizes=[4, 4], num_items=16))
    >>> adapted = get_peft_model(model, planner_lora(r=4))
    >>> sorted({name.split(".")[3] for name, p in adapted.named_parameters() if p.requires_grad})
    ['planner']

    ```
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install 'higr_hf[peft]'") from error
    unknown = set(projections) - set(PROJECTIONS)
    if unknown or not projections:
        raise ValueError(f"The planner has the projections {PROJECTIONS}; got {tuple(projections)}.")
    # A regular expression, because the same names occur in the encoder and the generator.
    target = rf".*planner\.layers\.\d+\.(cross_attn|self_attn|mlp)\.({'|'.join(projections)})"
    return LoraConfig(r=r, target_modules=target, **settings)
