"""Stand-ins for DIV2K and for the super-resolution benchmarks: procedural facades, in the official layouts.

    DIV2K_{train,valid}_HR/0001.png   DIV2K_{train,valid}_LR_bicubic/X2/0001x2.png      (a third are photographs)
    image_SRF_4/img_001_SRF_4_{HR,LR}.png, image_SRF_2/...                              (Urban100 as first published)
    HR/img_001.png   LR_bicubic/X2/img_001x2.png                                        (the other benchmarks)

As in the published Urban100, the SRF_2 folder holds pictures of half the size. STANDIN.txt and standin.json tell a
person what the folder is. The photographs are crops of scikit-image's own (public domain, CC0); those of DIV2K's
validation are others than those of its training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from saccade.data.bicubic import degrade
from saccade.data.images import Pixels
from saccade.data.standin.facades import render_facade
from saccade.data.standin.folder import write_whole
from saccade.data.standin.photographs import CLOSE_UPS, Part, laid_out
from saccade.geometry import Size

VERSION = 1  # raise it whenever the same arguments would give other files
SCALES = (2, 3, 4)
FIRST_VALID = 801
_PARTS: dict[str, Part] = {"train": "train", "valid": "test"}  # of the photographs
_LEAST = 48  # side of a picture
_SHRINK = 3.0  # times at most, of a photograph
_EVERY = 3  # one picture in so many is a photograph's crop
_STREAMS = {"train": 0, "valid": 1, "urban100": 2, "set5": 3, "set14": 4, "b100": 5}

Progress = Callable[[int, int], None]


def write_div2k(
    root: Path | str,
    *,
    train: int,
    valid: int,
    size: Sequence[int] = (192, 256),
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], bool]:
    """Write a stand-in for DIV2K; a folder that already holds it is reused. Same arguments, same bytes.

    Args:
        root: the folder to make; it appears whole or not at all.
        train, valid: pictures numbered from 1 and from 801; at least 1.
        size: rows and columns, 48 or more.
        seed: decides everything.
        overwrite: replace a stand-in made with other arguments (never a folder that is not a stand-in).
        progress: called with the pictures done and their total.

    Returns:
        The summary, and whether the folder was there already.

    Raises:
        ValueError: counts or sizes out of range, or a folder that holds something else.
        OSError: the folder cannot be written.
    """
    shape = _checked("DIV2K", size, seed, min(train, valid))
    if train >= FIRST_VALID:
        raise ValueError(f"stand-in DIV2K: at most 800 pictures to train on (801 is the first to score); got {train}")

    def build(folder: Path) -> dict[str, Any]:
        done = 0
        for split, first, count in (("train", 1, train), ("valid", FIRST_VALID, valid)):
            for index in range(count):
                stem = f"{first + index:04d}"
                picture = _picture(split, index, shape, seed)
                _save(folder / f"DIV2K_{split}_HR" / f"{stem}.png", picture)
                for scale in SCALES:
                    low = folder / f"DIV2K_{split}_LR_bicubic" / f"X{scale}" / f"{stem}x{scale}.png"
                    _save(low, degrade(picture, scale))
                done += 1
                if progress is not None:
                    progress(done, train + valid)
        return {"train": train, "valid": valid}

    arguments = {"version": VERSION, "train": train, "valid": valid, "size": list(shape), "seed": seed}
    return write_whole(Path(root).absolute(), "stand-in DIV2K", arguments, build, _marker("DIV2K"), overwrite=overwrite)


def write_benchmark(
    root: Path | str,
    name: str,
    *,
    count: int,
    size: Sequence[int] = (192, 256),
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], bool]:
    """Write a stand-in for a benchmark, urban100, set5, set14 or b100: facades in other streets than DIV2K's.

    Args:
        count: pictures.
        others: as for `write_div2k`.

    Returns, raises: as `write_div2k`; ValueError also for an unknown benchmark.
    """
    if name not in _STREAMS or name in _PARTS:
        raise ValueError(f"stand-in benchmark {name!r} is unknown; valid: urban100, set5, set14, b100")
    shape = _checked(name, size, seed, count)

    def build(folder: Path) -> dict[str, Any]:
        for index in range(count):
            picture = _picture(name, index, shape, seed)
            if name == "urban100":
                _save_first_layout(folder, index + 1, picture)
            else:
                _save(folder / "HR" / f"img_{index + 1:03d}.png", picture)
                for scale in SCALES:
                    low = folder / "LR_bicubic" / f"X{scale}" / f"img_{index + 1:03d}x{scale}.png"
                    _save(low, degrade(picture, scale))
            if progress is not None:
                progress(index + 1, count)
        return {"pictures": count}

    arguments = {"version": VERSION, "benchmark": name, "count": count, "size": list(shape), "seed": seed}
    return write_whole(Path(root).absolute(), f"stand-in {name}", arguments, build, _marker(name), overwrite=overwrite)


def _save_first_layout(folder: Path, number: int, picture: Pixels) -> None:
    """Urban100 as its authors publish it: the SRF_2 pictures are halves, with the low resolution of SRF_4."""
    for scale, high in ((4, picture), (2, degrade(picture, 2))):
        stem = f"image_SRF_{scale}/img_{number:03d}_SRF_{scale}"
        _save(folder / f"{stem}_HR.png", high)
        _save(folder / f"{stem}_LR.png", degrade(picture, 4))


def _picture(split: str, index: int, size: Size, seed: int) -> Pixels:
    rng = np.random.default_rng([seed, _STREAMS[split], index])
    if split in _PARTS and index % _EVERY == _EVERY - 1:
        surfaces = CLOSE_UPS[_PARTS[split]]
        crop = _crop(rng, laid_out(surfaces[index // _EVERY % len(surfaces)], index // _EVERY), size)
        if crop is not None:
            return crop
    return render_facade(rng, size)


def _crop(rng: np.random.Generator, picture: Pixels, size: Size) -> Pixels | None:
    """A piece of a photograph, shrunk where it is large enough, so that it is sharp; None where it is too small."""
    rows, cols = picture.shape[:2]
    most = min(rows / size.rows, cols / size.cols)
    if most < 1:
        return None
    factor = float(rng.uniform(1, min(most, _SHRINK)))
    tall, wide = min(round(size.rows * factor), rows), min(round(size.cols * factor), cols)
    top, left = int(rng.integers(rows - tall + 1)), int(rng.integers(cols - wide + 1))
    piece = picture[top : top + tall, left : left + wide]
    if rng.random() < 0.5:
        piece = piece[:, ::-1]
    shrunk: Pixels = cv2.resize(np.ascontiguousarray(piece), (size.cols, size.rows), interpolation=cv2.INTER_AREA)
    return shrunk


def _save(path: Path, picture: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, compress_level=1)


def _checked(name: str, size: Sequence[int], seed: int, least: int) -> Size:
    shape = Size.of(tuple(size))
    if min(shape) < _LEAST or least < 1 or seed < 0:
        raise ValueError(
            f"stand-in {name}: 1 picture or more, a seed of 0 or more, and sides of {_LEAST} or more; got {least} "
            f"pictures, seed {seed} and {shape}"
        )
    return shape


def _marker(name: str) -> str:
    return (
        f"This is not {name}. These are pictures of made-up facades (and, in DIV2K's layout, crops of photographs that "
        f"come with scikit-image, public domain and CC0), written by {__name__}, version {VERSION}; standin.json has "
        f"the arguments.\n"
    )
