"""Grid Partitioned Attention at the cost of the layer that its authors released: the peer of our benchmarks.

This is our own code. It restates, from a description of it, what the released layer computes and stores, so that the
ratio to ours can be measured on any machine without that layer (which carries no licence and is not part of this
project). Kept on purpose, because they are what it costs:

- the search holds three tensors of coarse queries x coarse keys: logits, logits minus their global maximum, softmax;
  the softmax stays alive until the output is made;
- the masses of each cell come from an unfolded copy of that softmax;
- the keys of each cell come from a full descending sort of all coarse keys, not from a top-k;
- keys and values are gathered with the batch inside the gather, then copied again into cell layout;
- queries enter cells by unfold and leave by fold;
- the attention inside cells makes the same three tensors; autograd keeps whatever plain operations keep.

What differs: sizes are integers given by the caller (the released layer derives them through floating point), and the
projections and the fusion convolution are left out, as they are in the layer it is compared with.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _affinity(q: Tensor, k: Tensor, score: str) -> Tensor:
    """Softmax over keys of q (N, Q, C) against k (N, C, K): (N, Q, K)."""
    channels = q.shape[-1]
    if score == "l2":
        q, k = q / channels**0.25, k / channels**0.25
        logits = torch.bmm(2 * q, k)
        logits -= (q**2).sum(dim=2, keepdim=True)
        logits -= (k**2).sum(dim=1, keepdim=True)
    else:
        logits = torch.bmm(q / channels**0.5, k)
    return torch.softmax(logits - logits.max().detach(), dim=-1)


def _search(mass: Tensor, q_coarse_size: tuple[int, int], cell_side: tuple[int, int], count: int) -> Tensor:
    """Flat coarse key indices (N, cells, count) that hold most of mass (N, Q, K) in each cell."""
    n, _, keys = mass.shape
    as_maps = mass.transpose(1, 2).reshape(n, keys, *q_coarse_size)
    by_cell = F.unfold(as_maps, cell_side, stride=cell_side)  # (N, K*s*s, cells)
    cell_mass = by_cell.reshape(n, keys, cell_side[0] * cell_side[1], -1).mean(dim=2)  # (N, K, cells)
    order = torch.argsort(cell_mass.transpose(1, 2), dim=2, descending=True)
    return order[:, :, :count]


def _fine(indices: Tensor, key_cols: int, side: tuple[int, int]) -> Tensor:
    """Flat full-resolution indices (N, cells, count*side*side) of coarse flat indices (N, cells, count)."""
    row, col = indices // key_cols, indices % key_cols
    fine_cols = key_cols * side[1]
    blocks = [(row * side[0] + i) * fine_cols + col * side[1] + j for i in range(side[0]) for j in range(side[1])]
    return torch.cat(blocks, dim=-1)


def _gather_cells(x: Tensor, fine: Tensor) -> Tensor:
    """Channels of x (N, C, Y, X) at fine (N, cells, L): (N*cells, C, L), the second copy included."""
    n, channels = x.shape[:2]
    cells, length = fine.shape[1:]
    flat = fine.reshape(n, 1, cells * length).expand(-1, channels, -1)
    gathered = torch.gather(x.flatten(2), 2, flat).reshape(n, channels, cells, length)
    return gathered.permute(0, 2, 1, 3).contiguous().reshape(n * cells, channels, length)


def released_gpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cells: tuple[int, int],
    keys_per_cell: int,
    coarse: tuple[int, int],
    score: str = "dot",
) -> Tensor:
    """Attention (B, G, E, Yq, Xq) of q (B, G, D, Yq, Xq) over k (B, G, D, Yk, Xk) and v (B, G, E, Yk, Xk).

    Args:
        cells: number of cells along rows and columns; they divide `coarse`.
        keys_per_cell: coarse keys that a cell keeps.
        coarse: size of the pooled query map; it divides the query map.
        score: dot (q.k / sqrt(D)) or l2 (-|q - k|^2 / sqrt(D)).
    """
    batch, heads, _, rows, cols = q.shape
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))  # (B*G, C, Y, X)
    side = (rows // coarse[0], cols // coarse[1])
    cell_side = (coarse[0] // cells[0], coarse[1] // cells[1])
    with torch.no_grad():  # the coarse maps and the softmax live until this function returns, as in the released layer
        q_coarse, k_coarse = F.avg_pool2d(q, side), F.avg_pool2d(k, side)
        mass = _affinity(q_coarse.flatten(2).transpose(1, 2), k_coarse.flatten(2), score)  # (N, Q, K)
        indices = _search(mass, coarse, cell_side, keys_per_cell)
    fine = _fine(indices, k.shape[3] // side[1], side)

    full_side = (cell_side[0] * side[0], cell_side[1] * side[1])
    n, channels = q.shape[:2]
    queries = F.unfold(q, full_side, stride=full_side).reshape(n, channels, full_side[0] * full_side[1], -1)
    queries = queries.permute(0, 3, 2, 1).contiguous().flatten(0, 1)  # (N*cells, P, C)
    keys, values = _gather_cells(k, fine), _gather_cells(v, fine)
    mixed = torch.bmm(values, _affinity(queries, keys, score).transpose(1, 2))  # (N*cells, E, P)
    columns = mixed.reshape(n, -1, *mixed.shape[1:]).permute(0, 2, 3, 1).flatten(1, 2)  # (N, E*P, cells)
    out = F.fold(columns, (rows, cols), full_side, stride=full_side)
    return out.reshape(batch, heads, -1, rows, cols)
