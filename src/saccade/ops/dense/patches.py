"""Dense attention between patches without their vectors: bands of query rows against bands of key rows.

A patch of p x p pixels is p * p times its memory as a vector; here the vectors of a few rows exist at a time, and a
running softmax joins the bands of keys. Backward makes vectors and weights anew from the maps, the output and the
logarithm of the softmax sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.geometry import Size
from saccade.ops.dense.chunked import add_product
from saccade.ops.dense.keys import KeyGrid
from saccade.ops.dispatch import Score, once_differentiable
from saccade.ops.inputs import LOG2_E, at_least_float32, no_autocast
from saccade.ops.patches import SHORTEST

# Ours: entries of the score chunk that is held at a time; a few of them exist at once.
SCORE_ENTRIES = {"cpu": 2**22, "other": 2**25}
# Ours: entries of the patch vectors of one band.
VECTOR_ENTRIES = {"cpu": 2**21, "other": 2**26}


def patch_attention(
    q: Tensor, k: Tensor, v: Tensor, grid: KeyGrid, patch_size: int, score: Score, scale: float, allowed: Tensor | None
) -> Tensor:
    """Attention of patches of (B*G, D, Yq, Xq) to those of (B*G, D, Yk, Xk) at the keys of `grid`.

    Args:
        q, k: maps.
        v: values at the keys, (B*G, E, keys).
        grid: which pixels are keys.
        patch_size: p.
        score: any.
        scale: factor on the score.
        allowed: (B*G, keys) bool, True = may be attended; None is all.

    Returns:
        (B*G, E, Yq * Xq).
    """
    return cast(Tensor, cast(Any, _PatchAttention).apply(q, k, v, allowed, grid, patch_size, score, scale))


class _PatchAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        allowed: Tensor | None,
        grid: KeyGrid,
        patch_size: int,
        score: Score,
        scale: float,
    ) -> Tensor:
        with no_autocast(q.device):
            bands = _Bands(q, k, v, allowed, grid, patch_size, score, scale)
            out, sums = bands.attend()
        ctx.save_for_backward(q, k, v, allowed, out, sums)
        ctx.options = (grid, patch_size, score, scale)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, allowed, out, sums = ctx.saved_tensors
        with torch.no_grad(), no_autocast(q.device):
            grads = _Bands(q, k, v, allowed, *ctx.options).gradients(grad, out, sums)
        marked = once_differentiable("dense attention's chunked kernel", grads, (grad, q, k, v))
        return *marked, None, None, None, None, None


class _Bands:
    """The two maps as bands of patch vectors, and attention from band to band."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        allowed: Tensor | None,
        grid: KeyGrid,
        patch_size: int,
        score: Score,
        scale: float,
    ) -> None:
        self.v, self.allowed, self.score = v, allowed, score
        self.dtypes = q.dtype, k.dtype
        self.factor = 2 * scale if score == "l2" else scale
        device = "cpu" if q.device.type == "cpu" else "other"
        centre = at_least_float32(k).mean((2, 3), keepdim=True) if score == "l2" else None
        budget = VECTOR_ENTRIES[device] // (q.shape[0] * q.shape[1] * patch_size**2)
        q_grid = KeyGrid(0, 1, Size(*q.shape[2:]), Size(*q.shape[2:]))
        self.queries = _PatchMap(q, q_grid, patch_size, centre, score == "cosine", budget)
        self.keys = _PatchMap(k, grid, patch_size, centre, score in ("cosine", "unit_key"), budget)
        self._rows = max(1, SCORE_ENTRIES[device] // (q.shape[0] * max(self.keys.band_pixels, 1)))

    def spans(self) -> Iterator[tuple[slice, Tensor]]:
        """Queries in scan-line order, as many as the score chunk takes at a time, with their vectors."""
        step = max(1, min(self.queries.rows_at_once, self._rows // self.queries.size.cols))
        yield from self.queries.bands(step)

    def logits(self, queries: Tensor, keys: Tensor, span: slice) -> Tensor:
        """(B*G, V, R) and (B*G, V, S) vectors -> (B*G, R, S) to the base of 2, see `softmax_`.

        What is the same for all keys of a query is left out.
        """
        factor = self.factor * LOG2_E
        logits = torch.bmm((queries * factor).transpose(1, 2), keys)
        if self.score == "l2":
            logits -= (0.5 * factor) * keys.square().sum(1, keepdim=True)
        if self.allowed is not None:
            logits.masked_fill_(~self.allowed[:, None, span], float("-inf"))
        return logits

    def attend(self) -> tuple[Tensor, Tensor]:
        """The output (B*G, E, Q), and the logarithms of the softmax sums (B*G, Q); +inf where there is no key."""
        maps, channels, count = self.v.shape[0], self.v.shape[1], self.queries.size.area
        out = torch.empty(maps, channels, count, dtype=self.v.dtype, device=self.v.device)
        sums = torch.empty(maps, count, dtype=at_least_float32(self.v[:0]).dtype, device=self.v.device)
        for at, queries in self.spans():
            top = sums.new_full((maps, queries.shape[2], 1), float("-inf"))
            total = sums.new_zeros(top.shape)
            brought = sums.new_zeros(maps, queries.shape[2], channels)
            for span, keys in self.keys.bands():
                logits = self.logits(queries, keys, span)
                higher = torch.maximum(top, logits.amax(2, keepdim=True))
                level = higher.masked_fill(higher == float("-inf"), 0)  # no key so far: all its weights are exp(-inf)
                shrink = (top - level).exp2_()
                weights = logits.sub_(level).exp2_()
                total.mul_(shrink).add_(weights.sum(2, keepdim=True))
                values = at_least_float32(self.v[:, :, span]).transpose(1, 2)
                add_product(brought.mul_(shrink), weights, values)
                top = higher
            dead = total == 0
            out[:, :, at] = (brought / total.masked_fill(dead, 1)).transpose(1, 2).to(out.dtype)
            sums[:, at] = (top + total.log2()).masked_fill_(dead, float("inf")).squeeze(2)
        return out, sums

    def gradients(self, grad: Tensor, out: Tensor, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the maps q and k and of the values."""
        dv = torch.zeros_like(self.v, dtype=sums.dtype)
        for at, queries in self.spans():
            grad_out = at_least_float32(grad[:, :, at])  # (B*G, E, R)
            share = (grad_out * out[:, :, at]).sum(1).unsqueeze(2)  # (B*G, R, 1)
            dq = torch.zeros_like(queries)
            for span, keys in self.keys.bands():
                weights = self.logits(queries, keys, span).sub_(sums[:, at].unsqueeze(2)).exp2_()  # (B*G, R, S)
                add_product(dv[:, :, span], grad_out, weights)
                slope = torch.bmm(grad_out.transpose(1, 2), at_least_float32(self.v[:, :, span]))
                slope.sub_(share).mul_(weights)
                add_product(dq, keys, slope.transpose(1, 2))
                dk = torch.bmm(queries, slope)
                if self.score == "l2":
                    dk.addcmul_(keys, slope.sum(1, keepdim=True), value=-1)
                self.keys.add(span, dk.mul_(self.factor))
            self.queries.add(at, dq.mul_(self.factor))
        return self.queries.gradient(self.dtypes[0]), self.keys.gradient(self.dtypes[1]), dv.to(self.v.dtype)


class _PatchMap:
    """A map (B*G, D, Y, X) whose patches at the pixels of `grid` are read and added to as vectors, a band at a time."""

    def __init__(
        self, maps: Tensor, grid: KeyGrid, patch_size: int, centre: Tensor | None, unit: bool, budget: int
    ) -> None:
        half = patch_size // 2
        self.size, self.shape = grid.size, maps.shape
        self._patch, self._step, self._unit = patch_size, grid.step, unit
        self._border = half - grid.first  # zeros around the map that belong to a kept patch
        self._padded = F.pad(at_least_float32(maps), (self._border,) * 4)
        if centre is not None:
            self._padded = self._padded - centre
        self._gradient: Tensor | None = None
        self.rows_at_once = max(1, min(grid.size.rows, budget // grid.size.cols))
        self.band_pixels = self.rows_at_once * grid.size.cols

    def bands(self, rows: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Slices of the flat pixels with their vectors (B*G, D * p * p, pixels)."""
        step = self.rows_at_once if rows is None else rows
        for start in range(0, self.size.rows, step):
            stop = min(start + step, self.size.rows)
            span = slice(start * self.size.cols, stop * self.size.cols)
            vectors = self._vectors(span)
            yield span, vectors / self._lengths(vectors) if self._unit else vectors

    def add(self, span: slice, grad: Tensor) -> None:
        """Add the gradient of a band's vectors to that of the map."""
        if self._unit:
            vectors = self._vectors(span)
            lengths = self._lengths(vectors)
            along = (vectors * grad).sum(1, keepdim=True).div_(lengths.square())
            grad = grad.sub(vectors * along.masked_fill_(lengths <= SHORTEST, 0)).div_(lengths)
        if self._gradient is None:
            self._gradient = torch.zeros_like(self._padded)
        part = self._strip(self._gradient, span)
        part += F.fold(grad, part.shape[2:], self._patch, stride=self._step)

    def gradient(self, dtype: torch.dtype) -> Tensor:
        """What was added so far, as a map."""
        if self._gradient is None:
            return torch.zeros(self.shape, dtype=dtype, device=self._padded.device)
        rows, cols = (slice(self._border, self._border + side) for side in self.shape[2:])
        return self._gradient[:, :, rows, cols].to(dtype)

    def _strip(self, padded: Tensor, span: slice) -> Tensor:
        start, stop = span.start // self.size.cols, span.stop // self.size.cols
        return padded[:, :, start * self._step : (stop - 1) * self._step + self._patch]

    def _vectors(self, span: slice) -> Tensor:
        return F.unfold(self._strip(self._padded, span), self._patch, stride=self._step)

    def _lengths(self, vectors: Tensor) -> Tensor:
        return vectors.square().sum(1, keepdim=True).clamp_min(SHORTEST**2).sqrt()


def patch_points(maps: Tensor, queries: Tensor, patch_size: int) -> Tensor:
    """Patches of a few pixels (Q, 2) of maps (B, G, D, Y, X), zeros outside: (B, G, D * p * p, Q)."""
    half = patch_size // 2
    padded = F.pad(maps, (half,) * 4)
    inside = torch.arange(patch_size, device=maps.device)
    rows = queries[:, 0, None, None] + inside[:, None]
    cols = queries[:, 1, None, None] + inside
    return padded[..., rows, cols].permute(0, 1, 2, 4, 5, 3).flatten(2, 4)
