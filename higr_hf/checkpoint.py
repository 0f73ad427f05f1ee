"""One directory that holds a model, its tokenizer and their code: written as a whole, checked when it is read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from .architectures import ARCHITECTURES, architecture
from .modeling_higr import HiGRForSlateGeneration
from .tokenization_higr import HiGRTokenizer
from .utils import atomic_directory, check_sums, recover_directory, write_sums
from .vocabulary_higr import SPECIAL_TOKENS

TOKENIZER_FILES = ("tokenizer_config.json", *HiGRTokenizer.vocab_files_names.values())


class CheckpointError(ValueError):
    """A checkpoint directory that is incomplete, corrupt, or made of parts that do not belong together."""


def check_agreement(model: HiGRForSlateGeneration, tokenizer: HiGRTokenizer) -> None:
    """Make sure that model and tokenizer name the same items by the same tokens.

    Raises:
        CheckpointError: for other codebook sizes, feature tokens, items, semantic IDs or removed marks; the message
            names the first difference.
    """
    config = model.config
    for name, ours, theirs in (
        ("codebook sizes", list(config.codebook_sizes), list(tokenizer.codebook_sizes)),
        ("feedback levels", config.num_feedback_levels, tokenizer.num_feedback_levels),
        ("time buckets", config.num_time_buckets, tokenizer.num_time_buckets),
        ("number of items", config.num_items, tokenizer.num_items),
        ("vocabulary size", config.vocab_size, len(tokenizer)),
        *((token, getattr(config, f"{token}_id"), getattr(tokenizer, f"{token}_id")) for token in SPECIAL_TOKENS),
    ):
        if ours != theirs:
            raise CheckpointError(
                f"Model and tokenizer do not belong together: {name} of the model {ours}, of the tokenizer {theirs}. "
                "Use the tokenizer that the model was built for."
            )
    if not model.model.has_catalog:
        raise CheckpointError(
            "The model has no catalogue and could not name an item: call `model.set_catalog(tokenizer.codes)` first."
        )
    codes, active = (tensor.cpu().numpy() for tensor in (model.model.item_codes, model.model.item_active))
    differ = np.flatnonzero((codes != tokenizer.codes).any(axis=1))
    if len(differ):
        row = int(differ[0])
        raise CheckpointError(
            f"{len(differ)} items have another semantic ID in the model than in the tokenizer, the first is "
            f"{tokenizer.item_ids[row]!r} (row {row}): {codes[row].tolist()} and {tokenizer.codes[row].tolist()}. Use "
            "the tokenizer that the model was trained with, or call `model.set_catalog(tokenizer.codes)` and train."
        )
    differ = np.flatnonzero(active != tokenizer.active)
    if len(differ):
        row = int(differ[0])
        state = "removed from the tokenizer but not from the model" if active[row] else "removed from the model only"
        raise CheckpointError(
            f"{len(differ)} items are offered by one of model and tokenizer only; the first, "
            f"{tokenizer.item_ids[row]!r} (row {row}), is {state}. Remove or restore it in both: "
            "`tokenizer.remove_items` / `restore_items`, and `model.model.item_active`."
        )


def save_checkpoint(
    directory: str | os.PathLike,
    model: HiGRForSlateGeneration,
    tokenizer: HiGRTokenizer,
    extra_files: Mapping[str, str | bytes | Path] | None = None,
) -> Path:
    """Write model, tokenizer, generation defaults and code into one directory that loads by itself.

    The directory appears when it is complete: a full disk or a kill leaves what was there before. It replaces a
    directory of that name as a whole. The model's configuration is given the tokenizer's fingerprint. `SHA256SUMS`
    lists what weights and tables add up to.

    Args:
        directory: where to.
        model: with its catalogue set.
        tokenizer: the one it was trained with.
        extra_files: further files by name, `README.md` say: text, bytes, or the `Path` of a file to copy.

    Returns:
        The directory.

    Raises:
        CheckpointError: when model and tokenizer do not belong together.
        ValueError: for an extra file that would leave the directory or replace a file of the checkpoint.
        OSError: when writing fails.

    Example:
        >>> save_checkpoint("runs/model", model, tokenizer, {"README.md": "# A model"})
        >>> model, tokenizer = load_checkpoint("runs/model")
    """
    check_agreement(model, tokenizer)
    _check_fingerprint(model, tokenizer)
    model.config.tokenizer_fingerprint = tokenizer.fingerprint
    with atomic_directory(directory) as folder:
        try:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        except SafetensorError as error:  # how its library reports a failed write
            raise OSError(f"Writing the tensors of {directory} failed: {error}") from error
        write_sums(folder, [path.name for path in folder.glob("*.safetensors")])
        for name, content in (extra_files or {}).items():
            target = folder / name
            if Path(name).is_absolute() or ".." in Path(name).parts or target.exists():
                raise ValueError(
                    f"extra_files: {name!r} is outside the checkpoint or one of its own files; rename it."
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                shutil.copyfile(content, target)
            else:
                target.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(directory)


def load_checkpoint(directory: str | os.PathLike, **kwargs: Any) -> tuple[HiGRForSlateGeneration, HiGRTokenizer]:
    """Read what [`save_checkpoint`] wrote, and make sure that it is whole.

    Args:
        directory: where it is.
        **kwargs: for the model's `from_pretrained`, such as `dtype` or `attn_implementation`.

    Returns:
        The model, of the class that its configuration names, in evaluation mode, and its tokenizer.

    Raises:
        FileNotFoundError: when there is no such directory.
        CheckpointError: for a missing, truncated or corrupt file, by its name, a single flipped bit of weights or
            tables included; for weights that are not there; for a tokenizer of another model.
    """
    directory = Path(directory)
    recover_directory(directory)  # a save that was killed between its two renames
    if not directory.is_dir():
        raise FileNotFoundError(f"There is no checkpoint directory {directory}: save one, or correct the path.")
    _check_files(directory)
    name = _read_json(directory / "config.json").get("model_type")
    _, model_class = architecture(name if name in ARCHITECTURES else "higr")  # which says what is wrong with another
    try:
        tokenizer = HiGRTokenizer.from_pretrained(directory, local_files_only=True)
        model, report = model_class.from_pretrained(
            directory, local_files_only=True, output_loading_info=True, **kwargs
        )
    except (ValueError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{directory} cannot be loaded: {error}") from error
    for kind in ("missing_keys", "unexpected_keys"):
        if report[kind]:
            raise CheckpointError(
                f"The weights in {directory} do not fit its config.json: {kind.replace('_', ' ')} "
                f"{sorted(report[kind])[:5]}. The files are of different models; restore one whole version."
            )
    _check_fingerprint(model, tokenizer, directory)
    check_agreement(model, tokenizer)
    try:
        check_sums(directory)  # last: whatever else is wrong has a message that says more
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    return model.eval(), tokenizer


def load_release(place: str, revision: str | None = None) -> tuple[HiGRForSlateGeneration, HiGRTokenizer]:
    """[`load_checkpoint`] for a directory or an id on the Hub, by this package's own classes: no code is run.

    Args:
        place: the directory, or the id.
        revision: commit, tag or branch on the Hub.

    Raises:
        FileNotFoundError: for a path where nothing is.
        OSError: for an id that the Hub does not have or show.
        CheckpointError: as [`load_checkpoint`].

    Example:
        >>> model, tokenizer = load_release("runs/quickstart/model")
    """
    if Path(place).is_dir() or not may_be_hub_id(place):
        return load_checkpoint(place)
    tokenizer = HiGRTokenizer.from_pretrained(place, revision=revision)
    model = HiGRForSlateGeneration.from_pretrained(place, revision=revision).eval()
    _check_fingerprint(model, tokenizer)
    check_agreement(model, tokenizer)
    return model, tokenizer


def may_be_hub_id(place: str) -> bool:
    """Whether this could be `name` or `owner/name`, and is not plainly a path."""
    return place.count("/") <= 1 and not place.startswith((".", "/", "~")) and not place.endswith("/")


def _check_fingerprint(model: HiGRForSlateGeneration, tokenizer: HiGRTokenizer, directory: Path | None = None) -> None:
    try:
        model.check_tokenizer(tokenizer)
    except ValueError as error:
        where = "" if directory is None else f"{directory}: "
        raise CheckpointError(f"{where}{error}") from error


def _check_files(directory: Path) -> None:
    """Every file is there, and the JSON files parse; the libraries' own errors rarely name the file."""
    _read_json(directory / "config.json")
    weights = directory / "model.safetensors"
    if not weights.is_file():
        index = directory / "model.safetensors.index.json"
        if not index.is_file():
            raise CheckpointError(f"{weights} is missing: save or download the model again.")
        for shard in sorted(set(_read_json(index).get("weight_map", {}).values())):
            if not (directory / shard).is_file():
                raise CheckpointError(f"{directory / shard} is missing: save or download the model again.")
    for name in TOKENIZER_FILES:
        if not (directory / name).is_file():
            raise CheckpointError(
                f"{directory / name} is missing: without the whole tokenizer tokens cannot be read as items. Save or "
                "download it again."
            )
    for name in ("tokenizer_config.json", "tokenizer.json"):
        _read_json(directory / name)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: this is no checkpoint, or one that was not copied whole.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is truncated or corrupt ({error}): save or download it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object: save or download it again.")
    return content
