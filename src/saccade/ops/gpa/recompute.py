"""Phase 2 of grid-partitioned attention without its memory: a chunk of cells at a time, recomputed in backward.

What stays for backward is q, k, v, the chosen indices with their bias, and the mask. How keys are gathered
is in `saccade.ops.gpa.layout`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from saccade.ops.dispatch import Score, once_differentiable
from saccade.ops.gpa.cells import Blocks, Grid, Order, centre_of
from saccade.ops.gpa.layout import (
    CellChunks,
    Chosen,
    Chunk,
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
    q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, score: Score, scale: float, key_mask: Tensor | None
) -> Tensor:
    """Attention of every cell to its blocks, "dot" or "l2": see `gpa_attention`."""
    order = blocks.order or (None, None)
    apply = cast(Any, _RecomputedAttention).apply
    return cast(Tensor, apply(q, k, v, blocks.bias, blocks.indices, key_mask, *order, blocks.grid, score, scale))


class _RecomputedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        indices: Tensor,
        key_mask: Tensor | None,
        query_order: Tensor | None,
        key_order: Tensor | None,
        grid: Grid,
        score: Score,
        scale: float,
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, bias, indices, key_mask, query_order, key_order)
        ctx.options = (grid, score, scale)
        with no_autocast(q.device):
            blocks = _blocks(grid, indices, bias, query_order, key_order)
            return _CellAttention(q, k, v, blocks, key_mask, score, scale).output()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, indices, key_mask, query_order, key_order = ctx.saved_tensors
        grid, score, scale = ctx.options
        with torch.no_grad(), no_autocast(q.device):
            blocks = _blocks(grid, indices, bias, query_order, key_order)
            grads = _Gradients(_CellAttention(q, k, v, blocks, key_mask, score, scale), grad).compute()
        sources = (grad, q, k, v) if bias is None else (grad, q, k, v, bias)
        return *once_differentiable("gpa's recompute kernel", grads, sources), *(None,) * 7


def _blocks(
    grid: Grid, indices: Tensor, bias: Tensor | None, query_order: Tensor | None, key_order: Tensor | None
) -> Blocks:
    order = None if query_order is None or key_order is None else Order(query_order, key_order)
    return Blocks(grid, indices, bias, order)


class _CellAttention:
    """The attention of some cells at a time, from q, k, v and the chosen indices."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        blocks: Blocks,
        key_mask: Tensor | None,
        score: Score,
        scale: float,
    ) -> None:
        self.score, self.scale = score, scale
        self.q, self.k, self.v = q, k, v
        self.blocks = blocks
        self.cells = CellChunks(blocks.indices, blocks.grid)
        self.grid = self.cells.grid
        self.scratch, self.pool = Scratch(q), MapPool()
        self._factor = scale if score == "dot" else 2 * scale
        self._masked = key_mask is not None
        self.centre: Tensor | None = None  # (B, G, D, 1, 1)
        if score == "l2":
            self.centre = centre_of(k, blocks.order)
        self._bias = self._key_bias(key_mask)
        self._places: QueryCells | None = None
        if blocks.order is not None:
            places = blocks.order.queries.expand(*q.shape[:2], 1, *q.shape[3:])
            self._places = QueryCells(places, self.grid)

    def _key_bias(self, key_mask: Tensor | None) -> KeyStrips | None:
        """What is added to a key's logits: -scale |k|^2 of the squared distance, -inf where masked."""
        bias: Tensor | None = None
        if self.centre is not None:
            bias = (at_least_float32(self.k) - self.centre).square_().sum(2, keepdim=True).mul_(-self.scale)
        if key_mask is not None:
            if bias is None:
                bias = torch.zeros_like(at_least_float32(self.k[:, :, :1]))
            bias = bias.masked_fill(~key_mask.unsqueeze(2), float("-inf"))  # (B, G, 1, Y, X)
        return None if bias is None else KeyStrips.of(bias, self.grid, self.pool)

    def chunks(self, one_map: bool = False) -> Iterator[Chosen]:
        """All cells with their chosen keys, as many at a time as the working memory takes."""
        return self.cells.within(max(self.k.shape[2], self.v.shape[2]), one_map)

    def centred(self, chunk: Chunk, vectors: Tensor) -> Tensor:
        """Queries (n, Q, D) or keys (n, L, D) of a chunk in scratch memory, moved to where distances start."""
        if self.centre is None:
            return vectors
        centre = self.centre[chunk.batch, chunk.heads].flatten(2)  # (b, g, D)
        torch.unflatten(vectors, 0, (*centre.shape[:2], -1)).sub_(centre[:, :, None, None])
        return vectors

    def weights(self, chosen: Chosen, queries: Tensor, keys: Tensor) -> Tensor:
        """Attention weights (n, Q, L) of (n, Q, D) queries for (n, L, D) keys."""
        logits = self.scaled(queries, keys.transpose(1, 2), "weights")
        if self.blocks.bias is not None:
            logits += self.cells.of_blocks(self.blocks.bias, chosen.chunk).repeat_interleave(self.grid.factor.area, 1)[
                :, None
            ]
        if self._places is not None and self.blocks.order is not None:
            places = self.blocks.order.keys[chosen.pixels].view(logits.shape[0], 1, -1)
            logits.masked_fill_(places > self._places.part(chosen.chunk), float("-inf"))
        if self._bias is not None:
            logits += self._bias.read(chosen, self.scratch, "bias").transpose(1, 2)  # (n, 1, L)
        if not self._masked:
            return softmax_(logits)
        dead = logits.amax(2, keepdim=True) == float("-inf")
        return softmax_(logits.masked_fill_(dead, 0)).masked_fill_(dead, 0)

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
            read = self.centred(chosen.chunk, queries.read(chosen.chunk, scratch, "queries"))
            weights = self.weights(chosen, read, self.centred(chosen.chunk, keys.read(chosen, scratch, "keys")))
            brought = self.product(weights, values.read(chosen, scratch, "keys"), "queries")  # both have served
            out.write(chosen.chunk, brought)
        return out.maps


