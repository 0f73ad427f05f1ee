"""What a GPU would have to be waited for, or be sent, found on a CPU: neither may happen while a graph is captured."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# Operations whose result the host reads, or whose size the data decide.
_READ = {
    aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.nonzero, aten.nonzero_numpy,
    aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount, aten.histc,
}  # fmt: skip
_INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class HostWaits(TorchDispatchMode):
    """Records in `found` every operation that a CUDA graph cannot hold.

    `torch.tensor(list)` counts: on a GPU it is a copy from the host.

    Example:
        >>> with HostWaits() as waits:
        ...     count = int(torch.arange(3).max())
        >>> waits.found
        ['aten._local_scalar_dense.default']
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd"):
            with self:  # without gradients these come here whole: what they are made of counts
                return function.decompose(*args, **kwargs)
        packet = function._overloadpacket
        masked = packet in _INDEXED and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        counted = function is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None
        if packet in _READ or packet is aten.lift_fresh or masked or counted:
            self.found.append(str(function))
        return function(*args, **kwargs)
