"""Pictures of sparse attention as in Fig. 2 of "Your Local GAN" (arXiv 1911.12287): masks, and the graph they make.

A row is one list of masks: each step's mask, how many paths lead from every input to every output, and the layers of
tokens with the edges that information may take. On a grid of cells a further panel numbers the cells by their
enumeration and shows what one query attends. Matplotlib is imported when something is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.attention.flow import Mask, Masks, edges, full_information, pair_flow, path_counts, read_masks
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

# Ours: up to so many tokens nodes get numbers; up to so many pair flow is worth its time.
_NUMBERED, _PAIRED = 25, 64
_PANEL, _HEAD, _LABELS = 2.5, 0.92, 0.35  # inches: a panel, the text above a row, the names of the graph's layers


@dataclass(frozen=True, eq=False)
class FlowRow:
    """One row of a picture.

    Args:
        heading: name of the list of masks.
        masks: the steps, mask[q, k] true where q may attend k; square and of one size if there is a grid.
        titles: a title for each step; "step 1", "step 2", .. by default.
        grid: the cells that the tokens are, row-major, if they are cells of a grid.
        order: the cells in enumeration order, (n,); needs `grid`.
        query: the token whose keys the grid shows; by default the one in the middle.
    """

    heading: str
    masks: Masks
    titles: Sequence[str] | None = None
    grid: Size | None = None
    order: Sequence[int] | NDArray[np.int64] | None = None
    query: int | None = None


def draw_flow(path: str | Path, masks: Masks, titles: Sequence[str] | None = None, *, heading: str = "") -> Path:
    """Write one list of masks, its path counts and its information flow graph as a PNG; see `draw_flows`."""
    return draw_flows(path, [FlowRow(heading, masks, titles)])


def draw_flows(path: str | Path, rows: Sequence[FlowRow]) -> Path:
    """Write lists of masks, one below the other, as a PNG.

    Raises:
        ValueError: no rows; masks that do not chain; titles, grid, order or query that do not fit the masks.
        RuntimeError: Matplotlib is not installed.
    """
    if not rows:
        raise ValueError("draw_flows: at least one row is needed; got none.")
    read = [_check(row) for row in rows]
    panels = [_panel_widths(row, steps) for row, steps in zip(rows, read, strict=True)]
    figure = new_figure("draw_flows", (max(map(sum, panels)) + 0.5, (_PANEL + _HEAD) * len(rows)))
    for number, (row, steps, widths) in enumerate(zip(rows, read, panels, strict=True)):
        _draw_row(figure, row, steps, widths, top=1 - number / len(rows), height=1 / len(rows))
    return write_figure(figure, Path(path))


def summary(masks: Masks) -> str:
    """The verdict on a list of masks in one line: edges, Full Information, paths, pair flow up to 64 tokens."""
    verdict, paths = full_information(masks), path_counts(masks)
    full = (
        "Full Information"
        if verdict
        else f"no Full Information: {verdict.count} of {paths.counts.size} pairs have no path"
    )
    counts = f"{paths.least}" if paths.least == paths.most else f"{paths.least} to {paths.most}"
    line = f"{edges(masks)} edges  ·  {full}  ·  {counts} paths a pair, {paths.mean:.3g} on average"
    if min(paths.counts.shape) >= 2 and max(paths.counts.shape) <= _PAIRED:
        line += f"  ·  pair flow {pair_flow(masks).share:.1%}"
    return line


def _check(row: FlowRow) -> list[Mask]:
    steps = read_masks(row.masks)
    if row.titles is not None and len(row.titles) != len(steps):
        raise ValueError(f"draw_flows: {row.heading!r} has {len(steps)} masks and {len(row.titles)} titles.")
    if row.grid is not None and any(step.shape != (row.grid.area, row.grid.area) for step in steps):
        raise ValueError(
            f"draw_flows: {row.heading!r} is on a grid of {row.grid}, so every mask must be square with "
            f"{row.grid.area} tokens; got {', '.join(str(step.shape) for step in steps)}."
        )
    if row.order is not None and (row.grid is None or sorted(row.order) != list(range(row.grid.area))):
        raise ValueError(f"draw_flows: the order of {row.heading!r} must name every cell of its grid once.")
    if row.query is not None and (row.grid is None or not 0 <= row.query < row.grid.area):
        raise ValueError(f"draw_flows: the query of {row.heading!r} must be a cell of its grid; got {row.query}.")
    return steps


def _panel_widths(row: FlowRow, steps: list[Mask]) -> list[float]:
    """Inches of each panel: the masks, the path counts, the grid if there is one, the graph."""
    tokens = max(max(step.shape) for step in steps)
    graph = min(max(0.42 * tokens, 1.4 * _PANEL), 3.2 * _PANEL) + _LABELS
    return [_PANEL] * (len(steps) + 1 + (row.grid is not None)) + [graph]


def _draw_row(figure: Any, row: FlowRow, steps: list[Mask], widths: list[float], *, top: float, height: float) -> None:
    total, tall = figure.get_size_inches()
    figure.text(0.25 / total, top - 0.16 / tall, row.heading, fontsize=13, weight="bold", color=INK, va="top")
    colour = FAINT if full_information(steps) else MISSING
    figure.text(0.25 / total, top - 0.43 / tall, summary(steps), fontsize=9, color=colour, va="top")
    bottom, left = top - height + 0.3 / tall, 0.25
    axes = []
    for number, width in enumerate(widths, 1):
        indent = _LABELS * (number == len(widths))
        inner = ((left + indent) / total, bottom, (width - 0.3 - indent) / total, (_PANEL - 0.3) / tall)
        axes.append(figure.add_axes(inner))
        left += width
    titles = row.titles or [f"step {number}" for number in range(1, len(steps) + 1)]
    for number, step in enumerate(steps):
        _draw_mask(axes[number], step, titles[number], STEP_COLOURS[number % len(STEP_COLOURS)])
    _draw_paths(axes[len(steps)], steps)
    if row.grid is not None:
        _draw_grid(axes[len(steps) + 1], row, steps, row.grid)
    _draw_graph(axes[-1], steps)


def _draw_mask(axes: Any, step: Mask, title: str, colour: str) -> None:
    draw_cells(axes, np.where(step[..., None], rgb(colour), rgb(EMPTY)))
    draw_title(axes, f"{title}  ({int(step.sum())})")
    axes.set_ylabel("query", fontsize=8, color=FAINT, labelpad=2)
    axes.set_xlabel("key", fontsize=8, color=FAINT, labelpad=2)


def _draw_paths(axes: Any, steps: list[Mask]) -> None:
    """Every output (row) and input (column): darker for more paths, red for none."""
    counts = path_counts(steps).counts.astype(float)
    depth = 0.3 + 0.7 * counts / max(counts.max(), 1)
    colours = 1 - depth[..., None] * (1 - rgb("#475064"))
    colours[counts == 0] = rgb(MISSING)
    draw_cells(axes, colours)
    draw_title(axes, "paths  (red: none)" if (counts == 0).any() else "paths")
    axes.set_ylabel("output", fontsize=8, color=FAINT, labelpad=2)
    axes.set_xlabel("input", fontsize=8, color=FAINT, labelpad=2)
    if max(counts.shape) <= 12 and counts.max() < 100:
        for (row, col), count in np.ndenumerate(counts):
            axes.text(col + 0.5, row + 0.52, f"{count:.0f}", fontsize=7, color="white", ha="center", va="center")


def _draw_grid(axes: Any, row: FlowRow, steps: list[Mask], grid: Size) -> None:
    """The cells with their enumeration numbers; the query outlined, its keys in their step's colour."""
    order = np.arange(grid.area) if row.order is None else np.asarray(row.order)
    query = grid.rows // 2 * grid.cols + grid.cols // 2 if row.query is None else row.query
    colours = np.broadcast_to(rgb(EMPTY), (grid.area, 3)).copy()
    for cell in range(grid.area):
        seen = [rgb(STEP_COLOURS[i % len(STEP_COLOURS)]) for i, step in enumerate(steps) if step[query, cell]]
        if seen:
            colours[cell] = np.mean(seen, 0)
    draw_cells(axes, colours.reshape(*grid, 3))
    if grid.area <= 256:
        for number, cell in enumerate(order):
            dark = any(step[query, cell] for step in steps)
            axes.text(
                cell % grid.cols + 0.5,
                cell // grid.cols + 0.52,
                str(number),
                fontsize=min(8, 56 / max(grid)),
                color="white" if dark else FAINT,
                ha="center",
                va="center",
            )
    row_of, col_of = divmod(query, grid.cols)
    draw_outline(axes, row_of, col_of)
    draw_title(axes, f"keys of cell ({row_of}, {col_of})")


