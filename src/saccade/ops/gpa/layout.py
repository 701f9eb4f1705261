"""Memory for grid-partitioned attention: maps read as cells and as blocks of keys, chunk by chunk, buffers reused.

A map laid out pixel by pixel holds a block of d x d keys as d contiguous strips of d pixels: gathers and scatters move
whole strips, which is quick, but laying it out costs a copy of the map. From a map laid out channel by channel keys are
gathered one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from saccade.geometry import Size
from saccade.ops.gpa.cells import Grid, parts_of_cell
from saccade.ops.inputs import at_least_float32

# Ours: entries of gathered keys held at a time. On the CPU more is no faster, and half of it 5 % slower.
CHUNK_ENTRIES = {"cpu": 2**20, "other": 2**25}
# Ours: attention weights of one cell; larger cells are cut. The paper's settings are far below (16 x 48, 64 x 192).
WEIGHT_ENTRIES = {"cpu": 2**21, "other": 2**26}


class Chunk(NamedTuple):
    """A part of all cells: spans of the batch, the heads, and the rows and cols of cells."""

    batch: slice
    heads: slice
    rows: slice
    cols: slice


class Chosen(NamedTuple):
    """The keys that a chunk's cells chose, cell after cell, block after block.

    `strips` are row numbers of `KeyStrips` (n * kappa * d), `pixels` the flat pixels (n * L) for `KeyPlanes`.
    """

    chunk: Chunk
    strips: Tensor
    pixels: Tensor


def chunks(counts: tuple[int, ...], limit: int) -> Iterator[tuple[slice, ...]]:
    """Slices of nested axes that together visit every item once, about `limit` items (at least one) at a time.

    An axis is cut only where one step of it, with all axes inside, is over the limit.
    """
    steps: list[int] = []
    for count in reversed(counts):
        steps.insert(0, min(count, max(1, limit)))
        limit //= count
    spans = [
        [slice(start, min(start + step, count)) for start in range(0, count, step)]
        for count, step in zip(counts, steps, strict=True)
    ]
    return product(*spans)


class Scratch:
    """Working memory by name, kept from chunk to chunk: fresh memory costs more than what is written to it."""

    def __init__(self, like: Tensor) -> None:
        self._empty = at_least_float32(like[:0])
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Memory of this name with stale contents; whoever held it before loses it. At least float32 unless told."""
        dtype = self._empty.dtype if dtype is None else dtype
        size = prod(shape)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name, dtype] = self._empty.new_empty(size, dtype=dtype)
        return buffer[:size].view(shape)

    def clear(self) -> None:
        """Let all go."""
        self._buffers.clear()


