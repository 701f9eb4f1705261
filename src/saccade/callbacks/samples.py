"""Image grids of a run, of one fixed batch, as training goes on.

Of poses: source, poses, generated, target and error. Of a generator from noise: a row a class. Of other tasks: a column
for each kind of picture that they show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from saccade.callbacks.observing import PictureCallback, images_seen, sampling_batch
from saccade.pictures.canvas import Picture, readable_height, to_uint8
from saccade.pictures.class_grid import Row, class_grid
from saccade.pictures.grid import TILE, Column, grid, sample_grid

PREFIX = "samples"
_COLUMNS = 8  # of images without classes


def sheet(sample: Mapping[str, Tensor], *, count: int, title: str, class_names: Sequence[str] | None = None) -> Picture:
    """One sample as a picture.

    Args:
        sample: what `saccade.pictures.grid.sample_grid` takes, a pose task's; or `generated` (B, 3, Y, X) with, where
            there are classes, `labels` (B,): images of one class stand together, as many of each; or pictures
            (B, 3, Y, X) by the headings of their columns.
        count: rows at most.
    """
    if "source" in sample:
        note = "error: absolute difference, mean over colours; black is none, pale yellow half the range or more"
        return sample_grid(sample, count=count, title=title, note=note)
    if not set(sample) <= {"generated", "labels"}:
        return _columns(sample, count, title)
    pictures, labels = list(to_uint8(sample["generated"])), sample.get("labels")
    if labels is None:
        rows = [Row("", pictures[at : at + _COLUMNS]) for at in range(0, len(pictures), _COLUMNS)]
        return class_grid(rows[:count], title=title)
    classes = list(dict.fromkeys(labels.tolist()))
    names = [class_names[label] if class_names is not None else f"class {label}" for label in classes]
    columns = len(pictures) // len(classes)
    rows = [Row(name, pictures[row * columns : (row + 1) * columns]) for row, name in enumerate(names)]
    return class_grid(rows[:count], title=title, note="each column has one latent vector")


def _columns(sample: Mapping[str, Tensor], count: int, title: str) -> Picture:
    """A column for each kind of picture, all as large as the largest of them."""
    columns = [Column(name.replace("_", " "), list(to_uint8(images[:count]))) for name, images in sample.items()]
    tallest = max(images.shape[-2] for images in sample.values())
    return grid(columns, tile=readable_height(tallest, least=TILE), title=title)


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
        names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
        for name, sample in task.samples(sampling_batch(task)).items():
            picture = sheet(sample, count=self.count, title=f"{name}, after {now:,} images", class_names=names)
            self.keep(trainer, task, f"{PREFIX}-{name}-{now:010d}", picture, key=f"{PREFIX}/{name}")
