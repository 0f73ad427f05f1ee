"""CRQ-VAE: a residual-quantised auto-encoder that turns item embeddings into semantic IDs.

Source: HiGR, arXiv 2512.24787. RQ-VAE (TIGER, arXiv 2305.05065) and RQ-KMeans are settings of the same class.
Shapes: N items (or B of a batch), E embedding width, D levels, K codes of a level, Z latent width.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_crq_vae import CRQVAEConfig
from .quantization_crq_vae import ResidualQuantization, ResidualQuantizer, squared_distances
from .weights_higr import load_checked

_ENCODE_BLOCK = 8192


@dataclass
class CRQVAEOutput(ModelOutput):
    """Output of [`CRQVAEModel`].

    Attributes:
        loss (float, scalar): reconstruction + λ1 · quantisation + λ2 · contrastive.
        reconstruction_loss (float, scalar): mean squared error on standardised embeddings, so 1 is "learnt nothing".
        quantization_loss (float, scalar): before λ1.
        contrastive_loss (float, scalar, *optional*): before λ2; absent without positives.
        codes (int64 `[B, D]`): the semantic IDs.
        reconstruction (float `[B, E]`): x̂, in the embeddings' own scale.
        latent (float `[B, Z]`): z, before quantisation.
    """

    loss: Tensor | None = None
    reconstruction_loss: Tensor | None = None
    quantization_loss: Tensor | None = None
    contrastive_loss: Tensor | None = None
    codes: Tensor | None = None
    reconstruction: Tensor | None = None
    latent: Tensor | None = None


def global_quantization_loss(latent: Tensor, quantized: Tensor, commitment_weight: float) -> Tensor:
    """‖ẑ − sg(z)‖² + η‖z − sg(ẑ)‖², squared norms as means over the batch and the width.

    Args:
        latent (float `[B, Z]`): z.
        quantized (float `[B, Z]`): ẑ, the sum of the codewords.
        commitment_weight (`float`): η.
    """
    return F.mse_loss(quantized, latent.detach()) + commitment_weight * F.mse_loss(latent, quantized.detach())


def layerwise_quantization_loss(result: ResidualQuantization, commitment_weight: float) -> Tensor:
    """Σ_d ‖e^d − sg(r^{d-1})‖² + η‖r^{d-1} − sg(e^d)‖²: RQ-VAE's loss, squared norms as means."""
    levels = result.codes.shape[1]
    codebook = F.mse_loss(result.codewords, result.residuals.detach())
    commitment = F.mse_loss(result.residuals, result.codewords.detach())
    return levels * (codebook + commitment_weight * commitment)


def contrastive_loss(anchors: Tensor, positives: Tensor, temperature: float, ignore: Tensor, rows: Tensor) -> Tensor:
    """InfoNCE over matched codewords of one level: row i of `positives` is the positive of row i of `anchors`.

    Args:
        anchors (float `[B, Z]`), positives (float `[B, Z]`): codewords of one level.
        temperature (`float`): τ.
        ignore (bool `[B, B]`): `ignore[i, j]` drops row j's positive from the negatives of anchor i.
        rows (bool `[B]`): the anchors that have a positive; the others count neither as anchors nor as negatives.

    Returns:
        float scalar, the mean over `rows`; 0 when there is none.
    """
    logits = F.normalize(anchors, dim=1, eps=1e-6) @ F.normalize(positives, dim=1, eps=1e-6).T / temperature
    targets = torch.arange(len(logits), device=logits.device)
    dropped = (ignore | ~rows).index_put((targets, targets), torch.zeros_like(rows))
    losses = F.cross_entropy(logits.masked_fill(dropped, float("-inf")), targets, reduction="none")
    return (losses * rows).sum() / rows.sum().clamp_min(1)


def _mlp(sizes: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for position, (width_in, width_out) in enumerate(pairwise(sizes)):
        layers += [nn.GELU()] if position else []
        layers.append(nn.Linear(width_in, width_out))
    return nn.Sequential(*layers)


class CRQVAEPreTrainedModel(PreTrainedModel):
    """What every CRQ-VAE model shares: the configuration class and how weights start."""

    config_class = CRQVAEConfig
    base_model_prefix = "crq_vae"
    main_input_name = "embeddings"

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
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, ResidualQuantizer):
            for codebook in module.codebooks:
                nn.init.normal_(codebook, std=self.config.initializer_range)
        elif isinstance(module, CRQVAEModel):
            nn.init.zeros_(module.input_mean)
            nn.init.ones_(module.input_scale)


