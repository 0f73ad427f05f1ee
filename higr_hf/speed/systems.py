"""The systems whose speed is compared: one catalogue, one size of model, one kind of prompt."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..architectures import architecture
from ..catalog_higr import Legality, SIDTrie
from ..configuration_higr import SLATE_MODES
from ..deployment import GraphedDecoder, multiply_in_int8, quantize_int8
from ..deployment.memory_layout import input_major
from .flat_llama import build_llama, generate_slates
from .ranking import NextItemRanker
from .work import Work, decoding_work

GRAPHED = {"cuda-graph": "float32", "cuda-graph-bfloat16": "bfloat16"}
"""Preparations of a whole call, and how the model's weights are prepared for it."""

PREPARATIONS = ("float32", "input-major", "bfloat16", "int8", "int8-products", "compiled", *GRAPHED)


@dataclass(frozen=True)
class Shape:
    """What is decoded.

    Attributes:
        preset: size of the models.
        num_items: N, catalogue.
        codebook_size: K, codes of each of the three levels.
        slate_size: M.
        history: H, items a prompt.
        num_beams: W.
    """

    preset: str = "tiny"
    num_items: int = 10_000
    codebook_size: int = 64
    slate_size: int = 5
    history: int = 50
    num_beams: int = 10

    def __str__(self) -> str:
        return (
            f"{self.preset}, {self.num_items} items of {self.codebook_size}x3 codes, {self.slate_size} slots, "
            f"history {self.history}, beam {self.num_beams}"
        )


@dataclass(frozen=True)
class System:
    """One way to a slate.

    Attributes:
        name: which of the benchmark's systems (`higr`, `onerec`, `sasrec`).
        variant: what tells it from others of the name.
        options: arguments of `generate`, or of what stands in its place.
        model: `higr`, `onerec`, `llama` or `ranker`.
        mode: for [`decoding_work`]; `None` where the work is not counted.
    """

    name: str
    variant: str
    options: dict[str, Any]
    model: str
    mode: str | None = None


def all_systems(num_beams: int) -> list[System]:
    """Every system, the flat beam with its cache first: it is what the others are held against."""
    higr = [
        System("higr", mode.replace("_", "-"), {"slate_mode": mode, "num_beams": num_beams}, "higr", mode)
        for mode in SLATE_MODES
    ]
    anew = {"slate_mode": "sequential", "num_beams": num_beams, "use_cache": False}
    flat = [
        System("onerec", f"flat {kind}{'' if kept else ', no cache'}", {"num_beams": width, "use_cache": kept},
               "onerec", "flat")
        for kept in (True, False)
        for kind, width in (("beam", num_beams), ("greedy", 1))
    ]  # fmt: skip
    llama = [
        System("onerec", f"Llama, HF generate {kind}", {"num_beams": width}, "llama")
        for kind, width in (("beam", num_beams), ("greedy", 1))
    ]
    return [
        *flat[:2],
        *higr,
        System("higr", "sequential, no cache", anew, "higr", "sequential"),
        *flat[2:],
        *llama,
        System("sasrec", "top M of all items", {}, "ranker"),
    ]


