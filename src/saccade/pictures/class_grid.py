"""Sheets of samples with a row a class: what a class-conditional generator makes of the same latent vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saccade.pictures.canvas import (
    FAINT,
    Picture,
    blank,
    enlarge,
    fit_text,
    readable_height,
    text_size,
    write_text,
)

_GAP, _MARGIN = 4, 10
_TEXT, _SMALL = 14, 12
# Ours: below it 32-pixel samples cannot be told apart, above it a sheet of 128-pixel ones gets too large.
_LEAST_TILE, _LABEL_WIDTH = 96, 160


@dataclass(frozen=True)
class Row:
    """The name of a class, or anything else that its pictures share, and the pictures."""

    label: str
    pictures: Sequence[Picture]


def class_grid(
    rows: Sequence[Row],
    *,
    headings: Sequence[str] = (),
    tile: int | None = None,
    title: str = "",
    note: str = "",
) -> Picture:
    """Lay rows of pictures out with their labels on the left.

    Args:
        rows: a shorter one ends early; pictures may differ in size, each is brought to `tile` rows.
        headings: one over each column; none by default.
        tile: rows of one picture, pixels; None is a whole multiple of the pictures' that can be looked at.
        title: a line above.
        note: a fainter line below.

    Raises:
        ValueError: no rows, a row without pictures, or headings of another number than columns.
    """
    lengths = [len(row.pictures) for row in rows]
    if not lengths or not min(lengths):
        raise ValueError(f"class_grid: at least one row, and a picture in every row, are needed; got {lengths}")
    columns = max(lengths)
    if headings and len(headings) != columns:
        raise ValueError(f"class_grid: {columns} columns have {len(headings)} headings")
    tile = readable_height(rows[0].pictures[0].shape[0], least=_LEAST_TILE) if tile is None else tile
    cells = [[enlarge(picture, tile) for picture in row.pictures] for row in rows]
    wide = max(cell.shape[1] for line in cells for cell in line)
    labels = [fit_text(row.label, _LABEL_WIDTH, _TEXT) for row in rows]
    left = _MARGIN + max(text_size(label, _TEXT)[1] for label in labels) + (12 if any(labels) else 0)
    top = _MARGIN + (_TEXT + 12 if title else 0) + (_SMALL + 8 if headings else 0)
    width = left + columns * (wide + _GAP) - _GAP + _MARGIN
    body = len(rows) * (tile + _GAP) - _GAP
    sheet = blank(top + body + _MARGIN + (_SMALL + 8 if note else 0), width)
    room = width - 2 * _MARGIN
    if title:
        sheet = write_text(sheet, fit_text(title, room, _TEXT), (_MARGIN, _MARGIN), size=_TEXT)
    for column, heading in enumerate(headings):
        at = (top - _SMALL - 8, left + column * (wide + _GAP) + wide // 2)
        sheet = write_text(sheet, fit_text(heading, wide, _SMALL), at, size=_SMALL, colour=FAINT, anchor="ma")
    for line, (label, pictures) in enumerate(zip(labels, cells, strict=True)):
        row = top + line * (tile + _GAP)
        sheet = write_text(sheet, label, (row + tile // 2, left - 12), size=_TEXT, anchor="rm")
        for column, cell in enumerate(pictures):
            col = left + column * (wide + _GAP) + (wide - cell.shape[1]) // 2
            sheet[row : row + tile, col : col + cell.shape[1]] = cell
    if note:
        sheet = write_text(sheet, fit_text(note, room, _SMALL), (top + body + 8, _MARGIN), size=_SMALL, colour=FAINT)
    return sheet
