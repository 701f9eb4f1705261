"""Masks that a user drew: picture files in which white is what to fill."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from saccade.geometry import Size

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm")


def read_mask(
    path: Path | str, size: Size | None = None, *, invert: bool = False, threshold: float = 0.5, resize: bool = False
) -> Tensor:
    """Read a mask: (1, 1, Y, X) float32, 1 where the picture is white and there is something to fill.

    Colours count by their brightness, 16 bits by their share of the full range; what is transparent is black. The
    picture is turned upright by its EXIF tag, as photographs are.

    Args:
        path: the file.
        size: of the picture that the mask belongs to; None takes any.
        invert: black is the hole.
        threshold: share of full white from which a pixel belongs to the hole.
        resize: scale a mask of another size (nearest pixel), in place of refusing it.

    Raises:
        ValueError: no readable picture, another size, or a mask that is all hole or has none; names the file.
    """
    mask = _brightness(Path(path)) >= threshold
    mask = ~mask if invert else mask
    found = Size(*mask.shape)
    if size is not None and found != size:
        if not resize:
            raise ValueError(
                f"{path}: the mask is {found} (rows x cols), the picture {size}; a mask has the size of its picture, "
                f"as it stands upright"
            )
        scaled = Image.fromarray(mask).resize((size.cols, size.rows), Image.Resampling.NEAREST)
        mask = np.asarray(scaled, dtype=bool)
    if mask.all() or not mask.any():
        what = "all hole, which leaves nothing to fill it from" if mask.all() else "without a hole"
        raise ValueError(f"{path}: the mask is {what}; {'black' if invert else 'white'} is the hole, the rest is kept")
    return torch.from_numpy(mask.astype(np.float32))[None, None]


def find_masks(folder: Path) -> list[Path]:
    """The picture files of a folder and its sub-folders, in the order of their names.

    Raises:
        ValueError: none; names the folder and what counts as one.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        what = "no mask files in it" if folder.is_dir() else "no such folder"
        raise ValueError(f"{folder}: {what}; masks are pictures ({', '.join(SUFFIXES)}), white where the hole is")
    return files


def _brightness(path: Path) -> NDArray[np.float64]:
    """(Y, X) of 0 to 1."""
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such mask file") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable mask ({error})") from error
    if image.mode.startswith("I"):  # 16 bits a pixel, or 16 of 32
        return np.asarray(image, dtype=np.float64) / 65535
    if image.mode == "F":
        return np.asarray(image, dtype=np.float64)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size)
        image.paste(rgba, mask=rgba.getchannel("A"))
    return np.asarray(image.convert("L"), dtype=np.float64) / 255