class Bench:
    """Models of one shape with random weights over one random catalogue, and prompts for them.

    Args:
        shape: what is decoded.
        prepared: `float32`, or what is done to HiGR and OneRec before they are timed: `input-major` weights in
            float32, `bfloat16`, `int8` weights, `int8-products` of them, or `compiled` in float32: the encoder, and
            HiGR's planner and the item generator's step. OneRec's blocks work around its cache and stay as they are.
            `cuda-graph` and `cuda-graph-bfloat16` capture the whole call, see [`GraphedDecoder`].
        device: where.
        seed: of weights, catalogue and prompts.
        models: those that were made already, by the preparation of their weights and their kind; benches of one shape
            that are given one dictionary share them.

    Raises:
        ValueError: for an unknown preparation, a CUDA graph elsewhere than on a GPU, or a catalogue that the codes
            cannot name.

    Example:
        >>> bench = Bench(Shape(num_items=50, codebook_size=4, history=3, num_beams=2))
        >>> slates = {system.variant: bench.call(system, batch=2)() for system in all_systems(2)}
        >>> {tuple(slate.shape) for slate in slates.values()}
        {(2, 5)}
    """

    def __init__(
        self,
        shape: Shape,
        prepared: str = "float32",
        device: str = "cpu",
        seed: int = 0,
        models: dict[tuple[str, str], torch.nn.Module] | None = None,
    ) -> None:
        check_preparation(prepared)
        if prepared in GRAPHED and torch.device(device).type != "cuda":
            raise ValueError(f"{prepared} needs a GPU, device='cuda'; the device is {device}.")
        if shape.num_items > shape.codebook_size**3:
            raise ValueError(f"{shape.codebook_size}³ codes cannot name {shape.num_items} items: use more codes.")
        self.shape, self.prepared, self.device, self.seed = shape, prepared, torch.device(device), seed
        self._models = {} if models is None else models
        self.codes = random_codes(shape, seed)
        self.sizes = {
            "codebook_sizes": [shape.codebook_size] * 3,
            "num_items": shape.num_items,
            "slate_size": shape.slate_size,
            "max_history": shape.history,
            # As published: no vector of an item's own, whose table would be all that a large catalogue measures.
            "item_embedding": False,
            "dense_head": False,
        }
        self.config = architecture("higr")[0].from_preset(shape.preset, **self.sizes)

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the prepared weights and states."""
        return torch.bfloat16 if "bfloat16" in self.prepared else torch.float32

    def supports(self, system: System) -> bool:
        """Whether a system can be had so prepared."""
        if self.captured and not system.options.get("use_cache", True):
            return False
        return self.prepared == "float32" or system.model in ("higr", "onerec")

    @property
    def captured(self) -> bool:
        """Whether calls are replayed from a CUDA graph, whose memory is kept between them."""
        return self.prepared in GRAPHED

    def model(self, kind: str) -> torch.nn.Module:
        """The model of a kind, made when it is first asked for."""
        key = GRAPHED.get(self.prepared, self.prepared), kind
        if key not in self._models:
            self._models[key] = self._made(kind)
        return self._models[key]

    def _made(self, kind: str) -> torch.nn.Module:
        torch.manual_seed(self.seed)
        if kind == "llama":
            return build_llama(self.config, self.shape.history, self.shape.slate_size).to(self.device)
        if kind == "ranker":
            return NextItemRanker(self.config).eval().to(self.device)
        config_class, model_class = architecture(kind)
        model: PreTrainedModel = model_class(config_class.from_preset(self.shape.preset, **self.sizes)).eval()
        model.set_catalog(self.codes)
        return prepare(model, GRAPHED.get(self.prepared, self.prepared), self.device)

    @functools.cache  # noqa: B019 - a bench and its tree live and die together
    def _trie(self) -> SIDTrie:
        return SIDTrie.build(self.codes.to(self.device), self.config.codebook_sizes)

    def prompts(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Random histories `LongTensor [B, H]`, no item twice, and their prompts `LongTensor [B, T]`."""
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.rand(batch, min(self.shape.num_items, 8 * self.shape.history), generator=generator)
        history = noise.argsort(dim=1)[:, : self.shape.history] * max(1, self.shape.num_items // noise.shape[1])
        tokens = (self.codes[history] + torch.tensor(self.config.level_offsets)).flatten(1)
        bos, slate = (tokens.new_full((batch, 1), token) for token in (self.config.bos_token_id, 3))
        return history.to(self.device), torch.cat([bos, tokens, slate], dim=1).to(self.device)

    def call(self, system: System, batch: int) -> Callable[[], torch.Tensor]:
        """What is timed: slates `LongTensor [B, M]` for a batch, no item of the history among them."""
        model, (history, prompts) = self.model(system.model), self.prompts(batch)
        if system.model == "ranker":
            recommend = torch.inference_mode()(model.recommend)
            return lambda: recommend(history, self.shape.slate_size)
        if system.model == "llama":
            return lambda: generate_slates(
                model,
                self.config,
                Legality(self._trie(), batch, excluded=history),
                prompts,
                self.shape.slate_size,
                **system.options,
            )
        if self.captured:
            options = {name: value for name, value in system.options.items() if name != "use_cache"}
            decode = GraphedDecoder(
                model,
                batch_size=batch,
                prompt_length=prompts.shape[1],
                slate_size=self.shape.slate_size,
                exclude_history=True,
                padded=False,  # as in `generate`, which finds all prompts to be of one length
                **options,
            )
            return lambda: decode(prompts).slates
        return lambda: (
            model.generate(
                prompts,
                slate_size=self.shape.slate_size,
                exclude_history=True,
                return_dict_in_generate=True,
                **system.options,
            ).slates
        )

    def work(self, system: System, batch: int) -> Work | None:
        """What a call must do at least, where that is counted."""
        if system.mode is None:
            return None
        return decoding_work(
            self.config,
            system.mode,
            batch=batch,
            history=self.shape.history,
            slate_size=self.shape.slate_size,
            num_beams=system.options["num_beams"],
            use_cache=system.options.get("use_cache", True),
        )


def check_preparation(prepared: str) -> None:
    """Raise a `ValueError` for a preparation that there is not."""
    if prepared not in PREPARATIONS:
        raise ValueError(f"prepared must be one of {PREPARATIONS}; got {prepared!r}.")


def prepare(model: PreTrainedModel, prepared: str, device: str | torch.device = "cpu") -> PreTrainedModel:
    """A float32 model made ready to be timed, see [`Bench`]; in place where that can be.

    Raises:
        ValueError: for an unknown preparation, or one of a call instead of a model.
    """
    check_preparation(prepared)
    if prepared in GRAPHED:
        raise ValueError(f"{prepared} prepares a call, not a model: use a `GraphedDecoder`.")
    if prepared == "bfloat16":
        model.to(torch.bfloat16)
    if prepared in ("int8", "int8-products"):
        model = quantize_int8(model)
    if prepared == "int8-products":
        model = multiply_in_int8(model)
    model.to(device)
    if prepared == "input-major":
        input_major(model)
    if prepared == "compiled":
        _compile_stages(model)
    return model


def _compile_stages(model: PreTrainedModel) -> None:
    # A graph a code of an item, each for one or more rows, slots and hypotheses: more than dynamo's limit allows.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    model.model.encoder.compile(dynamic=True)
    model.model.planner.compile(dynamic=True)
    for generator in model.model.generators:
        generator.step = torch.compile(generator.step, dynamic=True)


def random_codes(shape: Shape, seed: int) -> torch.Tensor:
    """Distinct semantic IDs, `LongTensor [N, 3]`."""
    space, generator = shape.codebook_size**3, torch.Generator().manual_seed(seed)
    keys = torch.randint(space, (min(space, 2 * shape.num_items),), generator=generator).unique()
    while len(keys) < shape.num_items:  # a nearly full space
        keys = torch.cat([keys, torch.randint(space, (space,), generator=generator)]).unique()
    keys = keys[torch.randperm(len(keys), generator=generator)[: shape.num_items]]
    size = shape.codebook_size
    return torch.stack([keys // size**2, keys // size % size, keys % size], dim=1)
