"""Holes of a mask as boxes, so that attention need only look at their pixels."""

from __future__ import annotations

from dataclasses import dataclass
from types import EllipsisType
from typing import NamedTuple

import torch
from torch import Tensor

from saccade.geometry import Size


class Box(NamedTuple):
    """Rows top ... bottom - 1 and cols left ... right - 1."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def size(self) -> Size:
        return Size(self.bottom - self.top, self.right - self.left)

    @property
    def slices(self) -> tuple[EllipsisType, slice, slice]:
        """What indexes a map (..., Y, X)."""
        return ..., slice(self.top, self.bottom), slice(self.left, self.right)

    def of(self, maps: Tensor) -> Tensor:
        """The box of a map (..., Y, X), as a view."""
        return maps[self.slices]


@dataclass(frozen=True)
class Round:
    """Boxes of one size, one in each of a few samples, that one attention call can serve.

    Attributes:
        samples: their places in the batch.
        outer: the boxes, with the rim that the patches of their queries reach into.
        inner: where in its outer box each hole's own lies.
    """

    samples: tuple[int, ...]
    outer: tuple[Box, ...]
    inner: tuple[Box, ...]

    @property
    def area(self) -> int:
        """Pixels of all outer boxes."""
        return sum(box.size.area for box in self.outer)


def hole_boxes(holes: Tensor, gap: int = 1) -> list[Box]:
    """Boxes around the holes of a mask (Y, X) bool, True = hole, such that no two overlap and every hole is in one.

    A box is cut in two wherever `gap` or more rows, or cols, in it are free of holes.
    """
    cells = holes.cpu()
    boxes: list[Box] = []
    open_boxes = [Box(0, cells.shape[0], 0, cells.shape[1])]
    while open_boxes:
        box = open_boxes.pop()
        inside = box.of(cells)
        rows, cols = _runs(inside.any(1), gap), _runs(inside.any(0), gap)
        parts = [
            Box(box.top + top, box.top + bottom, box.left + left, box.left + right)
            for top, bottom in rows
            for left, right in cols
        ]
        if parts == [box]:
            boxes.append(box)
        else:
            open_boxes += parts
    return sorted(boxes)


def _runs(filled: Tensor, gap: int) -> list[tuple[int, int]]:
    """Starts and stops of what is filled, joined over fewer than `gap` empty places."""
    runs: list[tuple[int, int]] = []
    for place in filled.nonzero().flatten().tolist():
        if runs and place - runs[-1][1] < gap:
            runs[-1] = (runs[-1][0], place + 1)
        else:
            runs.append((place, place + 1))
    return runs


def rounds(holes: Tensor, rim: int) -> list[Round]:
    """Group the holes of a batch into attention calls: the first box of every sample, then the second, and so on.

    Boxes of a round are widened to a common size, and each by `rim` pixels on every side where the map goes on.

    Args:
        holes: (B, 1, Y, X) bool.
        rim: pixels around a box that its queries' patches reach.
    """
    size = Size(*holes.shape[2:])
    found = [hole_boxes(mask[0], gap=2 * rim + 1) for mask in holes]
    made = []
    for turn in range(max(map(len, found), default=0)):
        samples = tuple(number for number, boxes in enumerate(found) if len(boxes) > turn)
        boxes = [found[number][turn] for number in samples]
        common = Size(max(box.size.rows for box in boxes), max(box.size.cols for box in boxes))
        placed = [_placed(box, common, size, rim) for box in boxes]
        made.append(Round(samples, tuple(outer for outer, _ in placed), tuple(inner for _, inner in placed)))
    return made


def _placed(box: Box, common: Size, size: Size, rim: int) -> tuple[Box, Box]:
    """A window of the common size and its rim around a box, moved inwards at the map's border; and the box in it."""
    spans = []
    for start, length, side in ((box.top, common.rows, size.rows), (box.left, common.cols, size.cols)):
        wide = min(side, length + 2 * rim)
        first = min(max(0, start - rim), side - wide)
        spans.append((first, first + wide, start - first))
    (top, bottom, row), (left, right, col) = spans
    return Box(top, bottom, left, right), Box(row, row + box.size.rows, col, col + box.size.cols)


def stacked(maps: Tensor, turn: Round) -> Tensor:
    """The outer boxes of a round, out of a map (B, C, Y, X): (samples, C, rows, cols)."""
    return torch.cat([box.of(maps[number : number + 1]) for number, box in zip(turn.samples, turn.outer, strict=True)])
