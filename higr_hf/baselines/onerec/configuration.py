"""Configuration of the flat slate decoder."""

from __future__ import annotations

from typing import Any

from ...configuration_higr import HiGRConfig


class OneRecConfig(HiGRConfig):
    r"""
    Configuration of [`OneRecForSlateGeneration`].

    The fields are those of [`HiGRConfig`], and a preset means the same size: the flat decoder is `planner_layers +
    generator_layers` deep, so that both models have the same number of parameters but for the plan's projection.
    `slate_mode`, `generator_context`, `shared_generator` and `rerank_weight` have no meaning here, and there is no
    dense head and no catalogue prior.

    Raises:
        ValueError: for `dense_head=True` or `catalog_prior=True`, and whatever [`HiGRConfig`] refuses.

    Example:

    ```python
    >>> from higr_hf.baselines.onerec import OneRecConfig
    >>> config = OneRecConfig.from_preset("small", codebook_sizes=[64, 64, 64])
    >>> config.decoder_layers
    6

    ```
    """

    model_type = "onerec"
    _auto_class = None  # a baseline's code is not copied into checkpoints

    dense_head: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs["auto_map"] = {}
        super().__post_init__(**kwargs)
        for name in ("dense_head", "catalog_prior"):
            if getattr(self, name):
                raise ValueError(f"{name} needs a plan vector a slot, which a flat decoder has not: set it to False.")

    @property
    def decoder_layers(self) -> int:
        """Depth of the flat decoder."""
        return self.planner_layers + self.generator_layers

    def to_dict(self) -> dict[str, Any]:
        """The configuration as it is written to `config.json`; it names no pipeline."""
        content = super().to_dict()
        content.pop("custom_pipelines", None)
        return content
