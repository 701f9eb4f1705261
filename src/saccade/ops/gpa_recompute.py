"""Phase 2 of grid-partitioned attention without its memory: a chunk of cells at a time, recomputed in backward.

What stays for backward is q, k, v, the chosen indices and the mask. Keys and values are laid out pixel by pixel, so
that a block of d x d keys is d contiguous strips of d pixels and a gather copies strips.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from saccade.ops.dispatch import Score, once_differentiable
from saccade.ops.gpa_cells import Grid
from saccade.ops.gpa_layout import CellChunks, Chunk, KeyStrips, MapPool, QueryCells, Scratch, new_map
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
            attention = _CellAttention(q, k, indices, key_mask, grid, score, scale)
            return attention.output(v)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, indices, key_mask = ctx.saved_tensors
        with torch.no_grad(), no_autocast(q.device):
            attention = _CellAttention(q, k, indices, key_mask, *ctx.options)
            grads = _Gradients(attention, v, grad).compute()
        marked = once_differentiable("gpa's recompute kernel", grads, (grad, q, k, v))
        return *marked, None, None, None, None, None


class _CellAttention:
    """The attention weights of some cells at a time, from q, k and the chosen indices."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        indices: Tensor,
        key_mask: Tensor | None,
        grid: Grid,
        score: Score,
        scale: float,
    ) -> None:
        self.score, self.scale = score, scale
        self.q, self.k = q, k
        self.factor = scale if score == "dot" else 2 * scale
        self.chunks = CellChunks(indices, grid)
        self.grid = self.chunks.grid
        self.scratch, self.pool = Scratch(q), MapPool()
        self._queries = QueryCells(q, self.grid)
        self._keys = KeyStrips.of(k, self.grid, self.pool)
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

    def queries(self, chunk: Chunk) -> Tensor:
        """(n, Q, D)."""
        return self._queries.read(chunk, self.scratch, "queries")

    def keys(self, strips: Tensor) -> Tensor:
        """(n, L, D)."""
        return self._keys.read(strips, self.scratch, "keys")

    def release_keys(self) -> None:
        """Let go of the pixel-major keys: neither they nor the weights can be read after."""
        self._keys.release(self.pool)
        del self._keys

    def weights(self, chunk: Chunk, strips: Tensor) -> Tensor:
        """Attention weights (n, Q, L)."""
        logits = self.scaled(self.queries(chunk), self.keys(strips).transpose(1, 2), "weights")
        if self._bias is None:
            return softmax_(logits)
        bias = self._bias.read(strips, self.scratch, "bias").transpose(1, 2)  # (n, 1, L)
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
        return torch.baddbmm(out, left, right, beta=0, alpha=self.factor, out=out)

    def output(self, v: Tensor) -> Tensor:
        """(B, G, E, Yk, Xk) values -> (B, G, E, Yq, Xq)."""
        values = KeyStrips.of(v, self.grid, self.pool)
        out = QueryCells(new_map(self.q, v.shape[2], self.pool), self.grid)
        for chunk in self.chunks.within(max(self.k.shape[2], v.shape[2])):
            strips = self.chunks.strips(chunk)
            weights = self.weights(chunk, strips)
            gathered = values.read(strips, self.scratch, "keys")  # the keys have served, and so have the queries
            out.write(chunk, self.product(weights, gathered, "queries"))
        return out.maps


