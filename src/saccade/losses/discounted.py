"""L1 of an inpainted box, discounted with the distance to what is known (Yu et al., arXiv 1801.07892, section 3.3).

Deep inside a hole many contents are right, so errors there count less: gamma to the power of the distance to the
box's border, gamma = 0.99 in the paper and 0.9 in both released codes.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from saccade.geometry import Size


@lru_cache(maxsize=8)
def discount_weights(size: Size, gamma: float = 0.9) -> Tensor:
    """Weight of each pixel of a box: max(gamma^min(i, rows - i), gamma^min(j, cols - j)), i and j from 0.

    As released: the first row and column are at distance 0, the last ones at distance 1. The larger power is that of
    the nearer border. Shared between calls: not to be changed.

    Returns:
        (1, 1, rows, cols) float32.

    Raises:
        ValueError: gamma outside (0, 1].
    """
    if not 0 < gamma <= 1:
        raise ValueError(f"discount: gamma is above 0 and at most 1; got {gamma}")
    rows, cols = (torch.arange(side, dtype=torch.float64) for side in size)
    by_row, by_col = gamma ** torch.minimum(rows, size.rows - rows), gamma ** torch.minimum(cols, size.cols - cols)
    return torch.maximum(by_row[:, None], by_col[None, :]).float()[None, None]


def discounted_l1(generated: Tensor, target: Tensor, gamma: float = 0.9) -> dict[str, Tensor]:
    """`l1_discounted`: the mean over pixels of weight * |generated - target|, the weights of `discount_weights`.

    Args:
        generated: (B, C, Y, X), the box that holds the hole.
        target: the same shape.

    Raises:
        ValueError: the shapes differ.
    """
    if generated.shape != target.shape or generated.dim() != 4:
        raise ValueError(
            f"discounted l1: boxes must be (B, C, Y, X) of one shape; got {tuple(generated.shape)} and "
            f"{tuple(target.shape)}"
        )
    dtype = torch.promote_types(torch.promote_types(generated.dtype, target.dtype), torch.float32)
    weights = discount_weights(Size(*generated.shape[2:]), gamma).to(generated.device, dtype)
    return {"l1_discounted": ((generated.to(dtype) - target.to(dtype)).abs() * weights).mean()}