class _Gradients:
    """Gradients of q, k, v and of the bias of blocks, all in one pass over the cells."""

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
        bias = attention.blocks.bias
        self._bias = None if bias is None else torch.zeros_like(bias)

    def compute(self) -> tuple[Tensor | None, ...]:
        """(dq, dk, dv), each in the memory order of its map, and the gradient of the bias, if there is one."""
        attention = self._attention
        for chosen in attention.chunks(
            one_map=isinstance(self._keys, KeyPlanes) or isinstance(self._values, KeyPlanes)
        ):
            self._add(chosen)
        attention.scratch.clear()
        for copied in (self._keys, self._values):
            copied.release(attention.pool)
        return self._dq.maps, self._key_gradient(), self._dv.to_map(attention.v, attention.pool), self._bias

    def _add(self, chosen: Chosen) -> None:
        attention, scratch, chunk = self._attention, self._attention.scratch, chosen.chunk
        queries = attention.centred(chunk, self._queries.read(chunk, scratch, "queries"))  # (n, Q, D)
        keys = attention.centred(chunk, self._keys.read(chosen, scratch, "keys"))  # (n, L, D)
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
        if self._bias is not None:
            of_blocks = torch.unflatten(slope.sum(1), 1, (-1, attention.grid.factor.area)).sum(2)  # (n, kappa)
            attention.cells.add_to_blocks(self._bias, chunk, of_blocks)

    def _key_gradient(self) -> Tensor:
        attention = self._attention
        if self._columns is None or attention.centre is None:
            return self._dk.to_map(attention.k, attention.pool)
        # of -|q - k|^2 the queries brought 2 (q - centre) so far; the keys' own share, -2 (k - centre), cancels much
        # of it: fp16 must not round before
        keys = at_least_float32(attention.k)
        gradient = self._dk.to_map(keys, attention.pool)
        columns = self._columns.to_map(keys[:, :, :1], attention.pool)
        gradient.addcmul_(columns, keys, value=-2 * attention.scale)
        gradient.addcmul_(columns, attention.centre, value=2 * attention.scale)
        return gradient.to(attention.k.dtype)
