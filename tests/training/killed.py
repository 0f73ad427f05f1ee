"""`training.train`, killed without warning after a step: `python -m tests.training.killed STEP OPTIONS...`."""

from __future__ import annotations

import os
import signal
import sys

from transformers import TrainerCallback

from training import train


class _Kill(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Train until the kill."""
    train.main(sys.argv[2:], callbacks=[_Kill(int(sys.argv[1]))])


if __name__ == "__main__":
    main()
