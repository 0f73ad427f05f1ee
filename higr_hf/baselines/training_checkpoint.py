"""What the training of a network keeps between judgements, so that a killed one goes on where it was.

Nothing of this package: the worker of another environment loads this file by its path.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

if TYPE_CHECKING:
    from .early_stopping import KeepBest


class TrainingCheckpoint:
    """One file with weights, the best weights, the optimizer, the random state and the judgements so far.

    Resumed on the machine that wrote it, a training draws what the whole one would have drawn.

    Args:
        path: the file; it replaces itself as a whole.
        settings: JSON-able; a file of other settings is refused.
        write: writes a file as a whole or not at all, `atomic_write_bytes`.
    """

    def __init__(self, path: Path, settings: dict[str, Any], write: Callable[[Path, bytes], Any]) -> None:
        self.path, self.settings, self._write = Path(path), settings, write

    def keep(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, best: KeepBest, epoch: int, step: int
    ) -> None:
        """Write it; `epoch` passes and `step` steps are over."""
        tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in best.state.items()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
        tensors["random.cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["random.cuda"] = torch.cuda.get_rng_state()
        # Tied weights share memory, which safetensors refuses.
        tensors = {name: value.detach().cpu().clone() for name, value in tensors.items()}
        facts = {"settings": self.settings, "epoch": epoch, "step": step, "judged": best.progress()}
        self._write(self.path, save(tensors, metadata={"training": json.dumps(facts)}))
        best.skip()

    def take_up(self, network: nn.Module, optimizer: torch.optim.Optimizer, best: KeepBest) -> tuple[int, int]:
        """Put everything back, in place.

        Returns:
            Passes and steps that are over; both 0 where there is no file.

        Raises:
            ValueError: for a file that cannot be read, or one of another training.
        """
        if not self.path.is_file():
            return 0, 0
        try:
            with safe_open(self.path, framework="pt") as file:
                facts = json.loads(file.metadata()["training"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path} holds no training that could go on ({error!r}): remove it.") from error
        if facts["settings"] != json.loads(json.dumps(self.settings)):
            raise ValueError(f"{self.path} was left by a training with other settings: remove it, or keep in another.")
        network.load_state_dict(_below("network.", tensors))
        device = next(network.parameters()).device
        best.resume(facts["judged"], {name: value.to(device) for name, value in _below("best.", tensors).items()})
        states: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in _below("optimizer.", tensors).items():
            number, _, what = name.partition(".")
            states.setdefault(int(number), {})[what] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
        torch.set_rng_state(tensors["random.cpu"])
        if "random.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["random.cuda"])
        return facts["epoch"], facts["step"]

    def remove(self) -> None:
        """The training is over."""
        self.path.unlink(missing_ok=True)


def _below(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
