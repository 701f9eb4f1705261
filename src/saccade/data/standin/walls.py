"""Walls for procedural facades: what is seen at each point of a plane, filtered to the pixels that will show it.

A wall repeats: windows, panels, fins, arches, bricks. Each repeated edge is integrated over a pixel's footprint in
closed form, so a wall that recedes grows finer without aliasing, as in a photograph. Lengths are in metres, u to the
right along the wall, v upwards; colours are 0..255.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter

from saccade.data.standin.painter import Floats

_TABLE = 32  # sides of the tables by which windows and panels differ
_GRAIN = 256  # side of the tile of grain


@dataclass(frozen=True)
class Surface:
    """Where the pixels of a picture lie on a wall: u, v and their footprints, all (Y, X) metres."""

    u: Floats
    v: Floats
    du: Floats
    dv: Floats


@dataclass(frozen=True)
class Wall:
    """How one wall looks.

    bay, floor: the period of its windows. kind: which painter. wall, trim, frame, glass: colours. opening: share of bay
    and floor that a window takes. panes: columns and rows of glass in a window. bond: "brick", "stone" or "plain".
    trait: one number in 0..1 for what else may vary. seed: of its tables.
    """

    kind: str
    bay: float
    floor: float
    wall: tuple[float, float, float]
    trim: tuple[float, float, float]
    frame: tuple[float, float, float]
    glass: tuple[float, float, float]
    opening: tuple[float, float]
    panes: tuple[int, int]
    bond: str
    trait: float
    seed: int


def pulse(x: Floats, period: float, low: float, high: float, width: Floats) -> Floats:
    """The share of a box of `width` round each x that lies in [low, high] of its period; exact at every width.

    Needs 0 <= low <= high <= period.
    """
    width = np.maximum(width, np.float32(1e-6))

    def integral(t: Floats) -> Floats:
        turns = np.floor(t / np.float32(period))
        rest = t - turns * np.float32(period)
        result: Floats = turns * np.float32(high - low) + np.clip(rest - np.float32(low), 0, np.float32(high - low))
        return result

    share: Floats = (integral(x + width / 2) - integral(x - width / 2)) / width
    return np.clip(share, 0, 1)


def band(x: Floats, low: float, high: float, width: Floats) -> Floats:
    """The share of a box of `width` round each x that lies in [low, high]."""
    width = np.maximum(width, np.float32(1e-6))
    rise = np.clip((x - np.float32(low)) / width + np.float32(0.5), 0, 1)
    fall = np.clip((x - np.float32(high)) / width + np.float32(0.5), 0, 1)
    result: Floats = rise - fall
    return result


def over(below: Floats, colour: Floats | Sequence[float], cover: Floats) -> Floats:
    """Lay a colour over a picture (Y, X, 3) where `cover` (Y, X) says."""
    result: Floats = below + cover[..., None] * (np.asarray(colour, np.float32) - below)
    return result


def paint_wall(wall: Wall, at: Surface) -> Floats:
    """The wall's colours at the given places, (Y, X, 3)."""
    return _PAINTERS[wall.kind](wall, at)


def _cells(wall: Wall, at: Surface, count: int) -> list[Floats]:
    """`count` numbers in 0..1 for the window or panel at each place."""
    tables = np.random.default_rng(wall.seed).random((count, _TABLE, _TABLE), dtype=np.float32)
    i = np.floor(at.u / np.float32(wall.bay)).astype(np.int64) % _TABLE
    j = np.floor(at.v / np.float32(wall.floor)).astype(np.int64) % _TABLE
    return [table[j, i] for table in tables]


