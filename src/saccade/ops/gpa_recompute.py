"""Phase 2 of grid-partitioned attention without its memory: a chunk of cells at a time, recomputed in backward.

What stays for backward is q, k, v, the chosen indices and the mask. See `gpa_layout` for how keys are gathered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from saccade.ops.dispatch import Score, once_differentiable
from saccade.ops.gpa_cells import Grid
from saccade.ops.gpa_layout import (
    CellChunks,
    Chosen,
    KeyPlanes,
    KeyStrips,
    MapPool,
    QueryCells,
    Scratch,
    gathered_map,
    new_map,
)
from saccade.ops.inputs import at_least_float32, no_autocast, softmax_


def recompute(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    grid: Grid,
    score: Score,
    scale: float,
    key_mask: Tensor | None,
) -> Tensor:
    """Attention of every cell to the blocks in `indices` (B, G, cells, kappa): see `gpa_attention`."""
    apply = cast(Any, _RecomputedAttention).apply
    return cast(Tensor, apply(q, k, v, indices, key_mask, grid, score, scale))


class _RecomputedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        indices: Tensor,
        key_mask: Tensor | None,
        grid: Grid,
        score: Score,
        scale: float,
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, indices, key_mask)
        ctx.options = (grid, score, scale)
        with no_autocast(q.device):
            return _CellAttention(q, k, v, indices, key_mask, grid, score, scale).output()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, indices, key_mask = ctx.saved_tensors
        with torch.no_grad(), no_autocast(q.device):
            grads = _Gradients(_CellAttention(q, k, v, indices, key_mask, *ctx.options), grad).compute()
        marked = once_differentiable("gpa's recompute kernel", grads, (grad, q, k, v))
        return *marked, None, None, None, None, None


class _CellAttention:
    """The attention of some cells at a time, from q, k, v and the chosen indices."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        indices: Tensor,
        key_mask: Tensor | None,
        grid: Grid,
        score: Score,
        scale: float,
    ) -> None:
        self.score, self.scale = score, scale
        self.q, self.k, self.v = q, k, v
        self.cells = CellChunks(indices, grid)
        self.grid = self.cells.grid
        self.scratch, self.pool = Scratch(q), MapPool()
        self._factor = scale if score == "dot" else 2 * scale
        self._masked = key_mask is not None
        self._bias = self._key_bias(key_mask)

    def _key_bias(self, key_mask: Tensor | None) -> KeyStrips | None:
        """What is added to a key's logits: -scale |k|^2 of the squared distance, -inf where masked."""
        bias: Tensor | None = None
        if self.score == "l2":
            bias = at_least_float32(self.k).square().sum(2, keepdim=True).mul_(-self.scale)  # (B, G, 1, Y, X)
        if key_mask is not None:
            if bias is None:
                bias = torch.zeros_like(at_least_float32(self.k[:, :, :1]))
            bias = bias.masked_fill(~key_mask.unsqueeze(2), float("-inf"))
        return None if bias is None else KeyStrips.of(bias, self.grid, self.pool)

    def chunks(self, one_map: bool = False) -> Iterator[Chosen]:
        """All cells with their chosen keys, as many at a time as the working memory takes."""
        return self.cells.within(max(self.k.shape[2], self.v.shape[2]), one_map)

    def weights(self, chosen: Chosen, queries: Tensor, keys: Tensor) -> Tensor:
        """Attention weights (n, Q, L) of (n, Q, D) queries for (n, L, D) keys."""
        logits = self.scaled(queries, keys.transpose(1, 2), "weights")
        if self._bias is None:
            return softmax_(logits)
        bias = self._bias.read(chosen, self.scratch, "bias").transpose(1, 2)  # (n, 1, L)
        if not self._masked:
            return softmax_(logits.add_(bias))
        dead = (bias == float("-inf")).all(2, keepdim=True)
        return softmax_(logits.add_(bias.masked_fill_(dead, 0))).masked_fill_(dead, 0)

    def product(self, left: Tensor, right: Tensor, name: str) -> Tensor:
        """The batched product, in the scratch memory of that name."""
        return torch.bmm(left, right, out=self.scratch.take(name, left.shape[0], left.shape[1], right.shape[2]))

    def scaled(self, left: Tensor, right: Tensor, name: str) -> Tensor:
        """The batched product times the factor of the score, in the scratch memory of that name."""
        out = self.scratch.take(name, left.shape[0], left.shape[1], right.shape[2])
        return torch.baddbmm(out, left, right, beta=0, alpha=self._factor, out=out)

    def output(self) -> Tensor:
        """(B, G, E, Yq, Xq)."""
        grid, scratch = self.grid, self.scratch
        keys, values = KeyStrips.of(self.k, grid, self.pool), KeyStrips.of(self.v, grid, self.pool)
        queries = QueryCells(self.q, grid)
        out = QueryCells(new_map(self.q, self.v.shape[2], self.pool), grid)
        for chosen in self.chunks():
            read = queries.read(chosen.chunk, scratch, "queries")
            weights = self.weights(chosen, read, keys.read(chosen, scratch, "keys"))
            brought = self.product(weights, values.read(chosen, scratch, "keys"), "queries")  # both have served
            out.write(chosen.chunk, brought)
        return out.maps


