"""What the figures of sparse attention share: a figure of white paper, panels of coloured squares, and the PNG.

Matplotlib is imported when a figure is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.files import replacing

STEP_COLOURS = ("#2563a8", "#d9772b", "#2d8a57", "#8b3fa0")
INK, FAINT, LINE, EMPTY, MISSING = "#262a33", "#767e8c", "#dfe3ea", "#f4f6f9", "#c8273a"
# Ours: above so many rows or columns the squares of a panel get no lines between them.
LINED = 50


def new_figure(who: str, inches: tuple[float, float]) -> Any:
    """A Matplotlib figure of (width, height) inches that needs no display.

    Raises:
        RuntimeError: Matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeError(
            f"{who}: pictures need Matplotlib ({error}); install it with pip install -e '.[experiments]'."
        ) from error
    figure = Figure(figsize=inches, dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def rgb(colour: str) -> NDArray[np.float64]:
    """The three shares of a colour "#rrggbb"."""
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def draw_title(axes: Any, text: str) -> None:
    """A title over a panel without ticks or frame."""
    axes.set_title(text, fontsize=9, color=INK, pad=5)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw_cells(axes: Any, colours: NDArray[np.float64]) -> None:
    """Squares of the given (rows, cols, 3) colours, with lines between where they are large enough."""
    rows, cols = colours.shape[:2]
    axes.imshow(colours, interpolation="nearest", extent=(0, cols, rows, 0), aspect="equal")
    if max(rows, cols) <= LINED:
        for col in range(cols + 1):
            axes.axvline(col, color="white", linewidth=0.8)
        for line in range(rows + 1):
            axes.axhline(line, color="white", linewidth=0.8)


def draw_outline(axes: Any, row: int, col: int, colour: str = INK, width: float = 1.8) -> None:
    """A frame round one cell."""
    axes.plot(
        [col, col + 1, col + 1, col, col],
        [row, row, row + 1, row + 1, row],
        color=colour,
        linewidth=width,
        clip_on=False,
    )


def write_figure(figure: Any, path: Path) -> Path:
    """Write the PNG so that the file is either whole or absent."""
    with replacing(path) as file:
        figure.savefig(file, format="png")
    return path
