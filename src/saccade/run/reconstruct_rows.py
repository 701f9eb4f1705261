"""Figures of a study as rows: a row a pair, read back when a stopped study goes on, and a row a cell."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from saccade.geometry import Size
from saccade.run.reconstruct_pairs import Pair, Source
from saccade.run.reconstruct_study import Cell, Measured, Plan, moves_beyond


def conditions(plan: Plan) -> dict[str, Any]:
    """What figures depend on beside the cell. A CPU is named by its instruction set, not by its model."""
    cpu = f"{platform.machine()}-{torch.backends.cpu.get_cpu_capability()}".lower()
    return {
        "device": plan.device,
        "device_name": torch.cuda.get_device_name(plan.device) if plan.device.startswith("cuda") else cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "dtype": "fp32",
    }


def _cell_columns(cell: Cell, source: Source) -> dict[str, Any]:
    options = {key: value for key, value in cell.method.options.items() if key != "scale" or not cell.method.tempered}
    return {
        "data": source.name,
        "detail": source.detail,
        "size": cell.size_name,
        "method": cell.method.name,
        "attention": cell.method.attention,
        "temperature": "" if cell.temperature is None else f"{cell.temperature:g}",
        "options": json.dumps(options, sort_keys=True),
    }


def _identity(cell: Cell, pair: Pair, source: Source, plan: Plan) -> dict[str, str]:
    """The columns that say which measurement a row is."""
    names = {"pair": pair.name, "target": pair.target.name, "reference": pair.reference.name}
    return {key: str(value) for key, value in {**_cell_columns(cell, source), **names, **conditions(plan)}.items()}


# ---------------------------------------------------------------------- a row a pair


def pair_rows(measured: Iterable[Measured], source: Source, plan: Plan) -> list[dict[str, Any]]:
    """A row for every pair of every cell."""
    return [
        {
            **_identity(m.cell, m.pair, source, plan),
            "rows": m.queries.rows,
            "cols": m.queries.cols,
            "key_rows": m.keys.rows,
            "key_cols": m.keys.cols,
            "mse_whole": f"{m.mse:.9g}",
            _cropped(plan): f"{m.mse_cropped:.9g}",
            "wall_s": f"{m.wall_s:.5g}",
            "cpu_s": f"{m.cpu_s:.5g}",
            "motion_share": f"{m.motion:.6g}",
            f"moves_beyond_window_{plan.window}": moves_beyond(m, plan.window),
            "peak_new_mib": "" if m.peak_mib is None else f"{m.peak_mib:.5g}",
            "memory_method": m.memory_method,
            "gflops_computed": f"{m.gflops:.5g}",
            "kernel": m.kernel,
        }
        for m in measured
    ]


def read_pair_rows(
    text: str, cells: Sequence[Cell], source: Source, plan: Plan, where: str
) -> dict[tuple[int, int], Measured]:
    """What `pair_rows` wrote: by numbers of cell and pair.

    Args:
        text: the CSV.
        cells, source, plan: of the study that is to go on.
        where: the file, for messages.

    Raises:
        ValueError: a row that this study has no place for, or that is damaged.
    """
    planned = {
        tuple(_identity(cell, pair, source, plan).items()): (row, col)
        for row, cell in enumerate(cells)
        for col, pair in enumerate(source.pairs)
    }
    columns = list(_identity(cells[0], source.pairs[0], source, plan))
    found = {}
    for line in csv.DictReader(io.StringIO(text)):
        place = planned.get(tuple((name, line.get(name, "")) for name in columns))
        if place is None or _cropped(plan) not in line:
            known = {key: line.get(key) for key in ("data", "method", "size", "pair", "threads")}
            raise ValueError(
                f"{where} holds figures that this study has no place for, such as {known}; choose another out=, or say "
                f"overwrite=true to begin anew"
            )
        try:
            found[place] = _read(line, cells[place[0]], source.pairs[place[1]], plan)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{where}: a damaged row ({error!r}); say overwrite=true to begin anew") from error
    return found


def _read(line: Mapping[str, str], cell: Cell, pair: Pair, plan: Plan) -> Measured:
    return Measured(
        cell,
        pair,
        Size(int(line["rows"]), int(line["cols"])),
        Size(int(line["key_rows"]), int(line["key_cols"])),
        mse=float(line["mse_whole"]),
        mse_cropped=float(line[_cropped(plan)]),
        wall_s=float(line["wall_s"]),
        cpu_s=float(line["cpu_s"]),
        kernel=line["kernel"],
        gflops=float(line["gflops_computed"]),
        motion=float(line["motion_share"]),
        peak_mib=float(line["peak_new_mib"]) if line["peak_new_mib"] else None,
        memory_method=line["memory_method"],
    )


def _cropped(plan: Plan) -> str:
    return f"mse_crop{plan.crop}"


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same columns as CSV text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def better_in(measured: Sequence[Measured], winner: Cell, loser: Cell) -> tuple[int, int]:
    """In how many of the pairs that both cells saw the first has the smaller cropped error, and how many those are."""
    errors = [{one.pair.name: one.mse_cropped for one in measured if one.cell == cell} for cell in (winner, loser)]
    shared = errors[0].keys() & errors[1].keys()
    return sum(errors[0][name] < errors[1][name] for name in shared), len(shared)


# ---------------------------------------------------------------------- a row a cell


@dataclass(frozen=True)
class Summary:
    """A cell over all its pairs: mean errors with their standard errors, median seconds, peak MiB of one call.

    `within` and `beyond` are the mean cropped errors of the pairs that move within and beyond the plan's window; NaN
    where there are none.
    """

    cell: Cell
    keys: Size
    pairs: int
    mse: float
    mse_cropped: float
    spread: float
    spread_cropped: float
    wall_s: float
    cpu_s: float
    peak_mib: float | None
    memory_method: str
    gflops: float
    kernel: str
    pairs_beyond: int
    within: float
    beyond: float

    def stride(self) -> int | None:
        """Of Full's keys."""
        if self.cell.method.attention != "full":
            return None
        return int(self.cell.method.settled(self.keys, 1.0).get("key_stride", 1))


