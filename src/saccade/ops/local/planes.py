"""Memory and sums of shift planes: buffers that are used again, regions that may leave a map, running sums."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Scratch:
    """Named buffers, each as large as it ever had to be: fresh memory costs the CPU more than filling it."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._buffers: dict[str, Tensor] = {}
        self._zeroed: dict[str, tuple[int, ...]] = {}

    def take(self, name: str, *size: int) -> Tensor:
        """A contiguous tensor of that size; holds what the last user of the name left."""
        count = math.prod(size)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < count:
            self._buffers.pop(name, None)
            buffer = self._buffers[name] = self._like.new_empty(count)
        self._zeroed.pop(name, None)
        return buffer[:count].view(size)

    def zeros(self, name: str, *size: int) -> Tensor:
        """Zeros, but for the places that are written at every use with this size: those hold the last ones."""
        if self._zeroed.get(name) != size:
            self.take(name, *size).zero_()
            self._zeroed[name] = size
        return self._buffers[name][: math.prod(size)].view(size)


def region(maps: Tensor, top: int, left: int, rows: int, cols: int, outside: float) -> Tensor:
    """A part of a map, contiguous, with `outside` where it leaves the map: (Y, X, C) -> (rows, cols, C)."""
    height, width = maps.shape[:2]
    if top >= 0 and left >= 0 and top + rows <= height and left + cols <= width:
        return maps[top : top + rows, left : left + cols].contiguous()
    out = maps.new_full((rows, cols, *maps.shape[2:]), outside)
    here, there = _overlap(maps, top, left, rows, cols)
    out[there] = maps[here]
    return out


def add_region(maps: Tensor, part: Tensor, top: int, left: int) -> None:
    """The adjoint of `region`: add a part to a map, and drop what lies outside."""
    here, there = _overlap(maps, top, left, *part.shape[:2])
    maps[here] += part[there]


def _overlap(
    maps: Tensor, top: int, left: int, rows: int, cols: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    first = max(0, top), max(0, left)
    last = min(maps.shape[0], top + rows), min(maps.shape[1], left + cols)
    here = slice(first[0], last[0]), slice(first[1], last[1])
    there = slice(first[0] - top, last[0] - top), slice(first[1] - left, last[1] - left)
    return here, there


def diagonal(plane: Tensor, shifts: int, acrosses: int) -> Tensor:
    """Products of a row of queries with rows of keys, read along the diagonals: a view.

    Args:
        plane: (rows, cols, shifts * W) contiguous, W = cols + acrosses - 1.

    Returns:
        (rows, cols, shifts, acrosses): entry (r, c, s, a) is the product with column c + a of row s.
    """
    rows, cols, length = plane.shape
    size = (rows, cols, shifts, acrosses)
    return plane.as_strided(size, (cols * length, length + 1, length // shifts, 1), plane.storage_offset())


def window_sum(maps: Tensor, dim: int, side: int, out: Tensor, scratch: Scratch) -> None:
    """Fill `out` with the sums of `side` (odd) neighbours along an axis, which it is shorter by side - 1 in.

    Sums of 2, 4, 8, ... neighbours are made from each other: no running difference, so no digits are lost.
    """
    length = maps.shape[dim] - side + 1
    first = maps.narrow(dim, 0, length)
    if side == 1:
        out.copy_(first)
        return
    level, width, offset, started = maps, 1, 1, False
    while 2 * width <= side:
        shorter = level.shape[dim] - width
        size = [*level.shape]
        size[dim] = shorter
        wider = scratch.take(f"level {dim} {width}", *size)
        torch.add(level.narrow(dim, 0, shorter), level.narrow(dim, width, shorter), out=wider)
        level, width = wider, 2 * width
        if side & width:
            some = level.narrow(dim, offset, length)
            torch.add(out if started else first, some, out=out)
            offset, started = offset + width, True


def diagonal_adjoint(slopes: Tensor, patch_size: int, scratch: Scratch) -> Tensor:
    """The adjoint of `diagonal` and two window sums: (R, C, shifts, A) -> (R', C', shifts * (C' + A - 1)).

    R' = R + p - 1, C' = C + p - 1; zeros off the diagonals.
    """
    rows, cols, shifts, acrosses = slopes.shape
    halo = patch_size - 1
    outer = cols + halo
    dense = scratch.zeros("adjoint", rows + halo, outer, shifts * (outer + acrosses - 1))
    target = diagonal(dense, shifts, acrosses)
    if patch_size == 1:
        target.copy_(slopes)
        return dense
    tall = scratch.zeros("tall", rows + 2 * halo, cols, shifts, acrosses)
    tall[halo : halo + rows] = slopes
    wide = scratch.zeros("wide", rows + halo, cols + 2 * halo, shifts, acrosses)
    window_sum(tall, 0, patch_size, wide[:, halo : halo + cols], scratch)
    window_sum(wide, 1, patch_size, target, scratch)
    return dense
