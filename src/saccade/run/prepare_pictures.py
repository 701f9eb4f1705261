"""The sub-commands `davis` and `places2` of `scripts/prepare_data.py`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from saccade.data import prepare_davis, prepare_places2
from saccade.run.prepare_console import console, progress, report, rows_by_cols

_SHOWN = 20  # unreadable pictures that are printed


def add_davis(commands: Any) -> None:
    """Add the sub-command `davis`."""
    made: argparse.ArgumentParser = commands.add_parser("davis", help="DAVIS 2017: frames of videos and their lists")
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("--zip", type=Path, nargs="+", help="packages to unpack: DAVIS-2017-trainval-480p.zip ...")
    what.add_argument("--standin", action="store_true", help="make videos of moving photographs; needs no download")
    what.add_argument("--check", action="store_true", help="read the lists and every frame of a prepared folder")
    made.add_argument("--out", type=Path, required=True, help="folder to write or check, e.g. data/davis")
    made.add_argument("--resolution", default="480p", help="folder of frames: 480p or Full-Resolution [480p]")
    made.add_argument("--train", type=int, default=24, help="stand-in: sequences to train on [24]")
    made.add_argument("--test", type=int, default=30, help="stand-in: sequences to test on [30]")
    made.add_argument("--frames", type=int, default=21, help="stand-in: frames of each [21]")
    made.add_argument("--size", type=rows_by_cols, default=(480, 854), help="stand-in: rows x cols [480x854]")
    made.add_argument("--seed", type=int, default=0, help="stand-in: seed [0]")
    made.set_defaults(run=davis)


def add_places2(commands: Any) -> None:
    """Add the sub-command `places2`."""
    made: argparse.ArgumentParser = commands.add_parser("places2", help="Places2, or any pictures, to inpaint")
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("--from", dest="source", type=Path, help="folder with the pictures; they are listed, not copied")
    what.add_argument("--standin", action="store_true", help="make places of photographs; needs no download")
    what.add_argument("--check", action="store_true", help="decode every picture that would be read")
    made.add_argument("--out", type=Path, required=True, help="folder for the lists, e.g. data/places2")
    made.add_argument("--held-out", type=float, default=0.02, help="share to validate with, if there is no val [0.02]")
    made.add_argument("--verify", action="store_true", help="decode every picture, and leave out the broken ones")
    made.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="decoding processes [all cores]")
    made.add_argument("--train", type=int, default=400, help="stand-in: pictures to train on [400]")
    made.add_argument("--val", type=int, default=60, help="stand-in: pictures to validate with [60]")
    made.add_argument("--size", type=int, default=320, help="stand-in: their shorter side [320]")
    made.add_argument("--seed", type=int, default=0, help="stand-in: seed [0]")
    made.set_defaults(run=places2)


def davis(options: argparse.Namespace) -> None:
    """Unpack, check or make DAVIS 2017."""
    if options.standin:
        from saccade.data.standin.videos import write_davis  # loads OpenCV

        with progress("making") as advance:
            made = write_davis(
                options.out,
                train=options.train,
                test=options.test,
                frames=options.frames,
                size=options.size,
                seed=options.seed,
                progress=advance,
            )
        count = sum(len(names) for names in made.splits.values())
        state = "already there" if made.reused else "written"
        console.print(f"{state}: {options.out}: {count:,} sequences. These are stand-ins, not DAVIS.", markup=False)
        return
    if options.zip:
        with progress("unpacking") as advance:
            written = prepare_davis.unpack(options.zip, options.out, options.resolution, advance)
        console.print(f"{written:,} files written below {options.out}", markup=False)
    with progress("checking") as advance:
        counts, warnings = prepare_davis.check(options.out, options.resolution, advance)
    report(counts, [], warnings)


def places2(options: argparse.Namespace) -> None:
    """List, check or make Places2.

    Raises:
        ValueError: broken pictures found by a check.
    """
    if options.standin:
        from saccade.data.standin.places import write_places  # loads OpenCV

        with progress("making") as advance:
            made = write_places(
                options.out,
                train=options.train,
                val=options.val,
                size=options.size,
                seed=options.seed,
                progress=advance,
            )
        state = "already there" if made.reused else "written"
        count = f"{made.train_images:,} + {made.val_images:,} pictures"
        console.print(f"{state}: {options.out}: {count}. These are stand-ins, not Places2.", markup=False)
    elif options.check:
        with progress("checking") as advance:
            files, counts, bad = prepare_places2.check(options.out, options.workers, advance)
        for split, source in files.sources.items():
            console.print(f"{split}: {counts[split]:,} pictures of {source}", markup=False)
        if bad:
            _show(bad)
            raise ValueError(
                f"{options.out}: {len(bad):,} pictures cannot be decoded; fetch them again, or list the others"
            )
    else:
        with progress("reading") as advance:
            counts, left_out = prepare_places2.list_pictures(
                options.source,
                options.out,
                held_out=options.held_out,
                verify=options.verify,
                workers=options.workers,
                advance=advance,
            )
        _show(left_out)
        told = ", ".join(f"{count:,} in {prepare_places2.NAMES[split]}" for split, count in counts.items())
        console.print(f"listed in {options.out}: {told}", markup=False)


def _show(bad: list[str]) -> None:
    for line in bad[:_SHOWN]:
        console.print(f"cannot be decoded: {line}", style="yellow", markup=False)
    if len(bad) > _SHOWN:
        console.print(f"... and {len(bad) - _SHOWN:,} more", style="yellow", markup=False)
