"""A person's own picture files for the editing tools: read with all that is to come back, and written as PNG.

What a file holds beside 8-bit colours is kept: 16 bits, grey, transparency, the colour profile and the EXIF data (the
picture itself is turned upright). What cannot be kept is said in `PictureFile.notes`.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError
from torch import Tensor

from saccade.files import replacing
from saccade.geometry import Size

Pixels = NDArray[np.unsignedinteger[Any]]  # uint8 or uint16

_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
_FRAMES = ("GIF", "PNG", "TIFF", "WEBP")  # others hold previews of the same picture
_ORIENTATION = 0x0112
# EXIF: description, make, model, resolution, software, time, author, copyright. What else the first directory of a TIFF
# holds describes how that file stores its pixels.
_TAGS = (0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298)
_DIRECTORIES = (0x8769, 0x8825)  # of the camera, of the place
_STALE = (0xA002, 0xA003)  # columns and rows of the picture
_LUMA = (0.299, 0.587, 0.114)  # BT.601, as Pillow makes grey of colours


@dataclass(frozen=True)
class PictureFile:
    """A picture and what its file tells beside.

    Attributes:
        path: the file.
        pixels: (Y, X, 3) uint8 or uint16, RGB, upright.
        alpha: (Y, X) of the same kind, or None where the file has no transparency.
        grey: whether the file holds one colour channel.
        profile: the ICC profile of the colours, or None.
        exif: EXIF data as a PNG holds them, without the orientation, or None.
        notes: what of the file was left out or changed, in words.
    """

    path: Path
    pixels: Pixels
    alpha: Pixels | None = None
    grey: bool = False
    profile: bytes | None = None
    exif: bytes | None = None
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> Size:
        return Size(*self.pixels.shape[:2])

    @property
    def depth(self) -> int:
        """Bits of a channel: 8 or 16."""
        return self.pixels.dtype.itemsize * 8

    def unit(self) -> Tensor:
        """(1, 3, Y, X) float32 in [0, 1]. Pixels that cannot be seen have the colour of the nearest that can."""
        return to_unit(_bled(self.pixels, self.alpha))

    def alpha_at(self, size: Size) -> Pixels | None:
        """The transparency of the picture scaled to another size (bicubic, antialiased where it shrinks)."""
        if self.alpha is None or size == self.size:
            return self.alpha
        values = to_unit(np.repeat(self.alpha[..., None], 3, axis=2))
        scaled = F.interpolate(values, size=tuple(size), mode="bicubic", align_corners=False, antialias=True)
        return np.ascontiguousarray(to_pixels(scaled, self.depth)[..., 0])


def read_picture(path: Path | str, option: str = "image") -> PictureFile:
    """Read a picture file of any kind that Pillow knows.

    Args:
        path: the file.
        option: of the command, for messages.

    Raises:
        ValueError: there is no such file, or it is not a whole picture with an agreed white; names the file.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of large pictures and of broken EXIF data
            return _read(path, path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{option}={path}: no such picture file") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ValueError(f"{option}={path}: pictures of up to {most} megapixels are read; cut or shrink it") from None
    except UnidentifiedImageError:
        raise ValueError(f"{option}={path}: not a picture of any kind that is known here") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise ValueError(f"{option}={path}: not a readable picture ({error})") from error


def to_unit(pixels: Pixels) -> Tensor:
    """(Y, X, 3) uint8 or uint16 as (1, 3, Y, X) float32 in [0, 1]."""
    scaled = pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
    return torch.from_numpy(scaled).permute(2, 0, 1).unsqueeze(0).contiguous()


def to_pixels(values: Tensor, depth: int) -> Pixels:
    """(3, Y, X) or (1, 3, Y, X) in [0, 1] as (Y, X, 3), rounded; what lies outside the range is cut.

    Args:
        values: what a network made.
        depth: 8 or 16 bits.

    Raises:
        RuntimeError: a value is not finite.
    """
    values = values.detach().float().cpu().reshape(values.shape[-3:])
    if not bool(torch.isfinite(values).all()):
        raise RuntimeError("the network made values that are not finite (NaN or infinite); its weights may be broken")
    dtype: type[np.uint8] | type[np.uint16] = np.uint8 if depth == 8 else np.uint16
    scaled = values.clamp(0, 1).mul(float(np.iinfo(dtype).max)).round().permute(1, 2, 0).numpy()
    return np.ascontiguousarray(scaled.astype(dtype))


def write_picture(
    path: Path, pixels: Pixels, like: PictureFile, *, grey: bool | None = None, alpha: Pixels | None = None
) -> Path:
    """Write a PNG, whole or not at all, with the colour profile and the EXIF data of the picture that it came from.

    Args:
        path: of the PNG.
        pixels: (Y, X, 3) uint8 or uint16.
        like: the picture that it came from.
        grey: whether to write one channel of lightness; None: as that picture.
        alpha: (Y, X) of the same kind; None: that picture's, if it has the same size.

    Raises:
        OSError: the folder cannot be written to; the message names it.
    """
    if alpha is None and like.alpha is not None and like.size == pixels.shape[:2]:
        alpha = like.alpha
    as_grey = like.grey if grey is None else grey
    profile = like.profile if as_grey == like.grey else None  # a profile is of grey or of colours
    image = _grey(pixels) if as_grey else pixels
    with replacing(path) as file:
        if pixels.dtype == np.uint16:
            file.write(_deep_png(image, alpha, profile, like.exif))
            return path
        made = Image.fromarray(image)
        if alpha is not None:
            made.putalpha(Image.fromarray(alpha))
        made.save(file, format="PNG", icc_profile=profile, exif=like.exif or b"")
    return path


# ---------------------------------------------------------------------- reading


def _read(path: Path, data: bytes) -> PictureFile:
    with Image.open(io.BytesIO(data)) as opened:
        notes: list[str] = []
        if opened.format in _FRAMES and getattr(opened, "n_frames", 1) > 1:
            notes.append(f"the first of its {opened.n_frames} frames")  # type: ignore[attr-defined]
        grey, deep = opened.mode in _GREY, ";16" in str(opened.tile)  # the raw mode tells the bits of the file
        profile: bytes | None = opened.info.get("icc_profile")
        opened.load()
        orientation, exif = _read_exif(opened, notes)
        values: Pixels | None = _deep(opened, data) if deep or opened.mode == "I" else None
        if values is None:
            if deep:
                notes.append("its 16 bits were read as 8")
            image: Image.Image = opened
            if opened.mode not in ("1", "L", "LA", "RGB", "RGBA", "P", "PA"):
                image, profile = _to_rgb(opened, profile, notes)
            values = np.array(image.convert("RGBA" if image.has_transparency_data else "RGB"), dtype=np.uint8)
    values = _upright(values, orientation)
    alpha = np.ascontiguousarray(values[..., 3]) if values.shape[2] == 4 else None
    return PictureFile(path, np.ascontiguousarray(values[..., :3]), alpha, grey, profile, exif, tuple(notes))


def _read_exif(opened: Image.Image, notes: list[str]) -> tuple[int, bytes | None]:
    """The orientation, 1 to 8, and the data that stay true of a picture made from this one."""
    try:
        exif, kept = opened.getexif(), Image.Exif()
        for tag in _TAGS:
            if tag in exif:
                kept[tag] = exif[tag]
        for directory in _DIRECTORIES:
            inner = {tag: value for tag, value in exif.get_ifd(directory).items() if tag not in _STALE}
            if inner:
                kept[directory] = inner
        orientation = int(exif.get(_ORIENTATION, 1))
        return orientation, kept.tobytes() if len(kept) else None
    except (SyntaxError, ValueError, TypeError, KeyError, OSError, EOFError, struct.error, OverflowError):
        notes.append("its EXIF data cannot be read and are left out")
        return 1, None


def _upright(values: Pixels, orientation: int) -> Pixels:
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values


def _deep(opened: Image.Image, data: bytes) -> NDArray[np.uint16] | None:
    """(Y, X, 3 or 4) as stored, or None where the 16 bits cannot be had."""
    if opened.mode == "I":
        whole = np.array(opened)
        if whole.min() < 0 or whole.max() > 65535:
            raise ValueError(f"32-bit values from {whole.min()} to {whole.max()}; save it with 8 or 16 bits a channel")
        found: Any = whole.astype(np.uint16)
    elif opened.mode.startswith("I;16"):
        found = np.array(opened).astype(np.uint16)
    else:  # Pillow drops the lower 8 bits of colours
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if found is None or found.dtype != np.uint16 or found.shape[:2] != opened.size[::-1]:
            return None
    if found.ndim == 2:
        return np.repeat(found[..., None], 3, axis=2)
    return np.asarray(found[..., [2, 1, 0, 3][: found.shape[2]]])  # OpenCV's order is BGR(A)


def _to_rgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> tuple[Image.Image, bytes | None]:
    """Colours that are neither grey nor RGB, by their profile where they have one."""
    if image.mode == "F":
        raise ValueError("floating-point values have no agreed white; save it with 8 or 16 bits a channel")
    notes.append(f"its {image.mode} colours became RGB")
    if profile is not None and image.mode in ("CMYK", "LAB"):
        try:
            own, wanted = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            turned = ImageCms.profileToProfile(image, own, wanted, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            notes.append("its colour profile could not be used")
        else:
            if turned is not None:
                return turned, None
    return image.convert("RGBA" if image.mode in ("RGBa", "La") else "RGB"), None


def _bled(pixels: Pixels, alpha: Pixels | None) -> Pixels:
    """Colours behind full transparency are arbitrary, often black: give them those of the nearest visible pixel."""
    if alpha is None:
        return pixels
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return pixels
    _, nearest = cv2.distanceTransformWithLabels(
        hidden.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    colours = np.zeros((int(nearest.max()) + 1, 3), dtype=pixels.dtype)
    colours[nearest[~hidden]] = pixels[~hidden]
    return np.where(hidden[..., None], colours[nearest], pixels)


# ---------------------------------------------------------------------- writing


def _grey(pixels: Pixels) -> Pixels:
    if (pixels[..., :1] == pixels).all():
        return np.ascontiguousarray(pixels[..., 0])
    return np.rint(pixels @ np.array(_LUMA)).astype(pixels.dtype)  # type: ignore[no-any-return]


def _deep_png(image: Pixels, alpha: Pixels | None, profile: bytes | None, exif: bytes | None) -> bytes:
    """A PNG of 16 bits a channel; Pillow writes none in colour, and OpenCV no profile and no EXIF data."""
    if alpha is not None and image.ndim == 2:  # OpenCV writes no grey with alpha either
        image, profile = np.repeat(image[..., None], 3, axis=2), None
    if image.ndim == 3:
        image = image[..., ::-1]
        image = image if alpha is None else np.concatenate([image, alpha[..., None]], axis=2)
    done, encoded = cv2.imencode(".png", np.ascontiguousarray(image))
    if not done:
        raise RuntimeError("OpenCV could not write a PNG of 16 bits")
    chunks = b""
    if profile is not None:
        chunks += _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile))
    if exif is not None:
        chunks += _chunk(b"eXIf", exif.removeprefix(b"Exif\0\0"))
    written = encoded.tobytes()
    head = 8 + 25  # the signature and IHDR, which comes first
    return written[:head] + chunks + written[head:]


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
