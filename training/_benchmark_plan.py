"""What a benchmark consists of: datasets, systems, and the trials that tune each, read from one YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from higr_hf.baselines.base import baseline_class
from higr_hf.evaluation.results import SYSTEMS

SLATES = "slates"
"""Kind of the systems that `training.train` trains: HiGR and the flat decoder."""

ITEM_ITEM = "item-item"
"""Kind of a trained HiGR that is given item-item tables."""

DECODING = "decoding"
"""Kind of a trained model that decodes in another way; nothing is trained."""

ALIGNED = "aligned"
"""Kind of a trained model that `training.align` goes on with."""

MODELS = (SLATES, ITEM_ITEM, DECODING, ALIGNED)
"""Kinds whose systems are checkpoints of a model and its tokenizer."""

NETWORKS = (SLATES, ALIGNED, "sasrec", "bert4rec", "hstu", "sasrec-item-vectors", "listcvae", "tiger")
"""Kinds whose training takes long: see `DatasetPlan.network_trials`."""

PARTS = {ITEM_ITEM: 1, DECODING: 1, ALIGNED: 1, "mixture": 2}
"""Kind -> how many other systems it is made of."""


@dataclass(frozen=True)
class DatasetPlan:
    """A log, how it is split, and what is asked of every system there.

    Attributes:
        data: options of `DataArguments`; its `slate_size` is the events that are held out, `list_size` by default.
        list_size: M, items that are recommended.
        exclude_history: whether items of the history may not be recommended.
        num_trials: how many of each system's trials are run, the first ones; all by default.
        network_trials: the same for systems whose training takes long; `num_trials` by default.
        systems: which systems are measured; all by default.
        trained_on: the dataset of the plan, the same log and splits, whose networks are judged here, those of systems
            that are `trained_once`; everything else is trained and tuned here.
    """

    data: Mapping[str, Any]
    list_size: int = 5
    exclude_history: bool = True
    num_trials: int | None = None
    network_trials: int | None = None
    systems: tuple[str, ...] | None = None
    trained_on: str | None = None

    def __post_init__(self) -> None:
        for name in ("list_size", "num_trials", "network_trials"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")


@dataclass(frozen=True)
class SystemPlan:
    """A line of the benchmark.

    Attributes:
        name: unique; what `--only` takes.
        kind: a baseline's kind, `slates` for what `training.train` trains, `item-item` for a part of kind `slates`
            with item-item tables, `aligned` for one that is aligned with preferences, `decoding` for a part of one of
            these three kinds that decodes in another way.
        system, variant: as in the result rows.
        settings: common to all trials: the baseline's, or options of `training.train` or `training.align`.
        trials: changes of the settings, one a trial, judged on validation; one empty trial where nothing is tuned.
        by_dataset: dataset -> further changes of the settings there.
        tokenizer: which of the plan's tokenizers gives the semantic IDs.
        parts: names of the two systems that a mixture mixes, or of the one that gets tables, is aligned or decodes
            differently.
        deterministic: one seed is as good as many.
        datasets: where it is measured; everywhere by default.
        chosen_by: the metric on validation that takes a trial, at the dataset's list size.
        trained_once: nothing in its training, the choice of the best epoch included, asks how a dataset judges it, so
            that one that is `trained_on` another takes its networks from there.
    """

    name: str
    kind: str
    system: str
    variant: str = "none"
    settings: Mapping[str, Any] = field(default_factory=dict)
    trials: tuple[Mapping[str, Any], ...] = ({},)
    by_dataset: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tokenizer: str | None = None
    parts: tuple[str, ...] = ()
    deterministic: bool = False
    datasets: tuple[str, ...] | None = None
    chosen_by: str = "ndcg"
    trained_once: bool = False

    def __post_init__(self) -> None:
        for name in ("trials", "parts"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.kind not in MODELS:
            baseline_class(self.kind)
        if self.system not in SYSTEMS:
            raise ValueError(f"its system is {self.system!r}, expected one of {', '.join(SYSTEMS)}")
        if not self.trials:
            raise ValueError("it has no trials; one that tunes nothing is written []: leave the key out")
        if len(self.parts) != PARTS.get(self.kind, 0):
            raise ValueError(
                f"kind {self.kind!r} has {PARTS.get(self.kind, 0)} `parts`, not {len(self.parts)}: a mixture has two, "
                "item-item tables, an alignment and another way of decoding one, everything else none"
            )

    def settings_of(self, dataset: str, trial: int) -> dict[str, Any]:
        """Settings of a trial on a dataset: the trial has the last word, inside a mapping (`model`) key by key."""
        settings: dict[str, Any] = {}
        for changes in (self.settings, self.by_dataset.get(dataset, {}), self.trials[trial]):
            for key, value in changes.items():
                nested = isinstance(value, Mapping) and isinstance(settings.get(key), Mapping)
                settings[key] = {**settings[key], **value} if nested else value
        return settings


@dataclass(frozen=True)
class BenchmarkPlan:
    """All of it.

    Attributes:
        datasets: name -> its plan.
        systems: name -> its plan; a mixture comes after its parts.
        tokenizers: name -> options of `training.fit_tokenizer`, and `by_dataset` changes of them.
        tuned_on: seed of the trials.
        diversity_embeddings: what slate diversity is measured on.
        reference: the system that every other one is compared with, user by user; by default every HiGR with every
            system that is none.
    """

    datasets: Mapping[str, DatasetPlan]
    systems: Mapping[str, SystemPlan]
    tokenizers: Mapping[str, Mapping[str, Any]]
    tuned_on: int = 0
    diversity_embeddings: str = "text"
    reference: str | None = None

    def read_from(self, folders: Mapping[str, str]) -> BenchmarkPlan:
        """The same plan, some datasets being read from a file or folder of yours instead of being downloaded.

        Raises:
            ValueError: for a dataset that the plan has not.
        """
        unknown = sorted(set(folders) - set(self.datasets))
        if unknown:
            raise ValueError(f"there is no dataset {unknown[0]!r} in the plan; there are {', '.join(self.datasets)}.")
        datasets = {
            name: replace(plan, data={**plan.data, "local_path": folders[name]}) if name in folders else plan
            for name, plan in self.datasets.items()
        }
        return replace(self, datasets=datasets)

    def trials(self, system: SystemPlan, dataset: str) -> range:
        """Numbers of the trials that a system gets on a dataset."""
        protocol = self.datasets[dataset]
        most = protocol.num_trials
        if system.kind in NETWORKS and protocol.network_trials is not None:
            most = protocol.network_trials
        return range(len(system.trials) if most is None else min(most, len(system.trials)))

    def measured(self, dataset: str) -> list[str]:
        """Names of the systems that are measured on a dataset."""
        wanted = self.datasets[dataset].systems
        return [
            name
            for name, system in self.systems.items()
            if (wanted is None or name in wanted) and (system.datasets is None or dataset in system.datasets)
        ]


def load_plan(path: str | Path) -> BenchmarkPlan:
    """Read and check a plan.

    Raises:
        ValueError: for unknown keys, names that refer to nothing, and unequal numbers of trials: a system that is
            tuned more than another is no fair opponent.
    """
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a benchmark is a mapping of datasets, systems and tokenizers.")
    _known(content, BenchmarkPlan, str(path))
    datasets = {
        name: _made(DatasetPlan, options, f"{path}: dataset {name!r}")
        for name, options in (content.pop("datasets", None) or {}).items()
    }
    systems: dict[str, SystemPlan] = {}
    for name, options in (content.pop("systems", None) or {}).items():
        where = f"{path}: system {name!r}"
        system = _made(SystemPlan, {"name": name, **options}, where)
        missing = [part for part in system.parts if part not in systems]
        if missing:
            raise ValueError(f"{where}: its part {missing[0]!r} does not stand before it.")
        if system.tokenizer is not None and system.tokenizer not in content.get("tokenizers", {}):
            raise ValueError(f"{where}: there is no tokenizer {system.tokenizer!r}.")
        systems[name] = system
    tuned = {name: len(system.trials) for name, system in systems.items() if len(system.trials) > 1}
    if len(set(tuned.values())) > 1:
        raise ValueError(f"{path}: every tuned system gets the same number of trials; here they are {tuned}.")
    for name, plan in datasets.items():
        if plan.trained_on is None:
            continue
        source = datasets.get(plan.trained_on)
        if source is None or source.trained_on or (source.data, source.list_size) != (plan.data, plan.list_size):
            raise ValueError(
                f"{path}: dataset {name!r}: its trained_on {plan.trained_on!r} is no dataset with the same data and "
                "list_size and networks of its own."
            )
    for kind, plans, known in (("system", datasets, systems), ("dataset", systems, datasets)):
        for name, plan in plans.items():
            unknown = sorted(set(getattr(plan, f"{kind}s") or ()) - set(known))
            if unknown:
                raise ValueError(f"{path}: {name!r}: there is no {kind} {unknown[0]!r}.")
    reference = content.get("reference")
    if reference is not None and reference not in systems:
        raise ValueError(f"{path}: its reference {reference!r} is no system; there are {', '.join(systems)}.")
    return BenchmarkPlan(datasets=datasets, systems=systems, **{"tokenizers": {}, **content})


def _made(kind: type, options: Mapping[str, Any], where: str) -> Any:
    """A part of the plan, its errors saying where it stands."""
    _known(options, kind, where)
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _known(options: Mapping[str, Any], kind: type, where: str) -> None:
    extra = sorted(set(options) - {entry.name for entry in fields(kind)})
    if extra:
        raise ValueError(f"{where}: unknown keys {extra}; there are {sorted(entry.name for entry in fields(kind))}.")
