"""Procedural city pictures: facades whose windows repeat and recede, as in Urban100.

Perspective shows one window at many scales in one picture: the self-similarity that cross-scale attention lives on. A
picture is a sky, a street, one to three upright walls with vanishing points on a common horizon, and a camera that may
be tilted (so that uprights converge) and rolled. It is drawn twice as large, with every repeated edge integrated over
its pixels, and averaged down: as sharp as a lens would give, without aliasing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from saccade.data.images import Pixels
from saccade.data.standin.painter import Floats
from saccade.data.standin.walls import Surface, Wall, band, over, paint_wall, pulse
from saccade.geometry import Size

_TWICE = 2
_NOISE = 0.8  # of the camera, grey levels
_KINDS = {"windows": 0.3, "balconies": 0.2, "curtain": 0.2, "fins": 0.1, "arches": 0.1, "lattice": 0.1}

_STONES = ((196, 180, 152), (168, 92, 70), (214, 206, 190), (140, 74, 60), (186, 160, 120), (120, 118, 116),
           (226, 216, 188), (204, 150, 116), (92, 88, 90), (176, 190, 196))  # fmt: skip
_METALS = ((210, 214, 218), (150, 156, 164), (70, 76, 84), (226, 224, 216), (120, 96, 78))
_GLASSES = ((96, 128, 158), (70, 92, 112), (120, 150, 160), (60, 80, 74), (104, 116, 150), (54, 60, 70))
_FRAMES = ((240, 238, 230), (60, 58, 56), (110, 80, 60), (220, 224, 226), (40, 60, 54))
_SKIES = (((104, 152, 208), (204, 222, 238)), ((150, 176, 204), (226, 230, 232)), ((196, 202, 208), (228, 230, 230)),
          ((70, 110, 176), (236, 206, 170)), ((52, 98, 168), (160, 196, 228)))  # fmt: skip


@dataclass(frozen=True)
class _Placed:
    """A wall in the picture: from its near edge at column `near` it recedes towards a vanishing point.

    All in columns and rows of the large picture: `vanish` the column of the vanishing point, `horizon` its row, `scale`
    pixels to a metre at the near edge, `base` the row of the foot there. tall, long: metres. stretch: metres along the
    wall to metres across the view at the near edge. first: u at the near edge.
    """

    wall: Wall
    near: float
    vanish: float
    horizon: float
    base: float
    scale: float
    tall: float
    long: float
    stretch: float
    first: float
    light: float


def render_facade(rng: np.random.Generator, size: Size) -> Pixels:
    """Draw one picture of a city, (rows, cols, 3) uint8.

    Args:
        rng: decides everything.
        size: of the picture.

    Raises:
        ValueError: a side below 16.
    """
    if min(size) < 16:
        raise ValueError(f"facades: sides are 16 or more; got {size}")
    large = Size(size.rows * _TWICE, size.cols * _TWICE)
    x, y = _camera(rng, large)
    horizon = large.rows * rng.uniform(0.6, 1.15)
    colour = _sky(rng, x, y, large)
    colour = _street(rng, colour, x, y, horizon, large)
    for placed in _scene(rng, large, horizon):
        colour = _lay(colour, placed, x, y)
    small = cv2.resize(colour, (size.cols, size.rows), interpolation=cv2.INTER_AREA)
    small = _expose(rng, small)
    noise = rng.standard_normal(small.shape, dtype=np.float32) * np.float32(_NOISE)
    result: Pixels = np.clip(np.round(small + noise), 0, 255).astype(np.uint8)
    return result


def _camera(rng: np.random.Generator, size: Size) -> tuple[Floats, Floats]:
    """Coordinates of the level camera's picture that a rolled and tilted camera's pixels show."""
    x, y = np.meshgrid(np.arange(size.cols, dtype=np.float32), np.arange(size.rows, dtype=np.float32))
    middle = ((size.cols - 1) / 2, (size.rows - 1) / 2)
    roll = rng.normal(0, 0.02)
    tilt = rng.uniform(-0.05, 0.35) if rng.random() < 0.6 else 0.0  # looking up: uprights converge
    a, b = (x - middle[0]) / size.rows, (y - middle[1]) / size.rows
    a, b = np.cos(roll) * a - np.sin(roll) * b, np.sin(roll) * a + np.cos(roll) * b
    depth = 1 + np.float32(tilt) * (b - 0.5)
    a, b = a / depth, (b - 0.5) / depth + 0.5
    return (a * size.rows + middle[0]).astype(np.float32), (b * size.rows + middle[1]).astype(np.float32)


def _sky(rng: np.random.Generator, x: Floats, y: Floats, size: Size) -> Floats:
    top, bottom = (np.asarray(c, np.float32) for c in _SKIES[int(rng.integers(len(_SKIES)))])
    down = np.clip(y / size.rows, -0.3, 1.2)[..., None]
    sky = top + down * (bottom - top)
    clouds = np.zeros(size, np.float32)
    for side, weight in ((5, 1.0), (11, 0.5), (23, 0.25)):
        coarse = rng.random((side, side), dtype=np.float32)
        clouds += np.float32(weight) * cv2.resize(coarse, (size.cols, size.rows), interpolation=cv2.INTER_CUBIC)
    cover = np.clip((clouds - np.float32(rng.uniform(0.8, 1.4))) * 2, 0, 1).astype(np.float32)
    return over(sky.astype(np.float32), (236, 238, 240), cover * np.float32(0.85))


def _street(rng: np.random.Generator, below: Floats, x: Floats, y: Floats, horizon: float, size: Size) -> Floats:
    """Paving that recedes to the horizon."""
    drop = np.maximum(y - np.float32(horizon), np.float32(0.5))
    height = np.float32(size.rows * 0.02)
    away = np.float32(size.rows) * height / drop / 8
    aside = (x - np.float32(size.cols * rng.uniform(0.2, 0.8))) * height / drop / 8
    fine = height / drop / 8
    grey = rng.uniform(80, 150)
    tile = rng.uniform(0.5, 1.2)
    stone = np.broadcast_to(np.asarray((grey, grey * 0.98, grey * 0.95), np.float32), below.shape)
    joints = np.maximum(
        pulse(aside, tile, 0.0, 0.06 * tile, fine), pulse(away, tile, 0.0, 0.06 * tile, fine * away / height)
    )
    stone = stone * (1 - np.float32(0.25) * joints)[..., None]
    return over(below, stone, np.clip(y - np.float32(horizon) + 0.5, 0, 1).astype(np.float32))


def _wall(rng: np.random.Generator, kind: str, storey: float) -> Wall:
    glassy = kind in ("curtain", "fins", "lattice")
    body = (_METALS if glassy else _STONES)[int(rng.integers(len(_METALS if glassy else _STONES)))]
    trim = _FRAMES[0] if rng.random() < 0.4 else (_METALS if glassy else _STONES)[int(rng.integers(5))]
    bay = storey * float(rng.uniform(0.45, 0.8) if kind == "curtain" else rng.uniform(0.7, 1.3))
    return Wall(
        kind=kind,
        bay=bay,
        floor=storey,
        wall=_tinted(rng, body),
        trim=_tinted(rng, trim),
        frame=_tinted(rng, _FRAMES[int(rng.integers(len(_FRAMES)))]),
        glass=_tinted(rng, _GLASSES[int(rng.integers(len(_GLASSES)))]),
        opening=(float(rng.uniform(0.4, 0.72)), float(rng.uniform(0.45, 0.68))),
        panes=(int(rng.integers(1, 4)), int(rng.integers(1, 4))),
        bond=str(rng.choice(["brick", "stone", "plain"])),
        trait=float(rng.random()),
        seed=int(rng.integers(2**31)),
    )


def _tinted(rng: np.random.Generator, colour: tuple[int, ...]) -> tuple[float, float, float]:
    red, green, blue = (np.asarray(colour) * rng.uniform(0.85, 1.1) + rng.normal(0, 5, 3)).clip(4, 250).tolist()
    return red, green, blue


def _scene(rng: np.random.Generator, size: Size, horizon: float) -> list[_Placed]:
    """One to three walls, the farthest first: a row behind, then one wall, or the two of a corner."""
    placed = []
    light = float(rng.uniform(0.95, 1.08))
    corner = rng.random() < 0.5
    near = size.cols * float(rng.uniform(0.3, 0.7) if corner else rng.choice([-0.05, 1.05]))
    if rng.random() < 0.6:  # a lower and smaller row behind
        side = 1 if rng.random() < 0.5 else -1
        row = _one(rng, size, horizon, size.cols * (0.5 - 0.6 * side), side, float(rng.uniform(9, 14)), 0.8 * light)
        placed.append(replace(row, tall=row.wall.floor * int(rng.integers(2, 5))))
    side = 1 if near < size.cols / 2 else -1
    front = _one(rng, size, horizon, near, side, float(rng.uniform(2.5, 9)), light)
    placed.append(front)
    if corner:  # the same house round its corner, in the shade
        vanish = near - side * size.cols * float(rng.uniform(0.7, 2.5))
        stretch, first = float(rng.uniform(1.0, 2.2)), float(rng.uniform(0, 3))
        shaded = light * float(rng.uniform(0.55, 0.8))
        placed.append(replace(front, vanish=vanish, stretch=stretch, first=first, light=shaded))
    return placed


def _one(
    rng: np.random.Generator, size: Size, horizon: float, near: float, side: int, visible: float, light: float
) -> _Placed:
    """A wall from column `near` to the left (-1) or right (1), of which `visible` storeys fill the picture's height."""
    storey = 3.4
    scale = size.rows / (visible * storey)  # pixels to a metre at the near edge
    eye = 1.7 if horizon < size.rows else float(rng.uniform(1.7, 8.0))
    return _Placed(
        wall=_wall(rng, str(rng.choice(list(_KINDS), p=list(_KINDS.values()))), storey),
        near=near,
        vanish=near + side * size.cols * float(rng.uniform(0.9, 3.5)),
        horizon=horizon,
        base=horizon + eye * scale,
        scale=scale,
        tall=storey * round(max(3.0, visible * float(rng.uniform(0.9, 1.8)))),
        long=float(rng.uniform(25, 80)),
        stretch=float(rng.uniform(1.0, 2.2)),
        first=float(rng.uniform(0, 3)),
        light=light,
    )


