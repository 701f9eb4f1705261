#!/usr/bin/env python3
"""Draw sparse attention patterns as in Fig. 2 of "Your Local GAN": masks, paths, and the information flow graph.

    python scripts/draw_flow.py                                          # LTR, RTL, fixed, strided at 9 tokens
    python scripts/draw_flow.py --patterns ltr strided_released --n 16 --out flow.png
    python scripts/draw_flow.py --patterns ltr rtl --grid 8 8            # on a grid, enumerated by distance (ESA)
    python scripts/draw_flow.py --patterns ltr1,strided2                 # any steps of the library, in order
    python scripts/draw_flow.py --table                                  # the counts of every pair, as Markdown

A red cell or a dashed line is an input that has no path to an output: no Full Information.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from saccade.attention.flow_picture import FlowRow, draw_flows, summary
from saccade.attention.flow_table import PAIRS, missing_table, paths_table
from saccade.geometry import Size
from saccade.ops.ylg.patterns import ORDERS, PATTERNS, Order, grid_mask, order_of


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(
        prog="draw_flow.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument(
        "--patterns",
        nargs="+",
        metavar="NAME",
        default=["ltr", "rtl", "fixed", "strided"],
        help=f"a row each: {', '.join(PAIRS)}, or steps joined by commas",
    )
    cli.add_argument("--n", type=int, default=9, help="tokens of a line (default: 9)")
    cli.add_argument("--grid", type=int, nargs=2, metavar=("ROWS", "COLS"), help="draw on a grid of cells instead")
    cli.add_argument("--order", choices=ORDERS, default="esa", help="how a grid's cells are enumerated (default: esa)")
    cli.add_argument("--query", type=int, help="row-major cell whose keys a grid shows (default: the middle one)")
    cli.add_argument("--table", action="store_true", help="print the tables of missing paths and of pair flow, no PNG")
    cli.add_argument("--out", type=Path, default=Path("flow.png"), help="PNG to write (default: flow.png)")
    return cli


def make_row(name: str, n: int, grid: Size | None, order: Order, query: int | None) -> FlowRow:
    """The row of a named pair or of steps joined by commas.

    Raises:
        ValueError: no pair and no step has that name.
    """
    heading, names = PAIRS.get(name, (name, tuple(name.split(","))))
    wrong = [step for step in names if step not in PATTERNS]
    if wrong:
        raise ValueError(
            f"no pattern is called {', '.join(map(repr, wrong))}. Valid here: {', '.join(PAIRS)}; or steps joined by "
            f"commas: {', '.join(PATTERNS)}."
        )
    steps = [PATTERNS[step] for step in names]
    if grid is None:
        return FlowRow(f"{heading}, {n} tokens", [step(n) for step in steps], names)
    enumerated = {"esa": "enumerated by distance (ESA)", "hilbert": "along the Hilbert curve", "row": "row by row"}
    return FlowRow(
        f"{heading}, {grid} cells {enumerated[order]}",
        [grid_mask(step, grid, order) for step in steps],
        names,
        grid,
        order_of(grid, order).numpy(),
        query,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    cli = parser()
    options = cli.parse_args(arguments)
    if options.table:
        print(f"{missing_table()}\n\n{paths_table(9)}\n\n{paths_table(16)}")
        return 0
    if options.n < 2 or (options.grid and math.prod(options.grid) < 2):
        cli.error("at least two tokens are needed")
    if options.query is not None and options.grid is None:
        cli.error("--query names a cell of a grid; give --grid ROWS COLS too")
    if options.out.suffix.lower() != ".png":
        cli.error(f"--out must end in .png; got {options.out}, nearest: {options.out.with_suffix('.png')}")
    try:
        grid = Size.of(options.grid) if options.grid else None
        rows = [make_row(name, options.n, grid, options.order, options.query) for name in options.patterns]
        path = draw_flows(options.out, rows)
    except ValueError as error:
        cli.error(str(error))
    except RuntimeError as error:
        cli.exit(1, f"{cli.prog}: error: {error}\n")
    for row in rows:
        print(f"{row.heading}: {summary(row.masks)}")
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
