from __future__ import annotations

import pytest
import torch
from torch import nn

from higr_hf.norm_higr import HiGRRMSNorm


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 4, 5), (0, 5)], ids=str)
def test_values_and_gradients_are_those_of_the_plain_norm(shape):
    generator = torch.Generator().manual_seed(0)
    ours, plain = HiGRRMSNorm(5, eps=1e-3), nn.RMSNorm(5, eps=1e-3)
    with torch.no_grad():
        for norm in (ours, plain):
            norm.weight.copy_(torch.tensor([0.5, -1.0, 2.0, 0.0, 3.0]))
    x = torch.randn(shape, generator=generator, requires_grad=True)
    grad = torch.randn(shape, generator=generator)
    results = [(y := norm(x), *torch.autograd.grad(y, (x, norm.weight), grad)) for norm in (ours, plain)]
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_a_transposed_input_and_gradient():
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).T.requires_grad_()
    ours, plain = HiGRRMSNorm(5), nn.RMSNorm(5)
    gradients = [torch.autograd.grad((norm(x).T * torch.arange(4.0)).sum(), x)[0] for norm in (ours, plain)]
    torch.testing.assert_close(*gradients)


def test_without_gradients_and_in_other_precisions_it_is_the_plain_norm():
    ours, plain = HiGRRMSNorm(5), nn.RMSNorm(5)
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert ours(x).equal(plain(x))
    for dtype in (torch.bfloat16, torch.float64):
        assert ours.to(dtype)(x.to(dtype)).equal(plain.to(dtype)(x.to(dtype)))
    assert torch.autograd.gradcheck(ours.double(), (x.double().requires_grad_(),))
