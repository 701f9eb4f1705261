"""Articulated bodies: proportions, poses within joint limits, and their projection onto the picture.

Lengths are in body heights. Body axes: X to the person's left, Y up, Z forward. World axes: x to the right of the
picture, y up, z towards the camera; a yaw of 0 faces the camera, 90 degrees looks to the right of the picture.
Joints follow the OpenPose-18 order; the numbers of proportions and angles are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from saccade.data.standin.painter import Floats

View = Literal["front", "side", "back", "full"]

NOSE, NECK = 0, 1
R_SHOULDER, R_ELBOW, R_WRIST, L_SHOULDER, L_ELBOW, L_WRIST = 2, 3, 4, 5, 6, 7
R_HIP, R_KNEE, R_ANKLE, L_HIP, L_KNEE, L_ANKLE = 8, 9, 10, 11, 12, 13
L_EYE, R_EYE, L_EAR, R_EAR = 14, 15, 16, 17
# Beyond the eighteen: what the painter needs besides.
PELVIS, CHIN, CROWN, R_HAND, L_HAND, R_TOE, L_TOE, JOINTS = 18, 19, 20, 21, 22, 23, 24, 25

CAMERA_TILT = 0.10  # the camera looks slightly down: what is nearer lies lower in the picture


def vec(*values: float) -> Floats:
    """A vector."""
    return np.array(values, dtype=float)


@dataclass(frozen=True)
class Body:
    """Proportions of one person, in body heights."""

    female: bool
    shoulder: float
    hip: float
    torso: float
    thigh: float
    shin: float
    upper_arm: float
    forearm: float
    hand: float
    head: float
    neck: float
    girth: float  # factor on all radii
    foot: float
    heel: float  # how far the shoe lifts the ankle


@dataclass(frozen=True)
class Skeleton:
    """A posed body in world axes; angles in radians."""

    points: Floats  # (JOINTS, 3)
    yaw_hips: float
    yaw_shoulders: float
    yaw_head: float
    roll_hips: float
    roll_shoulders: float
    roll_head: float
    nod: float


def sample_body(rng: np.random.Generator, female: bool, heel: float) -> Body:
    """Draw one person's proportions."""

    def around(value: float, spread: float = 0.04) -> float:
        return float(value * np.clip(1 + spread * rng.standard_normal(), 1 - 2 * spread, 1 + 2 * spread))

    return Body(
        female=female,
        shoulder=around(0.091 if female else 0.108),
        hip=around(0.058 if female else 0.055),
        torso=around(0.288 if female else 0.302, 0.02),
        thigh=around(0.246, 0.02),
        shin=around(0.240, 0.02),
        upper_arm=around(0.158, 0.03),
        forearm=around(0.138, 0.03),
        hand=around(0.072, 0.03),
        head=around(0.142 if female else 0.138, 0.02),
        neck=around(0.042, 0.08),
        girth=around(1.0 if female else 1.08, 0.06),
        foot=around(0.105 if female else 0.118, 0.03),
        heel=heel,
    )


def bend(root: Floats, target: Floats, upper: float, lower: float, pole: Floats) -> tuple[Floats, Floats]:
    """Two-bone inverse kinematics: the middle joint and the reached end, the middle joint lying towards `pole`."""
    reach = target - root
    distance = float(np.linalg.norm(reach))
    direction = reach / max(distance, 1e-6)
    distance = min(max(distance, abs(upper - lower) + 0.25 * lower), 0.995 * (upper + lower))
    along = (upper**2 - lower**2 + distance**2) / (2 * distance)
    height = np.sqrt(max(upper**2 - along**2, 0.0))
    side = pole - direction * float(pole @ direction)
    side = side / max(float(np.linalg.norm(side)), 1e-6)
    return root + direction * along + side * height, root + direction * distance


def _turn(points: Floats, yaw: float) -> Floats:
    """Rotate about the vertical axis, (..., 3)."""
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    return np.stack([x * np.cos(yaw) + z * np.sin(yaw), y, -x * np.sin(yaw) + z * np.cos(yaw)], axis=-1)


def _yaw(rng: np.random.Generator, view: View) -> float:
    if view == "side":
        degrees = float(rng.choice([-1.0, 1.0]) * rng.uniform(42, 80))
    elif view == "back":
        degrees = 180 + float(np.clip(rng.normal(0, 16), -32, 32))
    else:
        spread = 12 if view == "front" else 20
        degrees = float(np.clip(rng.normal(0, spread), -35, 35))
    return float(np.radians(degrees))


ARM_KINDS = ("hang", "bent", "hip", "pocket", "head", "raised", "chest", "behind", "out", "crossed")
ARM_WEIGHTS = np.array([0.26, 0.17, 0.15, 0.08, 0.08, 0.06, 0.07, 0.04, 0.09, 0.0])
LEG_KINDS = ("straight", "apart", "contrapposto", "walk", "crossed", "lifted")
LEG_WEIGHTS = np.array([0.18, 0.18, 0.30, 0.18, 0.08, 0.08])


