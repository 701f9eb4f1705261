"""One person: what stays the same over the poses, and how a pose of it is painted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from saccade.data.standin import bodies, fabrics
from saccade.data.standin.bodies import CHIN, CROWN, NECK, PELVIS, Body, Skeleton, View, sample_skeleton, to_picture
from saccade.data.standin.garments import Outfit, sample_outfit
from saccade.data.standin.heads import (
    EAR_ANGLE,
    EAR_U,
    EYE_ANGLE,
    EYE_U,
    HAIR_TOP,
    NOSE_U,
    SKINS,
    Head,
    sample_head,
    shade,
)
from saccade.data.standin.painter import STEPS, Bytes, Canvas, Field, Tube, smooth, table
from saccade.geometry import Size

Floats = npt.NDArray[np.floating[Any]]

LEAST_ROWS = 384  # small pictures are painted at least this large, then reduced

TORSO_U = [0.0, 0.035, 0.08, 0.13, 0.32, 0.56, 0.76, 0.90, 1.0]
HEAD_U = [0.0, 0.03, 0.08, 0.18, 0.33, 0.52, 0.68, 0.82, 0.93, 1.0]
HEAD_A = [0.014, 0.024, 0.033, 0.043, 0.0495, 0.0505, 0.048, 0.041, 0.031, 0.020]
HEAD_B = [0.016, 0.030, 0.040, 0.052, 0.0600, 0.0600, 0.056, 0.050, 0.040, 0.024]
ARM_U = [0.0, 0.03, 0.07, 0.14, 0.30, 0.52, 0.62, 0.80, 1.0]
ARM_R = [0.016, 0.0205, 0.0245, 0.0275, 0.0255, 0.0220, 0.0230, 0.0185, 0.0150]
LEG_U = [0.0, 0.12, 0.30, 0.46, 0.52, 0.66, 0.78, 0.92, 1.0]
LEG_R = [0.050, 0.052, 0.0455, 0.0355, 0.0325, 0.0365, 0.0320, 0.0210, 0.0195]


@dataclass(frozen=True)
class Person:
    """What stays the same over a person's poses."""

    female: bool
    body: Body
    outfit: Outfit
    head: Head
    wall: tuple[fabrics.Colour, fabrics.Colour, fabrics.Colour]  # left to right of the wall's top, floor
    horizon: float


def sample_person(rng: np.random.Generator) -> Person:
    """Draw a person: proportions, outfit, face and hair, and the studio they stand in."""
    female = bool(rng.random() < 0.68)
    skin = fabrics.pick(rng, SKINS)
    outfit = sample_outfit(rng, female, skin)
    body = bodies.sample_body(rng, female, outfit.heel)
    head = sample_head(rng, female, skin)
    kind = rng.random()
    if kind < 0.62:
        grey = int(rng.integers(206, 246))
        tone: fabrics.Colour = (grey, grey, min(grey + int(rng.integers(0, 5)), 255))
    elif kind < 0.85:
        tone = fabrics.pick(rng, fabrics.PASTELS)
        tone = shade(tone, float(rng.uniform(0.88, 1.0)))
    else:
        tone = fabrics.pick(rng, ((176, 190, 197), (188, 170, 164), (158, 172, 150), (160, 160, 190), (205, 180, 150)))
    left, right = shade(tone, float(rng.uniform(0.97, 1.06))), shade(tone, float(rng.uniform(0.90, 1.0)))
    floor = shade(tone, float(rng.uniform(0.86, 1.02)))
    return Person(female, body, outfit, head, (left, right, floor), float(rng.uniform(0.80, 0.90)))


def allowed_stances(person: Person) -> tuple[str, ...]:
    """The stances that the person's clothes allow."""
    end = person.outfit.torso_end
    if end > 1.7:
        return ("straight", "contrapposto", "walk")
    return bodies.LEG_KINDS if end <= 1.0 else tuple(k for k in bodies.LEG_KINDS if k != "lifted")


