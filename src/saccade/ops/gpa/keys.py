"""Phase 1 of grid-partitioned attention: which coarse keys each cell of queries attends to.

Source: Jetchev et al., arXiv 2107.03742, Algorithm 1, as the released layer computes it: the score of a key for a cell
is the mean over the cell's coarse queries of their softmax weights. Ours: ties go to the lower index, and the matrix of
all coarse pairs is never held.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.geometry import Size
from saccade.ops.dispatch import Score
from saccade.ops.gpa.cells import Grid, split_cells
from saccade.ops.gpa.layout import Scratch, chunks
from saccade.ops.inputs import LOG2_E, no_autocast

# Ours: entries of the score chunk held at a time; on the CPU it should stay in the second-level cache.
CHUNK_ENTRIES = {"cpu": 2**19, "other": 2**26}


@torch.no_grad()
def select_keys(q: Tensor, k: Tensor, grid: Grid, score: Score, scale: float, key_mask: Tensor | None) -> Tensor:
    """The coarse keys of each cell, ascending: (B, G, cells, kappa) long.

    With a mask a coarse key is the mean of its allowed pixels and may be chosen when it has one; cells with fewer such
    keys than `keys_per_cell` fill up with masked ones, which get no attention.

    Args:
        q, k: (B, G, D, Yq, Xq) and (B, G, D, Yk, Xk).
        grid: the partition.
        score: "dot" or "l2".
        scale: factor on the score.
        key_mask: (B, 1, Yk, Xk) bool, True = may be attended.
    """
    batch, heads, cells, count = *q.shape[:2], grid.cells.area, grid.kv_coarse.area
    if grid.keys_per_cell == count:
        return torch.arange(count, device=q.device).expand(batch, heads, cells, count)
    with no_autocast(q.device):
        queries, keys, bias, allowed = coarse_search(q, k, grid, score, scale, key_mask)
        top = _top_of_cells(
            queries.flatten(0, 1) * LOG2_E,
            keys.flatten(0, 1),
            None if bias is None else bias.flatten(0, 1) * LOG2_E,
            None if allowed is None else allowed.repeat_interleave(heads, 0),
            grid.keys_per_cell,
        )
        return torch.unflatten(top, 0, (batch, heads))


def coarse_search(
    q: Tensor, k: Tensor, grid: Grid, score: Score, scale: float, key_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """What the logits of Phase 1 are made of: queries @ keys + bias, but for what is the same for all keys of a query.

    Returns:
        Coarse queries of each cell times the scale (B, G, cells, S, D), coarse keys (B, G, D, K), bias (B, G or 1, 1,
        K) or None, and which coarse keys have an allowed pixel (B, 1, K) bool or None. Differentiable.
    """
    keys, allowed = pool_keys(k, grid.factor, key_mask)
    queries = pool(q, grid.factor)
    factor, bias = scale, None
    if score == "l2":  # distances are the same from the mean key, and rounded less
        centre = keys.detach().mean(3, keepdim=True)
        keys, queries = keys - centre, queries - centre.unsqueeze(4)
        factor, bias = 2 * scale, keys.square().sum(2, keepdim=True) * -scale
    coarse_cell = Size(grid.coarse.rows // grid.cells.rows, grid.coarse.cols // grid.cells.cols)
    parts = split_cells(queries, grid.cells, coarse_cell).transpose(3, 4)  # (B, G, cells, S, D)
    if allowed is not None:
        blocked = ~allowed & allowed.any(2, keepdim=True)
        bias = (torch.zeros_like(keys[:, :, :1]) if bias is None else bias).masked_fill(
            blocked.unsqueeze(1), float("-inf")
        )
    return parts.contiguous() * factor, keys, bias, allowed


def pool(maps: Tensor, factor: Size) -> Tensor:
    """Average blocks of `factor` pixels, in at least float32: (B, G, C, Y, X) -> (B, G, C, Y/d, X/d)."""
    if maps.dtype in (torch.float16, torch.bfloat16):
        maps = maps.float()
    if factor.area == 1:
        return maps
    if maps.device.type != "cpu":
        return torch.unflatten(F.avg_pool2d(maps.flatten(0, 1), factor), 0, maps.shape[:2])
    # avg_pool2d takes two to four times as long on the CPU as adding the rows, then the cols, of the blocks
    by_rows = _sum_slices(torch.unflatten(maps, 3, (-1, factor.rows)), 4)  # (B, G, C, Y/d, X)
    return _sum_slices(torch.unflatten(by_rows, 4, (-1, factor.cols)), 5) / factor.area


def _sum_slices(maps: Tensor, axis: int) -> Tensor:
    if maps.shape[axis] == 1:
        return maps.squeeze(axis)
    total = maps.select(axis, 0) + maps.select(axis, 1)
    for i in range(2, maps.shape[axis]):
        total += maps.select(axis, i)
    return total


def pool_keys(keys: Tensor, factor: Size, key_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Pool keys over their allowed pixels: (B, G, C, K) with K coarse keys, and which have one: (B, 1, K) bool."""
    if key_mask is None:
        return pool(keys, factor).flatten(3), None
    counted = key_mask.unsqueeze(2).to(torch.promote_types(keys.dtype, torch.float32))
    share = pool(counted, factor)  # (B, 1, 1, Y/d, X/d)
    pooled = pool(keys.masked_fill(~key_mask.unsqueeze(2), 0), factor)
    allowed = share > 0
    return (pooled / share.masked_fill(~allowed, 1)).flatten(3), allowed.squeeze(2).flatten(2)


