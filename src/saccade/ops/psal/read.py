"""Read-outs of patch-based stochastic attention: from matches and costs to values (arXiv 2202.03163, section 3.4).

Each is a sum over candidates. Query x sees, for every offset o of a patch and every k, the k-th match of its neighbour
x - o, moved back by the same offset: the value at psi_k(x - o) + o.

centre: o = 0 alone; softmax over k of -scale * cost.
aggregate: section 3.4.3; one softmax over all k and o. A neighbour outside the query map and a position outside the
    value map do not exist. The released layer pads costs and positions with the number 10 and clamps positions into the
    map instead: border "released".
fold (ours; what contextual attention and cross-scale attention do with all keys): every query pastes its
    softmax-weighted value patch, zeros outside the value map, and overlaps are averaged, or their sum is divided by
    `fold_divisor`.

Nothing that is larger than a few maps is stored: the candidates are visited one offset after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.geometry import Size
from saccade.ops.inputs import at_least_float32
from saccade.ops.psal.search import Border

Readout = Literal["centre", "aggregate", "fold"]
READOUTS: tuple[Readout, ...] = ("centre", "aggregate", "fold")
# What the released layer pads costs and positions with (its psal_attention.py, `aggregation`).
RELEASED_PADDING = 10


@dataclass(frozen=True)
class ReadPlan:
    """How values are read. `scale` multiplies the costs: 1 / temperature. `fold_divisor` None averages overlaps."""

    readout: Readout
    patch_size: int
    scale: float
    border: Border = "zeros"
    fold_divisor: float | None = None

    @property
    def half(self) -> int:
        return 0 if self.readout == "centre" else self.patch_size // 2


class Kept(NamedTuple):
    """What backward needs of an "aggregate" read-out: its output, and the log of the sum of its weights (N, Yq, Xq)."""

    out: Tensor | None
    lse: Tensor | None


Wanted = tuple[bool, bool]


class Candidate(NamedTuple):
    """One value for every query: where it is read, whether it exists, and whose cost it has."""

    place: Tensor  # (N * n_q,) int64, n * n_k + key pixel, inside the value map also where it does not exist
    exists: Tensor | None  # (N, Yq, Xq) bool, or None for everywhere
    source: tuple[slice, int, slice, slice]  # its window of the padded planes (N, K, Yq + 2 h, Xq + 2 h)


class Candidates:
    """All candidates of the queries of N maps, from matches (N, K, Yq * Xq)."""

    def __init__(self, matches: Tensor, q_size: Size, kv_size: Size, plan: ReadPlan) -> None:
        self.plan, self.q_size, self.kv_size = plan, q_size, kv_size
        self.count = matches.shape[1]
        self.padded = plan.readout == "aggregate" and plan.border == "released"
        planes = torch.unflatten(matches, 2, q_size)
        fill = RELEASED_PADDING if self.padded else 0
        rows = planes // kv_size.cols
        self.rows = F.pad(rows, (plan.half,) * 4, value=fill)
        self.cols = F.pad(planes - rows * kv_size.cols, (plan.half,) * 4, value=fill)
        maps = torch.arange(matches.shape[0], device=matches.device)
        self._first = (maps * kv_size.area).view(-1, 1, 1)

    def __iter__(self) -> Iterator[Candidate]:
        """The query's own matches first."""
        half = self.plan.half
        offsets = [(a, b) for a in range(-half, half + 1) for b in range(-half, half + 1)]
        for down, right in sorted(offsets, key=lambda offset: offset != (0, 0)):
            for match in range(self.count):
                yield self._candidate(down, right, match)

    def _candidate(self, down: int, right: int, match: int) -> Candidate:
        top, left = self.plan.half - down, self.plan.half - right
        source = (slice(None), match, slice(top, top + self.q_size.rows), slice(left, left + self.q_size.cols))
        rows, cols = self.rows[source], self.cols[source]
        if down or right:
            rows, cols = rows + down, cols + right
        inside_rows, inside_cols = rows.clamp(0, self.kv_size.rows - 1), cols.clamp(0, self.kv_size.cols - 1)
        exists = None
        if not self.padded and (down or right):
            exists = (rows == inside_rows) & (cols == inside_cols)
        place = inside_rows.long().mul_(self.kv_size.cols).add_(inside_cols).add_(self._first)
        return Candidate(place.flatten(), exists, source)

    def pad(self, planes: Tensor, value: float) -> Tensor:
        """(N, K, Yq * Xq) -> (N, K, Yq + 2 h, Xq + 2 h)."""
        return F.pad(torch.unflatten(planes, 2, self.q_size), (self.plan.half,) * 4, value=value)

    def crop(self, planes: Tensor) -> Tensor:
        """The reverse of `pad`."""
        half = self.plan.half
        return planes[:, :, half : half + self.q_size.rows, half : half + self.q_size.cols].flatten(2)