def backdrop(person: Person, rows: int, cols: int, feet: Floats, unit: float) -> Floats:
    """A studio: a wall in a soft gradient, a floor that it runs into, and the shade under the feet (n, 2)."""
    left, right, floor = (np.asarray(c, np.float32) for c in person.wall)
    down, over = rows // 4, cols // 4  # all of it is soft, so a quarter of the size will do
    x = np.linspace(0, 1, over, dtype=np.float32)[None, :, None]
    y = np.linspace(0, 1, down, dtype=np.float32)[:, None, None]
    picture = (left + (right - left) * x) * (1.02 - 0.05 * y)
    ground = np.clip((y - np.float32(person.horizon)) * 14, 0, 1)
    picture = picture + (floor * (1.0 - 0.10 * (1 - y)) - picture) * ground
    shade_ = np.zeros((down, over), np.float32)
    for fx, fy in feet / 4:
        axes = (int(unit * 0.075 / 4), max(int(unit * 0.014 / 4), 1))
        cv2.ellipse(shade_, (int(fx), int(fy)), axes, 0, 0, 360, 1.0, -1)
    size = int(unit * 0.012) | 1
    soft = cv2.blur(cv2.blur(shade_, (size, size)), (size, size))
    picture = np.clip(picture * (1 - 0.34 * soft[..., None]), 0, 255)
    result: Floats = cv2.resize(picture, (cols, rows), interpolation=cv2.INTER_LINEAR)
    return result


def _ellipse(a: Floats, b: Floats, yaw: Floats | float) -> tuple[Floats, Floats]:
    """Half width and texture phase of an elliptic tube (a across, b deep) seen turned by yaw."""
    x, y = a * np.cos(yaw), b * np.sin(yaw)
    return np.hypot(x, y), np.arctan2(y, x)


