"""What the examples of the documentation speak of: a small log, and everything that is made of one."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import TrainingArguments

from higr_hf import HiGRTokenizer, save_checkpoint
from higr_hf.configuration_crq_vae import CRQVAEConfig
from higr_hf.data import leave_last_out, synthetic_log
from higr_hf.data.collators import SlateCollator
from higr_hf.data.encoding import FeatureEdges
from higr_hf.evaluation import Report
from higr_hf.experiment import Experiment, ExperimentSettings
from higr_hf.modeling_crq_vae import CRQVAEModel
from higr_hf.trainer import SlateTrainer

ROOT = Path(__file__).parents[1]


def names(folder: Path) -> dict[str, Any]:
    """The names that docstrings use without saying where they come from, and `runs/quickstart/` in a folder."""
    log = synthetic_log(num_users=20, num_items=60, num_topics=3, length=30, noise=0.3)
    splits = leave_last_out(log)
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(len(log.items), 8)).astype(np.float32)
    codes = np.array(list(itertools.product(range(4), range(4), range(4))))[: len(log.items)]
    tokenizer = HiGRTokenizer.from_codes(log.item_ids, codes, [4, 4, 4], titles=list(log.items["title"]))
    settings = ExperimentSettings(model={"hidden_size": 16, "intermediate_size": 32, "max_history": 24})
    experiment = Experiment(splits, tokenizer, FeatureEdges(), settings, embeddings=vectors)
    arguments = TrainingArguments(
        str(folder / "runs" / "trainer"),
        max_steps=1,
        save_strategy="no",
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    collator: SlateCollator = experiment.collator()
    sequences = experiment.sequences("train")
    evaluator = experiment.evaluator("validation", progress=False)
    result = evaluator.evaluate(experiment.recommender())
    quantizer = CRQVAEModel(CRQVAEConfig(input_size=8, latent_size=4, hidden_sizes=[8], codebook_sizes=[4, 4, 4]))
    quantizer.init_codebooks(torch.from_numpy(vectors), seed=0)
    save_checkpoint(folder / "runs" / "quickstart" / "model", experiment.model, tokenizer)
    return {
        "args": arguments,
        "arguments": arguments,
        "edges": experiment.edges,
        "embeddings": vectors[:1],  # of one new item, where somebody adds it
        "evaluator": evaluator,
        "experiment": experiment,
        "judge": lambda model: {"ndcg@5": 0.0},
        "layout": collator.layout,
        "log": log,
        "model": experiment.model,
        "np": np,
        "pd": pd,
        "quantizer": quantizer,
        "report": Report("Quickstart", {"higr": result}, seed=0),
        "result": result,
        "sequences": sequences,
        "splits": splits,
        "tokenizer": tokenizer,
        "torch": torch,
        "trainer": SlateTrainer(
            experiment.model, arguments, data_collator=collator, train_dataset=sequences, eval_dataset=sequences
        ),
        "vectors": vectors,
    }
