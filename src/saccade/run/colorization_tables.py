"""Tables 4, 5 and 8 and Fig. 5 of PSAL (arXiv 2202.03163) from the rows of a study, the paper's numbers beside."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from saccade.pictures.charts import line_chart
from saccade.run.colorization_methods import METHODS, SWAPPED_TO, TABLE_4, TABLE_5, TABLE_8
from saccade.run.report_style import STYLE

Row = Mapping[str, Any]
_PAPER = "256x256 of DAVIS 2017, 200,000 pairs"


@dataclass(frozen=True)
class Summary:
    """One attention trained and one tested, over the seeds."""

    errors: Mapping[int, float]  # squared error by seed
    gflops: float
    memory_mib: float
    seconds: float

    @property
    def mean(self) -> float:
        return fmean(self.errors.values())

    def __str__(self) -> str:
        if len(self.errors) < 2:
            return f"{self.mean:.5f}"
        return f"{self.mean:.5f} ± {stdev(self.errors.values()):.5f}"


Summaries = Mapping[tuple[str, str], Summary]


def error_column(row: Row) -> str:
    """The column of the squared error without the margin that the loss leaves out, `mse_crop<pixels>`.

    Raises:
        ValueError: the row holds none.
    """
    for name in row:
        if name.startswith("mse_crop") and name.removeprefix("mse_crop").isdigit():
            return name
    raise ValueError(f"study: a row holds no mse_crop<pixels>; it holds {', '.join(row)}")


def summarise(rows: Sequence[Row]) -> dict[tuple[str, str], Summary]:
    """The rows of a study by (trained, tested).

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("study: no rows, so there is no table")
    column = error_column(rows[0])
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["trained"], row["tested"]), []).append(row)
    return {
        pair: Summary(
            errors={int(row["seed"]): float(row[column]) for row in group},
            gflops=float(group[0]["gflops"]),
            memory_mib=float(group[0]["memory_mib"]),
            seconds=fmean(float(row["train_seconds"]) for row in group),
        )
        for pair, group in groups.items()
    }


