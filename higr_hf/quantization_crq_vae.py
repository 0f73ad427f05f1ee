"""Residual quantisation: codebooks, nearest codes level by level, and the k-means that starts them.

Shapes: N items (or B of a batch), D levels, K codes of a level, Z latent width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Bounds the [rows, K] distance table, not the result: 2**22 floats are 16 MiB.
_MAX_TABLE = 1 << 22


@dataclass
class ResidualQuantization:
    """What [`ResidualQuantizer`] makes of a batch of latents.

    Attributes:
        codes (int64 `[N, D]`): the nearest code of every level.
        codewords (float `[N, D, Z]`): e^d, the chosen rows of the codebooks (gradients reach the codebooks).
        residuals (float `[N, D, Z]`): r^{d-1}, what level d was given to quantise (gradients reach the latent, and,
            through the subtraction, no codebook: earlier codewords are detached).
    """

    codes: Tensor
    codewords: Tensor
    residuals: Tensor

    @property
    def quantized(self) -> Tensor:
        """ẑ = Σ_d e^d, float `[N, Z]`."""
        return self.codewords.sum(dim=1)


def squared_distances(points: Tensor, centers: Tensor) -> Tensor:
    """Squared Euclidean distances, float `[N, K]`, of points `[N, Z]` to centers `[K, Z]`."""
    distances = points.square().sum(1, keepdim=True) - 2 * points @ centers.T + centers.square().sum(1)
    return distances.clamp_min_(0) if not distances.requires_grad else distances.clamp_min(0)


@torch.no_grad()
def nearest(points: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest center of every point and its squared distance, in blocks of bounded memory.

    Returns:
        int64 `[N]` and float `[N]`. Of equally near centers the first wins.
    """
    rows = max(1, _MAX_TABLE // len(centers))
    best = [squared_distances(block, centers).min(dim=1) for block in points.split(rows)]
    return torch.cat([b.indices for b in best]), torch.cat([b.values for b in best])


@torch.no_grad()
def kmeans(
    points: Tensor, num_clusters: int, *, seed: int = 0, iterations: int = 50, tolerance: float = 1e-4
) -> Tensor:
    """Lloyd's k-means from random rows; the same points and seed give the same centers.

    The seeds are drawn uniformly, not by k-means++: residuals of wide embeddings have a long tail, k-means++ spends
    codes on its outliers, and the measured result was worse on every catalogue (more collisions, larger residuals).
    A center that loses its points moves to another random row. With fewer distinct points than clusters
    the spare centers repeat others, and their codes stay unused.

    Args:
        points (float `[N, Z]`): N >= 1.
        num_clusters (`int`): K.
        seed (`int`): of the draw.
        iterations (`int`): most Lloyd steps.
        tolerance (`float`): stop when the mean squared distance falls by less than this share of itself.

    Returns:
        float `[K, Z]` centers.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(points), generator=generator).to(points.device)
    centers = points[order[torch.arange(num_clusters, device=points.device) % len(points)]].clone()
    previous = float("inf")
    for _ in range(iterations):
        assignment, distances = nearest(points, centers)
        error = float(distances.mean())
        if error >= (1 - tolerance) * previous:
            break
        previous = error
        sums = torch.zeros_like(centers).index_add_(0, assignment, points)
        sizes = torch.bincount(assignment, minlength=num_clusters)
        centers = torch.where(sizes[:, None] > 0, sums / sizes.clamp_min(1)[:, None], centers)
        empty = (sizes == 0).nonzero().flatten()
        draw = torch.randint(len(points), (len(empty),), generator=generator)
        centers[empty] = points[draw.to(points.device)]
    return centers


class ResidualQuantizer(nn.Module):
    """D codebooks applied one after the other to what the ones before left over.

    Args:
        codebook_sizes (sequence of `int`): K of every level.
        latent_size (`int`): Z.
    """

    def __init__(self, codebook_sizes: Sequence[int], latent_size: int) -> None:
        super().__init__()
        self.codebooks = nn.ParameterList(nn.Parameter(torch.randn(size, latent_size)) for size in codebook_sizes)

    def forward(self, latents: Tensor) -> ResidualQuantization:
        """Quantise latents `[N, Z]`; see [`ResidualQuantization`]."""
        residual, codes, codewords, residuals = latents, [], [], []
        for codebook in self.codebooks:
            code, _ = nearest(residual, codebook)
            codeword = codebook[code]
            residuals.append(residual)
            codes.append(code)
            codewords.append(codeword)
            residual = residual - codeword.detach()
        return ResidualQuantization(torch.stack(codes, 1), torch.stack(codewords, 1), torch.stack(residuals, 1))

    def lookup(self, codes: Tensor) -> Tensor:
        """Codewords, float `[N, d, Z]`, of the first d levels' codes, int64 `[N, d]`."""
        if codes.shape[1] == 0:
            return codes.new_zeros((len(codes), 0, self.codebooks[0].shape[1]), dtype=self.codebooks[0].dtype)
        return torch.stack([self.codebooks[level][codes[:, level]] for level in range(codes.shape[1])], dim=1)

    @torch.no_grad()
    def fit_kmeans(self, latents: Tensor, *, seed: int = 0, first_level: int = 0, iterations: int = 50) -> None:
        """Set the codebooks from `first_level` on by k-means on the residuals of latents `[N, Z]`, level by level."""
        residual = latents
        for level, codebook in enumerate(self.codebooks):
            if level >= first_level:
                codebook.copy_(kmeans(residual, len(codebook), seed=seed + level, iterations=iterations))
            residual = residual - codebook[nearest(residual, codebook)[0]]

    @torch.no_grad()
    def revive(self, latents: Tensor, usage: Sequence[Tensor], *, seed: int = 0) -> int:
        """Move codes that nothing chose onto random residuals, so that the whole codebook works.

        Args:
            latents (float `[N, Z]`): where the residuals come from.
            usage (sequence of int64 `[K]`): how often each code of each level was chosen lately; 0 means dead.
            seed (`int`): of the draw among the residuals.

        Returns:
            `int`: how many codes were moved.
        """
        generator = torch.Generator().manual_seed(seed)
        residual, moved = latents, 0
        for codebook, counts in zip(self.codebooks, usage, strict=True):
            dead = (counts == 0).nonzero().flatten().to(residual.device)
            picks = torch.randint(len(residual), (len(dead),), generator=generator).to(residual.device)
            codebook[dead] = residual[picks]
            moved += len(dead)
            residual = residual - codebook[nearest(residual, codebook)[0]]
        return moved
