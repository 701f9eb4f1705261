"""Turn an official download into the layout that Saccade reads, check it, or write a stand-in there.

    python scripts/prepare_data.py deepfashion --zip img.zip --lists lists/ --out data/deepfashion
    python scripts/prepare_data.py deepfashion --folder img_highres/ --lists lists/ --out data/df512 --size 512x352
    python scripts/prepare_data.py deepfashion --standin --out data/deepfashion
    python scripts/prepare_data.py deepfashion --check --out data/deepfashion

See data/README.md for where the files come from. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from saccade.data.prepare_deepfashion import MANIFEST, Advance, Options, check, convert

console = Console(soft_wrap=True, highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 on success, 2 on wrong input, 130 when interrupted."""
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted: the same command goes on where this one stopped", style="yellow")
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line: one sub-command a dataset."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(required=True, metavar="dataset")
    fashion = commands.add_parser("deepfashion", help="DeepFashion in-shop as pose-transfer pairs (PATN layout)")
    what = fashion.add_mutually_exclusive_group(required=True)
    what.add_argument("--zip", type=Path, help="img.zip of In-shop Clothes Retrieval (256x256 with borders)")
    what.add_argument("--folder", type=Path, help="folder with the unpacked pictures (img or img_highres)")
    what.add_argument("--standin", action="store_true", help="draw people instead; needs no download")
    what.add_argument("--check", action="store_true", help="read the lists and every picture of a prepared folder")
    fashion.add_argument("--out", type=Path, required=True, help="folder to write or check, e.g. data/deepfashion")
    fashion.add_argument("--lists", type=Path, help="folder with the keypoint files")
    fashion.add_argument("--size", type=rows_by_cols, default=(256, 176), help="rows x cols to write [256x176]")
    fashion.add_argument(
        "--keep-borders", action="store_true", help="write squares with their borders (--size 256x256)"
    )
    fashion.add_argument("--quality", type=int, default=95, help="JPEG quality [95]")
    fashion.add_argument("--frame", default="auto", help="frame of the keypoints: auto, 256x256, 256x176")
    fashion.add_argument("--train", type=int, default=400, help="stand-in: people to train on [400]")
    fashion.add_argument("--test", type=int, default=60, help="stand-in: people to test on [60]")
    fashion.add_argument("--poses", type=int, default=5, help="stand-in: pictures of each [5]")
    fashion.add_argument("--seed", type=int, default=0, help="stand-in: seed [0]")
    fashion.add_argument("--workers", type=int, default=0, help="stand-in: processes; 0 draws in this one [0]")
    fashion.set_defaults(run=deepfashion)
    return top


def rows_by_cols(text: str) -> tuple[int, int]:
    """Parse 256x176."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write rows x cols like 256x176")
    return int(sides[0]), int(sides[1])


def deepfashion(options: argparse.Namespace) -> None:
    """Prepare, check or draw DeepFashion."""
    if options.standin:
        draw_standin(options)
    elif options.check:
        with progress("checking") as advance:
            lists = check(options.out, options.frame, advance)
        console.print(f"keypoints: {lists.frame} frame, {lists.frame_evidence}")
        report(lists.audit.counts, lists.audit.notes, lists.audit.warnings)
    else:
        prepare(options)


def prepare(options: argparse.Namespace) -> None:
    """Convert the official download."""
    if options.lists is None:
        raise ValueError(
            "--lists is missing: a folder with fasion-resize-annotation-{train,test}.csv (keypoints; they also say "
            "which picture is in which split) and, if you have them, fasion-resize-pairs-{train,test}.csv. "
            "data/README.md says where PATN links them"
        )
    made = Options(options.size, options.keep_borders, options.quality, options.frame)
    with progress("preparing") as advance:
        manifest = convert(options.zip or options.folder, options.lists, options.out, made, advance)
    evidence = manifest["keypoint_frame_evidence"]
    console.print(f"keypoints: {manifest['keypoint_frame']} frame, {evidence}")
    if manifest["keypoint_rows_without_picture"]:
        console.print(
            f"{manifest['keypoint_rows_without_picture']:,} keypoint rows have no picture; no pair needs them"
        )
    report(manifest["counts"], manifest["notes"], manifest["warnings"])
    console.print(f"written: {options.out} (see {MANIFEST})")
    if options.frame != "auto":
        console.print(f"train with data.module.keypoint_frame={manifest['keypoint_frame']}")
    if options.keep_borders and manifest["keypoint_frame"] == "256x176":
        console.print("train with data.module.square_files=bordered")


def draw_standin(options: argparse.Namespace) -> None:
    """Write stand-in people."""
    from saccade.data.standin.people import write_deepfashion

    console.print(f"drawing {(options.train + options.test) * options.poses:,} pictures of made-up people ...")
    made = write_deepfashion(
        options.out,
        train_identities=options.train,
        test_identities=options.test,
        poses_per_identity=options.poses,
        image_size=options.size,
        seed=options.seed,
        workers=options.workers,
    )
    console.print(
        f"{'already there' if made.reused else 'written'}: {options.out}: {made.train_images:,} + {made.test_images:,} "
        f"pictures, {made.train_pairs:,} + {made.test_pairs:,} pairs. These are stand-ins, not DeepFashion."
    )


def report(counts: dict[str, int], notes: Sequence[str], warnings: Sequence[str]) -> None:
    """Print an audit."""
    console.print(", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in counts.items()))
    for note in notes:
        console.print(f"note: {note}")
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow")


@contextmanager
def progress(what: str) -> Iterator[Advance]:
    """A progress bar over pictures."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


if __name__ == "__main__":
    sys.exit(main())
