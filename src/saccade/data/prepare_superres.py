"""From DIV2K's archives to the folder that is read, and checks of any super-resolution set."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from saccade.data.archives import Member, extract, zip_infos
from saccade.data.bicubic import degrade
from saccade.data.class_layout import pictures_below
from saccade.data.images import decode_image
from saccade.data.standin.folder import MARKER, require_no_standin
from saccade.data.superres_layout import OFFICIAL, find_set, how_to_get
from saccade.data.superres_pairs import ResolutionPairs, decoded_path
from saccade.files import replacing

Advance = Callable[[int, int], None]  # files done, files in all
COUNTS = {"div2k": 900, "urban100": 100, "set5": 5, "set14": 14, "b100": 100}
_FOLDER = re.compile(r"DIV2K_(train|valid)_(HR|LR_bicubic)")


def unpack(archives: Sequence[Path], out: Path, advance: Advance | None = None) -> int:
    """Unpack DIV2K's archives into `out`; files that are there in their whole size are left alone.

    Returns:
        The number of files written.

    Raises:
        ValueError: not a zip file, a damaged one, or one without DIV2K's pictures; names it. Also where `out` holds a
            stand-in.
    """
    require_no_standin(out)
    members: list[Member] = []
    for archive in archives:
        found = []
        for info in zip_infos(archive):
            parts = Path(info.filename).parts
            start = next((i for i, part in enumerate(parts) if _FOLDER.fullmatch(part)), None)
            if start is not None and info.filename.endswith(".png"):
                found.append(Member(archive, info, out.joinpath(*parts[start:])))
        if not found:
            raise ValueError(
                f"{archive}: holds no DIV2K_train_HR/0001.png or DIV2K_train_LR_bicubic/X2/0001x2.png; it should be an "
                f"archive of DIV2K's authors as DIV2K_train_HR.zip or DIV2K_train_LR_bicubic_X2.zip"
            )
        members += found
    return extract(members, advance)


def decode(out: Path, advance: Advance | None = None) -> int:
    """Write DIV2K's training pictures as arrays, from which training reads just the patch that it needs.

    Takes 3 bytes a pixel: about 7 GB for the 800 pictures, and a quarter, a ninth and a sixteenth of that for their low
    resolutions. Arrays that are there are left alone.

    Returns:
        The number of arrays written.

    Raises:
        ValueError: an unreadable picture, or none; names it.
    """
    folders = ("DIV2K_train_HR", "DIV2K_train_LR_bicubic")
    pictures = [out / folder / name for folder in folders for name in pictures_below(out / folder)]
    if not pictures:
        raise ValueError(f"DIV2K: there are no pictures in {out / folders[0]}.\n{how_to_get(out.parent, 'div2k')}")
    written = 0
    for done, picture in enumerate(pictures, start=1):
        target = decoded_path(out, picture)
        if not target.is_file():
            pixels = decode_image(picture)
            with replacing(target) as file:
                np.save(file, pixels)
            written += 1
        if advance is not None:
            advance(done, len(pictures))
    return written


def check(
    root: Path, name: str, scales: Sequence[int], advance: Advance | None = None
) -> tuple[dict[str, int], list[str], list[str]]:
    """Read every picture of a set, and compare its low resolutions with ours.

    Args:
        root: the set's folder.
        name: one of `saccade.data.superres_layout.SETS`.
        scales: which ones to look at.

    Returns:
        Counts (pictures, and low resolutions of each scale), notes and warnings.

    Raises:
        ValueError: no pictures, an unreadable one, or a low resolution of another size; names it.
    """
    found = {scale: find_set(root, name, scale) for scale in scales}
    counts = {"pictures": len(found[scales[0]].pairs)}
    notes = list(dict.fromkeys(note for files in found.values() for note in files.notes))
    warnings = []
    if counts["pictures"] != COUNTS[name] and not (root / MARKER).is_file():
        warnings.append(f"{OFFICIAL[name]} officially has {COUNTS[name]:,} pictures")
    total, done = sum(len(files.pairs) for files in found.values()), 0
    for scale, files in found.items():
        pairs, other = ResolutionPairs(files.pairs, scale), []
        counts[f"x{scale}"] = given = sum(pair.low is not None for pair in files.pairs)
        for pair in files.pairs:
            low, high = pairs.pair(pair)
            if pair.low is not None and not np.array_equal(low, degrade(high, scale)):
                other.append(pair.key)
            done += 1
            if advance is not None:
                advance(done, total)
        if other:
            warnings.append(
                f"x{scale}: {len(other):,} of {given:,} low resolutions are not MATLAB's bicubic, first {other[0]}"
            )
        elif given:
            notes.append(f"x{scale}: every low resolution is MATLAB's bicubic to the bit")
    return counts, notes, warnings
