"""Grid Partitioned Attention as plain loops: the oracle for `saccade.ops.gpa`.

Written from the description of the algorithm alone (Jetchev et al., arXiv 2107.03742, Algorithm 1, and the released
layer's deviations from it), before and without reading the library's own implementation. Batch elements, heads, coarse
queries, coarse keys, cells and queries are Python loops. The search runs on Python floats, so it shares no tensor code
with what it checks; the attention that follows is made of differentiable tensor operations on one query at a time, so
autograd gives the gradients.

Sizes are (rows, cols). q is (B, G, D, Yq, Xq), k is (B, G, D, Yk, Xk), v is (B, G, E, Yk, Xk).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Choice:
    """What one cell keeps: coarse (row, col) of its keys, best first, and the relative gap to the best key left out."""

    keys: list[tuple[int, int]]
    margin: float


@dataclass(frozen=True)
class LoopsResult:
    """Output (B, G, E, Yq, Xq) and the choice of every (batch, head, cell row, cell col)."""

    output: Tensor
    choices: dict[tuple[int, int, int, int], Choice]

    @property
    def smallest_margin(self) -> float:
        """How near any choice was to a tie; a test that compares choices needs it clear of rounding."""
        return min(choice.margin for choice in self.choices.values())


def _block_mean(channels: list[list[list[float]]], row: int, col: int, side: tuple[int, int]) -> list[float]:
    """Mean vector of the block (row, col) of a map given as nested lists [channel][row][col]."""
    means = []
    for plane in channels:
        total = 0.0
        for i in range(side[0]):
            for j in range(side[1]):
                total += plane[row * side[0] + i][col * side[1] + j]
        means.append(total / (side[0] * side[1]))
    return means


def _float_score(query: list[float], key: list[float], score: str, scale: float) -> float:
    if score == "dot":
        return scale * math.fsum(a * b for a, b in zip(query, key, strict=True))
    if score == "l2":
        return -scale * math.fsum((a - b) ** 2 for a, b in zip(query, key, strict=True))
    raise ValueError(f"score is dot or l2; got {score!r}")


def _float_softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    powers = [math.exp(logit - top) for logit in logits]
    total = math.fsum(powers)
    return [power / total for power in powers]


def _choose(mean_mass: list[float], key_cols: int, count: int) -> Choice:
    """The `count` keys with the largest mass; equal mass goes to the lower flat index."""
    order = sorted(range(len(mean_mass)), key=lambda flat: (-mean_mass[flat], flat))
    picked = order[:count]
    if count < len(order):
        last, first_out = mean_mass[order[count - 1]], mean_mass[order[count]]
        margin = (last - first_out) / last
    else:
        margin = math.inf
    return Choice([(flat // key_cols, flat % key_cols) for flat in picked], margin)


def _search(
    q_map: Tensor,
    k_map: Tensor,
    *,
    cells: tuple[int, int],
    keys_per_cell: int,
    coarse: tuple[int, int],
    score: str,
    scale: float,
) -> dict[tuple[int, int], Choice]:
    """Phase 1 for one batch element and head: q_map (D, Yq, Xq), k_map (D, Yk, Xk)."""
    side = (q_map.shape[1] // coarse[0], q_map.shape[2] // coarse[1])
    key_grid = (k_map.shape[1] // side[0], k_map.shape[2] // side[1])
    q_lists, k_lists = q_map.detach().tolist(), k_map.detach().tolist()

    coarse_keys = [_block_mean(k_lists, row, col, side) for row in range(key_grid[0]) for col in range(key_grid[1])]
    probabilities: dict[tuple[int, int], list[float]] = {}
    for row in range(coarse[0]):
        for col in range(coarse[1]):
            query = _block_mean(q_lists, row, col, side)
            probabilities[row, col] = _float_softmax([_float_score(query, key, score, scale) for key in coarse_keys])

    cell_side = (coarse[0] // cells[0], coarse[1] // cells[1])
    choices = {}
    for cell_row in range(cells[0]):
        for cell_col in range(cells[1]):
            mean_mass = []
            for flat in range(len(coarse_keys)):
                total = 0.0
                for i in range(cell_side[0]):
                    for j in range(cell_side[1]):
                        total += probabilities[cell_row * cell_side[0] + i, cell_col * cell_side[1] + j][flat]
                mean_mass.append(total / (cell_side[0] * cell_side[1]))
            choices[cell_row, cell_col] = _choose(mean_mass, key_grid[1], min(keys_per_cell, len(coarse_keys)))
    return choices


def _attend(query: Tensor, keys: Tensor, values: Tensor, score: str, scale: float) -> Tensor:
    """Exact attention of one query (D,) over keys (L, D) and values (L, E)."""
    logits = scale * (keys @ query) if score == "dot" else -scale * ((keys - query) ** 2).sum(dim=1)
    powers = torch.exp(logits - logits.max().detach())
    return (powers / powers.sum()) @ values


def gpa_loops(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cells: tuple[int, int],
    keys_per_cell: int,
    coarse: tuple[int, int],
    score: str = "dot",
    scale: float | None = None,
) -> LoopsResult:
    """Grid Partitioned Attention by loops.

    Args:
        q, k, v: (B, G, D, Yq, Xq), (B, G, D, Yk, Xk), (B, G, E, Yk, Xk).
        cells: cells along the rows and columns of the query map.
        keys_per_cell: coarse keys that each cell keeps; cut to the number there is.
        coarse: size of the pooled query map. The key map is pooled by the same factor.
        score: dot (scale * q.k) or l2 (-scale * |q - k|^2).
        scale: 1 / sqrt(D) if None.
    """
    batch, heads, qk_channels, q_rows, q_cols = q.shape
    scale = 1 / math.sqrt(qk_channels) if scale is None else scale
    side = (q_rows // coarse[0], q_cols // coarse[1])
    cell_side = (q_rows // cells[0], q_cols // cells[1])
    choices: dict[tuple[int, int, int, int], Choice] = {}
    maps = []
    for b in range(batch):
        for g in range(heads):
            found = _search(
                q[b, g], k[b, g], cells=cells, keys_per_cell=keys_per_cell, coarse=coarse, score=score, scale=scale
            )
            columns: dict[tuple[int, int], Tensor] = {}
            for (cell_row, cell_col), choice in found.items():
                choices[b, g, cell_row, cell_col] = choice
                places = [
                    (row * side[0] + i, col * side[1] + j)
                    for row, col in choice.keys
                    for i in range(side[0])
                    for j in range(side[1])
                ]
                keys = torch.stack([k[b, g, :, y, x] for y, x in places])
                values = torch.stack([v[b, g, :, y, x] for y, x in places])
                for y in range(cell_row * cell_side[0], (cell_row + 1) * cell_side[0]):
                    for x in range(cell_col * cell_side[1], (cell_col + 1) * cell_side[1]):
                        columns[y, x] = _attend(q[b, g, :, y, x], keys, values, score, scale)
            rows = [torch.stack([columns[y, x] for x in range(q_cols)], dim=1) for y in range(q_rows)]
            maps.append(torch.stack(rows, dim=1))  # (E, Yq, Xq)
    output = torch.stack(maps).reshape(batch, heads, v.shape[2], q_rows, q_cols)
    return LoopsResult(output, choices)


def dense_loops(q: Tensor, k: Tensor, v: Tensor, *, score: str = "dot", scale: float | None = None) -> Tensor:
    """Exact attention of every query over every key, one query at a time."""
    batch, heads, qk_channels, q_rows, q_cols = q.shape
    scale = 1 / math.sqrt(qk_channels) if scale is None else scale
    maps = []
    for b in range(batch):
        for g in range(heads):
            keys, values = k[b, g].flatten(1).T, v[b, g].flatten(1).T
            queries = q[b, g].flatten(1).T
            maps.append(torch.stack([_attend(query, keys, values, score, scale) for query in queries], dim=1))
    return torch.stack(maps).reshape(batch, heads, v.shape[2], q_rows, q_cols)