def _arm_target(
    rng: np.random.Generator, kind: str, side: float, body: Body, shoulder: Floats, hip: Floats, head: Floats
) -> tuple[Floats, Floats]:
    """Where the wrist goes and where the elbow points, in body axes; `side` is +1 for the left arm."""
    reach = body.upper_arm + body.forearm
    out = np.array([side, 0.0, 0.0])
    if kind in ("hang", "bent", "out"):
        low, high = {"hang": (4, 14), "bent": (8, 24), "out": (26, 56)}[kind]
        spread, swing = np.radians(rng.uniform(low, high)), np.radians(rng.normal(6, 11))
        part = rng.uniform(0.80, 0.92) if kind == "bent" else rng.uniform(0.94, 0.99)
        direction = np.array([side * np.sin(spread), -np.cos(spread) * np.cos(swing), np.cos(spread) * np.sin(swing)])
        return shoulder + part * reach * direction, vec(side * 0.7, 0, -1)
    jitter = rng.normal(0, 0.010, 3)
    if kind == "hip":
        return hip + jitter + np.array([side * 0.045, 0.065, 0.03]), out + vec(0, 0, -0.45)
    if kind == "pocket":
        return hip + jitter + np.array([side * 0.042, 0.005, 0.045]), out + vec(0, 0, -0.6)
    if kind == "head":
        return head + jitter + np.array([side * 0.060, 0.02, 0.0]), out + vec(0, rng.uniform(-0.3, 0.5), 0.1)
    if kind == "raised":
        lift = [side * rng.uniform(-0.02, 0.10), rng.uniform(0.17, 0.27), rng.uniform(-0.02, 0.08)]
        return shoulder + np.array(lift), out + vec(0, 0.2, -0.1)
    if kind == "crossed":
        return shoulder + jitter + np.array([-side * 1.55 * body.shoulder, -0.125, 0.105]), out + vec(0, -0.9, 0.1)
    if kind == "chest":
        across = rng.uniform(0.4, 1.2) * body.shoulder
        return shoulder + jitter + np.array([-side * across, rng.uniform(-0.16, -0.06), 0.12]), out + vec(0, -0.8, 0.0)
    return hip + jitter + np.array([-side * 0.03, 0.06, -0.095]), out + vec(0, 0, -0.8)  # behind the back


def _arms(rng: np.random.Generator, body: Body, points: Floats) -> None:
    kinds = list(rng.choice(ARM_KINDS, size=2, p=ARM_WEIGHTS / ARM_WEIGHTS.sum()))
    if rng.random() < 0.06:
        kinds = ["crossed", "crossed"]
    elif rng.random() < 0.30:
        kinds[1] = kinds[0]
    for kind, side, (shoulder, elbow, wrist, hand), hip in zip(
        kinds,
        (-1.0, 1.0),
        ((R_SHOULDER, R_ELBOW, R_WRIST, R_HAND), (L_SHOULDER, L_ELBOW, L_WRIST, L_HAND)),
        (R_HIP, L_HIP),
        strict=True,
    ):
        head = 0.45 * points[CHIN] + 0.55 * points[CROWN]
        target, pole = _arm_target(rng, str(kind), side, body, points[shoulder], points[hip], head)
        if kind == "crossed" and side > 0:
            target = target + np.array([0.0, -0.03, 0.02])
        points[elbow], points[wrist] = bend(points[shoulder], target, body.upper_arm, body.forearm, pole)
        along = points[wrist] - points[elbow]
        along = along / np.linalg.norm(along)
        curl = {"hip": (-side * 0.3, -0.9, 0.6), "pocket": (-side * 0.1, -1.2, 0.1), "head": (-side * 0.6, 0.5, -0.3)}
        along = along + np.array(curl.get(str(kind), (-side * 0.10, -0.15, 0.15)))
        points[hand] = points[wrist] + body.hand * along / np.linalg.norm(along)


def _ankles(rng: np.random.Generator, kind: str, body: Body) -> tuple[Floats, Floats, float]:
    """Both ankles relative to the floor point under the pelvis (support first), and how straight the support leg is."""
    hip = body.hip
    support = np.array([rng.uniform(0.5, 1.0) * hip, 0.0, rng.normal(0, 0.01)])
    other = np.array([rng.uniform(0.6, 1.2) * hip, 0.0, rng.normal(0, 0.015)])
    stretch = float(rng.uniform(0.985, 0.998))
    if kind == "apart":
        support[0], other[0] = rng.uniform(1.4, 2.3, 2) * hip
    elif kind == "contrapposto":
        support[0] = rng.uniform(0.0, 0.6) * hip
        other += np.array([rng.uniform(0.3, 1.3) * hip, 0.0, rng.uniform(0.03, 0.12)])
    elif kind == "walk":
        stride = rng.uniform(0.06, 0.15)
        support += np.array([-0.3 * hip, 0.0, stride])
        other += np.array([-0.4 * hip, rng.uniform(0.01, 0.05), -stride])
    elif kind == "crossed":
        support[0] = rng.uniform(0.1, 0.5) * hip
        other += np.array([-rng.uniform(0.9, 1.4) * hip, 0.0, rng.uniform(0.05, 0.10)])
    elif kind == "lifted":
        support[0] = rng.uniform(0.0, 0.4) * hip
        lift = rng.uniform(0.05, 0.20)
        other += np.array([rng.uniform(-0.2, 0.6) * hip, lift, rng.choice([-1.0, 0.6]) * lift])
    return support, other, stretch


