"""Scores of several runs against training length, as Fig. 4 of "Your Local GAN": a panel for each metric, one PNG."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from saccade.attention.panels import FAINT, INK, LINE, new_figure, write_figure
from saccade.pictures.charts import PALETTE, short_number

_PANEL_INCHES = (5.4, 3.9)


@dataclass(frozen=True)
class Curve:
    """One run's values of one metric.

    Attributes:
        label: in the legend.
        xs, ys: training length and value, of the same number.
    """

    label: str
    xs: Sequence[float]
    ys: Sequence[float]

    def best(self, better: Literal["lower", "higher"]) -> tuple[float, float] | None:
        """Where and what the best value is; None if none is finite."""
        finite = [(x, y) for x, y in zip(self.xs, self.ys, strict=True) if math.isfinite(y)]
        return min(finite, key=lambda point: point[1] if better == "lower" else -point[1], default=None)


@dataclass(frozen=True)
class Panel:
    """One metric of several runs; `better` puts a ring round each run's best value."""

    metric: str
    what: str
    better: Literal["lower", "higher", ""]
    curves: Sequence[Curve]


def draw_curves(path: Path, panels: Sequence[Panel], *, x_label: str) -> Path:
    """Draw panels side by side, with one legend of runs, which have the same colour in every panel.

    Raises:
        ValueError: no panel, or a panel without a curve.
        RuntimeError: Matplotlib is not installed.
    """
    if not panels or not all(panel.curves for panel in panels):
        raise ValueError("curves: at least one panel is needed, and a curve in each")
    labels = list(dict.fromkeys(curve.label for panel in panels for curve in panel.curves))
    colours = {label: PALETTE[index % len(PALETTE)] for index, label in enumerate(labels)}
    legend_inches = 0.25 * len(labels) + 0.15
    width, height = _PANEL_INCHES[0] * len(panels), _PANEL_INCHES[1] + legend_inches
    figure = new_figure("curves", (width, height))
    handles = {}
    for index, panel in enumerate(panels):
        left, bottom = _PANEL_INCHES[0] * index + 0.7, legend_inches + 0.55
        box = (left / width, bottom / height, (_PANEL_INCHES[0] - 0.95) / width, (_PANEL_INCHES[1] - 1.25) / height)
        axes = figure.add_axes(box)
        for curve in panel.curves:
            style = {"color": colours[curve.label], "linewidth": 1.8, "marker": "o", "markersize": 2.8}
            (handles[curve.label],) = axes.plot(list(curve.xs), list(curve.ys), **style)
            best = curve.best(panel.better) if panel.better else None
            if best is not None:
                ring = {"markersize": 9, "markerfacecolor": "none", "color": colours[curve.label]}
                axes.plot([best[0]], [best[1]], "o", **ring)
        _dress(axes, panel, x_label)
    ordered = [handles[label] for label in labels]
    figure.legend(ordered, labels, loc="lower left", bbox_to_anchor=(0.6 / width, 0.05 / height), frameon=False)
    return write_figure(figure, path)


def _dress(axes: Any, panel: Panel, x_label: str) -> None:
    told = f"{panel.what}; {panel.better} is better, the best is ringed" if panel.better else panel.what
    axes.set_title(panel.metric, loc="left", fontsize=9.5, color=INK, pad=30)
    lines = "\n".join(textwrap.wrap(told, 78)[:2])
    axes.text(0, 1.03, lines, transform=axes.transAxes, fontsize=7.5, color=FAINT, va="bottom")
    axes.set_xlabel(x_label, fontsize=8.5, color=FAINT)
    axes.xaxis.set_major_formatter(lambda value, _: short_number(value))
    axes.grid(axis="y", color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8, colors=FAINT)
    for edge in ("top", "right", "left"):
        axes.spines[edge].set_visible(False)
