"""A picture rebuilt by several methods, side by side, with parts enlarged: Fig. 2 of the PSAL paper (arXiv 2202.03163).

Parts are chosen where the methods differ most, so that a sheet shows what the mean error hides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from saccade.pictures.canvas import (
    FAINT,
    Colour,
    Picture,
    blank,
    enlarge,
    fit_text,
    require_picture,
    stack,
    text_size,
    write_text,
)

_GAP, _MARGIN = 6, 10
_HEAD, _SMALL = 14, 12
_BORDER = 3
_FAILS = 5.0  # ours: so many times the least error
_LEAST_PART = 40  # of a part on the sheet, pixels: pictures may be very narrow
FRAMES: tuple[Colour, ...] = ((214, 39, 40), (31, 119, 180), (44, 160, 44), (255, 152, 0))


class Zoom(NamedTuple):
    """A square part of a picture, in its pixels."""

    top: int
    left: int
    side: int


class Shown(NamedTuple):
    """One column: a heading, a fainter line below it, and the picture."""

    heading: str
    remark: str
    picture: Picture


def choose_zooms(target: Picture, rebuilt: Sequence[Picture], count: int = 2, side: int | None = None) -> list[Zoom]:
    """The parts in which methods differ most: where their mean squared errors are furthest apart.

    Methods that fail on the whole picture are not asked: they would only show where it is colourful.

    Args:
        target: the true picture.
        rebuilt: pictures of its size, one or more; of one alone, its largest errors are taken.
        count: parts, which do not overlap; fewer where there is no room.
        side: of a part, pixels; None is a sixth of the shorter side.

    Raises:
        ValueError: no picture, pictures of different sizes, or a part larger than the picture.
    """
    sizes = {picture.shape for picture in (target, *rebuilt)}
    if not rebuilt or len(sizes) > 1:
        raise ValueError(f"choose_zooms: one or more pictures of the target's size are needed; got {sorted(sizes)}")
    rows, cols = target.shape[:2]
    side = max(1, min(rows, cols) // 6) if side is None else side
    if not 1 <= side <= min(rows, cols):
        raise ValueError(f"choose_zooms: a part of {side} pixels in a picture of {rows}x{cols}; valid: 1 to its side")
    errors = [_squares(picture, target) for picture in rebuilt]
    least = min(float(error.mean()) for error in errors)
    means = [_window_means(error, side) for error in errors if error.mean() <= _FAILS * least]
    apart = np.max(means, axis=0) - (np.min(means, axis=0) if len(means) > 1 else 0.0)
    found: list[Zoom] = []
    while len(found) < count and np.isfinite(apart).any():
        top, left = (int(place) for place in np.unravel_index(int(np.argmax(apart)), apart.shape))
        found.append(Zoom(top, left, side))
        apart[max(0, top - side + 1) : top + side, max(0, left - side + 1) : left + side] = -np.inf
    return found


def _squares(picture: Picture, target: Picture) -> NDArray[np.float64]:
    squares: NDArray[np.float64] = np.square(picture.astype(np.float64) - target).mean(axis=2)
    return squares


def _window_means(values: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Mean of every window of `side` x `side` inside the map, by its top left corner."""
    sums = np.pad(values, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    windows: NDArray[np.float64] = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    return windows / side**2


def comparison_sheet(
    columns: Sequence[Shown],
    zooms: Sequence[Zoom] = (),
    *,
    tile: int = 256,
    across: int = 5,
    title: str = "",
    note: str = "",
) -> Picture:
    """Lay pictures side by side, frame parts in them, and enlarge these below.

    Args:
        columns: pictures of any size; parts are those of the first, and the same share of the others.
        zooms: parts, in pixels of the first picture.
        tile: rows of a picture on the sheet.
        across: pictures beside each other at most; more go below.
        title: a line above.
        note: a fainter line below.

    Raises:
        ValueError: no columns, something that is no picture, or a part outside the first picture.
    """
    if not columns:
        raise ValueError("comparison_sheet: at least one picture is needed")
    for column in columns:
        require_picture(column.picture, "comparison_sheet")
    rows, cols = columns[0].picture.shape[:2]
    for zoom in zooms:
        if min(zoom.top, zoom.left) < 0 or zoom.side < 1 or zoom.top + zoom.side > rows or zoom.left + zoom.side > cols:
            raise ValueError(f"comparison_sheet: {zoom} does not lie inside the first picture of {rows}x{cols}")
    cells = [_labelled(column, _column(column.picture, (rows, cols), zooms, tile)) for column in columns]
    lines = [_beside(cells[start : start + across]) for start in range(0, len(cells), across)]
    body = stack(lines, gap=2 * _MARGIN)
    head, foot = (_HEAD + 12 if title else 0), (_SMALL + 8 if note else 0)
    sheet = blank(body.shape[0] + head + foot + 2 * _MARGIN, body.shape[1] + 2 * _MARGIN)
    sheet[_MARGIN + head : _MARGIN + head + body.shape[0], _MARGIN : _MARGIN + body.shape[1]] = body
    if title:
        sheet = write_text(sheet, fit_text(title, body.shape[1], _HEAD), (_MARGIN, _MARGIN), size=_HEAD)
    if note:
        at = (sheet.shape[0] - _MARGIN - _SMALL, _MARGIN)
        sheet = write_text(sheet, fit_text(note, body.shape[1], _SMALL), at, size=_SMALL, colour=FAINT)
    return sheet


def _labelled(column: Shown, cell: Picture) -> Picture:
    """The cell under its heading and remark."""
    width = max(cell.shape[1], text_size(column.heading, _HEAD)[1], text_size(column.remark, _SMALL)[1])
    top = _HEAD + _SMALL + 16
    sheet = blank(top + cell.shape[0], width)
    sheet = write_text(sheet, column.heading, (0, width // 2), size=_HEAD, anchor="ma")
    sheet = write_text(sheet, column.remark, (_HEAD + 6, width // 2), size=_SMALL, colour=FAINT, anchor="ma")
    left = (width - cell.shape[1]) // 2
    sheet[top:, left : left + cell.shape[1]] = cell
    return sheet


def _beside(cells: Sequence[Picture]) -> Picture:
    """Cells on one line, aligned at the top."""
    sheet = blank(max(cell.shape[0] for cell in cells), sum(cell.shape[1] + _GAP for cell in cells) - _GAP)
    col = 0
    for cell in cells:
        sheet[: cell.shape[0], col : col + cell.shape[1]] = cell
        col += cell.shape[1] + _GAP
    return sheet


def _column(picture: Picture, first: tuple[int, int], zooms: Sequence[Zoom], tile: int) -> Picture:
    """The picture with frames drawn around the parts, and the parts below it, side by side."""
    rows, cols = picture.shape[:2]
    large = enlarge(picture, tile).copy()
    down, across = large.shape[0] / first[0], large.shape[1] / first[1]
    width = max(large.shape[1], len(zooms) * (_LEAST_PART + _GAP))
    each = (width - _GAP * (len(zooms) - 1)) // max(1, len(zooms))
    sheet = blank(tile + (_GAP + each if zooms else 0), width)
    for index, zoom in enumerate(zooms):
        colour = FRAMES[index % len(FRAMES)]
        upper, leftmost = round(zoom.top * down), round(zoom.left * across)
        lower, rightmost = round((zoom.top + zoom.side) * down), round((zoom.left + zoom.side) * across)
        cv2.rectangle(large, (leftmost, upper), (rightmost - 1, lower - 1), colour, 2)
        top, left = zoom.top * rows // first[0], zoom.left * cols // first[1]
        tall, wide = max(1, zoom.side * rows // first[0]), max(1, zoom.side * cols // first[1])
        part = _to_square(picture[top : top + tall, left : left + wide], each - 2 * _BORDER)
        at = index * (each + _GAP)
        sheet[tile + _GAP :, at : at + each] = colour
        inside = slice(tile + _GAP + _BORDER, tile + _GAP + each - _BORDER)
        sheet[inside, at + _BORDER : at + each - _BORDER] = part
    sheet[:tile, : large.shape[1]] = large
    return sheet


def _to_square(part: Picture, side: int) -> Picture:
    """Enlarged with pixels as squares, so that what a method did to each stays visible."""
    return np.asarray(cv2.resize(part, (side, side), interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
