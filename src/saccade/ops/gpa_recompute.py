"""Phase 2 of grid-partitioned attention without its memory: a chunk of cells at a time, recomputed in backward.

What stays for backward is q, k, v, the chosen indices and the mask. Keys and values are laid out pixel by pixel, so
that a block of d x d keys is d contiguous strips of d pixels and a gather copies strips.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from saccade.ops.dispatch import Score, once_differentiable
from saccade.ops.gpa_cells import Grid, chunks
from saccade.ops.inputs import at_least_float32, no_autocast, softmax_

# Ours: entries of gathered keys held at a time; on the CPU keys, values and their gradients should stay in cache.
CHUNK_ENTRIES = {"cpu": 2**19, "other": 2**25}


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
            out = _new_map(q, v.shape[2])
            cells = _CellChunks(q, k, indices, key_mask, grid, score, scale)
            values = KeyStrips(v, grid)
            result = QueryCells(out, grid)
            for chunk in cells.chunks(max(k.shape[2], v.shape[2])):
                strips = cells.strips(chunk)
                result.write(chunk, torch.bmm(cells.weights(chunk, strips), values.read(strips)))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, indices, key_mask = ctx.saved_tensors
        with torch.no_grad(), no_autocast(q.device):
            grads = _gradients(q, k, v, indices, key_mask, grad, *ctx.options)
        marked = once_differentiable("gpa's recompute kernel", grads, (grad, q, k, v))
        return *marked, None, None, None, None, None


def _gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    key_mask: Tensor | None,
    grad: Tensor,
    grid: Grid,
    score: Score,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v in three passes over the cells: values, queries, keys.

    Between the passes the gradient of the logits is kept where it is smaller than the maps that a single pass would
    need beside each other; else one pass does all.
    """
    staged = grid.keys * grid.q_size.area < (k.shape[2] + v.shape[2]) * grid.kv_size.area
    cells = _CellChunks(q, k, indices, key_mask, grid, score, scale)
    width = max(k.shape[2], v.shape[2])
    passes = _Passes(cells, QueryCells(grad, grid), v)
    if not staged:
        for chunk in cells.chunks(width):
            strips = cells.strips(chunk)
            slope = passes.values(chunk, strips)
            passes.queries(chunk, strips, slope)
            passes.keys(chunk, strips, slope)
        passes.release_values()
        cells.release_keys()
        return passes.dq.maps, passes.key_gradient(), passes.value_gradient()
    slopes = [passes.values(chunk, cells.strips(chunk)) for chunk in cells.chunks(width)]
    passes.release_values()
    dv = passes.value_gradient()
    for chunk, slope in zip(cells.chunks(width), slopes, strict=True):
        passes.queries(chunk, cells.strips(chunk), slope)
    cells.release_keys()
    slopes.reverse()
    for chunk in cells.chunks(width):
        passes.keys(chunk, cells.strips(chunk), slopes.pop())
    return passes.dq.maps, passes.key_gradient(), dv


class Chunk(NamedTuple):
    """A part of all cells: spans of the batch, the heads, and the rows and cols of cells."""

    batch: slice
    heads: slice
    rows: slice
    cols: slice


class QueryCells:
    """A query-sized map (B, G, C, Y, X), read and written as cells (n, Q, C) with Q the pixels of a cell."""

    def __init__(self, maps: Tensor, grid: Grid) -> None:
        self.maps = maps
        # (B, G, C, cell rows, rows, cell cols, cols)
        by_cols = torch.unflatten(maps, 4, (grid.cells.cols, grid.cell.cols))
        self._view = torch.unflatten(by_cols, 3, (grid.cells.rows, grid.cell.rows))

    def _part(self, chunk: Chunk) -> Tensor:
        part = self._view[chunk.batch, chunk.heads, :, chunk.rows, :, chunk.cols]
        return part.permute(0, 1, 3, 5, 4, 6, 2)  # (B, G, cell rows, cell cols, rows, cols, C)

    def read(self, chunk: Chunk) -> Tensor:
        return at_least_float32(self._part(chunk).flatten(4, 5).flatten(0, 3))

    def write(self, chunk: Chunk, values: Tensor) -> None:
        part = self._part(chunk)
        part.copy_(values.view(part.shape))


