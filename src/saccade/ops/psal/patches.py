"""Costs of chosen pairs of patches, and their gradients, without unfolding the maps.

A map is copied once to channels-last with a ring of zeros as wide as half a patch. The p pixels of a patch row are then
one run of p * D numbers, so the cost of a pair is read in p runs. See `saccade.ops.patches` for what a patch is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saccade.ops.dispatch import Score
from saccade.ops.inputs import at_least_float32
from saccade.ops.patches import SHORTEST, box_sum, patch_length

# Ours: numbers in the scratch memory that gathered patch rows take, so that they stay in the cache.
SCRATCH = {"cpu": 2**18, "other": 2**22}


def scratch_numbers(device: torch.device) -> int:
    return SCRATCH["cpu" if device.type == "cpu" else "other"]


class PaddedMap:
    """(N, C, Y, X) as channels-last with a ring of zeros `half` wide, in at least float32."""

    def __init__(self, maps: Tensor, half: int) -> None:
        count, self.channels, self.rows, self.cols = maps.shape
        self.half = half
        self.width = self.cols + 2 * half
        self.height = self.rows + 2 * half
        dtype = at_least_float32(maps[:0]).dtype
        self.data = torch.zeros(count, self.height, self.width, self.channels, dtype=dtype, device=maps.device)
        self.inner.copy_(maps.permute(0, 2, 3, 1))

    @property
    def inner(self) -> Tensor:
        """The map without its ring, (N, Y, X, C)."""
        half = self.half
        return self.data[:, half : half + self.rows, half : half + self.cols]

    @property
    def pixels(self) -> Tensor:
        """All pixels, the ring's too: (N * height * width, C)."""
        return self.data.view(-1, self.channels)

    def runs(self, length: int) -> Tensor:
        """All runs of `length` pixels of a row, overlapping: (starts, length * C); a view."""
        total = self.data.shape[0] * self.height * self.width
        return self.data.as_strided((total - length + 1, length * self.channels), (self.channels, 1))

    def corner(self, pixels: Tensor) -> Tensor:
        """Where the patch of a pixel starts in `pixels`: n * Y * X + row * X + col (int64) -> the same shape."""
        rows = pixels // self.cols  # n * Y + row
        batch = rows // self.rows
        return (rows + batch * 2 * self.half) * self.width + (pixels - rows * self.cols)

    def like(self) -> PaddedMap:
        """A map of zeros of the same layout."""
        other = PaddedMap.__new__(PaddedMap)
        other.__dict__.update(self.__dict__)
        other.data = torch.zeros_like(self.data)
        return other

    def unpadded(self, dtype: torch.dtype) -> Tensor:
        """Back to (N, C, Y, X)."""
        return self.inner.permute(0, 3, 1, 2).to(dtype, memory_format=torch.contiguous_format, copy=True)


