"""Outfits: which garments a person wears, cut and sewn into the textures of torso, arms and legs.

Textures follow painter.py: rows along the body part, columns once round it, the middle column facing forward.
Fractions u run from the neck's base (0) to the crotch (1) on the torso and on into the skirt (above 1), from the
shoulder to the wrist on the arm, from the hip to the ankle on the leg.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from saccade.data.standin import fabrics
from saccade.data.standin.fabrics import PX, Fabric, mix
from saccade.data.standin.painter import Bytes, Colour, Floats
from saccade.data.standin.wardrobe import SLEEVES, Plan, category, sample_plan

TORSO_LENGTH, TORSO_GIRTH = 0.375, 0.62
ARM_LENGTH, ARM_GIRTH = 0.296, 0.18
LEG_LENGTH, LEG_GIRTH = 0.466, 0.31


@dataclass(frozen=True)
class Outfit:
    """What a person wears, ready to be painted."""

    category: str  # DeepFashion's own
    torso: Bytes  # rows over u in 0..torso_end
    torso_end: float  # 1 without a skirt
    arm: Bytes
    leg: Bytes
    arm_ease: Floats  # (n, 2): u and how much wider than the skin, body heights
    leg_ease: Floats
    torso_ease: float
    flare: float  # how much wider the skirt's hem is than its hips, body heights
    neck: Colour | None  # a turtleneck's colour
    shoe: Colour
    sole: Colour
    heel: float


def folds(rng: np.random.Generator, rows: int, cols: int, strength: float, steep: float = 2.0) -> Floats:
    """A multiplicative relief of soft wrinkles, (rows, cols), seamless across the left and right edges."""
    down, round_ = max(int(rows / 26), 2), max(int(cols / (26 * steep)), 2)
    noise = rng.standard_normal((down, round_)).astype(np.float32)
    noise = np.concatenate([noise, noise[:, :1]], axis=1)
    wide = cv2.resize(noise, (cols + cols // round_, rows), interpolation=cv2.INTER_CUBIC)[:, :cols]
    result: Floats = 1 + np.float32(strength) * np.clip(wide, -1.6, 1.6)
    return result


def angles(cols: int) -> Floats:
    """The angle of every column, (1, cols), 0 forward, positive to the person's left."""
    result: Floats = ((np.arange(cols, dtype=np.float32) + 0.5) / cols * 2 * np.pi - np.pi)[None, :]
    return result


def _heights(rows: int, end: float) -> Floats:
    result: Floats = ((np.arange(rows, dtype=np.float32) + 0.5) / rows * end)[:, None]
    return result


def _neckline(kind: str, angle: Floats) -> Floats:
    """The u above which skin shows, for every angle."""
    turn = np.abs(angle)
    if kind == "turtle":
        return np.zeros_like(angle)
    if kind == "v":
        return 0.05 + 0.24 * np.clip(1 - turn / 0.75, 0, 1)
    if kind == "scoop":
        return 0.05 + 0.15 * np.sqrt(np.clip(1 - (turn / 1.0) ** 2, 0, 1))
    if kind == "boat":
        return 0.095 + 0.01 * np.cos(angle)
    if kind == "strapless":
        return 0.215 - 0.02 * np.cos(2 * angle)
    if kind == "tank":
        strap = np.clip((0.22 - np.abs(np.minimum(turn, np.pi - turn) - 0.85)) * 14, 0, 1)
        return np.where(turn < 1.57, 0.235, 0.20) * (1 - strap)
    return 0.055 + 0.025 * np.cos(angle)  # crew


def _skin(rng: np.random.Generator, colour: Colour, rows: int, cols: int) -> Floats:
    result: Floats = np.asarray(colour, np.float32) * folds(rng, rows, cols, 0.015)[..., None]
    return result


