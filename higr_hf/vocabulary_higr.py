"""The vocabulary: which id stands for which special token, feature level or code, and how a sequence is parsed."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "slate_token": "<slate>",
    "unk_token": "<unk>",
}
LEVEL_LETTERS = "abcdeghi"
"""One letter a code level in the text form of a semantic ID; `f` and `t` name feedback and time tokens."""


def code_offsets(
    codebook_sizes: Sequence[int], num_feedback_levels: int = 0, num_time_buckets: int = 0
) -> tuple[int, ...]:
    """The id of code 0 of every level: the special tokens come first, then the features, then level by level.

    Example:
        >>> code_offsets([4, 4], num_feedback_levels=2)
        (7, 11)
    """
    first = len(SPECIAL_TOKENS) + num_feedback_levels + num_time_buckets
    return tuple(itertools.accumulate(codebook_sizes[:-1], initial=first))


class SIDVocabulary:
    """Token ids in their order: special tokens (0-4), feedback levels, time buckets, then the codes level by level.

    Args:
        codebook_sizes (`Sequence[int]`): codes a level, coarse to fine; 1 to 8 levels.
        num_feedback_levels (`int`): number of `<f_*>` tokens.
        num_time_buckets (`int`): number of `<t_*>` tokens.

    Attributes:
        tokens (`list[str]`): the token of every id.
        level_offsets (`tuple[int, ...]`): the id of code 0 of every level.
        feature_offsets (`dict[str, int]`): the id of the first `"feedback"` level and of the first `"time_buckets"`.

    Example:
        >>> SIDVocabulary([2, 2], num_feedback_levels=1).tokens[5:]
        ['<f_0>', '<a_0>', '<a_1>', '<b_0>', '<b_1>']
    """

    def __init__(self, codebook_sizes: Sequence[int], num_feedback_levels: int = 0, num_time_buckets: int = 0):
        self.codebook_sizes = tuple(int(size) for size in codebook_sizes)
        if not 1 <= len(self.codebook_sizes) <= len(LEVEL_LETTERS):
            raise ValueError(
                f"codebook_sizes has {len(self.codebook_sizes)} levels, expected 1 to {len(LEVEL_LETTERS)}."
            )
        if min(self.codebook_sizes) < 1:
            raise ValueError(f"codebook_sizes must be positive, got {list(self.codebook_sizes)}.")
        self.feature_sizes = {"feedback": int(num_feedback_levels), "time_buckets": int(num_time_buckets)}
        if min(self.feature_sizes.values()) < 0:
            raise ValueError(f"The numbers of feature levels must not be negative, got {self.feature_sizes}.")

        groups = [*zip("ft", self.feature_sizes.values(), strict=True)]
        groups += zip(LEVEL_LETTERS, self.codebook_sizes, strict=False)
        self.tokens = [*SPECIAL_TOKENS.values()]
        self.tokens += [f"<{letter}_{code}>" for letter, size in groups for code in range(size)]
        first = len(SPECIAL_TOKENS)
        self.feature_offsets = {"feedback": first, "time_buckets": first + self.feature_sizes["feedback"]}
        self.level_offsets = code_offsets(self.codebook_sizes, *self.feature_sizes.values())

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_levels(self) -> int:
        """L, the tokens an item."""
        return len(self.codebook_sizes)

    def feature_token(self, feature: str, value: int | None, position: int | None = None) -> int | None:
        """The token id of a feature's level; None for an unknown value (None or -1)."""
        if value is None or value == -1:
            return None
        size = self.feature_sizes[feature]
        if not 0 <= value < size or int(value) != value:  # in this order: NaN fails the first comparison
            where = feature if position is None else f"{feature}[{position}]"
            legal = f"0..{size - 1}" if size else "none, it was built without this feature"
            raise ValueError(
                f"{where} is {value}; the levels of this tokenizer are {legal}. Map raw values to levels first, and "
                "write None or -1 where a value is unknown."
            )
        return self.feature_offsets[feature] + int(value)

    def parse(self, token_ids: Any) -> tuple[np.ndarray, np.ndarray]:
        """Cut a flat token sequence into items.

        An item starts at a level-0 token. Special and feature tokens stand between items. Codes that do not form
        exactly one token a level, in order, count as one malformed item up to the next level-0 or non-code token.

        Args:
            token_ids: integers `[T]`: a list, an array or a tensor.

        Returns:
            `codes` int64 `[n, L]`, and `well_formed` bool `[n]`; the codes of a malformed item are -1.
        """
        ids = np.asarray(token_ids.cpu() if hasattr(token_ids, "cpu") else token_ids).reshape(-1)
        if ids.size and not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"Token ids must be integers, got dtype {ids.dtype}.")
        ids = ids.astype(np.int64)
        offsets = np.array(self.level_offsets)
        level = np.searchsorted(offsets, ids, side="right") - 1
        is_code = (level >= 0) & (ids < len(self))
        after_code = np.concatenate([[False], is_code])[:-1]
        starts = is_code & ((level == 0) | ~after_code)
        first = np.flatnonzero(starts)
        unit = (np.cumsum(starts) - 1)[is_code]
        depth = np.flatnonzero(is_code) - first[unit]
        lengths = np.bincount(unit, minlength=len(first))
        misplaced = np.bincount(unit[depth != level[is_code]], minlength=len(first))
        well_formed = (lengths == self.num_levels) & (misplaced == 0)
        codes = np.full((len(first), self.num_levels), -1, dtype=np.int64)
        codes[well_formed] = ids[first[well_formed][:, None] + np.arange(self.num_levels)] - offsets
        return codes, well_formed