class MapPool:
    """Memory for whole maps. What was given back is taken again where the size is the same, else it is let go first."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def take(self, like: Tensor, size: int, dtype: torch.dtype) -> Tensor:
        """Flat memory with stale contents, on the device of `like`."""
        for i, buffer in enumerate(self._free):
            if buffer.numel() == size and buffer.dtype == dtype:
                return self._free.pop(i)
        self._free.clear()
        return like.new_empty(size, dtype=dtype)

    def give(self, buffer: Tensor | None) -> None:
        """Take back flat memory that nobody reads any more."""
        if buffer is not None:
            self._free.append(buffer)


class CellChunks:
    """The cells and their chosen keys, a chunk at a time.

    Cells whose weights alone are over the working memory are cut into parts that share the keys; `grid` has the parts.

    Args:
        indices: (B, G, cells, kappa) coarse keys.
    """

    def __init__(self, indices: Tensor, grid: Grid) -> None:
        device = "cpu" if indices.device.type == "cpu" else "other"
        self._budget = CHUNK_ENTRIES[device]
        self._parts = parts_of_cell(grid, WEIGHT_ENTRIES[device])
        self.grid = grid.with_cells(Size(grid.cells.rows * self._parts.rows, grid.cells.cols * self._parts.cols))
        self._indices = torch.unflatten(indices, 2, grid.cells)
        batch, heads = indices.shape[:2]
        maps = torch.arange(batch * heads, device=indices.device).view(batch, heads, 1, 1, 1)
        self._first = maps * (grid.kv_size.rows * grid.kv_coarse.cols)
        self._down = torch.arange(grid.factor.rows, device=indices.device) * grid.kv_coarse.cols

    def within(self, channels: int, one_map: bool = False) -> Iterator[Chosen]:
        """All cells in chunks whose gathered keys of so many channels stay within the working memory.

        With `one_map` a chunk stays in one entry of the batch and one head, as `KeyPlanes` needs.
        """
        limit = self._budget // (self.grid.keys * channels)
        if one_map:
            limit = min(limit, self.grid.cells.area)
        for part in chunks((*self._indices.shape[:2], *self.grid.cells), limit):
            yield self._chosen(Chunk(*part))

    def of_blocks(self, values: Tensor, chunk: Chunk) -> Tensor:
        """What (B, G, cells, kappa) values say of a chunk's chosen blocks: (n, kappa)."""
        rows, cols = self._cells_of(chunk)
        return torch.unflatten(values, 2, self._indices.shape[2:4])[chunk.batch, chunk.heads][
            :, :, rows[:, None], cols
        ].flatten(0, 3)

    def add_to_blocks(self, values: Tensor, chunk: Chunk, more: Tensor) -> None:
        """Add (n, kappa) of a chunk's chosen blocks to (B, G, cells, kappa)."""
        rows, cols = self._cells_of(chunk)
        part = values[chunk.batch, chunk.heads]
        flat = (rows[:, None] * self._indices.shape[3] + cols).flatten()
        part.index_add_(2, flat, more.view(*part.shape[:2], flat.numel(), -1).to(values.dtype))

    def _cells_of(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Rows and cols of the uncut cells that a chunk is of."""
        at_rows = torch.arange(chunk.rows.start, chunk.rows.stop, device=self._down.device) // self._parts.rows
        at_cols = torch.arange(chunk.cols.start, chunk.cols.stop, device=self._down.device) // self._parts.cols
        return at_rows, at_cols

    def _chosen(self, chunk: Chunk) -> Chosen:
        cols, (high, wide) = self.grid.kv_coarse.cols, self.grid.factor
        at_rows, at_cols = self._cells_of(chunk)
        # (B, G, cell rows, cell cols, kappa)
        blocks = self._indices[chunk.batch, chunk.heads][:, :, at_rows[:, None], at_cols]
        corner = (blocks // cols) * (cols * high) + blocks % cols
        inside = corner.unsqueeze(5) + self._down  # (..., kappa, d) strips of its own map
        strips = inside + self._first[chunk.batch, chunk.heads].unsqueeze(5)
        pixels = inside.unsqueeze(6) * wide + torch.arange(wide, device=self._down.device)
        return Chosen(chunk, strips.flatten(), pixels.flatten())


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

    def read(self, chunk: Chunk, scratch: Scratch, name: str) -> Tensor:
        part = self._part(chunk)
        cells = scratch.take(name, prod(part.shape[:4]), prod(part.shape[4:6]), part.shape[6])
        cells.view(part.shape).copy_(part)
        return cells

    def part(self, chunk: Chunk) -> Tensor:
        """(n, Q, C) in memory of its own."""
        part = self._part(chunk)
        return part.reshape(prod(part.shape[:4]), prod(part.shape[4:6]), part.shape[6])

    def write(self, chunk: Chunk, cells: Tensor) -> None:
        part = self._part(chunk)
        part.copy_(torch.unflatten(torch.unflatten(cells, 1, part.shape[4:6]), 0, part.shape[:4]))


class KeyStrips:
    """A key-sized map (B, G, C, Y, X), pixel-major, as strips of d pixels: read by strip, or added to."""

    def __init__(self, rows: Tensor, shape: torch.Size, grid: Grid, owned: bool) -> None:
        self._rows = rows.view(-1, grid.factor.cols * shape[2])
        self._shape = shape
        self._keys = grid.keys
        self._owned = owned

    @classmethod
    def of(cls, maps: Tensor, grid: Grid, pool: MapPool) -> KeyStrips:
        """Lay a map out in strips, without a copy where its memory is so already."""
        turned = maps.permute(0, 1, 3, 4, 2)  # (B, G, Y, X, C)
        if turned.is_contiguous():
            return cls(turned, maps.shape, grid, owned=False)
        rows = pool.take(maps, maps.numel(), maps.dtype).view(turned.shape)
        _copy_planes(rows.flatten(2, 3), maps.flatten(3).transpose(2, 3))
        return cls(rows, maps.shape, grid, owned=True)

    @classmethod
    def zeros(cls, like: Tensor, grid: Grid, pool: MapPool) -> KeyStrips:
        """Strips to add to, for the gradient of a map."""
        rows = pool.take(like, like.numel(), at_least_float32(like[:0]).dtype)
        return cls(rows.zero_(), like.shape, grid, owned=True)

    def read(self, chosen: Chosen, scratch: Scratch, name: str) -> Tensor:
        """(n, L, C)."""
        return _select(self._rows, 0, chosen.strips, scratch, name).view(-1, self._keys, self._shape[2])

    def add(self, chosen: Chosen, values: Tensor) -> None:
        """Add (n, L, C) to the strips."""
        self._rows.index_add_(0, chosen.strips, values.view(-1, self._rows.shape[1]))

    def release(self, pool: MapPool) -> None:
        """Give the memory back; the strips must not be used again."""
        pool.give(self._rows.flatten() if self._owned else None)

    def to_map(self, like: Tensor, pool: MapPool) -> Tensor:
        """The strips as a map in the memory order and dtype of `like`; their own memory goes back or into the map."""
        batch, heads, channels, rows, cols = self._shape
        maps = self._rows.view(batch, heads, rows, cols, channels).permute(0, 1, 4, 2, 3)
        if like.is_contiguous() and not maps.is_contiguous():
            result = pool.take(like, like.numel(), like.dtype).view(like.shape)
            _copy_planes(result.flatten(3), maps.flatten(3))
            self.release(pool)
            return result
        if maps.stride() == like.stride() and maps.dtype == like.dtype:
            return maps
        return torch.empty_like(like).copy_(maps)


class KeyPlanes:
    """A key-sized map (B, G, C, Y, X) as it lies, channel by channel; read from one map of the batch and one head."""

    def __init__(self, maps: Tensor, grid: Grid) -> None:
        self._planes = maps.flatten(3)
        self._keys = grid.keys

    def read(self, chosen: Chosen, scratch: Scratch, name: str) -> Tensor:
        """(n, L, C), with the channels outermost in memory."""
        plane = self._planes[chosen.chunk.batch.start, chosen.chunk.heads.start]  # (C, Y * X)
        gathered = _select(plane, 1, chosen.pixels, scratch, name)
        return gathered.view(plane.shape[0], -1, self._keys).permute(1, 2, 0)

    def release(self, pool: MapPool) -> None:
        """Nothing to give back: the memory is the map's own."""


def gathered_map(maps: Tensor, grid: Grid, pool: MapPool) -> KeyStrips | KeyPlanes:
    """A map to gather keys from where memory is short: on the CPU it is not laid out anew."""
    if maps.device.type == "cpu" and maps.is_contiguous():
        return KeyPlanes(maps, grid)
    return KeyStrips.of(maps, grid, pool)


def _select(source: Tensor, axis: int, index: Tensor, scratch: Scratch, name: str) -> Tensor:
    """`index_select` of a matrix into scratch memory, in at least float32."""
    shape = [source.shape[0], source.shape[1]]
    shape[axis] = index.numel()
    raw = scratch.take(name, *shape, dtype=source.dtype)
    torch.index_select(source, axis, index, out=raw)
    if at_least_float32(raw[:0]).dtype == raw.dtype:
        return raw
    return scratch.take(name, *shape).copy_(raw)


def new_map(like: Tensor, channels: int, pool: MapPool) -> Tensor:
    """A (B, G, channels, Y, X) map with stale contents, in the memory order and dtype of `like`."""
    batch, heads, _, rows, cols = like.shape
    flat = pool.take(like, batch * heads * channels * rows * cols, like.dtype)
    if like.stride(2) == 1 and like.shape[2] > 1:
        return flat.view(batch, rows, cols, heads, channels).permute(0, 3, 4, 1, 2)
    return flat.view(batch, heads, channels, rows, cols)


def _copy_planes(target: Tensor, source: Tensor) -> None:
    """Copy (B, G, M, N) between memory orders plane by plane: the CPU's fast transposition is for two axes."""
    if target.device.type != "cpu":
        target.copy_(source)
        return
    for to, of in zip(target.flatten(0, 1), source.flatten(0, 1), strict=True):
        to.copy_(of)
