"""Run folders of the smallest editing networks, with untrained weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from saccade.run.build import build_task
from saccade.run.config import CONF, register
from saccade.run.folder import RunFolder


def make_run(folder: Path, model: str, *overrides: str, gain: float = 1.0) -> Path:
    """A run folder as training leaves it; `gain` on the weights makes an untrained network look at its input."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"model={model}", "budget=smoke", "data.source=standin", *overrides])
    run = RunFolder(folder)
    run.create()
    run.write_config(config)
    task = build_task(config)
    with torch.no_grad():
        for weight in task.ema.network.parameters():  # type: ignore[union-attr]
            weight.mul_(gain if weight.ndim > 1 else 1.0)
    torch.save({"state_dict": task.state_dict()}, run.checkpoint)
    run.write_result({"status": "complete", "data_source": "standin"})
    return run.path


def listing(folder: Path) -> list[str]:
    """The files of a folder, also the hidden ones."""
    return sorted(path.name for path in folder.iterdir())


def check_refused(call: Callable[[], int], words: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A command ends in one clear message and writes nothing into a folder."""
    before = listing(folder)
    assert call() == 1
    told = capsys.readouterr().err
    assert told.startswith("Error: ")
    assert words in told
    assert listing(folder) == before
