"""Pixel distances between a generated and a target image."""

from __future__ import annotations

import torch
from torch import Tensor


def l1(generated: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Mean absolute difference, in the images' own units.

    Args:
        generated: (B, C, Y, X).
        target: the same shape.

    Returns:
        ``{"l1": scalar}``, float32 (float64 for float64 images).

    Raises:
        ValueError: the shapes differ.
    """
    return {"l1": _difference(generated, target).mean()}


def masked_l1(generated: Tensor, target: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Mean absolute difference over the pixels of a mask, all images of the batch together.

    Args:
        generated: (B, C, Y, X).
        target: the same shape.
        mask: (B, 1, Y, X), bool, or float as a weight per pixel. Where it is empty the term is 0.

    Returns:
        ``{"l1_masked": scalar}``.

    Raises:
        ValueError: the shapes do not fit.
    """
    difference = _difference(generated, target)
    batch, channels, rows, cols = generated.shape
    if tuple(mask.shape) != (batch, 1, rows, cols):
        raise ValueError(f"masked_l1: mask must be {(batch, 1, rows, cols)}; got {tuple(mask.shape)}")
    weight = mask.to(difference.dtype)
    return {"l1_masked": (difference * weight).sum() / (weight.sum() * channels).clamp_min(1.0)}


def _difference(generated: Tensor, target: Tensor) -> Tensor:
    if generated.shape != target.shape or generated.dim() != 4:
        raise ValueError(
            f"l1: images must be (B, C, Y, X) of one shape; got {tuple(generated.shape)} and {tuple(target.shape)}"
        )
    dtype = torch.promote_types(torch.promote_types(generated.dtype, target.dtype), torch.float32)
    return (generated.to(dtype) - target.to(dtype)).abs()
