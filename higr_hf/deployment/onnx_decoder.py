"""Slates from exported graphs, with onnxruntime and numpy alone; `export_onnx` puts a copy of it beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from safetensors.numpy import load_file


class OnnxSlateDecoder:
    """Decodes one user's slate at a time: plans a slot, searches its item with a beam, feeds the item back.

    The search is that of `generate(slate_mode="sequential")`: a hypothesis is kept only if a legal item lies below its
    prefix, so excluded and removed items cannot come out.

    Args:
        directory: what `export_onnx` wrote.
        providers: onnxruntime's execution providers.
        threads: threads inside an operator.

    Raises:
        FileNotFoundError: when the directory lacks a file.
        ValueError: when its files are of different exports.

    Example:
        >>> from higr_hf.deployment import export_onnx
        >>> export_onnx("runs/onnx", model, tokenizer)  # once; decoding then needs neither torch nor this package
        >>> slate = OnnxSlateDecoder("runs/onnx").recommend(tokenizer.item_ids[:2], slate_size=5)
    """

    def __init__(
        self, directory: str | os.PathLike, providers: Sequence[str] = ("CPUExecutionProvider",), threads: int = 1
    ) -> None:
        folder = Path(directory)
        self.config = json.loads((folder / "decoder.json").read_text(encoding="utf-8"))
        listed = json.loads((folder / "items.json").read_text(encoding="utf-8"))
        if listed["fingerprint"] != self.config["fingerprint"]:
            raise ValueError(f"items.json and decoder.json in {folder} are of different exports: export again.")
        self.item_ids: list[str] = listed["item_ids"]
        self.titles: list[str] | None = listed["titles"]
        table = load_file(folder / "item_sids.safetensors")
        self.codes, self.active = table["codes"], table["active"]
        self._index = {item: row for row, item in enumerate(self.item_ids)}
        # node_of[l][i]: the number of item i's prefix of l + 1 codes, in sorted order.
        self._node_of = [
            np.unique(self.codes[:, : level + 1], axis=0, return_inverse=True)[1].reshape(-1)
            for level in range(self.codes.shape[1])
        ]
        # Per level and node: one item below it, which names its code and its parent.
        self._example = [np.unique(nodes, return_index=True)[1] for nodes in self._node_of]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._steps = {
            name: onnxruntime.InferenceSession(folder / f"{name}.onnx", options, providers=list(providers))
            for name in ("encoder", "planner", "generator", *(["prior"] if self.config["catalog_prior"] else []))
        }
        self._tables = load_file(folder / "item_item.safetensors") if self.config["item_item_decays"] else None
        self._repeats = load_file(folder / "repeats.safetensors") if self.config.get("repeat_decays") else None
        self._trend = load_file(folder / "trends.safetensors")["scores"] if self.config.get("trend_days") else None

    def recommend(
        self,
        history: Sequence[str],
        slate_size: int | None = None,
        *,
        num_beams: int | None = None,
        exclude: Collection[str] = (),
        allowed: Collection[str] | None = None,
        exclude_history: bool = True,
        feedback: Sequence[int] | None = None,
        time_buckets: Sequence[int] | None = None,
        wish: int | None = None,
    ) -> list[tuple[str, float]]:
        """A slate of item ids with the log-probabilities of their codes.

        Args:
            history: item ids, oldest first; the newest `max_history` are read.
            slate_size: M.
            num_beams: W, hypotheses kept inside an item.
            exclude: item ids that must not be recommended.
            allowed: only these may be.
            exclude_history: never recommend an item of the history.
            feedback: a feedback level an item, -1 where unknown.
            time_buckets: a time bucket an item, -1 where unknown.
            wish: feedback level to ask for.

        Returns:
            M pairs; fewer when fewer items are legal.

        Raises:
            ValueError: for an unknown item, lists of unequal length, or a level that does not exist.
        """
        config = self.config
        rows = self._rows(history)
        legal = self.active.copy()
        if allowed is not None:
            only = np.zeros_like(legal)
            only[self._rows(allowed)] = True
            legal &= only
        legal[self._rows(exclude)] = False
        if exclude_history:
            legal[rows] = False
        tokens, items = self._units(rows, feedback, time_buckets)
        length = np.array([tokens.shape[1]])
        newest, planner_keys, planner_values, *generator = self._run("encoder", tokens, items, length)
        asked = self._feature("feedback", wish, config["num_feedback_levels"], config["feature_offset"])
        head = config["hidden_size"] // config["num_attention_heads"]
        past = [np.zeros((config["planner_layers"], 1, config["num_attention_heads"], 0, head), newest.dtype)] * 2
        added = self._added_scores(rows)
        slate: list[tuple[str, float]] = []
        fed = -1
        for slot in range(slate_size or config["slate_size"]):
            if not legal.any():
                break
            plan, *past = self._run(
                "planner", newest, length, planner_keys, planner_values, np.array([slot]), np.array([[fed]]),
                np.array([asked]), *past,
            )  # fmt: skip
            fed, score = self._beam(plan, length, generator, legal, num_beams or config["num_beams"], added)
            legal[fed] = False
            slate.append((self.item_ids[fed], score))
        return slate

    def _beam(
        self,
        plan: np.ndarray,
        length: np.ndarray,
        context: list[np.ndarray],
        legal: np.ndarray,
        width: int,
        added: np.ndarray | None,
    ) -> tuple[int, float]:
        """The best legal item of a plan vector `[1, 1, d]`, and its log-probability."""
        config = self.config
        head = config["hidden_size"] // config["num_attention_heads"]
        past = [np.zeros((config["generator_layers"], 1, 1, config["num_attention_heads"], 0, head), plan.dtype)] * 2
        shares = self._prior_shares(plan, added) if config["catalog_prior"] else None
        nodes, totals, tokens = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.float32), np.zeros(1, dtype=np.int64)
        for level, offset in enumerate(config["level_offsets"]):
            plans = np.repeat(plan, len(nodes), axis=1)
            log_probs, *past = self._run(
                "generator", plans, tokens[None], np.array([level]), length, *context, *past
            )  # fmt: skip
            if shares is not None:
                log_probs = self._with_prior(log_probs, level, nodes, shares[level])
            # One example item below every legal child names the child, its code and its parent.
            children, example = np.unique(self._node_of[level][legal], return_index=True)
            example = np.flatnonzero(legal)[example]
            parent = np.zeros_like(children) if level == 0 else self._node_of[level - 1][example]
            hypothesis = np.searchsorted(nodes, parent)  # nodes are kept sorted
            alive = (hypothesis < len(nodes)) & (nodes[np.minimum(hypothesis, len(nodes) - 1)] == parent)
            children, example, hypothesis = children[alive], example[alive], hypothesis[alive]
            code = self.codes[example, level] + offset
            grown = totals[hypothesis] + log_probs[0, hypothesis, code]
            best = np.sort(np.argsort(-grown, kind="stable")[:width])
            nodes, totals, tokens, hypothesis = children[best], grown[best], code[best], hypothesis[best]
            past = [part[:, :, hypothesis] for part in past]
        best_leaf = int(np.argmax(totals))
        item = np.flatnonzero(self._node_of[-1] == nodes[best_leaf])[0]
        return int(item), float(totals[best_leaf])

    def _added_scores(self, rows: np.ndarray) -> np.ndarray | None:
        """What the whole history and the newest days say for every item by themselves, float32 `[N]`; `None` where
        nothing is to be said."""
        scores = [
            score(rows)
            for part, score in ((self._tables, self._item_item_scores), (self._repeats, self._repeat_scores))
            if part is not None
        ]
        scores += [] if self._trend is None else [self._trend]
        return np.sum(scores, axis=0) if scores else None

    def _repeat_scores(self, rows: np.ndarray) -> np.ndarray:
        """What the history's items say for themselves, float32 `[N]`."""
        age, size = np.arange(len(rows))[::-1], len(self.item_ids)
        scores = (np.bincount(rows, minlength=size) > 0) * self._repeats["bias"]
        for decay, weight in zip(self.config["repeat_decays"], self._repeats["weight"], strict=True):
            counts = np.bincount(rows, weights=np.exp(-age / decay) if decay else None, minlength=size)
            scores = scores + weight * np.log1p(counts)
        return scores.astype(np.float32)

    def _item_item_scores(self, rows: np.ndarray) -> np.ndarray:
        """What the history says for every item by the item-item tables, float32 `[N]`."""
        scores = np.zeros(len(self.item_ids), dtype=np.float32)
        age = np.arange(len(rows))[::-1]
        channels = zip(self.config["item_item_decays"], self.config["item_item_scales"], strict=True)
        for channel, (decay, scale) in enumerate(channels):
            weight = np.exp(-age / decay) if decay else np.ones(len(rows))
            if decay and len(rows):
                weight = weight / np.sqrt((weight * weight).sum())
            speaks = scale * weight[:, None] * self._tables["weights"][channel][rows]
            np.add.at(scores, self._tables["neighbours"][channel][rows], speaks.astype(np.float32))
        return scores

    def _prior_shares(self, plan: np.ndarray, added: np.ndarray | None) -> list[np.ndarray]:
        """Per level the log-probability `[nodes]` of every node given its parent, by the catalogue softmax."""
        scores = self._run("prior", plan)[0][0, 0]
        if added is not None:
            scores = scores + added
        mass = np.exp(scores - scores.max())
        logs = [
            np.log(np.maximum(np.bincount(nodes, weights=mass), _SMALLEST_MASS)).astype(np.float32)
            for nodes in self._node_of
        ]
        parents = [np.zeros(len(logs[0]), dtype=np.int64)]
        parents += [above[example] for above, example in zip(self._node_of, self._example[1:], strict=False)]
        above = [np.log(mass.sum(keepdims=True)), *logs[:-1]]
        return [log - up[parent] for log, up, parent in zip(logs, above, parents, strict=True)]

    def _with_prior(self, log_probs: np.ndarray, level: int, nodes: np.ndarray, shares: np.ndarray) -> np.ndarray:
        """Log-probabilities `[1, R, V]` of a level's codes once the prior's logits are added to the generator's."""
        size, offset = self.config["codebook_sizes"][level], self.config["level_offsets"][level]
        example = self._example[level]
        parent = np.zeros(len(example), dtype=np.int64) if level == 0 else self._node_of[level - 1][example]
        row = np.searchsorted(nodes, parent)  # nodes are kept sorted
        alive = (row < len(nodes)) & (nodes[np.minimum(row, len(nodes) - 1)] == parent)
        added = np.full((len(nodes), size), _MISSING_CODE, dtype=np.float32)
        added[row[alive], self.codes[example[alive], level]] = shares[alive]
        first = 0 if level == 0 else offset
        if level == 0:
            added = np.concatenate([np.full((len(nodes), offset), -np.log(size), dtype=np.float32), added], axis=1)
        logits = log_probs[0, :, first : offset + size] + added
        logits = logits - logits.max(axis=1, keepdims=True)
        result = log_probs.copy()
        result[0, :, first : offset + size] = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return result

    def _run(self, step: str, *inputs: np.ndarray) -> list[np.ndarray]:
        session = self._steps[step]
        # A graph drops inputs that it does not need, such as items without an item embedding.
        wanted = {entry.name for entry in session.get_inputs()}
        feed = {name: value for name, value in zip(_INPUTS[step], inputs, strict=True) if name in wanted}
        return session.run(None, feed)

    def _rows(self, items: Collection[str]) -> np.ndarray:
        unknown = [item for item in items if item not in self._index]
        if unknown:
            raise ValueError(f"The catalogue has no item {unknown[0]!r}; it has {len(self.item_ids)} items.")
        return np.array([self._index[item] for item in items], dtype=np.int64)

    def _units(
        self, rows: np.ndarray, feedback: Sequence[int] | None, time_buckets: Sequence[int] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens `[1, U, S]` and items `[1, U]` of `<bos>` and the newest items."""
        config = self.config
        first_time = config["feature_offset"] + config["num_feedback_levels"]
        columns = [self.codes[rows] + np.array(config["level_offsets"])]
        for name, levels, count, first in (
            ("feedback", feedback, config["num_feedback_levels"], config["feature_offset"]),
            ("time_buckets", time_buckets, config["num_time_buckets"], first_time),
        ):
            if levels is not None and len(levels) != len(rows):
                raise ValueError(f"{name} has {len(levels)} values for {len(rows)} items of the history.")
            if count:
                given = levels if levels is not None else [-1] * len(rows)
                column = [self._feature(name, level, count, first) for level in given]
                columns.append(np.array(column, dtype=np.int64).reshape(-1, 1))
            elif levels is not None and any(level not in (None, -1) for level in levels):
                raise ValueError(f"This model has no {name}.")
        tokens = np.concatenate(columns, axis=1)
        keep = min(len(rows), config["max_history"])
        bos = np.zeros((1, tokens.shape[1]), dtype=np.int64)
        bos[0, 0] = config["bos_token_id"]
        tokens = np.concatenate([bos, tokens[len(rows) - keep :]])
        return tokens[None], np.concatenate([[-1], rows[len(rows) - keep :]])[None]

    @staticmethod
    def _feature(name: str, level: int | None, count: int, first: int) -> int:
        if level is None or level == -1:
            return 0
        if not 0 <= level < count:
            raise ValueError(f"{name} is {level}; the levels are 0 to {count - 1}.")
        return first + level


# As in the model: codes that lead to no item, and the least mass a prefix counts for.
_MISSING_CODE, _SMALLEST_MASS = -1e4, 1e-30

_INPUTS = {
    "encoder": ("tokens", "items", "length"),
    "planner": ("newest", "length", "keys", "values", "slot", "fed", "wish", "past_keys", "past_values"),
    "generator": ("plans", "tokens", "step", "length", "keys", "values", "past_keys", "past_values"),
    "prior": ("plans",),
}
