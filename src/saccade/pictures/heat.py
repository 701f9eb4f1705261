"""Scalar maps as colours: where a generated image is wrong, where a query looks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from saccade.pictures.canvas import Picture

# Dark violet to pale yellow, perceptually rising in lightness; seven stops, linear in between.
_STOPS = np.array(
    [(8, 6, 24), (58, 16, 96), (122, 30, 110), (188, 55, 84), (236, 104, 38), (251, 175, 40), (252, 252, 190)],
    dtype=np.float64,
)


def colour_map(values: NDArray[np.floating]) -> Picture:
    """Colour a map of values in 0..1 (cut outside, NaN drawn as 1): dark is nothing, pale yellow is all."""
    level = np.clip(np.nan_to_num(np.asarray(values, dtype=np.float64), nan=1.0), 0.0, 1.0) * (len(_STOPS) - 1)
    low = np.minimum(level.astype(int), len(_STOPS) - 2)
    share = (level - low)[..., None]
    picture: Picture = np.rint(_STOPS[low] * (1.0 - share) + _STOPS[low + 1] * share).astype(np.uint8)
    return picture


def error_map(generated: Tensor, target: Tensor, *, full_scale: float = 1.0) -> Picture:
    """The L1 error of every pixel, mean over channels, as heat.

    Args:
        generated, target: (B, C, Y, X) or (C, Y, X), in [-1, 1].
        full_scale: the error drawn as the palest colour; 1 is half of the range, so that pictures of different runs
            compare.

    Raises:
        ValueError: the shapes differ, or full_scale is not positive.
    """
    if generated.shape != target.shape:
        raise ValueError(
            f"error_map: both images have one shape; got {tuple(generated.shape)} and {tuple(target.shape)}"
        )
    if not full_scale > 0:
        raise ValueError(f"error_map: full_scale is above 0; got {full_scale}")
    difference = (generated.detach().float() - target.detach().float()).abs().mean(dim=-3)
    return colour_map(difference.cpu().numpy() / full_scale)
