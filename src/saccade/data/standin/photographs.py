"""The photographs of scikit-image that are in the public domain or under CC0, in full, divided among train and test.

They are read from the installed package and never copied. Nothing that is seen in training is seen in a test: other
photographs, or the other half of a texture.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from saccade.data.standin.painter import Bytes, Colour, Floats

Part = Literal["train", "test"]
PARTS: tuple[Part, ...] = ("train", "test")

# window of a photograph: rows from, rows to, columns from, columns to, as shares of its sides
Window = tuple[float, float, float, float]
_LEFT: Window = (0.0, 1.0, 0.0, 0.5)
_RIGHT: Window = (0.0, 1.0, 0.5, 1.0)
_ALL: Window = (0.0, 1.0, 0.0, 1.0)


@dataclass(frozen=True)
class Surface:
    """A part of a photograph that can be laid out as a ground or a wall, mirrored at its edges.

    `shades` are the pairs of colours, dark and bright, that a grey photograph is printed in; none for a colour one.
    """

    name: str
    window: Window = _ALL
    shades: tuple[tuple[Colour, Colour], ...] = ()


@dataclass(frozen=True)
class Thing:
    """A subject cut out of a photograph along an outline of points (x, y) in its pixels; `height` in frame heights."""

    name: str
    photograph: str
    outline: tuple[tuple[int, int], ...]
    height: float


_LAWNS: tuple[tuple[Colour, Colour], ...] = (((26, 44, 16), (196, 214, 120)), ((44, 46, 18), (214, 202, 130)))
_STONES: tuple[tuple[Colour, Colour], ...] = (((40, 36, 34), (226, 214, 198)), ((34, 38, 46), (204, 212, 222)))
_BRICKS: tuple[tuple[Colour, Colour], ...] = (((70, 30, 22), (224, 180, 150)), ((52, 46, 44), (214, 200, 180)))
_SANDS: tuple[tuple[Colour, Colour], ...] = (((84, 58, 34), (244, 220, 176)), ((60, 50, 60), (226, 206, 206)))
_DAYS: tuple[tuple[Colour, Colour], ...] = (((38, 42, 40), (206, 226, 250)), ((58, 40, 34), (252, 226, 190)))

GROUNDS: dict[Part, tuple[Surface, ...]] = {
    "train": (
        Surface("brick", shades=_BRICKS),
        Surface("grass", _LEFT, _LAWNS),
        Surface("gravel", _LEFT, _STONES),
    ),
    "test": (
        Surface("grass", _RIGHT, _LAWNS),
        Surface("gravel", _RIGHT, _STONES),
        Surface("moon", shades=_SANDS),
    ),
}
WALLS: dict[Part, tuple[Surface, ...]] = {
    "train": (
        Surface("hubble_deep_field", (0.0, 0.45, 0.0, 1.0)),
        Surface("astronaut", (0.0, 0.38, 0.0, 0.125)),  # the flag
        Surface("brick", shades=_BRICKS),
    ),
    "test": (
        Surface("camera", (0.2, 0.47, 0.66, 1.0), _DAYS),
        Surface("rocket", (0.25, 1.0, 0.0, 0.47)),
        Surface("rocket", (0.25, 1.0, 0.54, 1.0)),
    ),
}
FLATS: dict[Part, tuple[Surface, ...]] = {
    "train": (
        Surface("hubble_deep_field"),
        Surface("coffee", (0.0, 0.95, 0.8, 1.0)),
        Surface("gravel", _LEFT, _STONES),
    ),
    "test": (
        Surface("retina", (0.18, 0.82, 0.18, 0.82)),
        Surface("moon", shades=_SANDS),
        Surface("grass", _RIGHT, _LAWNS),
    ),
}
CLOSE_UPS: dict[Part, tuple[Surface, ...]] = {
    "train": (
        Surface("astronaut"),
        Surface("astronaut", (0.0, 0.6, 0.5, 1.0)),
        Surface("coffee"),
        Surface("brick", shades=_BRICKS),
    ),
    "test": (
        Surface("cat"),
        Surface("rocket"),
        Surface("retina", (0.12, 0.88, 0.12, 0.88)),
        Surface("camera", shades=_DAYS),
        Surface("moon", shades=_SANDS),
    ),
}
THINGS: dict[Part, tuple[Thing, ...]] = {
    "train": (
        Thing(
            "cup",
            "coffee",
            ((77, 205), (82, 165), (100, 125), (130, 95), (172, 72), (190, 52), (225, 30), (275, 18), (330, 22),
             (375, 43), (398, 70), (404, 66), (423, 70), (421, 85), (415, 103), (440, 127), (465, 165), (477, 205),
             (475, 260), (450, 310), (410, 350), (360, 378), (300, 388), (235, 380), (180, 355), (130, 315), (95, 265)),
            0.5,
        ),
        Thing(
            "astronaut",
            "astronaut",
            ((156, 95), (153, 75), (170, 45), (200, 23), (235, 16), (265, 24), (288, 45), (299, 80), (294, 110),
             (270, 133), (262, 165), (290, 200), (303, 232), (335, 262), (350, 300), (361, 350), (320, 378), (292, 420),
             (278, 470), (275, 511), (26, 511), (22, 420), (40, 300), (62, 258), (110, 222), (118, 188), (140, 160),
             (182, 150), (184, 130), (172, 122)),
            0.72,
        ),
        Thing(
            "helmet",
            "astronaut",
            ((277, 511), (279, 470), (292, 420), (322, 375), (360, 351), (400, 345), (440, 354), (474, 382),
             (494, 430), (500, 455), (510, 470), (510, 511)),
            0.34,
        ),
        Thing(
            "shuttle",
            "astronaut",
            ((382, 110), (386, 50), (393, 42), (396, 12), (408, 1), (424, 1), (434, 18), (438, 45), (446, 42),
             (453, 60), (455, 225), (436, 268), (376, 270), (366, 258), (356, 220), (378, 185)),
            0.45,
        ),
    ),
    "test": (
        Thing(
            "cat",
            "cat",
            ((60, 22), (120, 4), (392, 2), (372, 45), (353, 75), (361, 110), (357, 150), (345, 190), (320, 230),
             (300, 262), (262, 285), (235, 298), (92, 298), (60, 260), (40, 205), (24, 150), (30, 80)),
            0.5,
        ),
        Thing(
            "cameraman",
            "camera",
            ((1, 250), (52, 178), (90, 137), (140, 110), (161, 106), (166, 85), (190, 66), (215, 64), (250, 81),
             (270, 111), (268, 138), (322, 140), (324, 152), (314, 178), (330, 192), (325, 208), (306, 215),
             (303, 274), (250, 311), (206, 300), (152, 370), (150, 511), (1, 511)),
            0.78,
        ),
        Thing(
            "eye",
            "retina",
            tuple(
                (round(705 + 672 * float(np.cos(a))), round(705 + 672 * float(np.sin(a))))
                for a in np.linspace(0, 2 * np.pi, 72, endpoint=False)
            ),
            0.4,
        ),
        Thing(
            "rocket",
            "rocket",
            ((310, 175), (312, 155), (318, 132), (323, 127), (328, 132), (334, 155), (336, 175), (336, 408),
             (310, 408)),
            0.66,
        ),
    ),
}  # fmt: skip


def jpeg(picture: Bytes, quality: int) -> bytes:
    """A picture (rows, cols, 3) RGB as the bytes of a JPEG file."""
    done, encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise RuntimeError(f"stand-in: OpenCV could not encode a picture of {picture.shape} as JPEG")
    return encoded.tobytes()


@functools.cache
def whole_photograph(name: str) -> Bytes:
    """One of scikit-image's own photographs, (rows, cols, 3) uint8 RGB, at its own size."""
    import skimage.data  # only here: its import takes a while

    image = np.asarray(getattr(skimage.data, name)())
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    return np.ascontiguousarray(image, dtype=np.uint8)