def _print(rng: np.random.Generator, cloth: Floats, base: Colour, middle: float, width: int) -> None:
    """Put lettering, a number, a badge or a photograph on the middle of a torso texture, in place."""
    cols = cloth.shape[1]
    kind = str(
        rng.choice(
            ["photograph", "word", "badge", "number", "heart", "star", "sunset"],
            p=[0.34, 0.2, 0.1, 0.1, 0.08, 0.08, 0.1],
        )
    )
    height = int(width * rng.uniform(0.9, 1.25))
    top, left = max(int(middle - height / 2), 0), cols // 2 - width // 2
    area = (slice(top, top + height), slice(left, left + width))
    patch = np.ascontiguousarray(np.clip(cloth[area], 0, 255).astype(np.uint8))
    height, width = patch.shape[:2]
    ink = fabrics.contrasting(rng, base, fabrics.BRIGHTS + fabrics.NEUTRALS[:1] + fabrics.NEUTRALS[5:6], 90)
    x, y, radius = width / 2, height / 2, min(width, height) * 0.46
    if kind == "photograph":
        picture = fabrics.crop(rng, str(rng.choice(fabrics.PHOTOGRAPHS)), height, width, 0.5)
        mask = np.zeros((height, width), np.uint8)
        shape = int(rng.integers(3))
        if shape == 0:
            cv2.circle(mask, (width // 2, height // 2), int(radius), 255, -1, cv2.LINE_AA)
        elif shape == 1:
            mask[3:-3, 3:-3] = 255
        else:
            cv2.ellipse(mask, (width // 2, height // 2), (int(width * 0.46), int(height * 0.48)), 0, 0, 360, 255, -1)
        patch = mix(patch.astype(np.float32), picture.astype(np.float32), mask / np.float32(255)).astype(np.uint8)
    elif kind in ("word", "number"):
        word = str(rng.choice([w for w in fabrics.WORDS if w.isdigit() == (kind == "number")]))
        font = fabrics.FONTS[int(rng.integers(len(fabrics.FONTS)))]
        (w, h), _ = cv2.getTextSize(word, font, 1.0, 2)
        size = min(width * 0.98 / w, height * 0.9 / h)
        thick = max(round(size * (3.2 if kind == "number" else 2.4)), 1)
        spot = (int(x - w * size / 2), int(y + h * size / 2))
        cv2.putText(patch, word, spot, font, size, ink, thick, cv2.LINE_AA)
    elif kind == "badge":
        cv2.circle(patch, (int(x), int(y)), int(radius), ink, -1, cv2.LINE_AA)
        inner = fabrics.contrasting(rng, ink, fabrics.BRIGHTS + fabrics.NEUTRALS)
        fabrics.star(patch, x, y, radius * 0.85, 0.0, inner, int(rng.integers(3, 8)))
    elif kind == "heart":
        fabrics.heart(patch, x, y, radius, 0.0, ink)
    elif kind == "star":
        fabrics.star(patch, x, y, radius * 1.05, 0.0, ink)
    else:
        for i, part in enumerate((1.0, 0.72, 0.44)):
            tone = fabrics.contrasting(rng, base, fabrics.BRIGHTS, 40) if i else ink
            cv2.circle(patch, (int(x), int(y)), int(radius * part), tone, -1, cv2.LINE_AA)
    cloth[area] = patch


def _front(rng: np.random.Generator, cloth: Floats, fabric: Fabric, angle: Floats, u: Floats, hem: float) -> None:
    """Prints, plackets, pockets, zips and stripes over the chest and the back of a top, in place."""
    cols = cloth.shape[1]
    base = fabric.colours[0]
    per_u = TORSO_LENGTH * PX
    busy = fabric.pattern not in ("plain", "blocks")
    if not busy and rng.random() < 0.88:
        _print(rng, cloth, base, 0.37 * per_u, int(rng.integers(58, 84)))
    elif rng.random() < 0.30:  # a placket with buttons
        ink = fabrics.contrasting(rng, base, fabrics.NEUTRALS)
        inside = (np.abs(angle) < 0.07) & (u < hem)
        cloth[inside] = cloth[inside] * 0.5 + 0.5 * np.asarray(base, np.float32)
        for at in np.arange(0.12, hem - 0.03, 0.085):
            cv2.circle(cloth, (cols // 2, int(at * per_u)), 3, ink, -1, cv2.LINE_AA)
    if not busy and rng.random() < 0.45:  # the back has its own print
        behind = np.ascontiguousarray(np.roll(cloth, cols // 2, axis=1))
        _print(rng, behind, base, 0.34 * per_u, int(rng.integers(46, 84)))
        cloth[:] = np.roll(behind, -(cols // 2), axis=1)
    if rng.random() < 0.12:
        ink = fabrics.contrasting(rng, base, fabrics.NEUTRALS)
        pocket = (np.abs(angle - 0.55) < 0.24) & (np.abs(u - 0.33) < 0.055)
        cloth[pocket] = np.asarray(ink, np.float32)


def _jacket(rng: np.random.Generator, cloth: Floats, angle: Floats, u: Floats, hem: float) -> Fabric:
    """Lay an open jacket over a top, in place; its fabric."""
    fabric = fabrics.sample_fabric(
        rng, {"plain": 3.0, "tartan": 0.8, "pinstripes": 0.6, "camouflage": 0.4, "diagonal": 0.3}
    )
    if rng.random() < 0.3:
        fabric = fabrics.denim(rng)
    rows = cloth.shape[0]
    outer = _resized(fabric.cut(rows, TORSO_GIRTH), cloth.shape[1])
    width = float(rng.uniform(0.25, 0.5))
    opening = width * (0.75 + 0.5 * np.abs(u - 0.35)) - np.abs(angle)
    over = np.clip(-opening * 40, 0, 1) * np.clip((hem - u) * 120, 0, 1)
    lapel = (opening < 0) & (opening > -0.16) & (u < 0.55)
    outer = np.where(lapel[..., None], outer * 0.78, outer)
    cloth[:] = mix(cloth, outer, over)
    return fabric


def _resized(cloth: Floats, cols: int) -> Floats:
    return cloth if cloth.shape[1] == cols else cv2.resize(cloth, (cols, cloth.shape[0]), interpolation=cv2.INTER_AREA)


def _pleats(rng: np.random.Generator, cloth: Floats, angle: Floats, u: Floats) -> None:
    """Shade a skirt in folds that deepen towards its hem, in place."""
    count = int(rng.integers(5, 13))
    wave = np.cos(count * angle + 0.6 * np.sin(2 * angle + rng.uniform(0, 6)))
    depth = np.clip((u - 0.72) * 1.2, 0, 1) * rng.uniform(0.05, 0.15)
    cloth *= (1 + depth * wave)[..., None]


def _torso(rng: np.random.Generator, plan: Plan, skin: Colour) -> tuple[Bytes, Fabric | None]:
    rows = round(plan.skirt_end * TORSO_LENGTH * PX)
    cloth = plan.top.cut(rows, TORSO_GIRTH)
    cols = cloth.shape[1]
    angle, u = angles(cols), _heights(rows, plan.skirt_end)
    _front(rng, cloth, plan.top, angle, u, min(plan.hem, 0.95))
    body = _skin(rng, skin, rows, cols)
    if plan.kind not in ("dress", "jumpsuit"):
        below = _resized(plan.bottom.cut(rows, TORSO_GIRTH), cols)
        body = mix(body, below, np.clip((u - plan.waist) * 120, 0, 1) * np.ones_like(angle))
    open_ = _neckline(plan.neckline, angle)
    trim = (u > open_) & (u < open_ + 0.022)
    if rng.random() < 0.5:
        cloth = np.where(trim[..., None], np.asarray(plan.top.colours[1], np.float32), cloth)
    over = np.clip((u - open_) * 120, 0, 1) * np.clip((plan.hem - u) * 120, 0, 1)
    body = mix(body, cloth, over)
    shadow = np.clip(1 - np.abs(u - plan.hem - 0.012) / 0.014, 0, 1)  # the top's hem casts a little shade
    body *= 1 - 0.28 * shadow[..., None]
    jacket = None
    if plan.jacket:
        jacket = _jacket(rng, body, angle, u, float(rng.uniform(0.78, 1.0)))
    elif plan.kind in ("dress", "jumpsuit", "trousers", "skirt") and rng.random() < 0.35:
        belt = np.abs(u - plan.waist) < 0.022
        colour = fabrics.contrasting(rng, plan.bottom.colours[0], fabrics.NEUTRALS + fabrics.BRIGHTS[:4], 50)
        body = np.where((belt & (angle < 9))[..., None], np.asarray(colour, np.float32), body)
        buckle = belt & (np.abs(angle) < 0.12)
        body = np.where(buckle[..., None], np.asarray((214, 182, 96), np.float32), body)
    if plan.skirt_end > 1:
        _pleats(rng, body, angle, u)
    body *= folds(rng, rows, cols, 0.035)[..., None]
    return np.clip(body, 0, 255).astype(np.uint8), jacket


def _arm(rng: np.random.Generator, plan: Plan, skin: Colour, jacket: Fabric | None) -> tuple[Bytes, float]:
    rows = round(ARM_LENGTH * PX)
    end = 0.98 if jacket is not None else SLEEVES[plan.sleeve]
    fabric = jacket or plan.top
    if jacket is None and plan.top.pattern in ("plain", "blocks") and rng.random() < 0.25:  # raglan sleeves
        colour = fabrics.contrasting(rng, plan.top.colours[0], fabrics.BRIGHTS + fabrics.NEUTRALS)
        fabric = Fabric("plain", (colour, colour, colour), 0.05, 0.5, 0)
    cloth = fabric.cut(rows, ARM_GIRTH, start=0.06 * TORSO_LENGTH)
    cols = cloth.shape[1]
    u = _heights(rows, 1.0)
    if rng.random() < 0.35 and end > 0:
        cloth = np.where(
            ((u > end - 0.06) & (angles(cols) < 9))[..., None], np.asarray(fabric.colours[1], np.float32), cloth
        )
    cloth = cloth * folds(rng, rows, cols, 0.045, 0.8)[..., None]
    body = mix(_skin(rng, skin, rows, cols), cloth, np.clip((end - u) * 120, 0, 1) * np.ones((1, cols), np.float32))
    body *= 1 - 0.22 * np.clip(1 - np.abs(u - end - 0.015) / 0.016, 0, 1)[..., None]
    return np.clip(body, 0, 255).astype(np.uint8), end


def _leg(rng: np.random.Generator, plan: Plan, skin: Colour, shoe: Colour) -> Bytes:
    rows = round(LEG_LENGTH * PX)
    cloth = plan.bottom.cut(rows, LEG_GIRTH, start=0.88 * TORSO_LENGTH)
    cols = cloth.shape[1]
    angle, u = angles(cols), _heights(rows, 1.0)
    cover = np.ones((1, cols), np.float32)
    body = _skin(rng, skin, rows, cols)
    if plan.leg_end < 0.6:
        dress = rng.random()
        if dress < 0.14:  # tights
            colour = fabrics.pick(rng, fabrics.NEUTRALS[:5] + fabrics.BRIGHTS)
            body = 0.12 * body + 0.88 * np.asarray(colour, np.float32)
        elif dress < 0.26:  # socks
            colour = fabrics.pick(rng, fabrics.NEUTRALS[4:6] + fabrics.BRIGHTS)
            body = mix(body, colour, np.clip((u - rng.uniform(0.58, 0.90)) * 90, 0, 1) * cover)
    if plan.leg_end < 0.9 and rng.random() < 0.15:  # boots
        body = mix(body, shoe, np.clip((u - rng.uniform(0.62, 0.85)) * 90, 0, 1) * cover)
    if plan.leg_end > 0:
        if rng.random() < 0.15:  # a stripe down the side
            line = np.abs(np.abs(angle) - np.pi / 2) < 0.22
            colour = fabrics.contrasting(rng, plan.bottom.colours[0], fabrics.BRIGHTS + fabrics.NEUTRALS[5:6])
            cloth = np.where((line & (u > -1))[..., None], np.asarray(colour, np.float32), cloth)
        if plan.bottom.denim:  # worn over the thighs
            worn = np.exp(-((u - 0.28) ** 2) / 0.03) * np.exp(-(angle**2) / 0.5) * rng.uniform(0, 0.35)
            cloth = mix(cloth, (214, 224, 236), worn)
        cloth = cloth * folds(rng, rows, cols, 0.045, 0.8)[..., None]
        body = mix(body, cloth, np.clip((plan.leg_end - u) * 120, 0, 1) * cover)
        body *= 1 - 0.22 * np.clip(1 - np.abs(u - plan.leg_end - 0.012) / 0.013, 0, 1)[..., None]
    return np.clip(body, 0, 255).astype(np.uint8)


def _ease(plan: Plan, sleeve_end: float, loose: float) -> tuple[Floats, Floats]:
    """How much wider than the skin sleeves and trouser legs are, as (n, 2) arrays of u and body heights."""
    end = max(sleeve_end, 0.02)
    arm = np.array([[0, 0.0], [0.5 * end, 0.005 * loose], [end, 0.007 * loose], [end + 0.01, 0.0], [2, 0.0]])
    if sleeve_end == 0:
        arm[:, 1] = 0
    cut = {"skinny": (0.002, 0.002), "straight": (0.005, 0.012), "wide": (0.012, 0.030), "flared": (0.002, 0.032)}
    upper, lower = cut[plan.leg_cut]
    if plan.leg_end < 0.6:
        lower = upper + 0.006
    end = max(plan.leg_end, 0.02)
    middle = 0.5 * (upper + lower) if plan.leg_cut != "flared" else upper
    leg = np.array([[0, 0.0], [0.25 * end, upper], [0.6 * end, middle], [end, lower], [end + 0.01, 0.0], [2, 0.0]])
    if plan.leg_end == 0:
        leg[:, 1] = 0
    return arm, leg


def sample_outfit(rng: np.random.Generator, female: bool, skin: Colour) -> Outfit:
    """Draw and sew an outfit.

    Args:
        rng: its state decides everything.
        female: which garments are likely.
        skin: the colour where no cloth lies.
    """
    plan = sample_plan(rng, female)
    shoe = fabrics.pick(rng, fabrics.NEUTRALS if rng.random() < 0.55 else fabrics.NEUTRALS + fabrics.BRIGHTS)
    if rng.random() < 0.3:
        shoe = plan.top.colours[int(rng.integers(2))]
    torso, jacket = _torso(rng, plan, skin)
    arm, sleeve_end = _arm(rng, plan, skin, jacket)
    leg = _leg(rng, plan, skin, shoe)
    loose = float(rng.uniform(0.4, 1.8))
    arm_ease, leg_ease = _ease(plan, sleeve_end, loose)
    heels = female and rng.random() < 0.45
    sole = (240, 238, 232) if fabrics.luminance(shoe) < 200 and rng.random() < 0.5 else (40, 36, 34)
    return Outfit(
        category=category(plan, female),
        torso=torso,
        torso_end=plan.skirt_end,
        arm=arm,
        leg=leg,
        arm_ease=arm_ease,
        leg_ease=leg_ease,
        torso_ease=0.003 + 0.004 * loose,
        flare=float(rng.uniform(0.005, 0.075)),
        neck=plan.top.colours[0] if plan.neckline == "turtle" else None,
        shoe=shoe,
        sole=sole,
        heel=0.035 if heels else 0.0,
    )
