"""Time and memory of attention backends, each cell in a fresh process: `make bench`.

A cell is one backend on one case (map size, channels), score, dtype and mode. It is measured in a process of its own,
so that no cell inherits another's allocator, threads or caches. Results go to a CSV whose name and columns say under
which conditions they were taken; a table then gives our ratios to the released layer's cost and to exact attention,
beside the bars that this project sets itself.

Only the attention is measured: q, k and v are given, as after the projections. "forward" runs without autograd.
Memory is the peak of what is newly allocated above q, k and v. On CUDA the allocator tells. On CPU it is rebuilt from
the allocation events of torch.profiler: every tensor storage and every temporary inside an operator that PyTorch's CPU
allocator serves, but no scratch space that oneDNN or BLAS take from the system. The growth of the peak resident set is
a column beside it as a cross-check; it is coarse, for it also counts libraries loaded late.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attention_bench.cases import BACKENDS, CASES, DTYPES, MODES, QUICK_CASES, ROOT, SCORES, Case, Cell
from attention_bench.measure import run_fresh, worker
from attention_bench.verdicts import as_text, verdicts

COLUMNS = [
    *("backend", "kernel", "case", "rows", "cols", "channels", "downsampling", "cells", "keys_per_cell"),
    *("score", "dtype", "mode", "status", "warmup", "repeats"),
    *("wall_ms_median", "wall_ms_min", "wall_ms_max", "cpu_ms_median", "cpu_ms_min", "cpu_ms_max"),
    *("peak_new_mib", "rss_growth_mib", "memory_method"),
    *("device", "device_name", "cores", "threads", "torch", "python"),
]


def conditions(device: str, threads: int) -> dict[str, Any]:
    """What the figures depend on besides the cell. A CPU is named by its instruction set, not by its model."""
    import torch

    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
        method = "torch.cuda.max_memory_allocated"
    else:
        name = f"{platform.machine()}-{torch.backends.cpu.get_cpu_capability()}".lower()
        method = "torch.profiler allocation events of the CPU allocator"
    return {
        "memory_method": method,
        "device": device,
        "device_name": name,
        "cores": os.cpu_count(),
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def default_path(found: dict[str, Any], dtypes: Sequence[str]) -> Path:
    """CSV path in benchmarks/ with the conditions in its name."""
    words = ["attention", found["device_name"], f"{found['cores']}cores", f"{found['threads']}threads"]
    words += [f"torch-{found['torch']}", "-".join(dtypes)]
    stem = "_".join("".join(c if c.isalnum() or c in ".-" else "-" for c in word.lower()) for word in words)
    return ROOT / "benchmarks" / f"{stem}.csv"


def run_all(cells: Sequence[Cell], found: dict[str, Any], skip: Callable[[Cell], str]) -> list[dict[str, Any]]:
    """A row for every cell, printed as it comes."""
    rows = []
    for number, cell in enumerate(cells, 1):
        reason = skip(cell)
        measured = {"status": f"skipped: {reason}"} if reason else run_fresh(cell, Path(__file__).resolve())
        case = cell.case
        row: dict[str, Any] = {
            "backend": cell.backend,
            "case": case.name,
            "rows": case.size[0],
            "cols": case.size[1],
            "channels": case.channels,
            "downsampling": case.downsampling,
            "cells": f"{case.cells[0]}x{case.cells[1]}",
            "keys_per_cell": case.keys_per_cell,
            "score": cell.score,
            "dtype": cell.dtype,
            "mode": cell.mode,
            **found,
            **measured,
        }
        rows.append(row)
        figures = row["status"]
        if figures == "ok":
            times = f"{row['wall_ms_median']:10.1f} ms wall {row['cpu_ms_median']:10.1f} ms CPU"
            figures = f"{times} {row['peak_new_mib']:9.1f} MiB  {row['kernel']}"
        label = f"{case.name:20s} {cell.score:3s} {cell.dtype} {cell.mode:16s} {cell.backend:12s}"
        print(f"[{number}/{len(cells)}] {label} {figures}", flush=True)
    return rows


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows under a temporary name, then rename: an interrupted run leaves the old file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(
        prog="bench_attention.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("--backends", nargs="+", choices=list(BACKENDS), default=list(BACKENDS))
    cli.add_argument("--cases", nargs="+", metavar="NAME", help=f"of: {', '.join(c.name for c in CASES)}; default: all")
    cli.add_argument("--scores", nargs="+", choices=SCORES, default=list(SCORES))
    cli.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    cli.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=["fp32"])
    cli.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    cli.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1, disturbed least by other work)")
    cli.add_argument(
        "--clock",
        choices=("auto", "wall", "cpu"),
        default="auto",
        help="which time the ratios compare; auto: CPU time on a CPU, wall time on a GPU",
    )
    cli.add_argument("--repeats", type=int, default=5, help="timed calls of a cell after its warm-up (default: 5)")
    cli.add_argument(
        "--cell-seconds",
        type=float,
        default=25.0,
        help="fewer repeats where they would take longer; a call longer than this is timed once, cold (default: 25)",
    )
    cli.add_argument(
        "--dense-backward",
        action="store_true",
        help="also run forward+backward of exact attention above 16,384 pixels on a CPU: minutes",
    )
    cli.add_argument("--memory-limit-gib", type=float, help="cap each process, so that running out of memory is a row")
    cli.add_argument("--out", type=Path, help="CSV to write; default: in benchmarks/, named after the conditions")
    cli.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    cli.add_argument(
        "--quick",
        action="store_true",
        help="tiny maps, one repeat: shows that the tool works, says nothing about speed; needs --out",
    )
    cli.add_argument("--worker", metavar="JSON", help=argparse.SUPPRESS)
    return cli


def choose_cases(names: Sequence[str] | None, quick: bool) -> list[Case]:
    """The cases of that name, or all.

    Raises:
        ValueError: no case has that name.
    """
    known = {case.name: case for case in (QUICK_CASES if quick else CASES)}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ValueError(f"bench_attention: no case {', '.join(unknown)}; valid here: {', '.join(known)}")
    return [known[name] for name in names or known]


def plan(options: argparse.Namespace, cases: Sequence[Case]) -> list[Cell]:
    """Cells in running order: rivals of one comparison side by side, so that a drift of the machine hits both."""
    return [
        Cell(
            backend=backend,
            case=case,
            score=score,
            dtype=dtype,
            mode=mode,
            device=options.device,
            threads=options.threads,
            repeats=1 if options.quick else options.repeats,
            cell_seconds=options.cell_seconds,
            memory_limit_gib=options.memory_limit_gib,
        )
        for case in cases
        for dtype in options.dtypes
        for score in options.scores
        for mode in options.modes
        for backend in options.backends
    ]


def _skip_slow(cell: Cell) -> str:
    slow = cell.backend == "full" and cell.mode == "forward+backward" and cell.case.pixels > 128 * 128
    return "takes minutes, --dense-backward runs it" if slow and cell.device == "cpu" else ""


def main(arguments: Sequence[str] | None = None) -> int:
    cli = parser()
    options = cli.parse_args(arguments)
    if options.worker:
        worker(options.worker)
        return 0
    if options.quick and (options.check or options.out is None):
        cli.error("--quick needs --out (its figures do not belong in benchmarks/) and cannot --check bars")
    if options.repeats < 1 or options.threads < 1:
        cli.error(f"--repeats and --threads are at least 1; got {options.repeats} and {options.threads}")
    try:
        cases = choose_cases(options.cases, options.quick)
    except ValueError as error:
        cli.error(str(error))

    found = conditions(options.device, options.threads)
    rows = run_all(plan(options, cases), found, (lambda cell: "") if options.dense_backward else _skip_slow)
    path = options.out or default_path(found, options.dtypes)
    write_csv(path, rows)
    judged = []
    if not options.quick:
        clock = ("wall" if options.device.startswith("cuda") else "cpu") if options.clock == "auto" else options.clock
        judged = verdicts(rows, cases, clock)
        print("\n" + as_text(judged, clock))
    print(f"written: {path}")
    failed = [row for row in rows if row["status"].startswith("failed")]
    missed = [verdict for verdict in judged if verdict.met is False]
    if options.check and not judged:
        print("no bar could be judged: it takes gpa and a peer among --backends")
    return 1 if failed or (options.check and (missed or not judged)) else 0


if __name__ == "__main__":
    sys.exit(main())
