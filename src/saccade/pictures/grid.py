"""Labelled sheets of pictures: one column a kind (source, target, generated), one row a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from saccade.pictures.canvas import (
    FAINT,
    Colour,
    Picture,
    blank,
    enlarge,
    fit_text,
    readable_height,
    text_size,
    to_uint8,
    write_text,
)
from saccade.pictures.heat import error_map
from saccade.pictures.skeleton import draw_skeleton, skeleton_picture

_GAP = 6
_MARGIN = 10
_HEAD = 15
_SMALL = 12
_FRAME: Colour = (214, 218, 225)
TILE = 160


@dataclass(frozen=True)
class Column:
    """A heading and the pictures under it."""

    heading: str
    pictures: Sequence[Picture]


def grid(columns: Sequence[Column], *, tile: int = TILE, title: str = "", note: str = "") -> Picture:
    """Lay columns out as one picture with headings.

    Args:
        columns: all of the same length; pictures may differ in size, each is brought to `tile` rows.
        tile: rows of one cell, pixels.
        title: a line above the headings.
        note: a fainter line below the sheet.

    Raises:
        ValueError: no columns, no rows, or columns of different lengths.
    """
    if not columns or not columns[0].pictures:
        raise ValueError("grid: at least one column with one picture is needed")
    lengths = {column.heading: len(column.pictures) for column in columns}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"grid: all columns have one length; got {lengths}")
    cells = [[enlarge(picture, tile) for picture in column.pictures] for column in columns]
    widths = [
        max(text_size(column.heading, _HEAD)[1], *(cell.shape[1] for cell in cells_of))
        for column, cells_of in zip(columns, cells, strict=True)
    ]
    inner = sum(widths) + _GAP * (len(widths) - 1)
    title_rows = _HEAD + 12 if title else 0
    head_rows = _HEAD + 10
    note_rows = _SMALL + 8 if note else 0
    rows = len(cells[0])
    body = rows * tile + (rows - 1) * _GAP
    sheet = blank(2 * _MARGIN + title_rows + head_rows + body + note_rows, inner + 2 * _MARGIN)
    if title:
        sheet = write_text(sheet, fit_text(title, inner, _HEAD), (_MARGIN, _MARGIN), size=_HEAD)
    col = _MARGIN
    top = _MARGIN + title_rows + head_rows
    for column, cells_of, width in zip(columns, cells, widths, strict=True):
        middle = col + width // 2
        sheet = write_text(sheet, column.heading, (_MARGIN + title_rows, middle), size=_HEAD, colour=FAINT, anchor="ma")
        for index, cell in enumerate(cells_of):
            row = top + index * (tile + _GAP)
            left = col + (width - cell.shape[1]) // 2
            sheet[row - 1 : row + tile + 1, left - 1 : left + cell.shape[1] + 1] = _FRAME  # white borders stay visible
            sheet[row : row + tile, left : left + cell.shape[1]] = cell
        col += width + _GAP
    if note:
        sheet = write_text(sheet, fit_text(note, inner, _SMALL), (top + body + 8, _MARGIN), size=_SMALL, colour=FAINT)
    return sheet


def _required(sample: Mapping[str, Tensor], names: Sequence[str]) -> list[Tensor]:
    missing = [name for name in names if name not in sample]
    if missing:
        raise ValueError(f"sample_grid: a sample has {', '.join(names)}; missing {missing}, got {sorted(sample)}")
    return [sample[name] for name in names]


def sample_grid(
    sample: Mapping[str, Tensor], *, count: int = 4, tile: int | None = None, title: str = "", note: str = ""
) -> Picture:
    """The sheet that a pose task shows: source with its skeleton, target pose, generated, target, error.

    Args:
        sample: source, generated and, where a true one exists, target (B, 3, Y, X) in [-1, 1]; source_keypoints,
            target_keypoints (B, 18, 3). Without a target there are no target and error columns. Other entries are
            ignored.
        count: rows at most.
        tile: rows of one cell, pixels; None: a whole multiple of the image's that can be looked at.

    Raises:
        ValueError: an entry is missing, or batches of different sizes.
    """
    names = ("source", "source_keypoints", "target_keypoints", "generated")
    source, source_points, target_points, generated = _required(sample, names)
    target = sample.get("target")
    sizes = {name: sample[name].shape[0] for name in (*names, "target") if name in sample}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"sample_grid: all entries have one batch size; got {sizes}")
    rows = range(min(count, source.shape[0]))
    size = (source.shape[-2], source.shape[-1])
    tile = readable_height(size[0], least=TILE) if tile is None else tile
    scale = tile / size[0]
    sources, results = to_uint8(source[: len(rows)]), to_uint8(generated[: len(rows)])
    poses = [draw_skeleton(enlarge(sources[row], tile), source_points[row].cpu(), scale=scale) for row in rows]
    columns = [
        Column("source", list(sources)),
        Column("source pose", poses),
        Column("target pose", [skeleton_picture(target_points[row], size, height=tile) for row in rows]),
        Column("generated", list(results)),
    ]
    if target is not None:
        columns.append(Column("target", list(to_uint8(target[: len(rows)]))))
        columns.append(Column("error", list(error_map(generated[: len(rows)], target[: len(rows)]))))
    return grid(columns, tile=tile, title=title, note=note)
