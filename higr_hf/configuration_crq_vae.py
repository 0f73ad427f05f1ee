"""Configuration of the semantic-ID quantisers: CRQ-VAE, and RQ-VAE and RQ-KMeans as its plain settings."""

from __future__ import annotations

import math
from typing import Any

from transformers import PreTrainedConfig

METHODS = ("crq-vae", "rq-vae", "rq-kmeans")
QUANTIZATION_LOSSES = ("global", "layerwise")
CONTRASTIVE_TARGETS = ("codeword", "straight-through", "residual")

# What tells the three quantisers apart; everything else is shared, so a comparison changes these fields only.
_METHOD_FIELDS: dict[str, dict[str, Any]] = {
    "crq-vae": {"autoencoder": True},
    "rq-vae": {"autoencoder": True, "quantization_loss": "layerwise", "contrastive_weight": 0.0},
    "rq-kmeans": {"autoencoder": False, "contrastive_weight": 0.0},
}


class CRQVAEConfig(PreTrainedConfig):
    r"""Configuration of a [`CRQVAEModel`].

    One class covers the three quantisers, see [`CRQVAEConfig.for_method`]: `crq-vae` (global quantisation loss and
    contrastive loss), `rq-vae` (layer-wise loss, no contrast) and `rq-kmeans` (no auto-encoder: k-means on the
    residuals of the embedding itself). Source of the losses: HiGR, arXiv 2512.24787, section on CRQ-VAE.

    Args:
        input_size (`int`): width E of the item embeddings.
        latent_size (`int`): width of the latent z and of the codewords. Without auto-encoder it equals `input_size`.
        hidden_sizes (`list[int]`): widths of the encoder's hidden layers; the decoder mirrors them.
        codebook_sizes (`list[int]`): K of every level, coarse to fine; its length is the number of levels D.
        autoencoder (`bool`): encode with an MLP (`True`) or quantise the embedding itself (`False`, RQ-KMeans).
        normalize_latent (`bool`): put z on the sphere of radius √Z. The contrastive loss sees directions only; on a
            sphere the nearest code does so too.
        quantization_loss (`str`): `"global"` compares the sum of the codewords with z, `"layerwise"` every codeword
            with its residual (RQ-VAE).
        quantization_weight (`float`): λ1, weight of the quantisation loss.
        commitment_weight (`float`): η, weight of the half of it that moves the encoder.
        contrastive_weight (`float`): λ2, weight of the contrastive loss; 0 turns it off. The published 0.01 belongs to
            codewords and to losses of another scale; 1 measured best here (see docs/semantic_ids.md).
        level_weights (`list[float]`, *optional*): w of the first D-1 levels in the contrastive loss; by default 1 for
            the first level and a tenth of the level before for the next ones.
        temperature (`float`): τ of the contrastive loss. The paper does not give it.
        false_negative_threshold (`float`): two items of a batch whose embeddings' cosine reaches it are no negatives.
        contrastive_target (`str`): what the contrastive loss compares. `"codeword"` is the plain look-up (its gradient
            never reaches the encoder), `"straight-through"` the look-up with the residual's gradient added, and
            `"residual"` the residual that the level quantises.

    Raises:
        ValueError: for a value out of its range; the message names the field.

    Example:

    ```python
    >>> from higr_hf.configuration_crq_vae import CRQVAEConfig
    >>> config = CRQVAEConfig.for_method("rq-vae", input_size=16, codebook_sizes=[8, 8, 8])
    >>> config.num_levels, config.method
    (3, 'rq-vae')

    ```
    """

    model_type = "crq_vae"

    input_size: int = 384
    latent_size: int = 32
    hidden_sizes: list[int] | tuple[int, ...] = (512,)
    codebook_sizes: list[int] | tuple[int, ...] = (256, 256, 256)
    autoencoder: bool = True
    normalize_latent: bool = True
    quantization_loss: str = "global"
    quantization_weight: float = 0.1
    commitment_weight: float = 0.1
    contrastive_weight: float = 1.0
    level_weights: list[float] | tuple[float, ...] | None = None
    temperature: float = 0.1
    false_negative_threshold: float = 0.8
    contrastive_target: str = "residual"
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        # A checkpoint must load without this package, whichever of the two Auto classes saved it.
        kwargs.setdefault(
            "auto_map",
            {
                "AutoConfig": "configuration_crq_vae.CRQVAEConfig",
                "AutoModel": "modeling_crq_vae.CRQVAEModel",
            },
        )
        self.hidden_sizes = [int(size) for size in self.hidden_sizes]
        self.codebook_sizes = [int(size) for size in self.codebook_sizes]
        if not self.autoencoder:
            self.latent_size = self.input_size
            self.hidden_sizes = []
            self.normalize_latent = False
        if self.level_weights is None:
            self.level_weights = [10.0**-level for level in range(len(self.codebook_sizes) - 1)]
        self.level_weights = [float(weight) for weight in self.level_weights]
        self._check()
        super().__post_init__(**kwargs)

    def _check(self) -> None:
        if not self.codebook_sizes:
            raise ValueError("codebook_sizes is empty: give one size a level, e.g. [256, 256, 256].")
        for name in ("input_size", "latent_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("codebook_sizes", "hidden_sizes"):
            for position, size in enumerate(getattr(self, name)):
                if size < 1:
                    raise ValueError(f"{name}[{position}] must be at least 1, got {size}.")
        for name in ("quantization_weight", "commitment_weight", "contrastive_weight"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be a finite number >= 0, got {value}.")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}.")
        if len(self.level_weights) != self.num_levels - 1:
            raise ValueError(
                f"level_weights has {len(self.level_weights)} entries; the contrastive loss needs one for each level "
                f"but the last: {self.num_levels - 1}."
            )
        if self.quantization_loss not in QUANTIZATION_LOSSES:
            raise ValueError(
                f"quantization_loss must be one of {QUANTIZATION_LOSSES}, got {self.quantization_loss!r}."
            )
        if self.contrastive_target not in CONTRASTIVE_TARGETS:
            raise ValueError(
                f"contrastive_target must be one of {CONTRASTIVE_TARGETS}, got {self.contrastive_target!r}."
            )

    @property
    def num_levels(self) -> int:
        """D, the number of codes in a semantic ID."""
        return len(self.codebook_sizes)

    @property
    def capacity(self) -> int:
        """How many different semantic IDs the codebooks can write."""
        return math.prod(self.codebook_sizes)

    @property
    def method(self) -> str:
        """The published quantiser that these settings amount to."""
        if not self.autoencoder:
            return "rq-kmeans"
        return "rq-vae" if self.quantization_loss == "layerwise" and self.contrastive_weight == 0 else "crq-vae"

    @classmethod
    def for_method(cls, method: str, **overrides: Any) -> CRQVAEConfig:
        """The configuration of one of the three quantisers.

        Args:
            method (`str`): `"crq-vae"`, `"rq-vae"` or `"rq-kmeans"`.
            **overrides: any other field of the configuration.

        Raises:
            ValueError: for an unknown method, or for an override that contradicts it.
        """
        if method not in _METHOD_FIELDS:
            raise ValueError(f"Unknown method {method!r}; choose one of {METHODS}.")
        fixed = _METHOD_FIELDS[method]
        for name, value in fixed.items():
            if overrides.get(name, value) != value:
                raise ValueError(
                    f"method {method!r} means {name}={value!r}, but {name}={overrides[name]!r} was given."
                )
        config = cls(**{**overrides, **fixed})
        if config.method != method:
            raise ValueError(f"These settings amount to {config.method!r}, but method {method!r} was given.")
        return config


CRQVAEConfig.register_for_auto_class("AutoConfig")

__all__ = ["CRQVAEConfig"]