def laid_out(surface: Surface, shade: int = 0) -> Bytes:
    """The surface's part of its photograph, a grey one printed in its `shade`-th pair of colours (taken modulo)."""
    image = whole_photograph(surface.name)
    rows, cols = image.shape[:2]
    top, bottom, left, right = surface.window
    part = image[round(top * rows) : round(bottom * rows), round(left * cols) : round(right * cols)]
    if not surface.shades:
        return np.ascontiguousarray(part)
    return tinted(part[..., 0], surface.shades[shade % len(surface.shades)])


def tinted(grey: Bytes, shades: tuple[Colour, Colour]) -> Bytes:
    """A grey picture (rows, cols) printed between two colours, its darkest and brightest hundredth at their ends."""
    low, high = np.percentile(grey, (1, 99))
    share: Floats = np.clip((grey.astype(np.float32) - low) / max(float(high - low), 1.0), 0, 1)[..., None]
    dark, bright = (np.asarray(colour, np.float32) for colour in shades)
    printed: Bytes = np.rint(dark + (bright - dark) * share).astype(np.uint8)
    return printed


@functools.cache
def cut_thing(thing: Thing, rows: int) -> Floats:
    """A thing `rows` high, (rows, cols, 4) float32 of RGB 0..255 premultiplied by alpha 0..1; read-only, kept."""
    image = whole_photograph(thing.photograph)
    points = np.array(thing.outline, np.float64)
    scale = rows / (points[:, 1].max() - points[:, 1].min())
    if scale < 0.5:  # warpAffine takes no mean, so a picture that shrinks a lot is reduced first
        step = 2 ** int(np.floor(-np.log2(scale)))
        small = (image.shape[1] // step, image.shape[0] // step)
        points *= np.array(small) / image.shape[1::-1]
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        scale = rows / (points[:, 1].max() - points[:, 1].min())
    low = points.min(axis=0)
    cols = max(round(float(points[:, 0].max() - low[0]) * scale), 1)
    alpha = np.zeros(image.shape[:2], np.uint8)
    cv2.fillPoly(alpha, [np.round(points * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    soft = cv2.GaussianBlur(alpha, (0, 0), 0.8).astype(np.float32) / 255
    layers = np.dstack([image.astype(np.float32) * soft[..., None], soft])
    matrix = np.array([[scale, 0, -low[0] * scale], [0, scale, -low[1] * scale]])
    found = cv2.warpAffine(layers, matrix, (cols, rows), flags=cv2.INTER_LINEAR)
    result: Floats = found
    result.setflags(write=False)
    return result
