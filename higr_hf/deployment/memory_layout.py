"""How weights lie in memory, which on a CPU decides how fast a few vectors are multiplied with them."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def input_major(model: Module) -> Module:
    """Store the weights of all linear layers input by input, in place, for decoding on a CPU; returns the model.

    `nn.Linear` keeps its weight `[out, in]` output by output. To multiply a handful of vectors with it (the slots of a
    plan, the hypotheses of a beam) CPU libraries first copy the whole matrix into another order, which takes longer
    than the product. Shapes, names, values and results stay the same, and the model can be saved and trained as
    before.

    Example:
        >>> model = input_major(model)
        >>> model.model.planner.proj.weight.stride(0)
        1
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.data.t().contiguous().t()
    return model
