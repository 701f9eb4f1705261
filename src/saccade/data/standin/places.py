"""The stand-in for Places2: photographs of scikit-image as places, in the layout of Places365-Standard.

    <root>/data_large/<letter>/<class>/00000001.jpg ...    <root>/places365_train_standard.txt
    <root>/val_large/Places365_val_00000001.jpg ...        <root>/places365_val.txt

So it can be read in both ways, by folders and by lists. Three classes: fields (a ground in perspective before a wall),
pavements (a ground from above), both with or without a thing that lies or stands there, and close-ups (crops of the
photographs themselves, mirrored or not, in another light). Validation pictures come from other photographs than
training ones, or from the other half of a texture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from saccade.data.standin.backdrops import flat, landscape
from saccade.data.standin.folder import write_whole
from saccade.data.standin.painter import Bytes
from saccade.data.standin.photographs import (
    CLOSE_UPS,
    FLATS,
    GROUNDS,
    THINGS,
    WALLS,
    Part,
    cut_thing,
    jpeg,
    laid_out,
)
from saccade.data.standin.videos import Shot, thing_path
from saccade.geometry import Size

VERSION = 1  # raise it whenever the same arguments would give other files
QUALITY = 92
CLASSES = ("close_up", "field", "pavement")
_SHAPES = ((1.0, 4 / 3), (1.0, 4 / 3), (1.0, 1.0), (4 / 3, 1.0), (1.0, 3 / 2))  # rows, cols over the shorter side


@dataclass(frozen=True)
class PlacesSummary:
    """What a stand-in folder holds: pictures to train on and to validate with."""

    root: Path
    train_images: int
    val_images: int
    reused: bool


def paint_place(part: Part, index: int, *, size: int, seed: int = 0) -> Bytes:
    """The index-th picture of a part, (rows, cols, 3) uint8 RGB, its shorter side `size`; class index modulo 3."""
    key = (seed, 7, ("train", "test").index(part), index)
    rng = np.random.default_rng(key)
    rows, cols = _SHAPES[int(rng.integers(len(_SHAPES)))]
    canvas = Size(round(rows * size), round(cols * size))
    kind = CLASSES[index % len(CLASSES)]
    if kind == "close_up":
        return _close_up(part, rng, canvas)
    if kind == "field":
        ground = GROUNDS[part][int(rng.integers(len(GROUNDS[part])))]
        walls = [wall for wall in WALLS[part] if wall.name != ground.name]
        picture = landscape(rng, ground, walls[int(rng.integers(len(walls)))], canvas, canvas)
    else:
        picture = flat(rng, FLATS[part][int(rng.integers(len(FLATS[part])))], canvas, canvas)
    if rng.random() < 0.4:
        return picture
    thing = THINGS[part][int(rng.integers(len(THINGS[part])))]
    cutout = cut_thing(thing, max(round(thing.height * canvas.rows * float(rng.uniform(0.6, 1.1))), 8))
    still = np.array([[[1.0, 0, 0], [0, 1, 0]]])
    place = thing_path(rng, cutout, 1, canvas)
    place[0, 0, 2] += float(rng.uniform(-0.25, 0.25)) * canvas.cols
    return next(Shot(thing.name, picture, still, cutout, place, np.ones(1, np.float32), key, canvas).frames())


def write_places(
    root: Path | str,
    *,
    train: int = 400,
    val: int = 60,
    size: int = 320,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> PlacesSummary:
    """Write the stand-in; a folder that already holds it is reused. Same arguments, same bytes.

    Args:
        root: the folder to make; it appears whole or not at all.
        train, val: pictures in data_large and val_large; 1 or more.
        size: the shorter side of the pictures, at least 32.
        seed: decides everything.
        overwrite: replace a stand-in made with other arguments (never a folder that is not a stand-in).
        progress: called with the pictures done and their total.

    Raises:
        ValueError: numbers out of range, or a folder that holds something else.
        OSError: the folder cannot be written.
    """
    if min(train, val) < 1 or size < 32 or seed < 0:
        raise ValueError(
            f"stand-in places: 1 picture or more in train and val, a size of 32 or more and a seed of 0 or more; got "
            f"{train}, {val}, {size}, {seed}"
        )
    arguments = {"version": VERSION, "train": train, "val": val, "size": size, "seed": seed}

    def build(folder: Path) -> dict[str, Any]:
        lines: dict[Part, list[str]] = {"train": [], "test": []}
        counts: dict[Part, int] = {"train": train, "test": val}
        for part, count in counts.items():
            for index in range(count):
                path, line = _name(part, index)
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(jpeg(paint_place(part, index, size=size, seed=seed), QUALITY))
                lines[part].append(line)
                if progress is not None:
                    progress(index + 1 + (train if part == "test" else 0), train + val)
        for part, name in (("train", "places365_train_standard.txt"), ("test", "places365_val.txt")):
            (folder / name).write_text("".join(f"{line}\n" for line in sorted(lines[part])), encoding="utf-8")
        return {"train_images": train, "val_images": val}

    marker = (
        "This is not Places2. These are photographs that come with scikit-image (public domain, CC0) laid out as "
        f"places, in the file layout of Places365-Standard, written by {__name__}, version {VERSION}, seed {seed}; "
        "standin.json has the other arguments.\n"
    )
    root = Path(root).absolute()
    summary, reused = write_whole(root, "stand-in places", arguments, build, marker, overwrite=overwrite)
    return PlacesSummary(root=root, reused=reused, **summary)


def _name(part: Part, index: int) -> tuple[str, str]:
    """Where a picture lies, and its line in the list."""
    label = index % len(CLASSES)
    if part == "test":
        name = f"Places365_val_{index + 1:08d}.jpg"
        return f"val_large/{name}", f"{name} {label}"
    kind = CLASSES[label]
    name = f"/{kind[0]}/{kind}/{index // len(CLASSES) + 1:08d}.jpg"
    return f"data_large{name}", f"{name} {label}"


def _close_up(part: Part, rng: np.random.Generator, canvas: Size) -> Bytes:
    """A crop of a photograph, mirrored or not, in another light."""
    image = laid_out(CLOSE_UPS[part][int(rng.integers(len(CLOSE_UPS[part])))], int(rng.integers(8)))
    rows, cols = image.shape[:2]
    scale = float(rng.uniform(0.55, 1.0)) * min(rows / canvas.rows, cols / canvas.cols)
    height, width = round(canvas.rows * scale), round(canvas.cols * scale)
    top, left = int(rng.integers(rows - height + 1)), int(rng.integers(cols - width + 1))
    part_of = image[top : top + height, left : left + width]
    if rng.random() < 0.5:
        part_of = part_of[:, ::-1]
    way = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    found = cv2.resize(np.ascontiguousarray(part_of), (canvas.cols, canvas.rows), interpolation=way).astype(np.float32)
    grey = found.mean(axis=2, keepdims=True)
    lively = grey + (found - grey) * float(rng.uniform(0.75, 1.25))
    light = rng.uniform(0.92, 1.08, 3).astype(np.float32) * float(rng.uniform(0.85, 1.12))
    picture: Bytes = np.clip(np.rint(lively * light), 0, 255).astype(np.uint8)
    return picture
