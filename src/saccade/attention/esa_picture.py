"""Pictures of Your Local GAN's patterns on a grid (arXiv 1911.12287, section 4, Fig. 3): orders of cells, and mappings.

`draw_orders` numbers the cells of a grid in the order of the enumeration, coloured by block of tokens, with the way
through them and the summary tokens. `draw_mappings` shows what one query sees where the query map is larger than the
key map: which key cell's row of the pattern each query takes, and which keys that leaves it, head by head.
Matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from saccade.attention.locality import locality
from saccade.attention.panels import (
    EMPTY,
    FAINT,
    INK,
    MISSING,
    STEP_COLOURS,
    draw_cells,
    draw_outline,
    draw_title,
    new_figure,
    rgb,
    write_figure,
)
from saccade.geometry import Size
from saccade.ops.ylg.patterns import MAPPINGS, Order, QueryMapping, grid_mask, key_cells, order_of, stride_of, ylg_mask
from saccade.ops.ylg.plan import summary_tokens

ORDER_TITLES = {"esa": "by distance from the corner (ESA)", "hilbert": "along the Hilbert curve", "row": "row by row"}
MAPPING_TITLES = {
    "released": "query's number\nmodulo the number\nof keys: the\npublished code",
    "tile": "row and column\nmodulo the key\nmap's: the paper's\ntext",
    "nearest": "the key cell that\nthe query lies on:\nours",
}
# Ours: larger grids have no room for the way beside the numbers, and for numbers in their cells.
_WALKED, _NUMBERED = 12, 24
_PANEL, _MARGIN, _HEAD, _FOOT = 3.5, 0.3, 0.35, 0.62  # inches, of enumerations
_SMALL, _LABEL, _BETWEEN, _CAPTION = 2.05, 1.3, 0.14, 0.55  # inches, of mappings


def block_colour(block: int, blocks: int) -> NDArray[np.float64]:
    """A light colour for one of the blocks of tokens; neighbours differ in lightness too."""
    red, green, blue = colorsys.hls_to_rgb(0.8 * block / max(blocks, 1), (0.84, 0.74)[block % 2], 0.62)
    return np.array([red, green, blue])


def draw_orders(path: str | Path, size: Size, orders: Sequence[Order] = ("esa", "hilbert", "row")) -> Path:
    """Write the enumerations of a grid's cells side by side as a PNG.

    Raises:
        ValueError: no order, an unknown one, or a grid of fewer than four cells.
        RuntimeError: Matplotlib is not installed.
    """
    if not orders or size.area < 4:
        raise ValueError(f"draw_orders: give an order and a grid of 4 cells or more; got {list(orders)} and {size}.")
    width = len(orders) * (_PANEL + _MARGIN) + _MARGIN
    panel_height = _PANEL * size.rows / size.cols
    height = panel_height + _HEAD + _FOOT
    figure = new_figure("draw_orders", (width, height))
    for number, order in enumerate(orders):
        left = _MARGIN + number * (_PANEL + _MARGIN)
        axes = figure.add_axes((left / width, _FOOT / height, _PANEL / width, panel_height / height))
        _draw_order(axes, size, order)
        near = locality(grid_mask("ltr1", size, order), size, size)
        axes.set_xlabel(
            f"mean distance of a local key (step 1): {near.distance:.2f} cells", fontsize=8, color=FAINT, labelpad=4
        )
    _draw_legend(figure, size)
    return write_figure(figure, Path(path))


def _draw_order(axes: Any, size: Size, order: Order) -> None:
    stride = stride_of(size.area)
    blocks = -(-size.area // stride)
    walk = order_of(size, order).numpy()
    colours = np.empty((size.area, 3))
    for token, cell in enumerate(walk):
        colours[cell] = block_colour(token // stride, blocks)
    draw_cells(axes, colours.reshape(*size, 3))
    rows, cols = walk // size.cols + 0.5, walk % size.cols + 0.5
    if max(size) <= _WALKED or max(size) > _NUMBERED:
        axes.plot(cols, rows, color=INK, linewidth=0.8, alpha=0.35, zorder=2)
    if max(size) <= _WALKED:
        _draw_arrows(axes, rows, cols)
    if max(size) <= _NUMBERED:
        _draw_numbers(axes, size, rows, cols, colours[walk])
    draw_title(axes, ORDER_TITLES[order])


def _draw_arrows(axes: Any, rows: NDArray[np.float64], cols: NDArray[np.float64]) -> None:
    """A small arrow head in the middle of each step of the way, between two numbers."""
    for token in range(len(rows) - 1):
        middle = (cols[token] + cols[token + 1]) / 2, (rows[token] + rows[token + 1]) / 2
        along = np.array([cols[token + 1] - cols[token], rows[token + 1] - rows[token]])
        along = 0.02 * along / np.linalg.norm(along)
        axes.annotate(
            "",
            xy=(middle[0] + along[0], middle[1] + along[1]),
            xytext=(middle[0] - along[0], middle[1] - along[1]),
            arrowprops={"arrowstyle": "-|>", "color": INK, "alpha": 0.45, "linewidth": 0.1, "mutation_scale": 5},
            zorder=2,
        )


def _draw_numbers(
    axes: Any,
    size: Size,
    rows: NDArray[np.float64],
    cols: NDArray[np.float64],
    colours: NDArray[np.float64],
) -> None:
    """Each cell's number on its block's colour; on a filled disc for summary tokens of LTR, in a ring for RTL's."""
    lasts, firsts = (set(tokens) for tokens in _summaries(size.area))
    cell = 72 * _PANEL / size.cols  # points
    letters = min(9.0, 0.3 * cell)
    faces: list[Any] = list(colours)
    edges: list[Any] = list(colours)
    for token in firsts | lasts:
        faces[token] = INK if token in lasts else "white"
        edges[token] = INK
    axes.scatter(cols, rows, s=(0.56 * cell) ** 2, c=faces, edgecolors=edges, linewidths=1.1, zorder=3)
    for token, (row, col) in enumerate(zip(rows, cols, strict=True)):
        colour = "white" if token in lasts else INK
        axes.text(col, row, str(token), fontsize=letters, color=colour, ha="center", va="center_baseline", zorder=4)


