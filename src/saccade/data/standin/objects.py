"""Ten kinds of things for the stand-in of class pictures: six painted, four cut out of photographs.

Painted things are signed distances on a canvas of twice the size, so that patterns on them are smooth as well. Light
comes from above left.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from saccade.data.standin.cutouts import Subject, cut_out
from saccade.data.standin.painter import Bytes, Colour, Floats
from saccade.data.standin.scene import Rng, Scene, colour, forest, lawn, mix, place, sand, sea, wood
from saccade.geometry import Size

_LIGHT = np.array([-0.45, -0.6, 0.66], dtype=np.float32)


class Kind(NamedTuple):
    """One class: its made-up WordNet id, its name, and what paints a picture of it."""

    wnid: str
    name: str
    paint: Callable[[Rng, Size], Bytes]


def beach_ball(scene: Scene) -> None:
    """A ball of six gores, two colours and white, turned any way, on sand or grass."""
    rng = scene.rng
    (sand if rng.random() < 0.6 else lawn)(scene)
    pose = place(scene, 0.6, 0.78, 0.0)
    u, v = pose.u, pose.v
    radius = np.hypot(u, v)
    scene.shadow((np.hypot(u - 0.22, (v - 0.62) * 2.2) - 0.95) * pose.scale, 0.55, 0.3)
    z = np.sqrt(np.clip(1 - radius * radius, 0, 1))
    turn = _rotation(rng)
    p, q, r = (turn[i, 0] * u + turn[i, 1] * v + turn[i, 2] * z for i in range(3))
    gore = np.floor((np.arctan2(q, p) / np.float32(2 * np.pi) + 0.5) * 6).astype(int) % 6
    first = float(rng.random())
    colours = np.array(
        [colour(rng, first, 0), (245, 245, 240), colour(rng, first + float(rng.uniform(0.25, 0.5)), 0)], np.float32
    )
    skin = colours[np.array([0, 1, 2, 0, 1, 2])[gore]]
    skin[np.abs(r) > 0.94] = (245, 245, 240)
    scene.paint(scene.cover((radius - 1) * pose.scale), skin * _lit(u, v, z, shine=0.5)[..., None])


def starfish(scene: Scene) -> None:
    """Five thick arms with a lit ridge and knobs, on sand or the sea's ground."""
    rng = scene.rng
    (sand if rng.random() < 0.65 else sea)(scene)
    pose = place(scene, 0.78, 0.98, np.pi)
    u, v = pose.u, pose.v
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    wave = np.cos(angle * 5)
    reach = 0.3 + 0.62 * np.clip((wave + 1) / 2, 0, 1) ** 2.2
    inside = (radius - reach) * np.float32(0.5) * pose.scale
    scene.shadow(inside - 0.05, 0.5, 0.2)
    body = colour(rng, float(rng.choice([0.03, 0.07, 0.98, 0.85])), 0.015, 0.85, 0.88)
    ridge = np.clip(wave, 0, 1) ** 6 * np.clip(1.1 - radius, 0, 1) + np.clip(0.35 - radius, 0, 1)
    light = 0.72 + 0.5 * ridge + 0.15 * (u * _LIGHT[0] + v * _LIGHT[1])
    knobs = (np.cos(radius * 34) * np.cos(angle * 30) > 0.55) | ((np.abs(wave) > 0.985) & (np.cos(radius * 40) > 0))
    skin = np.asarray(body, np.float32) * light[..., None]
    skin += np.float32(46) * knobs[..., None]
    scene.paint(scene.cover(inside), skin)


