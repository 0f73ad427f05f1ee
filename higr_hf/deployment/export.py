"""The model as three graphs of tensors, for `torch.export` and ONNX: encode a history, plan a slot, spell a code.

What is data-dependent (parsing tokens, the prefix tree, the beam) stays outside; [`OnnxSlateDecoder`] does it in
numpy. Shape letters: B batch, U units of the history (`<bos>` and the items), S tokens a unit, Q slots planned at
once, P slots planned before, R hypotheses, C codes spelled before, h heads, d width, V vocabulary.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.numpy import save_file
from torch import nn
from torch.export import Dim, ExportedProgram

from ..checkpoint import check_agreement
from ..layers_higr import rotary_table
from ..repeats_higr import GAIN
from ..trends_higr import NEWEST
from ..utils import atomic_directory

if TYPE_CHECKING:
    from ..modeling_higr import HiGRForSlateGeneration
    from ..tokenization_higr import HiGRTokenizer

OPSET = 18


class _Step(nn.Module):
    def __init__(self, model: HiGRForSlateGeneration) -> None:
        super().__init__()
        config, inner = model.config, model.model
        if not (config.shared_generator and config.generator_context):
            raise ValueError("Export needs a model with shared_generator=True and generator_context=True.")
        self.config, self.embeddings = config, inner.embeddings
        self.encoder, self.planner, self.generator = inner.encoder, inner.planner, inner.generators[0]
        self.lm_head, self.item_codes = model.lm_head, inner.item_codes

    def rotary(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotary tables of positions `[B, T]`."""
        width = self.config.hidden_size // self.config.num_attention_heads
        return rotary_table(positions, width, self.config.rope_theta, self.planner.proj.weight.dtype)


