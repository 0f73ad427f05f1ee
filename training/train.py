"""Train HiGR on a split log with a fitted tokenizer.

    python -m training.train --recipe training/recipes/movielens-1m.yaml --tokenizer runs/movielens-1m/tokenizer

The output directory holds `model/` (weights, code, tokenizer: it loads by itself), the checkpoints and
`validation.json` with the training log. Run again with `--resume_from_checkpoint true` to go on after a kill.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from transformers import TrainingArguments, set_seed

from higr_hf.checkpoint import save_checkpoint
from higr_hf.data import leave_last_out, load_source
from higr_hf.data.embeddings import item_embeddings
from higr_hf.data.encoding import FeatureEdges
from higr_hf.experiment import Experiment, ExperimentSettings
from higr_hf.tokenization_higr import HiGRTokenizer
from higr_hf.utils import atomic_write_json

from ._args import mapping, parse_recipe, parsed


@dataclass
class DataArguments:
    """The log and how it is split."""

    source: str = field(default="movielens-1m", metadata={"help": "Name of a ready source."})
    local_path: str | None = field(default=None, metadata={"help": "Folder the source is read from instead."})
    slate_size: int = field(default=5, metadata={"help": "M, items a slate."})
    diversity_embeddings: str = field(default="text", metadata={"help": "Embeddings that slate diversity is read on."})


@dataclass
class ModelArguments:
    """The model, its batches and its decoding. The mappings are written as YAML or JSON."""

    tokenizer: str = field(default="", metadata={"help": "Directory of the fitted tokenizer."})
    preset: str = field(default="tiny", metadata={"help": "tiny, small or base."})
    model: str = field(default="{}", metadata={"help": "Further fields of HiGRConfig."})
    collator: str = field(default="{}", metadata={"help": "Fields of SlateCollator."})
    generation: str = field(default="{}", metadata={"help": "Arguments of generate for evaluation."})
    feedback_edges: str = field(default="[]", metadata={"help": "Ascending cuts of raw feedback into levels."})
    time_edges: str = field(default="[]", metadata={"help": "Ascending cuts of time gaps, in seconds."})
    wish: int | None = field(default=None, metadata={"help": "Feedback level asked for when decoding."})
    eval_users: int | None = field(default=None, metadata={"help": "Validation users judged while training."})
    patience: int = field(default=0, metadata={"help": "Evaluations without progress before stopping; 0 = never."})

    def settings(self) -> ExperimentSettings:
        """As an [`ExperimentSettings`]."""
        return ExperimentSettings(
            preset=self.preset,
            model=mapping("model", self.model),
            collator=mapping("collator", self.collator),
            generation=mapping("generation", self.generation),
            wish=self.wish,
            eval_users=self.eval_users,
            patience=self.patience,
        )

    def edges(self) -> FeatureEdges:
        """Where feedback and time are cut."""
        return FeatureEdges(tuple(parsed(self.feedback_edges)), tuple(parsed(self.time_edges)))


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train, keep the best model, judge it on the validation split; returns its metrics."""
    data, options, arguments = parse_recipe(
        (DataArguments, ModelArguments, TrainingArguments), argv, description=__doc__ or ""
    )
    arguments.remove_unused_columns = False
    set_seed(arguments.seed)
    began = time.perf_counter()
    log = load_source(data.source, **({"local_path": data.local_path} if data.local_path else {}))
    splits = leave_last_out(log, slate_size=data.slate_size)
    tokenizer = HiGRTokenizer.from_pretrained(options.tokenizer)
    experiment = Experiment(
        splits,
        tokenizer,
        options.edges(),
        options.settings(),
        embeddings=item_embeddings(log.items, splits["train"], kind=data.diversity_embeddings),
        slate_size=data.slate_size,
        seed=arguments.seed,
    )
    trainer = experiment.trainer(arguments)
    trainer.train(resume_from_checkpoint=_resume(arguments.resume_from_checkpoint))
    result = experiment.evaluate("validation")
    if trainer.is_world_process_zero():
        output = Path(arguments.output_dir)
        save_checkpoint(output / "model", experiment.model, tokenizer)
        atomic_write_json(
            output / "validation.json",
            {"metrics": result.metrics, "seconds": time.perf_counter() - began, "log": trainer.state.log_history},
        )
        print(" ".join(f"{name} {value:.4f}" for name, value in result.metrics.items()))
    return result.metrics


def _resume(value: str | None) -> str | bool | None:
    """`true` and `false` as a person types them, or a checkpoint's path."""
    return {"true": True, "false": None, "none": None}.get(str(value).lower(), value)


if __name__ == "__main__":
    main()
