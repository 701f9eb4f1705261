"""A study of reconstruction in a folder: tables.md, cells.csv, pairs.csv, and pictures of its first pairs.

Figures are written as they come; the same command goes on where a stopped study ended, and a finished one is only told
again. What makes a row another's (data, method, options, size, machine) is in the row.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from saccade.data.edit_files import to_pixels
from saccade.files import write_text
from saccade.geometry import Size
from saccade.pictures.canvas import Picture, write_png
from saccade.pictures.reconstruction import Shown, Zoom, choose_zooms, comparison_sheet
from saccade.run.reconstruct_pairs import Pair, Source, read_frame
from saccade.run.reconstruct_request import Request
from saccade.run.reconstruct_rows import as_csv, cell_rows, pair_rows, read_pair_rows, summarise
from saccade.run.reconstruct_study import Cell, Measured, make_cells, measure_pair
from saccade.run.reconstruct_tables import tables
from saccade.run.tool_progress import StepProgress

TABLES, CELLS, PAIRS, PICTURES = "tables.md", "cells.csv", "pairs.csv", "pictures"
_WRITE_EVERY = 5.0  # seconds, at most as often


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raise ValueError if a study would replace files that are no study's, or the folder is a file."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out={folder} is a file; name a folder")
    there = [name for name in (TABLES, CELLS, PICTURES) if (folder / name).exists()]
    if there and not overwrite and not (folder / PAIRS).is_file():
        raise ValueError(f"{folder / there[0]} exists already; choose another out= or say overwrite=true")


@dataclass
class _Study:
    """What is measured so far, by numbers of cell and pair, and where it is kept."""

    request: Request
    source: Source
    folder: Path
    cells: list[Cell]
    measured: dict[tuple[int, int], Measured] = field(default_factory=dict)
    written: float = 0.0

    @property
    def drawn(self) -> tuple[Pair, ...]:
        return self.source.pairs[: self.request.pictures]

    @property
    def largest(self) -> int | None:
        """The side that is drawn."""
        return max(self.request.sides, key=lambda side: side or 0)

    def in_order(self) -> list[Measured]:
        return [self.measured[place] for place in sorted(self.measured)]

    def picture_of(self, cell: Cell, pair: Pair) -> Path | None:
        """Where a reconstruction is kept; None for those that are not drawn."""
        if pair not in self.drawn or cell.side != self.largest:
            return None
        heat = "" if cell.temperature in (None, 1.0) else f"-T{cell.temperature:g}"
        return self.folder / PICTURES / _word(pair.name) / f"{cell.size_name}-{_word(cell.method.name)}{heat}.png"

    def left(self) -> Iterator[tuple[tuple[int, int], Cell, Pair]]:
        """What is still to be measured: without a row, or without the picture that is to be drawn.

        Pair by pair, so that a study which was stopped has as many of each cell.
        """
        for col, pair in enumerate(self.source.pairs):
            for row, cell in enumerate(self.cells):
                picture = self.picture_of(cell, pair)
                if (row, col) not in self.measured or (picture is not None and not picture.is_file()):
                    yield (row, col), cell, pair

    def read(self) -> None:
        """Take over the rows of an earlier, stopped call."""
        file = self.folder / PAIRS
        if file.is_file() and not self.request.overwrite:
            text = file.read_text(encoding="utf-8")
            self.measured = read_pair_rows(text, self.cells, self.source, self.request.plan, str(file))

    def measure(self, place: tuple[int, int], cell: Cell, pair: Pair) -> None:
        weigh = self.request.plan.memory and place[1] == 0
        measured, rebuilt = measure_pair(cell, pair, self.request.plan, weigh=weigh)
        picture = self.picture_of(cell, pair)
        if picture is not None:
            write_png(picture, eight_bits(rebuilt))
        self.measured[place] = measured
        if time.monotonic() - self.written >= _WRITE_EVERY:
            self.write()

    def write(self) -> None:
        if not self.measured:
            return
        measured, plan = self.in_order(), self.request.plan
        write_text(self.folder / PAIRS, as_csv(pair_rows(measured, self.source, plan)))
        write_text(self.folder / CELLS, as_csv(cell_rows(summarise(measured, plan), self.source, plan)))
        write_text(self.folder / TABLES, tables(measured, self.source, plan))
        self.written = time.monotonic()


def study(request: Request, source: Source) -> list[str]:
    """Measure what was asked for and is not there yet, and write the folder.

    Returns:
        The tables and where the files lie.

    Raises:
        ValueError: no cell, a picture that cannot be read, or a folder with figures of another study.
        RuntimeError: out= was not given.
    """
    if request.out is None:
        raise RuntimeError("reconstruct: a study needs a folder, out=")
    cells = make_cells(request.methods, request.sides, request.temperatures)
    if not cells:
        raise ValueError("methods=: with @ a method runs at these sizes alone, and none of them is in sizes=")
    work = _Study(request, source, request.out, cells)
    work.read()
    left = list(work.left())
    try:
        with StepProgress("reconstructing", len(left), request.progress) as progress:
            for place, cell, pair in left:
                work.measure(place, cell, pair)
                progress.advance()
    finally:
        work.write()
    sheets = [_draw(work, pair) for pair in work.drawn]
    lines = [tables(work.in_order(), source, request.plan)]
    if sheets:
        lines.append(f"pictures: {request.out / PICTURES}")
    return [*lines, f"figures: {request.out / CELLS}, {request.out / PAIRS}"]


def _word(name: str) -> str:
    """A name as part of a file's."""
    return re.sub(r"[^\w.@+-]+", "-", name)


