"""Pictures as (rows, cols, 3) uint8 arrays: from tensors, larger, labelled, and onto the disk."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from saccade.files import replacing

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]

PAPER: Colour = (255, 255, 255)
INK: Colour = (38, 42, 51)
FAINT: Colour = (118, 126, 140)


def to_uint8(images: Tensor) -> Picture:
    """Turn images in [-1, 1] into pictures; one channel becomes grey, values outside the range are cut.

    Args:
        images: (B, C, Y, X) or (C, Y, X), C = 1 or 3.

    Returns:
        (B, Y, X, 3) or (Y, X, 3) uint8. A non-finite value becomes pure magenta, so that it cannot pass for black.

    Raises:
        ValueError: another number of axes or channels.
    """
    if images.ndim not in (3, 4) or images.shape[-3] not in (1, 3):
        raise ValueError(
            f"to_uint8: an image is (B, C, Y, X) or (C, Y, X) with 1 or 3 channels; got shape {tuple(images.shape)}"
        )
    values = images.detach().float().cpu().numpy()
    values = np.moveaxis(values, -3, -1)  # (..., Y, X, C)
    values = np.broadcast_to(values, (*values.shape[:-1], 3))
    broken = ~np.isfinite(values).all(axis=-1)
    scaled = np.rint((np.clip(np.nan_to_num(values), -1.0, 1.0) + 1.0) * 127.5)
    picture: Picture = scaled.astype(np.uint8)
    picture[broken] = (255, 0, 255)
    return picture


def require_picture(picture: Picture, who: str) -> None:
    """Raise ValueError unless `picture` is a (rows, cols, 3) uint8 array."""
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(
            f"{who}: a picture is a (rows, cols, 3) uint8 array; got {picture.dtype} of shape {picture.shape}"
        )


def enlarge(picture: Picture, height: int) -> Picture:
    """Bring a picture to `height` rows, keeping its aspect, so that 32-pixel images can be looked at.

    Going up it is nearest-neighbour to a whole multiple (pixels stay pixels) and Lanczos for the rest; going down,
    area.
    """
    require_picture(picture, "enlarge")
    rows, cols = picture.shape[:2]
    if rows == height:
        return picture
    width = max(1, round(cols * height / rows))
    if height < rows:
        return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    whole = max(1, height // rows)
    larger = picture.repeat(whole, axis=0).repeat(whole, axis=1)
    if larger.shape[0] == height:
        return larger
    return np.asarray(cv2.resize(larger, (width, height), interpolation=cv2.INTER_LANCZOS4), dtype=np.uint8)


def readable_height(rows: int, *, least: int = 160) -> int:
    """The smallest whole multiple of `rows` that is at least `least`: every pixel of a small image becomes a square."""
    return rows * max(1, -(-least // rows))


@lru_cache(maxsize=8)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's built-in face (a bitmap one where Pillow lacks FreeType)."""
    return ImageFont.load_default(size)


def text_size(text: str, size: int) -> tuple[int, int]:
    """(rows, cols) that `text` takes at `size` pixels."""
    left, top, right, bottom = font(size).getbbox(text)
    return int(bottom - min(top, 0)), int(right - left)


def write_text(
    picture: Picture,
    text: str,
    at: tuple[int, int],
    *,
    size: int = 13,
    colour: Colour = INK,
    anchor: str = "la",
) -> Picture:
    """Return the picture with `text` at (row, col); `anchor` is Pillow's (la: left and top, ma: middle and top)."""
    sheet = Image.fromarray(picture)
    face = font(size)
    draw = ImageDraw.Draw(sheet)
    row, col = at
    if isinstance(face, ImageFont.FreeTypeFont):
        draw.text((col, row), text, fill=colour, font=face, anchor=anchor)
    else:
        draw.text((col, row), text, fill=colour, font=face)
    return np.array(sheet, dtype=np.uint8)


def fit_text(text: str, width: int, size: int) -> str:
    """Cut `text` with an ellipsis so that it takes at most `width` pixels."""
    if text_size(text, size)[1] <= width:
        return text
    for length in range(len(text) - 1, 0, -1):
        cut = text[:length].rstrip() + "…"
        if text_size(cut, size)[1] <= width:
            return cut
    return ""


def blank(rows: int, cols: int, colour: Colour = PAPER) -> Picture:
    """A picture of one colour."""
    sheet = np.empty((rows, cols, 3), dtype=np.uint8)
    sheet[:] = colour
    return sheet


def stack(pictures: list[Picture], *, gap: int = 8) -> Picture:
    """Put pictures under each other on paper, aligned left."""
    if not pictures:
        raise ValueError("stack: no pictures given")
    width = max(picture.shape[1] for picture in pictures)
    height = sum(picture.shape[0] for picture in pictures) + gap * (len(pictures) - 1)
    sheet = blank(height, width)
    row = 0
    for picture in pictures:
        sheet[row : row + picture.shape[0], : picture.shape[1]] = picture
        row += picture.shape[0] + gap
    return sheet


def write_png(path: Path, picture: Picture) -> Path:
    """Write a picture so that the file is either whole or absent.

    Raises:
        ValueError: not a (rows, cols, 3) uint8 array.
        OSError: the folder cannot be made or written to; the message names it.
    """
    require_picture(picture, f"write_png {path}")
    with replacing(path) as file:
        Image.fromarray(picture).save(file, format="PNG")
    return path