class CRQVAEModel(CRQVAEPreTrainedModel):
    r"""Item embeddings to semantic IDs and back.

    A fresh model's codebooks are noise: call [`~CRQVAEModel.init_codebooks`] with the catalogue before training, as
    the global quantisation loss gives every chosen code the same gradient and never pulls apart what starts together.

    Example:

    ```python
    >>> import torch
    >>> from higr_hf.configuration_crq_vae import CRQVAEConfig
    >>> from higr_hf.modeling_crq_vae import CRQVAEModel
    >>> embeddings = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    >>> model = CRQVAEModel(CRQVAEConfig(input_size=16, latent_size=8, hidden_sizes=[12], codebook_sizes=[4, 4, 4]))
    >>> model.init_codebooks(embeddings, seed=0)
    >>> model.encode(embeddings).shape
    torch.Size([50, 3])

    ```
    """

    def __init__(self, config: CRQVAEConfig) -> None:
        super().__init__(config)
        if config.autoencoder:
            sizes = [config.input_size, *config.hidden_sizes, config.latent_size]
            self.encoder: nn.Module = _mlp(sizes)
            self.decoder: nn.Module = _mlp(sizes[::-1])
        else:
            self.encoder, self.decoder = nn.Identity(), nn.Identity()
        self.quantizer = ResidualQuantizer(config.codebook_sizes, config.latent_size)
        # Persistent: an item that joins later must be standardised as the ones the codebooks were fitted on.
        self.register_buffer("input_mean", torch.zeros(config.input_size))
        self.register_buffer("input_scale", torch.ones(()))
        self.post_init()

    # -- from embeddings to latents ------------------------------------------------------------------------------

    @torch.no_grad()
    def fit_standardization(self, embeddings: Tensor) -> None:
        """Centre the inputs and scale them, all by one number, so that the mean square of an entry is 1.

        One number for all keeps the geometry (and with it k-means) as it was, and makes λ1 and λ2 mean the same
        whatever the length of the embeddings.
        """
        self._check_embeddings(embeddings)
        self.input_mean.copy_(embeddings.mean(0))
        scale = (embeddings - self.input_mean).square().mean().sqrt()
        # A catalogue of one item, or of identical ones, has no spread; any scale does.
        self.input_scale.copy_(scale if scale > 1e-8 else torch.ones_like(scale))

    def embed(self, embeddings: Tensor) -> Tensor:
        """z = E(x): float `[N, Z]` of embeddings `[N, E]`."""
        latent = self.encoder((embeddings - self.input_mean) / self.input_scale)
        if self.config.normalize_latent:
            # The contrastive loss sees directions only; on a sphere nearest codes see the same.
            latent = F.normalize(latent, dim=1) * latent.shape[1] ** 0.5
        return latent

    @torch.no_grad()
    def init_codebooks(self, embeddings: Tensor, *, seed: int = 0, first_level: int = 0) -> None:
        """k-means, level by level, on the latents of embeddings `[N, E]`; deterministic.

        Args:
            embeddings (float `[N, E]`): the whole catalogue, or a large sample.
            seed (`int`): of k-means++.
            first_level (`int`): levels before it stay as they are (to fit the last levels again after training).
        """
        self._check_embeddings(embeddings)
        self.quantizer.fit_kmeans(self._embed_blocks(embeddings), seed=seed, first_level=first_level)

    @torch.no_grad()
    def _embed_blocks(self, embeddings: Tensor) -> Tensor:
        return torch.cat([self.embed(block) for block in embeddings.split(_ENCODE_BLOCK)])

    def _check_embeddings(self, embeddings: Tensor) -> None:
        if embeddings.ndim != 2 or embeddings.shape[1] != self.config.input_size or not len(embeddings):
            raise ValueError(
                f"Embeddings must have the shape [N >= 1, {self.config.input_size}], got {list(embeddings.shape)}."
            )
        bad = (~torch.isfinite(embeddings).all(dim=1)).nonzero().flatten()
        if len(bad):
            raise ValueError(
                f"{len(bad)} embedding row(s) hold NaN or infinity, the first is row {int(bad[0])}: repair or drop "
                "these items before they get a semantic ID."
            )

    # -- semantic IDs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, embeddings: Tensor) -> Tensor:
        """The raw semantic IDs, int64 `[N, D]`, of embeddings `[N, E]`; before any collision rule.

        Raises:
            ValueError: for another shape, or a row with NaN or infinity.
        """
        self._check_embeddings(embeddings)
        return torch.cat([self.quantizer(self.embed(block)).codes for block in embeddings.split(_ENCODE_BLOCK)])

    def quantize(self, latent: Tensor) -> ResidualQuantization:
        """Codes, codewords and residuals of latents `[N, Z]`."""
        return self.quantizer(latent)

    def decode(self, codes: Tensor) -> Tensor:
        """The embeddings, float `[N, E]`, that semantic IDs, int64 `[N, D]`, stand for."""
        return self._decode_latent(self.quantizer.lookup(codes).sum(1))

    def _decode_latent(self, latent: Tensor) -> Tensor:
        return self.decoder(latent) * self.input_scale + self.input_mean

    @torch.no_grad()
    def code_distances(self, embeddings: Tensor, prefix: Tensor) -> Tensor:
        """How far each code of the next level is from what a prefix leaves over of an item.

        Args:
            embeddings (float `[N, E]`).
            prefix (int64 `[N, d]`): codes of the first d levels, 0 <= d < D; they need not be the item's own.

        Returns:
            float `[N, K_d]` squared distances.
        """
        residual = self.embed(embeddings) - self.quantizer.lookup(prefix).sum(1)
        return squared_distances(residual, self.quantizer.codebooks[prefix.shape[1]])

    @torch.no_grad()
    def revive_dead_codes(self, embeddings: Tensor, usage: list[Tensor], *, seed: int = 0) -> int:
        """Give unused codes a new place; see [`ResidualQuantizer.revive`]. Returns how many were moved."""
        return self.quantizer.revive(self._embed_blocks(embeddings), usage, seed=seed)

    # -- training -------------------------------------------------------------------------------------------------

    def reconstruction_without_quantization(self, embeddings: Tensor) -> Tensor:
        """Mean squared error of the auto-encoder alone, a float scalar: what warms it up before k-means."""
        target = (embeddings - self.input_mean) / self.input_scale
        return F.mse_loss(self.decoder(self.embed(embeddings)), target)

    def forward(
        self,
        embeddings: Tensor,
        positives: Tensor | None = None,
        has_positive: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> CRQVAEOutput | tuple[Tensor, ...]:
        """Quantise, reconstruct and, always, compute the losses.

        Args:
            embeddings (float `[B, E]`): x.
            positives (float `[B, E]`, *optional*): for every row the embedding of a similar item.
            has_positive (bool `[B]`, *optional*): rows whose `positives` entry counts; all of them by default.
            return_dict (`bool`, *optional*): `False` returns a tuple.
        """
        latent = self.embed(embeddings)
        result = self.quantize(latent)
        quantized = result.quantized
        # Straight through: the decoder's gradient reaches the encoder as if nothing had been rounded.
        decoded = self.decoder(latent + (quantized - latent).detach())
        target = (embeddings - self.input_mean) / self.input_scale
        reconstruction_loss = F.mse_loss(decoded, target)
        if self.config.quantization_loss == "global":
            quantization_loss = global_quantization_loss(latent, quantized, self.config.commitment_weight)
        else:
            quantization_loss = layerwise_quantization_loss(result, self.config.commitment_weight)
        loss = reconstruction_loss + self.config.quantization_weight * quantization_loss
        contrast = None
        if positives is not None and self.config.num_levels > 1:
            contrast = self._contrastive_loss(embeddings, positives, has_positive, result)
            loss = loss + self.config.contrastive_weight * contrast
        output = CRQVAEOutput(
            loss=loss,
            reconstruction_loss=reconstruction_loss,
            quantization_loss=quantization_loss,
            contrastive_loss=contrast,
            codes=result.codes,
            reconstruction=decoded * self.input_scale + self.input_mean,
            latent=latent,
        )
        return output if return_dict is not False else output.to_tuple()

    def _contrastive_loss(
        self, embeddings: Tensor, positives: Tensor, has_positive: Tensor | None, result: ResidualQuantization
    ) -> Tensor:
        matched = self.quantize(self.embed(positives))
        rows = torch.ones_like(result.codes[:, 0], dtype=torch.bool) if has_positive is None else has_positive.bool()
        cosines = F.normalize(embeddings, dim=1) @ F.normalize(positives, dim=1).T
        ignore = cosines >= self.config.false_negative_threshold
        loss = embeddings.new_zeros(())
        for level, weight in enumerate(self.config.level_weights):
            u, v = (self._contrasted(side, level) for side in (result, matched))
            loss = loss + weight * contrastive_loss(u, v, self.config.temperature, ignore, rows)
        return loss / len(self.config.level_weights)

    def _contrasted(self, result: ResidualQuantization, level: int) -> Tensor:
        codeword, residual = result.codewords[:, level], result.residuals[:, level]
        if self.config.contrastive_target == "codeword":
            return codeword
        if self.config.contrastive_target == "residual":
            return residual
        return codeword + residual - residual.detach()


CRQVAEModel.register_for_auto_class("AutoModel")

__all__ = ["CRQVAEConfig", "CRQVAEModel", "CRQVAEOutput", "CRQVAEPreTrainedModel"]
