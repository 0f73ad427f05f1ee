"""A resident engine: one model in memory, requests of many threads answered in batches, histories encoded once."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import torch

from ..pipeline_higr import SlateRecommendationPipeline
from .batching import MicroBatcher
from .contexts import EncodedHistory, HistoryEncoder
from .errors import UnknownUserError
from .histories import History
from .lru import BoundedLRU
from .reading import RequestReader, SlateJob
from .settings import SlateSettings
from .shapes import Shapes, compile_stages

if TYPE_CHECKING:
    from ..modeling_higr import HiGRForSlateGeneration
    from ..tokenization_higr import HiGRTokenizer


@dataclasses.dataclass(frozen=True)
class _User:
    """A user's events, and what the pipeline made of them, so that a request about nothing else is read already."""

    history: History
    job: SlateJob


class SlateEngine:
    """Answers requests for slates from many threads, as [`SlateRecommendationPipeline`] would answer each alone.

    A worker thread decodes what waits in a bounded queue, a batch at a time. Of users that the caller names, the
    engine keeps the events and what was encoded of them: new events are encoded alone and put behind the rest (with a
    causal encoder; with a bidirectional one a changed history is encoded anew). Once a history has outgrown the
    model's `max_history`, every new event moves all positions, and the window is encoded anew each time: the slate
    must be what the plain path gives. No path changes a result beyond the rounding of sums in another order.

    Weights and catalogue must not change below an engine: after training or `living.add_items` make a new one.

    Args:
        model: a [`HiGRForSlateGeneration`]; it is put into evaluation mode.
        tokenizer: its tokenizer.
        max_batch_size: requests decoded together.
        max_wait_ms: milliseconds that a lone request waits for company.
        max_queue: requests that may wait; one more is refused with [`EngineOverloaded`].
        max_slate_size: largest slate a request may ask for; the configuration's `max_slate_size` by default.
        max_beams: widest beam a request may ask for.
        max_users: users whose events are kept; past it the least recently used are forgotten.
        cache_bytes: bytes of encoded histories that are kept, the least recently used dropped first and encoded again
            when they are asked for. A history of H items takes `(H + 1) · engine.unit_bytes`; 0 keeps nothing.
        settings: what requests do not choose themselves, a [`SlateSettings`] or its fields as a dictionary.
        shapes: batches are padded to these sizes; without them to their longest row.
        compile: a backend of `torch.compile` (`"inductor"`) for the stages that decode, in place. Needs `shapes`; call
            [`SlateEngine.warm_up`] before the first request.

    Raises:
        ValueError: for a tokenizer of another model, a model without catalogue, or a bound that cannot hold.

    Example:
        >>> with SlateEngine(model, tokenizer, settings={"slate_size": 3}) as engine:
        ...     slate = engine.recommend(["i0", "i1"])
        ...     events = engine.set_user("ann", ["i0", "i1"])
        ...     same = engine.recommend(user="ann")
        ...     after = engine.recommend(user="ann", events=[{"item": "i2"}])
        >>> len(slate), events, [place["item_id"] for place in slate] == [place["item_id"] for place in same]
        (3, 2, True)
    """

    def __init__(
        self,
        model: HiGRForSlateGeneration,
        tokenizer: HiGRTokenizer,
        *,
        max_batch_size: int = 32,
        max_wait_ms: float = 2.0,
        max_queue: int = 256,
        max_slate_size: int | None = None,
        max_beams: int = 100,
        max_users: int = 100_000,
        cache_bytes: int = 256 * 2**20,
        settings: SlateSettings | Mapping[str, Any] | None = None,
        shapes: Shapes | None = None,
        compile: str | None = None,
    ) -> None:
        self._pipeline = SlateRecommendationPipeline(model, tokenizer, device=model.device)
        model.model.trie()  # built before the first request, and refused here where there is no catalogue
        self.config = model.config
        self.settings = settings if isinstance(settings, SlateSettings) else SlateSettings(**(settings or {}))
        self.shapes = shapes
        if shapes is not None and shapes.units[-1] <= self.config.max_history:
            raise ValueError(
                f"The longest shape has {shapes.units[-1]} units; a history of this model may have "
                f"{self.config.max_history + 1}, `<bos>` included."
            )
        if compile is not None:
            if shapes is None:
                raise ValueError("compile needs shapes: without them every new batch would be compiled anew.")
            compile_stages(model, compile, shapes)
        self._encoder = HistoryEncoder(model)
        most = self.config.max_slate_size if max_slate_size is None else max_slate_size
        self._reader = RequestReader(self._pipeline, self._encoder, self.settings, most, max_beams)
        self._users: BoundedLRU[str, _User] = BoundedLRU(max_users)
        self._encoded: BoundedLRU[str, EncodedHistory] = BoundedLRU(cache_bytes, lambda row: row.nbytes)
        self._changing = threading.Lock()
        self._batcher: MicroBatcher[SlateJob] = MicroBatcher(
            self._answer,
            key=lambda job: job.settings.decoding(),
            max_batch_size=max_batch_size if shapes is None else min(max_batch_size, shapes.rows[-1]),
            max_wait=max_wait_ms / 1000,
            max_queue=max_queue,
        )

    def __enter__(self) -> SlateEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def unit_bytes(self) -> int:
        """Bytes that one event of an encoded history takes, see [`HistoryEncoder.unit_bytes`]."""
        return self._encoder.unit_bytes

    @property
    def closed(self) -> bool:
        """Whether the engine was closed."""
        return self._batcher.closed

    # ---- requests

    def recommend(
        self, history: Sequence[str] | None = None, *, timeout: float | None = None, **request: Any
    ) -> list[dict[str, Any]]:
        """A slate; the arguments are those of [`SlateEngine.submit`].

        Args:
            history: as there.
            timeout: seconds to wait; past them the request is taken out of the queue.
            **request: as there.

        Returns:
            A dictionary a slot: `slot`, `item_id`, `title`, `score`, `alternates`.

        Raises:
            TimeoutError: when it took too long.
        """
        future = self.submit(history, **request)
        try:
            return future.result(timeout)
        finally:
            future.cancel()

    def submit(
        self,
        history: Sequence[str] | None = None,
        *,
        user: str | None = None,
        feedback: Sequence[float | None] | None = None,
        timestamps: Sequence[float | None] | None = None,
        events: Sequence[str | Mapping[str, Any]] = (),
        exclude: Sequence[str] | None = None,
        allowed: Sequence[str] | None = None,
        wish: int | None = None,
        **settings: Any,
    ) -> Future[list[dict[str, Any]]]:
        """Ask for a slate.

        Args:
            history, feedback, timestamps: a user's events as in the pipeline, oldest first.
            user: whose events they are. With a history it replaces what was known of the user (what it shares with
                that is not encoded again); without one the kept events are meant.
            events: newer events of the user, put behind the others and kept; see [`History.extended`].
            exclude, allowed, wish: as in the pipeline.
            **settings: fields of [`SlateSettings`].

        Raises:
            ValueError: for an argument that cannot be met, before anything is queued.
            UnknownUserError: for a user that is not known, given without a history.
            EngineOverloaded, EngineClosed: when the queue is full, or the engine closed.
        """
        chosen = self._reader.choose(settings)
        if user is None:
            if history is None:
                raise ValueError("Give a history (an empty list for a new user), or the user whose events are meant.")
            if events:
                raise ValueError("events belong to a user: name one, or put them at the end of the history.")
        elif history is None and (feedback is not None or timestamps is not None):
            raise ValueError("feedback and timestamps go with a history; new events carry their own.")
        wanted = {"exclude": exclude, "allowed": allowed, "wish": wish}
        wanted = {name: value for name, value in wanted.items() if value is not None}

        def read() -> SlateJob:
            if user is None:
                return self._reader.read(History.of(history, feedback, timestamps), chosen, None, wanted)
            with self._changing:
                known = self._told(user, history, feedback, timestamps, events)
                if not wanted and chosen.exclude_history == known.job.settings.exclude_history:
                    job = dataclasses.replace(known.job, settings=chosen)
                else:
                    job = self._reader.read(known.history, chosen, user, wanted)
                self._users.put(user, known)  # last: a request that cannot be met must not have added its events
                return job

        # Read once there is a place in the queue: nor must one that is refused.
        return self._batcher.submit_read(read)

    # ---- users

    def set_user(
        self,
        user: str,
        history: Sequence[str],
        feedback: Sequence[float | None] | None = None,
        timestamps: Sequence[float | None] | None = None,
    ) -> int:
        """Tell all that is known of a user, in place of what was known before; returns the number of events."""
        return self._keep(user, history, feedback, timestamps)

    def append(self, user: str, events: Sequence[str | Mapping[str, Any]]) -> int:
        """Put newer events behind a known user's; returns the number of events. They are encoded when next needed.

        Raises:
            UnknownUserError: for a user that is not known: taking these for all there is would change slates silently.
            ValueError: for an unknown item or an event of another form; the user's events are then as they were.
        """
        return self._keep(user, events=events)

    def forget(self, user: str) -> bool:
        """Drop everything that is kept of a user; False where nothing was."""
        with self._changing:
            known = self._users.pop(user) is not None
            self._encoded.pop(user)
            return known

    def _keep(self, user: str, *told: Any, **events: Any) -> int:
        with self._changing:
            known = self._told(user, *told, **events)
            self._users.put(user, known)
        return len(known.history.items)

    def _told(
        self,
        user: str,
        history: Sequence[str] | None = None,
        feedback: Sequence[float | None] | None = None,
        timestamps: Sequence[float | None] | None = None,
        events: Sequence[str | Mapping[str, Any]] = (),
    ) -> _User:
        """What is known of a user once what is given has replaced or extended it; not kept yet."""
        if not isinstance(user, str) or not user:
            raise ValueError(f"user must be a string that is not empty; got {user!r}.")
        known = None
        if history is not None:
            before = History.of(history, feedback, timestamps)
        else:
            known = self._users.get(user)
            if known is None:
                raise UnknownUserError(
                    f"Nothing is known of user {user!r}: never told, forgotten, or dropped for others. Send the whole "
                    "history."
                )
            before = known.history
        now = before.extended(events)
        if known is not None and now == before:
            return known
        return _User(now, self._reader.read(now, self.settings, user))

    # ---- the work

    def warm_up(self) -> int:
        """Decode a batch of every shape with the engine's own settings, so that no request waits for a compiler.

        Returns:
            The number of shapes.
        """
        if self.shapes is None:
            return 0
        job = self._reader.read(History(), self.settings)
        grid = [(rows, units) for rows in self.shapes.rows for units in self.shapes.units]
        for rows, units in grid:
            self._decode([job] * rows, self._encoder.encode([job.prompt] * rows), units)
        return len(grid)

    def stats(self) -> dict[str, int]:
        """Counts since the start, and what is kept now; see [`BatchCounts`] for those of requests."""
        return {
            **dataclasses.asdict(self._batcher.counts),
            "waiting": self._batcher.waiting,
            "users": len(self._users),
            "dropped_users": self._users.dropped,
            "encoded_users": len(self._encoded),
            "encoded_bytes": self._encoded.cost,
            "dropped_encodings": self._encoded.dropped,
            "encoded_units": self._encoder.encoded_units,
            "reused_units": self._encoder.reused_units,
        }

    def close(self, drain: bool = True) -> None:
        """Take no more requests; answer those that wait, or fail them without `drain`."""
        self._batcher.close(drain)

    def _answer(self, jobs: list[SlateJob]) -> list[list[dict[str, Any]] | ValueError]:
        """Slates for a batch of one kind of decoding, or what stands against one; runs in the worker thread."""
        kept = [None if job.user is None else self._encoded.get(job.user) for job in jobs]
        rows = self._encoder.encode([job.prompt for job in jobs], kept)
        for job, row in zip(jobs, rows, strict=True):
            if job.user is not None:
                self._encoded.put(job.user, row)
                if self._users.get(job.user) is None:  # forgotten since: nothing of them may stay
                    self._encoded.pop(job.user)
        outputs = self._decode(jobs, rows)
        answers = []
        for number, job in enumerate(jobs):
            mine = {name: tensor[number : number + 1] for name, tensor in outputs.items()}
            found, asked = int((mine["slates"] >= 0).sum()), mine["slates"].shape[1]
            if found < asked and not job.settings.allow_short:
                answers.append(
                    ValueError(
                        f"There are only {found} legal items for a slate of {asked}: ask for fewer, exclude less, or "
                        "set allow_short to get what there is."
                    )
                )
            else:
                answers.append(self._pipeline.postprocess(mine, job.settings.num_alternates))
        return answers

    def _decode(
        self, jobs: Sequence[SlateJob], rows: Sequence[EncodedHistory], units: int | None = None
    ) -> dict[str, torch.Tensor]:
        """What the pipeline's model gives for a batch; padded to the engine's shapes, the padding cut off again."""
        count = len(jobs)
        if self.shapes is not None:
            spare = self.shapes.rows_for(count) - count
            jobs, rows = [*jobs, *[jobs[-1]] * spare], [*rows, *[rows[-1]] * spare]
            units = units or self.shapes.units_for(max(row.context.shape[1] for row in rows))
        inputs = _collate([job.inputs for job in jobs])
        outputs = self._pipeline.forward(
            inputs,
            context=self._encoder.assemble(rows, units),
            # A row without enough items must not fail the others: it is refused by itself afterwards.
            allow_short=True,
            **dict(jobs[0].settings.decoding()),
        )
        return {name: tensor[:count] for name, tensor in outputs.items()}


def _collate(rows: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Single inputs of the pipeline as one batch: prompts padded on the left, lists of items on the right."""

    def joined(name: str) -> torch.Tensor:
        parts = [row[name][0] for row in rows]
        if parts[0].dim() == 0:
            return torch.stack(parts)
        side = "left" if name in ("input_ids", "attention_mask") else "right"
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_side=side)

    return {name: joined(name) for name in rows[0]}


__all__ = ["SlateEngine"]
