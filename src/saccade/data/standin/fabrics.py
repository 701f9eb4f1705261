"""Cloth for procedural people: colours, woven and printed patterns, lettering, and prints cut from photographs.

The photographs are those that ship inside scikit-image under CC0 or in the public domain; they are read from the
installed package and never copied. Lengths are in body heights; PX texture pixels make one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from saccade.data.standin.painter import Bytes, Colour, Floats

PX = 440  # texture pixels in one body height: about the canvas' own resolution

PHOTOGRAPHS = ("astronaut", "cat", "coffee", "rocket", "hubble_deep_field", "retina")  # PD or CC0, in colour
WEAVES = ("brick", "grass", "gravel")  # CC0, grey

BRIGHTS: tuple[Colour, ...] = (
    (214, 40, 57), (239, 99, 81), (247, 127, 0), (252, 191, 73), (255, 214, 10), (106, 176, 76), (39, 125, 81),
    (0, 150, 136), (38, 198, 218), (33, 118, 214), (40, 60, 160), (94, 53, 177), (156, 39, 176), (233, 30, 120),
    (255, 138, 170), (183, 28, 70), (121, 85, 72), (128, 128, 0),
)  # fmt: skip
NEUTRALS: tuple[Colour, ...] = (
    (24, 24, 28), (48, 52, 62), (92, 96, 104), (150, 152, 156), (206, 206, 204), (246, 244, 238), (232, 220, 196),
    (196, 164, 124), (24, 38, 76), (70, 60, 50),
)  # fmt: skip
PASTELS: tuple[Colour, ...] = (
    (248, 200, 200), (250, 224, 180), (248, 240, 178), (200, 230, 190), (186, 226, 226), (190, 206, 244),
    (220, 200, 240), (244, 194, 222),
)  # fmt: skip
DENIMS: tuple[Colour, ...] = ((40, 58, 98), (62, 88, 138), (98, 130, 176), (142, 170, 204), (34, 38, 52))
WORDS = (
    "GPA", "GAZE", "LOOK", "VIA", "PARIS", "TOKYO", "OSLO", "LIMA", "ROMA", "SUN", "SEA", "WAVE", "JAZZ", "ROCK", "ZEN",
    "HELLO", "LOVE", "NOVA", "KIND", "YES", "WOW", "2077", "84", "07", "23", "99", "11", "88",
)  # fmt: skip
FONTS = (cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_COMPLEX)
PATTERNS = (
    "plain", "stripes", "bretton", "pinstripes", "diagonal", "gingham", "tartan", "argyle", "dots", "chevron", "blocks",
    "camouflage", "flowers", "stars", "letters", "photograph",
)  # fmt: skip


def luminance(colour: Colour) -> float:
    return float(np.dot(colour, (0.299, 0.587, 0.114)))


def pick(rng: np.random.Generator, colours: tuple[Colour, ...]) -> Colour:
    return colours[int(rng.integers(len(colours)))]


def contrasting(rng: np.random.Generator, colour: Colour, colours: tuple[Colour, ...], least: float = 70.0) -> Colour:
    """A colour of the list whose luminance differs by at least `least`, else black or white, whichever is farther."""
    far = [other for other in colours if abs(luminance(other) - luminance(colour)) >= least]
    if far:
        return far[int(rng.integers(len(far)))]
    return (246, 244, 238) if luminance(colour) < 128 else (24, 24, 28)


@functools.cache
def photograph(name: str) -> Bytes:
    """One of scikit-image's own photographs, RGB or grey uint8, at most 512 pixels wide."""
    import skimage.data  # only here: its import takes a while

    image: Bytes = np.asarray(getattr(skimage.data, name)())
    if image.shape[1] > 512:
        rows = round(image.shape[0] * 512 / image.shape[1])
        image = cv2.resize(image, (512, rows), interpolation=cv2.INTER_AREA)
    return image


