"""The integer geometry of grid-partitioned attention: pooling factor, cells, key blocks, and the chunks to work in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

from saccade.geometry import Size
from saccade.ops.inputs import at_least_float32


@dataclass(frozen=True)
class Grid:
    """How one pair of maps is partitioned.

    A coarse pixel is a block of `factor` rows and cols of pixels, d x d for images. `cell` is the size of one cell in
    query pixels.
    """

    q_size: Size
    kv_size: Size
    coarse: Size
    kv_coarse: Size
    cells: Size
    factor: Size
    cell: Size
    keys_per_cell: int

    @property
    def keys(self) -> int:
        """Full-resolution keys that one cell attends to: kappa * d^2."""
        return self.keys_per_cell * self.factor.area

    def with_keys(self, keys_per_cell: int) -> Grid:
        """The same cells with another number of coarse keys, at most those there are."""
        return replace(self, keys_per_cell=min(keys_per_cell, self.kv_coarse.area))

    def with_cells(self, cells: Size) -> Grid:
        """The same maps in another number of cells, which divides the query map."""
        cell = Size(self.q_size.rows // cells.rows, self.q_size.cols // cells.cols)
        return replace(self, cells=cells, cell=cell)


class Order(NamedTuple):
    """Places of pixels in scan-line order: queries (Yq, Xq) long, and keys, flat (Yk * Xk) long."""

    queries: Tensor
    keys: Tensor


class Blocks(NamedTuple):
    """What Phase 2 attends to.

    `indices` (B, G, cells, kappa) are the coarse keys of each cell; `bias`, of the same shape, is added to the logits
    of all pixels of a block; with an `order` a query attends only to keys that do not come after it.
    """

    grid: Grid
    indices: Tensor
    bias: Tensor | None = None
    order: Order | None = None


def grid_reasons(q_size: Size, kv_size: Size, coarse: Size, cells: Size, keys_per_cell: int) -> list[str]:
    """Why these maps cannot be partitioned this way, each with the nearest valid choices; empty when they can."""
    if keys_per_cell < 1:
        return [f"keys_per_cell must be a whole number, 1 or more; got {keys_per_cell}."]
    factor = q_size.rows // coarse.rows
    if factor < 1 or q_size != (coarse.rows * factor, coarse.cols * factor):
        return [
            f"query map {q_size} does not pool to {coarse} by one whole factor. "
            f"Valid here: {_join(valid_coarse(q_size, kv_size, coarse))}."
        ]
    if kv_size.rows % factor or kv_size.cols % factor:
        return [
            f"key map {kv_size} does not pool by the query map's factor {factor} ({q_size} to {coarse}). "
            f"Valid coarse sizes here: {_join(valid_coarse(q_size, kv_size, coarse))}."
        ]
    if not cells.divides(coarse):
        side, count = (coarse.rows, cells.rows) if coarse.rows % cells.rows else (coarse.cols, cells.cols)
        return [
            f"query map {q_size}, pooled to {coarse}, does not split into {cells} cells ({side} is not a multiple of "
            f"{count}). Valid here: {_join(valid_cells(coarse, cells))}."
        ]
    return []


def make_grid(op: str, q_size: Size, kv_size: Size, coarse: Size, cells: Size, keys_per_cell: int) -> Grid:
    """Partition a pair of maps; `keys_per_cell` above the number of coarse keys is cut to it.

    Raises:
        ValueError: see `grid_reasons`.
    """
    reasons = grid_reasons(q_size, kv_size, coarse, cells, keys_per_cell)
    if reasons:
        raise ValueError(f"{op}: {' '.join(reasons)}")
    factor = q_size.rows // coarse.rows
    kv_coarse = Size(kv_size.rows // factor, kv_size.cols // factor)
    return Grid(
        q_size=q_size,
        kv_size=kv_size,
        coarse=coarse,
        kv_coarse=kv_coarse,
        cells=cells,
        factor=Size(factor, factor),
        cell=Size(q_size.rows // cells.rows, q_size.cols // cells.cols),
        keys_per_cell=min(keys_per_cell, kv_coarse.area),
    )


def valid_coarse(q_size: Size, kv_size: Size, wanted: Size, limit: int = 3) -> list[Size]:
    """The coarse sizes that this pair of maps has, nearest to the wanted one first."""
    common = gcd(q_size.rows, q_size.cols, kv_size.rows, kv_size.cols)
    sizes = [Size(q_size.rows // d, q_size.cols // d) for d in _divisors(common)]
    return sorted(sizes, key=lambda size: abs(size.area - wanted.area))[:limit]


def valid_cells(coarse: Size, wanted: Size, limit: int = 3) -> list[Size]:
    """Numbers of cells that a coarse map splits into, nearest to the wanted first; square if those are wanted."""
    if wanted.rows == wanted.cols:
        sizes = [Size(n, n) for n in _divisors(gcd(coarse.rows, coarse.cols))]
    else:
        rows, cols = (
            sorted(_divisors(side), key=lambda n: abs(n - count))[:2]
            for side, count in zip(coarse, wanted, strict=True)
        )
        sizes = [Size(r, c) for r in rows for c in cols]
    return sorted(sizes, key=lambda size: abs(size.area - wanted.area))[:limit]


def valid_cell_counts(coarse: Size, wanted: int, limit: int = 3) -> list[int]:
    """Numbers of square cells along the shorter side that tile a coarse map, nearest to the wanted first."""
    counts = [min(coarse) // side for side in _divisors(gcd(*coarse))]
    return sorted(counts, key=lambda count: abs(count - wanted))[:limit]


def block_pixels(indices: Tensor, grid: Grid) -> Tensor:
    """Flat full-resolution pixels of coarse keys, block after block: (..., kappa) -> (..., kappa * d * d)."""
    high, wide = grid.factor
    down, along = (torch.arange(side, device=indices.device) for side in (high, wide))
    offsets = down[:, None] * grid.kv_size.cols + along  # (d, d)
    corner = (indices // grid.kv_coarse.cols) * (high * grid.kv_size.cols) + (indices % grid.kv_coarse.cols) * wide
    return (corner[..., None, None] + offsets).flatten(-3)


def split_cells(maps: Tensor, cells: Size, cell: Size) -> Tensor:
    """Cut query maps into cells: (B, G, C, Y, X) -> (B, G, cells, C, pixels of a cell), both in scan-line order."""
    parts = torch.unflatten(torch.unflatten(maps, 4, (cells.cols, cell.cols)), 3, (cells.rows, cell.rows))
    # (B, G, C, cell rows, rows, cell cols, cols) -> (B, G, cell rows, cell cols, C, rows, cols)
    return parts.permute(0, 1, 3, 5, 2, 4, 6).flatten(2, 3).flatten(4)


def join_cells(parts: Tensor, cells: Size, cell: Size) -> Tensor:
    """Undo `split_cells`: (B, G, cells, C, pixels of a cell) -> (B, G, C, Y, X)."""
    grid = torch.unflatten(torch.unflatten(parts, 4, cell), 2, cells)
    # (B, G, cell rows, cell cols, C, rows, cols) -> (B, G, C, cell rows, rows, cell cols, cols)
    return grid.permute(0, 1, 4, 2, 5, 3, 6).flatten(5).flatten(3, 4)


def centre_of(keys: Tensor, order: Order | None) -> Tensor:
    """Where distances are measured from, so that they are rounded less: (B, G, D, Y, X) -> (B, G, D, 1, 1).

    The mean key; with an order the first, for nothing may depend on later ones, not even rounding.
    """
    keys = at_least_float32(keys.detach())
    if order is None:
        return keys.mean((3, 4), keepdim=True)
    return keys.flatten(3)[..., order.keys.argmin().view(1)].unsqueeze(4)


def parts_of_cell(grid: Grid, entries: int) -> Size:
    """Into how few equal parts a cell has to be cut, (rows, cols), for the weights of one to have at most `entries`."""
    ways = [Size(r, c) for r in _divisors(grid.cell.rows) for c in _divisors(grid.cell.cols)]
    fitting = [way for way in ways if grid.cell.area // way.area * grid.keys <= entries]
    return min(fitting or [grid.cell], key=lambda way: way.area)


def _divisors(number: int) -> list[int]:
    return [n for n in range(number, 0, -1) if number % n == 0]


def _join(sizes: list[Size]) -> str:
    return ", ".join(str(size) for size in sizes)
