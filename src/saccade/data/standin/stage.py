"""What every painter of a body part needs: the person, the pose, the canvas, and the way from one to the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saccade.data.standin.bodies import Body, Skeleton, to_picture
from saccade.data.standin.garments import Outfit
from saccade.data.standin.heads import Head
from saccade.data.standin.painter import Canvas, Colour, Floats


@dataclass(frozen=True)
class Person:
    """What stays the same over a person's poses."""

    body: Body
    outfit: Outfit
    head: Head
    wall: tuple[Colour, Colour, Colour]  # its left, its right, the floor
    horizon: float  # where the wall runs into the floor, share of the picture's rows

    @property
    def female(self) -> bool:
        return self.body.female


@dataclass(frozen=True)
class Stage:
    """One person in one pose before one canvas; a body height is `unit` of its pixels, the pelvis lies at `origin`."""

    person: Person
    skeleton: Skeleton
    canvas: Canvas
    unit: float
    origin: Floats

    def place(self, points: Floats) -> Floats:
        """World points (..., 3) to canvas pixels (..., 2)."""
        return to_picture(points) * self.unit + self.origin

    def joint(self, *indices: int) -> Floats:
        """Joints on the canvas, (n, 2); for one index (2,)."""
        points = self.place(self.skeleton.points[list(indices)])
        return points[0] if len(indices) == 1 else points

    def axis(self, roll: float, yaw: float) -> Floats:
        """The direction across a section, to the right of the picture, that a roll leaves when seen turned by yaw."""
        seen = roll * np.cos(yaw)
        return np.array([np.cos(seen), -np.sin(seen)])


def ellipse(across: Floats, deep: Floats, yaw: Floats | float) -> tuple[Floats, Floats]:
    """Half width and texture phase of an elliptic tube seen turned by yaw."""
    x, y = across * np.cos(yaw), deep * np.sin(yaw)
    return np.hypot(x, y), np.arctan2(y, x)