class Weighting:
    """Weights of the candidates: one softmax over all of them, or each source's own softmax shared among its pastes."""

    def __init__(self, candidates: Candidates, costs: Tensor) -> None:
        plan = candidates.plan
        self.joint = plan.readout == "aggregate"
        if self.joint:
            outside = -plan.scale * RELEASED_PADDING if candidates.padded else -float("inf")
            self.planes = candidates.pad(costs * -plan.scale, outside)
        else:
            self.planes = candidates.pad(torch.softmax(costs * -plan.scale, 1), 0.0)
        self.share: Tensor | None = None  # (Yq, Xq): what a paste is multiplied by
        if plan.readout == "fold":
            self.share = paste_share(candidates.q_size, plan, costs)

    def logits(self, candidate: Candidate) -> Tensor:
        """(N, Yq, Xq); -inf where the candidate does not exist."""
        logits = self.planes[candidate.source]
        return logits if candidate.exists is None else logits.masked_fill(~candidate.exists, -float("inf"))

    def normalise(self, candidates: Candidates) -> Tensor:
        """Log of the sum of the exponentials of all logits, (N, Yq, Xq), found without storing them."""
        rest = iter(candidates)
        highest = self.logits(next(rest)).clone()  # a query's own match exists, so this is finite
        total = torch.ones_like(highest)
        for candidate in rest:
            logits = self.logits(candidate)
            peak = torch.maximum(highest, logits)
            total = total.mul_(highest.sub_(peak).exp_()).add_((logits - peak).exp_())
            highest = peak
        return total.log_().add_(highest)

    def weights(self, candidate: Candidate, lse: Tensor | None) -> Tensor:
        """(N, Yq, Xq); `lse` is `normalise`'s."""
        if lse is not None:
            return (self.logits(candidate) - lse).exp()
        return self.shared(self.planes[candidate.source], candidate)

    def shared(self, planes: Tensor, candidate: Candidate) -> Tensor:
        """A paste's share of (N, Yq, Xq) planes."""
        if self.share is not None:
            planes = planes * self.share
        return planes if candidate.exists is None else planes * candidate.exists

    def cost_gradient(self, candidates: Candidates, slope: Tensor) -> Tensor:
        """The gradient of the costs (N, K, Yq * Xq) from that of the joint logits, or of each source's own weights."""
        slope = candidates.crop(slope)
        if not self.joint:
            own = candidates.crop(self.planes)
            slope = own * (slope - (own * slope).sum(1, keepdim=True))
        return slope * -candidates.plan.scale


def paste_share(q_size: Size, plan: ReadPlan, like: Tensor) -> Tensor:
    """1 / the number of patches that overlap at each query pixel, or 1 / fold_divisor: (Yq, Xq)."""
    if plan.fold_divisor is not None:
        return like.new_full(q_size, 1 / plan.fold_divisor)
    counts = []
    for side in q_size:
        place = torch.arange(side, device=like.device)
        counts.append((place + plan.half).clamp_max(side - 1) - (place - plan.half).clamp_min(0) + 1)
    return 1 / (counts[0].unsqueeze(1) * counts[1]).to(like.dtype)


def read_out(matches: Tensor, costs: Tensor, v: Tensor, q_size: Size, plan: ReadPlan) -> tuple[Tensor, Kept]:
    """Values of the queries, and what backward needs of them.

    Args:
        matches: (N, K, Yq * Xq) flat key pixels.
        costs: (N, K, Yq * Xq).
        v: (N, E, Yk, Xk).

    Returns:
        (N, E, Yq, Xq) in the dtype of `v`; and what to keep.
    """
    candidates = Candidates(matches, q_size, Size(*v.shape[2:]), plan)
    values = channels_last(v)  # (N * n_k, E)
    weighting = Weighting(candidates, costs.to(values.dtype))
    lse = weighting.normalise(candidates) if weighting.joint else None
    out = values.new_zeros(v.shape[0] * q_size.area, v.shape[1])
    read = torch.empty_like(out)
    for candidate in candidates:
        torch.index_select(values, 0, candidate.place, out=read)
        out.addcmul_(read, weighting.weights(candidate, lse).reshape(-1, 1))
    del values, read
    brought = channels_first(out, v.shape[0], q_size, v.dtype)
    return brought, Kept(brought if weighting.joint else None, lse)


