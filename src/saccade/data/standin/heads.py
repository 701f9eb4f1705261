"""Faces and hair: textures that wrap round a head, so that turning the head turns them.

u runs from the crown (0) to the chin (1); hair starts a little above and may hang far below. Angles as in painter.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from saccade.data.standin import fabrics
from saccade.data.standin.fabrics import mix
from saccade.data.standin.garments import angles, folds
from saccade.data.standin.painter import Bytes, Colour, Floats

SKINS: tuple[Colour, ...] = (
    (255, 224, 200), (246, 208, 178), (238, 194, 158), (224, 172, 130), (204, 148, 106), (172, 116, 78), (136, 88, 58),
    (104, 66, 44), (76, 48, 34),
)  # fmt: skip
HAIRS: tuple[Colour, ...] = (
    (26, 22, 22), (44, 32, 28), (70, 46, 32), (104, 68, 42), (146, 98, 56), (196, 152, 92), (228, 198, 140),
    (156, 62, 34), (186, 84, 44), (150, 148, 150), (92, 30, 40),
)  # fmt: skip
DYES: tuple[Colour, ...] = ((214, 72, 130), (58, 110, 190), (60, 150, 130), (130, 80, 180))
IRISES: tuple[Colour, ...] = ((66, 42, 26), (94, 62, 34), (60, 110, 90), (64, 104, 160), (40, 30, 26))

HAIR_TOP = -0.09
EYE_U, EYE_ANGLE, NOSE_U, MOUTH_U, EAR_U, EAR_ANGLE = 0.55, 0.44, 0.70, 0.82, 0.60, 1.52
FACE_ROWS, FACE_COLS, OVER = 96, 200, 4  # drawn OVER times larger, then reduced

WOMEN_HAIR = {"long": 0.36, "bob": 0.18, "pony": 0.16, "bun": 0.13, "short": 0.07, "afro": 0.06, "beanie": 0.04}
MEN_HAIR = {"short": 0.56, "crop": 0.16, "bald": 0.08, "bob": 0.04, "afro": 0.06, "beanie": 0.07, "bun": 0.03}


@dataclass(frozen=True)
class Head:
    """Everything above the collar that stays the same over a person's poses."""

    skin: Colour
    face: Bytes  # rows over u in 0..1
    style: str
    hair: Bytes | None  # RGBA, rows over u in HAIR_TOP..hair_end
    hair_end: float
    volume: float  # how far the hair stands off the skull, body heights
    colour: Colour
    tail: Bytes  # the cloth of a bun or a pony tail
    ears: bool  # whether they show


def shade(colour: Colour, factor: float) -> Colour:
    """A lighter or darker colour."""
    r, g, b = (int(np.clip(c * factor, 0, 255)) for c in colour)
    return r, g, b


def _spot(angle: float, u: float) -> tuple[int, int]:
    return (int((angle / (2 * np.pi) + 0.5) * FACE_COLS * OVER), int(u * FACE_ROWS * OVER))


def _eyes(rng: np.random.Generator, face: Bytes, female: bool, brow: Colour, skin: Colour) -> None:
    iris = fabrics.pick(rng, IRISES)
    height = rng.uniform(11, 14)
    for side in (-1, 1):
        x, y = _spot(side * EYE_ANGLE, EYE_U)
        cv2.ellipse(face, (x, y - 2), (34, int(height + 9)), 0, 0, 360, shade(skin, 0.90), -1, cv2.LINE_AA)
        cv2.ellipse(face, (x, y), (26, int(height)), 0, 0, 360, (250, 248, 244), -1, cv2.LINE_AA)
        cv2.circle(face, (x, y), int(height) + 1, iris, -1, cv2.LINE_AA)
        cv2.circle(face, (x, y), int(height * 0.55), (18, 14, 14), -1, cv2.LINE_AA)
        cv2.circle(face, (x - 4, y - 4), 4, (255, 255, 255), -1, cv2.LINE_AA)
        lash = (30, 22, 20)
        cv2.ellipse(face, (x, y), (29, int(height) + 2), 0, 190, 350, lash, 7 if female else 4, cv2.LINE_AA)
        brow_at = (x + side * 3, y - 30)
        cv2.ellipse(face, brow_at, (33, 12), side * 5, 195, 345, brow, 7 if female else 10, cv2.LINE_AA)