class Painter:
    """Paints one person in one pose."""

    def __init__(self, person: Person, skeleton: Skeleton, canvas: Canvas, unit: float, origin: Floats) -> None:
        self.person, self.skeleton, self.canvas, self.unit, self.origin = person, skeleton, canvas, unit, origin
        self.joints = self.place(skeleton.points)
        self.depth = skeleton.points[:, 2]
        self.near_torso: list[Field] = []

    def place(self, points: Floats) -> Floats:
        """World points (..., 3) to canvas pixels (..., 2)."""
        return to_picture(points) * self.unit + self.origin

    def axis(self, roll: float, yaw: float) -> Floats:
        """The direction across a section, to the right of the picture, that a roll leaves when seen turned by yaw."""
        seen = roll * np.cos(yaw)
        return np.array([np.cos(seen), -np.sin(seen)])

    # -- torso and skirt ------------------------------------------------------------------------------------------

    def torso(self) -> Field | None:
        """The trunk with everything worn on it, down to the skirt's hem."""
        p, s, body, outfit = self.person, self.skeleton, self.person.body, self.person.outfit
        up = s.points[NECK] - s.points[PELVIS]
        up = up / np.linalg.norm(up)
        top, bottom = s.points[NECK] + 0.03 * up, s.points[PELVIS] - np.array([0, 0.045, 0])
        centres = [self.place(top), self.joints[NECK], self.joints[PELVIS], self.place(bottom)]
        axes = [self.axis(s.roll_shoulders, s.yaw_shoulders)] * 2 + [self.axis(s.roll_hips, s.yaw_hips)] * 2
        marks = [0.0, 0.08, 0.88, 1.0]
        end = outfit.torso_end
        g, wide = body.girth, body.shoulder
        a = np.array(
            [0.030, 0.044, 0.074, wide + 0.004, wide + 0.002, 0.076 if p.female else 0.092, 0.094, 0.104, 0.094]
        )
        a[4:] *= np.array([1, g, g, g, g])
        deep = [0.030, 0.040, 0.052, 0.064, 0.080 if p.female else 0.077, 0.062, 0.072, 0.080, 0.070]
        b = np.array(deep) * g
        a[3:], b[3:] = a[3:] + outfit.torso_ease, b[3:] + outfit.torso_ease
        forward = [0.0, 0.0, 0.0, 0.004, 0.012 if p.female else 0.006, 0.0, -0.004, -0.010, -0.004]
        dense = np.linspace(0, end, STEPS)
        yaw = np.interp(dense, [0.08, 0.88], [s.yaw_shoulders, s.yaw_hips])
        if end > 1:
            hem_centre, hem_a, hem_b = self._hem(end)
            centres.append(hem_centre)
            axes.append(self.axis(0.4 * s.roll_hips, s.yaw_hips))
            marks.append(end)
            u = [*TORSO_U[:-1], end]
            a, b = np.append(a[:-1], max(hem_a, a[-2])), np.append(b[:-1], max(hem_b, b[-2]))
            forward[-1] = 0.0
        else:
            u = TORSO_U
        half, phase = _ellipse(table(u, a, 0, end), table(u, b, 0, end), yaw)
        shift = np.sin(yaw) * table(u, forward, 0, end) * self.unit
        bulge = (0.020 if end > 1 else 0.035) * self.unit
        tube = Tube(np.array(centres), np.array(axes), np.array(marks), half * self.unit, shift, phase, bulge)
        field = self.canvas.tube(tube)
        self.canvas.paint(field, outfit.torso, 0.0, end)
        return field

    def _hem(self, end: float) -> tuple[Floats, float, float]:
        """The skirt's hem: its middle on the canvas, and its half axes in body heights, wide enough for both legs."""
        s = self.skeleton
        length = (end - 0.88) * 0.375
        spots = []
        for hip, knee, ankle in ((8, 9, 10), (11, 12, 13)):
            thigh = self.person.body.thigh
            if length < thigh:
                part = length / thigh
                spots.append(s.points[hip] + part * (s.points[knee] - s.points[hip]))
            else:
                part = min((length - thigh) / self.person.body.shin, 1.0)
                spots.append(s.points[knee] + part * (s.points[ankle] - s.points[knee]))
        middle = 0.5 * (spots[0] + spots[1])
        middle[1] = min(middle[1], s.points[PELVIS][1] - 0.85 * length)
        apart = spots[1] - spots[0]
        yaw = s.yaw_hips
        across = abs(apart[0] * np.cos(yaw) - apart[2] * np.sin(yaw)) / 2
        deep = abs(apart[0] * np.sin(yaw) + apart[2] * np.cos(yaw)) / 2
        room = 0.045 + self.person.outfit.flare
        return self.place(middle), across + room, deep + room

    # -- limbs ----------------------------------------------------------------------------------------------------

    def leg(self, side: int) -> None:
        """One leg with its shoe; side 0 is the right leg, 1 the left."""
        hip, knee, ankle, toe = (8, 9, 10, 23) if side == 0 else (11, 12, 13, 24)
        outfit, body = self.person.outfit, self.person.body
        grid = np.linspace(0, 1, STEPS)
        radius = table(LEG_U, LEG_R) * body.girth * (1.0 if self.person.female else 0.98)
        radius = radius + smooth(np.interp(grid, outfit.leg_ease[:, 0], outfit.leg_ease[:, 1]), 1)
        marks = np.array([0.0, body.thigh, body.thigh + body.shin]) / (body.thigh + body.shin)
        field = self.canvas.limb(self.joints[[hip, knee, ankle]], marks, radius * self.unit, self.skeleton.yaw_hips)
        self.canvas.shadow(field, 0.30, 0.012 * self.unit)
        self._shoe(ankle, toe)
        self.canvas.paint(field, outfit.leg)

    def _shoe(self, ankle: int, toe: int) -> None:
        outfit, unit = self.person.outfit, self.unit
        start, tip = self.joints[ankle], self.joints[toe]
        down = np.array([0.0, (0.020 + outfit.heel) * unit])
        texture = np.empty((24, 16, 3), np.uint8)
        texture[:] = outfit.shoe
        sole = np.empty((24, 16, 3), np.uint8)
        sole[:] = outfit.sole
        size = table([0, 0.35, 0.8, 1], [0.023, 0.022, 0.021, 0.016]) * unit
        if outfit.heel > 0:
            spike = np.array([start + [0, 0.01 * unit], start + down + [0, 0.012 * unit]])
            thin = table([0, 1], [0.010, 0.005]) * unit
            self.canvas.paint(self.canvas.limb(spike, np.array([0.0, 1.0]), thin, 0.0), sole)
            heel = start + np.array([0.0, 0.012 * unit])
        else:
            heel = start + down * 0.7
            under = np.array([heel + [0, 0.007 * unit], tip + [0, 0.005 * unit]])
            self.canvas.paint(self.canvas.limb(under, np.array([0.0, 1.0]), size, 0.0), sole)
        path = np.array([start, heel, tip])
        self.canvas.paint(self.canvas.limb(path, np.array([0.0, 0.3, 1.0]), size, 0.0), texture)

    def arm(self, side: int) -> None:
        """One arm with its hand; side 0 is the right arm, 1 the left."""
        shoulder, elbow, wrist, hand = (2, 3, 4, 21) if side == 0 else (5, 6, 7, 22)
        outfit, body = self.person.outfit, self.person.body
        grid = np.linspace(0, 1, STEPS)
        radius = table(ARM_U, ARM_R) * body.girth * (0.90 if self.person.female else 1.08)
        radius = radius + smooth(np.interp(grid, outfit.arm_ease[:, 0], outfit.arm_ease[:, 1]), 1)
        marks = np.array([0.0, body.upper_arm, body.upper_arm + body.forearm]) / (body.upper_arm + body.forearm)
        skin = np.empty((24, 16, 3), np.uint8)
        skin[:] = self.person.head.skin
        palm = (
            table([0, 0.3, 0.6, 1], [0.014, 0.0185, 0.016, 0.009]) * self.unit * (0.92 if self.person.female else 1.1)
        )
        start, tip = self.joints[wrist], self.joints[hand]
        field = self.canvas.limb(
            self.joints[[shoulder, elbow, wrist]], marks, radius * self.unit, self.skeleton.yaw_shoulders
        )
        self.canvas.shadow(field, 0.34, 0.014 * self.unit)
        self.canvas.paint(self.canvas.limb(np.array([start, tip]), np.array([0.0, 1.0]), palm, 0.0), skin)
        along = tip - start
        inward = (
            np.array([-along[1], along[0]])
            * (1 if side == 0 else -1)
            * (1 if np.cos(self.skeleton.yaw_hips) > 0 else -1)
        )
        thumb = np.array([start + 0.15 * along, start + 0.58 * along - 0.30 * inward])
        thin = table([0, 1], [0.009, 0.006]) * self.unit
        self.canvas.paint(self.canvas.limb(thumb, np.array([0.0, 1.0]), thin, 0.0), skin)
        self.canvas.paint(field, outfit.arm)

    # -- head -----------------------------------------------------------------------------------------------------

    def head_spot(self, u: float, angle: float) -> tuple[Floats, float]:
        """Where a point on the head's surface lies on the canvas, and how much it faces the camera (1 fully)."""
        s = self.skeleton
        a, b = np.interp(u, HEAD_U, HEAD_A), np.interp(u, HEAD_U, HEAD_B)
        half, phase = _ellipse(a, b, s.yaw_head)
        centre = self.joints[CROWN] + u * (self.joints[CHIN] - self.joints[CROWN])
        seen = angle + float(phase)
        return centre + self.axis(s.roll_head, s.yaw_head) * float(half) * np.sin(seen) * self.unit, float(np.cos(seen))

    def neck(self) -> None:
        """The neck, or the roll of a turtleneck."""
        colour = self.person.outfit.neck or shade(self.person.head.skin, 0.90)
        cloth = np.empty((24, 16, 3), np.uint8)
        cloth[:] = colour
        size = (
            (0.0245 if self.person.female else 0.030)
            * self.person.body.girth
            * (1.2 if self.person.outfit.neck else 1.0)
        )
        top = self.joints[CHIN] + 0.18 * (self.joints[CROWN] - self.joints[CHIN])
        top = top - [np.sin(self.skeleton.yaw_head) * 0.012 * self.unit, 0]
        path = np.array([top, self.joints[NECK]])
        self.canvas.paint(
            self.canvas.limb(path, np.array([0.0, 1.0]), table([0, 1], [size, size * 1.25]) * self.unit, 0.0), cloth
        )

    def face(self) -> None:
        """Skull, face and ears, without the hair."""
        s, head = self.skeleton, self.person.head
        axis = self.axis(s.roll_head, s.yaw_head)
        half, phase = _ellipse(table(HEAD_U, HEAD_A), table(HEAD_U, HEAD_B), s.yaw_head)
        centres = np.stack([self.joints[CROWN], self.joints[CHIN]])
        skin = np.empty((24, 16, 3), np.uint8)
        skin[:] = shade(head.skin, 0.94)
        size = table([0, 1], [0.011, 0.008]) * self.unit
        if head.ears:
            for side in (-1, 1):
                spot, facing = self.head_spot(EAR_U, side * EAR_ANGLE)
                if -0.5 < facing < 0.35:
                    self.canvas.paint(
                        self.canvas.limb(np.array([spot - [0, 2.0], spot + [0, 4.0]]), np.array([0.0, 1.0]), size, 0.0),
                        skin,
                    )
        shift = np.sin(s.yaw_head) * table([0, 0.5, 0.8, 1], [-0.006, 0.0, 0.006, 0.012]) * self.unit
        tube = Tube(
            centres, np.stack([axis, axis]), np.array([0.0, 1.0]), half * self.unit, shift, phase, 0.006 * self.unit
        )
        field = self.canvas.tube(tube)
        self.canvas.shadow(field, 0.25, 0.012 * self.unit)
        self.canvas.paint(field, head.face, shade=0.30)
        if np.cos(s.yaw_head) > -0.2 and abs(np.sin(s.yaw_head)) > 0.3:  # a nose stands out in profile
            spot, _ = self.head_spot(NOSE_U - 0.02, 0.0)
            bridge, _ = self.head_spot(EYE_U + 0.02, 0.0)
            out = np.array([np.sin(s.yaw_head) * 0.007 * self.unit, 0])
            skin[:] = head.skin
            self.canvas.paint(
                self.canvas.limb(np.array([bridge, spot + out]), np.array([0.0, 1.0]), size * 0.62, 0.0),
                skin,
                shade=0.2,
            )
        if head.ears:
            skin[:] = shade(head.skin, 0.9)
            for side in (-1, 1):
                spot, facing = self.head_spot(EAR_U, side * EAR_ANGLE)
                if facing >= 0.35:
                    self.canvas.paint(
                        self.canvas.limb(np.array([spot - [0, 3.0], spot + [0, 4.0]]), np.array([0.0, 1.0]), size, 0.0),
                        skin,
                    )

    def hair_field(self) -> Field | None:
        """The hair's outline."""
        s, head = self.skeleton, self.person.head
        axis = self.axis(s.roll_head, s.yaw_head)
        chin, crown = self.joints[CHIN], self.joints[CROWN]
        step = chin - crown
        end = head.hair_end
        marks = np.array([HAIR_TOP, 0.9, end]) if end > 0.95 else np.array([HAIR_TOP, end])
        centres = [crown + HAIR_TOP * step, crown + min(end, 0.9) * step]
        axes = [axis, axis]
        if end > 0.95:  # below the jaw it hangs straight down
            centres.append(centres[-1] + (end - 0.9) * np.array([0.25 * step[0], np.linalg.norm(step)]))
            axes.append(np.array([1.0, 0.0]))
        u = [HAIR_TOP, HAIR_TOP + 0.03, -0.02, 0.05, 0.15, 0.33, 0.52, 0.70, 0.85, 1.0, 1.5, 2.3]
        a = np.array([0.006, 0.016, 0.027, 0.036, 0.0435, 0.0495, 0.0505, 0.049, 0.048, 0.049, 0.056, 0.050])
        b = np.array([0.006, 0.018, 0.031, 0.043, 0.0530, 0.0600, 0.0605, 0.058, 0.052, 0.046, 0.044, 0.040])
        grow = head.volume * np.clip((np.array(u) - HAIR_TOP) * 6, 0.3, 1)
        half, phase = _ellipse(table(u, a + grow, HAIR_TOP, end), table(u, b + grow, HAIR_TOP, end), s.yaw_head)
        if head.style == "long":
            half = half * table([HAIR_TOP, end - 0.35, end], [1, 1, 0.72], HAIR_TOP, end)
        back = table([HAIR_TOP, 0.5, 0.9, 1.4, 2.3], [-0.002, -0.004, -0.012, -0.030, -0.034], HAIR_TOP, end)
        shift = np.sin(s.yaw_head) * back * self.unit
        tube = Tube(np.stack(centres), np.stack(axes), marks, half * self.unit, shift, phase, 0.012 * self.unit)
        return self.canvas.tube(tube)

    def hair_behind(self) -> None:
        """The far half of hanging hair, and what is tied at the back when that is the far side."""
        head = self.person.head
        if np.cos(self.skeleton.yaw_head) > -0.3:
            self._tied()
            if head.style in ("long", "bob", "afro"):
                dark = np.empty((24, 16, 3), np.uint8)
                dark[:] = shade(head.colour, 0.72)
                self.canvas.paint(self.hair_field(), dark, HAIR_TOP, head.hair_end)

    def hair_over(self) -> None:
        """The near half of the hair."""
        head = self.person.head
        if head.hair is not None:
            self.canvas.paint(self.hair_field(), head.hair, HAIR_TOP, head.hair_end, shade=0.5)
        if np.cos(self.skeleton.yaw_head) <= -0.3:
            self._tied()

    def _tied(self) -> None:
        head, unit, s = self.person.head, self.unit, self.skeleton
        if head.style not in ("pony", "bun"):
            return
        cloth = np.empty((24, 16, 3), np.uint8)
        cloth[:] = shade(head.colour, 0.95)
        cloth[2:8:3] = shade(head.colour, 1.25)
        back = np.array([-np.sin(s.yaw_head), 0.0])
        if head.style == "bun":
            spot = self.joints[CROWN] + np.array([0, -0.004]) * unit + back * 0.018 * unit
            size = table([0, 1], [0.026, 0.026]) * unit
            path = np.array([spot - [0, 2.0], spot + [0, 2.0]])
        else:
            spot = self.head_spot(0.22, np.pi)[0]
            path = np.array([spot, spot + (back * 0.055 + [0, 0.06]) * unit, spot + (back * 0.05 + [0, 0.20]) * unit])
            size = table([0, 0.15, 0.5, 1], [0.014, 0.022, 0.026, 0.010]) * unit
        marks = np.linspace(0, 1, len(path))
        self.canvas.paint(self.canvas.limb(path, marks, size, 0.0), cloth)

    # -- all ------------------------------------------------------------------------------------------------------

    def paint(self) -> Floats:
        """Paint everything from far to near; the mask (canvas) of what covers the arms."""
        arms = {side: 0.5 * (self.depth[e] + self.depth[w]) - 0.5 * (self.depth[NECK] + self.depth[PELVIS])
                for side, (e, w) in enumerate(((3, 4), (6, 7)))}  # fmt: skip
        legs = sorted((0, 1), key=lambda side: self.depth[9 + 3 * side] + self.depth[10 + 3 * side])
        self.hair_behind()
        for side in sorted(arms, key=lambda k: arms[k]):
            if arms[side] < -0.03:
                self.arm(side)
        for side in legs:
            self.leg(side)
        self.neck()
        torso = self.torso()
        self.face()
        self.hair_over()
        for side in sorted(arms, key=lambda k: arms[k]):
            if arms[side] >= -0.03:
                self.arm(side)
        hidden: Floats = np.zeros((self.canvas.rows, self.canvas.cols), np.float32)
        if torso is not None:
            hidden[torso.window] = torso.cover
        self.far_arms = {side for side in arms if arms[side] < -0.03}
        return hidden

    def keypoints(self, hidden: Floats) -> Floats:
        """The eighteen points on the canvas, (18, 2), nan where they cannot be seen."""
        found: Floats = np.full((18, 2), np.nan)
        found[1:14] = self.joints[1:14]
        for index, u, angle in ((0, NOSE_U, 0.0), (14, EYE_U, EYE_ANGLE), (15, EYE_U, -EYE_ANGLE)):
            spot, facing = self.head_spot(u, angle)
            if facing > 0.12:
                found[index] = spot
        for index, angle in ((16, EAR_ANGLE), (17, -EAR_ANGLE)):
            spot, facing = self.head_spot(EAR_U, angle)
            if facing > -0.25:
                found[index] = spot
        for side in self.far_arms:  # an arm behind the trunk shows no elbow or wrist
            for index in (3 + 3 * side, 4 + 3 * side):
                x, y = (int(round(float(value))) for value in found[index])
                if 0 <= y < hidden.shape[0] and 0 <= x < hidden.shape[1] and hidden[y, x] > 0.5:
                    found[index] = np.nan
        return found


