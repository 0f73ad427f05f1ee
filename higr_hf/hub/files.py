"""Which files make a release: those that loading needs, and the card. Whatever else lies beside them stays at home."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import CommitOperationAdd
from transformers.dynamic_module_utils import get_relative_import_files

from ..cards.dataset import ABOUT_FILE
from ..cards.metadata import LICENSE_FILE
from ..checkpoint import TOKENIZER_FILES, CheckpointError, check_agreement, load_checkpoint
from ..item_categories import CATEGORIES_FILE
from ..modeling_crq_vae import CRQVAEModel
from ..tokenization_higr import HiGRTokenizer
from .errors import HubError

CARD = "README.md"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_OPTIONAL = ("generation_config.json", CATEGORIES_FILE)
QUANTIZER_FOLDER = "quantizer"
IMAGES = (".png", ".svg", ".jpg", ".jpeg", ".webp", ".gif")
_IMAGE = re.compile(r"!\[[^\]]*\]\(<?([^)>\s]+)>?[^)]*\)")
# Addresses of code and configurations in config.json: `module.Class`, or `owner/name--module.Class` after a download.
_FOREIGN = re.compile(r"^[^\s]+--(?P<module>\w+)\.(?P<name>\w+)$")


@dataclass(frozen=True)
class ReleaseFile:
    """A file to be uploaded.

    Attributes:
        path: where it goes in the repository, with `/`.
        source: the file it is, or its content.
    """

    path: str
    source: Path | bytes

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    def content(self) -> bytes:
        """The whole of it."""
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()

    def operation(self) -> CommitOperationAdd:
        """The upload as `huggingface_hub` wants it."""
        source = self.source if isinstance(self.source, bytes) else str(self.source)
        return CommitOperationAdd(path_in_repo=self.path, path_or_fileobj=source)


def model_files(directory: str | Path) -> list[ReleaseFile]:
    """A model with its tokenizer: weights, configuration, generation defaults, item table, categories, code and card.

    The directory is loaded first, so that nothing half-written, corrupt or mixed is ever uploaded. Optimiser states,
    trainer checkpoints, logs and whatever else lies there are left out.

    Raises:
        FileNotFoundError: when there is no such directory.
        CheckpointError: when it holds no whole checkpoint.
    """
    directory = Path(directory)
    load_checkpoint(directory)
    names = [*_weight_names(directory), *TOKENIZER_FILES]
    names += [name for name in _OPTIONAL if (directory / name).is_file()]
    return [
        _json_file(directory, "config.json"),
        *(_json_file(directory, name) for name in names if name == "tokenizer_config.json"),
        *(ReleaseFile(name, directory / name) for name in names if name != "tokenizer_config.json"),
        *_code_files(directory, ("config.json", "tokenizer_config.json")),
        *card_files(directory),
    ]


def tokenizer_files(directory: str | Path) -> list[ReleaseFile]:
    """A tokenizer without a model: vocabulary, item table, code and card.

    Raises:
        FileNotFoundError: when there is no such directory.
        CheckpointError: when it holds no whole tokenizer.
    """
    directory = Path(directory)
    _load(directory, HiGRTokenizer, "tokenizer")
    return [
        _json_file(directory, "tokenizer_config.json"),
        *(ReleaseFile(name, directory / name) for name in TOKENIZER_FILES if name != "tokenizer_config.json"),
        *_code_files(directory, ("tokenizer_config.json",)),
        *card_files(directory),
    ]


def quantizer_files(directory: str | Path, folder: str = "") -> list[ReleaseFile]:
    """A quantiser: weights, configuration, code, and its card where it stands alone.

    Args:
        directory: where `CRQVAEModel.save_pretrained` wrote.
        folder: of the repository. The code goes to the repository's root all the same: that is where
            `from_pretrained(..., subfolder=folder, trust_remote_code=True)` looks for it.

    Raises:
        FileNotFoundError: when there is no such directory.
        CheckpointError: when it holds no whole quantiser.
    """
    directory = Path(directory)
    _load(directory, CRQVAEModel, "quantiser")
    prefix = f"{folder}/" if folder else ""
    config = _json_file(directory, "config.json")
    return [
        ReleaseFile(f"{prefix}config.json", config.source),
        *(ReleaseFile(f"{prefix}{name}", directory / name) for name in _weight_names(directory)),
        *_code_files(directory, ("config.json",)),
        *([] if folder else card_files(directory)),
    ]


def release_files(
    model: str | Path | None = None, tokenizer: str | Path | None = None, quantizer: str | Path | None = None
) -> list[ReleaseFile]:
    """The files of one repository: a model (its tokenizer is part of it) or a tokenizer at the root, and a quantiser.

    Beside a model or a tokenizer the quantiser goes to `quantizer/`; alone it stands at the root.

    Args:
        model: what [`save_checkpoint`] wrote.
        tokenizer: what `HiGRTokenizer.save_pretrained` wrote; given with a model it must be the model's own.
        quantizer: what `CRQVAEModel.save_pretrained` wrote.

    Raises:
        HubError: when nothing is given, a tokenizer or quantiser that is not the model's, or code of two versions.
    """
    files: list[ReleaseFile] = []
    if model is not None:
        files += model_files(model)
        if tokenizer is not None:
            _check_tokenizer(Path(model), Path(tokenizer))
    elif tokenizer is not None:
        files += tokenizer_files(tokenizer)
    if quantizer is not None:
        root = model or tokenizer
        if root is not None:
            _check_quantizer(Path(root), Path(quantizer))
        files = _merged(files, quantizer_files(quantizer, folder=QUANTIZER_FOLDER if files else ""))
    if not files:
        raise HubError("There is nothing to push: give a model, a tokenizer, a quantiser or a preference dataset.")
    return files


def dataset_files(directory: str | Path) -> list[ReleaseFile]:
    """A dataset of preferences: `<split>.parquet`, how it was built, and the card of `write_dataset_card`.

    Raises:
        FileNotFoundError: when there is no such directory.
        HubError: when it holds no parquet files of that name.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"There is no dataset directory {directory}: write one, or correct the path.")
    tables = sorted(directory.glob("*.parquet"))
    if not tables:
        raise HubError(
            f"{directory} holds no <split>.parquet: write the dataset with `higr_hf.cards.write_dataset_card`."
        )
    about = [directory / ABOUT_FILE] if (directory / ABOUT_FILE).is_file() else []
    return [*(ReleaseFile(path.name, path) for path in [*tables, *about]), *card_files(directory)]


