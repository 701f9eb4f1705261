"""Picture files as centred squares of one size: the preprocessing of YLG and of TF-GAN's SAGAN example.

The largest centred square, its offset the ceiling of half the excess, is resized bilinearly with corners aligned and
without antialiasing: sample i of n lies at i * (side - 1) / (n - 1). TF's `crop_and_resize` does just that. Two things
differ: values are rounded to 8 bits here, and JPEG decoders differ by a level or so.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from saccade.data.images import Pixels

Exif = Literal["ignore", "apply"]
EXIFS: tuple[Exif, ...] = ("ignore", "apply")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"})
CROP = "largest centred square, bilinear, corners aligned, no antialias"
# What can be odd about a picture file. None of it is an error: all are handled, and counted when they are packed.
ODDITIES = (
    "grey",
    "cmyk",
    "alpha",
    "palette",
    "16-bit",
    "exif_rotated",
    "smaller_than_size",
    "other_format_than_suffix",
)
_ORIENTATION = 0x0112
_FORMATS = {
    "JPEG": (".jpg", ".jpeg"), "MPO": (".jpg", ".jpeg"), "PNG": (".png",), "PPM": (".ppm", ".pgm"), "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"), "WEBP": (".webp",),
}  # fmt: skip


class Square(NamedTuple):
    """A picture as the network takes it, (rows, cols, 3) uint8, and what was odd about its file (of ODDITIES)."""

    pixels: Pixels
    oddities: tuple[str, ...]


def read_square(path: Path | str, size: int, *, exif: Exif = "ignore", data: bytes | None = None) -> Square:
    """Read a picture file as a square of `size` pixels a side.

    Args:
        path: the file.
        size: rows and columns of the result, 2 or more.
        exif: "apply" turns the picture upright by its EXIF tag; "ignore" leaves it as stored, as TF does.
        data: the file's bytes, if they are at hand already; then `path` serves only to name it.

    Raises:
        ValueError: there is no such file, or it is not a whole picture; names the file.
    """
    try:
        with Image.open(path if data is None else io.BytesIO(data)) as image:
            odd = _oddities(image, Path(path), size)
            image.load()
            pixels = _rgb(image, upright=exif == "apply")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such picture file") from None
    except UnidentifiedImageError:  # its own words hold an address in memory
        raise ValueError(f"{path}: not a readable picture (of no format that Pillow knows)") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable picture ({error})") from error
    return Square(centre_square(pixels, size), odd)


def centre_square(pixels: Pixels, size: int) -> Pixels:
    """The largest centred square of a picture (rows, cols, 3), resized to (size, size, 3).

    Raises:
        ValueError: size below 2.
    """
    if size < 2:
        raise ValueError(f"a square picture needs 2 pixels a side or more; got {size}")
    rows, cols = pixels.shape[:2]
    side = min(rows, cols)
    top, left = (rows - side + 1) // 2, (cols - side + 1) // 2
    square = pixels[top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(square)
    low, high, weight = _taps(side, size)
    down = weight[:, None, None]
    tall = square[low] * (1 - down) + square[high] * down  # (size, side, 3)
    across = weight[None, :, None]
    wide = tall[:, low] * (1 - across) + tall[:, high] * across
    return np.rint(wide).astype(np.uint8)


def _taps(side: int, size: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    place = np.arange(size) * ((side - 1) / (size - 1))
    low = np.minimum(place.astype(np.intp), side - 1)
    return low, np.minimum(low + 1, side - 1), (place - low).astype(np.float32)


def _oddities(image: Image.Image, path: Path, size: int) -> tuple[str, ...]:
    bands = image.getbands()
    found = {
        "grey": bands[0] in ("1", "L", "I") or image.mode.startswith("I;16"),
        "cmyk": image.mode == "CMYK",
        "alpha": image.has_transparency_data,
        "palette": bands[0] == "P",
        "16-bit": image.mode.startswith("I") or any("16" in str(tile[3]) for tile in getattr(image, "tile", ())),
        "exif_rotated": image.getexif().get(_ORIENTATION, 1) in range(2, 9),
        "smaller_than_size": min(image.size) < size,
        "other_format_than_suffix": path.suffix.lower() not in _FORMATS.get(image.format or "", (path.suffix.lower(),)),
    }
    return tuple(name for name in ODDITIES if found[name])


def _rgb(image: Image.Image, upright: bool) -> Pixels:
    """Any mode as RGB: transparency is laid on white, 16 bits lose the lower 8."""
    if upright:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # Pillow's own conversion would clip at 255
        deep = np.asarray(image).astype(np.int64)
        return np.repeat((np.clip(deep, 0, 65535) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, (255, 255, 255))
        image.paste(rgba, mask=rgba.getchannel("A"))
    return np.asarray(image.convert("RGB"))
