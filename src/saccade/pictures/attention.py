"""Where chosen query points look: lines to their keys and a heat map of each (GPA paper, Fig. 9).

Queries lie in the picture on the right (the generated or target figure), keys in the one on the left (the source). A
line's opacity is the affinity of its key, relative to the strongest key of the same query, and less where a query
looks everywhere alike. The rows of small pictures below, which the paper does not have, show each query's whole
distribution over the source; the percentage is the share of its strongest key.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from saccade.geometry import Size
from saccade.pictures.canvas import (
    FAINT,
    Colour,
    Picture,
    blank,
    enlarge,
    fit_text,
    readable_height,
    require_picture,
    text_size,
    write_text,
)
from saccade.pictures.heat import colour_map

_SHIFT = 4
_GAP = 8
_MARGIN = 10
_TEXT = 13
MAX_LINES = 48
_PEAKED = 16.0  # a key with so many times the mean share of all keys is drawn at full strength


@dataclass(frozen=True)
class Look:
    """One query point and the keys it reads.

    Attributes:
        name: what the point is ("head").
        x, y: its place in the right-hand picture's image, pixels, pixel centres at integers.
        indices: (K,) flat key positions, row-major over the key map.
        weights: (K,) their affinities; they sum to 1 over all keys that the query reads.
    """

    name: str
    x: float
    y: float
    indices: NDArray[np.int64]
    weights: NDArray[np.float64]


def query_colour(index: int, count: int) -> Colour:
    """A bright colour of its own for each of `count` queries."""
    red, green, blue = colorsys.hsv_to_rgb(index / max(count, 1), 0.75, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def _check(looks: Sequence[Look], keys: Size) -> None:
    if not looks:
        raise ValueError("attention_picture: at least one query point is needed")
    for look in looks:
        if look.indices.ndim != 1 or look.indices.shape != look.weights.shape or look.indices.size == 0:
            raise ValueError(
                f"attention_picture, query {look.name}: indices and weights are two equally long lists; "
                f"got shapes {look.indices.shape} and {look.weights.shape}"
            )
        if look.indices.min() < 0 or look.indices.max() >= keys.area:
            raise ValueError(
                f"attention_picture, query {look.name}: keys of a {keys} map are numbered 0..{keys.area - 1}; "
                f"got {look.indices.min()}..{look.indices.max()}"
            )


def _density(look: Look, keys: Size) -> NDArray[np.float64]:
    """(rows, cols) share of each key; a key that is listed twice counts twice."""
    flat = np.zeros(keys.area)
    np.add.at(flat, look.indices, look.weights)
    return flat.reshape(keys.rows, keys.cols)


def strength(shares: NDArray[np.float64]) -> float:
    """How clearly a query looks somewhere: 1 from _PEAKED times the mean share up, 0.15 if everywhere alike."""
    peak = float(shares.max()) * shares.size
    return min(1.0, max(0.15, math.log(max(peak, 1.0)) / math.log(_PEAKED)))


def _blend(canvas: Picture, mask: NDArray[np.uint8], colour: Colour) -> None:
    share = (mask.astype(np.float32) / 255.0)[..., None]
    canvas[:] = np.rint(canvas * (1.0 - share) + np.asarray(colour, dtype=np.float32) * share).astype(np.uint8)


def _fixed(x: float, y: float) -> tuple[int, int]:
    return round(x * (1 << _SHIFT)), round(y * (1 << _SHIFT))


def _draw_lines(
    canvas: Picture, look: Look, keys: Size, source: Size, start: tuple[float, float], colour: Colour
) -> None:
    """Lines from `start` (x, y on the canvas) to the strongest keys, which lie in the canvas's left `source` part."""
    shares = _density(look, keys).ravel()
    strongest = np.argsort(-shares, kind="stable")[:MAX_LINES]
    strongest = strongest[shares[strongest] > 0]
    if strongest.size == 0:
        return
    top = shares[strongest[0]] / strength(shares)
    lines, dots = (np.zeros(canvas.shape[:2], dtype=np.uint8) for _ in range(2))
    step_y, step_x = source.rows / keys.rows, source.cols / keys.cols
    for key in strongest[::-1]:  # the strongest last, over the others
        alpha = round(255 * float(shares[key] / top))
        row, col = divmod(int(key), keys.cols)
        end = _fixed((col + 0.5) * step_x - 0.5, (row + 0.5) * step_y - 0.5)
        cv2.line(lines, _fixed(*start), end, alpha * 3 // 4, 1, cv2.LINE_AA, _SHIFT)
        cv2.circle(dots, end, round(3.2 * (1 << _SHIFT)), alpha, -1, cv2.LINE_AA, _SHIFT)
    _blend(canvas, lines, colour)
    _blend(canvas, dots, colour)


def _mark(canvas: Picture, start: tuple[float, float], colour: Colour) -> None:
    for radius, paint in ((6.0, (20, 20, 24)), (4.6, colour)):
        cv2.circle(canvas, _fixed(*start), round(radius * (1 << _SHIFT)), paint, -1, cv2.LINE_AA, _SHIFT)


def _heat_tile(source: Picture, look: Look, keys: Size, colour: Colour) -> Picture:
    """The source, dimmed, lit where this query looks, in a frame of the query's colour."""
    shares = _density(look, keys)
    lit = shares / max(float(shares.max()), np.finfo(np.float64).tiny) * strength(shares)
    rows, cols = source.shape[:2]
    level = cv2.resize(np.sqrt(lit), (cols, rows), interpolation=cv2.INTER_NEAREST)
    share = (level * 0.85)[..., None]
    tile: Picture = np.rint(source * 0.45 * (1.0 - share) + colour_map(level) * share).astype(np.uint8)
    cv2.rectangle(tile, (0, 0), (cols - 1, rows - 1), colour, 3)
    return tile


def _strip(source: Picture, looks: Sequence[Look], keys: Size, width: int) -> Picture:
    """All heat tiles with their names, in rows no wider than `width`."""
    per_row = min(len(looks), max(1, min(6, width // 100)))
    side = (width - _GAP * (per_row - 1)) // per_row
    tile_rows = max(1, round(source.shape[0] * side / source.shape[1]))
    cell_rows = tile_rows + _TEXT + 8
    lines = -(-len(looks) // per_row)
    sheet = blank(lines * cell_rows + (lines - 1) * 2, width)
    small = enlarge(source, tile_rows)
    for index, look in enumerate(looks):
        tile = _heat_tile(small, look, keys, query_colour(index, len(looks)))[:, :side]
        row, col = (index // per_row) * (cell_rows + 2), (index % per_row) * (side + _GAP)
        sheet[row : row + tile.shape[0], col : col + tile.shape[1]] = tile
        share = float(_density(look, keys).max())
        label = fit_text(f"{look.name} {share:.0%}" if share >= 0.005 else look.name, side, 12)
        sheet = write_text(sheet, label, (row + tile_rows + 3, col), size=12, colour=FAINT)
    return sheet


def attention_picture(
    source: Picture,
    view: Picture,
    looks: Sequence[Look],
    keys: Size,
    *,
    height: int | None = None,
    title: str = "",
    headings: tuple[str, str] = ("source (keys)", "generated (queries)"),
) -> Picture:
    """Draw which source positions a few points of the generated figure read.

    Args:
        source: the image the key map belongs to.
        view: the image the query map belongs to.
        looks: the query points with their keys and affinities.
        keys: size of the key map that `indices` number.
        height: rows of each of the two images; None: a whole multiple that can be looked at, at least 320.
        title: a line above.

    Raises:
        ValueError: wrong shapes, no query, or a key outside the map; the query is named.
    """
    require_picture(source, "attention_picture, source")
    require_picture(view, "attention_picture, view")
    _check(looks, keys)
    height = readable_height(view.shape[0], least=320) if height is None else height
    left, right = enlarge(source, height), enlarge(view, height)
    scale = height / view.shape[0]
    offset = left.shape[1] + _GAP
    pair = blank(height, offset + right.shape[1])
    pair[:, : left.shape[1]], pair[:, offset:] = left, right
    shaded: Picture = np.rint(pair * 0.8).astype(np.uint8)  # lines must stand out against bright garments
    shaded[:, left.shape[1] : offset] = 255
    area = Size(left.shape[0], left.shape[1])
    starts = [((look.x + 0.5) * scale - 0.5 + offset, (look.y + 0.5) * scale - 0.5) for look in looks]
    colours = [query_colour(index, len(looks)) for index in range(len(looks))]
    for look, start, colour in zip(looks, starts, colours, strict=True):
        _draw_lines(shaded, look, keys, area, start, colour)
    for start, colour in zip(starts, colours, strict=True):
        _mark(shaded, start, colour)
    strip = _strip(left, looks, keys, shaded.shape[1])
    return _assemble(shaded, strip, title, headings, (left.shape[1] // 2, offset + right.shape[1] // 2))


def _assemble(
    pair: Picture, strip: Picture, title: str, headings: tuple[str, str], middles: tuple[int, int]
) -> Picture:
    title_rows = text_size("Ag", 15)[0] + 8 if title else 0
    head_rows = _TEXT + 10
    top = _MARGIN + title_rows + head_rows
    sheet = blank(top + pair.shape[0] + _GAP + strip.shape[0] + _MARGIN, pair.shape[1] + 2 * _MARGIN)
    if title:
        sheet = write_text(sheet, fit_text(title, pair.shape[1], 15), (_MARGIN, _MARGIN), size=15)
    for heading, middle in zip(headings, middles, strict=True):
        at = (_MARGIN + title_rows, _MARGIN + middle)
        sheet = write_text(sheet, heading, at, size=_TEXT, colour=FAINT, anchor="ma")
    sheet[top : top + pair.shape[0], _MARGIN : _MARGIN + pair.shape[1]] = pair
    below = top + pair.shape[0] + _GAP
    sheet[below : below + strip.shape[0], _MARGIN : _MARGIN + strip.shape[1]] = strip
    return sheet