class _Gradients:
    """Gradients of q, k and v, by three passes over the cells: values, queries, keys.

    Between the passes the gradient of the logits is kept where it is smaller than the maps that a single pass would
    need beside each other; else one pass does all.
    """

    def __init__(self, attention: _CellAttention, v: Tensor, grad: Tensor) -> None:
        self._attention, self._v = attention, v
        self._grid, self._scratch, self._pool = attention.grid, attention.scratch, attention.pool
        self._grad = QueryCells(grad, attention.grid)
        self._columns: KeyStrips | None = None  # sums over queries of the gradient of the logits
        if attention.score == "l2":
            self._columns = KeyStrips.zeros(attention.k[:, :, :1], attention.grid, MapPool())

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """(dq, dk, dv), each in the memory order of its map."""
        channels = self._attention.k.shape[2] + self._v.shape[2]
        if self._grid.keys * self._grid.q_size.area < channels * self._grid.kv_size.area:
            return self._in_turn()
        return self._together()

    def _chunks(self) -> list[Chunk]:
        return self._attention.chunks.within(max(self._attention.k.shape[2], self._v.shape[2]))

    def _in_turn(self) -> tuple[Tensor, Tensor, Tensor]:
        attention, pool = self._attention, self._pool
        strips = attention.chunks.strips
        chunks = self._chunks()
        cells = [attention.chunks.number(chunk) for chunk in chunks]
        slopes = self._scratch.take("slopes", sum(cells), self._grid.cell.area, self._grid.keys).split_with_sizes(cells)
        values, dv_strips = KeyStrips.of(self._v, self._grid, pool), KeyStrips.zeros(self._v, self._grid, pool)
        for chunk, slope in zip(chunks, slopes, strict=True):
            self._values_pass(chunk, strips(chunk), values, dv_strips, slope)
        values.release(pool)
        dv = dv_strips.to_map(self._v, pool)
        dq = QueryCells(new_map(attention.q, attention.q.shape[2], pool), self._grid)
        for chunk, slope in zip(chunks, slopes, strict=True):
            self._queries_pass(chunk, strips(chunk), slope, dq)
        attention.release_keys()
        dk_strips = KeyStrips.zeros(attention.k, self._grid, pool)
        for chunk, slope in zip(chunks, slopes, strict=True):
            self._keys_pass(chunk, strips(chunk), slope, dk_strips)
        del slope, slopes  # before the last map is made
        self._scratch.clear()
        return dq.maps, self._key_gradient(dk_strips), dv

    def _together(self) -> tuple[Tensor, Tensor, Tensor]:
        attention, pool = self._attention, self._pool
        values, dv_strips = KeyStrips.of(self._v, self._grid, pool), KeyStrips.zeros(self._v, self._grid, pool)
        dq = QueryCells(new_map(attention.q, attention.q.shape[2], pool), self._grid)
        dk_strips = KeyStrips.zeros(attention.k, self._grid, pool)
        for chunk in self._chunks():
            strips = attention.chunks.strips(chunk)
            slope = self._scratch.take("slopes", attention.chunks.number(chunk), self._grid.cell.area, self._grid.keys)
            self._values_pass(chunk, strips, values, dv_strips, slope)
            self._queries_pass(chunk, strips, slope, dq)
            self._keys_pass(chunk, strips, slope, dk_strips)
        values.release(pool)
        attention.release_keys()
        dv = dv_strips.to_map(self._v, pool)
        return dq.maps, self._key_gradient(dk_strips), dv

    def _values_pass(self, chunk: Chunk, strips: Tensor, values: KeyStrips, dv: KeyStrips, slope: Tensor) -> None:
        """Add to the gradient of v; leaves the gradient of the logits (n, Q, L) in `slope`."""
        attention = self._attention
        weights = attention.weights(chunk, strips)
        grad = self._grad.read(chunk, self._scratch, "queries")  # (n, Q, E); the queries have served
        dv.add(strips, attention.product(weights.transpose(1, 2), grad, "spread"))
        gathered = values.read(strips, self._scratch, "keys")  # (n, L, E)
        torch.bmm(grad, gathered.transpose(1, 2), out=slope).mul_(weights)
        slope.addcmul_(weights, slope.sum(2, keepdim=True), value=-1)

    def _queries_pass(self, chunk: Chunk, strips: Tensor, slope: Tensor, dq: QueryCells) -> None:
        attention = self._attention
        dq.write(chunk, attention.scaled(slope, attention.keys(strips), "queries"))

    def _keys_pass(self, chunk: Chunk, strips: Tensor, slope: Tensor, dk: KeyStrips) -> None:
        attention = self._attention
        dk.add(strips, attention.scaled(slope.transpose(1, 2), attention.queries(chunk), "spread"))
        if self._columns is not None:
            self._columns.add(strips, slope.sum(1))

    def _key_gradient(self, strips: KeyStrips) -> Tensor:
        attention, pool = self._attention, self._pool
        gradient = strips.to_map(attention.k, pool)
        if self._columns is not None:  # of -|q - k|^2 the queries brought 2 q so far; the keys' own share is -2 k
            columns = self._columns.to_map(at_least_float32(attention.k[:, :, :1]), MapPool())
            gradient.addcmul_(columns.to(gradient.dtype), attention.k, value=-2 * attention.scale)
        return gradient
