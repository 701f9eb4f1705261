"""Phase 1 of grid-partitioned attention for causal maps: a choice of keys that nobody's future has a say in.

Ours; the paper (arXiv 2107.03742) has no causal form. Pixels come in scan-line order. All queries of a cell share its
choice, so it may look at nothing after the cell's first pixel: that pixel's query alone speaks for the cell, and a
coarse key is the mean of its pixels up to there. A cell attends to its own blocks and, beside them, to the
`keys_per_cell` best of the blocks that begin before it; in Phase 2 each query sees of all these what does not come
after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from saccade.ops.dispatch import Score
from saccade.ops.gpa.arrange import Arrangement
from saccade.ops.gpa.cells import Blocks
from saccade.ops.gpa.keys import CHUNK_ENTRIES, stable_top
from saccade.ops.inputs import at_least_float32, no_autocast


@torch.no_grad()
def select_causal(
    q: Tensor, k: Tensor, arrangement: Arrangement, score: Score, scale: float, key_mask: Tensor | None
) -> Blocks:
    """Choose the blocks of each cell, its own among them, from maps that are not laid out yet.

    Cells with fewer than `keys_per_cell` blocks before them fill up with later ones, lower index first.

    Args:
        q, k: (B, G, D, *size), of one size.
        arrangement: the partition.
        score: "dot" or "l2".
        scale: factor on the score.
        key_mask: (B, 1, *size) bool, True = may be attended.
    """
    grid = arrangement.grid.with_keys(arrangement.grid.keys_per_cell + prod(arrangement.sides))
    batch, heads, cells, count = *q.shape[:2], grid.cells.area, grid.kv_coarse.area
    order = arrangement.order(q.device)
    if grid.keys_per_cell == count:
        return Blocks(grid, torch.arange(count, device=q.device).expand(batch, heads, cells, count), order=order)
    with no_autocast(q.device):
        steps = [side * factor for side, factor in zip(arrangement.sides, arrangement.factor, strict=True)]
        queries = _every(at_least_float32(q), steps).flatten(3).transpose(2, 3)  # (B, G, cells, D)
        keys = at_least_float32(k)
        if score == "l2":  # distances are the same from the first key
            centre = keys.flatten(3)[..., :1]
            queries, keys = queries - centre.transpose(2, 3), keys - torch.unflatten(centre, 3, (1,) * arrangement.axes)
        levels = [_Level(keys, key_mask, arrangement, level, score, scale) for level in range(arrangement.axes)]
        factor = scale if score == "dot" else 2 * scale
        own, shared = _relations(arrangement, q.device)
        top = torch.empty(batch, heads, cells, grid.keys_per_cell, dtype=torch.long, device=q.device)
        budget = CHUNK_ENTRIES["cpu" if q.device.type == "cpu" else "other"]
        step = max(1, budget // (batch * heads * count))
        for start in range(0, cells, step):
            span = slice(start, min(start + step, cells))
            scores = queries.new_full((batch, heads, span.stop - start, count), float("-inf"))
            for number, level in enumerate(levels):
                logits = level.logits(queries[:, :, span] * factor)
                scores = torch.where(shared[span] == number, logits, scores)
            top[:, :, span] = stable_top(scores.masked_fill(own[span], float("inf")), grid.keys_per_cell)
    return Blocks(grid, top, order=order)


class _Level:
    """Coarse keys of the blocks that share so many leading block coordinates with a cell's first block and begin
    before it: of their pixels, those in the first slice along each shared axis come before the cell."""

    def __init__(
        self,
        keys: Tensor,
        key_mask: Tensor | None,
        arrangement: Arrangement,
        level: int,
        score: Score,
        scale: float,
    ) -> None:
        steps = [d if axis < level else 1 for axis, d in enumerate(arrangement.factor)]
        counts = [(n, 1 if axis < level else d) for axis, (n, d) in enumerate(_sides(arrangement))]
        part = _every(keys, steps)
        share: Tensor | None = None
        if key_mask is not None:
            allowed = _every(key_mask.unsqueeze(2), steps)
            share = _block_mean(allowed.to(keys.dtype), counts)  # (B, 1, 1, K)
            part = part.masked_fill(~allowed, 0)
        self._keys = _block_mean(part, counts)  # (B, G, D, K)
        self._bias: Tensor | None = None
        if share is not None:
            self._keys = self._keys / share.masked_fill(share == 0, 1)
        if score == "l2":
            self._bias = self._keys.square().sum(2, keepdim=True) * -scale
        if share is not None:
            bias = torch.zeros_like(self._keys[:, :, :1]) if self._bias is None else self._bias
            self._bias = bias.masked_fill(share == 0, float("-inf"))

    def logits(self, queries: Tensor) -> Tensor:
        """(B, G, M, D) scaled queries -> (B, G, M, K)."""
        logits = queries @ self._keys
        return logits if self._bias is None else logits + self._bias


def _sides(arrangement: Arrangement) -> list[tuple[int, int]]:
    return list(zip(arrangement.kv_coarse, arrangement.factor, strict=True))


def _every(maps: Tensor, steps: Sequence[int]) -> Tensor:
    """Every so many-th place along each spatial axis of (B, G, C, *size)."""
    for axis, step in enumerate(steps):
        index = torch.arange(0, maps.shape[3 + axis], step, device=maps.device)
        maps = maps if step == 1 else maps.index_select(3 + axis, index)
    return maps


def _block_mean(maps: Tensor, counts: list[tuple[int, int]]) -> Tensor:
    """Average blocks of a map (B, G, C, *size), (number, side) along each axis: (B, G, C, blocks)."""
    lead = maps.shape[:3]
    parts = maps.reshape(*lead, *(part for count in counts for part in count))
    return parts.mean([4 + 2 * axis for axis in range(len(counts))]).flatten(3)


def _relations(arrangement: Arrangement, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each cell and block (cells, K): whether it is the cell's own, and how many leading coordinates it shares.

    The second counts for blocks before the cell's first; for others it is -1.
    """
    cells = _coordinates(arrangement.cells, device)[:, None]  # (cells, 1, axes)
    blocks = _coordinates(arrangement.kv_coarse, device)  # (K, axes)
    sides = torch.tensor(arrangement.sides, device=device)
    own = (blocks // sides == cells).all(2)
    same = (blocks == cells * sides).long().cumprod(2)  # 1 up to the first coordinate that differs
    shared = same.sum(2)
    flat = torch.zeros_like(shared[:, :1])
    for axis, count in enumerate(arrangement.coarse):
        flat = flat * count + cells[..., axis] * sides[axis]
    before = torch.arange(blocks.shape[0], device=device) < flat
    return own, shared.masked_fill(~before, -1)


def _coordinates(size: tuple[int, ...], device: torch.device) -> Tensor:
    axes = [torch.arange(side, device=device) for side in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
