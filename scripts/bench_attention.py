"""Time, memory, products and error of attention backends, each cell in a fresh process: `make bench`.

A cell is one backend with its options on one case (map sizes, channels, inputs), dtype and mode, measured in a process
of its own, so that no cell inherits another's allocator, threads or caches. Cells come in suites:

  gpa     GPA against the released layer's cost, restated as published, and exact attention
  layers  PSAL's Table 1 setting: 7x7 patches, 16 channels, features of a photograph
  pixels  attention as in a transformer: pixels, 64 channels; peers beside it where they are installed
  ratios  YLG against masked dense, linear and local against their unrolled forms, PSAL's searches against each other
  memory  peak memory alone: PSAL's Table 1 and the memory axis of GPA's Figure 5

A suite's rows go to a CSV whose name and columns say under which conditions they were taken. --check judges the bars
that this project sets itself; --tables prints the papers' layouts, --plots draws the curves; both also serve rows that
were written before (--from-csv). Only the attention is measured: q, k and v are given, as after the projections.
"forward" runs without autograd; "backward" times the backward pass alone; "forward+backward" times both, and tells
them apart in columns. Memory is the peak of what is newly allocated above q, k and v. On CUDA the allocator tells. On
CPU it is rebuilt from the allocation events of torch.profiler: every tensor storage and every temporary inside an
operator that PyTorch's CPU allocator serves, but no scratch space that oneDNN, BLAS or a compiled kernel take from the
system. The growth of the peak resident set is a column beside it as a cross-check; it is coarse, for it also counts
libraries loaded late. Cells that would take minutes only to weigh them are counted on tensors without data; the column
memory_method says so.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from attention_bench.backends import BACKENDS, MODULES, module_class
from attention_bench.cells import DTYPES, INPUTS, MODES, ROOT, Cell
from attention_bench.conditions import conditions, file_stem
from attention_bench.fresh import Fresh, serve
from attention_bench.measure import worker
from attention_bench.peers import why_skipped
from attention_bench.requests import check_device, check_options, odd, positive, whole
from attention_bench.suites import SUITES, Wish
from attention_bench.verdicts import as_text, verdicts
from saccade.files import write_text

COLUMNS = [
    *("suite", "label", "backend", "options", "kernel", "inputs", "batch", "q_rows", "q_cols", "kv_rows", "kv_cols"),
    *("channels", "v_channels", "patch_size", "dtype", "mode", "status", "warmup", "repeats"),
    *("wall_ms_median", "wall_ms_min", "wall_ms_max", "cpu_ms_median", "cpu_ms_min", "cpu_ms_max"),
    *("forward_wall_ms", "backward_wall_ms", "peak_new_mib", "rss_growth_mib", "memory_method"),
    *("flops_computed", "flops_counted", "flops_counts", "saved_bytes_computed"),
    *("error", "error_of_mean", "exact_perplexity", "error_queries", "error_score", "match_cost"),
    *("device", "device_name", "cores", "threads", "torch", "python"),
]

NEEDED = ("suite", "label", "backend", "mode", "status")  # columns without which rows cannot be judged or drawn


def run_all(cells: Sequence[Cell], found: dict[str, Any], heavy: bool = False) -> list[dict[str, Any]]:
    """A row for every cell, printed as it comes."""
    rows = []
    with Fresh() as fresh:
        for number, cell in enumerate(cells, 1):
            left_out = cell.heavy and not (heavy or why_skipped(cell.backend) or cell.device.startswith("cuda"))
            measured = {"status": "skipped: takes minutes, --heavy runs it"} if left_out else fresh.run(cell)
            rows.append({**described(cell), **found, **measured})
            label = f"{cell.suite:7s} {cell.case.name:22s} {cell.mode:16s} {cell.label:18s}"
            print(f"[{number}/{len(cells)}] {label} {_figures(rows[-1])}", flush=True)
    return rows


def described(cell: Cell) -> dict[str, Any]:
    """The columns that say what a cell is."""
    case = cell.case
    return {
        **{name: getattr(cell, name) for name in ("suite", "label", "backend", "dtype", "mode", "threads")},
        "options": json.dumps(cell.options, sort_keys=True),
        "inputs": case.inputs,
        "batch": case.batch,
        "q_rows": case.q_size[0],
        "q_cols": case.q_size[1],
        "kv_rows": case.kv_size[0],
        "kv_cols": case.kv_size[1],
        "channels": case.channels,
        "v_channels": case.v_channels,
        "patch_size": cell.patch_size,
    }


def _figures(row: dict[str, Any]) -> str:
    if row["status"] != "ok":
        return str(row["status"])
    words = []
    for column, form in (
        ("wall_ms_median", "{:10.1f} ms"),
        ("cpu_ms_median", "{:10.1f} ms CPU"),
        ("peak_new_mib", "{:9.2f} MiB"),
        ("saved_mib", "saved {:.2f} MiB"),
        ("attention_share", "attention {:.1%}"),
        ("error", "error {:.3f}"),
        ("match_cost", "match {:.4f}"),
        ("kernel", " {}"),
    ):
        if column in row:
            words.append(form.format(row[column]))
    return " ".join(words)


def write_csv(path: Path, rows: Iterable[dict[str, Any]], columns: Sequence[str] = COLUMNS) -> None:
    """Write the rows under a temporary name, then rename: an interrupted run leaves the old file whole."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_csv(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Rows of earlier runs.

    Raises:
        ValueError: a file cannot be read, or is no CSV of this script.
    """
    rows: list[dict[str, Any]] = []
    for path in paths:
        try:
            with path.open(newline="") as file:
                reader = csv.DictReader(file)
                missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
                rows += reader
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"--from-csv: cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
        if missing:
            raise ValueError(f"--from-csv: {path} is no CSV of this script; it has no column {', '.join(missing)}")
    return rows


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(
        prog="bench_attention.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = cli.add_argument_group("what to measure")
    what.add_argument("--suites", nargs="+", choices=list(SUITES), default=list(SUITES))
    what.add_argument(
        "--backends", nargs="+", metavar="NAME", help=f"backends or labels to keep; backends: {', '.join(BACKENDS)}"
    )
    what.add_argument("--sizes", nargs="+", type=whole, metavar="SIDE", help="sides of square maps, for all but ratios")
    what.add_argument("--channels", type=whole, help="channels of q, k and v, for gpa, layers, pixels")
    what.add_argument("--patch-size", type=odd, help="side of the patches, odd, for layers, pixels")
    what.add_argument("--modes", nargs="+", choices=MODES, help="for gpa, layers, pixels")
    what.add_argument("--inputs", nargs="+", choices=INPUTS, help="for layers, pixels")
    what.add_argument("--scores", nargs="+", choices=("dot", "l2"), help="for gpa")
    what.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=["fp32"])
    what.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME.OPTION=VALUE",
        help="options of a backend or label, as JSON values",
    )
    how = cli.add_argument_group("how to measure")
    how.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    how.add_argument("--threads", type=whole, help="CPU threads; default: 1, and 2 where a bar speaks of two cores")
    how.add_argument("--repeats", type=whole, default=3, help="timed calls of a cell after its warm-up (default: 3)")
    how.add_argument(
        "--cell-seconds",
        type=positive,
        help="fewer repeats where they would take longer; a call longer than this is timed once, cold (default: 10)",
    )
    how.add_argument("--heavy", action="store_true", help="also run the cells that take minutes on a CPU")
    how.add_argument(
        "--memory-limit-gib", type=positive, help="cap each process, so that running out of memory is a row"
    )
    how.add_argument(
        "--quick",
        action="store_true",
        help="tiny maps, one repeat: shows that the tool works, says nothing about speed; needs --out",
    )
    make = cli.add_argument_group("what to make of it")
    make.add_argument("--out", type=Path, help="folder for the CSVs and tables (default: benchmarks/)")
    make.add_argument("--from-csv", nargs="+", type=Path, metavar="CSV", help="measure nothing: read these rows")
    make.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    make.add_argument(
        "--clock",
        choices=("auto", "wall", "cpu"),
        default="auto",
        help="which time the ratios compare; auto: CPU time on a CPU with one thread, else wall time",
    )
    make.add_argument(
        "--tables", action="store_true", help="print PSAL's Table 1 and the memory axis of GPA's Figure 5"
    )
    make.add_argument("--plots", nargs="?", type=Path, const=ROOT / "docs", metavar="FOLDER", help="draw the curves")
    cli.add_argument("--worker", metavar="JSON", help=argparse.SUPPRESS)
    cli.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return cli


def plan(options: argparse.Namespace) -> list[Cell]:
    """Cells in running order: rivals of one comparison side by side, so that a drift of the machine hits both.

    Raises:
        ValueError: --backends or --set names something that no cell has, or gives a backend options it refuses.
    """
    wish = Wish(
        sides=options.sizes,
        channels=options.channels,
        patch_size=options.patch_size,
        modes=options.modes,
        inputs=options.inputs,
        scores=options.scores,
        quick=options.quick,
    )
    cells = [cell for suite in options.suites for cell in SUITES[suite](wish)]
    known = sorted({name for cell in cells for name in (cell.backend, cell.label)})
    changes = [_change(text) for text in options.set]
    wrong = {*(options.backends or ()), *(name for name, _, _ in changes)} - set(known)
    if wrong:
        raise ValueError(f"no cell is called {', '.join(sorted(wrong))}; valid here: {', '.join(known)}")
    if options.backends:
        cells = [cell for cell in cells if {cell.backend, cell.label} & set(options.backends)]
    common: dict[str, Any] = {"device": options.device, "memory_limit_gib": options.memory_limit_gib}
    common["repeats"] = 1 if options.quick else options.repeats
    if options.threads is not None or options.quick:
        common["threads"] = options.threads or 1
    if options.cell_seconds is not None:
        common["cell_seconds"] = options.cell_seconds
    chosen = []
    for cell in cells:
        altered = {key: value for name, key, value in changes if name in (cell.backend, cell.label)}
        for dtype in options.dtypes:
            chosen.append(dataclasses.replace(cell, **common, dtype=dtype, options={**cell.options, **altered}))
        if cell.backend in MODULES:
            check_options(chosen[-1], module_class(cell.backend), set(altered))
    return chosen


def _change(text: str) -> tuple[str, str, Any]:
    """NAME.OPTION=VALUE as (name, option, value)."""
    target, equals, value = text.partition("=")
    name, dot, option = target.rpartition(".")
    if not (equals and dot and name and option):
        raise ValueError(f"--set takes NAME.OPTION=VALUE; got {text!r}")
    try:
        return name, option, json.loads(value)
    except json.JSONDecodeError:
        return name, option, value


def save(
    rows: Sequence[dict[str, Any]], folder: Path, found: dict[str, Any], columns: Sequence[str] = COLUMNS
) -> list[Path]:
    """A CSV for each suite, the conditions in its name."""
    paths = []
    for suite in dict.fromkeys(row["suite"] for row in rows):
        own = [row for row in rows if row["suite"] == suite]
        threads = sorted({row["threads"] for row in own})
        paths.append(folder / f"{file_stem(suite, found, threads, sorted({row['dtype'] for row in own}))}.csv")
        write_csv(paths[-1], own, columns)
    return paths


def present(rows: Sequence[dict[str, Any]], options: argparse.Namespace, folder: Path) -> None:
    """Tables and pictures, as asked for."""
    if options.tables:
        from attention_bench.tables import published_beside_measured

        text = published_beside_measured(rows)
        print("\n" + text)
        path = folder / "memory_published_beside_measured.md"
        path.write_text(text + "\n")
        print(f"written: {path}")
    if options.plots is not None:
        from attention_bench.plots import draw_all

        for path in draw_all(rows, options.plots):
            print(f"written: {path}")


def main(arguments: Sequence[str] | None = None) -> int:
    cli = parser()
    options = cli.parse_args(arguments)
    if options.worker or options.serve:
        worker(options.worker) if options.worker else serve()
        return 0
    if options.quick and (options.check or options.out is None):
        cli.error("--quick needs --out (its figures do not belong in benchmarks/) and cannot --check bars")
    folder = options.out or ROOT / "benchmarks"
    try:
        if not options.from_csv:
            check_device(options.device)
        rows, cells = (read_csv(options.from_csv), []) if options.from_csv else ([], plan(options))
    except ValueError as error:
        cli.error(str(error))
    if not options.from_csv:
        found = conditions(options.device)
        rows = run_all(cells, found, options.heavy)
        for path in save(rows, folder, found):
            print(f"written: {path}")
    present(rows, options, folder)
    judged = [] if options.quick else verdicts(rows, options.clock)
    if judged:
        print("\n" + as_text(judged))
    failed = [row for row in rows if row["status"].startswith("failed") and not row["backend"].startswith("peer-")]
    missed = [verdict for verdict in judged if verdict.met is False]
    if options.check and not judged:
        print("no bar could be judged: that takes ours and a peer in the same rows")
    return 1 if failed or (options.check and (missed or not judged)) else 0


if __name__ == "__main__":
    sys.exit(main())