def _lay(below: Floats, placed: _Placed, x: Floats, y: Floats) -> Floats:
    """Draw a wall over the picture, with a cornice at its top."""
    span = np.float32(placed.vanish - placed.near)
    share = (np.float32(placed.vanish) - x) / span  # 1 at the near edge, falling to 0 at the vanishing point
    nearer = np.maximum(share, np.float32(0.04))
    along = (1 / nearer - 1) * np.float32(abs(float(span)) / placed.scale * placed.stretch / 2)
    foot = np.float32(placed.horizon) + np.float32(placed.base - placed.horizon) * nearer
    v = (foot - y) / (np.float32(placed.scale) * nearer)
    u = along + np.float32(placed.first)
    du, dv = _footprint(u), _footprint(v)
    cover = band(v, 0.0, placed.tall, dv) * band(along, 0.0, placed.long, du)
    cover = cover * (share > 0.04) * (share <= 1.0005)
    rows, cols = np.flatnonzero(cover.any(1)), np.flatnonzero(cover.any(0))
    if not len(rows):
        return below
    window = (slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1))
    here = Surface(*(field[window].astype(np.float32) for field in (u, v, du, dv)))
    painted = paint_wall(placed.wall, here) * np.float32(placed.light)
    crown = placed.wall.floor * 0.18
    trim = [min(c * placed.light, 255.0) for c in placed.wall.trim]
    painted = over(painted, trim, band(here.v, placed.tall - crown, placed.tall, here.dv))
    shade = band(here.v, placed.tall - 1.5 * crown, placed.tall - crown, here.dv)
    painted = painted * (1 - np.float32(0.4) * shade)[..., None]
    below[window] = over(below[window], painted, cover[window].astype(np.float32))
    return below


def _footprint(field: Floats) -> Floats:
    """How far a field moves over a pixel."""
    down, right = np.gradient(field)
    result: Floats = np.maximum(np.hypot(down, right), 1e-5).astype(np.float32)
    return result


def _expose(rng: np.random.Generator, picture: Floats) -> Floats:
    """Contrast, colour of the light, and a lens that darkens towards the corners."""
    rows, cols = picture.shape[:2]
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : cols * 1j].astype(np.float32)
    vignette = 1 - np.float32(rng.uniform(0, 0.1)) * (x**2 + y**2)
    cast = rng.normal(1, 0.03, 3).astype(np.float32)
    contrast = np.float32(rng.uniform(0.9, 1.15))
    result: Floats = ((picture - 128) * contrast + 128) * cast * vignette[..., None]
    return result