def _draw_graph(axes: Any, steps: list[Mask]) -> None:
    """Layers of tokens, V0 above; edges in the direction of information, in their step's colour."""
    from matplotlib.collections import LineCollection

    sizes = [steps[0].shape[1], *(step.shape[0] for step in steps)]
    widest, depth = max(sizes), len(steps)
    places = [(np.arange(size) + 0.5) * widest / size for size in sizes]
    busy = max(int(step.sum()) for step in steps)
    alpha, line = (0.75, 1.1) if busy <= 150 else (0.45, 0.7) if busy <= 700 else (0.15, 0.4)
    for number, step in enumerate(steps):
        queries, keys = np.nonzero(step)
        ends = np.stack([places[number][keys], np.full(len(keys), number * 1.0)], 1)
        tips = np.stack([places[number + 1][queries], np.full(len(keys), number + 1.0)], 1)
        colour = STEP_COLOURS[number % len(STEP_COLOURS)]
        axes.add_collection(
            LineCollection(list(np.stack([ends, tips], 1)), colors=colour, linewidths=line, alpha=alpha)
        )
    verdict = full_information(steps)
    if not verdict:
        output, source = (int(x) for x in verdict.missing[0])
        start, end = places[0][source], places[-1][output]
        axes.plot([start, end], [0, depth], color=MISSING, linewidth=1.6, linestyle=(0, (4, 2.5)), zorder=3)
    width_inches = axes.get_position().width * axes.figure.get_size_inches()[0]
    diameter = min(15.0, 0.8 * 72 * width_inches / (widest + 1))  # points
    for layer, (size, where) in enumerate(zip(sizes, places, strict=True)):
        edge = [INK] * size
        if not verdict and layer in (0, depth):
            edge[int(verdict.missing[0][0 if layer else 1])] = MISSING
        axes.scatter(where, np.full(size, layer), s=diameter**2, c="white", edgecolors=edge, linewidths=0.9, zorder=4)
        if size <= _NUMBERED:
            for token, place in enumerate(where):
                axes.text(
                    place,
                    layer,
                    str(token),
                    fontsize=min(7.5, 0.52 * diameter),
                    color=INK,
                    ha="center",
                    va="center_baseline",
                    zorder=5,
                )
        axes.text(-0.01 * widest - 0.35, layer, f"$V_{{{layer}}}$", fontsize=10, color=INK, ha="right", va="center")
    axes.set_xlim(-0.2, widest + 0.2)
    axes.set_ylim(depth + 0.15, -0.15)
    apart = "" if verdict else f"   (dashed: no path from {verdict.missing[0][1]} to {verdict.missing[0][0]})"
    draw_title(axes, f"information flow{apart}")
