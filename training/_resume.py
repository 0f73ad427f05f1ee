"""Which checkpoint a run goes on from."""

from __future__ import annotations

import json
from pathlib import Path

from higr_hf.tokenization_higr import HiGRTokenizer
from higr_hf.trainer import COMPLETE, last_complete_checkpoint

from ._args import is_main_process


def checkpoint_to_resume(value: str | None, output: Path, tokenizer: HiGRTokenizer) -> str | None:
    """The checkpoint that `--resume_from_checkpoint` means: a path, or `true` for the newest whole one, if any.

    Raises:
        SystemExit: for a half-written checkpoint, and for one of another tokenizer, whose catalogue would silently
            take this one's place.
    """
    word = str(value).lower()
    if word in ("false", "none", ""):
        return None
    path = last_complete_checkpoint(output) if word == "true" else value
    if path is None:
        if is_main_process():
            print(f"{output} holds no whole checkpoint: training starts from the beginning", flush=True)
        return None
    if not (Path(path) / COMPLETE).is_file():
        raise SystemExit(
            f"error: {path} was not written to its end, or is no checkpoint (it has no file {COMPLETE!r}): resume "
            "from an earlier one, or give true for the newest whole one"
        )
    try:
        config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {path} is no checkpoint to resume from: {error}") from None
    if config.get("tokenizer_fingerprint") != tokenizer.fingerprint:
        raise SystemExit(
            f"error: {path} was trained with another tokenizer: resume with that one, or train into a new --output_dir"
        )
    if is_main_process():
        print(f"resuming from {path}", flush=True)
    return str(path)
