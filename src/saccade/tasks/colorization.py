"""Guided colourisation (PSAL, arXiv 2202.03163, section 4.3): a grey frame takes its colours from another frame.

Training and test are those of the scripts in the history of the authors' repository: grey is the mean of R, G and B,
the loss is the squared error in [0, 1] without 7 pixels at each side (where the released layer searches nothing), and
nothing is clamped or rounded before it is scored. The paper does not say how its numbers are averaged: here the mean
over all pairs of test frames, and over those at each distance.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from saccade.data.editing_batches import FramePairBatch
from saccade.metrics.rows import Rows, require_finite
from saccade.tasks.regression import RegressionTask, Terms


def grey_of(colours: Tensor) -> Tensor:
    """The mean of R, G and B on three channels: (B, 3, Y, X) -> (B, 3, Y, X), in the same units."""
    return colours.mean(1, keepdim=True).expand(-1, 3, -1, -1)


def squared_error(painted: Tensor, target: Tensor, crop: int) -> Tensor:
    """(B,) mean squared error of each picture (B, 3, Y, X) without `crop` pixels at each side.

    Raises:
        ValueError: shapes that differ, or nothing left after the crop.
    """
    rows, cols = target.shape[-2:]
    if painted.shape != target.shape or min(rows, cols) <= 2 * crop:
        raise ValueError(
            f"colorization: pictures of one size above {2 * crop} pixels a side are needed (crop={crop}); got "
            f"{tuple(painted.shape)} and {tuple(target.shape)}"
        )
    inside = (..., slice(crop, rows - crop), slice(crop, cols - crop))
    return (painted[inside].float() - target[inside].float()).square().flatten(1).mean(1)


class ColorizationTask(RegressionTask):
    """Learn to colour a frame by a reference frame of the same video.

    Loss term: `mse`. Metrics in [0, 1] units: `mse_crop7` (the loss, of the test pairs), `mse_crop7_distance<n>` of
    the pairs that are n frames apart on either side, `mse` of whole pictures, and `mse_crop7_grey` and
    `mse_crop7_reference`, what the grey frame itself and the unchanged reference score. The number in the names is
    `crop`. The headline is `mse_crop7_ratio`, to the grey frame.

    Args:
        generator: (grey, reference), (B, 3, Y, X) in [0, 1] each, -> colours.
        discriminator: None.
        crop: pixels at each side that neither the loss nor the cropped metrics count.
        regression: the other arguments, of `RegressionTask` and `Task`.

    Raises:
        ValueError: a negative crop.
    """

    terms: tuple[str, ...] = ("mse",)
    attention_views = ("reference", "colorized")

    def __init__(
        self, generator: nn.Module, discriminator: nn.Module | None = None, *, crop: int = 7, **regression: Any
    ) -> None:
        super().__init__(generator, discriminator, **regression)
        if crop < 0:
            raise ValueError(f"colorization: crop is a number of pixels, 0 or more; got {crop}")
        self.crop = crop
        self.cropped = f"mse_crop{crop}"
        self.headline = f"{self.cropped}_ratio"

    # ------------------------------------------------------------------ training

    def loss_terms(self, batch: FramePairBatch) -> Terms:
        target = to_unit(batch.target)
        painted = self.generator(grey_of(target), to_unit(batch.reference))
        return {"mse": squared_error(painted, target, self.crop).mean()}

    # ------------------------------------------------------------------ evaluation

    def colorize(self, batch: FramePairBatch) -> Tensor:
        """Colours by the averaged network, (B, 3, Y, X) float32 in units of [0, 1], not clamped."""
        with torch.no_grad():
            painted: Tensor = self.ema.network(grey_of(to_unit(batch.target)), to_unit(batch.reference))
        return painted.float()

    def score(self, batch: FramePairBatch) -> Rows:
        target, reference, painted = to_unit(batch.target), to_unit(batch.reference), self.colorize(batch)
        require_finite("colorization scores", painted, batch.keys)
        columns = {
            self.cropped: squared_error(painted, target, self.crop),
            "mse": squared_error(painted, target, 0),
            f"{self.cropped}_grey": squared_error(grey_of(target), target, self.crop),
            f"{self.cropped}_reference": squared_error(reference, target, self.crop),
        }
        values = {name: column.tolist() for name, column in columns.items()}
        rows = {key: {name: column[index] for name, column in values.items()} for index, key in enumerate(batch.keys)}
        for row, distance in zip(rows.values(), batch.distances.abs().tolist(), strict=True):
            row[f"{self.cropped}_distance{distance}"] = row[self.cropped]
        return rows

    def summary(self, rows: Rows) -> dict[str, float]:
        means = super().summary(rows)
        if self.cropped in means:
            means[f"{self.cropped}_ratio"] = means[self.cropped] / max(means[f"{self.cropped}_grey"], 1e-12)
        return means

    # ------------------------------------------------------------------ pictures

    def samples(self, batch: FramePairBatch) -> dict[str, dict[str, Tensor]]:
        """The grey frame, its reference, the network's colours and the true ones."""
        return {
            "colorization": {
                "grey": grey_of(batch.target),
                "reference": batch.reference,
                "colorized": (2 * self.colorize(batch) - 1).clamp(-1, 1),
                "target": batch.target,
            }
        }


def to_unit(images: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1]."""
    return (images + 1) / 2
