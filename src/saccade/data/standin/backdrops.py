"""Wide backdrops out of photographs: a surface seen from above, or a ground in perspective before a wall.

Photographs are mirrored at their edges as often as it takes; clouds of light and colour tell the copies apart.
"""

from __future__ import annotations

import cv2
import numpy as np

from saccade.data.standin.painter import Bytes, Floats
from saccade.data.standin.photographs import Surface, laid_out
from saccade.geometry import Size

_FAR = 3.0  # how much farther the ground is at the horizon than at its near edge


def flat(rng: np.random.Generator, surface: Surface, extent: tuple[int, int], size: Size) -> Bytes:
    """A surface seen from above, turned, mirrored at its edges.

    Args:
        rng: draws shade, scale and angle.
        surface: what is seen.
        extent: rows and columns of the result.
        size: of a frame, a part of the result that decides the scale: the surface's pixels at 480 rows.

    Returns:
        (rows, cols, 3) uint8.
    """
    image = laid_out(surface, int(rng.integers(8)))
    step = 480 / size.rows * float(rng.uniform(0.8, 1.1))
    angle = float(rng.uniform(-0.4, 0.4))
    rows, cols = extent[0] * 2, extent[1] * 2
    y, x = np.mgrid[0:rows, 0:cols].astype(np.float32) * np.float32(step / 2)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    start = rng.uniform(0, 1, 2) * image.shape[1::-1]
    u, v = cos * x - sin * y + np.float32(start[0]), sin * x + cos * y + np.float32(start[1])
    return _patina(rng, _sampled(image, u, v, step / 2), size)


def landscape(rng: np.random.Generator, ground: Surface, wall: Surface, extent: tuple[int, int], size: Size) -> Bytes:
    """A ground in perspective before a wall; arguments and result as `flat` has them."""
    rows, cols = extent[0] * 2, extent[1] * 2
    horizon = round(rows * float(rng.uniform(0.38, 0.5)))
    behind = laid_out(wall, int(rng.integers(8)))
    step = behind.shape[0] / horizon  # the wall fills what is above the ground
    y, x = np.mgrid[0:horizon, 0:cols].astype(np.float32) * np.float32(step)
    upper = _sampled(behind, x + np.float32(rng.uniform(0, behind.shape[1])), y, step)
    near = laid_out(ground, int(rng.integers(8)))
    step = 240 / size.rows * float(rng.uniform(0.9, 1.2))
    y, x = np.mgrid[0 : rows - horizon, 0:cols].astype(np.float32)
    share = y / np.float32(rows - horizon)
    far = 1 / (share + (1 - share) / np.float32(_FAR))  # 1 at the near edge, _FAR at the horizon
    u = (x - np.float32(cols / 2)) * far * np.float32(step) + np.float32(rng.uniform(0, near.shape[1]))
    depth = np.float32((rows - horizon) * step * 1.6 / (1 - 1 / _FAR))  # 1.6 times the width's step at the near edge
    lower = _sampled(near, u, -far * depth, step * _FAR)
    return _patina(rng, np.concatenate([upper, lower]), size)


def _sampled(image: Bytes, u: Floats, v: Floats, step: float) -> Bytes:
    """The picture at (u, v), mirrored at its edges; where it is sampled more coarsely than its pixels, a mean first."""
    if step > 1:
        image = cv2.GaussianBlur(image, (0, 0), 0.45 * step)
    rows, cols = image.shape[:2]
    return np.asarray(cv2.remap(image, _mirrored(u, cols), _mirrored(v, rows), cv2.INTER_LINEAR), dtype=np.uint8)


def _mirrored(place: Floats, side: int) -> Floats:
    span = np.float32(side - 1)
    folded: Floats = (span - np.abs(np.mod(place, 2 * span) - span)).astype(np.float32)
    return folded


def _patina(rng: np.random.Generator, image: Bytes, size: Size) -> Bytes:
    """Reduce a picture drawn at twice its size, with clouds of light and colour that tell mirrored copies apart."""
    rows, cols = image.shape[0] // 2, image.shape[1] // 2
    small = cv2.resize(image, (cols, rows), interpolation=cv2.INTER_AREA).astype(np.float32)
    grid = (rows * 2 // size.rows + 3, cols * 2 // size.rows + 3, 3)
    clouds = rng.normal(0, 1, (*grid[:2], 1)) * 0.07 + rng.normal(0, 1, grid) * 0.015
    light = cv2.resize(clouds.astype(np.float32), (cols, rows), interpolation=cv2.INTER_CUBIC)
    result: Bytes = np.clip(small * (1 + light), 0, 255).astype(np.uint8)
    return result
