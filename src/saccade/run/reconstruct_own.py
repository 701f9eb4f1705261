"""A person's own picture, rebuilt from the pixels of another and written beside it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from saccade.data.edit_files import PictureFile, read_picture, to_pixels, write_picture
from saccade.pictures.canvas import Picture, write_png
from saccade.pictures.reconstruction import Shown, comparison_sheet
from saccade.run.reconstruct_folder import eight_bits, zooms_of
from saccade.run.reconstruct_pairs import Pair, own_pictures
from saccade.run.reconstruct_request import Request, Sizes, check_methods
from saccade.run.reconstruct_study import Cell, Measured, make_cells, measure_pair
from saccade.run.tool_progress import StepProgress
from saccade.run.tools import Clock, notes_of, output_path


def rebuild(request: Request) -> list[str]:
    """Rebuild the target by each method at native size, and write what comes out.

    Returns:
        A line for each method, and where its picture lies.

    Raises:
        ValueError: an unreadable picture, a method that cannot take it, or a file that would be replaced; before
            anything is computed.
    """
    if request.target is None or request.reference is None:
        raise RuntimeError("reconstruct: own pictures are target= and reference=")
    target, reference = read_picture(request.target, "target"), read_picture(request.reference, "reference")
    source = own_pictures(request.target, request.reference)
    cells = make_cells(request.methods, (None,), request.temperatures)
    if not cells:
        raise ValueError("methods=: with @ a method runs at these sizes alone; give sizes= too, or leave @ out")
    alone = len(cells) == 1
    pair = source.pairs[0]
    places = [_place(request, pair, "-reconstructed" + ("" if alone else _suffix(cell)), alone) for cell in cells]
    sheet = None if alone else _place(request, pair, "-reconstruction", alone)
    check_methods(request, Sizes(target.size, reference.size))
    like = replace(target, grey=reference.grey, profile=reference.profile)  # whose pixels the result is made of
    clock, lines, shown = Clock(), [], []
    with StepProgress("reconstructing", len(cells), request.progress) as progress:
        for cell, place in zip(cells, places, strict=True):
            measured, picture = measure_pair(cell, pair, request.plan, weigh=request.plan.memory)
            write_picture(place, to_pixels(picture, target.depth), like)
            shown.append((measured, picture))
            lines.append(_told(measured, place, request.plan.crop))
            progress.advance()
    if sheet:
        write_png(sheet, _sheet(target, reference, shown, request))
        lines.append(f"beside each other: {sheet}")
    return [*lines, *notes_of(target, reference), f"took:      {clock.told()}"]


def _suffix(cell: Cell) -> str:
    heat = "" if cell.temperature in (None, 1.0) else f"-T{cell.temperature:g}"
    return "-" + re.sub(r"[^\w.]+", "-", cell.method.name) + heat


def _place(request: Request, pair: Pair, suffix: str, alone: bool) -> Path:
    """Where a picture goes: beside the target, or as out= says, which must be a folder for several.

    Raises:
        ValueError: out= names a file for several pictures, or a file that must not be written.
    """
    if request.picture is not None and not alone and request.picture.endswith(".png"):
        raise ValueError(f"out={request.picture}: several methods write several pictures; name a folder, ending in /")
    return output_path(pair.target, suffix, request.picture, overwrite=request.overwrite, beside=[pair.reference])


def _told(measured: Measured, place: Path, crop: int) -> str:
    cropped = f", {measured.mse_cropped:.5f} without a margin of {crop} pixels" if crop else ""
    weight = "" if measured.peak_mib is None else f", {measured.peak_mib:.3g} MiB"
    return (
        f"{measured.cell.method.label(measured.keys)}: mean squared error {measured.mse:.5f} of [0, 1]{cropped}, "
        f"{measured.wall_s:.2f} s{weight}: {place}"
    )


def _sheet(
    target: PictureFile, reference: PictureFile, shown: list[tuple[Measured, Tensor]], request: Request
) -> Picture:
    truth, other = (eight_bits(file.unit()) for file in (target, reference))
    pictures = [eight_bits(picture) for _, picture in shown]
    zooms = zooms_of(request.zooms, truth, pictures)
    columns = [Shown("target", str(target.size), truth), Shown("reference", str(reference.size), other)]
    columns += [
        Shown(m.cell.method.label(m.keys), f"error {m.mse:.5f}", picture)
        for (m, _), picture in zip(shown, pictures, strict=True)
    ]
    return comparison_sheet(columns, zooms)
