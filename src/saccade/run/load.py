"""A finished or running run's task, from its folder."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig

from saccade.run.build import build_task
from saccade.run.folder import RunFolder
from saccade.tasks.base import Task


def load_task(folder: Path | str, config: DictConfig | None = None) -> tuple[DictConfig, Task]:
    """The configuration and the task with its trained weights, in evaluation mode on the CPU.

    Args:
        folder: of the run, or of shipped weights (config.yaml beside weights.pt).
        config: build from this one instead of the folder's (another attention in the same slots).

    Raises:
        ValueError: no run folder, or nothing was saved in it yet.
    """
    run = RunFolder(Path(folder))
    config = run.read_config() if config is None else config
    weights = run.path / "weights.pt"
    if not run.checkpoint.is_file() and not weights.is_file():
        raise ValueError(f"{run.path} holds no weights yet: neither checkpoints/last.ckpt nor weights.pt")
    config = config.copy()
    if "perceptual" in config.task.module:  # a loss needs weights of its own that nothing here does
        config.task.module.perceptual = None
    task = build_task(config)
    if run.checkpoint.is_file():
        state = torch.load(run.checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        task.load_state_dict(state)
    else:
        exported = torch.load(weights, map_location="cpu", weights_only=True)  # saccade.run.export
        generator = {key: value.float() for key, value in exported["generator"].items()}
        task.ema.network.load_state_dict(generator)  # type: ignore[union-attr]
        task.images_seen.copy_(exported["images_seen"])
    task.eval().requires_grad_(False)
    return config, task
