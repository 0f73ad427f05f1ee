"""RMSNorm whose backward pass is as cheap as a LayerNorm's on a CPU."""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd.function import once_differentiable


class HiGRRMSNorm(nn.RMSNorm):
    """Root-mean-square normalisation (arXiv 1910.07467): `nn.RMSNorm`, and its results.

    On a CPU torch composes `nn.RMSNorm` of elementwise operations, a dozen passes over memory for its gradients, which
    was a tenth of a small model's training step. There, in float32 and where gradients are wanted, they are taken by
    LayerNorm's fused kernel instead. A subclass of `nn.RMSNorm`, so that whoever looks for norms finds it.

    Example:

    ```python
    >>> import torch
    >>> from higr_hf.norm_higr import HiGRRMSNorm
    >>> HiGRRMSNorm(4)(torch.tensor([3.0, -3.0, 3.0, 3.0])).round().tolist()
    [1.0, -1.0, 1.0, 1.0]

    ```
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., d]` to `[..., d]`."""
        fused = x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        if not fused or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().forward(x)
        return _FusedRMSNorm.apply(x, self.weight, torch.finfo(x.dtype).eps if self.eps is None else self.eps)


class _FusedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        x = x.contiguous()
        rows = x.view(-1, x.shape[-1])
        squares = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).square_()
        scale = squares.div_(rows.shape[1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, scale, weight)
        return (rows * scale).mul_(weight).view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, scale, weight = ctx.saved_tensors
        grad, width = grad.contiguous(), x.shape[-1]
        # A LayerNorm whose mean is 0 differs in one term: it takes away what a shift of all elements would do.
        of_x, of_weight, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, (width,), torch.zeros_like(scale), scale, weight, None, (True, True, False)
        )
        shift = grad.view(-1, width).mv(weight).div_(width).unsqueeze(1).mul_(scale)
        of_x.view(-1, width).add_(shift)
        return of_x, of_weight, None


__all__ = ["HiGRRMSNorm"]
