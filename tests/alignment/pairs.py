"""Hand-made pairs over the tester's catalogue `i0` .. `i23`, and short trainer settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from higr_hf import HiGRForSlateGeneration, HiGRTokenizer
from higr_hf.alignment import make_config, make_trainer

# Histories of different lengths, so that every batch is padded; one has feature tokens, one wishes, one is empty.
PAIRS = [
    ("ranking", (["i0", "i5", "i9"], [2, None, 0], [None, 1, 0], None), ["i1", "i2", "i3"], ["i3", "i2", "i1"]),
    ("interest", (["i7"], None, None, 1), ["i4", "i5", "i12"], ["i6", "i8", "i10"]),
    ("diversity", ([], None, None, None), ["i11", "i12", "i13"], ["i11", "i14", "i15"]),
    ("ranking", (["i3", "i4"], None, None, None), ["i16", "i17", "i18"], ["i17", "i16", "i18"]),
]


def to_dataset(pairs: Sequence[tuple], tokenizer: HiGRTokenizer) -> Dataset:
    return Dataset.from_list(
        [
            {
                "user_id": f"u{number}",
                "objective": objective,
                "prompt": tokenizer.build_prompt(*prompt),
                "chosen": tokenizer.build_completion(chosen),
                "rejected": tokenizer.build_completion(rejected),
            }
            for number, (objective, prompt, chosen, rejected) in enumerate(pairs)
        ]
    )


def config(method: str, folder: Any, **settings: Any):
    return make_config(
        method,
        str(folder),
        **{
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 8,
            "max_steps": 2,
            "learning_rate": 0.01,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
            "max_length": 128,
            **settings,
        },
    )


def trainer(method: str, checkpoint: str, rows: Dataset, folder: Any, args: dict | None = None, **options: Any):
    return make_trainer(
        method,
        HiGRForSlateGeneration.from_pretrained(checkpoint),
        HiGRTokenizer.from_pretrained(checkpoint),
        config(method, folder, **(args or {})),
        rows,
        options.pop("eval_dataset", rows),
        **options,
    )
