"""The stand-in for pictures of classes: ten kinds of things in ImageNet's folder layout, as JPEG files.

    <root>/train/n90000001/n90000001_0.JPEG ...   <root>/val/n90000001/...   <root>/LOC_synset_mapping.txt

The WordNet ids are made up (real ones end at n15...). As in the real thing a few files are grey, CMYK, turned by EXIF,
or PNG under a wrong name, pictures are not all square, and nothing but the mapping says what a class is; STANDIN.txt
and standin.json tell a person what the folder is, and the generator.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from saccade.data.imagenet import MAPPING
from saccade.data.standin.folder import write_whole
from saccade.data.standin.objects import KINDS, Kind
from saccade.data.standin.painter import Bytes
from saccade.geometry import Size

VERSION = 1  # raise it whenever the same arguments would give other files
QUALITY = 95
CLASSES = len(KINDS)
_ODD_FROM = 7  # the number of the odd picture of a class in train/, so that small stand-ins have none
_SHAPES = ((1.0, 1.0), (1.0, 1.0), (1.0, 4 / 3), (3 / 4, 1.0), (1.0, 3 / 2))  # rows, cols over the longer side


@dataclass(frozen=True)
class ClassSummary:
    """What a stand-in folder holds: pictures in train/ and val/, over all classes."""

    root: Path
    train_images: int
    val_images: int
    reused: bool


def render_thing(label: int, seed: int, index: int, size: Size, split: int = 0) -> Bytes:
    """Paint one picture of a class, (rows, cols, 3) uint8, its shorter side's middle square holding the thing."""
    return KINDS[label].paint(np.random.default_rng([seed, split, label, index]), size)


def write_classes(
    root: Path | str,
    *,
    train: int,
    val: int,
    size: int = 64,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ClassSummary:
    """Write the stand-in; a folder that already holds it is reused. Same arguments, same bytes.

    Args:
        root: the folder to make; it appears whole or not at all.
        train, val: pictures of each of the ten classes in train/ and val/; at least 1.
        size: the shorter side of the pictures, at least 16.
        seed: decides everything.
        overwrite: replace a stand-in made with other arguments (never a folder that is not a stand-in).
        progress: called with the pictures done and their total.

    Raises:
        ValueError: counts out of range, or a folder that holds something else.
        OSError: the folder cannot be written.
    """
    if min(train, val) < 1 or size < 16 or seed < 0:
        raise ValueError(
            f"stand-in classes: at least 1 picture of each class in train and val, a size of 16 or more and a seed of "
            f"0 or more; got {train}, {val}, {size}, {seed}"
        )
    arguments = {"version": VERSION, "train": train, "val": val, "size": size, "seed": seed}

    def build(folder: Path) -> dict[str, Any]:
        done, total = 0, (train + val) * CLASSES
        for split, count in (("train", train), ("val", val)):
            for label, kind in enumerate(KINDS):
                (folder / split / kind.wnid).mkdir(parents=True)
                for index in range(count):
                    data = _file(kind, label, split, index, size, seed)
                    (folder / split / kind.wnid / f"{kind.wnid}_{index}.JPEG").write_bytes(data)
                    done += 1
                if progress is not None:
                    progress(done, total)
        text = "".join(f"{kind.wnid} {kind.name}\n" for kind in KINDS)
        (folder / MAPPING).write_text(text, encoding="utf-8")
        return {"train_images": train * CLASSES, "val_images": val * CLASSES}

    marker = (
        f"This is not ImageNet. These are ten kinds of painted things and crops of photographs that come with "
        f"scikit-image (public domain, CC0), in ImageNet's file layout, written by {__name__}, version {VERSION}, seed "
        f"{seed}; standin.json has the other arguments.\n"
    )
    root = Path(root).absolute()
    summary, reused = write_whole(root, "stand-in classes", arguments, build, marker, overwrite=overwrite)
    return ClassSummary(root=root, reused=reused, **summary)


def _file(kind: Kind, label: int, split: str, index: int, size: int, seed: int) -> bytes:
    """One picture as the bytes of its file, odd in one way or another once in a class."""
    where = 0 if split == "train" else 1
    rng = np.random.default_rng([seed, where, label, index, 1])
    rows, cols = _SHAPES[int(rng.integers(len(_SHAPES)))]
    scale = size / min(rows, cols)
    picture = render_thing(label, seed, index, Size(round(rows * scale), round(cols * scale)), where)
    if split == "train" and index == _ODD_FROM:
        return _odd(picture, label % 4)
    done, encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not done:
        raise RuntimeError(f"stand-in classes: OpenCV could not encode a picture of {kind.name} as JPEG")
    return encoded.tobytes()


def _odd(picture: Bytes, way: int) -> bytes:
    """Grey, CMYK, stored lying on its side with an EXIF tag that says so, or a PNG."""
    image, buffer = Image.fromarray(picture), io.BytesIO()
    if way == 2:
        exif = Image.Exif()
        exif[0x0112] = 6  # shown after a quarter turn clockwise
        image.transpose(Image.Transpose.ROTATE_90).save(buffer, "JPEG", quality=QUALITY, exif=exif)
    elif way == 3:
        image.save(buffer, "PNG")
    else:
        image.convert(("L", "CMYK")[way]).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