@functools.cache
def _grain(name: str) -> Floats:
    """The grain of a grey photograph as a mirrored tile, (256, 256), mean about 0, deviation about 1."""
    tile = cv2.resize(photograph(name), (128, 128), interpolation=cv2.INTER_AREA).astype(np.float32)
    tile = (tile - cv2.blur(tile, (25, 25))) / tile.std()
    tile = np.concatenate([tile, tile[:, ::-1]], axis=1)
    return np.concatenate([tile, tile[::-1]], axis=0)


def crop(rng: np.random.Generator, name: str, rows: int, cols: int, least: float = 0.45) -> Bytes:
    """A random window of a photograph, resized to (rows, cols, 3)."""
    image = photograph(name)
    if name == "astronaut":  # the portrait, not the flag alone
        image = image[0:400, 60:400]
    if name == "retina":
        image = image[90:422, 90:422]
    height, width = image.shape[:2]
    scale = rng.uniform(least, 1.0) * min(height / rows, width / cols)
    h, w = max(int(scale * rows), 2), max(int(scale * cols), 2)
    y, x = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    part: Bytes = cv2.resize(image[y : y + h, x : x + w], (cols, rows), interpolation=cv2.INTER_AREA)
    return part


def mix(low: Colour | Floats, high: Colour | Floats, amount: Floats) -> Floats:
    """Blend two colours or pictures by an (rows, cols) amount in 0..1, float32."""
    part = np.ascontiguousarray(amount, np.float32)
    if isinstance(low, tuple) and isinstance(high, tuple):
        merged: Floats = cv2.merge([part * np.float32(b - a) + np.float32(a) for a, b in zip(low, high, strict=True)])
        return merged
    shape = np.broadcast_shapes(part.shape, *(p.shape[:2] for p in (low, high) if not isinstance(p, tuple)))
    part = np.ascontiguousarray(np.broadcast_to(part, shape))
    first, second = (np.ascontiguousarray(np.broadcast_to(np.asarray(p, np.float32), (*shape, 3))) for p in (low, high))
    blended: Floats = cv2.blendLinear(second, first, part, 1 - part)
    return blended


@dataclass(frozen=True)
class Fabric:
    """A pattern with its colours and sizes fixed, ready to be cut to any garment piece."""

    pattern: str
    colours: tuple[Colour, Colour, Colour]
    period: float  # body heights
    duty: float
    seed: int
    weave: str | None = None
    denim: bool = False

    def cut(self, rows: int, girth: float, start: float = 0.0) -> Floats:
        """A piece of cloth wrapped round a tube, (rows, cols, 3) float32; seamless across its left and right edges.

        Args:
            rows: texture rows, PX to a body height.
            girth: circumference, body heights.
            start: where along the garment the piece begins, body heights.
        """
        cols = max(round(girth * PX / 8) * 8, 32)
        around = np.arange(cols, dtype=np.float32)[None, :] * np.float32(girth / cols)
        along = np.arange(rows, dtype=np.float32)[:, None] / np.float32(PX) + np.float32(start)
        count = max(round(girth / self.period), 1)
        if self.pattern in ("diagonal", "chevron", "argyle", "tartan", "gingham") and count % 2:
            count += 1
        cell = girth / count
        draw = _PATTERNS[self.pattern]
        cloth = draw(self, np.float32(cell), around, along, rows, cols)
        cloth = np.broadcast_to(cloth, (rows, cols, 3))
        if self.weave is not None:
            grain = _grain(self.weave)[np.arange(rows) % 256][:, np.arange(cols) % 256]
            cloth = cloth * (1 + (0.045 if self.denim else 0.06) * grain)[..., None].clip(0.7, 1.25)
        result: Floats = np.array(cloth, dtype=np.float32, order="C")
        return result


def edge(distance: Floats, width: float = 1.2 / PX) -> Floats:
    """A soft step: 1 where the distance (body heights) is negative, 0 where positive."""
    result: Floats = np.clip(0.5 - distance / np.float32(width), 0, 1)
    return result


def _wave(x: Floats, period: np.floating[Any], duty: float) -> Floats:
    """A soft square wave: 1 on the first `duty` of each period."""
    phase = np.mod(x, period)
    middle = np.float32(duty) * period / 2
    return edge(np.abs(phase - middle) - middle)


