"""Training state on disk: written whole to a new folder, then renamed, so that a kill leaves the last good one."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from racm3.errors import CheckpointError


def save_state(folder: Path, step: int, model: nn.Module, optimisers: list[torch.optim.Optimizer]) -> None:
    """Write ``folder/state`` (weights, optimiser state, next step), replacing the one before only when complete."""
    new, old, final = folder / "state.new", folder / "state.old", folder / "state"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in _weights(model).items()}, new / "model.safetensors")
    torch.save([optimiser.state_dict() for optimiser in optimisers], new / "optimiser.pt")
    (new / "step.json").write_text(json.dumps({"step": step}), encoding="utf-8")
    for path in new.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    new.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def load_state(folder: Path, model: nn.Module, optimisers: list[torch.optim.Optimizer]) -> int:
    """Restore the newest complete state and return its next step; 0 if there is none.

    Raises CheckpointError if the state belongs to another model, or is damaged.
    """
    state = next((folder / name for name in ("state", "state.old") if (folder / name / "step.json").exists()), None)
    if state is None:
        return 0
    try:
        weights = load_file(state / "model.safetensors")
        if weights.keys() != _weights(model).keys():
            raise ValueError("its weights have other names")
        model.load_state_dict(weights, strict=False)  # of tied tensors it holds one
        saved: list[dict[str, Any]] = torch.load(state / "optimiser.pt", weights_only=True)
        for optimiser, values in zip(optimisers, saved, strict=True):
            optimiser.load_state_dict(values)
        return int(json.loads((state / "step.json").read_text(encoding="utf-8"))["step"])
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise CheckpointError(
            f"{state} was written by another model or is damaged; choose another --out or delete it ({error})"
        ) from error


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with tied tensors once, as safetensors demands."""
    unique: dict[int, str] = {}
    weights = {}
    for key, value in model.state_dict().items():
        if unique.setdefault(value.data_ptr(), key) == key or value.numel() == 0:
            weights[key] = value
    return weights
