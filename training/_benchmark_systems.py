"""How each kind of system is trained, kept, loaded and asked for slates: one `System` for all of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from higr_hf.baselines import Baseline, Mixture
from higr_hf.baselines.base import baseline_class
from higr_hf.baselines.early_stopping import Judgement
from higr_hf.baselines.torch_training import default_device
from higr_hf.checkpoint import TOKENIZER_FILES, load_checkpoint
from higr_hf.evaluation import SlateEvaluator
from higr_hf.recommender import SlateRecommender
from higr_hf.speed.learning import LearningClock
from higr_hf.tokenization_higr import HiGRTokenizer
from higr_hf.utils import atomic_write_json

from . import fit_item_item, fit_tokenizer, train
from ._benchmark_plan import ALIGNED, DECODING, ITEM_ITEM, MODELS, SLATES, BenchmarkPlan, SystemPlan
from ._data import DataArguments, diversity_vectors, load_splits

if TYPE_CHECKING:
    from higr_hf.data import InteractionLog

BATCH_SIZE = 4096
"""Users a call of a baseline: one that starts a process should start few."""

SLATE_BATCH_SIZE = 128
"""Users decoded at once."""


@dataclass(frozen=True)
class System:
    """A trained system: `recommend` answers the evaluator, `save` writes what `load` reads.

    `history` is how it was judged while it was trained just now, `validation_loss` a slate model's loss a code then;
    empty for one that was loaded.
    """

    recommend: Callable[[Mapping[str, Any]], np.ndarray]
    parameters: int
    save: Callable[[Path], Any]
    batch_size: int = BATCH_SIZE
    history: Sequence[Judgement] = ()
    validation_loss: float | None = None


@dataclass
class Workbench:
    """A dataset with everything that the systems on it share.

    Args:
        plan: the benchmark.
        name: of the dataset in the plan.
        root: the benchmark's output directory.
    """

    plan: BenchmarkPlan
    name: str
    root: Path
    arguments: DataArguments = field(init=False)

    def __post_init__(self) -> None:
        self.protocol = self.plan.datasets[self.name]
        options = {"slate_size": self.protocol.list_size, **self.protocol.data}
        self.options = {key: json.dumps(v) if isinstance(v, (dict, list)) else v for key, v in options.items()}
        self.arguments = DataArguments(**self.options, list_size=self.protocol.list_size)

    @property
    def protocol_facts(self) -> dict[str, Any]:
        """What of the dataset's plan decides a unit's outcome."""
        asked = {"list_size": self.protocol.list_size, "exclude_history": self.protocol.exclude_history}
        return {"data": self.options, **asked}

    @cached_property
    def data(self) -> tuple[InteractionLog, Any]:
        """The log and its splits, read once."""
        return load_splits(self.arguments)

    @cached_property
    def item_ids(self) -> list[str]:
        """The catalogue."""
        return list(self.data[0].item_ids)

    @cached_property
    def _embeddings(self) -> np.ndarray | None:
        return diversity_vectors(*self.data, self.plan.diversity_embeddings)

    def evaluator(self, split: str, batch_size: int) -> SlateEvaluator:
        """The evaluator of a split, the same for every system but for how many users are asked at once."""
        return SlateEvaluator(
            self.data[1][split],
            self.item_ids,
            slate_size=self.protocol.list_size,
            embeddings=self._embeddings,
            exclude_history=self.protocol.exclude_history,
            batch_size=batch_size,
            num_resamples=1000 if split == "test" else 0,
            progress=False,
        )

    def command(self, **options: Any) -> list[str]:
        """A script's arguments: the data's, and these."""
        flat = []
        for key, value in {**self.options, "list_size": self.protocol.list_size, **options}.items():
            flat += [f"--{key}", json.dumps(value) if isinstance(value, (dict, list, bool)) else str(value)]
        return flat

    def tokenizer_settings(self, name: str) -> dict[str, Any]:
        """Options that a tokenizer is fitted with on this dataset."""
        options = dict(self.plan.tokenizers[name])
        changes = options.pop("by_dataset", {}).get(self.name, {})
        return {**options, **changes}

    def tokenizer(self, name: str, seed: int) -> Path:
        """Directory of a fitted tokenizer; it is fitted where it is not there yet."""
        folder = self.root / self.name / "tokenizers" / f"{name}-seed{seed}"
        settings = self.tokenizer_settings(name)
        decides = {"data": self.options, **settings}
        record = folder / "settings.json"
        done = all((folder / "tokenizer" / file).is_file() for file in TOKENIZER_FILES)
        if done and record.is_file() and json.loads(record.read_text(encoding="utf-8")) == decides:
            return folder / "tokenizer"
        shutil.rmtree(folder, ignore_errors=True)
        fit_tokenizer.main(self.command(**settings, seed=seed, output_dir=str(folder)))
        atomic_write_json(record, decides)
        return folder / "tokenizer"


def fit_system(
    bench: Workbench, system: SystemPlan, settings: Mapping[str, Any], seed: int, work: Path, parts: list[Path]
) -> System:
    """Train a system on the training split, with the validation split for early stopping.

    Args:
        bench: the dataset.
        system: its plan.
        settings: of the trial.
        seed: of the training.
        work: directory for what a longer training leaves between; it is resumed from there after a kill.
        parts: saved models of the systems that it is made of.
    """
    if system.kind == ITEM_ITEM:
        options = {"tables": settings["tables"], "scales": [settings["scales"]], "model": str(parts[0])}
        options |= {name: settings[name] for name in ("trends",) if name in settings}
        options["exclude_history"] = bench.protocol.exclude_history
        fit_item_item.main(bench.command(**options, output_dir=str(work)))
        return load_system(bench, system, settings, work / "model")
    if system.kind == DECODING:
        return load_system(bench, system, settings, parts[0])
    if system.kind in (SLATES, ALIGNED):
        options = {**settings, "output_dir": str(work), "seed": seed, "resume_from_checkpoint": True}
        options["exclude_history"] = bench.protocol.exclude_history
        options.setdefault("diversity_embeddings", bench.plan.diversity_embeddings)
    if system.kind == ALIGNED:
        from . import align  # with TRL, which takes seconds to import

        align.main(bench.command(**options, model=str(parts[0])))
        return load_system(bench, system, settings, work / "model")
    if system.kind == SLATES:
        options["tokenizer"] = str(bench.tokenizer(system.tokenizer, seed))
        clock = LearningClock(f"eval_ndcg@{bench.arguments.list_size}")
        metrics = train.main(bench.command(**options), callbacks=[clock])
        trained = load_system(bench, system, settings, work / "model")
        return replace(trained, history=clock.history, validation_loss=metrics.get("loss"))
    if system.kind == Mixture.kind:
        first, second = (Baseline.from_pretrained(path) for path in parts)
        return _baseline(Mixture(bench.item_ids, first=first, second=second, **settings), bench)
    options: dict[str, Any] = dict(settings)
    if not system.deterministic:
        options |= {
            "seed": seed,
            "slate_size": bench.protocol.list_size,
            "exclude_history": bench.protocol.exclude_history,
        }
    if system.tokenizer is not None:
        tokenizer = HiGRTokenizer.from_pretrained(bench.tokenizer(system.tokenizer, seed), local_files_only=True)
        options |= {"codebook_sizes": list(tokenizer.codebook_sizes), "codes": np.array(tokenizer.codes)}
    splits = bench.data[1]
    baseline = baseline_class(system.kind)(bench.item_ids, **options)
    baseline.checkpoint = work / "training.safetensors"
    return _baseline(baseline.fit(splits["train"], splits["validation"]), bench)


def load_system(bench: Workbench, system: SystemPlan, settings: Mapping[str, Any], path: Path) -> System:
    """A system that was kept."""
    if system.kind not in MODELS:
        return _baseline(Baseline.from_pretrained(path), bench)
    model, tokenizer = load_checkpoint(path)
    if list(tokenizer.item_ids) != bench.item_ids:
        raise ValueError(f"{path} has another catalogue than {bench.name}: remove it and train again.")
    model.to(default_device())
    recommender = SlateRecommender(
        model, tokenizer, bench.protocol.list_size, settings.get("wish"), dict(settings.get("generation", {}))
    )
    counted = [(model.config.item_item_decays, "item_item", "weights"), (model.config.trend_days, "trends", "events")]
    tables = [getattr(getattr(model.model, part), name) for has, part, name in counted if has]
    parameters = model.num_parameters() + sum(table.numel() for table in tables)
    return System(recommender, parameters, lambda folder: shutil.copytree(path, folder), SLATE_BATCH_SIZE)


def _baseline(baseline: Baseline, bench: Workbench) -> System:
    size = bench.protocol.list_size
    return System(
        lambda batch: baseline(batch, size),
        baseline.num_parameters(),
        baseline.save_pretrained,
        history=baseline.history,
    )
