"""A trainable choice of keys for grid-partitioned attention: top-k relaxed to memberships that sum to k.

Ours; in the paper (arXiv 2107.03742) and its released layer the choice has no gradient. A cell's score of a coarse key
is the logarithm r of the mass that Phase 1 ranks it by. Its membership is m = sigmoid(r / T - t) with t such that the
memberships of a cell sum to keys_per_cell: the projection of r / T on the polytope of Amos, Koltun, Kolter, "The
Limited Multi-Label Projection Layer", arXiv 1906.08707, section 3, whose limit for T -> 0 is the hard top-k. Phase 2
adds log m to the logits of the pixels of a block, so at T -> 0 it is GPA, and gradients reach q and k through m, too.
Only the best `candidates` coarse keys of a cell are looked at: the others would get memberships near 0.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.ops.dispatch import Score
from saccade.ops.gpa.cells import Blocks, Grid
from saccade.ops.gpa.keys import coarse_search, select_keys, stable_top
from saccade.ops.inputs import no_autocast

# Halvings of the interval that holds the threshold; Newton steps polish what is left.
HALVINGS = 50


def select_soft(
    q: Tensor,
    k: Tensor,
    grid: Grid,
    score: Score,
    scale: float,
    key_mask: Tensor | None,
    temperature: float,
    candidates: int | None,
) -> Blocks:
    """The candidates of each cell with the logarithms of their memberships; twice differentiable.

    Holds the scores of all pairs of coarse queries and keys, (B, G, Yq * Xq / d^2, Yk * Xk / d^2).

    Args:
        q, k: (B, G, D, Yq, Xq) and (B, G, D, Yk, Xk).
        grid: the partition; its `keys_per_cell` is what the memberships of a cell sum to.
        score: "dot" or "l2".
        scale: factor on the score.
        key_mask: (B, 1, Yk, Xk) bool, True = may be attended.
        temperature: T, above 0.
        candidates: coarse keys of a cell that may be members; None is twice `keys_per_cell`.
    """
    kappa = grid.keys_per_cell
    wide = grid.with_keys(2 * kappa if candidates is None else max(candidates, kappa))
    if wide.keys_per_cell == kappa:  # all candidates are members
        return Blocks(grid, select_keys(q, k, grid, score, scale, key_mask))
    heads, cells = q.shape[1], grid.cells.area
    with no_autocast(q.device):
        queries, keys, bias, allowed = coarse_search(q, k, grid, score, scale, key_mask)
        logits = queries.flatten(2, 3) @ keys  # (B, G, cells * S, K)
        logits = torch.unflatten(logits if bias is None else logits + bias, 2, queries.shape[2:4])
        sums = logits.logsumexp(4, keepdim=True)
        with torch.no_grad():
            mass = (logits - sums).exp_().sum(3)
            if allowed is not None:
                mass.masked_fill_(~allowed.unsqueeze(2), -1)
            indices = stable_top(mass, wide.keys_per_cell)  # (B, G, cells, C)
        picked = logits.gather(4, indices.unsqueeze(3).expand(-1, -1, -1, logits.shape[3], -1)) - sums
        valid: Tensor | None = None
        if allowed is not None:
            valid = allowed.expand(-1, heads, -1).unsqueeze(2).expand(-1, -1, cells, -1).gather(3, indices)
            picked = picked.masked_fill(~valid.unsqueeze(3), 0)
        return Blocks(wide, indices, log_memberships(picked.logsumexp(3), kappa, temperature, valid))


def log_memberships(scores: Tensor, kappa: int, temperature: float, valid: Tensor | None = None) -> Tensor:
    """log m of m = sigmoid(scores / T - t), with t such that m sums to kappa over the last axis; (..., C).

    Entries that are not `valid` are left out of the sum and get 0, as do all where no more than kappa are valid. The
    threshold is a root: found by halving, then polished by two Newton steps through which gradients pass, which makes
    the first and second derivatives those of the implicit function. All is computed from what the kappa best lack of 1
    and what the others have, for at low temperatures a sum of kappa ones would hide it.
    """
    levels = scores / temperature
    allowed = torch.ones_like(levels, dtype=torch.bool) if valid is None else valid
    crowded = allowed.sum(-1, keepdim=True) > kappa
    if scores.shape[-1] <= kappa:
        return torch.zeros_like(levels)
    best = levels.detach().masked_fill(~allowed, float("-inf")).topk(kappa, -1).indices
    inner = torch.zeros_like(allowed).scatter(-1, best, True) & allowed
    outer = allowed & ~inner
    threshold = _threshold(levels.detach(), inner, outer).masked_fill(~crowded, 0)
    smallest = torch.finfo(levels.dtype).tiny ** 0.25
    for _ in range(2):
        members, lacking = torch.sigmoid(levels - threshold), torch.sigmoid(threshold - levels)
        excess = (members * outer - lacking * inner).sum(-1, keepdim=True)
        slope = (members * lacking * allowed).sum(-1, keepdim=True)
        # where all memberships are 0 or 1 a move of the threshold changes nothing
        step = torch.where(crowded & (slope > smallest), excess / slope.clamp_min(smallest), torch.zeros_like(slope))
        threshold = threshold + step
    return F.logsigmoid(levels - threshold).masked_fill(~(crowded & allowed), 0)


@torch.no_grad()
def _threshold(levels: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    """Where what the `inner` entries lack of 1 is what the `outer` have, by halving, compared as logarithms."""
    precise = levels if levels.device.type == "mps" else levels.double()
    inside, outside = precise.masked_fill(~inner, float("inf")), precise.masked_fill(~outer, float("-inf"))
    # beyond the best and the worst by the logarithm of their number even one entry outweighs all others
    margin = math.log(levels.shape[-1]) + 1
    low = torch.minimum(inside.amin(-1, keepdim=True), outside.amax(-1, keepdim=True)) - margin
    high = torch.maximum(inside.amin(-1, keepdim=True), outside.amax(-1, keepdim=True)) + margin
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        excess = F.logsigmoid(outside - middle).logsumexp(-1, keepdim=True)
        many = excess > F.logsigmoid(middle - inside).logsumexp(-1, keepdim=True)
        low, high = torch.where(many, middle, low), torch.where(many, high, middle)
    return ((low + high) / 2).to(levels.dtype)
