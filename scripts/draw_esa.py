#!/usr/bin/env python3
"""Draw Your Local GAN's enumeration of a grid (Fig. 3 of the paper) and what queries see on a smaller key map.

    python scripts/draw_esa.py                                            # ESA, Hilbert and row order of 8x8 cells
    python scripts/draw_esa.py --grid 16 16 --orders esa --out esa.png
    python scripts/draw_esa.py --mappings --out mapping.png               # one query's keys, 32x32 on 16x16
    python scripts/draw_esa.py --mappings --query 5 20 --patterns rtl1 strided2

Cells are coloured by block of tokens; discs and rings are the tokens that every query of the second steps sees. With
--mappings the printed table measures how local each head is under each mapping.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from saccade.attention.esa_picture import draw_mappings, draw_orders
from saccade.attention.locality import locality
from saccade.geometry import Size
from saccade.ops.ylg.patterns import MAPPINGS, ORDERS, grid_mask, ylg_mask


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(
        prog="draw_esa.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = {"type": int, "nargs": 2, "metavar": ("ROWS", "COLS")}
    cli.add_argument("--grid", **size, default=None, help="cells to enumerate, or the key map (default: 8 8, or 16 16)")
    cli.add_argument("--orders", nargs="+", choices=ORDERS, default=None, help="side by side (default: all)")
    cli.add_argument("--mappings", action="store_true", help="draw what one query sees under each mapping instead")
    cli.add_argument("--queries", **size, default=None, help="with --mappings: the query map (default: 32 32)")
    cli.add_argument("--query", **size, default=None, help="with --mappings: whose keys are drawn")
    cli.add_argument("--patterns", nargs="+", metavar="NAME", default=None, help="with --mappings: a column each")
    cli.add_argument("--out", type=Path, default=Path("esa.png"), help="PNG to write (default: esa.png)")
    return cli


def orders_table(size: Size, orders: Sequence[str]) -> str:
    """Mean distances of allowed pairs in cells, a row for each order, as Markdown."""
    lines = ["| order | local keys (step 1) | summary keys (step 2) |", "| --- | --- | --- |"]
    for order in orders:
        means = [locality(grid_mask(name, size, order), size, size).distance for name in ("ltr1", "ltr2")]
        lines.append(f"| `{order}` | {means[0]:.2f} | {means[1]:.2f} |")
    return "\n".join(lines)


def mappings_table(q_size: Size, kv_size: Size, patterns: Sequence[str]) -> str:
    """For each mapping and pattern the share of queries that see their own cell and the mean distance, as Markdown."""
    heads = " | ".join(f"`{name}`" for name in patterns)
    lines = [f"| mapping | {heads} |", "| --- |" + " --- |" * len(patterns)]
    for mapping in MAPPINGS:
        found = [locality(ylg_mask(name, q_size, kv_size, mapping=mapping), q_size, kv_size) for name in patterns]
        told = " | ".join(f"{100 * each.own:.1f} %, {each.distance:.2f}" for each in found)
        lines.append(f"| `{mapping}` | {told} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    cli = parser()
    options = cli.parse_args(arguments)
    for name, wanted in (("queries", True), ("query", True), ("patterns", True), ("orders", False)):
        if getattr(options, name) is not None and options.mappings is not wanted:
            cli.error(f"--{name} goes {'with' if wanted else 'without'} --mappings")
    if options.out.suffix.lower() != ".png":
        cli.error(f"--out must end in .png; got {options.out}, nearest: {options.out.with_suffix('.png')}")
    try:
        if options.mappings:
            q_size, kv_size = Size.of(options.queries or (32, 32)), Size.of(options.grid or (16, 16))
            patterns = options.patterns or ["rtl1", "rtl2", "ltr1", "ltr2"]
            query = None if options.query is None else tuple(options.query)
            path = draw_mappings(options.out, q_size, kv_size, patterns=patterns, query=query)
            table = mappings_table(q_size, kv_size, patterns)
        else:
            size, orders = Size.of(options.grid or (8, 8)), options.orders or list(ORDERS)
            path = draw_orders(options.out, size, orders)
            table = orders_table(size, orders)
    except ValueError as error:
        cli.error(str(error))
    except RuntimeError as error:
        cli.exit(1, f"{cli.prog}: error: {error}\n")
    print(f"{table}\nwrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