def space_files(directory: str | Path) -> list[ReleaseFile]:
    """A Space: the whole folder that `higr_hf.app.space.write_space` wrote.

    Raises:
        FileNotFoundError: when there is no such directory.
        HubError: when it holds no Space.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"There is no Space {directory}: write one with `higr app MODEL --space FOLDER`.")
    missing = [name for name in ("app.py", "requirements.txt", CARD) if not (directory / name).is_file()]
    if missing:
        raise HubError(f"{directory} has no {missing[0]}: write a Space with `higr app MODEL --space FOLDER`.")
    paths = [path for path in sorted(directory.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    return [ReleaseFile(path.relative_to(directory).as_posix(), path) for path in paths]


def card_files(directory: Path) -> list[ReleaseFile]:
    """The card, the terms it may link to, and the pictures that it shows; none where there is no card.

    Raises:
        HubError: for a picture that is missing, no picture, or outside the directory.
    """
    card = directory / CARD
    if not card.is_file():
        return []
    files = [ReleaseFile(CARD, card)]
    if (directory / LICENSE_FILE).is_file():
        files.append(ReleaseFile(LICENSE_FILE, directory / LICENSE_FILE))
    for address in dict.fromkeys(_IMAGE.findall(card.read_text(encoding="utf-8"))):
        if "://" in address:
            continue
        path = PurePosixPath(address)
        target = directory / path
        inside = not path.is_absolute() and target.resolve().is_relative_to(directory.resolve())
        if not inside or path.suffix.lower() not in IMAGES:
            raise HubError(f"{card} shows {address!r}, which is no picture inside {directory}: correct the address.")
        if not target.is_file():
            raise HubError(f"{card} shows {address}, which is missing: copy it there, or write the card again.")
        files.append(ReleaseFile(str(path), target))
    return files


def _merged(first: list[ReleaseFile], second: list[ReleaseFile]) -> list[ReleaseFile]:
    """Both; code that both bring along counts once, and must be of one version."""
    there = {file.path: file for file in first}
    for file in second:
        if file.path in there and file.content() != there[file.path].content():
            raise HubError(
                f"{file.source} and {there[file.path].source} are of different versions of higr_hf: save both again "
                "with one."
            )
    return [*first, *(file for file in second if file.path not in there)]


def _load(directory: Path, kind: Any, name: str) -> Any:
    if not directory.is_dir():
        raise FileNotFoundError(f"There is no {name} directory {directory}: save one, or correct the path.")
    try:
        return kind.from_pretrained(directory, local_files_only=True)
    except (ValueError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{directory} holds no whole {name}: {error}") from error


def _check_tokenizer(model: Path, tokenizer: Path) -> None:
    ours, theirs = load_checkpoint(model)[0], _load(tokenizer, HiGRTokenizer, "tokenizer")
    try:
        check_agreement(ours, theirs)
    except CheckpointError as error:
        raise HubError(f"{tokenizer} is not the tokenizer of {model}: {error}") from error


def _check_quantizer(root: Path, quantizer: Path) -> None:
    """A collision rule may append a level of its own; the quantiser's levels come before it."""
    sizes = list(_load(root, HiGRTokenizer, "tokenizer").codebook_sizes)
    own = list(_load(quantizer, CRQVAEModel, "quantiser").config.codebook_sizes)
    if sizes[: len(own)] != own:
        raise HubError(
            f"{quantizer} has codebooks of {own} codes, the tokenizer in {root} of {sizes}: it did not make these "
            "semantic IDs."
        )