def tables(rows: Sequence[Row]) -> str:
    """The whole page, in Markdown.

    Raises:
        ValueError: no rows.
    """
    found = summarise(rows)
    parts = [_heading(rows)]
    for number, about, published in ((4, "PSAL by matches", TABLE_4), (5, "Full, by similarity", TABLE_5)):
        shown = [name for name in published if (name, name) in found]
        if shown:
            parts.append(f"## Table {number}: {about}\n\n{_by_method(shown, published, found)}")
    others = [a for a, b in found if a == b and a not in TABLE_4 and a not in TABLE_5]
    if others:
        parts.append(f"## Other attentions\n\n{_by_method(others, {}, found)}")
    parts += [f"## Table 8: trained with, tested with\n\n{_table_8(found)}", _findings(found)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _heading(rows: Sequence[Row]) -> str:
    first, column = rows[0], error_column(rows[0])
    stand_in = first["source"] == "standin"
    strides = sorted({str(row["full_stride"]) for row in rows if row.get("full_stride")})
    keys = "" if strides in ([], ["1"]) else f" Full's keys are {', '.join(strides)} rows and columns apart."
    grey = float(first[f"{column}_grey"])
    told = [
        "# Guided colorization",
        f"{first['side']}x{first['side']}, {int(first['images']):,} training pairs, seeds "
        f"{', '.join(str(seed) for seed in dict.fromkeys(row['seed'] for row in rows))}, {first['data']}"
        f"{' (stand-in)' if stand_in else ''}. Squared error of RGB in [0, 1] without "
        f"{column.removeprefix('mse_crop')} pixels at each side, mean over test pairs, ± standard deviation over "
        f"seeds. Leaving the frame grey scores {grey:.5f}.{keys} GFLOPs are of one attention call as the backend "
        f"counts them; memory is what the attention's block needs, forward and backward, measured. Seconds are one "
        f"training's, on {first['threads']} thread{'s' if str(first['threads']) != '1' else ''}.",
    ]
    if stand_in or int(first["side"]) != 256 or int(first["images"]) < 200_000:
        told.append(
            f"**Not comparable with the paper's columns**, which are of {_PAPER}: what may be compared is the order."
        )
    return "\n\n".join(told)


def _by_method(names: Sequence[str], published: Mapping[str, float], found: Summaries) -> str:
    lines = [
        [
            METHODS[name].label,
            f"{published[name]:g}" if name in published else "",
            str(summary := found[name, name]),
            f"{summary.gflops:.3g}",
            f"{summary.memory_mib:.3g}",
            f"{summary.seconds:.0f}",
        ]
        for name in names
    ]
    return markdown(["attention", "paper", "squared error", "GFLOPs", "memory, MiB", "seconds"], lines)


def _table_8(found: Summaries) -> str:
    lines = []
    for swap in TABLE_8:
        summary = found.get((swap.trained, swap.tested))
        if summary is not None:
            lines.append(
                [
                    METHODS[swap.trained].label,
                    METHODS[swap.tested].label,
                    f"{swap.error:g}",
                    str(summary),
                    f"{swap.gflops:g}",
                    f"{summary.gflops:.3g}",
                    f"{swap.memory * 1024:.3g}",
                    f"{summary.memory_mib:.3g}",
                ]
            )
    head = ["trained with", "tested with", "paper", "squared error", "paper's GFLOPs", "GFLOPs"]
    return markdown([*head, "paper's MiB", "memory, MiB"], lines) if lines else ""


def _findings(found: Summaries) -> str:
    """The paper's orderings, and in how many seeds they hold here."""
    own = {a: summary for (a, b), summary in found.items() if a == b}
    lines = []
    if {"full", "dot"} <= own.keys():
        lines.append(_holds("l2 beats the dot product (Table 5)", own["full"], own["dot"]))
    for name in ("psal3", "aggregate"):
        if {name, SWAPPED_TO} <= own.keys():
            lines.append(_holds(f"{METHODS[name].label} beats PSAL 1 (Table 4)", own[name], own[SWAPPED_TO]))
    if {"psal3", "aggregate"} <= own.keys():
        lines.append(_holds("PSAL Aggreg. beats PSAL 3 (Table 4)", own["aggregate"], own["psal3"]))
    for (trained, tested), summary in found.items():
        if trained != tested and trained in own:
            change = summary.mean / own[trained].mean - 1
            lines.append(f"{METHODS[trained].label} tested with {METHODS[tested].label}: error {change:+.1%} (Table 8)")
            if tested in own:
                said = f"{METHODS[trained].label} swapped to {METHODS[tested].label} beats training with it (Table 8)"
                lines.append(_holds(said, summary, own[tested]))
    return "## The paper's orderings, here\n\n" + "\n".join(f"* {line}" for line in lines) if lines else ""


def _holds(said: str, better: Summary, worse: Summary) -> str:
    seeds = [seed for seed in better.errors if seed in worse.errors]
    wins = sum(better.errors[seed] < worse.errors[seed] for seed in seeds)
    ratio = better.mean / worse.mean
    return f"{said}: in {wins} of {len(seeds)} seeds; ratio of the means {ratio:.2f}"


def figure_5(rows: Sequence[Row]) -> str:
    """Error against memory and against FLOPs, a point an attention, as one stand-alone SVG picture.

    Both axes of cost are logarithmic: the paper's attentions span orders of magnitude.
    """
    own = {a: summary for (a, b), summary in summarise(rows).items() if a == b}
    drawn: list[tuple[str, str, Callable[[Summary], float]]] = [
        ("Error against memory", "memory of the block, log10 of KiB", lambda summary: summary.memory_mib * 1024),
        ("Error against computation", "one attention call, log10 of MFLOPs", lambda summary: summary.gflops * 1000),
    ]
    width, height = 520, 330
    charts = []
    for index, (title, label, cost) in enumerate(drawn):
        points = {
            METHODS[name].label: ([math.log10(max(cost(summary), 1.0))], [summary.mean])
            for name, summary in own.items()
        }
        chart = line_chart(title, points, x_label=label, width=width, height=height)
        place = f'<svg x="{index * width}" width="{width}" height="{height}" '
        charts.append(chart.replace("<svg ", place, 1))
    style = "\n".join(line for line in STYLE.splitlines() if line.startswith("svg ."))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * width} {height}" width="{2 * width}" '
        f'height="{height}" font-family="DejaVu Sans, sans-serif">\n<style>{style}</style>\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join(charts) + "\n</svg>\n"
    )


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table with aligned columns."""
    widths = [max(len(line[column]) for line in (head, *lines)) for column in range(len(head))]
    every = [head, ["-" * width for width in widths], *lines]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in every
    )
