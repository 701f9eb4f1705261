"""Ratios between backends, and figures by themselves, beside the bars that the project sets itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from attention_bench.published import TABLE1_GIB

Row = dict[str, Any]
MB = 1e6
MIB = 2**20


@dataclass(frozen=True)
class Bar:
    """A figure that has to reach `limit` where more is better (a speed-up), else to stay at or below it."""

    limit: float
    goal: float | None = None
    more: bool = True

    def reached(self, value: float, bound: float) -> bool:
        return value >= bound if self.more else value <= bound


@dataclass(frozen=True)
class Verdict:
    """One figure beside its bar. `met` is None where a peer has no figure, so that nothing can be said."""

    what: str
    value: float | None
    bar: str
    goal: str
    met: bool | None
    goal_met: bool = False


def judge(what: str, value: float | None, bar: Bar, *, ours_missing: bool = False) -> Verdict:
    """Set a figure against its bar. Ours missing is a bar missed; the peer's missing decides nothing."""
    sign = ">=" if bar.more else "<="
    words = (f"{sign}{bar.limit:g}", "-" if bar.goal is None else f"{sign}{bar.goal:g}")
    if value is None:
        return Verdict(what, None, *words, met=False if ours_missing else None)
    goal_met = bar.goal is not None and bar.reached(value, bar.goal)
    return Verdict(what, value, *words, met=bar.reached(value, bar.limit), goal_met=goal_met)


def judge_ratio(what: str, ours: float | None, peer: float | None, bar: Bar) -> Verdict:
    """peer / ours where more is better, else ours / peer."""
    if ours is None or peer is None:
        return judge(what, None, bar, ours_missing=ours is None)
    return judge(what, peer / ours if bar.more else ours / peer, bar)


def figure(row: Row | None, column: str) -> float | None:
    """A number of a row that was measured; None otherwise. Rows may come from a CSV, where all is text."""
    if row is None or row["status"] != "ok" or row.get(column) in (None, ""):
        return None
    return float(row[column])


def side(row: Row) -> int:
    return int(row["q_rows"])


def clock_of(row: Row, clock: str) -> str:
    """The time column that ratios compare: CPU time of one thread on a CPU is disturbed least by other work."""
    if clock == "auto":
        alone = str(row["device"]) == "cpu" and int(row["threads"]) == 1
        clock = "cpu" if alone else "wall"
    return f"{clock}_ms_median"


def verdicts(rows: Sequence[Row], clock: str = "auto") -> list[Verdict]:
    """Every bar that can be judged from these rows."""
    judges: tuple[Callable[[Sequence[Row], str], Iterator[Verdict]], ...] = (
        _gpa_against_peers,
        _against_written_forms,
        _psal_searches,
        _memory_limits,
        _published_memory,
    )
    return [verdict for judge_rows in judges for verdict in judge_rows(rows, clock)]


# GPA against the released layer, then against exact attention by side of the map (forward).
RELEASED_BARS = (
    ("forward", "time", Bar(3.5, 5.0)),
    ("forward+backward", "time", Bar(3.0, 4.0)),
    ("forward", "peak_new_mib", Bar(0.4, 0.3, more=False)),
    ("forward+backward", "peak_new_mib", Bar(0.4, 0.3, more=False)),
)
EXACT_BARS = {128: Bar(8.0), 256: Bar(50.0)}


def _gpa_against_peers(rows: Sequence[Row], clock: str) -> Iterator[Verdict]:
    own = [row for row in rows if row["suite"] == "gpa"]
    for ours in (row for row in own if row["label"] == "gpa"):
        score = json.loads(ours["options"])["score"]
        alike = {row["label"]: row for row in own if _same(row, ours) and json.loads(row["options"])["score"] == score}
        bars = [
            ("released-gpa", "the released layer", column, bar) for m, column, bar in RELEASED_BARS if m == ours["mode"]
        ]
        if ours["mode"] == "forward" and side(ours) in EXACT_BARS:
            bars.append(("full", "exact attention", "time", EXACT_BARS[side(ours)]))
        for peer, name, column, bar in bars:
            if peer not in alike:
                continue
            chosen = clock_of(ours, clock) if column == "time" else column
            quantity = chosen.split("_")[0] + " time" if column == "time" else "peak new memory"
            what = f"gpa {side(ours)}x{side(ours)} {score} {ours['dtype']} {ours['mode']}: {quantity} against {name}"
            yield judge_ratio(what, figure(ours, chosen), figure(alike[peer], chosen), bar)


def _same(one: Row, other: Row) -> bool:
    columns = ("suite", "inputs", "batch", "q_rows", "q_cols", "kv_rows", "kv_cols", "channels", "dtype", "mode")
    return all(str(one[column]) == str(other[column]) for column in (*columns, "device", "threads"))


# ours, the form that papers write down, and the ratio of forward times by side of the query map.
WRITTEN_FORMS: tuple[tuple[str, str, dict[int, Bar]], ...] = (
    ("ylg", "ylg-masked-dense", {32: Bar(15, 20), 64: Bar(40, 60), 128: Bar(60, 90)}),
    ("linear", "unfolded-linear", {128: Bar(8, 10), 256: Bar(8, 10)}),
    ("local", "unfolded-local", {64: Bar(5)}),
)


