"""What is reconstructed from what: pairs of video frames, or a person's two pictures (arXiv 2202.03163, section 4.2).

The paper takes two frames of one video, 10 frames apart, 30 pairs; its released evaluation takes the middle frame of
each of the 30 sequences of DAVIS 2017 test-challenge, so that is what is done here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor

from saccade.data.edit_files import read_picture, to_unit
from saccade.data.square import SUFFIXES

PAPER_DISTANCE = 10
Wanted = Literal["auto", "files", "standin"]


@dataclass(frozen=True)
class Pair:
    """A picture to reconstruct, and the one whose pixels it is made of."""

    name: str
    target: Path
    reference: Path


@dataclass(frozen=True)
class Source:
    """Pairs and where they come from.

    Attributes:
        name: of the data: "davis", "davis_standin", or a folder's.
        detail: split and distance, in words.
        notices: what the user must know: stand-in data, another split, videos left out.
        published: whether these are the data of the paper's tables.
    """

    name: str
    detail: str
    pairs: tuple[Pair, ...]
    notices: tuple[str, ...] = ()
    published: bool = False


def read_frame(path: Path, side: int | None = None, option: str = "image") -> Tensor:
    """A picture as (1, 3, Y, X) float32 in [0, 1]; with `side`, 8-bit and square by Pillow's bicubic, aspect ignored.

    Raises:
        ValueError: not a readable picture; names the file.
    """
    picture = read_picture(path, option)
    if side is None:
        return picture.unit()
    pixels = picture.pixels if picture.depth == 8 else (picture.pixels >> 8).astype(np.uint8)
    if picture.size != (side, side):
        pixels = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC), dtype=np.uint8)
    return to_unit(pixels)


def own_pictures(target: Path, reference: Path) -> Source:
    """Two pictures of a person's own."""
    return Source("own pictures", f"{target.name} from {reference.name}", (Pair(target.stem, target, reference),))


def davis_pairs(
    *,
    source: Wanted,
    data_dir: Path,
    cache_dir: Path | None,
    split: str,
    distance: int,
    count: int,
    options: Mapping[str, Any] | None = None,
) -> Source:
    """The middle frame and the one `distance` later (else earlier) of the sequences of a split of DAVIS 2017.

    Args:
        source: "auto", "files" or "standin".
        data_dir: the folder that holds davis/.
        cache_dir: where the stand-in is kept; None is $SACCADE_CACHE or ~/.cache/saccade.
        split: "test", or the name of a list.
        count: pairs at most, the first by the split's order.
        options: more options of the data module (the stand-in's size).

    Raises:
        ValueError: no such split, or a distance that no sequence is long enough for.
    """
    from saccade.data.davis import DavisModule

    cache = cache_dir or Path(os.environ.get("SACCADE_CACHE") or Path.home() / ".cache" / "saccade")
    root = data_dir.expanduser() / "davis"
    module = DavisModule(root=root, cache=cache.expanduser(), source=source, **dict[str, Any](options or {}))
    found = module.reconstruction_pairs(split, distance)[:count]
    pairs = tuple(Pair(pair.sequence, pair.target, pair.reference) for pair in found)
    used = module.test_split if split == "test" else split
    real = module.banner is None
    return Source(
        "davis" if real else "davis_standin",
        f"split {used}, {distance} frames apart",
        pairs,
        tuple(module.notices),
        published=real and used == "test-challenge" and distance == PAPER_DISTANCE,
    )


# ---------------------------------------------------------------------- folders of frames


def folder_pairs(folder: Path, distance: int, count: int) -> Source:
    """Pairs of a folder of frames, or of a folder of such folders.

    One video gives up to `count` pairs spread over it; of several, each gives one, its middle frame with the frame
    `distance` later, or else earlier. Frames are numbered by the last digits in their names.

    Raises:
        ValueError: no such folder, or no two frames so far apart.
    """
    if not folder.is_dir():
        raise ValueError(f"frames={folder}: no such folder")
    frames = numbered_frames(folder)
    notices: tuple[str, ...] = ()
    if frames:
        pairs = _spread(_all_pairs(folder.name, frames, distance), count)
    else:
        videos = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
        middles = {video.name: middle_pair(video.name, numbered_frames(video), distance) for video in videos}
        pairs = [pair for pair in middles.values() if pair is not None][:count]
        without = [name for name, pair in middles.items() if pair is None]
        if without:
            notices = (f"{len(without)} folders hold no two frames {distance} apart: {', '.join(without[:5])}",)
    if not pairs:
        raise ValueError(
            f"frames={folder}: no two frames whose numbers are {distance} apart, neither there nor in its folders; "
            f"frames are pictures called like 00010.jpg. Another distance= may do"
        )
    return Source(f"frames in {folder.name}", f"{distance} frames apart", tuple(pairs), notices)


def numbered_frames(folder: Path) -> dict[int, Path]:
    """Number -> picture, of the pictures in a folder whose names end in digits, by number."""
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        digits = re.search(r"(\d{1,12})$", path.stem)
        if digits and path.is_file() and path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            found.setdefault(int(digits[1]), path)
    return dict(sorted(found.items()))


def middle_pair(video: str, frames: Mapping[int, Path], distance: int) -> Pair | None:
    """The middle frame with the one `distance` later, or else earlier; where it has neither, the nearest that has one.

    None where no two frames are so far apart.
    """
    numbers = list(frames)
    middle = len(numbers) // 2
    for number in sorted(numbers, key=lambda number: abs(numbers.index(number) - middle)):
        for other in (number + distance, number - distance):
            if other in frames:
                return Pair(f"{video}-{number}-{other}", frames[number], frames[other])
    return None


def _all_pairs(video: str, frames: Mapping[int, Path], distance: int) -> list[Pair]:
    return [
        Pair(f"{video}-{number}-{number + distance}", frames[number], frames[number + distance])
        for number in frames
        if number + distance in frames
    ]


def _spread(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """At most `count` of them, evenly over the list, ends included."""
    if len(pairs) <= count:
        return list(pairs)
    last = len(pairs) - 1
    return [pairs[round(index * last / max(1, count - 1))] for index in range(count)]
