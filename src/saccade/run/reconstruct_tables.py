"""Tables 2 and 3 of "Patch-Based Stochastic Attention" (arXiv 2202.03163), published beside measured, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from saccade.run.colorization_tables import markdown
from saccade.run.reconstruct_pairs import Source
from saccade.run.reconstruct_rows import Summary, better_in, conditions, summarise
from saccade.run.reconstruct_study import Measured, Plan

# Squared error, 512x512 (Table 2), by method.
TABLE_2: Mapping[str, float] = {
    "full": 0.0022,
    "local": 0.0119,
    "linear": 0.0576,
    "psal3": 0.0011,
    "aggregate": 0.0008,
}
# Side -> the stride of Full's keys, Full, PSAL 3 (Table 3).
TABLE_3: Mapping[int, tuple[int, float, float]] = {
    512: (10, 0.0022, 0.0011),
    256: (5, 0.0031, 0.0017),
    128: (2, 0.0038, 0.0029),
    64: (1, 0.0048, 0.0048),
}


def tables(measured: Sequence[Measured], source: Source, plan: Plan) -> str:
    """All tables of a study.

    Raises:
        ValueError: nothing was measured.
    """
    if not measured:
        raise ValueError("reconstruct: nothing was measured, so there is no table")
    summaries = summarise(measured, plan)
    heat: list[float | None] = [s.cell.temperature for s in summaries if s.cell.temperature is not None]
    parts = [_heading(source, plan, summaries)]
    for temperature in dict.fromkeys(heat or [None]):
        chosen = [s for s in summaries if s.cell.temperature in (temperature, None)]
        for side in dict.fromkeys(s.cell.side for s in chosen):
            one_size = [s for s in chosen if s.cell.side == side]
            parts.append(table_2(one_size, plan, temperature))
            if one_size[0].pairs_beyond > 0:
                parts.append(table_of_motion(one_size, plan))
        if sum(s.cell.method.name in ("full", "psal3") and s.cell.side is not None for s in chosen) > 1:
            parts.append(table_3(chosen, measured, temperature))
    return "\n\n".join(parts) + "\n"


def _heading(source: Source, plan: Plan, summaries: Sequence[Summary]) -> str:
    found = conditions(plan)
    lines = [
        "# Reconstruction of one frame from another",
        "",
        f"Data: {source.name} ({source.detail}), {max(s.pairs for s in summaries)} pairs. Errors are mean "
        f"squared errors of RGB in [0, 1] with their standard errors over pairs: without a margin of {plan.crop} "
        f"pixels, as the released evaluation computes them, and of the whole picture.",
        f"Seconds are medians over pairs of one call; memory is the peak of what one call newly allocates. "
        f"A pair moves beyond a window if the commonest displacement of best matches leads out of it. "
        f"{found['device_name']}, {found['threads']} threads, torch {found['torch']}, fp32.",
    ]
    if not source.published:
        lines.append(
            "**Not comparable with the paper's columns**, which are of pairs of DAVIS 2017 test-challenge, 10 frames "
            "apart; orderings may be compared."
        )
    lines += [f"* {notice}" for notice in source.notices]
    return "\n".join(lines)


def table_2(summaries: Sequence[Summary], plan: Plan, temperature: float | None) -> str:
    """Methods at one size, in the layout of Table 2.

    Args:
        summaries: of one size and temperature.
    """
    side = summaries[0].cell.side
    number = "Table 2: " if side == 512 else ""
    size = "native size" if side is None else f"{side}x{side}"
    rows = [
        [
            s.cell.method.label(s.keys),
            _figure(TABLE_2.get(s.cell.method.name) if side == 512 else None),
            _with_error(s.mse_cropped, s.spread_cropped),
            _with_error(s.mse, s.spread),
            f"{s.wall_s:.3g}",
            f"{s.cpu_s:.3g}",
            "-" if s.peak_mib is None else f"{s.peak_mib:.3g}" if s.peak_mib < 100 else f"{s.peak_mib:.0f}",
            f"{s.gflops:.3g}",
            str(s.pairs),
        ]
        for s in summaries
    ]
    margin = f"without {plan.crop} px"
    head = ["Method", "paper", margin, "whole", "wall s", "CPU s", "peak MiB", "GFLOPs", "pairs"]
    return f"## {number}{size}{_heat(temperature)}\n{markdown(head, rows)}"


def table_of_motion(summaries: Sequence[Summary], plan: Plan) -> str:
    """Methods at one size, pairs whose pixels stay inside a window apart from those whose pixels leave it."""
    first = summaries[0]
    rows = [[s.cell.method.label(s.keys), _five(s.within), _five(s.beyond)] for s in summaries]
    head = [
        "Method",
        f"moving within {plan.window} px ({first.pairs - first.pairs_beyond} pairs)",
        f"beyond ({first.pairs_beyond} pairs)",
    ]
    return markdown(head, rows)


def table_3(summaries: Sequence[Summary], measured: Sequence[Measured], temperature: float | None) -> str:
    """Full and PSAL 3 by size, in the layout of Table 3, with what an exact search finds beside."""
    rows = []
    by_cell = {(s.cell.method.name, s.cell.side): s for s in summaries}
    for side in dict.fromkeys(s.cell.side for s in summaries if s.cell.side is not None):
        full, psal = by_cell.get(("full", side)), by_cell.get(("psal3", side))
        if full is None and psal is None:
            continue
        stride, paper_full, paper_psal = TABLE_3.get(side, (None, None, None))
        kept = full.stride() if full is not None else stride
        same = kept == stride
        rows.append(
            [
                f"{side} / {'-' if kept is None else kept}",
                _figure(paper_full if same else None),
                _mean(full),
                _figure(paper_psal),
                _mean(psal),
                _mean(by_cell.get(("exact3", side))),
                _wins(measured, psal, full),
            ]
        )
    head = ["Size / stride", "Full, paper", "Full", "PSAL 3, paper", "PSAL 3", "exact 3-NN", "PSAL 3 better than Full"]
    return f"## Table 3{_heat(temperature)}\n{markdown(head, rows)}"


def _heat(temperature: float | None) -> str:
    return "" if temperature is None else f", T = {temperature:g}"


def _wins(measured: Sequence[Measured], winner: Summary | None, loser: Summary | None) -> str:
    if winner is None or loser is None:
        return "-"
    won, of = better_in(measured, winner.cell, loser.cell)
    return f"{won} of {of} pairs"


def _mean(summary: Summary | None) -> str:
    return "-" if summary is None else _with_error(summary.mse_cropped, summary.spread_cropped)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _five(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.5f}"


def _with_error(value: float, error: float) -> str:
    return f"{value:.5f}" if math.isnan(error) else f"{value:.5f} ± {error:.5f}"