def _against_written_forms(rows: Sequence[Row], clock: str) -> Iterator[Verdict]:
    own = [row for row in rows if row["suite"] == "ratios"]
    for label, peer, bars in WRITTEN_FORMS:
        for ours in (row for row in own if row["label"] == label and side(row) in bars):
            for other in (row for row in own if row["label"] == peer and _same(row, ours)):
                column = clock_of(ours, clock)
                sizes = (
                    f"{ours['q_rows']}x{ours['q_cols']} on {ours['kv_rows']}x{ours['kv_cols']}, batch {ours['batch']}"
                )
                what = f"{label} {sizes} forward: {column.split('_')[0]} time against {peer}"
                yield judge_ratio(what, figure(ours, column), figure(other, column), bars[side(ours)])


# Seconds of wall time on two cores for one match by the published search, and how many times faster ours has to be.
SEARCH_BARS = {256: (Bar(1.5, more=False), Bar(3.0)), 512: (Bar(8.0, more=False), Bar(6.0))}


def _psal_searches(rows: Sequence[Row], clock: str) -> Iterator[Verdict]:
    """Ours counts where its mean match cost is at most that of the published search: the fastest such one."""
    own = [row for row in rows if row["suite"] == "ratios" and row["backend"] == "psal"]
    for jump in (row for row in own if row["label"] == "psal-jump" and side(row) in SEARCH_BARS):
        seconds_bar, ratio_bar = SEARCH_BARS[side(jump)]
        time, cost = figure(jump, "wall_ms_median"), figure(jump, "match_cost")
        name = f"psal {side(jump)}x{side(jump)} p{jump['patch_size']} k1"
        yield judge(
            f"{name} N5: seconds of wall time, {jump['threads']} threads",
            None if time is None else time / 1e3,
            seconds_bar,
            ours_missing=True,
        )
        rivals = [row for row in own if row["label"] != "psal-jump" and _same(row, jump)]
        found = [(figure(row, "wall_ms_median"), figure(row, "match_cost"), row["label"]) for row in rivals]
        good = [
            (t, label) for t, c, label in found if t is not None and c is not None and cost is not None and c <= cost
        ]
        if time is None or not rivals:
            continue
        best = min(good, default=(None, "none of ours is as good"))
        ratio = None if best[0] is None else time / best[0]
        what = f"{name}: {best[1]} against the published search at no higher match cost, wall time"
        yield judge(what, ratio, ratio_bar, ours_missing=True)


# MB (10^6 bytes) above the inputs by label, mode and side; 16 channels, 7x7 patches, fp32.
BOTH = "forward+backward"
MEMORY_MB = {
    ("psal-3", BOTH): {256: 40, 512: 160},
    ("psal-aggregate", BOTH): {256: 60, 512: 240},
    ("linear", BOTH): {256: 100, 512: 400},
    ("local", BOTH): {256: 100, 512: 400},
    ("full", "forward"): {256: 300},
}


def _table1_rows(rows: Sequence[Row]) -> Iterator[Row]:
    for row in rows:
        if row["suite"] == "memory" and int(row["patch_size"]) == 7 and int(row["channels"]) == 16:
            yield row


def _memory_limits(rows: Sequence[Row], clock: str) -> Iterator[Verdict]:
    for row in _table1_rows(rows):
        limit = MEMORY_MB.get((row["label"], row["mode"]), {}).get(side(row))
        if limit is not None and row["dtype"] == "fp32":
            peak = figure(row, "peak_new_mib")
            value = None if peak is None else peak * MIB / MB
            what = f"{row['label']} {side(row)}x{side(row)} {row['mode']}: MB above the inputs"
            yield judge(what, value, Bar(limit, more=False), ours_missing=not row["status"].startswith("skipped"))


def _published_memory(rows: Sequence[Row], clock: str) -> Iterator[Verdict]:
    """No layer may need more than Table 1 of arXiv 2202.03163 says of it."""
    for row in _table1_rows(rows):
        published = TABLE1_GIB.get(row["label"], {}).get(side(row))
        if published is None or row["mode"] != BOTH or row["dtype"] != "fp32" or row["status"].startswith("skipped"):
            continue
        peak = figure(row, "peak_new_mib")
        what = f"{row['label']} {side(row)}x{side(row)} {BOTH}: GiB, against the paper's Table 1"
        yield judge(what, None if peak is None else peak / 1024, Bar(published, more=False), ours_missing=True)


def as_text(found: Sequence[Verdict]) -> str:
    """The verdicts as an aligned table."""
    width = max((len(verdict.what) for verdict in found), default=0)
    lines = ["Bars; times are medians"]
    for v in found:
        value = "-" if v.value is None else f"{v.value:.3g}" if v.value < 100 else f"{v.value:.0f}"
        word = {True: "bar met", False: "MISSED", None: "peer not measured"}[v.met]
        word = "goal met" if v.goal_met else word
        lines.append(f"{v.what:{width}s} {value:>8s}   bar {v.bar:8s} goal {v.goal:6s} {word}")
    return "\n".join(lines)
