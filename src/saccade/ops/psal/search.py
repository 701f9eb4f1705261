"""PatchMatch search of patch-based stochastic attention: each query's K cheapest keys (arXiv 2202.03163, Algorithm 1).

The schedule, exactly; every kernel that searches with "jump" follows it and differs by rounding alone.

State: for each query K distinct keys, sorted by cost ascending. A candidate is accepted if it is an allowed key inside
the key map, is not among the K, and costs strictly less than the worst; it replaces the worst and goes behind entries
of equal cost. Keys and queries are flat pixels, row * cols + col. Draws are those of `saccade.ops.psal.random`.

1. Start. Draw kk of a query, kk = 0 .. K-1, is a whole number r in [0, number of allowed keys): the r-th allowed key in
   flat order. While that r is already one of this query's earlier kk, r becomes (r + 1) mod the number. The K keys are
   sorted by cost, equal ones in the order of kk.
   With a coarse start, the query's coarse matches follow as candidates, best first (`coarse_candidates`).
2. Iteration t = 0 .. iterations-1:
   a. Propagation, for l = 1, 2, 4, 8: remember every query's best key, best0. Then for (di, dj) = (0, +l), (+l, 0),
      (0, -l), (-l, 0), in this order: if (i + di, j + dj) is a searched query, offer best0(i + di, j + dj) - (di, dj).
      All four read the same best0 (Jacobi), and are offered one after the other.
   b. Random search around the query's best key at the start of b (not refreshed): with M = max(key rows, key cols) and
      Z = floor(log2 M), for z = 0 .. Z-1 and w = M >> z, offer (row, col) = best - w + whole numbers in [0, 2 w). The
      row comes from draw K + 2 (t Z + z), the column from the next one. Candidates outside the key map are discarded.
So a draw's number does not depend on the number of iterations, and more of them only continue the search.

With border "released" (the released layer): only queries whose patch lies inside the query map are searched, only keys
whose patch lies inside the key map are allowed; the other queries keep their K random keys, in the order of kk, at
cost 0, and nobody reads them. With "zeros" patches read zeros outside the map and every query and key takes part.

Different from the released layer: updates are double-buffered, hence deterministic; the K start keys are distinct; the
K matches are sorted, not a min-max heap; K and the patch size are free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.geometry import Size
from saccade.ops.dispatch import Score
from saccade.ops.psal.exact import exact_matches
from saccade.ops.psal.patches import PatchPairs
from saccade.ops.psal.random import below, draw, pixel_state

Border = Literal["zeros", "released"]
Search = Literal["jump", "sweep", "exact"]
BORDERS: tuple[Border, ...] = ("zeros", "released")
SEARCHES: tuple[Search, ...] = ("jump", "sweep", "exact")
JUMPS = (1, 2, 4, 8)

# Ours: queries that are updated at a time.
QUERIES = {"cpu": 2**12, "other": 2**16}


@dataclass(frozen=True)
class SearchPlan:
    """How keys are searched.

    `matches` is K; `coarse_start` the factor of the pooled maps whose exact matches the search starts from, or None;
    `heads` how many of the N = batch * heads maps in a row belong to one batch entry.
    """

    matches: int
    patch_size: int
    iterations: int
    score: Score
    border: Border = "zeros"
    search: Search = "jump"
    coarse_start: int | None = None
    heads: int = 1


# (q, k, allowed, plan, seed) -> matches and costs, as `search`.
Finder = Callable[[Tensor, Tensor, Tensor | None, SearchPlan, int], tuple[Tensor, Tensor]]


def window_count(kv_size: Size) -> int:
    """Windows of one random search, floor(log2(longer side))."""
    return max(kv_size).bit_length() - 1


def allowed_keys(k: Tensor, key_mask: Tensor | None, plan: SearchPlan) -> Tensor | None:
    """The keys that may be matched, (B, n_k) bool; None where all may.

    Args:
        k: (B, G, D, Yk, Xk).
        key_mask: (B, 1, Yk, Xk) bool or None.
    """
    ring = plan.patch_size // 2 if plan.border == "released" else 0
    if ring == 0:
        return None if key_mask is None else key_mask.flatten(1)
    inside = inside_ring(Size(*k.shape[3:]), ring, k.device)
    return inside.expand(k.shape[0], -1) if key_mask is None else key_mask.flatten(1) & inside


def inside_ring(size: Size, half: int, device: torch.device) -> Tensor:
    """Pixels whose patch lies inside the map: (rows * cols,) bool."""
    inside = torch.zeros(size, dtype=torch.bool, device=device)
    inside[half : size.rows - half, half : size.cols - half] = True
    return inside.flatten()


def search(q: Tensor, k: Tensor, allowed: Tensor | None, plan: SearchPlan, seed: int) -> tuple[Tensor, Tensor]:
    """Find every query's K cheapest keys as the plan says.

    Args:
        q: (N, D, Yq, Xq), N = batch * heads.
        k: (N, D, Yk, Xk).
        allowed: (batch, n_k) bool, True = may be matched, at least K of them in each entry; None where all may.
        plan: "jump" or "exact"; serial sweeps are the compiled kernel's.
        seed: what all random numbers derive from.

    Returns:
        Flat key pixels (N, K, Yq * Xq) int32, cheapest first, and their costs, the same shape, in at least float32.
    """
    pairs = PatchPairs(q, k, plan.patch_size, plan.score)
    state = Matches(pairs, allowed, plan, seed)
    if plan.search == "exact":
        state.take_exact()
    else:
        if plan.coarse_start is not None:
            state.offer_everywhere(coarse_candidates(q, k, allowed, plan, seed))
        for iteration in range(plan.iterations):
            for jump in JUMPS:
                state.propagate(jump)
            state.search_around(iteration)
    return state.result()


class Matches:
    """The K matches of all queries of all maps, and the steps that improve them."""

    def __init__(self, pairs: PatchPairs, allowed: Tensor | None, plan: SearchPlan, seed: int) -> None:
        self.pairs, self.plan, self.seed, self.allowed = pairs, plan, seed, allowed
        self.q_size, self.kv_size = Size(pairs.q.rows, pairs.q.cols), Size(pairs.k.rows, pairs.k.cols)
        self.device = pairs.q.data.device
        self.total = pairs.q.data.shape[0] * self.q_size.area
        ring = plan.patch_size // 2 if plan.border == "released" else 0
        self.searched = inside_ring(self.q_size, ring, self.device) if ring else None
        self.keys = torch.empty(plan.matches, self.total, dtype=torch.int32, device=self.device)  # (K, N * n_q)
        self.costs = pairs.q.data.new_empty(plan.matches, self.total)
        self._start()

    def spans(self) -> list[slice]:
        step = QUERIES["cpu" if self.device.type == "cpu" else "other"]
        return [slice(start, min(start + step, self.total)) for start in range(0, self.total, step)]

    def result(self) -> tuple[Tensor, Tensor]:
        """(N, K, n_q) keys and costs."""
        shape = (self.plan.matches, -1, self.q_size.area)
        keys, costs = (x.view(shape).transpose(0, 1).contiguous() for x in (self.keys, self.costs))
        return keys, costs

    def _start(self) -> None:
        listed, count = _listed(self.allowed)
        for span in self.spans():
            where = _Where(self, span)
            state = pixel_state(self.seed, where.pixel)
            bound: int | Tensor = self.kv_size.area if count is None else count[where.entry]
            ranks: list[Tensor] = []
            for number in range(self.plan.matches):
                rank = below(draw(state, self.seed, where.head, number), bound)
                while ranks and bool((taken := _among(rank, ranks)).any()):
                    rank = torch.where(taken, (rank + 1) % bound, rank)
                ranks.append(rank)
            keys = torch.stack(ranks)  # (K, m)
            if listed is not None:
                keys = listed[where.entry, keys]
            costs = torch.stack([self.pairs.costs(where.flat, where.first_key + row) for row in keys])
            if self.searched is not None:
                costs = costs.masked_fill_(~self.searched[where.pixel], 0)
            costs, order = costs.sort(dim=0, stable=True)
            self.keys[:, span] = keys.gather(0, order).int()
            self.costs[:, span] = costs

    def propagate(self, jump: int) -> None:
        """Offer every query its neighbours' best keys, shifted back: step a of the module's schedule."""
        best = self.keys[0].clone()
        for span in self.spans():
            where = _Where(self, span)
            row, col = where.row_col(where.pixel, self.q_size)
            rows, cols, valid = [], [], []
            for down, right in ((0, jump), (jump, 0), (0, -jump), (-jump, 0)):
                near_row, near_col = row + down, col + right
                exists = _inside(near_row, near_col, self.q_size)
                flat = (where.flat + down * self.q_size.cols + right).clamp_(0, self.total - 1)
                if self.searched is not None:
                    exists &= self.searched[flat % self.q_size.area]
                key_row, key_col = where.row_col(best[flat].long(), self.kv_size)
                rows.append(key_row - down)
                cols.append(key_col - right)
                valid.append(exists)
            self._offer(where, torch.stack(rows), torch.stack(cols), torch.stack(valid))

    def search_around(self, iteration: int) -> None:
        """Offer every query random keys in halving windows around its best: step b of the module's schedule."""
        windows = window_count(self.kv_size)
        if windows == 0:
            return
        for span in self.spans():
            where = _Where(self, span)
            state = pixel_state(self.seed, where.pixel)
            row, col = where.row_col(self.keys[0, span].long(), self.kv_size)
            rows, cols = [], []
            for window in range(windows):
                reach = max(self.kv_size) >> window
                number = self.plan.matches + 2 * (iteration * windows + window)
                rows.append(row - reach + below(draw(state, self.seed, where.head, number), 2 * reach))
                cols.append(col - reach + below(draw(state, self.seed, where.head, number + 1), 2 * reach))
            valid = torch.ones(windows, row.shape[0], dtype=torch.bool, device=self.device)
            self._offer(where, torch.stack(rows), torch.stack(cols), valid)

    def offer_everywhere(self, candidates: Tensor) -> None:
        """Offer (C, N * n_q) flat keys, -1 for none, in order."""
        for span in self.spans():
            where = _Where(self, span)
            keys = candidates[:, span]
            row, col = where.row_col(keys.clamp_min(0), self.kv_size)
            self._offer(where, row, col, keys >= 0)

    def take_exact(self) -> None:
        """Replace the matches of the queries that are searched by the exact ones."""
        for entry, keys in enumerate(exact_matches(self.pairs, self.allowed, self.plan)):
            first = entry * self.q_size.area
            flat = torch.arange(first, first + self.q_size.area, device=self.device)
            if self.searched is not None:
                flat = flat[self.searched]
                keys = keys[:, self.searched]
            base = entry * self.kv_size.area
            costs = torch.stack([self.pairs.costs(flat, base + row) for row in keys])
            if self.allowed is not None:
                costs.masked_fill_(~self.allowed[entry // self.plan.heads][keys], float("inf"))
            keys, order = keys.sort(0)  # of equal cost the lower index
            costs, order = costs.gather(0, order).sort(dim=0, stable=True)
            self.keys[:, flat] = keys.gather(0, order)[: self.plan.matches].int()
            self.costs[:, flat] = costs[: self.plan.matches]

    def _offer(self, where: _Where, rows: Tensor, cols: Tensor, valid: Tensor) -> None:
        """Offer (C, m) candidates to the m queries of a span, one after the other."""
        mine, costs = self.keys[:, where.span], self.costs[:, where.span]
        valid = valid & _inside(rows, cols, self.kv_size)
        keys = (rows * self.kv_size.cols + cols).masked_fill_(~valid, 0)
        if self.searched is not None:
            valid &= self.searched[where.pixel]
        if self.allowed is not None:
            valid &= self.allowed[where.entry, keys]
        for own in mine:
            valid &= keys != own
        chosen = valid.flatten().nonzero().squeeze(1)
        query = chosen % keys.shape[1]
        offered = torch.full_like(costs[:1].expand(keys.shape[0], -1), float("inf"))
        flat_keys = (keys + where.first_key).flatten()[chosen]
        offered.view(-1)[chosen] = self.pairs.costs(where.flat[query], flat_keys, costs[-1][query])
        keys = keys.int()
        for key, cost in zip(keys, offered, strict=True):
            self._insert(mine, costs, key, cost)

    def _insert(self, mine: Tensor, costs: Tensor, key: Tensor, cost: Tensor) -> None:
        """Put one candidate a query into its sorted list (K, m), in place, if it is new and beats the worst."""
        better = cost < costs[-1]
        for own in mine:
            better = better & (key != own)
        mine[-1] = torch.where(better, key, mine[-1])
        costs[-1] = torch.where(better, cost, costs[-1])
        for place in range(mine.shape[0] - 1, 0, -1):
            swap = costs[place] < costs[place - 1]
            for x in (mine, costs):
                above, below_ = x[place - 1].clone(), x[place]
                x[place - 1] = torch.where(swap, below_, above)
                x[place] = torch.where(swap, above, below_)


class _Where:
    """The queries of a span: flat over all maps, and which pixel, head, batch entry and key map each belongs to."""

    def __init__(self, matches: Matches, span: slice) -> None:
        self.span = span
        self.flat = torch.arange(span.start, span.stop, device=matches.device)
        maps = self.flat // matches.q_size.area
        self.pixel = self.flat - maps * matches.q_size.area
        self.entry = maps // matches.plan.heads
        self.head = maps - self.entry * matches.plan.heads
        self.first_key = maps * matches.kv_size.area

    @staticmethod
    def row_col(pixels: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        rows = pixels // size.cols
        return rows, pixels - rows * size.cols


def _listed(allowed: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The allowed keys of each batch entry in flat order, (batch, n_k), the others behind, and how many there are."""
    if allowed is None:
        return None, None
    return (~allowed).to(torch.uint8).sort(dim=1, stable=True).indices, allowed.sum(1)


def _among(rank: Tensor, ranks: list[Tensor]) -> Tensor:
    taken = rank == ranks[0]
    for other in ranks[1:]:
        taken = taken | (rank == other)
    return taken


def _inside(rows: Tensor, cols: Tensor, size: Size) -> Tensor:
    return (rows >= 0) & (rows < size.rows) & (cols >= 0) & (cols < size.cols)


def coarse_candidates(
    q: Tensor, k: Tensor, allowed: Tensor | None, plan: SearchPlan, seed: int, finder: Finder | None = None
) -> Tensor:
    """Exact matches of average-pooled maps, brought to the full maps: (K', N * n_q) int64, -1 where there is none.

    As in Phase 1 of grid-partitioned attention (arXiv 2107.03742): both maps are pooled by the plan's factor f, partial
    blocks at the end too; a coarse key is allowed if a key of its block is; patches shrink by f, to 3 x 3 at least. The
    query at place (y, x) of its block is offered the key at that place of the block that its block matches. `finder`
    searches the pooled maps; without it, `search` does.
    """
    factor = plan.coarse_start or 1
    pooled_q, pooled_k = (F.avg_pool2d(x, factor, ceil_mode=True, count_include_pad=False) for x in (q, k))
    coarse_allowed, most = None, pooled_k.shape[2] * pooled_k.shape[3]
    q_size, kv_size, coarse_kv = Size(*q.shape[2:]), Size(*k.shape[2:]), Size(*pooled_k.shape[2:])
    if allowed is not None:
        blocks = F.max_pool2d(torch.unflatten(allowed.float(), 1, (1, *kv_size)), factor, ceil_mode=True)
        coarse_allowed = blocks.flatten(1) > 0
        most = int(coarse_allowed.sum(1).min())
    coarse = replace(
        plan,
        patch_size=coarse_patch(plan.patch_size, factor),
        matches=min(plan.matches, most),
        border="zeros",
        search="exact",
        coarse_start=None,
    )
    found, _ = (finder or search)(pooled_q, pooled_k, coarse_allowed, coarse, seed)  # (N, K', coarse n_q)
    found = torch.unflatten(found, 2, pooled_q.shape[2:])
    row, col = (torch.arange(side, device=q.device) for side in q_size)
    found = found[:, :, row // factor][:, :, :, col // factor].long()  # (N, K', Yq, Xq)
    rows = found // coarse_kv.cols * factor + (row % factor).unsqueeze(1)
    cols = found % coarse_kv.cols * factor + col % factor
    keys = torch.where(_inside(rows, cols, kv_size), rows * kv_size.cols + cols, -1)
    return keys.transpose(0, 1).flatten(1)


def coarse_patch(patch_size: int, factor: int) -> int:
    """The patch of maps pooled by `factor`: the odd size next to patch_size / factor, at least 3; 1 stays 1."""
    return 1 if patch_size == 1 else max(3, patch_size // factor // 2 * 2 + 1)
