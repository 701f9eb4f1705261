"""One person: what stays the same over the poses, and how a pose of it is framed, painted and annotated."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from saccade.data.standin import bodies, fabrics, limbs, portraits
from saccade.data.standin.bodies import L_ANKLE, L_SHOULDER, NECK, PELVIS, R_ANKLE, R_SHOULDER, View, to_picture, vec
from saccade.data.standin.garments import sample_outfit
from saccade.data.standin.heads import EAR_ANGLE, EAR_U, EYE_ANGLE, EYE_U, NOSE_U, SKINS, sample_head, shade
from saccade.data.standin.painter import Bytes, Canvas, Colour, Floats
from saccade.data.standin.stage import Person, Stage
from saccade.geometry import Size

LEAST_ROWS = 384  # small pictures are painted at least this large, then reduced
WALLS: tuple[Colour, ...] = (
    (176, 190, 197), (188, 170, 164), (158, 172, 150), (160, 160, 190), (205, 180, 150), (214, 160, 140),
    (120, 140, 160),
)  # fmt: skip
TRIES = 6  # poses drawn in search of one that is not wider than the frame


@dataclass(frozen=True)
class Picture:
    """A painted pose."""

    image: Bytes  # (rows, cols, 3) RGB
    keypoints: Floats  # (18, 2) x, y in pixels, pixel centres at integers; nan where unseen or outside
    mask: Floats  # (rows, cols) share of the pixel that the figure covers


def sample_person(rng: np.random.Generator) -> Person:
    """Draw a person: proportions, outfit, face and hair, and the studio they stand in."""
    female = bool(rng.random() < 0.68)
    skin = fabrics.pick(rng, SKINS)
    outfit = sample_outfit(rng, female, skin)
    body = bodies.sample_body(rng, female, outfit.heel)
    head = sample_head(rng, female, skin)
    kind = rng.random()
    if kind < 0.66:
        grey = int(rng.integers(212, 248))
        tone: Colour = (grey, grey, min(grey + int(rng.integers(0, 5)), 255))
    elif kind < 0.87:
        tone = shade(fabrics.pick(rng, fabrics.PASTELS), float(rng.uniform(0.90, 1.0)))
    else:
        tone = fabrics.pick(rng, WALLS)
    left, right = shade(tone, float(rng.uniform(0.98, 1.07))), shade(tone, float(rng.uniform(0.92, 1.0)))
    floor = shade(tone, float(rng.uniform(0.88, 1.02)))
    return Person(body, outfit, head, (left, right, floor), float(rng.uniform(0.80, 0.90)))


def allowed_stances(person: Person) -> tuple[str, ...]:
    """The stances that the person's clothes allow."""
    end = person.outfit.torso_end
    if end > 1.7:
        return ("straight", "contrapposto", "walk")
    return bodies.LEG_KINDS if end <= 1.0 else tuple(kind for kind in bodies.LEG_KINDS if kind != "lifted")


