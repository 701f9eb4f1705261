"""Maps of 1, 2 or 3 spatial axes as the two-axis maps that grid-partitioned attention works on.

A map of two axes stays as it is. Of any other, rows become coarse blocks, cell after cell, and cols the pixels of a
block, so that a cell is a run of rows, pooling goes along the cols, and a block of keys is one contiguous strip.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import gcd, prod

import torch
from torch import Tensor

from saccade.geometry import AttentionShape, Size, whole_number
from saccade.ops.gpa.cells import Grid, Order, make_grid
from saccade.ops.inputs import read_shape

AXES = (1, 2, 3)


@dataclass(frozen=True)
class Arrangement:
    """How a pair of maps is partitioned along each of its axes, and laid out for the kernels.

    `grid` is the partition of the maps as laid out.
    """

    q_size: tuple[int, ...]
    kv_size: tuple[int, ...]
    coarse: tuple[int, ...]
    kv_coarse: tuple[int, ...]
    cells: tuple[int, ...]
    factor: tuple[int, ...]
    grid: Grid

    @property
    def axes(self) -> int:
        return len(self.q_size)

    @property
    def sides(self) -> tuple[int, ...]:
        """Coarse pixels of a cell along each axis."""
        return tuple(n // m for n, m in zip(self.coarse, self.cells, strict=True))

    def queries(self, maps: Tensor) -> Tensor:
        """Lay out a query map: (..., *q_size) -> (..., Yq, Xq) of the grid."""
        if self.axes == 2:
            return maps
        return _regroup(maps, (self.cells, self.sides, self.factor)).reshape(
            *maps.shape[: -self.axes], *self.grid.q_size
        )

    def restore(self, maps: Tensor) -> Tensor:
        """Undo `queries`: (..., Yq, Xq) -> (..., *q_size)."""
        if self.axes == 2:
            return maps
        lead = maps.shape[:-2]
        parts = maps.reshape(*lead, *self.cells, *self.sides, *self.factor)
        order = [len(lead) + step * self.axes + axis for axis in range(self.axes) for step in range(3)]
        return parts.permute(*range(len(lead)), *order).reshape(*lead, *self.q_size)

    def keys(self, maps: Tensor) -> Tensor:
        """Lay out a key map: (..., *kv_size) -> (..., Yk, Xk) of the grid."""
        if self.axes == 2:
            return maps
        return _regroup(maps, (self.kv_coarse, self.factor)).reshape(*maps.shape[: -self.axes], *self.grid.kv_size)

    def order(self, device: torch.device) -> Order:
        """Places in scan-line order of the queries and keys as laid out."""
        queries = torch.arange(prod(self.q_size), device=device).view(self.q_size)
        keys = torch.arange(prod(self.kv_size), device=device).view(self.kv_size)
        return Order(self.queries(queries), self.keys(keys).flatten())

    def cell_of(self, queries: Tensor) -> Tensor:
        """Flat cell of each query pixel: (Q, axes) -> (Q,)."""
        flat = torch.zeros_like(queries[:, 0])
        for axis, (count, side, factor) in enumerate(zip(self.cells, self.sides, self.factor, strict=True)):
            flat = flat * count + queries[:, axis] // (side * factor)
        return flat


def arrange(
    op: str,
    q_size: Sequence[int],
    kv_size: Sequence[int],
    coarse: Sequence[int],
    cells: Sequence[int],
    keys_per_cell: int,
) -> Arrangement:
    """Partition a pair of maps; `keys_per_cell` above the number of coarse keys is cut to it.

    Raises:
        ValueError: the sizes have another number of axes than the maps, or do not divide; with the nearest that do.
    """
    axes = len(q_size)
    coarse, cells = _counts(op, "coarse", coarse, axes), _counts(op, "cells", cells, axes)
    if axes == 2:
        grid = make_grid(op, Size(*q_size), Size(*kv_size), Size(*coarse), Size(*cells), keys_per_cell)
        factor = tuple(grid.factor)
    else:
        factor = _factors(op, q_size, kv_size, coarse, cells)
        block, count = prod(factor), prod(kv_size) // prod(factor)
        if keys_per_cell < 1:
            raise ValueError(f"{op}: keys_per_cell must be a whole number, 1 or more; got {keys_per_cell}.")
        grid = Grid(
            q_size=Size(prod(coarse), block),
            kv_size=Size(count, block),
            coarse=Size(prod(coarse), 1),
            kv_coarse=Size(count, 1),
            cells=Size(prod(cells), 1),
            factor=Size(1, block),
            cell=Size(prod(coarse) // prod(cells), block),
            keys_per_cell=min(keys_per_cell, count),
        )
    return Arrangement(
        q_size=tuple(q_size),
        kv_size=tuple(kv_size),
        coarse=tuple(coarse),
        kv_coarse=tuple(n // d for n, d in zip(kv_size, factor, strict=True)),
        cells=tuple(cells),
        factor=factor,
        grid=grid,
    )


def _counts(op: str, option: str, value: Sequence[int], axes: int) -> tuple[int, ...]:
    """One whole number for each axis of the maps."""
    given = list(value) if isinstance(value, Iterable) else []
    counts = [number for number in map(whole_number, given) if number is not None and number >= 1]
    if len(given) != axes or len(counts) != axes:
        raise ValueError(
            f"{op}: {option} must be {axes} positive integers, one for each axis of the maps, which are "
            f"(B, heads, channels, *axes); got {value!r}."
        )
    return tuple(counts)


def read_maps(
    op: str, q: Tensor, k: Tensor, v: Tensor | None = None, key_mask: Tensor | None = None
) -> tuple[AttentionShape, tuple[int, ...], tuple[int, ...]]:
    """`read_shape` for maps of 1, 2 or 3 spatial axes, with the sizes of the query and the key map.

    Raises:
        ValueError: as `read_shape`, or the maps have different numbers of axes.
    """
    axes = q.dim() - 3 if isinstance(q, Tensor) else 2
    if axes == 2 or axes not in AXES:
        shape = read_shape(op, q, k, v, key_mask)
        return shape, tuple(shape.q_size), tuple(shape.kv_size)
    others = {"k": k} if v is None else {"k": k, "v": v}
    for name, tensor in others.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{op}: {name} must be a tensor; got {type(tensor).__name__}.")
        if tensor.dim() != q.dim() or tensor.shape[3:] != k.shape[3:]:
            raise ValueError(
                f"{op}: {name} {tuple(tensor.shape)} must have {axes} spatial axes, as q {tuple(q.shape)} has, of one "
                "size for k and v. Maps are (B, heads, channels, *axes)."
            )
        if tensor.shape[:2] != q.shape[:2]:
            raise ValueError(
                f"{op}: q {tuple(q.shape)} and {name} {tuple(tensor.shape)} must agree in batch and heads. Maps are "
                "(B, heads, channels, *axes)."
            )
    if key_mask is not None and not isinstance(key_mask, Tensor):
        raise ValueError(f"{op}: key_mask must be a bool tensor; got {type(key_mask).__name__}.")
    if key_mask is not None and key_mask.shape != (k.shape[0], 1, *k.shape[3:]):
        raise ValueError(
            f"{op}: key_mask must be of shape {(k.shape[0], 1, *k.shape[3:])}; got {tuple(key_mask.shape)}."
        )
    mask = None if key_mask is None else key_mask.flatten(2).unsqueeze(2)
    shape = read_shape(op, _line(q), _line(k), None if v is None else _line(v), mask)
    return shape, tuple(q.shape[3:]), tuple(k.shape[3:])


def _line(maps: Tensor) -> Tensor:
    return maps.flatten(3).unsqueeze(3)


def _regroup(maps: Tensor, steps: Sequence[Sequence[int]]) -> Tensor:
    """Split the last axes into parts of `steps`, outermost first, and bring the parts of each step together."""
    axes = len(steps[0])
    lead = maps.dim() - axes
    parts = maps.reshape(*maps.shape[:lead], *(step[axis] for axis in range(axes) for step in steps))
    order = [lead + axis * len(steps) + step for step in range(len(steps)) for axis in range(axes)]
    return parts.permute(*range(lead), *order)


def _factors(
    op: str, q_size: Sequence[int], kv_size: Sequence[int], coarse: Sequence[int], cells: Sequence[int]
) -> tuple[int, ...]:
    for axis, (queries, keys, blocks, count) in enumerate(zip(q_size, kv_size, coarse, cells, strict=True)):
        common = gcd(queries, keys)
        if queries % blocks or keys % (queries // blocks):
            valid = _nearest([queries // d for d in range(1, common + 1) if common % d == 0], blocks)
            raise ValueError(
                f"{op}: along axis {axis} {queries} queries and {keys} keys do not pool to {blocks} by one whole "
                f"factor. Valid here: {valid}."
            )
        if blocks % count:
            valid = _nearest([n for n in range(1, blocks + 1) if blocks % n == 0], count)
            raise ValueError(
                f"{op}: along axis {axis} {blocks} coarse queries do not split into {count} cells. Valid here: {valid}."
            )
    return tuple(queries // blocks for queries, blocks in zip(q_size, coarse, strict=True))


def _nearest(values: Sequence[int], wanted: int) -> str:
    return ", ".join(str(value) for value in sorted(values, key=lambda value: abs(value - wanted))[:3])
