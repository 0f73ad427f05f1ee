"""What a training has reached after how many seconds of the processor."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import TrainerCallback

from ..baselines.early_stopping import Judgement, TrainingClock


class LearningClock(TrainerCallback):
    """Writes down every evaluation of a `Trainer`: its score, and the processor seconds that training had taken.

    Evaluations are timed apart, and the writing of checkpoints is counted nowhere.

    Args:
        metric: of the evaluations, such as `eval_ndcg@5`.
        clock: made anew when training begins, by default.

    Attributes:
        history: every [`Judgement`].

    Example:
        >>> clock = LearningClock("eval_ndcg@5")
        >>> trainer = SlateTrainer(model, arguments, callbacks=[clock], **data)  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
        >>> clock.history
        []
    """

    def __init__(self, metric: str, clock: TrainingClock | None = None) -> None:
        self.metric, self._clock = metric, clock
        self.history: list[Judgement] = []
        self._stopped = False

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Reading and encoding the data was before."""
        self._clock = self._clock or TrainingClock()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """The trainer evaluates and saves right after this event, where it has just decided to."""
        if (control.should_evaluate or control.should_save) and not self._stopped:
            self._clock.begin_judgement()
            self._stopped = True

    on_epoch_end = on_step_end

    def on_evaluate(self, args, state, control, metrics, **kwargs) -> None:
        """Note the score of an evaluation that training asked for."""
        if not self._stopped:
            return
        self._clock.end_judgement()
        self._stopped = False
        self.history.append(Judgement(state.epoch, metrics[self.metric], self._clock.training, self._clock.judging))

    def on_save(self, args, state, control, **kwargs) -> None:
        """A checkpoint was written, after the evaluation if there was one."""
        self._clock.skip()
        self._stopped = False


def seconds_to(history: Iterable[Judgement], score: float) -> float | None:
    """Processor seconds of training before the first judgement of at least this score; `None` without one.

    Example:
        >>> history = [Judgement(1, 0.1, 30.0, 2.0), Judgement(2, 0.3, 60.0, 4.0), Judgement(3, 0.2, 90.0, 6.0)]
        >>> seconds_to(history, 0.2), seconds_to(history, 0.4)
        (60.0, None)
    """
    return next((judgement.training_seconds for judgement in history if judgement.score >= score), None)
