"""Stopping and resuming the training of a quantiser: weights, optimiser and history in one directory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from higr_hf.configuration_crq_vae import CRQVAEConfig
from higr_hf.modeling_crq_vae import CRQVAEModel
from higr_hf.utils import atomic_directory


def settings_fingerprint(
    config: CRQVAEConfig, plan: Any, seed: int, x: torch.Tensor, positives: torch.Tensor | None
) -> str:
    """A hash of everything the curve depends on: a checkpoint of anything else must not be taken up."""
    fields = {name: getattr(config, name) for name in type(config).__annotations__}
    text = json.dumps([fields, dataclasses.asdict(plan), seed], sort_keys=True)
    digest = hashlib.sha256(text.encode())
    digest.update(x.cpu().numpy().tobytes())
    if positives is not None:
        digest.update(positives.cpu().numpy().tobytes())
    return digest.hexdigest()


def save_checkpoint(
    folder: Path,
    model: CRQVAEModel,
    optimizer: torch.optim.Optimizer,
    history: list[dict[str, float]],
    fingerprint: str,
) -> None:
    """Write a checkpoint; a kill in the middle leaves the one before whole."""
    state = {
        f"{index}.{name}": value.contiguous()
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    with atomic_directory(folder) as partial:
        save_file(
            {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, partial / "model.safetensors"
        )
        save_file(state, partial / "optimizer.safetensors")
        record = {"fingerprint": fingerprint, "history": history}
        (partial / "state.json").write_text(json.dumps(record), encoding="utf-8")


def load_checkpoint(
    folder: Path, model: CRQVAEModel, optimizer: torch.optim.Optimizer, fingerprint: str
) -> list[dict[str, float]]:
    """Load a checkpoint into `model` and `optimizer` and return the history so far.

    Raises:
        ValueError: when the directory is incomplete, corrupt, or of another training.
    """
    way_out = "remove the directory, or give another checkpoint_dir, to start anew"
    try:
        record = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if record["fingerprint"] != fingerprint:
            raise ValueError(
                f"{folder} holds a checkpoint of another training (other embeddings, settings or seed): {way_out}."
            )
        model.load_state_dict(load_file(folder / "model.safetensors"))
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in load_file(folder / "optimizer.safetensors").items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = tensor
    except (OSError, SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{folder} is no whole checkpoint ({error}): {way_out}.") from error
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return record["history"]
