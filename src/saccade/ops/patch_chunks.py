"""Patch vectors of a span of pixels at a time: what `patches.patchify` gives, never for the whole map."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor

from saccade.geometry import Size
from saccade.ops.inputs import at_least_float32


def pixel_spans(size: Size, patch_size: int, most: int) -> list[slice]:
    """Cut a map's scan line into near-equal spans of about `most` pixels.

    On patches a span is whole rows, or where one row is longer than `most`, a part of one, so that its patches come
    from a rectangle.
    """
    if patch_size == 1:
        return _cut(0, size.area, most)
    if most < size.cols:
        return [part for row in range(size.rows) for part in _cut(row * size.cols, (row + 1) * size.cols, most)]
    bands = _cut(0, size.rows, most // size.cols)
    return [slice(band.start * size.cols, band.stop * size.cols) for band in bands]


def _cut(start: int, stop: int, most: int) -> list[slice]:
    count = -(-(stop - start) // max(1, most))
    edges = [start + (stop - start) * i // count for i in range(count + 1)]
    return [slice(low, high) for low, high in pairwise(edges)]


class PatchChunks:
    """The patches of maps (N, C, Y, X) as vectors, for one span of `pixel_spans` at a time."""

    def __init__(self, maps: Tensor, patch_size: int) -> None:
        self.maps = maps
        self.patch_size = patch_size

    def vectors(self, span: slice) -> Tensor:
        """Patches of the span's pixels in at least float32: (N, C * p * p, R), zeros outside the map."""
        if self.patch_size == 1:
            return at_least_float32(self.maps.flatten(2)[:, :, span])
        rows, cols, margin = self._rectangle(span)
        return F.unfold(F.pad(at_least_float32(self.maps[:, :, rows, cols]), margin), self.patch_size)

    def points(self, queries: Tensor) -> Tensor:
        """Patches of a few pixels, (Q, 2) long rows and cols: (N, C * p * p, Q)."""
        reach = self.patch_size // 2
        padded = F.pad(at_least_float32(self.maps), [reach] * 4)
        steps = queries.new_tensor(range(self.patch_size))
        rows = queries[:, 0] + steps[:, None, None]  # (p, 1, Q)
        cols = queries[:, 1] + steps[:, None]  # (p, Q)
        return padded[:, :, rows, cols].flatten(1, 3)  # (N, C, p, p, Q) -> (N, C * p * p, Q)

    def add_gradient(self, total: Tensor, span: slice, grads: Tensor) -> None:
        """Add to the map's gradient `total` (N, C, Y, X), contiguous, that of the span's vectors (N, C * p * p, R)."""
        if self.patch_size == 1:
            total.flatten(2)[:, :, span] += grads
            return
        rows, cols, (left, right, top, bottom) = self._rectangle(span)
        target = total[:, :, rows, cols]
        padded = Size(target.shape[2] + top + bottom, target.shape[3] + left + right)
        folded = F.fold(grads, padded, self.patch_size)
        target += folded[:, :, top : padded.rows - bottom, left : padded.cols - right]

    def _rectangle(self, span: slice) -> tuple[slice, slice, list[int]]:
        """Rows and columns that the span's patches cover, and the zeros around the map: left, right, top, bottom."""
        size, reach = Size(*self.maps.shape[2:]), self.patch_size // 2
        first, last = divmod(span.start, size.cols), divmod(span.stop - 1, size.cols)
        rows, top, bottom = _reached(first[0], last[0] + 1, reach, size.rows)
        cols, left, right = _reached(first[1], last[1] + 1, reach, size.cols)
        return rows, cols, [left, right, top, bottom]


def _reached(start: int, stop: int, reach: int, size: int) -> tuple[slice, int, int]:
    low, high = start - reach, stop + reach
    return slice(max(0, low), min(size, high)), max(0, -low), max(0, high - size)
