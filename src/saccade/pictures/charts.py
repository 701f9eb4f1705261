"""Line charts as SVG text: no plotting library, no script, readable in any browser and without a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]

PALETTE = ("#2563a8", "#c2541b", "#2d8a57", "#8b3fa0", "#b3262e", "#6d6a2f", "#1a8a9c", "#7a5230")
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 40
_MAX_POINTS = 400
_LETTER = 6.3  # pixels a letter of the legend takes, about


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers inside low..high, about `count`, 1, 2, 2.5 or 5 times a power of ten apart."""
    if not (math.isfinite(low) and math.isfinite(high)) or high < low:
        raise ValueError(f"nice_ticks: two finite numbers in order are needed; got {low} and {high}")
    if high == low:
        return [low]
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def short_number(value: float) -> str:
    """1200 -> 1.2k, 3500000 -> 3.5M; small ones with four significant digits."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g}{unit}"
    return f"{value:.4g}"


def _finite(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)]


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most _MAX_POINTS points, each the mean of its neighbours, so that a long run stays a small page."""
    if len(points) <= _MAX_POINTS:
        return points
    size = -(-len(points) // _MAX_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _value_range(values: list[float], include: Sequence[float]) -> tuple[float, float]:
    """What is drawn: all but the highest 2 % of a long series (the first steps), a little air, zero if near."""
    ordered = sorted(values)
    top = ordered[min(len(ordered) - 1, int(len(ordered) * 0.98))] if len(ordered) > 50 else ordered[-1]
    low, high = min([ordered[0], *include]), max([top, *include])
    if 0 < low < 0.4 * high:
        low = 0.0
    if high == low:
        return low - (abs(low) or 1.0) * 0.5, high + (abs(high) or 1.0) * 0.5
    air = 0.06 * (high - low)
    return (low if low == 0.0 else low - air), high + air


@dataclass(frozen=True)
class _Frame:
    """The plot's rectangle, and the numbers at its edges."""

    width: int
    height: int
    top: int
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    @property
    def right(self) -> int:
        return self.width - _RIGHT

    def x(self, value: float) -> float:
        low, high = self.x_range
        return _LEFT + (self.right - _LEFT) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.y_range
        share = (min(max(value, low), high) - low) / (high - low)
        return self.top + (self.height - self.top - _BOTTOM) * (1.0 - share)


def line_chart(
    title: str,
    series: Series,
    *,
    x_label: str = "images seen",
    marks: Mapping[str, float] | None = None,
    width: int = 520,
    height: int = 260,
) -> str:
    """One chart as an `<svg>` element with its legend beneath the title.

    Args:
        title: heading.
        series: name -> (x values, y values); values that are not finite are left out.
        marks: name -> height of a dashed horizontal line (a baseline, a bar to reach). One that is called after a
            series, "<series>, <anything>", takes its colour.

    Raises:
        ValueError: no series has a finite point, or x and y of one differ in length.
    """
    points = {name: _thin(_finite(*values)) for name, values in series.items()}
    points = {name: line for name, line in points.items() if line}
    if not points:
        raise ValueError(f"line_chart {title!r}: no series has a finite point; got {sorted(series)}")
    marks = {name: value for name, value in (marks or {}).items() if math.isfinite(value)}
    xs = [x for line in points.values() for x, _ in line]
    x_low, x_high = min(0.0, *xs), max(xs)
    per_row = _legend_columns([*points, *marks], width)
    frame = _Frame(
        width,
        height,
        top=_TOP + 22 + 17 * -(-(len(points) + len(marks)) // per_row),
        x_range=(x_low, x_high if x_high > x_low else x_low + 1.0),
        y_range=_value_range([y for line in points.values() for _, y in line], list(marks.values())),
    )
    colours = {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(points)}
    mark_colours = {name: colours.get(name.partition(",")[0], "#667085") for name in marks}
    entries = [(name, colour, False) for name, colour in colours.items()]
    entries += [(name, colour, True) for name, colour in mark_colours.items()]
    heading = escape(_cut(title, frame.right - _LEFT, 8.8))
    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">',
        f'<text class="chart-title" x="{_LEFT}" y="{_TOP + 6}">{heading}</text>',
        *_axes(frame, x_label),
    ]
    for name, line in points.items():
        parts += _line(frame, line, colours[name])
    for name, value in marks.items():
        ends = f'x1="{_LEFT}" x2="{frame.right}" y1="{frame.y(value):.1f}" y2="{frame.y(value):.1f}"'
        parts.append(f'<line {ends} stroke="{mark_colours[name]}" stroke-width="1.4" stroke-dasharray="5 4"/>')
    return "\n".join([*parts, *_legend(entries, width, per_row), "</svg>"])


def _axes(frame: _Frame, x_label: str) -> list[str]:
    parts = []
    for value in nice_ticks(*frame.y_range, 4):
        y = frame.y(value)
        parts.append(f'<line class="rule" x1="{_LEFT}" x2="{frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        at = f'text-anchor="end" x="{_LEFT - 7}" y="{y + 4:.1f}"'
        parts.append(f'<text class="tick" {at}>{short_number(value)}</text>')
    for value in nice_ticks(*frame.x_range, 5):
        at = f'text-anchor="middle" x="{frame.x(value):.1f}" y="{frame.height - _BOTTOM + 17}"'
        parts.append(f'<text class="tick" {at}>{short_number(value)}</text>')
    at = f'text-anchor="middle" x="{(_LEFT + frame.right) / 2:.0f}" y="{frame.height - 7}"'
    return [*parts, f'<text class="tick" {at}>{escape(x_label)}</text>']


def _line(frame: _Frame, points: list[tuple[float, float]], colour: str) -> list[str]:
    """One series; few points get dots, which also make a single one visible."""
    places = [f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points]
    style = f'fill="none" stroke="{colour}" stroke-width="1.8" stroke-linejoin="round"'
    parts = [f'<polyline {style} points="{" ".join(places)}"/>']
    if len(points) <= 30:
        dots = (place.split(",") for place in places)
        parts += [f'<circle cx="{x}" cy="{y}" r="2.6" fill="{colour}"/>' for x, y in dots]
    return parts


def _cut(text: str, room: float, letter: float) -> str:
    """As much of `text` as fits into `room` pixels at `letter` pixels a letter."""
    most = int(room / letter)
    return text if len(text) <= most else text[: max(most - 1, 1)] + "…"


def _legend_columns(names: list[str], width: int) -> int:
    longest = max(len(name) for name in names) * _LETTER + 30
    return max(1, min(3, int((width - _LEFT - _RIGHT) / longest)))


def _legend(entries: list[tuple[str, str, bool]], width: int, per_row: int) -> list[str]:
    step = (width - _LEFT - _RIGHT) / per_row
    parts = []
    for index, (name, colour, dashed) in enumerate(entries):
        x, y = _LEFT + step * (index % per_row), _TOP + 24 + 17 * (index // per_row)
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        ends = f'x1="{x:.0f}" x2="{x + 16:.0f}" y1="{y - 4}" y2="{y - 4}"'
        parts.append(f'<line {ends} stroke="{colour}" stroke-width="2.5"{dash}/>')
        parts.append(f'<text class="legend" x="{x + 21:.0f}" y="{y}">{escape(_cut(name, step - 25, _LETTER))}</text>')
    return parts