def summarise(measured: Sequence[Measured], plan: Plan) -> list[Summary]:
    """One summary a cell, in the order in which the cells came."""
    grouped: dict[tuple[str, str, float | None], list[Measured]] = {}
    for one in measured:
        key = (one.cell.method.name, one.cell.size_name, one.cell.temperature)
        grouped.setdefault(key, []).append(one)
    return [_summary(group, plan) for group in grouped.values()]


def _summary(group: Sequence[Measured], plan: Plan) -> Summary:
    first = group[0]
    weighed = next((one for one in group if one.peak_mib is not None), first)
    far = [one.mse_cropped for one in group if moves_beyond(one, plan.window)]
    near = [one.mse_cropped for one in group if not moves_beyond(one, plan.window)]
    return Summary(
        cell=first.cell,
        keys=first.keys,
        pairs=len(group),
        mse=statistics.fmean(one.mse for one in group),
        mse_cropped=statistics.fmean(one.mse_cropped for one in group),
        spread=_standard_error([one.mse for one in group]),
        spread_cropped=_standard_error([one.mse_cropped for one in group]),
        wall_s=statistics.median(one.wall_s for one in group),
        cpu_s=statistics.median(one.cpu_s for one in group),
        peak_mib=weighed.peak_mib,
        memory_method=weighed.memory_method,
        gflops=first.gflops,
        kernel="+".join(dict.fromkeys(one.kernel for one in group)),
        pairs_beyond=len(far),
        within=statistics.fmean(near) if near else math.nan,
        beyond=statistics.fmean(far) if far else math.nan,
    )


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def cell_rows(summaries: Iterable[Summary], source: Source, plan: Plan) -> list[dict[str, Any]]:
    """A row for every cell, with the conditions it was measured under."""
    found = conditions(plan)
    return [
        {
            **_cell_columns(s.cell, source),
            "key_stride": s.stride() or "",
            "pairs": s.pairs,
            "mse_whole": f"{s.mse:.6g}",
            "mse_whole_stderr": _blank(s.spread, ".3g"),
            f"mse_crop{plan.crop}": f"{s.mse_cropped:.6g}",
            f"mse_crop{plan.crop}_stderr": _blank(s.spread_cropped, ".3g"),
            f"pairs_beyond_window_{plan.window}": s.pairs_beyond,
            f"mse_crop{plan.crop}_within_window": _blank(s.within, ".6g"),
            f"mse_crop{plan.crop}_beyond_window": _blank(s.beyond, ".6g"),
            "wall_s_median": f"{s.wall_s:.4g}",
            "cpu_s_median": f"{s.cpu_s:.4g}",
            "peak_new_mib": "" if s.peak_mib is None else f"{s.peak_mib:.2f}",
            "memory_method": s.memory_method,
            "gflops_computed": f"{s.gflops:.4g}",
            "kernel": s.kernel,
            **found,
        }
        for s in summaries
    ]


def _blank(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)