def _plain(f: Fabric, cell: Any, s: Floats, t: Floats, rows: int, cols: int) -> Floats:
    return mix(f.colours[0], f.colours[0], np.zeros((1, 1), np.float32))


def _stripes(f: Fabric, cell: Any, s: Floats, t: Floats, rows: int, cols: int) -> Floats:
    return mix(f.colours[0], f.colours[1], _wave(t, np.float32(f.period), f.duty))


def _bretton(f: Fabric, cell: Any, s: Floats, t: Floats, rows: int, cols: int) -> Floats:
    p = np.float32(2 * f.period)
    cloth = mix(f.colours[0], f.colours[1], _wave(t, p, 0.35))
    return mix(cloth, f.colours[2], _wave(t - p * np.float32(0.5), p, 0.18))


def _pinstripes(f: Fabric, cell: Any, s: Floats, t: Floats, rows: int, cols: int) -> Floats:
    return mix(f.colours[0], f.colours[1], _wave(s, cell, f.duty))


def _diagonal(f: Fabric, cell: Any, s: Floats, t: Floats, rows: int, cols: int) -> Floats:
    return mix(f.colours[0], f.colours[1], _wave(s + t, cell, f.duty))


def _gingham(f: Fabric, cell: Any, s: Floats, t: Floats, rows: int, cols: int) -> Floats:
    return mix(f.colours[0], f.colours[1], 0.5 * _wave(s, cell, 0.5) + 0.5 * _wave(t, cell, 0.5))


def _tartan(f: Fabric, cell: Any, s: Floats, t: Floats, rows: int, cols: int) -> Floats:
    p = cell * np.float32(1.6) if cols % 2 else cell * 2
    cloth = mix(f.colours[0], f.colours[1], 0.55 * (_wave(s, p, 0.45) + _wave(t, p, 0.45)))
    line = np.maximum(_wave(s - p * np.float32(0.68), p, 0.09), _wave(t - p * np.float32(0.68), p, 0.09))
    return mix(cloth, f.colours[2], 0.85 * line)


def _argyle(f: Fabric, cell: Any, s: Floats, t: Floats, rows: int, cols: int) -> Floats:
    p, q = cell * 2, cell * np.float32(2.6)
    x, y = np.mod(s, p) / p - 0.5, np.mod(t, q) / q - 0.5
    diamond = edge((np.abs(x) + np.abs(y) - np.float32(0.5)) * p)
    cloth = mix(f.colours[0], f.colours[1], diamond)
    line = np.minimum(np.abs(np.mod(x + y, 1) - 0.5), np.abs(np.mod(x - y, 1) - 0.5))
    return mix(cloth, f.colours[2], edge((line - np.float32(0.035)) * p))


def _dots(f: Fabric, cell: Any, s: Floats, t: Floats, rows: int, cols: int) -> Floats:
    row = np.floor(t / cell)
    x = np.mod(s + cell * np.float32(0.5) * np.mod(row, 2), cell) - cell / 2
    y = np.mod(t, cell) - cell / 2
    radius = cell * np.float32(0.20 + 0.28 * f.duty)
    return mix(f.colours[0], f.colours[1], edge(np.hypot(x, y) - radius))


def _chevron(f: Fabric, cell: Any, s: Floats, t: Floats, rows: int, cols: int) -> Floats:
    zigzag = np.abs(np.mod(s, cell * 2) - cell)
    return mix(f.colours[0], f.colours[1], _wave(t + zigzag, np.float32(f.period), f.duty))


def _blocks(f: Fabric, cell: Any, s: Floats, t: Floats, rows: int, cols: int) -> Floats:
    cloth = mix(f.colours[0], f.colours[1], edge(np.float32(0.08 + 0.09 * f.duty) - t))
    return mix(cloth, f.colours[2], edge(np.float32(0.21 + 0.10 * f.duty) - t))


