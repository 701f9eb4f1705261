"""A finished or running run's task, from its folder."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from omegaconf import DictConfig

from saccade.run.build import build_task
from saccade.run.folder import RunFolder
from saccade.tasks.base import Task

Weights = Literal["last", "best"]
WEIGHTS: tuple[Weights, ...] = get_args(Weights)


def load_task(
    folder: Path | str, config: DictConfig | None = None, *, weights: Weights = "last"
) -> tuple[DictConfig, Task]:
    """The configuration and the task with its trained weights, in evaluation mode on the CPU.

    Args:
        folder: of the run, or of shipped weights (config.yaml beside weights.pt).
        config: build from this one instead of the folder's (another attention in the same slots).
        weights: those of the last checkpoint, or of the run's best one. Shipped weights are those that were shipped.

    Raises:
        ValueError: no run folder, nothing was saved in it yet, or no such weights.
    """
    run = RunFolder(Path(folder))
    config = run.read_config() if config is None else config
    checkpoint, shipped = checkpoint_of(run, weights), run.path / "weights.pt"
    config = config.copy()
    if "perceptual" in config.task.module:  # a loss needs weights of its own that nothing here does
        config.task.module.perceptual = None
    task = build_task(config)
    if checkpoint is not None:
        _restore(task, _read(checkpoint)["state_dict"], checkpoint)
    else:
        _restore_shipped(task, _read(shipped), shipped)
    task.eval().requires_grad_(False)
    return config, task


def checkpoint_of(run: RunFolder, weights: str) -> Path | None:
    """The checkpoint of a run that `weights` names; None where there are shipped weights instead.

    Raises:
        ValueError: an unknown word, or no such weights.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights={weights} is unknown; valid: {', '.join(WEIGHTS)}")
    checkpoint = run.checkpoint if weights == "last" else run.best_checkpoint
    if checkpoint.is_file():
        return checkpoint
    shipped = run.path / "weights.pt"
    if shipped.is_file() and not run.checkpoint.is_file():
        taken = run.result().get("weights", "last")
        if weights == taken or weights == "last":
            return None
        raise ValueError(f"{run.path} was shipped with the {taken} weights of its run; leave weights={weights} out")
    if weights == "best" and run.checkpoint.is_file():
        raise ValueError(
            f"{run.path} keeps no best checkpoint: none was evaluated yet, or its task chooses none; use weights=last"
        )
    raise ValueError(f"{run.path} holds no weights yet: neither checkpoints/{weights}.ckpt nor weights.pt")


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(torch.load(file, map_location="cpu", weights_only=True))
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise ValueError(f"{file} cannot be read, as if cut short or no checkpoint at all ({reason})") from error


def _restore(task: Task, state: dict[str, Any], file: Path) -> None:
    try:
        task.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{file} does not fit the networks of the run's config.yaml: {_shortened(error)}") from error


def _restore_shipped(task: Task, shipped: dict[str, Any], file: Path) -> None:
    """Put what `saccade.run.export` wrote into a task: the averaged generator, and what else the task exports."""
    for part in task.exported:
        network = task.ema.network if part == "generator" else getattr(task, part)  # type: ignore[union-attr]
        if part not in shipped:
            raise ValueError(f"{file} holds no {part}; it holds {', '.join(shipped)}. Export the run again")
        wide = {key: value.float() if value.is_floating_point() else value for key, value in shipped[part].items()}
        try:
            network.load_state_dict(wide)  # type: ignore[union-attr]
        except RuntimeError as error:
            raise ValueError(f"{file}, {part}: does not fit config.yaml beside it: {_shortened(error)}") from error
    task.images_seen.copy_(shipped["images_seen"])


def _shortened(error: RuntimeError, lines: int = 4) -> str:
    """The first lines of PyTorch's list of misfits."""
    told = str(error).splitlines()
    more = f" ... and {len(told) - lines} more" if len(told) > lines else ""
    return " ".join(line.strip() for line in told[:lines]) + more
