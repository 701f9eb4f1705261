"""The sub-commands `div2k`, `urban100`, `set5`, `set14` and `b100` of `scripts/prepare_data.py`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from saccade.data import prepare_superres
from saccade.data.superres_layout import OFFICIAL, SETS
from saccade.run.prepare_console import console, progress, report, rows_by_cols


def add_superres(commands: Any) -> None:
    """Add a sub-command for each super-resolution set."""
    for name in SETS:
        made: argparse.ArgumentParser = commands.add_parser(name, help=f"{OFFICIAL[name]}, for super-resolution")
        what = made.add_mutually_exclusive_group(required=True)
        if name == "div2k":
            what.add_argument("--zip", type=Path, nargs="+", help="archives to unpack: DIV2K_train_HR.zip ...")
            made.add_argument("--train", type=int, default=120, help="stand-in: pictures to train on [120]")
        what.add_argument("--standin", action="store_true", help="draw facades instead; needs no download")
        what.add_argument("--check", action="store_true", help="read every picture, compare low resolutions with ours")
        made.add_argument("--out", type=Path, required=True, help=f"folder to write or check, e.g. data/{name}")
        if name == "div2k":
            made.add_argument("--decode", action="store_true", help="also keep arrays: faster training, 7 GB and more")
        made.add_argument(
            "--scales", type=int, nargs="+", default=(2, 3, 4), choices=(2, 3, 4), help="to check [2 3 4]"
        )
        made.add_argument("--test", type=int, default=12, help="stand-in: pictures to score on [12]")
        made.add_argument("--size", type=rows_by_cols, default=(192, 256), help="stand-in: rows x cols [192x256]")
        made.add_argument("--seed", type=int, default=0, help="stand-in: seed [0]")
        made.set_defaults(run=superres, name=name, zip=None, decode=False)


def superres(options: argparse.Namespace) -> None:
    """Unpack, check or draw a super-resolution set."""
    name: str = options.name
    root: Path = options.out.absolute()
    if options.standin:
        _draw(options, root)
    if options.zip:
        with progress("unpacking") as advance:
            written = prepare_superres.unpack(options.zip, root, advance)
        console.print(f"{written:,} files written below {options.out}", markup=False)
    if options.decode:
        with progress("decoding") as advance:
            written = prepare_superres.decode(root, advance)
        console.print(f"{written:,} arrays written below {options.out}", markup=False)
    if options.check:
        with progress("checking") as advance:
            counts, notes, warnings = prepare_superres.check(root, name, options.scales, advance)
        report(counts, notes, warnings)


def _draw(options: argparse.Namespace, root: Path) -> None:
    from saccade.data.standin.superres import write_benchmark, write_div2k  # loads OpenCV

    drawn: dict[str, Any] = {"size": options.size, "seed": options.seed}
    with progress("drawing") as advance:
        if options.name == "div2k":
            summary, reused = write_div2k(root, train=options.train, valid=options.test, progress=advance, **drawn)
        else:
            summary, reused = write_benchmark(root, options.name, count=options.test, progress=advance, **drawn)
    state, count = "already there" if reused else "written", " + ".join(f"{n:,}" for n in summary.values())
    console.print(
        f"{state}: {options.out}: {count} pictures. These are stand-ins, not {OFFICIAL[options.name]}.", markup=False
    )
