"""HiGRTokenizer: text, token ids and items, with the catalogue's semantic IDs inside."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer, processors
from transformers import BatchEncoding, TokenizersBackend

from .item_table_higr import ITEMS_FILE, SIDS_FILE, ItemTable
from .vocabulary_higr import SPECIAL_TOKENS, SIDVocabulary, build_backend, check_file_size, load_backend


class HiGRTokenizer(TokenizersBackend):
    r"""Turns items into semantic-ID tokens and back; the whole catalogue travels inside.

    An item is written as its L code tokens, coarse to fine, without spaces: `<a_12><b_7><c_99>`. Feature tokens of an
    event (feedback level, time bucket) follow the item they belong to: `<a_12><b_7><c_99><f_2><t_5>`. A prompt is
    `<bos>`, the history, oldest first, and `<slate>`. `<bos>` is prepended once, whether or not the text has it;
    nothing is appended. White space between tokens is ignored, anything else that is no token becomes `<unk>`.

    Token ids: `<pad> <bos> <eos> <slate> <unk>` are 0 to 4, then the feedback levels, the time buckets, and the codes
    of level 0, 1, ...: `token id = level_offsets[level] + code`.

    Build one with [`HiGRTokenizer.from_codes`]; load one with `HiGRTokenizer.from_pretrained` or `AutoTokenizer`.

    Attributes:
        codebook_sizes (`tuple[int, ...]`): codes a level.
        num_feedback_levels (`int`), num_time_buckets (`int`): how many feature tokens of each kind exist.
        collision_rule (`str`, *optional*): how items with equal codes were told apart before this table was made.

    Example:
        >>> import numpy as np
        >>> from higr_hf import HiGRTokenizer
        >>> tokenizer = HiGRTokenizer.from_codes(["milk", "bread"], np.array([[0, 1], [1, 0]]), [2, 2])
        >>> tokenizer.build_prompt(["milk"])
        '<bos><a_0><b_1><slate>'
        >>> tokenizer.token_ids_to_items(tokenizer("<a_1><b_0><a_0><b_0>")["input_ids"])
        ['bread', None]
    """

    vocab_files_names = {  # noqa: RUF012 - the base class declares it so
        "tokenizer_file": "tokenizer.json",
        "item_sids_file": SIDS_FILE,
        "items_file": ITEMS_FILE,
    }
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    # Generation continues the prompt's end, so every prompt of a batch must end in the last column.
    padding_side = "left"
    # A checkpoint without `auto_map` is refused where the class is not installed: write it on every save.
    _auto_class = "AutoTokenizer"

    def __init__(
        self,
        codebook_sizes: Sequence[int] | None = None,
        num_feedback_levels: int = 0,
        num_time_buckets: int = 0,
        collision_rule: str | None = None,
        item_table: ItemTable | None = None,
        tokenizer_file: str | None = None,
        item_sids_file: str | None = None,
        items_file: str | None = None,
        fingerprint: str | None = None,
        **kwargs: Any,
    ):
        if codebook_sizes is None:
            raise ValueError(
                "HiGRTokenizer needs `codebook_sizes`: build it with HiGRTokenizer.from_codes(...). When loading, "
                "tokenizer_config.json is missing or was written by another tokenizer."
            )
        # Set before the base class starts: its __getattr__ answers for attributes that do not exist yet.
        self.codebook_sizes = tuple(int(size) for size in codebook_sizes)
        self.num_feedback_levels = int(num_feedback_levels)
        self.num_time_buckets = int(num_time_buckets)
        self.collision_rule = collision_rule
        if item_table is None:
            # Before the vocabulary is built: its size is what tokenizer_config.json says, and that may be anything.
            self._check_files(tokenizer_file, item_sids_file, items_file, kwargs.get("name_or_path"))
        self.sid_vocabulary = SIDVocabulary(self.codebook_sizes, self.num_feedback_levels, self.num_time_buckets)
        self._fingerprint: str | None = None
        if item_table is None:
            item_table = ItemTable.load(item_sids_file, items_file, self.codebook_sizes, fingerprint)
        self._table = item_table
        if fingerprint is not None and fingerprint != self.fingerprint:
            raise ValueError(
                f"The item table at {kwargs.get('name_or_path') or 'this place'} has fingerprint "
                f"{self.fingerprint[:12]}, tokenizer_config.json says {fingerprint[:12]}: the files are corrupt or of "
                "different saves. Save the tokenizer again, or restore one whole version."
            )
        backend = (
            load_backend(self.sid_vocabulary, tokenizer_file) if tokenizer_file else build_backend(self.sid_vocabulary)
        )

        named = kwargs.pop("model_specific_special_tokens", None) or {}
        kwargs = {**SPECIAL_TOKENS, **kwargs, **named}
        kwargs.setdefault("add_bos_token", True)
        for where in ("is_local", "local_files_only"):  # how this one was loaded is no property of the next copy
            kwargs.pop(where, None)
        super().__init__(
            tokenizer_object=backend,
            codebook_sizes=list(self.codebook_sizes),
            num_feedback_levels=self.num_feedback_levels,
            num_time_buckets=self.num_time_buckets,
            collision_rule=collision_rule,
            fingerprint=self.fingerprint,
            **kwargs,
        )

    @classmethod
    def from_codes(
        cls,
        item_ids: Sequence[str],
        codes: np.ndarray,
        codebook_sizes: Sequence[int],
        num_feedback_levels: int = 0,
        num_time_buckets: int = 0,
        titles: Sequence[str | None] | None = None,
        collision_rule: str | None = None,
        **kwargs: Any,
    ) -> HiGRTokenizer:
        """Make a tokenizer for a catalogue.

        Args:
            item_ids (`Sequence[str]`): N distinct ids; their order defines the item indices 0..N-1.
            codes (`np.ndarray`): integers `[N, L]`, every row distinct.
            codebook_sizes (`Sequence[int]`): L sizes, `codes[:, l] < codebook_sizes[l]`.
            num_feedback_levels (`int`): number of `<f_*>` tokens.
            num_time_buckets (`int`): number of `<t_*>` tokens.
            titles (`Sequence[str | None]`, *optional*): N titles.
            collision_rule (`str`, *optional*): how equal codes were told apart; kept for the reader.
            kwargs: further arguments of the base class, such as `model_max_length`.

        Raises:
            ValueError: for wrong shapes, codes out of range, a repeated id, or two items with one semantic ID.
        """
        table = ItemTable(item_ids, codes, codebook_sizes, titles)
        return cls(codebook_sizes, num_feedback_levels, num_time_buckets, collision_rule, item_table=table, **kwargs)

    def _check_files(self, tokenizer_file: str, item_sids_file: str, items_file: str, name_or_path: Any) -> None:
        """The three files are there, lie side by side, and the vocabulary's is as large as the configuration says."""
        files = {"tokenizer.json": tokenizer_file, SIDS_FILE: item_sids_file, ITEMS_FILE: items_file}
        where = f"The tokenizer at {name_or_path or 'this place'}"
        missing = [name for name, path in files.items() if path is None or not os.path.isfile(path)]
        if missing:
            raise ValueError(
                f"{where} lacks {' and '.join(missing)}: without them token ids cannot be read as items. Save or "
                "download the tokenizer again."
            )
        if len({os.path.dirname(path) for path in files.values()}) > 1:
            raise ValueError(
                f"{where} is spread over several directories ({', '.join(files.values())}): its files must lie side "
                "by side. Do not load it if you did not put them there."
            )
        check_file_size(tokenizer_file, self.codebook_sizes, self.num_feedback_levels, self.num_time_buckets)

    # ---- the vocabulary

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any
    ) -> HiGRTokenizer:
        """Load from a directory or the Hub; a `ValueError` names a truncated, corrupt, missing or foreign file."""
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except json.JSONDecodeError as error:
            # The error carries the text, not the file's name; only the vocabulary file lists added tokens.
            name = "tokenizer.json" if '"added_tokens"' in error.doc else "tokenizer_config.json"
            raise ValueError(
                f"{pretrained_model_name_or_path}/{name} is truncated or corrupt ({error}): save or download the "
                "tokenizer again."
            ) from error

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Leave the file names as they are: `__init__` reads and checks every file itself."""
        return kwargs

    @classmethod
    def _patch_mistral_regex(cls, tokenizer: Tokenizer, *args: Any, **kwargs: Any) -> Tokenizer:
        # The base class asks the Hub about every vocabulary above 100k tokens; there is no text regex to repair here.
        return tokenizer

    def update_post_processor(self) -> None:
        """Prepend `<bos>` once, also to a pair of texts: a prompt and its completion are one sequence."""
        bos = f"{self.bos_token}:0 " if self.add_bos_token else ""
        eos = f" {self.eos_token}:0" if self.add_eos_token else ""
        self._tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos}$A:0{eos}",
            pair=f"{bos}$A:0 $B:0{eos}",
            special_tokens=[(self.bos_token, self.bos_token_id), (self.eos_token, self.eos_token_id)],
        )

    def _encode_plus(self, text: Any, text_pair: Any = None, add_special_tokens: bool = True, **kwargs: Any) -> Any:
        if not (add_special_tokens and self.add_bos_token):
            return super()._encode_plus(text, text_pair, add_special_tokens=add_special_tokens, **kwargs)
        split = bool(kwargs.get("is_split_into_words"))
        is_batch = isinstance(text, (list, tuple)) and (not split or bool(text and isinstance(text[0], (list, tuple))))
        stripped = [self._without_bos(row, split) for row in text] if is_batch else self._without_bos(text, split)
        encoded = super()._encode_plus(stripped, text_pair, add_special_tokens=True, **kwargs)
        if "offset_mapping" in encoded and not split and stripped != text:
            self._shift_offsets(encoded, text, stripped, is_batch)
        return encoded

    def _without_bos(self, text: Any, split: bool) -> Any:
        if isinstance(text, str):
            return text.lstrip().removeprefix(self.bos_token) if text.lstrip().startswith(self.bos_token) else text
        if split:
            return text[1:] if text and text[0] == self.bos_token else text
        # one (text, pair) of a batch of pairs
        return (self._without_bos(text[0], split), *text[1:]) if text else text

    def _shift_offsets(self, encoded: BatchEncoding, text: Any, stripped: Any, is_batch: bool) -> None:
        """Offsets count in the caller's text, whose own `<bos>` was taken away before the backend saw it."""
        if not isinstance(encoded["offset_mapping"], list):
            return
        texts, shorts = (text, stripped) if is_batch else ([text], [stripped])
        rows = encoded["offset_mapping"] if is_batch else [encoded["offset_mapping"]]
        for row, long, short in zip(rows, texts, shorts, strict=False):
            shift = len(long) - len(short) if isinstance(long, str) else 0
            row[:] = [(start + shift, end + shift) if end > start else (start, end) for start, end in row]

    # ---- the catalogue

    @property
    def codes(self) -> np.ndarray:
        """int64 `[N, L]`: the semantic ID of every item."""
        return self._table.codes

    @property
    def item_ids(self) -> list[str]:
        """The N item ids; an item's place in this list is its item index."""
        return self._table.item_ids

    @property
    def titles(self) -> list[str] | None:
        """The N titles, or None when the catalogue has none."""
        return self._table.titles

    @property
    def active(self) -> np.ndarray:
        """bool `[N]`: False for items that were removed and must not be recommended."""
        return self._table.active

    @property
    def num_items(self) -> int:
        """N, removed items included."""
        return len(self._table)

    @property
    def num_levels(self) -> int:
        """L, the tokens an item."""
        return self.sid_vocabulary.num_levels

    @property
    def feature_offset(self) -> int:
        """The first feature token's id; feedback levels come before time buckets."""
        return self.sid_vocabulary.feature_offsets["feedback"]

    @property
    def level_offsets(self) -> tuple[int, ...]:
        """The token id of code 0 of every level."""
        return self.sid_vocabulary.level_offsets

    @property
    def catalog_version(self) -> int:
        """How many times items were added or removed."""
        return self._table.version

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the token layout, the item ids, their codes and the removed marks.

        It survives saving and loading and changes with every change of the catalogue. A model stores it, and refuses
        a tokenizer with another one.
        """
        if self._fingerprint is None:
            layout = json.dumps([list(self.codebook_sizes), self.num_feedback_levels, self.num_time_buckets])
            self._fingerprint = hashlib.sha256(layout.encode() + self._table.digest()).hexdigest()
        return self._fingerprint

    def item_to_index(self, item_id: str) -> int:
        """The index of an item; raises a `ValueError` that names an unknown one."""
        return int(self._table.indices_of([item_id])[0])

    def index_to_item(self, index: int) -> str:
        """The item id at an index; raises a `ValueError` when there is none."""
        return self.item_ids[int(self._table.indices_of([int(index)])[0])]

    def items_to_indices(self, items: Sequence[str | int], on_unknown: str = "error") -> np.ndarray:
        """Item indices int64 `[n]` of ids or indices; an unknown item raises, or is -1 with `on_unknown="skip"`."""
        return self._table.indices_of(items, on_unknown)

    def add_items(
        self, item_ids: Sequence[str], codes: np.ndarray, titles: Sequence[str | None] | None = None
    ) -> np.ndarray:
        """Append items to the catalogue, in place; the items that are there keep their index and semantic ID.

        Args:
            item_ids (`Sequence[str]`): n new ids.
            codes (`np.ndarray`): integers `[n, L]`, distinct from each other and from every SID in use, removed ones
                included.
            titles (`Sequence[str | None]`, *optional*): n titles.

        Returns:
            `np.ndarray`: int64 `[n]`, the new item indices. The fingerprint changes: give the model the new catalogue.
        """
        table = self._table.extended(item_ids, codes, titles)
        first, self._table, self._fingerprint = len(self._table), table, None
        return np.arange(first, len(table))

    def remove_items(self, items: Sequence[str | int]) -> None:
        """Mark items as removed, in place. They keep index and SID, so histories that hold them still read."""
        self._table.set_active(self._table.indices_of(items), False)
        self._fingerprint = None

    def restore_items(self, items: Sequence[str | int]) -> None:
        """Undo [`HiGRTokenizer.remove_items`] for these items."""
        self._table.set_active(self._table.indices_of(items), True)
        self._fingerprint = None

    # ---- items -> tokens

    def _units(
        self,
        items: Sequence[str | int],
        feedback: Sequence[int | None] | None,
        time_buckets: Sequence[int | None] | None,
        on_unknown: str,
    ) -> list[list[int]]:
        """Token ids of every item with its features; unknown items are left out when they are to be skipped."""
        indices = self._table.indices_of(items, on_unknown)
        known = np.flatnonzero(indices >= 0)
        units = (self._table.codes[indices[known]] + np.array(self.level_offsets)).tolist()
        for feature, values in (("feedback", feedback), ("time_buckets", time_buckets)):
            if values is None:
                continue
            if len(values) != len(indices):
                raise ValueError(f"{feature} has {len(values)} values for {len(indices)} items: pass one an item.")
            for unit, position in zip(units, known.tolist(), strict=True):
                token = self.sid_vocabulary.feature_token(feature, values[position], position)
                if token is not None:
                    unit.append(token)
        return units

    def items_to_token_ids(
        self,
        items: Sequence[str | int],
        feedback: Sequence[int | None] | None = None,
        time_buckets: Sequence[int | None] | None = None,
        on_unknown: str = "error",
    ) -> list[int]:
        """The token ids of [`HiGRTokenizer.encode_items`], without `<bos>`."""
        return [token for unit in self._units(items, feedback, time_buckets, on_unknown) for token in unit]

    def encode_items(
        self,
        items: Sequence[str | int],
        feedback: Sequence[int | None] | None = None,
        time_buckets: Sequence[int | None] | None = None,
        on_unknown: str = "error",
    ) -> str:
        """Write items as text, without `<bos>`.

        Args:
            items (`Sequence[str | int]`): item ids, or item indices.
            feedback (`Sequence[int | None]`, *optional*): a feedback level an item, None or -1 where unknown.
            time_buckets (`Sequence[int | None]`, *optional*): a time bucket an item, None or -1 where unknown.
            on_unknown (`str`): `"error"`, or `"skip"` to leave unknown items out together with their features.

        Raises:
            UnknownItemError: a `ValueError` that names the item.
            ValueError: for a feature out of range or lists of unequal length.
        """
        return self.token_ids_to_text(self.items_to_token_ids(items, feedback, time_buckets, on_unknown))

    items_to_text = encode_items

    def token_ids_to_text(self, token_ids: Sequence[int]) -> str:
        """Token ids as text, special tokens included."""
        return "".join([self.sid_vocabulary.tokens[token] for token in token_ids])

    def build_prompt(
        self,
        history: Sequence[str | int],
        feedback: Sequence[int | None] | None = None,
        time_buckets: Sequence[int | None] | None = None,
        wish: int | None = None,
        max_history: int | None = None,
        on_unknown: str = "error",
    ) -> str:
        """`<bos>`, the history, `<slate>`.

        Args:
            history (`Sequence[str | int]`): the user's items, oldest first; may be empty.
            feedback, time_buckets, on_unknown: as in [`HiGRTokenizer.encode_items`].
            wish (`int`, *optional*): a feedback level to ask for; written behind `<slate>`.
            max_history (`int`, *optional*): keep the newest so many (known) items and drop the older ones whole.
        """
        units = self._units(history, feedback, time_buckets, on_unknown)
        if max_history is not None:
            if max_history < 0:
                raise ValueError(f"max_history must not be negative, got {max_history}.")
            units = units[max(0, len(units) - max_history) :]
        asked = self.sid_vocabulary.feature_token("feedback", wish)
        suffix = [self.slate_token_id] if asked is None else [self.slate_token_id, asked]
        return self.token_ids_to_text([self.bos_token_id, *(token for unit in units for token in unit), *suffix])

    def build_completion(self, slate: Sequence[str | int]) -> str:
        """The slate's items as text, in order, without `<eos>`: trainers append it."""
        return self.encode_items(slate)

    def encode_prompts(
        self,
        histories: Sequence[Sequence[str | int]],
        feedback: Sequence[Sequence[int | None]] | None = None,
        time_buckets: Sequence[Sequence[int | None]] | None = None,
        wish: int | None = None,
        max_history: int | None = None,
        on_unknown: str = "error",
        return_tensors: str | None = "pt",
    ) -> BatchEncoding:
        """Prompts of B users as model inputs: `input_ids` and `attention_mask`, int64 `[B, T]`, padded on the left."""
        feedback = [None] * len(histories) if feedback is None else feedback
        time_buckets = [None] * len(histories) if time_buckets is None else time_buckets
        rows = zip(histories, feedback, time_buckets, strict=True)
        prompts = [self.build_prompt(items, f, t, wish, max_history, on_unknown) for items, f, t in rows]
        return self(prompts, padding=True, return_tensors=return_tensors)

    def encode_slates(self, slates: Sequence[Sequence[str | int]], return_tensors: str | None = "pt") -> BatchEncoding:
        """Completions of B slates as model inputs, without `<bos>`; slates of unequal length are padded."""
        texts = [self.build_completion(slate) for slate in slates]
        return self(texts, padding=True, add_special_tokens=False, return_tensors=return_tensors)

    # ---- tokens -> items

    def token_ids_to_indices(self, token_ids: Any) -> np.ndarray:
        """Item indices int64 `[n]` in a flat sequence of token ids, -1 where the codes name no item.

        [`~SIDVocabulary.parse`] says where an item starts and ends; a malformed one is one -1.
        """
        codes, _ = self.sid_vocabulary.parse(token_ids)
        return self._table.lookup(codes)

    def token_ids_to_items(self, token_ids: Any) -> list[str | None] | list[list[str | None]]:
        """Item ids in token ids; None where the codes name no item (see [`HiGRTokenizer.token_ids_to_indices`]).

        A removed item is still named: histories may hold it. A batch (nested lists or `[B, T]`) gives a list a row.
        """
        rows = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        if len(rows) > 0 and isinstance(rows[0], (list, tuple)):
            return [self.token_ids_to_items(row) for row in rows]
        return [None if index < 0 else self.item_ids[index] for index in self.token_ids_to_indices(rows).tolist()]

    def text_to_items(self, text: str) -> list[str | None]:
        """Item ids in a text; None where the codes name no item."""
        return self.token_ids_to_items(self(text, add_special_tokens=False)["input_ids"])

    # ---- files

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the item table's two files and return their paths."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        sids, items = (os.path.join(save_directory, prefix + name) for name in (SIDS_FILE, ITEMS_FILE))
        self._table.save(sids, items, self.fingerprint)
        return sids, items

    def _save_pretrained(self, save_directory: str, file_names: tuple[str, ...], *args: Any, **kwargs: Any) -> tuple:
        saved = super()._save_pretrained(save_directory, file_names, *args, **kwargs)
        prefix = kwargs.get("filename_prefix") or (args[1] if len(args) > 1 else None)
        return (*saved, *self.save_vocabulary(save_directory, prefix))

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """Save vocabulary, item table and code, see [`~transformers.PreTrainedTokenizerBase.save_pretrained`].

        Everything is written to a hidden directory first and moved when it is complete, so a full disk or a kill
        leaves the previous tokenizer. A kill between two moves is noticed on loading: all files carry the fingerprint.
        """
        if os.path.isfile(save_directory):
            raise ValueError(f"{save_directory} is a file: pass a directory to save the tokenizer in.")
        os.makedirs(save_directory, exist_ok=True)
        if kwargs.get("push_to_hub"):
            kwargs.setdefault("repo_id", os.path.basename(os.path.abspath(save_directory)))
        staging = tempfile.mkdtemp(prefix=".tokenizer-", dir=save_directory)
        try:
            saved = super().save_pretrained(staging, *args, **kwargs)
            for folder, _, names in os.walk(staging):
                target = os.path.join(save_directory, os.path.relpath(folder, staging))
                os.makedirs(target, exist_ok=True)
                for name in names:
                    with open(os.path.join(folder, name), "rb") as stream:
                        os.fsync(stream.fileno())
                    os.replace(os.path.join(folder, name), os.path.join(target, name))
            return tuple(os.path.join(save_directory, os.path.relpath(path, staging)) for path in saved)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
