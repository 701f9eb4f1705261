"""What attention finds salient, and what inversion makes of it (arXiv 1911.12287, Figs 5, 6, 8 and 11).

Saliency is drawn as the released code does: bilinear, the magma colours from the least to the greatest value of a map
at opacity 0.65, the image under it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    readable_height,
    require_picture,
    write_text,
)
from saccade.pictures.class_grid import Row, class_grid
from saccade.pictures.grid import Column, grid

OPACITY = 0.65
_DOT: Colour = (42, 98, 255)
_CAPTION = 12
_DIM = 0.6  # share of black over what a head may not see
_EDGE: Colour = (150, 200, 255)
_FLAT = 1e-6  # a map that varies by less than this share is of one colour


def magma(values: NDArray[np.floating]) -> Picture:
    """Matplotlib's magma colours of a map of values in 0..1, cut outside: black is nothing, pale yellow is all."""
    level = np.rint(np.clip(values, 0.0, 1.0) * 255).astype(np.uint8)
    return np.ascontiguousarray(cv2.applyColorMap(level, cv2.COLORMAP_MAGMA)[..., ::-1])


def spread(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """A map with its least value at 0 and its greatest at 1; 0 everywhere if it is flat."""
    low, high = float(values.min()), float(values.max())
    if high - low <= _FLAT * max(abs(low), abs(high)):
        return np.zeros(values.shape)
    level: NDArray[np.float64] = (values.astype(np.float64) - low) / (high - low)
    return level


def saliency_over(picture: Picture, values: NDArray[np.floating], *, opacity: float = OPACITY) -> Picture:
    """Lay a saliency map over its image.

    Args:
        picture: (rows, cols, 3) uint8.
        values: (Yk, Xk), of any size and range.
        opacity: of the map.

    Raises:
        ValueError: not a picture, a map that is none or not finite, or an opacity outside 0..1.
    """
    require_picture(picture, "saliency_over")
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(f"saliency_over: a map is (rows, cols) of finite values; got shape {values.shape}")
    if not 0.0 <= opacity <= 1.0:
        raise ValueError(f"saliency_over: opacity is 0 to 1; got {opacity}")
    rows, cols = picture.shape[:2]
    level = cv2.resize(spread(values), (cols, rows), interpolation=cv2.INTER_LINEAR)
    return _mix(picture, magma(level), opacity)


def _mix(under: Picture, over: Picture | Colour, share: float) -> Picture:
    mixed: Picture = np.rint(under * (1.0 - share) + np.asarray(over, dtype=np.float64) * share).astype(np.uint8)
    return mixed


def captioned(picture: Picture, tile: int, caption: str) -> Picture:
    """A picture brought to `tile` rows with a line of text under it."""
    cell = enlarge(picture, tile)
    sheet = blank(tile + _CAPTION + 8, cell.shape[1])
    sheet[:tile] = cell
    text = fit_text(caption, cell.shape[1] - 2, _CAPTION)
    return write_text(sheet, text, (tile + 4, cell.shape[1] // 2), size=_CAPTION, colour=FAINT, anchor="ma")


def saliency_sheet(
    pictures: Sequence[Picture],
    maps: NDArray[np.floating],
    heads: Sequence[str],
    *,
    labels: Sequence[str] = (),
    tile: int | None = None,
    title: str = "",
    note: str = "",
) -> Picture:
    """Images with the saliency of each head over them, and the mean of the heads (Fig. 8): a row an image.

    Under each map stands by how much its most salient place exceeds the mean.

    Args:
        pictures: N images of one size.
        maps: (N, G, Yk, Xk).
        heads: what each of the G heads is called.
        labels: what each image is called.
        tile: rows of one image on the sheet; None is a whole multiple that can be looked at.

    Raises:
        ValueError: numbers that do not fit together.
    """
    if maps.ndim != 4 or maps.shape[:2] != (len(pictures), len(heads)) or not len(pictures):
        raise ValueError(
            f"saliency_sheet: maps are (images, heads, rows, cols); got shape {maps.shape} for {len(pictures)} images "
            f"and {len(heads)} heads"
        )
    tile = readable_height(pictures[0].shape[0], least=128) if tile is None else tile
    rows = []
    for index, (picture, of_heads) in enumerate(zip(pictures, maps, strict=True)):
        large = enlarge(picture, tile)
        every = [*of_heads, of_heads.mean(axis=0)]
        cells = [captioned(large, tile, labels[index] if labels else "")]
        cells += [captioned(saliency_over(large, one), tile, _peak(one)) for one in every]
        rows.append(Row("", cells))
    headings = ["image", *heads, "mean of heads"]
    return class_grid(rows, headings=headings, tile=tile + _CAPTION + 8, title=title, note=note)


def _peak(values: NDArray[np.floating]) -> str:
    mean = float(values.mean())
    return f"peak {float(values.max()) / mean:.1f}x mean" if mean > 0 else "nothing"


@dataclass(frozen=True)
class QueryMaps:
    """What one query looks at.

    Attributes:
        name: what the query is called.
        row, col: its place on the image as shares of its sides, 0..1.
        weights: (G, Yk, Xk), each head's attention over the keys.
        allowed: (G, Yk, Xk) bool, the keys that it may see.
    """

    name: str
    row: float
    col: float
    weights: NDArray[np.floating]
    allowed: NDArray[np.bool_]


def query_sheet(
    picture: Picture,
    queries: Sequence[QueryMaps],
    heads: Sequence[str],
    *,
    tile: int | None = None,
    title: str = "",
    note: str = "",
) -> Picture:
    """Where single queries look (Fig. 6): a row a query, a column a head, a blue dot on the query.

    Keys that a head may see are outlined and coloured by their weight, relative to the strongest; the others are dark.

    Raises:
        ValueError: no query, or maps that do not fit the heads; the query is named.
    """
    require_picture(picture, "query_sheet")
    if not queries:
        raise ValueError("query_sheet: at least one query is needed")
    for query in queries:
        if query.weights.ndim != 3 or len(query.weights) != len(heads) or query.weights.shape != query.allowed.shape:
            raise ValueError(
                f"query_sheet, query {query.name}: weights and allowed are (heads, rows, cols) of {len(heads)} heads; "
                f"got {query.weights.shape} and {query.allowed.shape}"
            )
    tile = readable_height(picture.shape[0], least=128) if tile is None else tile
    large = enlarge(picture, tile)
    rows = []
    for query in queries:
        cells = [captioned(_with_dot(large, query), tile, "")]
        for head, weights in enumerate(query.weights):
            cells.append(captioned(_query_tile(large, query, head), tile, f"strongest key {weights.max():.0%}"))
        rows.append(Row(query.name, cells))
    return class_grid(rows, headings=["query", *heads], tile=tile + _CAPTION + 8, title=title, note=note)


def _query_tile(picture: Picture, query: QueryMaps, head: int) -> Picture:
    rows, cols = picture.shape[:2]
    weights = np.asarray(query.weights[head], dtype=np.float64)
    level = weights / max(float(weights.max()), np.finfo(np.float64).tiny)
    level = cv2.resize(np.sqrt(np.clip(level, 0, 1)), (cols, rows), interpolation=cv2.INTER_NEAREST)
    seen = cv2.resize(query.allowed[head].astype(np.uint8), (cols, rows), interpolation=cv2.INTER_NEAREST) > 0
    tile: Picture = np.where(seen[..., None], _mix(picture, magma(level), OPACITY), _mix(picture, (0, 0, 0), _DIM))
    inside = cv2.erode(seen.astype(np.uint8), np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    tile[seen & (inside == 0)] = _EDGE
    return _with_dot(tile, query)


def _with_dot(picture: Picture, query: QueryMaps) -> Picture:
    marked = np.ascontiguousarray(picture).copy()
    rows, cols = marked.shape[:2]
    at = round((query.col * cols - 0.5) * 16), round((query.row * rows - 0.5) * 16)
    radius = max(3.0, rows / 36)
    for size, colour in ((radius + 1.5, (255, 255, 255)), (radius, _DOT)):
        cv2.circle(marked, at, round(size * 16), colour, -1, cv2.LINE_AA, 4)
    return marked


def inversion_sheet(
    originals: Sequence[Picture],
    inversions: Sequence[tuple[str, Sequence[Picture], Sequence[str]]],
    *,
    labels: Sequence[str] = (),
    tile: int | None = None,
    title: str = "",
    note: str = "",
) -> Picture:
    """Originals beside what each method makes of them (Figs 5 and 11): a row an image.

    Args:
        originals: N images.
        inversions: for each method its name, N images, and N captions.
        labels: what each original is called.

    Raises:
        ValueError: columns of different lengths, or none.
    """
    if not originals or not inversions:
        raise ValueError("inversion_sheet: at least one image and one method are needed")
    tile = readable_height(originals[0].shape[0], least=128) if tile is None else tile
    columns = [("original", originals, labels or [""] * len(originals)), *inversions]
    cells = [
        Column(name, [captioned(one, tile, text) for one, text in zip(pictures, texts, strict=True)])
        for name, pictures, texts in columns
    ]
    return grid(cells, tile=tile + _CAPTION + 8, title=title, note=note)
