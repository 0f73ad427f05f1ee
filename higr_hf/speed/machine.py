"""What the machine can do at best, measured in the process that measures everything else."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ceilings:
    """Attributes:
    flops: floating-point operations a second of a large matrix product.
    bandwidth: bytes a second, read and written, of a large copy.
    """

    flops: float
    bandwidth: float

    def floor(self, operations: float, size: float) -> float:
        """Seconds that work takes at least on this machine: the longer of computing and moving.

        Args:
            operations: floating-point operations, an addition and a multiplication being two.
            size: bytes.

        Example:
            >>> Ceilings(flops=100.0, bandwidth=10.0).floor(operations=200, size=50)
            5.0
        """
        return max(operations / self.flops, size / self.bandwidth)


def measure_ceilings(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    size: int | None = None,
    megabytes: int | None = None,
    repeats: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> Ceilings:
    """Time a square matrix product and a copy; the best of some repetitions counts.

    Args:
        device: where.
        dtype: of the product. In float32 a GPU multiplies as torch's settings say, by default without TF32.
        size: rows and columns of the matrices; 1024 by default, 8192 on a GPU, which smaller ones do not fill.
        megabytes: size of the copy, more than caches hold; 256 by default, 4096 on a GPU.
        repeats: of each.
        clock: what tells the time.
    """
    on_gpu = torch.device(device).type == "cuda"
    size = size or (8192 if on_gpu else 1024)
    megabytes = megabytes or (4096 if on_gpu else 256)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty(size, size, device=device, dtype=dtype)
    source = torch.ones(megabytes * 10**6 // 4, device=device)
    target = torch.empty_like(source)
    multiply = _best(lambda: torch.mm(left, right, out=product), repeats, device, clock)
    copy = _best(lambda: target.copy_(source), repeats, device, clock)
    return Ceilings(2 * size**3 / multiply, 2 * source.numel() * source.element_size() / copy)


def _best(call, repeats: int, device: str | torch.device, clock: Callable[[], float]) -> float:
    on_gpu = torch.device(device).type == "cuda"
    call()
    fastest = float("inf")
    for _ in range(repeats):
        if on_gpu:
            torch.cuda.synchronize()
        start = clock()
        call()
        if on_gpu:
            torch.cuda.synchronize()
        fastest = min(fastest, clock() - start)
    return fastest
