"""Grid Partitioned Attention as plain loops: the oracle for `saccade.ops.gpa`.

Written from the description of the algorithm alone (Jetchev et al., arXiv 2107.03742, Algorithm 1, and the released
layer's deviations from it), before and without reading the library's own implementation. Batch elements, heads, coarse
queries, coarse keys, cells and queries are Python loops. The search runs on Python floats, so it shares no tensor code
with what it checks; the attention that follows is made of differentiable tensor operations on one query at a time, so
autograd gives the gradients.

The key mask is the library's addition: a coarse key is the mean of its allowed pixels and can be chosen if it has one.

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


def _block_mean(
    channels: list[list[list[float]]],
    row: int,
    col: int,
    side: tuple[int, int],
    allowed: list[list[bool]] | None = None,
) -> list[float] | None:
    """Mean vector of the allowed pixels of block (row, col) of nested lists [channel][row][col]; None without any."""
    pixels = [(row * side[0] + i, col * side[1] + j) for i in range(side[0]) for j in range(side[1])]
    if allowed is not None:
        pixels = [(y, x) for y, x in pixels if allowed[y][x]]
    if not pixels:
        return None
    return [math.fsum(plane[y][x] for y, x in pixels) / len(pixels) for plane in channels]


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


def _choose(mean_mass: list[float | None], key_cols: int, count: int) -> Choice:
    """The `count` keys with the largest mass; ties go to the lower flat index, a key without mass cannot be chosen."""
    massive = [(flat, mass) for flat, mass in enumerate(mean_mass) if mass is not None]
    order = sorted(massive, key=lambda entry: (-entry[1], entry[0]))
    picked, left_out = order[:count], order[count:]
    margin = (picked[-1][1] - left_out[0][1]) / picked[-1][1] if picked and left_out else math.inf
    return Choice([(flat // key_cols, flat % key_cols) for flat, _ in picked], margin)


def _search(
    q_map: Tensor,
    k_map: Tensor,
    allowed: list[list[bool]] | None,
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

    coarse_keys = {}
    for flat in range(key_grid[0] * key_grid[1]):
        mean = _block_mean(k_lists, flat // key_grid[1], flat % key_grid[1], side, allowed)
        if mean is not None:
            coarse_keys[flat] = mean
    probabilities: dict[tuple[int, int], dict[int, float]] = {}
    for row in range(coarse[0]):
        for col in range(coarse[1]):
            query = _block_mean(q_lists, row, col, side)
            assert query is not None
            logits = [_float_score(query, key, score, scale) for key in coarse_keys.values()]
            probabilities[row, col] = dict(zip(coarse_keys, _float_softmax(logits), strict=True)) if logits else {}

    cell_side = (coarse[0] // cells[0], coarse[1] // cells[1])
    choices = {}
    for cell_row in range(cells[0]):
        for cell_col in range(cells[1]):
            members = [
                (cell_row * cell_side[0] + i, cell_col * cell_side[1] + j)
                for i in range(cell_side[0])
                for j in range(cell_side[1])
            ]
            mean_mass = [
                math.fsum(probabilities[member][flat] for member in members) / len(members)
                if flat in coarse_keys
                else None
                for flat in range(key_grid[0] * key_grid[1])
            ]
            choices[cell_row, cell_col] = _choose(mean_mass, key_grid[1], keys_per_cell)
    return choices


def _attend(query: Tensor, keys: Tensor, values: Tensor, score: str, scale: float) -> Tensor:
    """Exact attention of one query (D,) over keys (L, D) and values (L, E)."""
    if len(keys) == 0:
        return torch.zeros_like(values.sum(dim=0))
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
    key_mask: Tensor | None = None,
) -> LoopsResult:
    """Grid Partitioned Attention by loops.

    Args:
        q, k, v: (B, G, D, Yq, Xq), (B, G, D, Yk, Xk), (B, G, E, Yk, Xk).
        cells: cells along the rows and columns of the query map.
        keys_per_cell: coarse keys that each cell keeps; cut to the number there is.
        coarse: size of the pooled query map. The key map is pooled by the same factor.
        score: dot (scale * q.k) or l2 (-scale * |q - k|^2).
        scale: 1 / sqrt(D) if None.
        key_mask: (B, 1, Yk, Xk) bool, True = may be attended. A query without any allowed key gets zeros.
    """
    batch, heads, qk_channels, q_rows, q_cols = q.shape
    scale = 1 / math.sqrt(qk_channels) if scale is None else scale
    side = (q_rows // coarse[0], q_cols // coarse[1])
    cell_side = (q_rows // cells[0], q_cols // cells[1])
    choices: dict[tuple[int, int, int, int], Choice] = {}
    maps = []
    for b in range(batch):
        allowed = None if key_mask is None else key_mask[b, 0].tolist()
        for g in range(heads):
            found = _search(
                q[b, g],
                k[b, g],
                allowed,
                cells=cells,
                keys_per_cell=keys_per_cell,
                coarse=coarse,
                score=score,
                scale=scale,
            )
            queries = q[b, g].flatten(1).unbind(1)  # a vector per pixel, in scan-line order
            all_keys, all_values = k[b, g].flatten(1).T, v[b, g].flatten(1).T
            columns: dict[tuple[int, int], Tensor] = {}
            for (cell_row, cell_col), choice in found.items():
                choices[b, g, cell_row, cell_col] = choice
                places = [
                    (row * side[0] + i, col * side[1] + j)
                    for row, col in choice.keys
                    for i in range(side[0])
                    for j in range(side[1])
                    if allowed is None or allowed[row * side[0] + i][col * side[1] + j]
                ]
                pixels = torch.tensor([y * k.shape[4] + x for y, x in places], dtype=torch.long)
                keys, values = all_keys[pixels], all_values[pixels]
                for y in range(cell_row * cell_side[0], (cell_row + 1) * cell_side[0]):
                    for x in range(cell_col * cell_side[1], (cell_col + 1) * cell_side[1]):
                        columns[y, x] = _attend(queries[y * q_cols + x], keys, values, score, scale)
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
