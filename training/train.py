"""Train HiGR on a split log with a fitted tokenizer.

    python -m training.train --recipe training/recipes/train_movielens-1m.yaml --tokenizer runs/movielens-1m/tokenizer
    torchrun --standalone --nproc_per_node 2 -m training.train --recipe ...
    accelerate launch -m training.train --recipe ...

With several processes each takes batches of its own, so that a step sees `processes` times the rows.

The output directory holds `model/` (weights, code, tokenizer: it loads by itself), the checkpoints and
`validation.json` with the metrics and the training log. Run again with `--resume_from_checkpoint true` to go on after
a kill. The test split is out of reach here: `training.evaluate` judges on it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import TrainerCallback, set_seed

from higr_hf.checkpoint import TOKENIZER_FILES, save_checkpoint
from higr_hf.data.encoding import FeatureEdges
from higr_hf.experiment import Experiment
from higr_hf.item_categories import categories_file
from higr_hf.tokenization_higr import HiGRTokenizer
from higr_hf.utils import atomic_write_json

from ._args import TrainerArguments, check_output, parse_recipe, run
from ._data import DataArguments, aligned, diversity_vectors, load_splits
from ._model import ModelArguments, check_best_metric
from ._resume import checkpoint_to_resume

if TYPE_CHECKING:
    from transformers import TrainerState


@dataclass
class TokenizerArguments:
    """Where the semantic IDs come from."""

    _argument_group_name = "semantic IDs"

    tokenizer: str = field(default="", metadata={"help": "Directory of the fitted tokenizer."})


def main(argv: list[str] | None = None, callbacks: Sequence[TrainerCallback] = ()) -> dict[str, float]:
    """Train, keep the best model, judge it on the validation split; returns its metrics (on the main process).

    Args:
        argv: the command line without the program.
        callbacks: further ones of the trainer, for scripts that watch it.
    """
    source, data, options, arguments = parse_recipe(
        (TokenizerArguments, DataArguments, ModelArguments, TrainerArguments), argv, description=__doc__ or ""
    )
    arguments.remove_unused_columns = False
    settings, edges = options.settings(), options.edges()
    check_best_metric(arguments, data.list_size, options.patience)
    tokenizer = load_tokenizer(source.tokenizer, edges)
    output = check_output(arguments.output_dir)
    checkpoint = checkpoint_to_resume(arguments.resume_from_checkpoint, output, tokenizer)
    set_seed(arguments.seed)
    began = time.perf_counter()
    # One process downloads and computes what the others then find in the cache.
    with arguments.main_process_first(desc="reading the data"):
        log, splits = load_splits(data)
        vectors = diversity_vectors(log, splits, options.diversity_embeddings)
    del splits["test"]
    experiment = Experiment(
        splits,
        tokenizer,
        edges,
        settings,
        embeddings=None if vectors is None else aligned(vectors, log.item_ids, tokenizer.item_ids),
        slate_size=data.slate_size,
        list_size=data.list_size,
        seed=arguments.seed,
    )
    trainer = experiment.trainer(arguments, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=checkpoint)
    if not trainer.is_world_process_zero():
        return {}
    metrics = experiment.evaluate("validation").known_metrics
    loss = kept_loss(trainer.state, best=arguments.load_best_model_at_end)
    if loss is not None:
        metrics = {**metrics, "loss": loss}
    save_checkpoint(output / "model", experiment.model, tokenizer, categories_file(log.items))
    atomic_write_json(
        output / "validation.json",
        {
            "metrics": metrics,
            "seconds": time.perf_counter() - began,
            "processes": arguments.world_size,
            "log": trainer.state.log_history,
        },
    )
    print(" ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    return metrics


def kept_loss(state: TrainerState, *, best: bool) -> float | None:
    """Validation loss a code of the weights that a training ends with; `None` where it was not judged while it ran.

    Args:
        state: of the finished training.
        best: whether it ends with the best judgement's weights; otherwise with the last ones.
    """
    losses = {entry["step"]: entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry}
    return losses.get(state.best_global_step if best else state.global_step)


def load_tokenizer(directory: str, edges: FeatureEdges) -> HiGRTokenizer:
    """The fitted tokenizer.

    Raises:
        SystemExit: for a directory that holds none, and for one whose feature tokens are not those of the edges.
    """
    if not directory:
        raise SystemExit("error: --tokenizer is missing: the directory that training.fit_tokenizer wrote")
    missing = [name for name in TOKENIZER_FILES if not (Path(directory) / name).is_file()]
    if missing:
        raise SystemExit(
            f"error: --tokenizer {directory} is not the directory of a whole tokenizer: it has no {missing[0]}; fit "
            "one with training.fit_tokenizer"
        )
    tokenizer = HiGRTokenizer.from_pretrained(directory, local_files_only=True)
    for option, wanted, found in (
        ("feedback_edges", edges.num_feedback_levels, tokenizer.num_feedback_levels),
        ("time_edges", edges.num_time_buckets, tokenizer.num_time_buckets),
    ):
        if wanted != found:
            raise SystemExit(
                f"error: --{option} make {wanted} levels, the tokenizer in {directory} has tokens for {found}: use "
                "the edges it was fitted with, or fit one for these"
            )
    return tokenizer


if __name__ == "__main__":
    run(main)