def read_gradients(
    matches: Tensor, costs: Tensor, v: Tensor, q_size: Size, plan: ReadPlan, kept: Kept, grad: Tensor, wanted: Wanted
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the costs (N, K, Yq * Xq) and of v (N, E, Yk, Xk), where they are wanted.

    Args:
        kept: what `read_out` returned, for "aggregate".
        grad: (N, E, Yq, Xq), the gradient that reaches the output.
        wanted: whether the gradients of costs and of v are.
    """
    candidates = Candidates(matches, q_size, Size(*v.shape[2:]), plan)
    arrived = channels_last(grad)  # (N * n_q, E)
    weighting = Weighting(candidates, costs.to(arrived.dtype))
    values = channels_last(v) if wanted[0] and steers(plan, matches.shape[1]) else None
    grad_v = arrived.new_zeros(v.shape[0] * candidates.kv_size.area, v.shape[1]) if wanted[1] else None
    slope = torch.zeros_like(weighting.planes)  # of the weights: joint ones, or each source's own
    brought = None if kept.out is None else (channels_last(kept.out) * arrived).sum(1).view(-1, *q_size)
    scratch = torch.empty_like(arrived)
    for candidate in candidates:
        weights = weighting.weights(candidate, kept.lse)
        if values is not None:
            torch.index_select(values, 0, candidate.place, out=scratch)
            part = scratch.mul_(arrived).sum(1).view(-1, *q_size)
            if brought is not None:
                slope[candidate.source] += part.sub_(brought).mul_(weights)
            else:
                slope[candidate.source] += weighting.shared(part, candidate)
        if grad_v is not None:
            torch.mul(arrived, weights.reshape(-1, 1), out=scratch)
            grad_v.index_add_(0, candidate.place, scratch)
    del values, arrived, scratch
    for_costs = weighting.cost_gradient(candidates, slope).to(costs.dtype) if wanted[0] else None
    if grad_v is None:
        return for_costs, None
    return for_costs, channels_first(grad_v, v.shape[0], candidates.kv_size, v.dtype)


def steers(plan: ReadPlan, matches: int) -> bool:
    """Whether the costs of so many matches change the output at all: the softmax of one entry is 1."""
    return plan.readout == "aggregate" or matches > 1


def read_reference(matches: Tensor, costs: Tensor, v: Tensor, q_size: Size, plan: ReadPlan) -> Tensor:
    """`read_out` in plain differentiable PyTorch: all weights beside each other, (N, candidates, n_q)."""
    candidates = Candidates(matches, q_size, Size(*v.shape[2:]), plan)
    values = at_least_float32(v).permute(0, 2, 3, 1).flatten(0, 2)
    weighting, listed = Weighting(candidates, costs.to(values.dtype)), list(candidates)
    if weighting.joint:
        weights = torch.softmax(torch.stack([weighting.logits(candidate) for candidate in listed]), 0).unbind()
    else:
        weights = tuple(weighting.weights(candidate, None) for candidate in listed)
    out = values.new_zeros(())
    for candidate, weight in zip(listed, weights, strict=True):
        out = out + values[candidate.place] * weight.reshape(-1, 1)
    return channels_first(out, v.shape[0], q_size, v.dtype)


def weights_of(
    picked: Tensor, matches: Tensor, costs: Tensor, q_size: Size, kv_size: Size, plan: ReadPlan
) -> tuple[Tensor, Tensor]:
    """Keys and weights of the candidates of the flat query pixels `picked` (Q,): (N, Q, K') each."""
    candidates = Candidates(matches, q_size, kv_size, plan)
    weighting = Weighting(candidates, costs)
    places, parts = [], []
    for candidate in candidates:
        places.append(candidate.place.view(-1, q_size.area)[:, picked] % kv_size.area)
        part = weighting.logits(candidate) if weighting.joint else weighting.weights(candidate, None)
        parts.append(part.flatten(1)[:, picked])
    weights = torch.stack(parts, 2)
    return torch.stack(places, 2), torch.softmax(weights, 2) if weighting.joint else weights


def channels_last(maps: Tensor) -> Tensor:
    """(N, C, Y, X) -> (N * Y * X, C), contiguous, in at least float32."""
    return at_least_float32(maps).permute(0, 2, 3, 1).reshape(-1, maps.shape[1]).contiguous()


def channels_first(pixels: Tensor, count: int, size: Size, dtype: torch.dtype) -> Tensor:
    """(N * Y * X, C) -> (N, C, Y, X), contiguous."""
    return pixels.view(count, *size, -1).permute(0, 3, 1, 2).to(dtype).contiguous()