def backdrop(person: Person, rows: int, cols: int, feet: Floats, unit: float) -> Floats:
    """A studio: a wall in a soft gradient, a floor that it runs into, and the shade under the feet (n, 2)."""
    left, right, floor = (np.asarray(colour, np.float32) for colour in person.wall)
    down, over = max(rows // 4, 1), max(cols // 4, 1)  # all of it is soft, so a quarter of the size will do
    x = np.linspace(0, 1, over, dtype=np.float32)[None, :, None]
    y = np.linspace(0, 1, down, dtype=np.float32)[:, None, None]
    picture = (left + (right - left) * x) * (1.02 - 0.05 * y)
    ground = np.clip((y - np.float32(person.horizon)) * 14, 0, 1)
    picture = picture + (floor * (1.0 - 0.10 * (1 - y)) - picture) * ground
    dark = np.zeros((down, over), np.float32)
    for foot in feet / 4:
        axes = (max(int(unit * 0.075 / 4), 1), max(int(unit * 0.014 / 4), 1))
        cv2.ellipse(dark, (int(foot[0]), int(foot[1])), axes, 0, 0, 360, 1.0, -1)
    size = int(unit * 0.012) | 1
    soft = cv2.blur(cv2.blur(dark, (size, size)), (size, size))
    picture = np.clip(picture * (1 - 0.34 * soft[..., None]), 0, 255)
    result: Floats = cv2.resize(picture, (cols, rows), interpolation=cv2.INTER_LINEAR)
    return result


def _pose(person: Person, rng: np.random.Generator, view: View, size: Size) -> bodies.Skeleton:
    """A pose that fits the frame: the narrowest of a few when none does."""
    drawn: list[tuple[float, bodies.Skeleton]] = []
    for _ in range(TRIES):
        skeleton = bodies.sample_skeleton(rng, person.body, view, allowed_stances(person))
        flat = to_picture(skeleton.points)
        width, height = flat.max(axis=0) - flat.min(axis=0)
        drawn.append((float((width + 0.05) / (height + 0.03)) * size.rows / size.cols, skeleton))
        if drawn[-1][0] < 0.98:
            return skeleton
    return min(drawn, key=lambda pair: pair[0])[1]


def _paint(stage: Stage) -> dict[int, Floats]:
    """Paint everything from far to near; for every arm painted behind the trunk, what covers it on the canvas."""
    depth = stage.skeleton.points[:, 2]
    middle = 0.5 * (depth[NECK] + depth[PELVIS])
    arms = {side: 0.5 * (depth[3 + 3 * side] + depth[4 + 3 * side]) - middle for side in (0, 1)}
    order = sorted(arms, key=lambda side: arms[side])
    far = [side for side in order if arms[side] < -0.03]
    hair = portraits.lay_hair(stage)
    portraits.paint_hair_behind(stage, hair)
    for side in far:
        limbs.paint_arm(stage, side)
    for side in sorted((0, 1), key=lambda side: float(depth[9 + 3 * side] + depth[10 + 3 * side])):
        limbs.paint_leg(stage, side)
    portraits.paint_neck(stage)
    torso = limbs.paint_torso(stage)
    portraits.paint_face(stage)
    portraits.paint_hair_over(stage, hair)
    for side in order:
        if side not in far:
            limbs.paint_arm(stage, side)
    hidden: Floats = np.zeros((stage.canvas.rows, stage.canvas.cols), np.float32)
    if torso is not None:
        hidden[torso.window] = torso.cover
    return dict.fromkeys(far, hidden)


def _keypoints(stage: Stage, hidden: dict[int, Floats]) -> Floats:
    """The eighteen points on the canvas, (18, 2), nan where they cannot be seen."""
    found: Floats = np.full((18, 2), np.nan)
    found[2:14] = stage.joint(*range(2, 14))
    found[NECK] = 0.5 * (found[R_SHOULDER] + found[L_SHOULDER])  # as OpenPose's training data define it
    for index, u, angle in ((0, NOSE_U, 0.0), (14, EYE_U, EYE_ANGLE), (15, EYE_U, -EYE_ANGLE)):
        spot, facing = portraits.face_spot(stage, u, angle)
        if facing > 0.12:
            found[index] = spot
    for index, angle in ((16, EAR_ANGLE), (17, -EAR_ANGLE)):
        spot, facing = portraits.face_spot(stage, EAR_U, angle)
        if facing > -0.25:
            found[index] = spot
    for side, cover in hidden.items():  # an arm behind the trunk shows no elbow or wrist
        for index in (3 + 3 * side, 4 + 3 * side):
            x, y = (int(value) for value in np.rint(found[index]))
            if 0 <= y < cover.shape[0] and 0 <= x < cover.shape[1] and cover[y, x] > 0.5:
                found[index] = np.nan
    return found


def draw(person: Person, rng: np.random.Generator, view: View, size: Size) -> Picture:
    """Pose a person at random, frame them and paint them, at twice the size or more, then reduced.

    Args:
        person: who.
        rng: its state decides pose and framing.
        view: where the camera stands. "full" always shows the whole figure; one in ten others is cut at the legs.
        size: rows and columns of the picture.
    """
    skeleton = _pose(person, rng, view, size)
    over = max(2, -(-LEAST_ROWS // size.rows))
    rows, cols = size.rows * over, size.cols * over
    flat = to_picture(skeleton.points)
    low, high = flat.min(axis=0) - vec(0.03, 0.012), flat.max(axis=0) + vec(0.03, 0.016)
    unit = min(rng.uniform(0.90, 0.965) * rows / (high[1] - low[1]), 0.985 * cols / (high[0] - low[0]))
    free = 0.5 * (np.array([cols, rows]) - unit * (high - low))
    middle = np.array([cols, rows]) / 2 + rng.uniform(-0.6, 0.6, 2) * np.maximum(free, 0)
    origin = middle - unit * (low + high) / 2
    zoom = float(rng.uniform(1.15, 1.6)) if view != "full" and rng.random() < 0.10 else 1.0
    if zoom > 1:  # cut at the legs: the crown stays where it is
        origin = np.array([cols / 2 - unit * zoom * flat[NECK][0], origin[1] + (1 - zoom) * unit * low[1]])
        unit *= zoom
    feet = flat[[R_ANKLE, L_ANKLE]] * unit + origin + vec(0, 0.03 * unit)
    canvas = Canvas(backdrop(person, rows, cols, feet, unit))
    stage = Stage(person, skeleton, canvas, unit, origin)
    keypoints = (_keypoints(stage, _paint(stage)) + 0.5) / over - 0.5
    inside = (keypoints >= 0) & (keypoints <= [size.cols - 1, size.rows - 1])
    keypoints[~inside.all(axis=1)] = np.nan
    image, mask = canvas.finish(size.rows, size.cols)
    return Picture(image, keypoints, mask)
