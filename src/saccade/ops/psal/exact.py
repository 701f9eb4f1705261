"""Exact patch search: the K cheapest of all allowed keys of every query, a tile of queries at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.ops.inputs import no_autocast
from saccade.ops.psal.patches import PatchPairs

if TYPE_CHECKING:
    from saccade.ops.psal.search import SearchPlan

# Ours: query rows of a tile, scores held at a time, and matches beyond K that are costed again without cancellation.
TILE_ROWS = 8
ENTRIES = {"cpu": 2**22, "other": 2**25}
SPARE = 4


def exact_matches(pairs: PatchPairs, allowed: Tensor | None, plan: SearchPlan) -> Iterator[Tensor]:
    """For each of the N maps, the cheapest keys of every query: (K + a few, n_q) int64, K certain up to rounding.

    The product of two patches is the sum of p products of patch rows, one under the other: those of a tile of queries
    are computed once for every row of the tile and its surroundings, then added along the diagonal. Squared distances
    come from products too, of maps moved by their mean key, ring and all: distances stay, what cancels gets small.
    """
    count = min(plan.matches + SPARE, pairs.k.rows * pairs.k.cols)
    for entry in range(pairs.q.data.shape[0]):
        q, k = pairs.q.data[entry], pairs.k.data[entry]
        if pairs.score == "l2":
            centre = pairs.k.inner[entry].mean((0, 1))
            q, k = q - centre, k - centre
        bias, factor = _ranking(pairs, k, entry)
        if allowed is not None:
            bias = bias.masked_fill(~allowed[entry // plan.heads], float("inf"))
        found = torch.empty(count, pairs.q.rows, pairs.q.cols, dtype=torch.int64, device=q.device)
        for rows, cols, products in _tiles(q, k, plan.patch_size):
            ranked = products.mul_(factor).add_(bias)  # (R, C, n_k)
            found[:, rows, cols] = ranked.topk(count, -1, largest=False).indices.permute(2, 0, 1)
        yield found.flatten(1)


def _ranking(pairs: PatchPairs, k: Tensor, entry: int) -> tuple[Tensor, Tensor]:
    """What orders the keys of a query: products * factor + bias, (n_k,) bias and (n_k,) or scalar factor."""
    area = pairs.k.rows * pairs.k.cols
    zeros = k.new_zeros(area)
    if pairs.inverse_k is not None:
        return zeros, -pairs.inverse_k[entry * area : (entry + 1) * area]
    if pairs.score == "dot":
        return zeros, zeros.new_tensor(-1.0)
    patch = pairs.patch_size
    squares = F.avg_pool2d(k.square().sum(2)[None, None], patch, 1) * patch**2  # over the padded map: (1, 1, Y, X)
    return squares.flatten(), zeros.new_tensor(-2.0)


def _tiles(q: Tensor, k: Tensor, patch_size: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Products of the patches of a tile of queries with all key patches.

    Args:
        q: (Yq + 2 h, Xq + 2 h, D), padded.
        k: (Yk + 2 h, Xk + 2 h, D), padded.

    Yields:
        Rows and cols of the tile, and the products (R, C, n_k).
    """
    width, rim = patch_size * q.shape[2], patch_size - 1
    keys = _patch_rows(k, patch_size).reshape(-1, width).T  # (p * D, (Yk + 2 h) * Xk)
    queries = _patch_rows(q, patch_size)  # (Yq + 2 h, Xq, p * D)
    last_row, last_col, key_rows = q.shape[0] - rim, q.shape[1] - rim, k.shape[0] - rim
    budget = ENTRIES["cpu" if keys.device.type == "cpu" else "other"]
    step = max(1, budget // ((TILE_ROWS + rim) * keys.shape[1]))
    for top in range(0, last_row, TILE_ROWS):
        rows = slice(top, min(top + TILE_ROWS, last_row))
        for left in range(0, last_col, step):
            cols = slice(left, min(left + step, last_col))
            part = queries[rows.start : rows.stop + rim, cols]
            with no_autocast(keys.device):
                products = (part.reshape(-1, width) @ keys).view(*part.shape[:2], k.shape[0], -1)
            height = rows.stop - rows.start
            total = products[:height, :, :key_rows].clone()
            for row in range(1, patch_size):
                total += products[row : row + height, :, row : row + key_rows]
            yield rows, cols, total.flatten(2)


def _patch_rows(maps: Tensor, patch_size: int) -> Tensor:
    """The p pixels beside each other that start at every place, a view: (Y + 2 h, X + 2 h, C) -> (Y + 2 h, X, p C)."""
    rows, cols, channels = maps.shape
    shape = (rows, cols - patch_size + 1, patch_size * channels)
    return maps.as_strided(shape, (cols * channels, channels, 1), maps.storage_offset())