class KeyStrips:
    """A key-sized map (B, G, C, Y, X), pixel-major, as strips of d pixels: read by strip, or added to."""

    def __init__(self, maps: Tensor, grid: Grid) -> None:
        self._channels = maps.shape[2]
        self._keys = grid.keys
        self.rows = _pixel_major(maps).view(-1, grid.factor * self._channels)

    def read(self, strips: Tensor) -> Tensor:
        """(n * kappa * d) strip numbers -> (n, L, C)."""
        return at_least_float32(self.rows.index_select(0, strips).view(-1, self._keys, self._channels))

    def add(self, strips: Tensor, values: Tensor) -> None:
        """Add (n, L, C) to the strips."""
        self.rows.index_add_(0, strips, values.reshape(-1, self.rows.shape[1]))


class _CellChunks:
    """The attention weights of some cells at a time, computed from q, k and the chosen indices."""

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
        self.grid, self.score, self.scale = grid, score, scale
        self.q, self.k = q, k
        self.factor = scale if score == "dot" else 2 * scale
        self._queries = QueryCells(q, grid)
        self._keys: KeyStrips | None = KeyStrips(k, grid)
        self._indices = torch.unflatten(indices, 2, grid.cells)
        self._bias = self._key_bias(key_mask)
        self._masked = key_mask is not None
        strip_cols = grid.kv_coarse.cols
        maps = torch.arange(q.shape[0] * q.shape[1], device=q.device).view(q.shape[0], q.shape[1], 1, 1, 1)
        self._first = maps * (grid.kv_size.rows * strip_cols)
        self._down = torch.arange(grid.factor, device=q.device) * strip_cols

    def _key_bias(self, key_mask: Tensor | None) -> KeyStrips | None:
        bias: Tensor | None = None
        if self.score == "l2":
            bias = _squares(self.k).mul_(-self.scale)  # (B, G, 1, Y, X)
        if key_mask is not None:
            if bias is None:
                bias = torch.zeros_like(at_least_float32(self.k[:, :, :1]))
            bias = bias.masked_fill(~key_mask.unsqueeze(2), float("-inf"))
        return None if bias is None else KeyStrips(bias, self.grid)

    def chunks(self, width: int) -> list[Chunk]:
        limit = CHUNK_ENTRIES["cpu" if self.q.device.type == "cpu" else "other"] // (self.grid.keys * width)
        return [Chunk(*part) for part in chunks((*self.q.shape[:2], *self.grid.cells), limit)]

    def strips(self, chunk: Chunk) -> Tensor:
        """Strip numbers of the chunk's keys, all in one row."""
        cols, d = self.grid.kv_coarse.cols, self.grid.factor
        blocks = self._indices[chunk]  # (B, G, cell rows, cell cols, kappa)
        corner = self._first[chunk.batch, chunk.heads] + (blocks // cols) * (cols * d) + blocks % cols
        return (corner.unsqueeze(5) + self._down).flatten()

    def queries(self, chunk: Chunk) -> Tensor:
        """(n, Q, D)."""
        return self._queries.read(chunk)

    def keys(self, strips: Tensor) -> Tensor:
        """(n, L, D)."""
        if self._keys is None:
            self._keys = KeyStrips(self.k, self.grid)
        return self._keys.read(strips)

    def release_keys(self) -> None:
        self._keys = None

    def weights(self, chunk: Chunk, strips: Tensor) -> Tensor:
        """Attention weights (n, Q, L)."""
        logits = self.scaled(self.queries(chunk), self.keys(strips).transpose(1, 2))
        if self._bias is None:
            return softmax_(logits)
        bias = self._bias.read(strips).transpose(1, 2)  # (n, 1, L)
        if not self._masked:
            return softmax_(logits.add_(bias))
        dead = (bias == float("-inf")).all(2, keepdim=True)
        return softmax_(logits.add_(bias.masked_fill(dead, 0))).masked_fill_(dead, 0)

    def scaled(self, left: Tensor, right: Tensor) -> Tensor:
        """The batched product times the factor of the score."""
        unused = left.new_empty(1, 1, 1)
        return torch.baddbmm(unused, left, right, beta=0, alpha=self.factor)


class _Passes:
    """The three accumulations of backward, for one chunk of cells at a time."""

    def __init__(self, cells: _CellChunks, grad: QueryCells, v: Tensor) -> None:
        self._cells, self._grad, self._v, self._k = cells, grad, v, cells.k
        self._values: KeyStrips | None = KeyStrips(v, cells.grid)
        self._dv: KeyStrips | None = None
        self._dk: KeyStrips | None = None
        self._columns: KeyStrips | None = None
        self._dq: QueryCells | None = None

    @property
    def dq(self) -> QueryCells:
        if self._dq is None:
            self._dq = QueryCells(_new_map(self._cells.q, self._cells.q.shape[2]), self._cells.grid)
        return self._dq

    def release_values(self) -> None:
        self._values = None

    def values(self, chunk: Chunk, strips: Tensor) -> Tensor:
        """Add to the gradient of v; returns the gradient of the logits (n, Q, L)."""
        if self._values is None:
            raise RuntimeError("gpa: the values were released before their pass.")
        if self._dv is None:
            self._dv = _new_strips(self._v, self._cells.grid)
        weights = self._cells.weights(chunk, strips)
        grad = self._grad.read(chunk)  # (n, Q, E)
        self._dv.add(strips, torch.bmm(weights.transpose(1, 2), grad))
        slope = torch.bmm(grad, self._values.read(strips).transpose(1, 2))
        return slope.sub_((slope * weights).sum(2, keepdim=True)).mul_(weights)

    def queries(self, chunk: Chunk, strips: Tensor, slope: Tensor) -> None:
        """Write the gradient of q."""
        self.dq.write(chunk, self._cells.scaled(slope, self._cells.keys(strips)))

    def keys(self, chunk: Chunk, strips: Tensor, slope: Tensor) -> None:
        """Add to the gradient of k."""
        if self._dk is None:
            self._dk = _new_strips(self._k, self._cells.grid)
        self._dk.add(strips, self._cells.scaled(slope.transpose(1, 2), self._cells.queries(chunk)))
        if self._cells.score == "l2":
            if self._columns is None:
                self._columns = _new_strips(self._k[:, :, :1], self._cells.grid)
            self._columns.add(strips, slope.sum(1).unsqueeze(2))

    def value_gradient(self) -> Tensor:
        dv, self._dv = self._dv, None
        return _as_map(dv, self._v)

    def key_gradient(self) -> Tensor:
        dk, self._dk = self._dk, None
        gradient = _as_map(dk, self._k)
        if self._columns is not None:  # d(-|q - k|^2) = 2 (q - k) dk: the part that the queries did not bring
            gradient.addcmul_(_as_map(self._columns, self._k[:, :, :1]), self._k, value=-2 * self._cells.scale)
        return gradient


def _squares(maps: Tensor) -> Tensor:
    return at_least_float32(maps).square().sum(2, keepdim=True)


def _new_map(like: Tensor, channels: int) -> Tensor:
    """An empty (B, G, channels, Y, X) map in the memory order of `like`."""
    batch, heads, _, rows, cols = like.shape
    if like.stride(2) == 1 and like.shape[2] > 1:
        return like.new_empty(batch, rows, cols, heads, channels).permute(0, 3, 4, 1, 2)
    return like.new_empty(batch, heads, channels, rows, cols)


def _new_strips(like: Tensor, grid: Grid) -> KeyStrips:
    batch, heads, channels, rows, cols = like.shape
    dtype = at_least_float32(like[:0]).dtype
    zeros = torch.zeros(batch, heads, rows, cols, channels, dtype=dtype, device=like.device)
    return KeyStrips(zeros.permute(0, 1, 4, 2, 3), grid)


def _as_map(strips: KeyStrips | None, like: Tensor) -> Tensor:
    """Accumulated strips as a map shaped and typed as `like`, in its memory order."""
    if strips is None:
        return torch.zeros_like(like)
    batch, heads, channels, rows, cols = like.shape
    maps = strips.rows.view(batch, heads, rows, cols, channels).permute(0, 1, 4, 2, 3)
    if maps.stride() == like.stride() and maps.dtype == like.dtype:
        return maps
    result = torch.empty_like(like)
    if result.is_contiguous():
        _copy_planes(result.flatten(3), maps.flatten(3))
        return result
    return result.copy_(maps)


def _pixel_major(maps: Tensor) -> Tensor:
    """(B, G, C, Y, X) -> contiguous (B, G, Y, X, C), without a copy where the memory is so already."""
    turned = maps.permute(0, 1, 3, 4, 2)
    if turned.is_contiguous() or not maps.is_contiguous():
        return turned.contiguous()
    result = maps.new_empty(turned.shape)
    _copy_planes(result.flatten(2, 3), maps.flatten(3).transpose(2, 3))
    return result


def _copy_planes(target: Tensor, source: Tensor) -> None:
    """Copy (B, G, M, N) between memory orders one (M, N) plane at a time: the CPU's fast transposition is for two axes."""
    if target.device.type != "cpu":
        target.copy_(source)
        return
    for to, of in zip(target.flatten(0, 1), source.flatten(0, 1), strict=True):
        to.copy_(of)