class PatchPairs:
    """Costs of pairs of patches: (N, D, Yq, Xq) queries and (N, D, Yk, Xk) keys.

    l2: the sum of squared differences; dot: -q.k; cosine: -q.k / (|q| |k|); unit_key: -q.k / |k|, lengths being at
    least `patches.SHORTEST`.
    """

    def __init__(self, q: Tensor, k: Tensor, patch_size: int, score: Score) -> None:
        self.patch_size, self.score = patch_size, score
        self.q, self.k = PaddedMap(q, patch_size // 2), PaddedMap(k, patch_size // 2)
        self.inverse_q = inverse_length(q, patch_size).flatten() if score == "cosine" else None
        self.inverse_k = inverse_length(k, patch_size).flatten() if score in ("cosine", "unit_key") else None
        width = patch_size * self.q.channels
        self._rows = max(1, scratch_numbers(q.device) // width)
        self._scratch = self.q.data.new_empty(2, self._rows * width)

    def costs(self, queries: Tensor, keys: Tensor, limits: Tensor | None = None) -> Tensor:
        """Costs of the pairs (queries[i], keys[i]), both (M,) int64, n * rows * cols + pixel of their maps: (M,).

        A pair whose cost is not below its entry of `limits` (M,) may come back as infinity.
        """
        out = self.q.data.new_empty(queries.shape[0])
        for start in range(0, queries.shape[0], self._rows):
            span = slice(start, start + self._rows)
            if self.score != "l2":
                out[span] = self._products(queries[span], keys[span]).neg_()
            elif limits is None or out.device.type != "cpu":
                out[span] = self._distances(self.q.corner(queries[span]), self.k.corner(keys[span]), self.patch_size)
            else:
                out[span] = self._distances_below(queries[span], keys[span], limits[span])
        return out

    def _read(self, starts_q: Tensor, starts_k: Tensor, row: int) -> tuple[Tensor, Tensor]:
        count, width = starts_q.shape[0], self.patch_size * self.q.channels
        queries, keys = (x[: count * width].view(count, width) for x in self._scratch)
        torch.index_select(self.q.runs(self.patch_size), 0, starts_q + row * self.q.width, out=queries)
        torch.index_select(self.k.runs(self.patch_size), 0, starts_k + row * self.k.width, out=keys)
        return queries, keys

    def _products(self, queries: Tensor, keys: Tensor) -> Tensor:
        starts_q, starts_k = self.q.corner(queries), self.k.corner(keys)
        total = self.q.data.new_zeros(queries.shape[0])
        for row in range(self.patch_size):
            left, right = self._read(starts_q, starts_k, row)
            total += left.mul_(right).sum(1)
        if self.inverse_k is not None:
            total *= self.inverse_k[keys]
        if self.inverse_q is not None:
            total *= self.inverse_q[queries]
        return total

    def _distances(self, starts_q: Tensor, starts_k: Tensor, stop: int, first: int = 0) -> Tensor:
        total = self.q.data.new_zeros(starts_q.shape[0])
        for row in range(first, stop):
            left, right = self._read(starts_q, starts_k, row)
            total += left.sub_(right).square_().sum(1)
        return total

    def _distances_below(self, queries: Tensor, keys: Tensor, limits: Tensor) -> Tensor:
        """Distances, leaving a pair aside as soon as the rows read so far exceed its limit."""
        starts_q, starts_k = self.q.corner(queries), self.k.corner(keys)
        out = torch.full_like(limits, float("inf"))
        alive = torch.arange(queries.shape[0], device=queries.device)
        total = torch.zeros_like(limits)
        for row in range(self.patch_size):
            left, right = self._read(starts_q, starts_k, row)
            total += left.sub_(right).square_().sum(1)
            if row in (0, 1, 3):
                keep = (total < limits).nonzero().squeeze(1)
                if keep.shape[0] < total.shape[0]:
                    alive, total, limits = alive[keep], total[keep], limits[keep]
                    starts_q, starts_k = starts_q[keep], starts_k[keep]
        out[alive] = total
        return out


def inverse_length(maps: Tensor, patch_size: int) -> Tensor:
    """1 / the length of each pixel's patch, the length at least SHORTEST: (N, D, Y, X) -> (N, Y * X)."""
    return patch_length(maps.unsqueeze(1), patch_size).flatten(1).reciprocal()


def given_costs(q: Tensor, k: Tensor, matches: Tensor, patch_size: int, score: Score) -> Tensor:
    """Costs of given matches: (N, D, Yq, Xq), (N, D, Yk, Xk), (N, K, n_q) flat key pixels -> (N, K, n_q)."""
    pairs = PatchPairs(q, k, patch_size, score)
    count, pixels = q.shape[0], q.shape[2] * q.shape[3]
    queries = torch.arange(count * pixels, device=q.device)
    first = torch.arange(count, device=q.device)[:, None] * (k.shape[2] * k.shape[3])
    rows = [pairs.costs(queries, (row.long() + first).flatten()) for row in matches.unbind(1)]
    return torch.stack([row.view(count, pixels) for row in rows], 1)


def cost_gradients(
    q: Tensor, k: Tensor, matches: Tensor, costs: Tensor, grad: Tensor, patch_size: int, score: Score
) -> tuple[Tensor, Tensor]:
    """Gradients of the costs of given matches.

    Args:
        q: (N, D, Yq, Xq).
        k: (N, D, Yk, Xk).
        matches: (N, K, Yq * Xq), flat key pixels.
        costs: (N, K, Yq * Xq), the matches' costs.
        grad: (N, K, Yq * Xq), the gradient that reaches the costs.

    Returns:
        Gradients of q and k, in their shapes and dtype.
    """
    padded_q, padded_k = PaddedMap(q, patch_size // 2), PaddedMap(k, patch_size // 2)
    grad_q, grad_k = padded_q.like(), padded_k.like()
    factor = cross_factor(q, k, matches, grad, patch_size, score)  # (N, K, Yq * Xq)
    rows = max(1, scratch_numbers(q.device) // (padded_q.cols * padded_q.channels))
    for entry in range(q.shape[0]):
        for start in range(0, padded_q.rows, rows):
            span = (start, min(start + rows, padded_q.rows))
            _add_cross_terms(padded_q, padded_k, grad_q, grad_k, matches, factor, entry, span, patch_size, score)
    if score in ("cosine", "unit_key"):
        add_length_terms(padded_q, padded_k, grad_q, grad_k, matches, costs * grad, q, k, patch_size, score)
    del padded_q, padded_k
    return grad_q.unpadded(q.dtype), grad_k.unpadded(k.dtype)


def cross_factor(q: Tensor, k: Tensor, matches: Tensor, grad: Tensor, patch_size: int, score: Score) -> Tensor:
    """What the product of a query's and its match's pixels is weighted by in the gradient."""
    if score == "l2":
        return grad * -2
    if score == "dot":
        return grad.neg()
    inverse = inverse_length(k, patch_size).unsqueeze(1).expand(-1, matches.shape[1], -1)
    factor = inverse.gather(2, matches.long()).mul_(grad).neg_()
    return factor if score == "unit_key" else factor * inverse_length(q, patch_size).unsqueeze(1)


def _add_cross_terms(
    q: PaddedMap,
    k: PaddedMap,
    grad_q: PaddedMap,
    grad_k: PaddedMap,
    matches: Tensor,
    factor: Tensor,
    entry: int,
    span: tuple[int, int],
    patch_size: int,
    score: Score,
) -> None:
    """Add the part of one batch entry and of a span of query rows: l2 of differences, the others of products."""
    start, stop = span
    flat = slice(start * q.cols, stop * q.cols)
    shape = (stop - start, q.cols, q.channels)
    gathered = q.data.new_empty(shape[0] * shape[1], q.channels)
    for match in range(matches.shape[1]):
        corners = k.corner(matches[entry, match, flat].long() + entry * k.rows * k.cols)
        weight = factor[entry, match, flat].unsqueeze(1)
        for row in range(patch_size):
            for col in range(patch_size):
                place = corners + (row * k.width + col)
                window = (entry, slice(start + row, stop + row), slice(col, col + q.cols))
                torch.index_select(k.pixels, 0, place, out=gathered)
                if score == "l2":
                    torch.sub(q.data[window].reshape(gathered.shape), gathered, out=gathered).mul_(weight)
                    grad_k.pixels.index_add_(0, place, gathered)  # alpha=-1 takes four times as long
                    grad_q.data[window] -= gathered.view(shape)
                else:
                    grad_q.data[window] += gathered.mul_(weight).view(shape)
                    torch.mul(q.data[window].reshape(gathered.shape), weight, out=gathered)
                    grad_k.pixels.index_add_(0, place, gathered)


def add_length_terms(
    q: PaddedMap,
    k: PaddedMap,
    grad_q: PaddedMap,
    grad_k: PaddedMap,
    matches: Tensor,
    weighted: Tensor,
    q_map: Tensor,
    k_map: Tensor,
    patch_size: int,
    score: Score,
) -> None:
    """Add what comes through the lengths: -cost * gradient / |patch|^2 times the patch, where that is not clamped."""
    inverse = inverse_length(k_map, patch_size)  # (N, n_k)
    pull = torch.zeros_like(inverse).scatter_add_(1, matches.flatten(1).long(), weighted.flatten(1).neg())
    _add_self_terms(k, grad_k, pull, inverse, patch_size)
    if score == "cosine":
        _add_self_terms(q, grad_q, weighted.sum(1).neg(), inverse_length(q_map, patch_size), patch_size)


def _add_self_terms(maps: PaddedMap, grads: PaddedMap, pull: Tensor, inverse: Tensor, patch_size: int) -> None:
    pull = torch.where(inverse < 1 / SHORTEST, pull * inverse.square(), 0)  # a clamped length is a constant
    spread = box_sum(pull.view(-1, 1, maps.rows, maps.cols), patch_size).permute(0, 2, 3, 1)  # (N, Y, X, 1)
    grads.inner.addcmul_(maps.inner, spread)
