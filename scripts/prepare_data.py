"""Turn an official download into the layout that Saccade reads, check it, or write a stand-in there.

    python scripts/prepare_data.py deepfashion --zip img.zip --lists lists/ --out data/deepfashion
    python scripts/prepare_data.py deepfashion --folder img_highres/ --lists lists/ --out data/df512 --size 512x352
    python scripts/prepare_data.py deepfashion --standin --out data/deepfashion
    python scripts/prepare_data.py deepfashion --check --out data/deepfashion
    python scripts/prepare_data.py imagenet --from /datasets/ILSVRC2012 --out data/imagenet --size 128
    python scripts/prepare_data.py folder --from flowers/ --out data/flowers --size 64
    python scripts/prepare_data.py cifar10 --download --out data/cifar10
    python scripts/prepare_data.py davis --zip DAVIS-2017-*-480p.zip --out data/davis
    python scripts/prepare_data.py places2 --from /datasets/places365_standard --out data/places2
    python scripts/prepare_data.py div2k --zip DIV2K_*.zip --out data/div2k
    python scripts/prepare_data.py urban100 --check --out data/urban100

See data/README.md for where the files come from. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saccade.data.class_source import Layout, list_pictures, pack_command, pack_pictures
from saccade.data.pack import PackOptions
from saccade.data.packed import check_pack, pack_folder, packed_sizes
from saccade.data.prepare_deepfashion import MANIFEST, Options, check, convert
from saccade.data.square import EXIFS
from saccade.run.prepare_console import console, progress, report, rows_by_cols
from saccade.run.prepare_pictures import add_davis, add_places2
from saccade.run.prepare_superres import add_superres


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
    classes_parser(commands, "imagenet", "ImageNet (ILSVRC 2012): folders or tars, packed at one size", size=128)
    folder = classes_parser(commands, "folder", "any folder of class folders, packed at one size", size=128)
    folder.add_argument("--held-out", type=float, default=0.1, help="share of a one-level folder to score with [0.1]")
    cifar = classes_parser(commands, "cifar10", "CIFAR-10, packed at one size", size=32)
    cifar.add_argument("--download", action="store_true", help="fetch the archive into --from, or else into --out")
    add_davis(commands)
    add_places2(commands)
    add_superres(commands)
    return top


def classes_parser(commands: Any, layout: Layout, about: str, size: int) -> argparse.ArgumentParser:
    """A sub-command that packs pictures of classes."""
    made: argparse.ArgumentParser = commands.add_parser(layout, help=about)
    what = made.add_mutually_exclusive_group()
    what.add_argument("--from", dest="source", type=Path, help="folder with the pictures (left as it is) [--out]")
    what.add_argument("--standin", action="store_true", help="draw ten classes of things instead, and pack those")
    what.add_argument("--check", action="store_true", help="compare packs with their hashes, or list what is there")
    made.add_argument("--out", type=Path, required=True, help=f"folder for the pack, e.g. data/{layout}")
    made.add_argument("--size", type=int, default=size, help=f"side of the pictures [{size}]")
    exif = "apply" if layout == "folder" else "ignore"  # ImageNet's users ignore the tag; people's own pictures need it
    made.add_argument("--exif", choices=EXIFS, default=exif, help=f"turn pictures upright by their EXIF tag [{exif}]")
    made.add_argument("--max-unreadable", type=int, default=20, help="leave out so many broken files [20]")
    made.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="decoding processes [all cores]")
    made.add_argument("--train", type=int, default=300, help="stand-in: pictures of a class to train on [300]")
    made.add_argument("--val", type=int, default=100, help="stand-in: pictures of a class to score with [100]")
    made.add_argument("--seed", type=int, default=0, help="stand-in: seed [0]")
    made.set_defaults(run=pack_classes, layout=layout, held_out=0.1, download=False)
    return made


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


def pack_classes(options: argparse.Namespace) -> None:
    """Pack, check or draw pictures of classes."""
    layout: Layout = options.layout
    source: Path = options.source or options.out
    if options.check:
        check_classes(options)
        return
    if options.standin:
        from saccade.data.standin.classes import write_classes

        with progress("drawing") as advance:
            write_classes(
                options.out,
                train=options.train,
                val=options.val,
                size=options.size,
                seed=options.seed,
                progress=advance,
            )
        layout = "imagenet"
    if options.download:
        from saccade.data.cifar10 import download_cifar10

        download_cifar10(source)
    out = pack_folder(options.out, options.size)
    console.print(f"listing {source} ...")
    with progress("packing") as advance:
        manifest = pack_pictures(
            source,
            out,
            layout,
            PackOptions(options.size, options.exif, options.max_unreadable),
            held_out=options.held_out,
            workers=options.workers,
            advance=advance,
        )
    describe_pack(manifest)
    console.print(f"packed: {out}{'. These are stand-ins.' if options.standin else ''}")


def check_classes(options: argparse.Namespace) -> None:
    """Verify the packs in a folder, or say what could be packed."""
    sizes = packed_sizes(options.out)
    for size in sizes:
        with progress(f"checking {size}x{size}") as advance:
            manifest = check_pack(pack_folder(options.out, size), advance)
        console.print(f"{pack_folder(options.out, size)}: every file is as it was packed")
        describe_pack(manifest)
    if not sizes:
        listing = list_pictures(options.out, options.layout, options.held_out)
        counts = ", ".join(f"{len(entries):,} {split}" for split, entries in listing.splits.items())
        console.print(f"{options.out}: {len(listing.classes):,} classes, {counts}; not packed")
        console.print(pack_command(options.out, options.layout, options.size))


def describe_pack(manifest: dict[str, Any]) -> None:
    """Print what a pack holds, and what was odd about its files."""
    for split, entry in manifest["splits"].items():
        console.print(f"{split}: {entry['count']:,} pictures of {len(manifest['classes']):,} classes")
        for kind, found in entry["odd"].items():
            console.print(f"  {found['count']:,} {kind.replace('_', ' ')}, e.g. {found['examples'][0]}")
        for name, why in entry["unreadable"].items():
            console.print(f"  left out: {name}: {why}", style="yellow")
    for note in manifest["notes"]:
        console.print(f"note: {note}")


if __name__ == "__main__":
    sys.exit(main())
