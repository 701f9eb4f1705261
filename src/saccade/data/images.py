"""Picture files: decoding, placing on the network's canvas, and moving keypoints along.

Placing keeps the aspect: the picture is scaled to the largest size that fits the canvas and the rest is filled with one
colour. The resize filter is Pillow's antialiased bicubic, or its box filter (an exact area mean at whole factors)
where the picture shrinks by 4 or more. A pixel centre x goes to (x + 0.5) * scale - 0.5.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from saccade.data.affine import drop_outside
from saccade.geometry import Size

Pixels = npt.NDArray[np.uint8]
Side = Literal["centre", "left", "right"]
SIDES: tuple[Side, ...] = ("centre", "left", "right")
_BOX_FROM = 4.0

_T = TypeVar("_T", Tensor, Pixels)


class Box(NamedTuple):
    """The part of a canvas that a picture covers, in pixels. It may reach beyond the canvas, which then crops it."""

    top: int
    left: int
    rows: int
    cols: int


def decode_image(path: Path | str, data: bytes | None = None) -> Pixels:
    """Read a picture as RGB, turned upright by its EXIF tag; transparency is laid on white.

    Args:
        path: the file.
        data: its bytes, if they are at hand already (out of an archive); then `path` serves only to name it.

    Returns:
        (rows, cols, 3) uint8.

    Raises:
        ValueError: there is no such file, or it is not a whole picture; names the file.
    """
    try:
        with Image.open(path if data is None else io.BytesIO(data)) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.has_transparency_data:
                rgba = image.convert("RGBA")
                image = Image.new("RGB", rgba.size, (255, 255, 255))
                image.paste(rgba, mask=rgba.getchannel("A"))
            return np.array(image.convert("RGB"), dtype=np.uint8)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such picture file") from None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable picture ({error}); replace or delete it") from error


def place(picture: Size, canvas: Size, side: Side = "centre") -> Box:
    """Where a picture comes to lie on a canvas when scaled to fit it whole.

    Args:
        side: the picture's place when it is narrower than the canvas: in the middle, at the left or at the right edge.
            A picture that is flatter than the canvas is centred between top and bottom.

    Raises:
        ValueError: unknown side.
    """
    if side not in SIDES:
        raise ValueError(f"padding side {side!r} is unknown; valid: {', '.join(SIDES)}")
    scale = min(canvas.rows / picture.rows, canvas.cols / picture.cols)
    rows = min(canvas.rows, max(1, round(picture.rows * scale)))
    cols = min(canvas.cols, max(1, round(picture.cols * scale)))
    spare = canvas.cols - cols
    left = {"centre": spare // 2, "left": 0, "right": spare}[side]
    return Box((canvas.rows - rows) // 2, left, rows, cols)


def require_no_enlarging(path: Path | str, picture: Size, box: Box, canvas: Size, upscale: bool) -> None:
    """Refuse pictures smaller than what the network takes.

    Raises:
        ValueError: the picture would have to be enlarged and `upscale` is False; names the file and both sizes.
    """
    if not upscale and (box.rows > picture.rows or box.cols > picture.cols):
        raise ValueError(
            f"{path}: the picture is {picture} (rows x cols), smaller than the network's {canvas}, where it would fill "
            f"{box.rows}x{box.cols}; use larger pictures, a smaller model.image_size, or allow enlarging them with "
            f"upscale (data.module.upscale=true)"
        )


def paint(pixels: Pixels, box: Box, canvas: Size, fill: int = 255) -> Pixels:
    """Resize a picture (rows, cols, 3) into `box` of a fresh canvas of one grey; what lies outside is cropped.

    Returns:
        (canvas.rows, canvas.cols, 3) uint8.
    """
    rows, cols = pixels.shape[:2]
    if (rows, cols) != (box.rows, box.cols):
        shrink = min(rows / box.rows, cols / box.cols)
        method = Image.Resampling.BOX if shrink >= _BOX_FROM else Image.Resampling.BICUBIC
        pixels = np.array(Image.fromarray(pixels).resize((box.cols, box.rows), method), dtype=np.uint8)
    top, left = max(box.top, 0), max(box.left, 0)
    bottom, right = min(box.top + box.rows, canvas.rows), min(box.left + box.cols, canvas.cols)
    out = np.full((canvas.rows, canvas.cols, 3), fill, dtype=np.uint8)
    out[top:bottom, left:right] = pixels[top - box.top : bottom - box.top, left - box.left : right - box.left]
    return out


def move_keypoints(keypoints: Tensor, frame: Size, box: Box, canvas: Size) -> Tensor:
    """Points (..., 3) given in a frame of (rows, cols), where that frame covers `box` of the canvas.

    Returns:
        (..., 3) in canvas pixels; points that fall off the canvas become missing (all zeros).
    """
    scale = keypoints.new_tensor([box.cols / frame.cols, box.rows / frame.rows])
    shift = keypoints.new_tensor([box.left, box.top])
    moved = (keypoints[..., :2] + 0.5) * scale - 0.5 + shift
    return drop_outside(torch.cat([moved, keypoints[..., 2:]], dim=-1), canvas)


def crop(images: _T, box: Box) -> _T:
    """Cut the picture out of its canvas again: (..., Y, X) tensors or (Y, X, 3) arrays."""
    top, left = max(box.top, 0), max(box.left, 0)
    bottom, right = box.top + box.rows, box.left + box.cols
    if isinstance(images, Tensor):
        return images[..., top:bottom, left:right]
    return images[top:bottom, left:right]


def to_tensor(pixels: Pixels) -> Tensor:
    """(Y, X, 3) array as a (3, Y, X) uint8 tensor."""
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