@dataclass(frozen=True)
class Picture:
    """A painted pose."""

    image: Bytes  # (rows, cols, 3) RGB
    keypoints: Floats  # (18, 2) x, y in pixels, pixel centres at integers; nan where unseen or outside
    mask: Floats  # (rows, cols) share of the pixel that the figure covers


def draw(person: Person, rng: np.random.Generator, view: View, size: Size) -> Picture:
    """Pose a person at random, frame them and paint them, at twice the size or more, then reduced.

    Args:
        person: who.
        rng: its state decides pose and framing.
        view: where the camera stands. "full" always shows the whole figure; one in ten of the others is cut at the legs.
        size: rows and columns of the picture.
    """
    skeleton = sample_skeleton(rng, person.body, view, allowed_stances(person))
    over = max(2, -(-LEAST_ROWS // size.rows))
    rows, cols = size.rows * over, size.cols * over
    flat = to_picture(skeleton.points)
    low, high = flat.min(axis=0) - [0.035, 0.012], flat.max(axis=0) + [0.035, 0.016]
    unit = min(rng.uniform(0.90, 0.965) * rows / (high[1] - low[1]), 0.985 * cols / (high[0] - low[0]))
    free = 0.5 * (np.array([cols, rows]) - unit * (high - low))
    middle = np.array([cols, rows]) / 2 + rng.uniform(-0.7, 0.7, 2) * np.maximum(free, 0)
    zoom = float(rng.uniform(1.15, 1.6)) if view != "full" and rng.random() < 0.10 else 1.0
    origin = middle - unit * (low + high) / 2
    if zoom > 1:  # cut at the legs: keep the crown where it is
        unit *= zoom
        origin = np.array([cols / 2 - unit * flat[NECK][0], origin[1] + (unit / zoom - unit) * low[1]])
    feet = flat[[10, 13]] * unit + origin + [0, 0.03 * unit]
    canvas = Canvas(backdrop(person, rows, cols, feet, unit))
    painter = Painter(person, skeleton, canvas, unit, origin)
    keypoints = (painter.keypoints(painter.paint()) + 0.5) / over - 0.5
    inside = (keypoints >= 0) & (keypoints <= [size.cols - 1, size.rows - 1])
    keypoints[~inside.all(axis=1)] = np.nan
    image, mask = canvas.finish(size.rows, size.cols)
    return Picture(image, keypoints, mask)