def _grain(wall: Wall, at: Surface, metres: float, strength: float) -> Floats:
    """Soft irregularities of a surface, as a factor round 1; finer than a pixel they fade."""
    rng = np.random.default_rng([wall.seed, 7])
    tile = rng.standard_normal((_GRAIN, _GRAIN)).astype(np.float32)
    tile = gaussian_filter(tile, 1.2, mode="wrap")
    tile /= tile.std()
    factor = np.float32(_GRAIN / metres)
    x, y = (at.u * factor) % _GRAIN, (at.v * factor) % _GRAIN
    value = cv2.remap(tile, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    texel = np.float32(2.5 * metres / _GRAIN)
    fade = np.clip(texel / np.maximum(np.maximum(at.du, at.dv), 1e-6), 0, 1)
    result: Floats = 1 + np.float32(strength) * value * fade
    return result


def _ground(wall: Wall, at: Surface) -> Floats:
    """The bare wall: bricks, courses of stone or plaster."""
    colour = np.broadcast_to(np.asarray(wall.wall, np.float32), (*at.u.shape, 3))
    if wall.bond == "plain":
        return colour * _grain(wall, at, 14.0, 0.03)[..., None]
    tall, long = (0.21, 0.62) if wall.bond == "brick" else (0.55, 1.4)  # larger than life, to be seen at these sizes
    joint = 0.035 if wall.bond == "brick" else 0.05
    row = np.floor(at.v / np.float32(tall))
    shifted = at.u + np.float32(long / 2) * (row % 2)
    tint = np.random.default_rng([wall.seed, 3]).random((_TABLE, _TABLE), dtype=np.float32)
    stone = tint[row.astype(np.int64) % _TABLE, np.floor(shifted / np.float32(long)).astype(np.int64) % _TABLE]
    fade = np.clip(np.float32(long) / np.maximum(at.du, 1e-6) / 2, 0, 1) * np.clip(
        np.float32(tall) / np.maximum(at.dv, 1e-6) / 2, 0, 1
    )
    colour = colour * (1 + np.float32(0.22) * (stone - 0.5) * fade)[..., None]
    lines = np.maximum(
        pulse(at.v, tall, 0.0, joint, at.dv), pulse(shifted, long, 0.0, joint, at.du) * (at.dv < 2 * tall)
    )
    mortar = np.asarray(wall.wall, np.float32) * np.float32(0.55) + np.float32(0.45 * (200 if wall.trait > 0.4 else 60))
    return over(colour, mortar, lines.astype(np.float32)) * _grain(wall, at, 9.0, 0.025)[..., None]


def _glass(wall: Wall, at: Surface, chance: Floats, y: Floats) -> Floats:
    """Panes: darker below, each of its own lightness, with a reflected edge that runs on from pane to pane."""
    glass = np.asarray(wall.glass, np.float32)
    streak = pulse(at.u + np.float32(0.6) * at.v, 5.3, 0.0, 1.7, at.du + at.dv)
    light = np.float32(0.62) + np.float32(0.5) * chance + np.float32(0.22) * y + np.float32(0.16) * streak
    result: Floats = glass * light[..., None]
    return result


def _opening(wall: Wall, at: Surface) -> tuple[float, float, float, float]:
    """left, right, bottom, top of the window in its bay and floor, metres."""
    wide, tall = wall.bay * wall.opening[0], wall.floor * wall.opening[1]
    left, bottom = (wall.bay - wide) / 2, (wall.floor - tall) * 0.45
    return left, left + wide, bottom, bottom + tall


def _rectangle(wall: Wall, at: Surface, box: tuple[float, float, float, float], more: float = 0.0) -> Floats:
    """Cover of a rectangle repeated in every bay and floor, grown by `more` metres."""
    left, right, bottom, top = box
    across = pulse(at.u, wall.bay, max(left - more, 0.0), min(right + more, wall.bay), at.du)
    up = pulse(at.v, wall.floor, max(bottom - more, 0.0), min(top + more, wall.floor), at.dv)
    return across * up


def _windows(wall: Wall, at: Surface) -> Floats:
    """A wall with windows: surround, shadow of the recess, frame, panes with blinds, sill."""
    box = _opening(wall, at)
    left, right, bottom, top = box
    chance, blind, drawn = _cells(wall, at, 3)
    colour = _ground(wall, at)
    if wall.trait < 0.55:  # courses between the floors
        colour = over(colour, wall.trim, pulse(at.v, wall.floor, 0.0, 0.07 * wall.floor, at.dv))
        shade = pulse(at.v - np.float32(0.07 * wall.floor), wall.floor, 0.0, 0.02 * wall.floor, at.dv)
        colour = colour * (1 - np.float32(0.3) * shade)[..., None]
    if 0.2 < wall.trait < 0.8:
        colour = over(colour, wall.trim, _rectangle(wall, at, box, 0.035 * wall.floor))
    colour = over(colour, tuple(0.35 * c for c in wall.wall), _rectangle(wall, at, box))
    inner = (left + 0.03 * wall.bay, right, bottom, top - 0.03 * wall.floor)  # light comes from the upper left
    colour = over(colour, wall.frame, _rectangle(wall, at, inner))
    bar = 0.028 * wall.floor
    pane_wide, pane_tall = (right - left) / wall.panes[0], (top - bottom) / wall.panes[1]
    y = ((at.v % np.float32(wall.floor)) - np.float32(bottom)) / np.float32(top - bottom)
    pane = _glass(wall, at, chance, np.clip(y, 0, 1))
    lowered = np.float32(0.9) * blind * (drawn < 0.45)
    slats = pulse(at.v, wall.floor / 24, 0.0, wall.floor / 40, at.dv)
    curtain = np.asarray(wall.trim, np.float32) * (np.float32(0.82) - np.float32(0.3) * slats)[..., None]
    pane = over(pane, curtain, np.clip((y - (1 - lowered)) * np.float32(60), 0, 1).astype(np.float32))
    x_in, y_in = (at.u % np.float32(wall.bay)) - np.float32(left), (at.v % np.float32(wall.floor)) - np.float32(bottom)
    clear = pulse(x_in, pane_wide, bar, pane_wide - bar, at.du) * pulse(y_in, pane_tall, bar, pane_tall - bar, at.dv)
    colour = over(colour, pane, clear * _rectangle(wall, at, box))
    sill = (max(left - 0.05 * wall.bay, 0), min(right + 0.05 * wall.bay, wall.bay), bottom - 0.045 * wall.floor, bottom)
    under = (sill[0], sill[1], max(sill[2] - 0.03 * wall.floor, 0), sill[2])
    colour = colour * (1 - np.float32(0.35) * _rectangle(wall, at, under))[..., None]
    return over(colour, tuple(min(1.06 * c, 255) for c in wall.trim), _rectangle(wall, at, sill))


def _balconies(wall: Wall, at: Surface) -> Floats:
    """Windows behind slabs and railings."""
    colour = _windows(wall, at)
    rail = pulse(at.v, wall.floor, 0.03 * wall.floor, 0.34 * wall.floor, at.dv)
    every = wall.bay if wall.trait < 0.5 else 2 * wall.bay
    here = pulse(at.u, every, 0.06 * every, 0.94 * every, at.du)
    bars = pulse(at.u, wall.bay / 14, 0.0, wall.bay / 38, at.du)
    hand = pulse(at.v, wall.floor, 0.32 * wall.floor, 0.345 * wall.floor, at.dv)
    slab = pulse(at.v, wall.floor, 0.0, 0.06 * wall.floor, at.dv)
    dark = tuple(0.35 * c for c in wall.frame)
    colour = over(colour, dark, np.maximum(bars * rail, hand) * here)
    colour = over(colour, wall.trim, slab * here)
    shade = pulse(at.v + np.float32(0.09 * wall.floor), wall.floor, 0.0, 0.09 * wall.floor, at.dv) * here
    result: Floats = colour * (1 - np.float32(0.45) * shade)[..., None]
    return result


def _curtain(wall: Wall, at: Surface) -> Floats:
    """A curtain of glass: panels in a grid of mullions, each floor's upper band opaque."""
    chance, tilt = _cells(wall, at, 2)
    y = (at.v % np.float32(wall.floor)) / np.float32(wall.floor)
    colour = _glass(wall, at, np.float32(0.4) * chance + np.float32(0.5) * (tilt > 0.85), y)
    spandrel = pulse(at.v, wall.floor, (1 - 0.3 * wall.trait) * wall.floor, wall.floor, at.dv)
    colour = over(colour, tuple(0.5 * c for c in wall.glass), spandrel)
    thin = 0.05 * wall.bay
    lines = np.maximum(pulse(at.u, wall.bay, 0.0, thin, at.du), pulse(at.v, wall.floor, 0.0, thin, at.dv))
    lines = np.maximum(lines, pulse(at.u, 4 * wall.bay, 0.0, 3 * thin, at.du))
    half = pulse(at.u, wall.bay / wall.panes[0], 0.0, thin / 2, at.du) * (1 - spandrel)
    return over(over(colour, wall.frame, half), wall.trim, lines)


def _fins(wall: Wall, at: Surface) -> Floats:
    """Glass behind upright fins that cast shadows, under bands at the floors."""
    chance, _ = _cells(wall, at, 2)
    y = (at.v % np.float32(wall.floor)) / np.float32(wall.floor)
    colour = _glass(wall, at, np.float32(0.7) * chance, y)
    step = wall.bay / 3
    shadow = pulse(at.u, step, 0.3 * step, 0.55 * step, at.du)
    colour = colour * (1 - np.float32(0.5) * shadow)[..., None]
    fin = pulse(at.u, step, 0.0, 0.3 * step, at.du)
    lit = pulse(at.u, step, 0.0, 0.1 * step, at.du)
    colour = over(colour, wall.wall, fin)
    colour = over(colour, tuple(min(1.2 * c, 255) for c in wall.wall), lit)
    floors = pulse(at.v, wall.floor, 0.0, (0.1 + 0.25 * wall.trait) * wall.floor, at.dv)
    return over(colour, wall.trim, floors) * _grain(wall, at, 20.0, 0.015)[..., None]


def _arches(wall: Wall, at: Surface) -> Floats:
    """An arcade on every floor: round arches with a rim, dark behind."""
    left, right, bottom, top = _opening(wall, at)
    chance, _ = _cells(wall, at, 2)
    colour = _ground(wall, at)
    radius = (right - left) / 2
    spring = max(top - radius, bottom + 0.1)
    x = (at.u % np.float32(wall.bay)) - np.float32(wall.bay / 2)
    y = (at.v % np.float32(wall.floor)) - np.float32(spring)
    width = np.maximum(np.maximum(at.du, at.dv), np.float32(1e-6))

    def arch(size: float) -> Floats:
        round_ = np.where(y > 0, np.hypot(x, y), np.abs(x)) - np.float32(size)
        cover: Floats = np.clip(0.5 - round_ / width, 0, 1).astype(np.float32)
        return cover * pulse(at.v, wall.floor, bottom, wall.floor, at.dv)

    rim = 0.16 * radius
    colour = over(colour, wall.trim, arch(radius + rim))
    colour = over(colour, tuple(0.3 * c for c in wall.wall), arch(radius))
    height = np.clip((y + spring - bottom) / (top - bottom), 0, 1)
    bars = np.maximum(
        pulse(x + np.float32(radius), 2 * radius / wall.panes[0], 0.0, 0.05 * radius, at.du),
        pulse(y, 2 * radius / wall.panes[0], 0.0, 0.05 * radius, at.dv),
    )
    pane = over(_glass(wall, at, chance, height.astype(np.float32)), wall.frame, bars)
    colour = over(colour, pane, arch(radius - rim))
    course = pulse(at.v, wall.floor, 0.0, 0.06 * wall.floor, at.dv)
    return over(colour, wall.trim, course)


def _lattice(wall: Wall, at: Surface) -> Floats:
    """A diagonal lattice of beams before glass."""
    a = at.u / np.float32(wall.bay) + at.v / np.float32(wall.floor)
    b = at.u / np.float32(wall.bay) - at.v / np.float32(wall.floor)
    width = at.du / np.float32(wall.bay) + at.dv / np.float32(wall.floor)
    table = np.random.default_rng(wall.seed).random((_TABLE, _TABLE), dtype=np.float32)
    chance = table[np.floor(a).astype(np.int64) % _TABLE, np.floor(b).astype(np.int64) % _TABLE]
    colour = _glass(wall, at, chance, (b - np.floor(b)).astype(np.float32))
    thick = 0.08 + 0.12 * wall.trait
    for line in (a, b):
        colour = colour * (1 - np.float32(0.4) * pulse(line, 1.0, thick, min(2 * thick, 1.0), width))[..., None]
    for line in (a, b):
        colour = over(colour, wall.wall, pulse(line, 1.0, 0.0, thick, width))
    floors = pulse(at.v, 3 * wall.floor, 0.0, 0.2 * wall.floor, at.dv)
    return over(colour, wall.trim, floors)


_PAINTERS: dict[str, Callable[[Wall, Surface], Floats]] = {
    "windows": _windows, "balconies": _balconies, "curtain": _curtain, "fins": _fins, "arches": _arches,
    "lattice": _lattice,
}  # fmt: skip