def _legs(rng: np.random.Generator, body: Body, points: Floats, kinds: tuple[str, ...]) -> None:
    """Place knees, ankles and toes, in place; the floor is where the supporting leg reaches it."""
    chosen = np.array([LEG_WEIGHTS[LEG_KINDS.index(kind)] for kind in kinds])
    kind = str(rng.choice(kinds, p=chosen / chosen.sum()))
    side = float(rng.choice([-1.0, 1.0]))
    support, other, stretch = _ankles(rng, kind, body)
    hip = points[L_HIP if side > 0 else R_HIP]
    leg = stretch * (body.thigh + body.shin)
    floor = hip[1] - np.sqrt(max(leg**2 - (side * support[0] - hip[0]) ** 2 - support[2] ** 2, 0.04))
    rows = {-1.0: (R_HIP, R_KNEE, R_ANKLE, R_TOE), 1.0: (L_HIP, L_KNEE, L_ANKLE, L_TOE)}
    for which, target in ((side, support), (-side, other)):
        root, knee, ankle, toe = rows[which]
        goal = np.array([which * target[0], floor + target[1], target[2]])
        pole = np.array([which * 0.18, 0.0, 1.0])
        points[knee], points[ankle] = bend(points[root], goal, body.thigh, body.shin, pole)
        turn = np.radians(rng.uniform(4, 28)) * which
        drop = 0.036 + body.heel + 0.7 * max(points[ankle][1] - floor - 0.01, 0.0)
        points[toe] = points[ankle] + np.array([body.foot * np.sin(turn), -drop, body.foot * np.cos(turn)])


def sample_skeleton(
    rng: np.random.Generator, body: Body, view: View, leg_kinds: tuple[str, ...] = LEG_KINDS
) -> Skeleton:
    """Draw a natural pose seen from about the named view.

    Args:
        rng: its state decides the pose.
        body: the proportions.
        view: sets the yaw: front and full about 0, side 42-80 degrees either way, back about 180.
        leg_kinds: the stances allowed (long skirts forbid some).
    """
    points = np.zeros((JOINTS, 3))
    hip_roll = np.radians(np.clip(rng.normal(0, 4), -8, 8))
    points[L_HIP] = body.hip * np.array([np.cos(hip_roll), np.sin(hip_roll), 0.0])
    points[R_HIP] = -points[L_HIP]
    _legs(rng, body, points, leg_kinds)
    lean = np.radians(np.clip(rng.normal(0, 3), -8, 8)) + 0.25 * hip_roll
    bow = np.radians(np.clip(rng.normal(1, 3), -5, 9))
    points[NECK] = body.torso * np.array([-np.sin(lean), np.cos(lean) * np.cos(bow), np.sin(bow)])
    roll = -0.6 * hip_roll + np.radians(np.clip(rng.normal(0, 3), -7, 7))
    twist = np.radians(np.clip(rng.normal(0, 10), -20, 20))
    arm = _turn(body.shoulder * np.array([np.cos(roll), np.sin(roll), 0.0]), -twist)
    points[L_SHOULDER] = points[NECK] + arm - vec(0, 0.019, 0)
    points[R_SHOULDER] = points[NECK] - arm - vec(0, 0.019, 0)
    tilt = np.radians(np.clip(rng.normal(0, 6), -13, 13))
    nod = np.radians(np.clip(rng.normal(2, 5), -9, 13))
    up = np.array([-np.sin(tilt), np.cos(tilt) * np.cos(nod), np.sin(nod)])
    points[CHIN] = points[NECK] + body.neck * up + vec(0, 0, 0.006)
    points[CROWN] = points[CHIN] + body.head * up
    _arms(rng, body, points)
    yaw = _yaw(rng, view)
    look = np.radians(np.clip(rng.normal(0, 16), -38, 38))
    if view == "side":  # models mostly turn their face towards the camera
        look = look - np.sign(yaw) * np.radians(rng.uniform(0, 28))
    return Skeleton(
        points=_turn(points, yaw),
        yaw_hips=yaw,
        yaw_shoulders=yaw - float(twist),
        yaw_head=yaw + float(look),
        roll_hips=float(hip_roll),
        roll_shoulders=float(roll),
        roll_head=float(tilt),
        nod=float(nod),
    )


def to_picture(points: Floats) -> Floats:
    """World points (..., 3) to picture axes (..., 2): x right, y down, in body heights."""
    return np.stack([points[..., 0], -points[..., 1] + CAMERA_TILT * points[..., 2]], axis=-1)