def doughnut(scene: Scene) -> None:
    """A ring of dough with coloured glaze and sprinkles, on a table or a plate."""
    rng = scene.rng
    wood(scene)
    pose = place(scene, 0.74, 0.88, np.pi, 0.08)
    u, v = pose.u, pose.v * np.float32(rng.uniform(1.0, 1.2))
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    if rng.random() < 0.5:
        scene.shadow((radius - 1.22) * pose.scale, 0.5, 0.2)
        scene.paint(
            scene.cover((radius - 1.2) * pose.scale),
            mix((248, 248, 250), (206, 210, 218), np.clip(radius * 2.5 - 2, 0, 1)),
        )
    scene.shadow((np.abs(np.hypot(u - 0.06, v - 0.08) - 0.62) - 0.4) * pose.scale, 0.5, 0.16)
    tube = np.abs(radius - 0.62) / np.float32(0.38)
    z = np.sqrt(np.clip(1 - tube * tube, 0, 1))
    side = np.where(radius > 0.62, tube, -tube) / np.maximum(radius, 1e-3)
    light = _lit(side * u, side * v, z, shine=0.3)
    dough = colour(rng, 0.085, 0.01, 0.65, 0.75)
    scene.paint(
        scene.cover((np.abs(radius - 0.62) - 0.38) * pose.scale), np.asarray(dough, np.float32) * light[..., None]
    )
    edge = 0.27 + 0.035 * np.sin(angle * int(rng.integers(5, 9)) + 1) + 0.025 * np.sin(angle * 11)
    glaze = GLAZES[int(rng.integers(len(GLAZES)))]
    scene.paint(
        scene.cover((np.abs(radius - 0.62) - edge) * pose.scale), np.asarray(glaze, np.float32) * light[..., None]
    )
    _print(scene, scene.cover((np.abs(radius - 0.62) - 0.3) * pose.scale), u, v, _sprinkles(rng))


def flower(scene: Scene) -> None:
    """Petals round a yellow or brown disc, on leaves."""
    rng = scene.rng
    lawn(scene)
    scene.pixels *= 0.8
    pose = place(scene, 0.8, 0.98, np.pi)
    u, v = pose.u, pose.v
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    petals = int(rng.integers(6, 10))
    wave = np.abs(np.cos(angle * petals / 2))
    reach = 0.34 + 0.58 * wave**0.55
    inside = (radius - reach) * np.float32(0.7) * pose.scale
    scene.shadow(inside - 0.03, 0.6, 0.2)
    hue = float(rng.choice([0.92, 0.78, 0.0, 0.65, 0.88]))
    inner = colour(rng, hue, 0.02, 0.75, 0.75)
    outer = (248, 244, 246) if rng.random() < 0.3 else colour(rng, hue, 0.02, 0.45, 0.96)
    light = 0.62 + 0.42 * wave**0.7 + 0.08 * np.cos(angle * petals * 5) * (radius > 0.4)
    scene.paint(scene.cover(inside), mix(inner, outer, np.clip(radius * 1.3 - 0.25, 0, 1)) * light[..., None])
    middle = float(rng.uniform(0.24, 0.34))
    disc = colour(rng, 0.13, 0.015, 0.85, 0.95) if rng.random() < 0.7 else colour(rng, 0.07, 0.01, 0.7, 0.4)
    seeds = 0.9 + 0.25 * np.cos(radius * 60) * np.cos(angle * 12) - 0.5 * np.clip(radius / middle - 0.6, 0, 1)
    scene.paint(scene.cover((radius - middle) * pose.scale), np.asarray(disc, np.float32) * seeds[..., None])


