"""int8 models that multiply integers: faster than float32 on CPUs with instructions for it, not only smaller."""

from __future__ import annotations

import torch

from ..modeling_higr import HiGRForSlateGeneration
from .int8 import Int8Linear

_ENGINES = ("x86", "fbgemm", "onednn")


class Int8ProductLinear(Int8Linear):
    """[`Int8Linear`] whose input is quantised when it comes, so that integers are multiplied.

    One scale and one offset hold for the whole input, as in torch's own dynamic quantisation, whose kernel this is.
    The weight is kept a second time in the order that the kernel wants; a state dict holds it once.

    Args:
        layer: where the weight is; its tensors are shared, not copied.
    """

    def __init__(self, layer: Int8Linear) -> None:
        torch.nn.Module.__init__(self)
        self.register_buffer("quantized", layer.quantized)
        self.register_buffer("scale", layer.scale)
        # A row of zeros has scale 0, by which nothing can be divided; its integers are 0 under any.
        scale = torch.where(layer.scale > 0, layer.scale, 1).squeeze(1).double()
        offset = torch.zeros(len(scale), dtype=torch.long)
        weight = torch.quantize_per_channel(layer.weight, scale, offset, axis=0, dtype=torch.qint8)
        self._packed = torch.ops.quantized.linear_prepack(weight, None)
        self.packed_bytes = layer.quantized.numel()
        # Without VNNI sums of two products are kept in 16 bits, which 8 bits by 8 can overflow and 7 by 8 cannot.
        self._reduce_range = not torch.cpu.get_capabilities().get("avx512_vnni", False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in]` to `[..., out]`, float32."""
        return torch.ops.quantized.linear_dynamic(x, self._packed, reduce_range=self._reduce_range)


def multiply_in_int8(model: HiGRForSlateGeneration) -> HiGRForSlateGeneration:
    """Let an int8 model's linear layers multiply integers, in place, for decoding on an x86 CPU; returns the model.

    Layers quantise what they read by the largest and smallest number in it. That rounds it to a percent or so of its
    size, and the numbers of a whole batch are rounded alike: of two items about as good, which comes first may depend
    on who else is in the batch. Measure the quality (`training.study_precision`). Norms, attention, embeddings and the
    head compute as before. The model is saved by [`save_int8`] as before, and prepared again when it is loaded.

    Args:
        model: what [`quantize_int8`] or [`load_int8`] returned, on the CPU.

    Raises:
        ValueError: for a model that is not int8 or not on the CPU, or where torch has no x86 kernels for integers.

    Example:
        >>> model = multiply_in_int8(quantize_int8(model))
        >>> slates = model.generate(**tokenizer.encode_prompts([tokenizer.item_ids[:2]]), slate_size=5)
    """
    if torch.backends.quantized.engine not in _ENGINES:
        raise ValueError(
            f"Products in int8 need one of torch's quantized engines {_ENGINES}; this torch uses "
            f"{torch.backends.quantized.engine!r}. Decode with the int8 model as it is."
        )
    layers = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, Int8Linear)
    ]
    if not layers:
        raise ValueError(
            "The model has no int8 layers: quantise it with `quantize_int8`, or load it with `load_int8`."
        )
    if any(layer.quantized.device.type != "cpu" for _, _, layer in layers):
        raise ValueError("Products in int8 are for the CPU: move the model there first.")
    for parent, name, layer in layers:
        setattr(parent, name, Int8ProductLinear(layer))
    return model


__all__ = ["Int8ProductLinear", "multiply_in_int8"]