def _draw(work: _Study, pair: Pair) -> Path:
    """The sheet of a pair at the largest size."""
    side, request = work.largest, work.request
    truth, other = (eight_bits(read_frame(path, side)) for path in (pair.target, pair.reference))
    columns = [Shown("frame A", "to be rebuilt", truth), Shown("frame B", "its pixels are used", other)]
    rebuilt = []
    for one in work.in_order():
        file = work.picture_of(one.cell, pair)
        if one.pair != pair or file is None:
            continue
        with Image.open(file) as picture:
            rebuilt.append(np.asarray(picture.convert("RGB"), dtype=np.uint8))
        heat = "" if one.cell.temperature in (None, 1.0) else f", T = {one.cell.temperature:g}"
        columns.append(Shown(one.cell.method.label(one.keys), f"{one.mse_cropped:.5f}{heat}", rebuilt[-1]))
    zooms = zooms_of(request.zooms, truth, rebuilt)
    title = f"{work.source.name}: {pair.name}, {'native size' if side is None else f'{side}x{side}'}"
    note = f"errors: mean squares of RGB in [0, 1], without a margin of {request.plan.crop} pixels"
    sheet = comparison_sheet(columns, zooms, title=title, note=note)
    return write_png(work.folder / PICTURES / f"{_word(pair.name)}-{side or 'native'}.png", sheet)


def eight_bits(picture: Tensor) -> Picture:
    """(1, 3, Y, X) in [0, 1] as (Y, X, 3) uint8."""
    return to_pixels(picture, 8).astype(np.uint8)


def zooms_of(wish: int | tuple[tuple[float, float, float], ...], target: Picture, rebuilt: list[Picture]) -> list[Zoom]:
    """Parts of a picture: where methods differ most, or the places wished for, moved inside where they stick out."""
    if isinstance(wish, int):
        return choose_zooms(target, rebuilt, wish)
    size = Size(*target.shape[:2])
    found = []
    for top, left, share in wish:
        side = min(max(1, round(share * min(size))), min(size))
        found.append(
            Zoom(min(round(top * size.rows), size.rows - side), min(round(left * size.cols), size.cols - side), side)
        )
    return found