def _glasses(rng: np.random.Generator, face: Bytes) -> None:
    frame = fabrics.pick(rng, ((20, 20, 22), (90, 50, 30), (180, 150, 60), (190, 30, 40)))
    dark = rng.random() < 0.5
    for side in (-1, 1):
        x, y = _spot(side * EYE_ANGLE, EYE_U)
        if dark:
            cv2.ellipse(face, (x, y), (44, 30), 0, 0, 360, (34, 34, 40), -1, cv2.LINE_AA)
        cv2.ellipse(face, (x, y), (44, 30), 0, 0, 360, frame, 7, cv2.LINE_AA)
        cv2.line(face, (x + side * 44, y - 6), _spot(side * 1.6, EYE_U - 0.01), frame, 7, cv2.LINE_AA)
    left, right = _spot(-EYE_ANGLE, EYE_U), _spot(EYE_ANGLE, EYE_U)
    cv2.line(face, (left[0] + 44, left[1]), (right[0] - 44, right[1]), frame, 7, cv2.LINE_AA)


def _face(rng: np.random.Generator, female: bool, skin: Colour, hair: Colour) -> Bytes:
    soft = np.empty((FACE_ROWS, FACE_COLS, 3), np.uint8)  # all of it is blurred, so it is drawn small
    soft[:] = skin
    blush = (min(skin[0] + 10, 255), int(skin[1] * 0.86), int(skin[2] * 0.86))
    for at, size, colour in (
        ((-0.62, 0.70), (11, 6), blush),
        ((0.62, 0.70), (11, 6), blush),
        ((0.0, 0.97), (17, 6), shade(skin, 0.90)),
        ((0.10, 0.655), (3, 9), shade(skin, 0.84)),
        ((-0.03, 0.64), (2, 8), shade(skin, 1.08)),
    ):
        x, y = _spot(*at)
        cv2.ellipse(soft, (x // OVER, y // OVER), size, 0, 0, 360, colour, -1)
    soft = cv2.blur(cv2.blur(soft, (7, 7)), (5, 5))
    face: Bytes = cv2.resize(soft, (FACE_COLS * OVER, FACE_ROWS * OVER), interpolation=cv2.INTER_LINEAR)
    x, y = _spot(0, NOSE_U + 0.012)
    cv2.ellipse(face, (x, y), (15, 7), 0, 15, 165, shade(skin, 0.66), 5, cv2.LINE_AA)
    brow = shade(hair, 0.8) if fabrics.luminance(hair) < 150 else shade(hair, 0.62)
    _eyes(rng, face, female, brow, skin)
    painted = female and rng.random() < 0.5
    lip = fabrics.pick(rng, ((186, 30, 52), (214, 70, 96), (150, 36, 70))) if painted else (
        int(skin[0] * 0.84), int(skin[1] * 0.58), int(skin[2] * 0.58))  # fmt: skip
    x, y = _spot(0, MOUTH_U)
    wide = int(rng.uniform(28, 36))
    cv2.ellipse(face, (x, y - 2), (wide, 12), 0, 0, 180, lip, -1, cv2.LINE_AA)
    cv2.ellipse(face, (x - wide // 2, y), (wide // 2, 7), 0, 180, 360, shade(lip, 0.92), -1, cv2.LINE_AA)
    cv2.ellipse(face, (x + wide // 2, y), (wide // 2, 7), 0, 180, 360, shade(lip, 0.92), -1, cv2.LINE_AA)
    cv2.ellipse(face, (x, y - 6), (wide, 9), 0, 25, 155, shade(lip, 0.55), 3, cv2.LINE_AA)
    if not female and rng.random() < 0.4:
        _beard(rng, face, hair)
    if rng.random() < 0.14:
        _glasses(rng, face)
    small: Bytes = cv2.resize(face, (FACE_COLS, FACE_ROWS), interpolation=cv2.INTER_AREA)
    return small


def _beard(rng: np.random.Generator, face: Bytes, hair: Colour) -> None:
    turn = angles(face.shape[1])
    u = ((np.arange(face.shape[0]) + 0.5) / face.shape[0])[:, None]
    jaw = np.clip((u - (0.73 + 0.06 * np.cos(turn * 2.2))) * 24, 0, 1) * np.clip((1.5 - np.abs(turn)) * 8, 0, 1)
    mouth = np.clip(1.5 - np.hypot(turn / 0.26, (u - MOUTH_U) / 0.035), 0, 1)
    amount = jaw * (1 - mouth) * rng.uniform(0.25, 0.85)
    face[:] = mix(face.astype(np.float32), shade(hair, 0.9), amount).astype(np.uint8)


def _strands(rng: np.random.Generator, rows: int, cols: int, colour: Colour, curly: bool) -> Floats:
    """Hair as cloth: fine streaks along it and a band of light near the top."""
    fine = rng.standard_normal((max(rows // (5 if curly else 40), 2), cols // (5 if curly else 3))).astype(np.float32)
    fine = np.concatenate([fine, fine[:, :1]], axis=1)
    streaks = cv2.resize(fine, (cols, rows), interpolation=cv2.INTER_LINEAR)
    depth = np.float32(0.16 if curly else 0.13)
    hair: Floats = (
        np.asarray(colour, np.float32) * (1 + depth * streaks)[..., None] * folds(rng, rows, cols, 0.06)[..., None]
    )
    u = np.arange(rows, dtype=np.float32)[:, None] / np.float32(66)
    ring = np.exp(-((u - 0.32) ** 2) / 0.006) * (10 if curly else 26)
    result: Floats = hair + (ring * np.clip(0.6 + 0.5 * streaks, 0, 1.5))[..., None]
    return result


def _opening(rng: np.random.Generator, style: str, angle: Floats, u: Floats) -> Floats:
    """The alpha of hair: none over the face, down to the nape or as far as the style hangs."""
    turn = np.abs(angle)
    fringe = float(rng.choice([0.26, 0.30, 0.43], p=[0.45, 0.30, 0.25]))
    part = float(rng.uniform(-0.7, 0.7))
    line = fringe - 0.09 * np.clip(1 - np.abs(angle - part) / 0.5, 0, 1) * (fringe < 0.4)
    line = line + 0.16 * np.clip((turn - 0.55) / 0.55, 0, 1) ** 2
    width = {"long": 1.02, "bob": 0.98, "afro": 1.12}.get(style, 1.20)
    inside: Floats = np.clip((line - u) * 40, 0, 1)  # above the hairline
    sides: Floats = np.clip((turn - width - 0.10 * np.clip(u - 0.9, -1, 0.5)) * 22, 0, 1)
    covered: Floats = np.maximum(inside, sides)
    if style in ("long", "bob"):
        return covered
    low = {"crop": 0.50, "afro": 0.82}.get(style, 0.56)
    bottom = low + 0.32 * np.clip((turn - 1.75) / 0.5, 0, 1)
    return covered * np.clip((bottom - u) * 30, 0, 1)


def sample_head(rng: np.random.Generator, female: bool, skin: Colour) -> Head:
    """Draw a face and a head of hair.

    Args:
        rng: its state decides everything.
        female: which styles are likely.
        skin: the skin's colour.
    """
    styles = WOMEN_HAIR if female else MEN_HAIR
    chance = np.array(list(styles.values()))
    style = str(rng.choice(list(styles), p=chance / chance.sum()))
    dark = fabrics.luminance(skin) < 130
    colour = fabrics.pick(rng, HAIRS[:4] if dark or rng.random() < 0.25 else HAIRS)
    if rng.random() < 0.05:
        colour = fabrics.pick(rng, DYES)
    face = _face(rng, female, skin, colour)
    end = {"long": float(rng.uniform(1.55, 2.25)), "bob": float(rng.uniform(0.98, 1.25))}.get(style, 0.92)
    volume = {"afro": float(rng.uniform(0.022, 0.034)), "crop": 0.002}.get(style, float(rng.uniform(0.005, 0.010)))
    hair: Bytes | None = None
    if style != "bald":
        rows, cols = int((end - HAIR_TOP) * 66), 176
        angle = angles(cols)
        u = HAIR_TOP + (np.arange(rows, dtype=np.float32)[:, None] + 0.5) / 66
        cloth = _strands(rng, rows, cols, colour, style == "afro" or rng.random() < 0.2)
        alpha = _opening(rng, style, angle, u) * np.ones_like(u)
        if style == "beanie":
            wool = fabrics.sample_fabric(rng, {"plain": 2, "stripes": 1}).cut(rows, cols / fabrics.PX)
            wool = cv2.resize(wool, (cols, rows))
            rim = 0.36 + 0.05 * np.cos(angle) * -1
            on = np.clip((rim - u) * 40, 0, 1)
            wool = np.where(((u > rim - 0.13) & (u < rim))[..., None], wool * 0.82, wool)
            cloth, alpha = mix(cloth, wool, on), np.maximum(alpha, on)
        hair = np.dstack([np.clip(cloth, 0, 255), 255 * alpha]).astype(np.uint8)
    tail = np.clip(_strands(rng, 64, 32, shade(colour, 1.02), False), 0, 255).astype(np.uint8)
    covers = style in ("long", "bob") or (style == "afro" and volume > 0.026)
    return Head(skin, face, style, hair, end, volume, colour, tail, not covers)
