"""Small canvases for painted things, and the grounds that they lie on.

Things are signed distances, so their edges are sharp at any size. Lengths are in half the shorter side of the picture:
the largest centred square spans -1 to 1, x to the right, y down.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import cv2
import numpy as np

from saccade.data.standin.fabrics import photograph
from saccade.data.standin.painter import Bytes, Colour, Floats
from saccade.geometry import Size

Rng = np.random.Generator


class Scene:
    """A canvas with coordinates.

    Attributes:
        pixels: (rows, cols, 3) float32, 0..255.
        x, y: (rows, cols) coordinates of the pixel centres.
        pixel: the side of a pixel.
    """

    def __init__(self, rng: Rng, size: Size) -> None:
        self.rng, self.size = rng, size
        self.pixel = 2 / min(size)
        self.y, self.x = np.meshgrid(
            (np.arange(size.rows, dtype=np.float32) - (size.rows - 1) / 2) * np.float32(self.pixel),
            (np.arange(size.cols, dtype=np.float32) - (size.cols - 1) / 2) * np.float32(self.pixel),
            indexing="ij",
        )
        self.pixels: Floats = np.zeros((*size, 3), np.float32)

    def noise(self, cells: float) -> Floats:
        """Smooth noise 0..1 with so many bumps along the shorter side, (rows, cols)."""
        rows, cols = (max(2, round(cells * side / min(self.size))) + 1 for side in self.size)
        grid = self.rng.random((rows, cols), dtype=np.float32)
        smooth: Floats = cv2.resize(grid, (self.size.cols, self.size.rows), interpolation=cv2.INTER_CUBIC)
        return smooth.clip(0, 1)

    def fill(self, colour: Floats | Colour) -> None:
        """Cover everything."""
        self.pixels[:] = np.asarray(colour, np.float32)

    def cover(self, distance: Floats, soft: float = 0.0) -> Floats:
        """How much of each pixel lies inside (distance below 0), 0..1; `soft` widens the edge."""
        covered: Floats = np.float32(0.5) - distance / np.float32(self.pixel + soft)
        return covered.clip(0, 1)

    def paint(self, cover: Floats, colour: Floats | Colour) -> None:
        """Lay a colour (3,) or (rows, cols, 3) over the picture."""
        self.pixels += cover[..., None] * (np.asarray(colour, np.float32) - self.pixels)

    def shadow(self, distance: Floats, depth: float = 0.45, soft: float = 0.25) -> None:
        """Darken the ground under a thing."""
        self.pixels *= 1 - np.float32(depth) * self.cover(distance, soft)[..., None]

    def finish(self, size: Size) -> Bytes:
        """The picture at a smaller size, (rows, cols, 3) uint8."""
        small = cv2.resize(self.pixels, (size.cols, size.rows), interpolation=cv2.INTER_AREA)
        picture: Bytes = np.clip(small + np.float32(0.5), 0, 255).astype(np.uint8)
        return picture


class Pose(NamedTuple):
    """Where a thing lies: its own coordinates u, v (its size is about 1) and its scale."""

    u: Floats
    v: Floats
    scale: float


def place(scene: Scene, low: float, high: float, turn: float, reach: float = 0.12) -> Pose:
    """A random place near the middle, scale low..high, turned by up to `turn` radians either way."""
    rng = scene.rng
    scale, angle = float(rng.uniform(low, high)), float(rng.uniform(-turn, turn))
    dx, dy = scene.x - np.float32(rng.uniform(-reach, reach)), scene.y - np.float32(rng.uniform(-reach, reach))
    cos, sin = np.float32(np.cos(angle) / scale), np.float32(np.sin(angle) / scale)
    return Pose(dx * cos + dy * sin, dy * cos - dx * sin, scale)


def colour(rng: Rng, hue: float, spread: float, saturation: float = 0.8, value: float = 0.9) -> Colour:
    """A colour round a hue (0..1), the other two a little varied."""
    h = (hue + rng.uniform(-spread, spread)) % 1.0
    s = float(np.clip(saturation + rng.uniform(-0.15, 0.15), 0, 1))
    v = float(np.clip(value + rng.uniform(-0.12, 0.1), 0, 1))
    channels = [v * (1 - s * max(0.0, min(1.0, min(k, 4 - k)))) for k in ((n + h * 6) % 6 for n in (5, 3, 1))]
    return (round(channels[0] * 255), round(channels[1] * 255), round(channels[2] * 255))


def mix(low: Colour, high: Colour, share: Floats) -> Floats:
    """Between two colours, (rows, cols, 3)."""
    a, b = np.asarray(low, np.float32), np.asarray(high, np.float32)
    return a + (b - a) * share[..., None]


# ---------------------------------------------------------------- grounds


def _grain(scene: Scene, name: str) -> Floats:
    """A window of a grey photograph (grass, gravel, brick) as light, mean about 1, (rows, cols)."""
    tile = _tile(name)
    side = int(scene.rng.integers(110, 200))
    rows, cols = (min(round(side * s / min(scene.size)), 256) for s in scene.size)
    top, left = (int(scene.rng.integers(0, 257 - n)) for n in (rows, cols))
    part = tile[top : top + rows, left : left + cols]
    grain: Floats = cv2.resize(part, (scene.size.cols, scene.size.rows), interpolation=cv2.INTER_AREA)
    return grain


@functools.cache
def _tile(name: str) -> Floats:
    tile = cv2.resize(photograph(name), (256, 256), interpolation=cv2.INTER_AREA).astype(np.float32)
    made: Floats = 1 + 0.22 * (tile - tile.mean()) / tile.std()
    return made


def lawn(scene: Scene) -> None:
    """Grass."""
    scene.fill(mix(colour(scene.rng, 0.27, 0.03, 0.7, 0.35), colour(scene.rng, 0.25, 0.03, 0.65, 0.62), scene.noise(3)))
    scene.pixels *= _grain(scene, "grass")[..., None]


def sand(scene: Scene) -> None:
    """A beach."""
    scene.fill(mix(colour(scene.rng, 0.11, 0.01, 0.4, 0.72), colour(scene.rng, 0.12, 0.01, 0.32, 0.9), scene.noise(3)))
    scene.pixels *= 1 + 0.5 * (_grain(scene, "gravel")[..., None] - 1)


def sky(scene: Scene) -> None:
    """Blue with clouds, lighter to the horizon."""
    down = np.clip((scene.y + 1) / 2, 0, 1)
    scene.fill(mix(colour(scene.rng, 0.58, 0.02, 0.65, 0.75), colour(scene.rng, 0.55, 0.02, 0.25, 0.95), down))
    clouds = np.clip(2.5 * (0.6 * scene.noise(3) + 0.4 * scene.noise(7)) - 1.2, 0, 1)
    scene.paint(clouds * np.float32(0.9), (250, 250, 250))


def sea(scene: Scene) -> None:
    """Under water: light from above, bands of it on the way down."""
    down = np.clip((scene.y + 1) / 2, 0, 1)
    scene.fill(mix(colour(scene.rng, 0.52, 0.03, 0.65, 0.8), colour(scene.rng, 0.6, 0.03, 0.85, 0.35), down))
    waves = np.abs(scene.noise(5) - np.float32(0.5))
    scene.pixels *= 1 + 0.5 * np.clip(0.12 - waves, 0, 1)[..., None] / 0.12 * (1 - down[..., None])


def wood(scene: Scene) -> None:
    """A table of planks."""
    rng = scene.rng
    angle = float(rng.uniform(-0.3, 0.3)) + (np.pi / 2 if rng.random() < 0.5 else 0.0)
    along = scene.x * np.float32(np.cos(angle)) + scene.y * np.float32(np.sin(angle))
    across = scene.y * np.float32(np.cos(angle)) - scene.x * np.float32(np.sin(angle))
    rings = np.sin((across + np.float32(0.08) * np.sin(along * 3) + np.float32(0.25) * scene.noise(3)) * np.float32(38))
    hue = float(rng.uniform(0.06, 0.1))
    scene.fill(mix(colour(rng, hue, 0.005, 0.6, 0.5), colour(rng, hue, 0.005, 0.5, 0.72), rings * 0.25 + 0.5))
    scene.pixels *= 1 - 0.5 * (np.abs((across * 1.6 + float(rng.random())) % 1 - 0.5) < 0.025)[..., None]


def forest(scene: Scene) -> None:
    """Dark woods out of focus above a floor of leaves."""
    rng = scene.rng
    scene.fill(mix(colour(rng, 0.3, 0.04, 0.7, 0.14), colour(rng, 0.24, 0.04, 0.6, 0.42), scene.noise(5) ** 2))
    floor = scene.cover(np.float32(rng.uniform(0.25, 0.45)) - scene.y + np.float32(0.12) * scene.noise(4), 0.08)
    earth = mix(colour(rng, 0.07, 0.02, 0.6, 0.28), colour(rng, 0.1, 0.03, 0.6, 0.5), scene.noise(9))
    scene.paint(floor, earth * _grain(scene, "gravel")[..., None])
