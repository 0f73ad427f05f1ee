"""A checkpoint's weights files are looked at before anything is allocated for them.

A configuration is a few lines of text that somebody else may have written: `num_items: 10**9` in it would make loading
allocate a table of that size, whatever the weights file holds. So every size is held against the header of the
safetensors files first, and no other format of weights is read: unpickling one runs code.
"""

from __future__ import annotations

import copy
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

# Arguments of `from_pretrained` that say where a file is looked for.
_PLACE = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")
_LAYER_COUNTS = ("encoder_layers", "planner_layers", "generator_layers")


def load_checked(load: Any, model_class: type, name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
    """Call `load`, a bound `PreTrainedModel.from_pretrained`, on weights that fit their configuration.

    Args:
        load: what loads.
        model_class: the class to be loaded.
        name_or_path: a directory or a Hub id.
        *args, **kwargs: of `from_pretrained`.

    Raises:
        ValueError: for `use_safetensors=False`; for a truncated or corrupt file, by its name; for a configuration
            whose sizes are not those of the weights.
        OSError: when there is no safetensors file.
    """
    if kwargs.get("use_safetensors") is False:
        raise ValueError(
            "use_safetensors=False would unpickle the weights, which can run anybody's code: only safetensors files "
            "are loaded. Convert the checkpoint where you trust it, with `model.save_pretrained`."
        )
    kwargs["use_safetensors"] = True
    if kwargs.get("state_dict") is None and not kwargs.get("ignore_mismatched_sizes"):
        config = kwargs.get("config")
        if isinstance(config, (str, os.PathLike)) or config is None:
            place = {name: kwargs[name] for name in _PLACE if kwargs.get(name) is not None}
            config = model_class.config_class.from_pretrained(config or name_or_path, **place)
        shapes = _shapes(name_or_path, kwargs)
        if shapes:
            check_sizes(model_class, config, shapes, str(name_or_path))
    try:
        return load(name_or_path, *args, **kwargs)
    except SafetensorError as error:
        broken = _unreadable(Path(str(name_or_path), kwargs.get("subfolder") or "").glob("model*.safetensors"))
        raise _damaged(broken or f"A weights file of {name_or_path}", error) from error


def check_layer_counts(config: Any, num_tensors: int, where: str) -> None:
    """Refuse a configuration with more layers than a checkpoint has tensors, before a module is made for each."""
    layers = sum(int(getattr(config, name, 0)) for name in _LAYER_COUNTS)
    copies = 1 if getattr(config, "shared_generator", True) else int(config.slate_size)
    if layers + copies > num_tensors:
        raise ValueError(
            f"config.json of {where} asks for {layers} layers, the weights have {num_tensors} tensors: the files do "
            "not belong together. Save or download the model again."
        )


def check_sizes(model_class: type, config: Any, shapes: dict[str, list[int]], where: str) -> None:
    """Hold a configuration against the tensors that a checkpoint has.

    Args:
        model_class: the class to be built.
        config: its configuration.
        shapes: tensor name -> shape, from the files' headers.
        where: the checkpoint, for the message.

    Raises:
        ValueError: when the configuration asks for a tensor of another size, or for far more than the files hold.
    """
    check_layer_counts(config, len(shapes), where)
    with torch.device("meta"):  # shapes without memory
        model = model_class(copy.deepcopy(config))  # a model writes into its configuration
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    prefix = f"{model_class.base_model_prefix}."
    found = {name.removeprefix(prefix): tuple(shape) for name, shape in shapes.items()}
    missing = 0
    for name, shape in expected.items():
        there = found.get(name.removeprefix(prefix))
        if there is None:
            missing += math.prod(shape)
        elif there != shape:
            raise ValueError(
                f"config.json of {where} asks for {name} of shape {list(shape)}, the weights have {list(there)}: the "
                "files do not belong together, or config.json was changed. Save or download the model again; to "
                "start from weights of another size on purpose, pass ignore_mismatched_sizes=True."
            )
    held = sum(math.prod(shape) for shape in found.values())
    if missing > max(held, 1):
        raise ValueError(
            f"config.json of {where} asks for {missing} numbers that the weights do not have, which hold {held}: the "
            "files do not belong together. Save or download the model again."
        )


def _shapes(name_or_path: str | os.PathLike, options: dict[str, Any]) -> dict[str, list[int]]:
    """Tensor name -> shape of a checkpoint's safetensors files; empty when there are none."""
    variant = options.get("variant")
    place = {name: options[name] for name in _PLACE if options.get(name) is not None}

    def resolve(name: str) -> str | None:
        if variant:  # `model.fp16.safetensors`
            stem, ending = name.rsplit(".", 1)
            name = f"{stem}.{variant}.{ending}"
        return cached_file(name_or_path, name, _raise_exceptions_for_missing_entries=False, **place)

    whole = resolve(SAFE_WEIGHTS_NAME)
    files = [whole] if whole else []
    if not whole and (index := resolve(SAFE_WEIGHTS_INDEX_NAME)):
        files = [cached_file(name_or_path, shard, **place) for shard in _shards(index)]
    shapes: dict[str, list[int]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as weights:
                shapes.update({name: list(weights.get_slice(name).get_shape()) for name in weights.keys()})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from error
    return shapes


def _shards(index: str) -> list[str]:
    """The files that an index names; all must lie beside it."""
    try:
        names = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _damaged(index, error) from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{index} names the file {name!r}, which is not beside it: do not load this checkpoint.")
    return names


def _unreadable(files: Any) -> str | None:
    for path in sorted(files):
        try:
            with safe_open(str(path), framework="pt"):
                pass
        except (SafetensorError, OSError):
            return str(path)
    return None


def _damaged(file: str | os.PathLike, error: Exception) -> ValueError:
    return ValueError(
        f"{file} is truncated or corrupt ({error}): save or download the model again, or load an earlier checkpoint."
    )
