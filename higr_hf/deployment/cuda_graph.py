"""Slates from one CUDA graph: all kernels of a call are launched at once, where a small model waits for launches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from ..search_higr import HiGRGenerateOutput
from .fixed_shape import FixedShapeDecoder

if TYPE_CHECKING:
    from ..modeling_higr import HiGRForSlateGeneration

WARMUP = 2
"""Calls before the capture, in which libraries choose their kernels and allocate what they keep."""


class GraphedDecoder:
    """`generate` for batches of one shape, captured once into a CUDA graph and replayed for every batch.

    Decoding a small batch takes hundreds of kernels of a few microseconds each, and launching them one by one takes
    longer than running them. A graph launches them all at once. The slates are those of `generate`; its checks are
    made inside the graph, and their outcome is the one thing that a call waits for.

    The graph reads the weights where they lay when it was captured: values that are changed in place are seen, moving
    or replacing them is not, and another catalogue is refused. Its memory is kept as long as the decoder lives.

    Args:
        model: a [`HiGRForSlateGeneration`] (or the flat decoder) with a catalogue, in evaluation mode, on a GPU.
        batch_size (`int`): B, prompts of a batch; smaller batches are for another decoder.
        prompt_length (`int`): T, tokens of a prompt, padding included.
        **options: further arguments of [`FixedShapeDecoder`].

    Raises:
        RuntimeError: without CUDA, or for a model on another device.
        ValueError: for what [`FixedShapeDecoder`] refuses.

    Example:
        >>> model = model.to("cuda")  # doctest: +SKIP
        >>> decode = GraphedDecoder(model, batch_size=1, prompt_length=152, exclude_history=True)  # doctest: +SKIP
        >>> decode(prompts).slates.shape  # doctest: +SKIP
        torch.Size([1, 5])
    """

    def __init__(self, model: HiGRForSlateGeneration, *, batch_size: int, prompt_length: int, **options: Any) -> None:
        device = _gpu_of(model)
        self._decode = FixedShapeDecoder(model, batch_size=batch_size, prompt_length=prompt_length, **options)
        self.model, self._device = model, device
        pad = model.config.pad_token_id
        # Made outside of inference mode, which would not let them be written to outside of it.
        self._prompts = torch.full((batch_size, prompt_length), pad, device=device)
        self._exclude = None
        if self._decode.max_excluded:
            self._exclude = torch.full((batch_size, self._decode.max_excluded), -1, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._found: HiGRGenerateOutput | None = None
        self._any_unfit: torch.Tensor | None = None

    def __call__(
        self, input_ids: torch.Tensor, exclude: torch.Tensor | Sequence[Sequence[int]] | None = None
    ) -> HiGRGenerateOutput:
        """Decode a batch; the first one is captured.

        Args:
            input_ids (`LongTensor [B, T]`): prompts, `<bos> history <slate>`, on any device.
            exclude (`LongTensor [B, at most E]` padded with -1, or one sequence of item indices a prompt,
                *optional*): items that must not appear.

        Returns:
            [`HiGRGenerateOutput`]. Its tensors belong to the decoder and hold the next batch's slates after the next
            call: clone what is to be kept.

        Raises:
            ValueError: for another shape than the decoder's, and for what `generate` refuses; also for prompts that
                are padded where `padded` is `False`.
            RuntimeError: when the model was moved or its catalogue changed since the decoder was made.
        """
        if tuple(input_ids.shape) != tuple(self._prompts.shape):
            raise ValueError(
                f"This decoder was made for prompts of shape {list(self._prompts.shape)}; got "
                f"{list(input_ids.shape)}. Pad them with {self.model.config.pad_token_id}, or make another decoder."
            )
        if self.model.model.item_codes.device != self._device or self.model.model.trie() is not self._decode.trie:
            raise RuntimeError(
                "The model was moved, or its catalogue changed, since it was captured: make a new decoder."
            )
        self._prompts.copy_(input_ids)
        self._take_excluded(exclude)
        if self._graph is None:
            self._capture()
        self._graph.replay()
        if bool(self._any_unfit):
            self._refuse(input_ids, exclude)
        return self._found

    def _take_excluded(self, exclude: torch.Tensor | Sequence[Sequence[int]] | None) -> None:
        room = self._decode.max_excluded
        if exclude is None:
            if room:
                self._exclude.fill_(-1)
            return
        if not isinstance(exclude, torch.Tensor):
            rows = [torch.as_tensor(list(row), dtype=torch.long) for row in exclude]
            exclude = pad_sequence(rows, batch_first=True, padding_value=-1) if rows else torch.empty(0, 0)
        if exclude.dim() != 2 or len(exclude) != len(self._prompts) or exclude.shape[1] > room:
            raise ValueError(
                f"exclude must have shape [{len(self._prompts)}, at most {room}]; got {list(exclude.shape)}. Make the "
                "decoder with a larger max_excluded."
            )
        if room:
            self._exclude.fill_(-1)[:, : exclude.shape[1]] = exclude.to(self._device)

    def _run(self) -> None:
        self._found, unfit = self._decode(self._prompts, self._exclude)
        self._any_unfit = unfit.any()

    def _capture(self) -> None:
        with torch.cuda.device(self._device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARMUP):
                    self._run()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            # What other threads ask of CUDA meanwhile is theirs, and does not end the capture.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._run()
        self._graph = graph

    def _refuse(self, input_ids: torch.Tensor, exclude: torch.Tensor | Sequence[Sequence[int]] | None) -> None:
        """Raise what `generate` raises, or what is wrong with the shape."""
        decode, options = self._decode, self._decode.options
        self.model.generate(
            input_ids.to(self._device),
            exclude=exclude,
            exclude_history=decode.exclude_history,
            allow_short=options.allow_short,
            slate_size=options.slate_size,
            num_beams=1,
        )
        raise ValueError(
            f"A prompt does not fit the decoder's {decode.prompt_length} tokens: it has other units than "
            f"{decode.width} of history and `<slate>`"
            + ("." if decode.padded else ", and padded prompts need a decoder made with padded=True.")
        )


def _gpu_of(model: HiGRForSlateGeneration) -> torch.device:
    device = model.model.item_codes.device
    if not torch.cuda.is_available():
        raise RuntimeError("A CUDA graph needs an NVIDIA GPU and a torch built for CUDA: use `generate` here.")
    if device.type != "cuda":
        raise RuntimeError(f"A CUDA graph needs the model on a GPU; it is on {device}: move it, `model.to('cuda')`.")
    return device


__all__ = ["GraphedDecoder"]