def mushroom(scene: Scene) -> None:
    """A red or brown cap with white spots on a pale stem, in a dark wood."""
    rng = scene.rng
    forest(scene)
    pose = place(scene, 0.8, 0.95, 0.16)
    u, v = pose.u, pose.v
    scene.shadow((np.hypot(u - 0.1, (v - 0.85) * 4) - 0.6) * pose.scale, 0.6, 0.3)
    thick = float(rng.uniform(0.17, 0.26))
    bend = u - np.float32(rng.uniform(-0.12, 0.12)) * v * v
    stem = np.maximum(np.abs(bend) - thick * (0.85 + 0.35 * np.clip(v, 0, 1)), np.maximum(-0.2 - v, v - 0.86))
    round_ = np.clip(1 - np.abs(bend / thick - 0.0) ** 2 * 0.45 - 0.2 * bend / thick, 0.3, 1.1)
    pale = np.asarray((242, 234, 214), np.float32) * round_[..., None]
    scene.paint(scene.cover(stem * pose.scale), pale * (0.8 + 0.2 * np.clip((v + 0.05) * 5, 0, 1))[..., None])
    wide, tall = float(rng.uniform(0.78, 0.95)), float(rng.uniform(0.62, 0.82))
    low = v - 0.05 * np.cos(u * 2)
    cap = np.maximum(np.hypot(u / wide, (v - 0.05) / tall) - 1, (low - 0.1) / tall) * tall
    x, y = u / wide, np.clip((v - 0.05) / tall, -1, 0)
    z = np.sqrt(np.clip(1 - x * x - y * y, 0, 1))
    body = colour(rng, float(rng.choice([0.0, 0.02, 0.07])), 0.012, 0.85, 0.78)
    lit, inside = _lit(x, y, z, shine=0.25), scene.cover(cap * pose.scale)
    scene.paint(inside, np.asarray(body, np.float32) * lit[..., None])
    _print(scene, inside, x, y, _spots(rng))


def fish(scene: Scene) -> None:
    """A striped fish from the side, looking either way, under water."""
    rng = scene.rng
    sea(scene)
    pose = place(scene, 0.78, 0.95, 0.25, 0.1)
    u, v = (pose.u if rng.random() < 0.5 else -pose.u), pose.v
    tall = float(rng.uniform(0.42, 0.56))
    body = colour(rng, float(rng.choice([0.06, 0.13, 0.03, 0.75])), 0.02, 0.9, 0.95)
    fin = np.asarray(colour(rng, float(rng.choice([0.08, 0.14, 0.0])), 0.02, 0.85, 0.8), np.float32)
    rays = (0.85 + 0.15 * np.cos(v * 40))[..., None]
    tail = np.maximum(np.abs(v) - 0.1 - 0.9 * (u - 0.5), np.maximum(0.45 - u, u - 0.95 + 0.3 * (0.4 - np.abs(v))))
    scene.paint(scene.cover(tail * 0.6 * pose.scale), fin * rays)
    back = np.hypot((u - 0.05) / 0.45, (v + tall * 0.75) / 0.3) - 1
    scene.paint(scene.cover(back * 0.3 * pose.scale), fin * (0.85 + 0.15 * np.cos(u * 40))[..., None])
    x, y = (u + 0.12) / 0.78, v / tall
    inside = np.hypot(x, y) - 1
    z = np.sqrt(np.clip(1 - np.clip(x * x + y * y, 0, 1), 0, 1))
    skin = np.broadcast_to(np.asarray(body, np.float32), scene.pixels.shape).copy()
    skin += np.clip(y, 0, 1)[..., None] * 0.5 * (np.float32(245) - skin)
    band = (245, 245, 245) if rng.random() < 0.6 else (28, 30, 60)
    wide = float(rng.uniform(0.07, 0.1))
    for at in (-0.35, 0.12, 0.55)[: int(rng.integers(2, 4))]:
        stripe = np.abs(x - at + 0.1 * y * y) - wide
        skin += scene.cover(stripe * 0.7 * pose.scale)[..., None] * (np.asarray(band, np.float32) - skin)
    scales = 1 + 0.1 * np.cos(u * 34) * np.cos(v * 34)
    scene.paint(scene.cover(inside * tall * pose.scale), skin * (_lit(x * 0.4, y, z, shine=0.25) * scales)[..., None])
    eye = np.hypot(u + 0.58, v + 0.1 * tall)
    scene.paint(scene.cover((eye - 0.12) * pose.scale), (250, 250, 245))
    scene.paint(scene.cover((eye - 0.065) * pose.scale), (12, 12, 16))


GLAZES: tuple[Colour, ...] = ((244, 138, 178), (92, 52, 32), (250, 240, 226), (140, 210, 190), (246, 206, 92))
SPRINKLES: tuple[Colour, ...] = ((235, 60, 80), (70, 140, 235), (255, 230, 80), (90, 200, 110), (255, 255, 255))