def _camouflage(f: Fabric, cell: Any, s: Floats, t: Floats, rows: int, cols: int) -> Floats:
    rng = np.random.default_rng(f.seed)
    cloth: Floats = np.broadcast_to(np.asarray(f.colours[0], np.float32), (rows, cols, 3))
    step = max(int(cell * PX * 0.55), 4)
    for colour in f.colours[1:]:
        noise = rng.random((rows // step + 3, max(cols // step, 2)), dtype=np.float32)
        noise = np.concatenate([noise, noise[:, :1]], axis=1)
        field = cv2.resize(noise, (cols + step, rows), interpolation=cv2.INTER_CUBIC)[:, :cols]
        cloth = mix(cloth, colour, np.clip((field - np.float32(0.56)) * 30, 0, 1))
    return cloth


def _scatter(f: Fabric, cell: float, rows: int, cols: int, stamp: Callable[..., None]) -> Floats:
    """Stamp a motif on a jittered lattice, again across the seam."""
    rng = np.random.default_rng(f.seed)
    cloth = np.empty((rows, cols, 3), np.uint8)
    cloth[:] = f.colours[0]
    step = cell * PX
    down, round_ = int(rows / step) + 2, max(round(cols / step), 1)
    for i in range(down):
        for j in range(round_):
            x = (j + 0.5 * (i % 2) + rng.uniform(-0.12, 0.12)) * cols / round_
            y = (i - 0.3 + rng.uniform(-0.12, 0.12)) * step
            turn, colour = rng.uniform(0, 2 * np.pi), f.colours[1 + int(rng.integers(2))]
            for wrap in (-cols, 0, cols):
                if -step < x + wrap < cols + step:
                    stamp(cloth, x + wrap, y, 0.5 * step * (0.6 + 0.45 * f.duty), turn, colour)
    return cloth.astype(np.float32)


def _fixed(points: Floats) -> Any:
    return np.round(points * 16).astype(np.int32)


def star(cloth: Bytes, x: float, y: float, radius: float, turn: float, colour: Colour, points: int = 5) -> None:
    """Draw a star on a picture."""
    angle = turn + np.arange(2 * points) * np.pi / points
    length = radius * np.where(np.arange(2 * points) % 2 == 0, 1.0, 0.45)
    outline = np.stack([x + length * np.sin(angle), y - length * np.cos(angle)], axis=1)
    cv2.fillPoly(cloth, [_fixed(outline)], colour, cv2.LINE_AA, 4)


def heart(cloth: Bytes, x: float, y: float, radius: float, turn: float, colour: Colour) -> None:
    """Draw a heart on a picture."""
    a = np.linspace(0, 2 * np.pi, 32)
    outline = np.stack([16 * np.sin(a) ** 3, -(13 * np.cos(a) - 5 * np.cos(2 * a) - 2 * np.cos(3 * a))], axis=1)
    cv2.fillPoly(cloth, [_fixed(outline * radius / 16 + [x, y])], colour, cv2.LINE_AA, 4)


def flower(cloth: Bytes, x: float, y: float, radius: float, turn: float, colour: Colour) -> None:
    """Draw a five-petalled flower on a picture."""
    for angle in turn + np.arange(5) * 2 * np.pi / 5:
        centre = (round(16 * (x + 0.55 * radius * np.cos(angle))), round(16 * (y + 0.55 * radius * np.sin(angle))))
        cv2.circle(cloth, centre, round(16 * 0.46 * radius), colour, -1, cv2.LINE_AA, 4)
    heart_colour = (255, 214, 70) if luminance(colour) < 190 else (214, 120, 40)
    cv2.circle(cloth, (round(16 * x), round(16 * y)), round(16 * 0.32 * radius), heart_colour, -1, cv2.LINE_AA, 4)


def _flowers(f: Fabric, cell: Any, s: Floats, t: Floats, rows: int, cols: int) -> Floats:
    return _scatter(f, float(cell), rows, cols, flower)


def _stars(f: Fabric, cell: Any, s: Floats, t: Floats, rows: int, cols: int) -> Floats:
    return _scatter(f, float(cell), rows, cols, star if f.seed % 3 else heart)


def _letters(f: Fabric, cell: Any, s: Floats, t: Floats, rows: int, cols: int) -> Floats:
    rng = np.random.default_rng(f.seed)
    word = WORDS[int(rng.integers(len(WORDS)))]

    def stamp(cloth: Bytes, x: float, y: float, radius: float, turn: float, colour: Colour) -> None:
        size = radius / 15
        (w, h), _ = cv2.getTextSize(word[:1], FONTS[0], size, 3)
        cv2.putText(cloth, word[int(turn * 7) % len(word)], (int(x - w / 2), int(y + h / 2)), FONTS[0], size, colour,
                    max(int(radius / 3.5), 1), cv2.LINE_AA)  # fmt: skip

    return _scatter(f, float(cell), rows, cols, stamp)


def _photograph(f: Fabric, cell: Any, s: Floats, t: Floats, rows: int, cols: int) -> Floats:
    rng = np.random.default_rng(f.seed)
    name = ("coffee", "hubble_deep_field", "retina", "cat", "astronaut", "rocket")[int(rng.integers(6))]
    size = 96
    tile = crop(rng, name, size, size, 0.3).astype(np.float32)
    tile = (tile - tile.mean()) * 1.25 + 0.6 * tile.mean() + 0.4 * np.asarray(f.colours[0], np.float32)
    tile = np.concatenate([tile, tile[:, ::-1]], axis=1)
    tile = np.concatenate([tile, tile[::-1]], axis=0)
    count = max(round(cols / (2 * size)), 1)
    x = (np.arange(cols) * (2 * size * count / cols)).astype(int) % (2 * size)
    y = (np.arange(rows) + int(t[0, 0] * PX)) % (2 * size)
    return np.clip(tile[y][:, x], 0, 255)


_PATTERNS: dict[str, Callable[[Fabric, Any, Floats, Floats, int, int], Floats]] = {
    "plain": _plain, "stripes": _stripes, "bretton": _bretton, "pinstripes": _pinstripes, "diagonal": _diagonal,
    "gingham": _gingham, "tartan": _tartan, "argyle": _argyle, "dots": _dots, "chevron": _chevron, "blocks": _blocks,
    "camouflage": _camouflage, "flowers": _flowers, "stars": _stars, "letters": _letters, "photograph": _photograph,
}  # fmt: skip


def sample_fabric(rng: np.random.Generator, weights: dict[str, float], avoid: Colour | None = None) -> Fabric:
    """Draw a fabric: patterns by their weights, bold enough to be told apart at 32 pixels."""
    names = sorted(weights)
    chance = np.array([weights[name] for name in names])
    pattern = str(rng.choice(names, p=chance / chance.sum()))
    families = (BRIGHTS, BRIGHTS, NEUTRALS, PASTELS)
    base = pick(rng, families[int(rng.integers(4))])
    for _ in range(6):
        if avoid is None or np.abs(np.subtract(base, avoid)).sum() > 150:
            break
        base = pick(rng, families[int(rng.integers(4))])
    second = contrasting(rng, base, BRIGHTS + NEUTRALS if rng.random() < 0.6 else NEUTRALS)
    apart = tuple(other for other in BRIGHTS + PASTELS if np.abs(np.subtract(other, base)).sum() > 150)
    third = contrasting(rng, second, apart, 45.0)
    large = pattern in ("flowers", "stars", "letters", "argyle", "tartan", "dots", "gingham", "camouflage")
    period = float(rng.uniform(0.065, 0.11) if large else rng.uniform(0.045, 0.10))
    weave = WEAVES[int(rng.integers(3))] if pattern == "plain" and rng.random() < 0.5 else None
    return Fabric(
        pattern, (base, second, third), period, float(rng.uniform(0.3, 0.55)), int(rng.integers(2**31)), weave
    )


def denim(rng: np.random.Generator) -> Fabric:
    colour = pick(rng, DENIMS)
    return Fabric("plain", (colour, colour, colour), 0.05, 0.5, int(rng.integers(2**31)), "gravel", True)


def plain(rng: np.random.Generator, colours: tuple[Colour, ...]) -> Fabric:
    colour = pick(rng, colours)
    weave = WEAVES[int(rng.integers(3))] if rng.random() < 0.5 else None
    return Fabric("plain", (colour, colour, colour), 0.05, 0.5, int(rng.integers(2**31)), weave)