def _summaries(n: int) -> tuple[list[int], list[int]]:
    """The tokens that every query of the second steps sees: of LTR, the last of each block; of RTL, the first."""
    return summary_tokens("summary_last", n).tolist(), summary_tokens("summary_first", n).tolist()


def _draw_legend(figure: Any, size: Size) -> None:
    width, height = figure.get_size_inches()
    lasts, firsts = _summaries(size.area)
    entries = (
        (INK, f"last of a block of {stride_of(size.area)}: every query of LTR step 2 sees these {len(lasts)}"),
        ("white", f"first of a block: every query of RTL step 2 sees these {len(firsts)}"),
    )
    axes = figure.add_axes((0, 0, 1, 0.3 / height))
    axes.set_xlim(0, width)
    axes.set_ylim(0, 0.3)
    axes.axis("off")
    shown = entries if max(size) <= _NUMBERED else ()
    for (face, words), left in zip(shown, (_MARGIN + 0.1, width / 2 + 0.1), strict=False):
        axes.scatter([left], [0.17], s=60, c=[face], edgecolors=INK, linewidths=1.1)
        axes.text(left + 0.14, 0.165, words, fontsize=8.5, color=INK, va="center")


# ---------------------------------------------------------------------- mappings


def draw_mappings(
    path: str | Path,
    q_size: Size,
    kv_size: Size,
    *,
    patterns: Sequence[str] = ("rtl1", "rtl2", "ltr1", "ltr2"),
    mappings: Sequence[QueryMapping] = MAPPINGS,
    order: Order = "esa",
    query: tuple[int, int] | None = None,
) -> Path:
    """Write, for each mapping, whose row of the pattern queries take and which keys one query sees in each head.

    Args:
        query: (row, col) on the query map; by default right of the middle and above it.

    Raises:
        ValueError: sizes that do not fit a mapping, an unknown name, or a query outside the map.
        RuntimeError: Matplotlib is not installed.
    """
    row, col = (q_size.rows // 3, 2 * q_size.cols // 3) if query is None else query
    if not patterns or not mappings or not (0 <= row < q_size.rows and 0 <= col < q_size.cols):
        raise ValueError(
            f"draw_mappings: give patterns, mappings and a query inside {q_size}; got {list(patterns)}, "
            f"{list(mappings)} and ({row}, {col})."
        )
    masks = [[ylg_mask(name, q_size, kv_size, order, mapping) for name in patterns] for mapping in mappings]
    width = _LABEL + (len(patterns) + 1) * (_SMALL + _BETWEEN)
    height = len(mappings) * (_SMALL + _CAPTION) + 0.35
    figure = new_figure("draw_mappings", (width, height))
    for line, mapping in enumerate(mappings):
        bottom = height - (line + 1) * (_SMALL + _CAPTION) + 0.25
        _draw_label(figure, mapping, bottom + _SMALL)
        view = _View(q_size, kv_size, key_cells(q_size, kv_size, mapping), row, col)
        for number in range(len(patterns) + 1):
            left = _LABEL + number * (_SMALL + _BETWEEN)
            axes = figure.add_axes((left / width, bottom / height, _SMALL / width, _SMALL / height))
            if number == 0:
                _draw_sources(axes, view)
            else:
                _draw_seen(axes, view, masks[line][number - 1], STEP_COLOURS[(number - 1) % 2])
                draw_title(axes, f"keys in head {patterns[number - 1]}")
    words = (
        f"Dot: query ({row}, {col}), on the key cell framed in black. Red frame: the key cell whose row of the pattern "
        "the query takes. Left: every query in the colour of that cell."
    )
    figure.text(0.12 / width, 0.1 / height, words, fontsize=8.5, color=INK, va="bottom")
    return write_figure(figure, Path(path))


class _View(NamedTuple):
    """A query at (row, col), and whose rows the queries take: `sources` (n_q,)."""

    q_size: Size
    kv_size: Size
    sources: Tensor
    row: int
    col: int

    @property
    def number(self) -> int:
        return self.row * self.q_size.cols + self.col

    @property
    def place(self) -> tuple[float, float]:
        """The query's centre on the key map, in key cells."""
        row = (self.row + 0.5) * self.kv_size.rows / self.q_size.rows
        return row, (self.col + 0.5) * self.kv_size.cols / self.q_size.cols


def _draw_label(figure: Any, mapping: QueryMapping, top: float) -> None:
    width, height = figure.get_size_inches()
    figure.text(0.12 / width, top / height, mapping, fontsize=12, weight="bold", color=INK, va="top")
    figure.text(
        0.12 / width,
        (top - 0.25) / height,
        MAPPING_TITLES[mapping],
        fontsize=8,
        color=FAINT,
        va="top",
        linespacing=1.35,
    )


def place_colours(size: Size) -> NDArray[np.float64]:
    """A colour for every cell of a grid that changes smoothly with its place, (n, 3): rows in hue, columns paler."""
    colours = [
        colorsys.hls_to_rgb(0.66 * row / max(size.rows - 1, 1), 0.34 + 0.46 * col / max(size.cols - 1, 1), 0.55)
        for row in range(size.rows)
        for col in range(size.cols)
    ]
    return np.array(colours)


def _draw_sources(axes: Any, view: _View) -> None:
    """The query map, each query in the colour of the key cell whose row it takes."""
    size = view.q_size
    colours = place_colours(view.kv_size)[view.sources.numpy()].reshape(*size, 3)
    axes.imshow(colours, interpolation="nearest", extent=(0, size.cols, size.rows, 0), aspect="equal")
    _draw_point(axes, view.row + 0.5, view.col + 0.5)
    draw_title(axes, f"{size} queries: whose row")


def _draw_seen(axes: Any, view: _View, mask: Tensor, colour: str) -> None:
    """The key map: what the query sees, the query, and the cell whose row it took; below, how local the mask is."""
    seen = mask[view.number].numpy().reshape(*view.kv_size, 1)
    draw_cells(axes, np.where(seen, rgb(colour), rgb(EMPTY)))
    borrowed, own = divmod(int(view.sources[view.number]), view.kv_size.cols), tuple(map(int, view.place))
    if borrowed != own:
        draw_outline(axes, *borrowed, colour=MISSING)
    draw_outline(axes, own[0], own[1])
    _draw_point(axes, *view.place)
    found = locality(mask, view.q_size, view.kv_size)
    told = f"own cell seen by {100 * found.own:.1f} % of queries" if found.own < 1 else "own cell seen by all queries"
    colour = FAINT if found.own == 1 else MISSING
    axes.set_xlabel(f"{told}\nmean distance {found.distance:.2f} cells", fontsize=7.5, color=colour, labelpad=3)


def _draw_point(axes: Any, row: float, col: float) -> None:
    axes.scatter([col], [row], s=16, c=[INK], edgecolors="white", linewidths=0.8, zorder=5)