def _print(scene: Scene, cover: Floats, x: Floats, y: Floats, sheet: Bytes) -> None:
    """Lay a painted sheet (RGBA, spanning -1..1 of x and y) on what `cover` leaves of it."""
    half = np.float32(len(sheet) / 2)
    map_x, map_y = ((c * half + half - np.float32(0.5)).astype(np.float32) for c in (x, y))
    found = cv2.remap(sheet, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT).astype(np.float32)
    scene.paint(cover * found[..., 3] * np.float32(1 / 255), found[..., :3])


def _sprinkles(rng: Rng) -> Bytes:
    sheet = np.zeros((256, 256, 4), np.uint8)
    for _ in range(int(rng.integers(16, 30))):
        at, far, turn = float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0.44, 0.8)), float(rng.uniform(0, np.pi))
        middle = 128 + 128 * far * np.array([np.cos(at), np.sin(at)])
        reach = 8.5 * np.array([np.cos(turn), np.sin(turn)])
        tint = SPRINKLES[int(rng.integers(len(SPRINKLES)))]
        ends = [(round(float(x)), round(float(y))) for x, y in (middle - reach, middle + reach)]
        cv2.line(sheet, ends[0], ends[1], (*tint, 255), 7)
    return sheet


def _spots(rng: Rng) -> Bytes:
    """White spots on a cap seen from the side: narrower towards its rim."""
    sheet = np.zeros((256, 256, 4), np.uint8)
    for _ in range(int(rng.integers(7, 12))):
        x, y, size = float(rng.uniform(-0.85, 0.85)), float(rng.uniform(-0.85, -0.02)), float(rng.uniform(12, 22))
        axes = (round(size * max(0.35, (1 - x * x) ** 0.5)), round(size))
        middle = (round(128 + 128 * x), round(128 + 128 * y))
        cv2.ellipse(sheet, middle, axes, 0, 0, 360, (246, 244, 238, 255), -1)
    return sheet


def _lit(x: Floats, y: Floats, z: Floats, shine: float) -> Floats:
    """Light on a surface with these normals, 0.35 to above 1 where it shines."""
    facing = np.clip(x * _LIGHT[0] + y * _LIGHT[1] + z * _LIGHT[2], 0, 1)
    light: Floats = 0.4 + 0.7 * facing + np.float32(shine) * facing**24
    return light


def _rotation(rng: Rng) -> Floats:
    """A uniformly random rotation, (3, 3)."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    return np.asarray(q * np.sign(np.diag(r)), np.float32)


def _painted(paint: Callable[[Scene], None]) -> Callable[[Rng, Size], Bytes]:
    return functools.partial(_paint, paint)


def _paint(paint: Callable[[Scene], None], rng: Rng, size: Size) -> Bytes:
    scene = Scene(rng, Size(size.rows * 2, size.cols * 2))
    paint(scene)
    return scene.finish(size)


def _photo(subject: Subject) -> Callable[[Rng, Size], Bytes]:
    return functools.partial(cut_out, subject)


KINDS: tuple[Kind, ...] = (
    Kind("n90000001", "beach ball", _painted(beach_ball)),
    Kind("n90000002", "starfish", _painted(starfish)),
    Kind("n90000003", "doughnut", _painted(doughnut)),
    Kind("n90000004", "flower", _painted(flower)),
    Kind("n90000005", "mushroom", _painted(mushroom)),
    Kind("n90000006", "striped fish", _painted(fish)),
    Kind("n90000007", "astronaut", _photo(Subject("astronaut", 0.44, 0.25, 0.5, 0.12))),
    Kind("n90000008", "cat", _photo(Subject("cat", 0.52, 0.33, 0.64, 0.12))),
    Kind("n90000009", "cup of coffee", _photo(Subject("coffee", 0.5, 0.33, 0.6, 0.3))),
    Kind("n90000010", "rocket", _photo(Subject("rocket", 0.5, 0.36, 0.42, 0.05))),
)