class EncoderStep(_Step):
    """Encode a history, and compute once what every later step reads of it."""

    INPUTS = ("tokens", "items", "length")
    OUTPUTS = ("newest", "planner_keys", "planner_values", "generator_keys", "generator_values")

    def forward(self, tokens: torch.Tensor, items: torch.Tensor, length: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Encode.

        Args:
            tokens (`LongTensor [B, U, S]`): tokens of every unit, `<bos>` first, padded with 0; padding units last.
            items (`LongTensor [B, U]`): catalogue index of every unit, -1 for none.
            length (`LongTensor [B]`): units of each row, at least 1.

        Returns:
            `newest [B, d]`; keys and values for the planner's and for the generator's layers, each
            `[layers, B, h, U, d/h]`.
        """
        embedded = self.embeddings.embed_tokens(tokens)
        if self.config.pooling == "sum":  # <pad> is a row of zeros
            units = embedded.sum(2)
        else:
            is_code = (tokens >= self.config.level_offsets[0])[..., None]
            units = torch.where(is_code, 0, embedded).sum(2)
            if self.config.pooling == "mean":
                units = units + torch.where(is_code, embedded, 0).sum(2) / is_code.sum(2).clamp(min=1)
            else:
                largest = torch.where(is_code, embedded, float("-inf")).amax(2)
                units = units + torch.where(largest.isinf(), 0, largest)
        if self.config.item_embedding:
            units = units + self.embeddings.embed_items(items + 1)
        rotary = self.rotary(torch.arange(tokens.shape[1], device=tokens.device)[None])
        encoded = self.encoder(units, length, rotary)
        newest = encoded.gather(1, (length - 1)[:, None, None].expand(-1, 1, encoded.shape[-1])).squeeze(1)
        planner = self.planner.key_values(encoded, rotary)
        generator = self.generator.key_values(encoded)
        stacked = [torch.stack([pair[part] for pair in pairs]) for pairs in (planner, generator) for part in (0, 1)]
        return newest, *stacked


class PlannerStep(_Step):
    """Plan slots: one after each decoded item, or all at once with nothing fed."""

    INPUTS = ("newest", "length", "keys", "values", "slot", "fed", "wish", "past_keys", "past_values")
    OUTPUTS = ("plans", "present_keys", "present_values")

    def forward(
        self,
        newest: torch.Tensor,
        length: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        slot: torch.Tensor,
        fed: torch.Tensor,
        wish: torch.Tensor,
        past_keys: torch.Tensor,
        past_values: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Plan.

        Args:
            newest, length, keys, values: of [`EncoderStep`].
            slot (`LongTensor [Q]`): slot numbers, following those planned before.
            fed (`LongTensor [B, Q]`): catalogue index of the item in the slot before, -1 to feed none.
            wish (`LongTensor [B]`): feedback token asked for, 0 for none.
            past_keys, past_values (`[layers, B, h, P, d/h]`): of the slots before.

        Returns:
            `plans [B, Q, d]`, and keys and values with the new slots, `[layers, B, h, P + Q, d/h]`.
        """
        index = fed.clamp(min=0)
        start = self.embeddings.embed_tokens.weight[self.config.slate_token_id]
        inputs = torch.where(
            (fed >= 0)[..., None], self.embeddings.items(self.item_codes[index], index), start
        ) + newest.unsqueeze(1)
        inputs = inputs + self.planner.slots(slot) + self.embeddings.embed_tokens(wish).unsqueeze(1)
        context_mask = (torch.arange(keys.shape[3], device=slot.device) < length[:, None])[:, None, None]
        before, new = past_keys.shape[3], slot.shape[0]
        position = torch.arange(before + new, device=slot.device)
        self_mask = (position <= before + torch.arange(new, device=slot.device)[:, None])[None, None]
        layers = range(len(self.planner.layers))
        plans, cache = self.planner(
            inputs,
            [(keys[layer], values[layer]) for layer in layers],
            context_mask,
            self_mask,
            self.rotary(length[:, None] + slot),
            [(past_keys[layer], past_values[layer]) for layer in layers],
        )
        return plans, torch.stack([key for key, _ in cache]), torch.stack([value for _, value in cache])


class GeneratorStep(_Step):
    """Spell one more code of every hypothesis."""

    INPUTS = ("plans", "tokens", "step", "length", "keys", "values", "past_keys", "past_values")
    OUTPUTS = ("log_probs", "present_keys", "present_values")

    def forward(
        self,
        plans: torch.Tensor,
        tokens: torch.Tensor,
        step: torch.Tensor,
        length: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        past_keys: torch.Tensor,
        past_values: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Spell.

        Args:
            plans (`[B, R, d]`): plan vector of every hypothesis; read at step 0.
            tokens (`LongTensor [B, R]`): its newest token; read at the other steps.
            step (`LongTensor [1]`): level of the code that is asked for.
            length, keys, values: of [`EncoderStep`].
            past_keys, past_values (`[layers, B, R, h, C, d/h]`): of the codes before.

        Returns:
            `log_probs [B, R, V]`, in which only the tokens of the level (and at step 0 the special ones) count; keys
            and values with the new code.
        """
        hidden = torch.where(step == 0, plans, self.embeddings.embed_tokens(tokens))
        hidden = (hidden + self.generator.embed_steps(step)).unsqueeze(2)
        mask = (torch.arange(keys.shape[3], device=tokens.device) < length[:, None])[:, None, None]
        cache = []
        for index, layer in enumerate(self.generator.layers):
            past = (past_keys[index].flatten(0, 1), past_values[index].flatten(0, 1))
            hidden, pair = layer(hidden, (keys[index], values[index]), mask, past)
            cache.append(pair)
        state = self.generator.norm(hidden).squeeze(2)
        group = nn.functional.one_hot(step, self.config.num_levels).to(state.dtype).expand(*state.shape[:2], -1)
        # What a catalogue prior adds is left to the decoder, which knows the prefix tree.
        added = state.new_zeros(*state.shape[:2], self.lm_head.num_added)
        log_probs = self.lm_head(torch.cat([state, added, group], dim=-1)).float().log_softmax(-1)
        present = [torch.stack([pair[part] for pair in cache]).unflatten(1, plans.shape[:2]) for part in (0, 1)]
        return log_probs, *present


class PriorStep(_Step):
    """Score the whole catalogue with a plan vector, for models with a catalogue prior."""

    INPUTS = ("plans",)
    OUTPUTS = ("scores",)

    def forward(self, plans: torch.Tensor) -> tuple[torch.Tensor]:
        """`plans [B, Q, d]` to scores of the items by index, `[B, Q, N]`."""
        index = torch.arange(len(self.item_codes), device=plans.device)
        return ((plans @ self.embeddings.items(self.item_codes, index).T).float(),)


STEPS = {"encoder": EncoderStep, "planner": PlannerStep, "generator": GeneratorStep, "prior": PriorStep}


def _example(model: HiGRForSlateGeneration, name: str) -> tuple[tuple[torch.Tensor, ...], tuple]:
    """Inputs of a step to trace it with, and which of their dimensions may vary."""
    config = model.config
    heads, width = config.num_attention_heads, config.hidden_size
    B, U, Q, P, R, C = 2, 7, 3, 4, 5, 2
    batch, units, slots, before = (Dim(letter, min=1) for letter in ("batch", "units", "slots", "before"))
    rows, codes = Dim("rows", min=1), Dim("codes", min=1)
    dtype = model.dtype
    length = torch.tensor([U, U - 2])

    def cache(layers: int, *sizes: int) -> list[torch.Tensor]:
        """Keys and values: tensors of their own, as the tracer takes one tensor given twice for one input."""
        return [torch.randn(layers, *sizes, width // heads, dtype=dtype) for _ in range(2)]

    if name == "encoder":
        extra = int(config.num_feedback_levels > 0) + int(config.num_time_buckets > 0)
        tokens = torch.randint(1, config.vocab_size, (B, U, config.num_levels + extra))
        items = torch.arange(B * U).view(B, U) % max(config.num_items, 1)
        return (tokens, items, length), ({0: batch, 1: units}, {0: batch, 1: units}, {0: batch})
    if name == "prior":
        return (torch.randn(B, Q, width, dtype=dtype),), ({0: batch, 1: slots},)
    newest = torch.randn(B, width, dtype=dtype)
    if name == "planner":
        layers = config.planner_layers
        context, past = cache(layers, B, heads, U), cache(layers, B, heads, P)
        fed = torch.arange(B * Q).view(B, Q) % max(config.num_items, 1)
        wish = torch.zeros_like(length)
        inputs = (newest, length, *context, torch.arange(P, P + Q), fed, wish, *past)
        wide, long = {1: batch, 3: units}, {1: batch, 3: before}
        varying = ({0: batch}, {0: batch}, wide, wide, {0: slots}, {0: batch, 1: slots}, {0: batch}, long, long)
        return inputs, varying
    layers = config.generator_layers
    context, past = cache(layers, B, heads, U), cache(layers, B, R, heads, C)
    plans, tokens = torch.randn(B, R, width, dtype=dtype), torch.randint(5, config.vocab_size, (B, R))
    wide, long, flat = {1: batch, 3: units}, {1: batch, 2: rows, 4: codes}, {0: batch, 1: rows}
    inputs = (plans, tokens, torch.tensor([1]), length, *context, *past)
    return inputs, (flat, flat, {}, {0: batch}, wide, wide, long, long)


@torch.no_grad()
def export_programs(model: HiGRForSlateGeneration) -> dict[str, ExportedProgram]:
    """The three steps as `torch.export` programs with dynamic batch, lengths, slots and hypotheses.

    Args:
        model: with its catalogue set; it stays as it is.

    Returns:
        `encoder`, `planner` and `generator`, and `prior` for a model that has a catalogue prior; inputs and outputs
        are those of [`EncoderStep`], [`PlannerStep`], [`GeneratorStep`] and [`PriorStep`].

    Raises:
        ValueError: for a model without catalogue, generator context or shared generator.

    Example:
        >>> programs = export_programs(model)
        >>> sorted(programs)
        ['encoder', 'generator', 'planner']
    """
    model.model.trie()  # says so when there is no catalogue
    training = model.training
    model.eval()
    try:
        programs = {}
        for name, step in STEPS.items():
            if name == "prior" and not model.config.catalog_prior:
                continue
            inputs, varying = _example(model, name)
            programs[name] = torch.export.export(step(model), inputs, dynamic_shapes=varying, strict=False)
        return programs
    finally:
        model.train(training)


def export_onnx(
    directory: str | os.PathLike,
    model: HiGRForSlateGeneration,
    tokenizer: HiGRTokenizer,
    programs: Mapping[str, ExportedProgram] | None = None,
) -> Path:
    """Write a directory from which slates are decoded with onnxruntime and numpy alone.

    Leaves `encoder.onnx`, `planner.onnx`, `generator.onnx` (and `prior.onnx`), the item table and item-item tables
    where there are any, `decoder.json` (sizes and token layout) and `decoder.py`, a copy of [`OnnxSlateDecoder`] that
    imports neither this package nor PyTorch.

    Args:
        directory: where to; replaced as a whole.
        model: with its catalogue set.
        tokenizer: the one that belongs to it.
        programs: what `export_programs(model)` returned, where it is there already.

    Raises:
        ImportError: without `onnx` and `onnxscript`.
        ValueError: see [`export_programs`]; CheckpointError when model and tokenizer do not belong together.

    Example:
        >>> export_onnx("runs/onnx", model, tokenizer)
        >>> from higr_hf.deployment.onnx_decoder import OnnxSlateDecoder
        >>> slate = OnnxSlateDecoder("runs/onnx").recommend(tokenizer.item_ids[:2], slate_size=5)
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("ONNX export needs onnx and onnxscript: pip install 'higr_hf[onnx]'") from error
    model.check_tokenizer(tokenizer)
    check_agreement(model, tokenizer)
    programs, config = export_programs(model) if programs is None else programs, model.config
    with atomic_directory(directory) as folder:
        for name, program in programs.items():
            step = STEPS[name]
            torch.onnx.export(
                program, (), str(folder / f"{name}.onnx"), input_names=list(step.INPUTS),
                output_names=list(step.OUTPUTS), opset_version=OPSET, dynamo=True, verbose=False,
                external_data=False,
            )  # fmt: skip
        tokenizer.save_vocabulary(str(folder))
        names = (
            "codebook_sizes", "level_offsets", "num_feedback_levels", "num_time_buckets", "feature_offset",
            "bos_token_id", "slate_size", "num_beams", "max_history", "planner_layers", "generator_layers",
            "num_attention_heads", "hidden_size", "catalog_prior", "item_item_decays", "item_item_scales",
            "repeat_decays", "trend_days",
        )  # fmt: skip
        tables = model.model.item_item
        if tables is not None:
            arrays = {"neighbours": tables.neighbours.cpu().numpy(), "weights": tables.weights.float().cpu().numpy()}
            save_file(arrays, folder / "item_item.safetensors")
        repeats = model.model.repeats
        if repeats is not None:
            arrays = {name: GAIN * value.detach().float().cpu().numpy() for name, value in repeats.named_parameters()}
            save_file(arrays, folder / "repeats.safetensors")
        if model.model.trends is not None:  # slates are asked for now
            newest = model.model.trends(torch.tensor([NEWEST], device=model.device))[0].cpu().numpy()
            save_file({"scores": newest}, folder / "trends.safetensors")
        content = {name: getattr(config, name) for name in names} | {"fingerprint": tokenizer.fingerprint}
        (folder / "decoder.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        shutil.copyfile(Path(__file__).with_name("onnx_decoder.py"), folder / "decoder.py")
    return Path(directory)