def _weight_names(directory: Path) -> list[str]:
    if (directory / WEIGHTS).is_file():
        return [WEIGHTS]
    shards = sorted(set(json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    if any(Path(name).name != name or not name.endswith(".safetensors") for name in shards):
        raise HubError(f"{directory / INDEX} names files that are no weights beside it: {shards[:3]}.")
    return [INDEX, *shards]


def _json_file(directory: Path, name: str) -> ReleaseFile:
    """A configuration that names the code beside it.

    What was downloaded may name code in the repository it came from; pushed as it is, it would run that repository's
    code, at whatever commit that has then.
    """
    content = json.loads((directory / name).read_text(encoding="utf-8"))
    local = _localised(content, directory)
    if local == content:
        return ReleaseFile(name, directory / name)
    return ReleaseFile(name, (json.dumps(local, indent=2, sort_keys=True) + "\n").encode())


def _localised(value: Any, directory: Path) -> Any:
    if isinstance(value, dict):
        return {key: _localised(entry, directory) for key, entry in value.items()}
    if isinstance(value, list):
        return [_localised(entry, directory) for entry in value]
    match = _FOREIGN.match(value) if isinstance(value, str) else None
    if match and (directory / f"{match['module']}.py").is_file():
        return f"{match['module']}.{match['name']}"
    return value


def _code_files(directory: Path, configs: tuple[str, ...]) -> list[ReleaseFile]:
    """The modules that the configurations name, and those that these import."""
    modules: dict[str, None] = {}
    for name in configs:
        content = _localised(json.loads((directory / name).read_text(encoding="utf-8")), directory)
        places = [*_strings(content.get("auto_map")), *_strings(content.get("custom_pipelines"))]
        modules |= dict.fromkeys(place.split(".")[0] for place in places if re.fullmatch(r"\w+\.\w+", place))
    paths: dict[Path, None] = {}
    for module in modules:
        path = directory / f"{module}.py"
        try:
            paths |= dict.fromkeys([path, *map(Path, get_relative_import_files(path))])
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{error.filename} is missing, but loading needs it: save {directory} again."
            ) from error
    return [ReleaseFile(path.name, path) for path in sorted(paths)]


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for entry in value.values() for text in _strings(entry)]
    if isinstance(value, (list, tuple)):
        return [text for entry in value for text in _strings(entry)]
    return [value] if isinstance(value, str) else []
