"""Image grids of a run: source, poses, generated, target and error of one fixed batch, as training goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from saccade.callbacks.observing import PictureCallback, images_seen, sampling_batch
from saccade.pictures.grid import sample_grid

PREFIX = "samples"


class SampleGrids(PictureCallback):
    """Write `samples-<name>-<images seen>.png` for every named sample, after every evaluation and at the end.

    Args:
        folder: where the pictures go.
        count: rows of a grid.

    Raises:
        ValueError: count is below 1.
    """

    def __init__(self, folder: Path, *, count: int = 6) -> None:
        super().__init__(folder)
        if count < 1:
            raise ValueError(f"SampleGrids: count is the number of rows, 1 or more; got {count}")
        self.count = count

    def draw(self, trainer: pl.Trainer, task: Any) -> None:
        now = images_seen(task)
        for name, sample in task.samples(sampling_batch(task)).items():
            picture = sample_grid(
                sample,
                count=self.count,
                title=f"{name}, after {now:,} images",
                note="error: absolute difference, mean over colours; black is none, pale yellow half the range or more",
            )
            self.keep(trainer, task, f"{PREFIX}-{name}-{now:010d}", picture, key=f"{PREFIX}/{name}")
