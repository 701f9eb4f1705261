"""Random affine maps (tau in L_self of GPA, arXiv 2107.03742) for pictures, heatmaps and points.

The paper says "identity plus U(-0.15, 0.15) noise"; it does not say whether the translation entries are perturbed nor
how the border is filled. Here all six entries are by default, and the fill is the caller's choice.

A map `theta` is (B, 2, 3) in the normalised coordinates of `torch.nn.functional.affine_grid` with align_corners=False
(-1 and 1 are the outer edges of the border pixels), and takes output coordinates to input coordinates.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.geometry import Size

Padding = Literal["border", "zeros", "reflection"]


def random_affine(
    n: int,
    magnitude: float = 0.15,
    generator: torch.Generator | None = None,
    *,
    translate: bool = True,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw n maps: the identity plus uniform noise in [-magnitude, magnitude) on every entry.

    The noise is drawn on the generator's device (or the CPU), then moved, so one generator state gives the same maps
    wherever they are used.

    Args:
        translate: perturb the two translation entries as well; False leaves them 0.

    Returns:
        (n, 2, 3) float32.

    Raises:
        ValueError: magnitude outside [0, 0.5), where a map could collapse the picture.
    """
    if not 0 <= magnitude < 0.5:
        raise ValueError(
            f"random_affine: magnitude {magnitude} can make a map singular; valid: 0 <= magnitude < 0.5 (paper: 0.15)"
        )
    home = generator.device if generator is not None else torch.device("cpu")
    noise = torch.rand(n, 2, 3, generator=generator, device=home) * (2 * magnitude) - magnitude
    if not translate:
        noise[:, :, 2] = 0
    theta = noise + torch.eye(2, 3, device=home)
    return theta if device is None else theta.to(device)


def warp(images: Tensor, theta: Tensor, padding: Padding = "border") -> Tensor:
    """Resample maps (B, C, Y, X) through `theta` (B, 2, 3), bilinearly. Heatmaps want padding="zeros".

    Raises:
        ValueError: theta is not one map per picture.
    """
    if theta.shape != (images.shape[0], 2, 3):
        raise ValueError(
            f"warp: theta must be ({images.shape[0]}, 2, 3), one map for each picture; got {tuple(theta.shape)}"
        )
    grid = F.affine_grid(theta.to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def warp_keypoints(keypoints: Tensor, theta: Tensor, size: Size) -> Tensor:
    """Where the points of a picture land when `warp` moves the picture: the inverse map.

    Args:
        keypoints: (B, K, 3) of x, y, v in pixels.
        theta: (B, 2, 3).
        size: rows and columns of the picture.

    Returns:
        (B, K, 3); points that leave the picture become missing (all zeros).
    """
    extent = keypoints.new_tensor([size.cols, size.rows])
    inside_out = (2 * keypoints[..., :2] + 1) / extent - 1  # (B, K, 2) normalised input coordinates
    inverse = torch.linalg.inv(theta[:, :, :2].to(keypoints.dtype))
    moved = (inside_out - theta[:, None, :, 2].to(keypoints.dtype)) @ inverse.transpose(1, 2)
    pixels = ((moved + 1) * extent - 1) / 2
    return drop_outside(torch.cat([pixels, keypoints[..., 2:]], dim=-1), size)


def drop_outside(keypoints: Tensor, size: Size) -> Tensor:
    """Mark points (..., 3) beyond the outer pixel edges of a (rows, cols) picture as missing, all zeros."""
    x, y, v = keypoints.unbind(-1)
    there = (v > 0) & (x >= -0.5) & (x < size.cols - 0.5) & (y >= -0.5) & (y < size.rows - 0.5)
    return torch.where(there.unsqueeze(-1), keypoints, torch.zeros_like(keypoints))
