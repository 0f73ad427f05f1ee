"""Models, tokenizers, quantisers, preferences and Spaces to the Hub: in one commit, checked, and said clearly."""

from __future__ import annotations

from .errors import HubError
from .files import (
    ReleaseFile,
    dataset_files,
    model_files,
    quantizer_files,
    release_files,
    space_files,
    tokenizer_files,
)
from .push import PushResult, push_dataset, push_files, push_release, push_space

__all__ = [
    "HubError",
    "PushResult",
    "ReleaseFile",
    "dataset_files",
    "model_files",
    "push_dataset",
    "push_files",
    "push_release",
    "push_space",
    "quantizer_files",
    "release_files",
    "space_files",
    "tokenizer_files",
]
