"""Ratios between backends, beside the bars that the project sets itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attention_bench.cases import Case


@dataclass(frozen=True)
class Bar:
    """A ratio to a peer in one mode: peer / ours reaches `limit` if `faster`, else ours / peer stays below it."""

    mode: str
    column: str
    limit: float
    goal: float | None
    faster: bool


RELEASED_BARS = (
    Bar("forward", "time", 3.5, 5.0, faster=True),
    Bar("forward+backward", "time", 3.0, 4.0, faster=True),
    Bar("forward", "peak_new_mib", 0.4, 0.3, faster=False),
    Bar("forward+backward", "peak_new_mib", 0.4, 0.3, faster=False),
)


@dataclass(frozen=True)
class Verdict:
    """One ratio beside its bar. `met` is None where the peer has no figure, so that nothing can be said."""

    what: str
    ratio: float | None
    bar: str
    goal: str
    met: bool | None
    goal_met: bool = False


def judge(what: str, ours: float | None, peer: float | None, bar: Bar) -> Verdict:
    """Set our figure against the peer's. Ours missing is a bar missed; the peer's missing decides nothing."""
    sign = ">=" if bar.faster else "<="
    words = (f"{sign}{bar.limit:g}", "-" if bar.goal is None else f"{sign}{bar.goal:g}")
    if ours is None or peer is None:
        return Verdict(what, None, *words, met=False if ours is None else None)
    ratio = peer / ours if bar.faster else ours / peer
    met, goal_met = (x is not None and (ratio >= x if bar.faster else ratio <= x) for x in (bar.limit, bar.goal))
    return Verdict(what, ratio, *words, met=met, goal_met=goal_met)


def _figure(row: dict[str, Any] | None, column: str, clock: str) -> float | None:
    if row is None or row["status"] != "ok":
        return None
    return float(row[f"{clock}_ms_median" if column == "time" else column])


def verdicts(rows: Sequence[dict[str, Any]], cases: Sequence[Case], clock: str) -> list[Verdict]:
    """Every bar that can be judged from rows of `gpa` and a peer. `clock` is wall or cpu."""
    by_cell = {(r["backend"], r["case"], r["score"], r["dtype"], r["mode"]): r for r in rows}
    by_name = {case.name: case for case in cases}
    found = []
    for name, score, dtype in dict.fromkeys((r["case"], r["score"], r["dtype"]) for r in rows if r["backend"] == "gpa"):
        pairs = [("released-gpa", "the released layer", bar) for bar in RELEASED_BARS]
        dense_bar = by_name[name].dense_bar
        if dense_bar is not None:
            pairs.append(("full", "exact attention", Bar("forward", "time", dense_bar, None, faster=True)))
        for peer, peer_name, bar in pairs:
            ours_key, peer_key = (("gpa", name, score, dtype, bar.mode), (peer, name, score, dtype, bar.mode))
            if ours_key in by_cell and peer_key in by_cell:
                quantity = "time" if bar.column == "time" else "peak new memory"
                figures = [_figure(by_cell[key], bar.column, clock) for key in (ours_key, peer_key)]
                what = f"{name} {score} {dtype} {bar.mode}: {quantity} against {peer_name}"
                found.append(judge(what, figures[0], figures[1], bar))
    return found


def as_text(found: Sequence[Verdict], clock: str) -> str:
    """The verdicts as an aligned table."""
    width = max((len(verdict.what) for verdict in found), default=0)
    lines = [f"Ratios of medians; time is {clock} time"]
    for v in found:
        ratio = "-" if v.ratio is None else f"{v.ratio:.2f}"
        word = {True: "bar met", False: "MISSED", None: "peer not measured"}[v.met]
        word = "goal met" if v.goal_met else word
        lines.append(f"{v.what:{width}s} {ratio:>8s}   bar {v.bar:6s} goal {v.goal:6s} {word}")
    return "\n".join(lines)