class _Gradients:
    """Gradients of q, k and v, all in one pass over the cells."""

    def __init__(self, attention: _CellAttention, grad: Tensor) -> None:
        self._attention = attention
        q, k, v, grid, pool = attention.q, attention.k, attention.v, attention.grid, attention.pool
        self._queries, self._grad = QueryCells(q, grid), QueryCells(grad, grid)
        self._keys, self._values = gathered_map(k, grid, pool), gathered_map(v, grid, pool)
        self._dq = QueryCells(new_map(q, q.shape[2], pool), grid)
        self._dk, self._dv = KeyStrips.zeros(k, grid, pool), KeyStrips.zeros(v, grid, pool)
        self._columns: KeyStrips | None = None  # sums over queries of the gradient of the logits
        if attention.score == "l2":
            self._columns = KeyStrips.zeros(k[:, :, :1], grid, pool)

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """(dq, dk, dv), each in the memory order of its map."""
        attention = self._attention
        for chosen in attention.chunks(
            one_map=isinstance(self._keys, KeyPlanes) or isinstance(self._values, KeyPlanes)
        ):
            self._add(chosen)
        attention.scratch.clear()
        for copied in (self._keys, self._values):
            copied.release(attention.pool)
        return self._dq.maps, self._key_gradient(), self._dv.to_map(attention.v, attention.pool)

    def _add(self, chosen: Chosen) -> None:
        attention, scratch, chunk = self._attention, self._attention.scratch, chosen.chunk
        queries = self._queries.read(chunk, scratch, "queries")  # (n, Q, D)
        keys = self._keys.read(chosen, scratch, "keys")  # (n, L, D)
        weights = attention.weights(chosen, queries, keys)  # (n, Q, L)
        grad = self._grad.read(chunk, scratch, "grad")  # (n, Q, E)
        self._dv.add(chosen, attention.product(weights.transpose(1, 2), grad, "spread"))
        values = self._values.read(chosen, scratch, "values")  # (n, L, E)
        slope = attention.product(grad, values.transpose(1, 2), "slope").mul_(weights)
        slope.addcmul_(weights, slope.sum(2, keepdim=True), value=-1)  # (n, Q, L), gradient of the logits
        dq = attention.scaled(keys.transpose(1, 2), slope.transpose(1, 2), "grad")  # (n, D, Q); the gradient has served
        self._dq.write(chunk, dq.transpose(1, 2))
        self._dk.add(chosen, attention.scaled(slope.transpose(1, 2), queries, "spread"))
        if self._columns is not None:
            self._columns.add(chosen, slope.sum(1))

    def _key_gradient(self) -> Tensor:
        attention = self._attention
        gradient = self._dk.to_map(attention.k, attention.pool)
        if self._columns is not None:  # of -|q - k|^2 the queries brought 2 q so far; the keys' own share is -2 k
            columns = self._columns.to_map(at_least_float32(attention.k[:, :, :1]), attention.pool)
            gradient.addcmul_(columns.to(gradient.dtype), attention.k, value=-2 * attention.scale)
        return gradient
