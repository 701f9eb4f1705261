"""What the sub-commands of `scripts/prepare_data.py` print with: the console, a progress bar, an audit."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from saccade.data.prepare_deepfashion import Advance

console = Console(soft_wrap=True, highlight=False)


def report(counts: Mapping[str, int], notes: Sequence[str], warnings: Sequence[str]) -> None:
    """Print an audit."""
    console.print(", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in counts.items()), markup=False)
    for note in notes:
        console.print(f"note: {note}", markup=False)
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)


@contextmanager
def progress(what: str) -> Iterator[Advance]:
    """A progress bar over pictures: a call that takes how many are done, and how many there are."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def rows_by_cols(text: str) -> tuple[int, int]:
    """Parse 256x176."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write rows x cols like 256x176")
    return int(sides[0]), int(sides[1])
