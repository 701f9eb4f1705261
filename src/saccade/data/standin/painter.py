"""Textured, shaded, anti-aliased tubes: the one primitive that bodies, garments, heads and hair are painted with.

A texture wraps once round its tube: its rows run along the tube, its columns round it, and the middle column faces
forward when the phase is 0. So a garment's detail moves, turns and foreshortens with the body. Angles are in radians,
lengths in canvas pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Bytes = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

LIGHT = np.array([-0.42, -0.38, 0.82], dtype=np.float32)  # x right, y down, z to the viewer
STEPS = 192  # resolution of the look-up tables along a tube


@dataclass(frozen=True)
class Field:
    """Where a tube lies on a window of the canvas: u along it, v across (-1..1), how much of a pixel it covers."""

    window: tuple[slice, slice]
    u: Floats
    v: Floats
    cover: Floats
    tilt: Floats | float  # light falling along the positive v direction
    phase: Floats | float


@dataclass(frozen=True)
class Tube:
    """A tube with nearly parallel cross-sections (torso, skirt, head, hair).

    centres (K, 2) and axes (K, 2): the middle and the unit direction of each marked section; marks (K,): its u.
    half, shift, phase: tables over u from the first mark to the last: half width, offset along the axis, and the
    angle that the texture is turned by. sag: how far the last section hangs lower in its middle, as a round hem does;
    cut: how much higher it ends at its sides, as the trunk does between the legs.
    """

    centres: Floats
    axes: Floats
    marks: Floats
    half: Floats
    shift: Floats
    phase: Floats
    sag: float = 0.0
    cut: float = 0.0


def table(u: Sequence[float], values: Sequence[float] | Floats, low: float = 0.0, high: float = 1.0) -> Floats:
    """Values given at a few u, as a smooth table of STEPS entries from low to high (read-only, kept)."""
    return _table(tuple(u), tuple(values), low, high)


@functools.lru_cache(maxsize=512)
def _table(u: tuple[float, ...], values: tuple[float, ...], low: float, high: float) -> Floats:
    dense = smooth(np.interp(np.linspace(low, high, STEPS), u, values), STEPS // 16)
    dense.setflags(write=False)
    return dense


def smooth(values: Floats, width: int) -> Floats:
    """A triangular filter of half width 2 * width along a table, ends held."""
    edge = 2 * width
    kernel = np.bartlett(2 * edge + 3)[1:-1]
    padded = np.concatenate([np.full(edge, values[0]), values, np.full(edge, values[-1])])
    result: Floats = np.convolve(padded, kernel / kernel.sum(), mode="valid")
    return result


class Canvas:
    """A float picture under construction, with the mask of what has been painted on it."""

    def __init__(self, background: Floats) -> None:
        self.pixels: Floats = background.astype(np.float32)
        self.rows, self.cols = background.shape[:2]
        self.figure: Floats = np.zeros((self.rows, self.cols), np.float32)

    def window(self, points: Floats, margin: float) -> tuple[slice, slice] | None:
        """The part of the canvas that holds the points (x, y) and a margin; None when all is outside."""
        low = np.floor(points.min(axis=0) - margin).astype(int)
        high = np.ceil(points.max(axis=0) + margin).astype(int) + 1
        x0, y0 = max(int(low[0]), 0), max(int(low[1]), 0)
        x1, y1 = min(int(high[0]), self.cols), min(int(high[1]), self.rows)
        return (slice(y0, y1), slice(x0, x1)) if x1 > x0 and y1 > y0 else None

    def tube(self, tube: Tube) -> Field | None:
        """Lay a tube on the canvas; None when it lies outside."""
        grid = np.linspace(tube.marks[0], tube.marks[-1], STEPS)
        centre = np.stack([smooth(np.interp(grid, tube.marks, tube.centres[:, i]), 6) for i in (0, 1)], axis=1)
        axis = np.stack([np.interp(grid, tube.marks, tube.axes[:, i]) for i in (0, 1)], axis=1)
        axis = axis / np.linalg.norm(axis, axis=1, keepdims=True)
        centre = centre + axis * tube.shift[:, None]
        reach = axis * tube.half[:, None]
        window = self.window(np.concatenate([centre - reach, centre + reach]), 2.0 + tube.sag)
        if window is None:
            return None
        y, x = _pixels(window)
        first = last = np.zeros((1, 1), np.float32)
        past: Floats | None = None
        u: Floats = np.full((y.shape[0], x.shape[1]), tube.marks[0], np.float32)
        for k, (point, along) in enumerate(zip(tube.centres, tube.axes, strict=True)):
            last = (x - point[0]) * np.float32(-along[1]) + (y - point[1]) * np.float32(along[0])
            if past is None:
                first = last
            else:
                part = np.clip(past / np.maximum(past - last, np.float32(1e-3)), 0, 1)
                u += np.float32(tube.marks[k] - tube.marks[k - 1]) * part
            past = last
        span = np.float32((STEPS - 1) / (tube.marks[-1] - tube.marks[0]))
        index = ((u - np.float32(tube.marks[0])) * span + np.float32(0.5)).astype(np.int32)
        half = np.maximum(tube.half, 0.3)
        tables = np.stack([axis[:, 0] / half, axis[:, 1] / half, (centre * axis).sum(axis=1) / half, half, tube.phase])
        ax, ay, ac, hw, phase = (row.take(index) for row in tables.astype(np.float32))
        v = x * ax + y * ay - ac
        cover = np.clip((1 - np.abs(v)) * hw + np.float32(0.5), 0, 1)
        v = np.clip(v, -1, 1)
        low = np.float32(tube.sag) * (1 - v * v) - np.float32(tube.cut) * np.abs(v) if tube.sag or tube.cut else 0
        cover *= np.clip(first + np.float32(0.5), 0, 1) * np.clip(low - last + np.float32(0.5), 0, 1)
        light = axis.mean(axis=0) @ LIGHT[:2]
        return Field(window, u, v, cover, float(light), phase)

    def limb(self, points: Floats, marks: Floats, radius: Floats, phase: float) -> Field | None:
        """Lay a bent limb with round ends on the canvas: (K, 2) joints, their u, radius table over u in 0..1."""
        window = self.window(points, float(radius.max()) + 2.0)
        if window is None:
            return None
        y, x = _pixels(window)
        best: list[Floats] = []
        sizes = radius.astype(np.float32)
        for k in range(len(points) - 1):
            bone = points[k + 1] - points[k]
            length = max(float(np.linalg.norm(bone)), 1e-3)
            along = (bone / length).astype(np.float32)
            dx, dy = x - np.float32(points[k][0]), y - np.float32(points[k][1])
            t = np.clip((dx * along[0] + dy * along[1]) / np.float32(length), 0, 1)
            across = dy * along[0] - dx * along[1]
            fx, fy = dx - t * np.float32(bone[0]), dy - t * np.float32(bone[1])
            distance = np.sqrt(fx * fx + fy * fy)
            u = np.float32(marks[k]) + t * np.float32(marks[k + 1] - marks[k])
            size = sizes.take((u * np.float32(STEPS - 1) + np.float32(0.5)).astype(np.int32))
            tilt = np.float32(-along[1] * LIGHT[0] + along[0] * LIGHT[1])
            found = [size - distance, u, across / size, np.full_like(u, tilt)]
            if best:
                nearer = found[0] > best[0]
                for new, old in zip(found, best, strict=True):
                    np.copyto(old, new, where=nearer)
            else:
                best = found
        depth, u, v, light = best
        # Looking down a limb, the positive v side is the picture's left: the texture turns the other way round.
        return Field(window, u, np.clip(-v, -1, 1), np.clip(depth + np.float32(0.5), 0, 1), -light, phase)

    def paint(
        self,
        field: Field | None,
        texture: Bytes | Colour,
        low: float = 0.0,
        high: float = 1.0,
        shade: float = 0.42,
        far: bool = False,
    ) -> None:
        """Paint a field with a colour or a texture (rows over u, low to high; RGB or RGBA); far: the inside."""
        if field is None:
            return
        if far:
            light = np.full_like(field.v, 0.74 - 0.3 * shade)
        else:
            round_ = np.sqrt(1 - field.v * field.v)
            light = np.float32(1.02 - shade) + np.float32(shade) * (field.v * field.tilt + round_ * LIGHT[2])
        alpha = field.cover
        if isinstance(texture, tuple):
            colour = cv2.merge([light * np.float32(channel) for channel in texture])
        else:
            found = _sample(field, texture, low, high, far)
            if texture.shape[2] == 4:
                alpha = alpha * found[..., 3] * np.float32(1 / 255)
                found = found[..., :3]
            colour = cv2.multiply(found, cv2.merge([light] * 3), dtype=cv2.CV_32F)
        region = self.pixels[field.window]
        region[:] = cv2.blendLinear(colour, region, alpha, 1 - alpha)
        figure = self.figure[field.window]
        np.maximum(figure, alpha, out=figure)

    def shadow(self, field: Field | None, depth: float, offset: float) -> None:
        """Darken what is already painted round a tube that will lie over it."""
        if field is None:
            return
        size = max(int(offset) * 2 + 1, 3)
        soft = cv2.blur(field.cover, (size, size))
        light = 1 - soft * self.figure[field.window] * np.float32(depth)
        region = self.pixels[field.window]
        region[:] = cv2.multiply(region, cv2.merge([light] * 3))

    def finish(self, rows: int, cols: int) -> tuple[Bytes, Floats]:
        """The picture (rows, cols, 3) uint8 and the figure's mask (rows, cols) in 0..1."""
        small = cv2.resize(self.pixels, (cols, rows), interpolation=cv2.INTER_AREA)
        mask = cv2.resize(self.figure, (cols, rows), interpolation=cv2.INTER_AREA)
        return np.clip(small + 0.5, 0, 255).astype(np.uint8), mask


def _sample(field: Field, texture: Bytes, low: float, high: float, far: bool) -> Bytes:
    """The texture's colours on a field, (h, w, channels)."""
    rows, cols = texture.shape[:2]
    across = np.arcsin(field.v)
    angle = (np.float32(np.pi) - across if far else across) - field.phase
    map_x = angle * np.float32(cols / (2 * np.pi)) + np.float32(cols / 2 - 0.5)
    map_y = np.clip((field.u - low) * np.float32(rows / (high - low)) - np.float32(0.5), 0, rows - 1)
    found: Bytes = cv2.remap(
        texture, map_x.astype(np.float32), map_y.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    )
    return found


def _pixels(window: tuple[slice, slice]) -> tuple[Floats, Floats]:
    rows, cols = window
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None]
    return y, np.arange(cols.start, cols.stop, dtype=np.float32)[None, :]