def _top_of_cells(queries: Tensor, keys: Tensor, bias: Tensor | None, allowed: Tensor | None, kappa: int) -> Tensor:
    """(N, cells, S, D) coarse queries and (N, D, K) keys -> (N, cells, kappa), a chunk of cells at a time.

    Logits are to the base of 2: see `softmax_`.
    """
    number, cells, side, _ = queries.shape
    count = keys.shape[2]
    budget = CHUNK_ENTRIES["cpu" if keys.device.type == "cpu" else "other"]
    top = torch.empty(number, cells, kappa, dtype=torch.long, device=keys.device)
    scratch = Scratch(keys)
    for n, span in chunks((number, cells), budget // (side * count)):
        scores = scratch.take("scores", n.stop - n.start, span.stop - span.start, count).zero_()
        for some in torch.split(queries[n, span], max(1, budget // count), 2):  # of large cells not all queries at once
            _add_weights(scores, some, keys[n], None if bias is None else bias[n], scratch)
        if allowed is not None:
            scores.masked_fill_(~allowed[n], -1)
        top[n, span] = stable_top(scores, kappa)
    return top


def _add_weights(scores: Tensor, queries: Tensor, keys: Tensor, bias: Tensor | None, scratch: Scratch) -> None:
    """Add to (N, M, K) scores the softmax weights of (N, M, S, D) queries, summed over S: as good as their mean."""
    number, cells, side, _ = queries.shape
    logits = scratch.take("logits", number, cells * side, keys.shape[2])
    torch.bmm(queries.flatten(1, 2), keys, out=logits)
    if bias is not None:
        logits += bias
    logits.sub_(logits.amax(2, keepdim=True)).exp2_()
    share = torch.unflatten(logits.sum(2).reciprocal_(), 1, (cells, side))  # (N, M, S)
    parts = torch.unflatten(logits, 1, (cells, side))  # (N, M, S, K)
    if side > 16 or keys.device.type != "cpu":
        scores += torch.einsum("nmsk,nms->nmk", parts, share)
        return
    for s in range(side):
        scores.addcmul_(parts[:, :, s], share[:, :, s, None])


def stable_top(scores: Tensor, kappa: int) -> Tensor:
    """Indices of the kappa largest entries of the last axis, ascending; among equal ones the lower index wins.

    torch.topk leaves open which of equal entries it takes, so the rows where that matters are settled apart.
    """
    if kappa >= scores.shape[-1]:
        return torch.arange(scores.shape[-1], device=scores.device).expand(scores.shape)
    values, indices = scores.topk(kappa + 1, -1)
    top = indices[..., :kappa].sort(-1).values
    if scores.device.type == "meta":
        return top
    unsettled = ~(values[..., kappa - 1] > values[..., kappa])
    if bool(unsettled.any()):
        top[unsettled] = _lower_of_equals(scores[unsettled], kappa)
    return top


def _lower_of_equals(scores: Tensor, kappa: int) -> Tensor:
    scores = scores.nan_to_num(nan=float("-inf"))  # a NaN would leave fewer than kappa entries to take
    threshold = scores.topk(kappa, -1).values[:, -1:]
    above = scores > threshold
    equal = scores == threshold
    room = kappa - above.sum(-1, keepdim=True)
    taken = above | (equal & (equal.cumsum(-1) <= room))
    return taken.nonzero()[:, 1].view(-1, kappa)
