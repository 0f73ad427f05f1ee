"""Weight-only int8: a quarter of the size on disk and in memory, for CPUs.

Every matrix is stored as int8 with one float32 scale a row (absmax / 127), and multiplied out when it is used. So it
saves memory and disk, not time; `int8_products` has the layers that multiply integers. Norms, slot and step embeddings
stay float32: they are small. The result is one safetensors file; nothing is pickled.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import GenerationConfig

from ..checkpoint import CheckpointError, check_agreement
from ..configuration_higr import HiGRConfig
from ..modeling_higr import HiGRForSlateGeneration
from ..stages_higr import SemanticIDHead
from ..tokenization_higr import HiGRTokenizer
from ..utils import atomic_directory
from ..weights_higr import check_layer_counts

WEIGHTS = "model.int8.safetensors"
FORMAT = "higr-int8-1"


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 `[n, d]` and float32 scales `[n, 1]` of a matrix `[n, d]`; `int8 × scale` is within half a scale of it."""
    weight = weight.detach().float()
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    # A row of zeros (padding, items that joined) stays one.
    return (weight / torch.where(scale > 0, scale, 1)).round().to(torch.int8), scale


class _Int8Matrix(nn.Module):
    """An int8 matrix with a scale a row."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.register_buffer("quantized", torch.zeros(rows, columns, dtype=torch.int8))
        self.register_buffer("scale", torch.zeros(rows, 1))

    def store(self, weight: torch.Tensor) -> None:
        self.quantized, self.scale = quantize_rows(weight)

    def dequantized(self) -> torch.Tensor:
        return self.quantized.float() * self.scale


class Int8Linear(_Int8Matrix):
    """`nn.Linear` without bias."""

    @property
    def weight(self) -> torch.Tensor:
        """float32 `[out, in]`."""
        return self.dequantized()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in]` to `[..., out]`."""
        # The scale of a row is the scale of an output: cheaper there than on the matrix.
        return nn.functional.linear(x, self.quantized.float()) * self.scale.squeeze(1)


class Int8Embedding(_Int8Matrix):
    """`nn.Embedding`; only the rows that are looked up are multiplied out."""

    @property
    def weight(self) -> torch.Tensor:
        """float32 `[rows, d]`."""
        return self.dequantized()

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        """`[...]` to `[..., d]`."""
        return self.quantized[index].float() * self.scale[index]


class Int8Head(SemanticIDHead):
    """[`SemanticIDHead`] whose `proj` is int8."""

    def __init__(self, config: HiGRConfig) -> None:
        nn.Module.__init__(self)
        self.config, self.bias = config, None
        self.matrix = _Int8Matrix(config.vocab_size, config.hidden_size)

    @property
    def proj(self) -> torch.Tensor:
        """float32 `[vocab_size, d]`."""
        return self.matrix.dequantized()


def _replaced(model: HiGRForSlateGeneration, fill: bool) -> HiGRForSlateGeneration:
    """Put int8 modules in the places of linear layers, token and item embeddings, and head."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                matrix: nn.Module = Int8Linear(child.out_features, child.in_features)
            elif isinstance(child, nn.Embedding) and name in ("embed_tokens", "embed_items"):
                matrix = Int8Embedding(child.num_embeddings, child.embedding_dim)
            else:
                continue
            if fill:
                matrix.store(child.weight)
            setattr(parent, name, matrix)
    head = Int8Head(model.config)
    if fill:
        head.matrix.store(model.lm_head.proj)
    model.lm_head = head
    return model.eval().requires_grad_(False)


def quantize_int8(model: HiGRForSlateGeneration) -> HiGRForSlateGeneration:
    """Quantise a model in place and return it; it generates as before, and can no longer be trained.

    Example:
        >>> model = quantize_int8(model)
        >>> slates = model.generate(**tokenizer.encode_prompts([tokenizer.item_ids[:2]]), slate_size=5)
    """
    return _replaced(model.float(), fill=True)


def save_int8(directory: str | os.PathLike, model: HiGRForSlateGeneration, tokenizer: HiGRTokenizer) -> Path:
    """Write a model in int8 with its tokenizer into one directory, as a whole or not at all.

    Args:
        directory: where to.
        model: float, which stays as it is, or already quantised.
        tokenizer: the one that belongs to it.

    Raises:
        CheckpointError: when model and tokenizer do not belong together.
    """
    check_agreement(model, tokenizer)
    model.check_tokenizer(tokenizer)
    if not isinstance(model.lm_head, Int8Head):
        twin = HiGRForSlateGeneration(model.config)
        twin.load_state_dict(model.state_dict())
        twin.generation_config = model.generation_config
        model = quantize_int8(twin)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    model.config.tokenizer_fingerprint = tokenizer.fingerprint
    with atomic_directory(directory) as folder:
        save_file(tensors, folder / WEIGHTS, metadata={"format": FORMAT})
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return Path(directory)


def load_int8(directory: str | os.PathLike) -> tuple[HiGRForSlateGeneration, HiGRTokenizer]:
    """Read what [`save_int8`] wrote; float weights are never allocated.

    Raises:
        FileNotFoundError: when there is no int8 checkpoint.
        CheckpointError: for a file that is damaged, of another model, or whose sizes are not those of `config.json`.
    """
    directory = Path(directory)
    path = directory / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: write an int8 checkpoint with `save_int8`.")
    tokenizer = HiGRTokenizer.from_pretrained(directory, local_files_only=True)
    config = HiGRConfig.from_pretrained(directory, local_files_only=True)
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("format") != FORMAT:
                raise CheckpointError(f"{path} is not an int8 checkpoint of format {FORMAT!r}.")
            shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            check_layer_counts(config, len(shapes), str(directory))
            with torch.device("meta"):  # sizes are compared before anything is allocated
                model = _replaced(HiGRForSlateGeneration(config), fill=False)
            expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
            for name in sorted({*expected, *shapes}):
                if expected.get(name) != shapes.get(name):
                    raise CheckpointError(
                        f"{path} does not fit its config.json: {name} has shape {shapes.get(name)}, expected "
                        f"{expected.get(name)}. The files are of different models."
                    )
            model.load_state_dict({name: file.get_tensor(name) for name in shapes}, assign=True)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or corrupt ({error}): save or download it again.") from error
    model.generation_config = GenerationConfig.from_pretrained(directory, local_files_only=True)
    model.check_tokenizer(tokenizer)
    check_agreement(model, tokenizer)
    return model.eval(), tokenizer


def size_in_megabytes(model: nn.Module) -> float:
    """What parameters and buffers take, and what int8 layers keep in a kernel's own order, in 10^6 bytes."""
    tensors = [*model.parameters(), *model.buffers()]
    packed = sum(getattr(module, "packed_bytes", 0) for module in model.modules())
    return (sum(tensor.numel() * tensor.element_size() for tensor in tensors) + packed) / 1e6
