"""How local a sparse mask is on a picture: how far the keys lie that a query may see, and whether it sees its own.

"Your Local GAN" (arXiv 1911.12287, section 4) enumerates cells by distance so that neighbours on the line of tokens are
neighbours on the picture. Where the query map is larger than the key map, that holds only if each query takes the row
of a key cell near it, which `saccade.ops.ylg.patterns.MAPPINGS` decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saccade.geometry import Size
from saccade.ops.ylg.patterns import key_cells


@dataclass(frozen=True)
class Locality:
    """A mask on a picture.

    Args:
        distance: mean distance of the allowed pairs, between pixel centres, in key cells.
        own: share of the queries that may see the key cell that they lie on.
    """

    distance: float
    own: float


def pixel_distances(q_size: Size, kv_size: Size) -> Tensor:
    """Distances (n_q, n_k) between the centres of query and key pixels, in key cells, both maps over one picture."""
    sides = []
    for queries, keys in zip(q_size, kv_size, strict=True):
        centres = (torch.arange(queries, dtype=torch.float64) + 0.5) * keys / queries
        sides.append(centres.unsqueeze(1) - torch.arange(keys) - 0.5)
    rows, cols = sides
    both = rows[:, None, :, None] ** 2 + cols[None, :, None, :] ** 2  # (Yq, Xq, Yk, Xk)
    return both.reshape(q_size.area, kv_size.area).sqrt()


def locality(mask: Tensor, q_size: Size, kv_size: Size) -> Locality:
    """Measure one head's mask, (n_q, n_k) bool with pixels row-major as `ylg_mask` gives it.

    Raises:
        ValueError: a mask of another shape or kind, or one that allows nothing.
    """
    if mask.shape != (q_size.area, kv_size.area) or mask.dtype != torch.bool or not bool(mask.any()):
        raise ValueError(
            f"locality: queries of {q_size} and keys of {kv_size} need a bool mask of shape "
            f"{(q_size.area, kv_size.area)} that allows something; got {mask.dtype} of shape {tuple(mask.shape)}."
        )
    mask = mask.cpu()
    under = key_cells(q_size, kv_size, "nearest")
    own = mask[torch.arange(q_size.area), under]
    return Locality(float(pixel_distances(q_size, kv_size)[mask].mean()), float(own.double().mean()))
