"""Curves of time, memory and error against the number of pixels, one line a backend, named where it ends."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attention_bench.published import TABLE1_GIB
from attention_bench.verdicts import BOTH, figure, side

Row = dict[str, Any]
Points = dict[str, list[tuple[float, float]]]  # label -> (pixels, value), in order

# Eight colours that the colour-blind tell apart (Okabe and Ito 2008), yellow darkened to be read on white; families
# share one and differ in dashes and markers.
STYLE: dict[str, tuple[str, str, str]] = {  # label: colour, dashes, marker
    "full": ("#222222", "-", "o"),
    "gpa": ("#0072B2", "-", "o"),
    "ylg": ("#CC79A7", "-", "o"),
    "local": ("#B59A00", "-", "o"),
    "linear": ("#56B4E9", "-", "s"),
    "performer": ("#E69F00", "-", "s"),
    "reformer": ("#D55E00", "-", "s"),
    "nystromformer": ("#7A5CA8", "-", "s"),
    "psal-3": ("#009E73", "-", "^"),
    "psal-aggregate": ("#009E73", "--", "v"),
    "peer-sdpa": ("#222222", ":", ""),
    "peer-performer": ("#E69F00", ":", ""),
    "peer-reformer": ("#D55E00", ":", ""),
    "peer-nystrom": ("#7A5CA8", ":", ""),
    "peer-local": ("#B59A00", ":", ""),
    "peer-natten": ("#B59A00", ":", ""),
}
NAMES = {
    "full": "full",
    "gpa": "GPA",
    "ylg": "YLG",
    "nystromformer": "Nyströmformer",
    "psal-3": "PSAL 3",
    "psal-aggregate": "PSAL aggregate",
    "peer-sdpa": "torch SDPA",
    "peer-performer": "performer-pytorch",
    "peer-reformer": "reformer-pytorch",
    "peer-nystrom": "nystrom-attention",
    "peer-local": "local-attention (1-D)",
    "peer-natten": "NATTEN",
}
TITLES = {
    "layers": "7x7 patches, 16 channels (PSAL's Table 1 setting)",
    "pixels": "single pixels, 64 channels (as in a transformer)",
}
PANEL_INCHES = 7.2  # of which the names right of the lines take two
INK, FAINT = "#222222", "#d9d9d9"


def draw_all(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write the pictures for which there are rows."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in (("time", _time), ("memory", _memory), ("error", _error)):
        path = folder / f"attention_{name}.png"
        if draw(rows, path):
            written.append(path)
    return written


def series(rows: Sequence[Row], suite: str, mode: str, value: Callable[[Row], float | None]) -> Points:
    """Points of each label that has at least one figure, on features of a photograph."""
    found: Points = {}
    for row in rows:
        if row["suite"] == suite and row["mode"] == mode and row["inputs"] != "noise" and row["label"] in STYLE:
            y = value(row)
            if y is not None and y > 0:
                found.setdefault(row["label"], []).append((float(side(row) ** 2), y))
    return {label: sorted(points) for label, points in found.items()}


def _panels(count: int, title: str, note: str) -> tuple[Any, list[Any]]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.family": "DejaVu Sans", "font.size": 9.5, "axes.edgecolor": "#888888"})
    width, height = PANEL_INCHES * count, 5.3
    fig = pyplot.figure(figsize=(width, height))
    axes = [
        fig.add_axes(((PANEL_INCHES * i + 0.7) / width, 0.85 / height, (PANEL_INCHES - 2.75) / width, 3.55 / height))
        for i in range(count)
    ]
    left = 0.12 / width
    fig.suptitle(title, x=left, y=1 - 0.1 / height, ha="left", fontsize=13, fontweight="bold", color=INK)
    wrapped = "\n".join(textwrap.wrap(note, 112 * count))
    fig.text(left, 0.07 / height, wrapped, ha="left", va="bottom", fontsize=8, color="#666666")
    return fig, axes


def _draw(axis: Any, points: Points, heading: str, unit: str, sides: Sequence[int]) -> None:
    for label, line in points.items():
        colour, dashes, marker = STYLE[label]
        xs, ys = zip(*line, strict=True)
        thin = label.startswith("peer")
        axis.plot(
            *(xs, ys),
            *(),
            color=colour,
            linestyle=dashes,
            linewidth=1.3 if thin else 2.0,
            marker=marker or None,
            markersize=4.5,
            markeredgecolor="white",
            markeredgewidth=0.6,
            solid_capstyle="round",
            zorder=2 if thin else 3,
        )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks([side * side for side in sides], [f"{side}²" for side in sides])
    axis.minorticks_off()
    axis.yaxis.set_major_formatter("{x:g}")
    axis.grid(axis="y", color=FAINT, linewidth=0.7)
    axis.set_axisbelow(True)
    for edge in ("top", "right", "left"):
        axis.spines[edge].set_visible(False)
    axis.tick_params(length=0, colors="#444444")
    axis.set_xlabel("query pixels = key pixels", color="#444444")
    axis.set_title(f"{heading}\n", loc="left", fontsize=10.5, color=INK, pad=2)
    axis.text(0, 1.012, unit, transform=axis.transAxes, fontsize=9, color="#666666", va="bottom")


def _name_ends(axis: Any, points: Points) -> None:
    """Write each line's name right of the plot, at the height where it ends; names keep a distance."""
    import math

    axis.figure.canvas.draw()
    low, high = (math.log10(y) for y in axis.get_ylim())
    last = max((line[-1][0] for line in points.values()), default=1.0)
    left, right = (math.log2(x) for x in axis.get_xlim())
    ends = sorted((math.log10(line[-1][1]), label) for label, line in points.items())
    heights = spread([(y - low) / (high - low) for y, _ in ends], gap=0.047)
    for (y, label), height in zip(ends, heights, strict=True):
        colour = STYLE[label][0]
        x, end = points[label][-1]
        at = (math.log2(x) - left) / (right - left)
        if label.startswith("peer") or abs(height - (y - low) / (high - low)) > 0.008 or x < last:
            axis.plot(
                [at + 0.012, 1.02], [(math.log10(end) - low) / (high - low), height],
                transform=axis.transAxes, color=colour, linewidth=0.6, alpha=0.55, clip_on=False,
            )  # fmt: skip
        weight = "normal" if label.startswith("peer") else "bold"
        axis.text(
            1.028, height, NAMES.get(label, label), transform=axis.transAxes, color=colour, va="center",
            fontsize=8.5 if weight == "normal" else 9.5, fontweight=weight,
        )  # fmt: skip


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Heights in order, moved as little as it takes to keep `gap` between neighbours."""
    groups: list[list[float]] = [[height] for height in heights]
    centres = list(heights)
    merged = True
    while merged:
        merged = False
        for i in range(len(groups) - 1):
            reach = gap * (len(groups[i]) + len(groups[i + 1])) / 2
            if centres[i + 1] - centres[i] < reach - 1e-9:
                groups[i] += groups.pop(i + 1)
                centres.pop(i + 1)
                centres[i] = sum(groups[i]) / len(groups[i])
                merged = True
                break
    placed: list[float] = []
    for group, centre in zip(groups, centres, strict=True):
        first = centre - gap * (len(group) - 1) / 2
        placed += [first + gap * index for index in range(len(group))]
    return placed


def _finish(fig: Any, path: Path) -> None:
    fig.savefig(path, dpi=150, facecolor="white")
    from matplotlib import pyplot

    pyplot.close(fig)


def _conditions(rows: Sequence[Row]) -> str:
    suites = [row for row in rows if row["suite"] in TITLES]
    row = suites[0]
    threads = "-".join(sorted({str(r["threads"]) for r in suites}))
    return f"{row['device_name']}, {threads} thread(s), torch {row['torch']}, {row['dtype']}, batch 1"


def _sides(points: Points) -> list[int]:
    return sorted({round(x**0.5) for line in points.values() for x, _ in line})


def _two(rows: Sequence[Row], path: Path, title: str, note: str, parts: Sequence[tuple[str, str, Points]]) -> bool:
    parts = [part for part in parts if part[2]]
    if not parts:
        return False
    fig, axes = _panels(len(parts), title, note)
    for axis, (heading, unit, points) in zip(axes, parts, strict=True):
        _draw(axis, points, heading, unit, _sides(points))
        _name_ends(axis, points)
    _finish(fig, path)
    return True


def _time(rows: Sequence[Row], path: Path) -> bool:
    parts = [
        (
            TITLES[suite],
            "ms for one forward pass",
            series(rows, suite, "forward", lambda r: figure(r, "wall_ms_median")),
        )
        for suite in TITLES
    ]
    if not any(part[2] for part in parts):
        return False
    note = f"Median wall time. {_conditions(rows)}. Lines end where a run would take minutes."
    return _two(rows, path, "Time of attention between two maps", note, parts)


def _memory(rows: Sequence[Row], path: Path) -> bool:
    def mib(row: Row) -> float | None:
        return figure(row, "peak_new_mib")

    patches = series(rows, "memory", BOTH, mib) or series(rows, "layers", BOTH, mib)
    parts = [
        (TITLES["layers"], "MiB above q, k and v, forward + backward", patches),
        (TITLES["pixels"], "MiB above q, k and v, forward + backward", series(rows, "pixels", BOTH, mib)),
    ]
    parts = [part for part in parts if part[2]]
    if not parts:
        return False
    note = "Peak of new allocations, fp32, batch 1. Crosses: PSAL's Table 1 (arXiv 2202.03163) for the same layers."
    fig, axes = _panels(len(parts), "Peak memory of attention between two maps", note)
    for axis, (heading, unit, points) in zip(axes, parts, strict=True):
        _draw(axis, points, heading, unit, _sides(points))
        if heading == TITLES["layers"]:
            for label, figures in TABLE1_GIB.items():
                if label in points:
                    known = [(s * s, 1024 * gib) for s, gib in figures.items() if s in _sides(points)]
                    axis.plot(*zip(*known, strict=True), "x", color=STYLE[label][0], markersize=5, alpha=0.75, zorder=1)
        _name_ends(axis, points)
    _finish(fig, path)
    return True


def _error(rows: Sequence[Row], path: Path) -> bool:
    def share(row: Row) -> float | None:
        ours, mean = figure(row, "error"), figure(row, "error_of_mean")
        return None if ours is None or not mean else max(ours / mean, 1e-4)

    parts = []
    for suite, heading in TITLES.items():
        points = series(rows, suite, "forward", share)
        exact = {label for label in points if label in ("full", "peer-sdpa")}
        parts.append(
            (heading, "error / error of the mean of all values", {k: v for k, v in points.items() if k not in exact})
        )
    note = (
        "Mean relative l2 error against exact attention of the same score and temperature, over that of a layer that "
        "finds nothing (1 = no better). Features of a photograph and of its warped copy."
    )
    return _two(rows, path, "How far from exact attention", note, parts)