def check_file_size(
    tokenizer_file: str, codebook_sizes: Sequence[int], num_feedback_levels: int, num_time_buckets: int
) -> None:
    """Hold the sizes of a configuration against the file that lists the tokens, before any token is made.

    Raises:
        ValueError: for more tokens than the file has bytes.
    """
    size = len(SPECIAL_TOKENS) + sum(codebook_sizes) + num_feedback_levels + num_time_buckets
    held = os.path.getsize(tokenizer_file)
    if size > held:
        raise ValueError(
            f"tokenizer_config.json asks for a vocabulary of {size} tokens, {tokenizer_file} has {held} bytes: the "
            "files do not belong together, or tokenizer_config.json was changed. Save or download the tokenizer again."
        )


def build_backend(vocabulary: SIDVocabulary) -> Tokenizer:
    """The Rust tokenizer of a vocabulary: one word a token, white space between tokens ignored."""
    words = {token: index for index, token in enumerate(vocabulary.tokens)}
    backend = Tokenizer(models.WordLevel(words, unk_token=SPECIAL_TOKENS["unk_token"]))
    split = pre_tokenizers.Split(Regex("<[^<>]*>"), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), split])
    backend.decoder = decoders.Fuse()
    return backend


def load_backend(vocabulary: SIDVocabulary, tokenizer_file: str) -> Tokenizer:
    """Read a Rust tokenizer and check it against the vocabulary; tokens behind the vocabulary's own were added later.

    Raises:
        ValueError: for a truncated or corrupt file, or one of another vocabulary.
    """
    try:
        backend = Tokenizer.from_file(tokenizer_file)
    except Exception as error:  # the Rust library raises bare `Exception`
        raise ValueError(
            f"{tokenizer_file} is truncated or corrupt ({error}): save or download the tokenizer again."
        ) from error
    words = backend.get_vocab(with_added_tokens=True)
    for index, token in enumerate(vocabulary.tokens):
        if words.get(token) != index:
            raise ValueError(
                f"{tokenizer_file} gives {token!r} the id {words.get(token)}, the codebook sizes "
                f"{list(vocabulary.codebook_sizes)} of tokenizer_config.json ask for {index}: the files do not belong "
                "together. Save or download the tokenizer again."
            )
    return backend
