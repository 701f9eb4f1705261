"""Neck, face, ears and hair of a staged person, and where the points of the face lie."""

from __future__ import annotations

import numpy as np

from saccade.data.standin.bodies import CHIN, CROWN, NECK, vec
from saccade.data.standin.heads import EAR_ANGLE, EAR_U, EYE_U, HAIR_TOP, NOSE_U, shade
from saccade.data.standin.limbs import WHOLE
from saccade.data.standin.painter import Field, Floats, Tube, table
from saccade.data.standin.stage import Stage, ellipse

HEAD_U = (0.0, 0.03, 0.08, 0.18, 0.33, 0.52, 0.68, 0.82, 0.93, 1.0)
HEAD_ACROSS = (0.014, 0.024, 0.033, 0.043, 0.0495, 0.0505, 0.048, 0.041, 0.031, 0.020)
HEAD_DEEP = (0.016, 0.030, 0.040, 0.052, 0.0600, 0.0600, 0.056, 0.050, 0.040, 0.024)
HAIR_U = (HAIR_TOP, HAIR_TOP + 0.03, -0.02, 0.05, 0.15, 0.33, 0.52, 0.70, 0.85, 1.0, 1.5, 2.3)
HAIR_ACROSS = (0.006, 0.016, 0.027, 0.036, 0.0435, 0.0495, 0.0505, 0.049, 0.048, 0.049, 0.056, 0.050)
HAIR_DEEP = (0.006, 0.018, 0.031, 0.043, 0.0530, 0.0600, 0.0605, 0.058, 0.052, 0.046, 0.044, 0.040)
FAR_SIDE = -0.3  # below this cosine of the head's yaw, the back of the head is the near side


def face_spot(stage: Stage, u: float, angle: float) -> tuple[Floats, float]:
    """Where a point on the head's surface lies on the canvas, and how much it faces the camera (1 fully)."""
    s = stage.skeleton
    across, deep = np.interp(u, HEAD_U, HEAD_ACROSS), np.interp(u, HEAD_U, HEAD_DEEP)
    half, phase = ellipse(np.asarray(across), np.asarray(deep), s.yaw_head)
    crown, chin = stage.joint(CROWN, CHIN)
    seen = angle + float(phase)
    offset = stage.axis(s.roll_head, s.yaw_head) * float(half) * np.sin(seen) * stage.unit
    return crown + u * (chin - crown) + offset, float(np.cos(seen))


def paint_neck(stage: Stage) -> None:
    """The neck, or the roll of a turtleneck."""
    person = stage.person
    roll = person.outfit.neck
    size = (0.0235 if person.female else 0.029) * person.body.girth * (1.2 if roll else 1.0)
    crown, chin, neck = stage.joint(CROWN, CHIN, NECK)
    top = chin + 0.18 * (crown - chin) - vec(np.sin(stage.skeleton.yaw_head) * 0.012 * stage.unit, 0)
    radius = table((0, 1), (size, size * 1.3)) * stage.unit
    field = stage.canvas.limb(np.array([top, neck + vec(0, 0.01 * stage.unit)]), WHOLE, radius, 0.0)
    stage.canvas.paint(field, roll or shade(person.head.skin, 0.90))


def _ears(stage: Stage, front: bool) -> None:
    """The ears that the face hides in part (front) or that lie on it."""
    if not stage.person.head.ears:
        return
    size = table((0, 1), (0.011, 0.008)) * stage.unit
    for side in (-1, 1):
        spot, facing = face_spot(stage, EAR_U, side * EAR_ANGLE)
        if (-0.5 < facing < 0.35) if front else facing >= 0.35:
            path = np.array([spot - vec(0, 0.006 * stage.unit), spot + vec(0, 0.009 * stage.unit)])
            stage.canvas.paint(stage.canvas.limb(path, WHOLE, size, 0.0), shade(stage.person.head.skin, 0.92))


def paint_face(stage: Stage) -> None:
    """Skull, face and ears, without the hair."""
    s, head, canvas = stage.skeleton, stage.person.head, stage.canvas
    axis = stage.axis(s.roll_head, s.yaw_head)
    half, phase = ellipse(table(HEAD_U, HEAD_ACROSS), table(HEAD_U, HEAD_DEEP), s.yaw_head)
    _ears(stage, front=True)
    shift = np.sin(s.yaw_head) * table((0, 0.5, 0.8, 1), (-0.006, 0.0, 0.006, 0.012)) * stage.unit
    centres = stage.joint(CROWN, CHIN)
    tube = Tube(centres, np.stack([axis, axis]), WHOLE, half * stage.unit, shift, phase, sag=0.006 * stage.unit)
    field = canvas.tube(tube)
    canvas.shadow(field, 0.25, 0.012 * stage.unit)
    canvas.paint(field, head.face, shade=0.30)
    if np.cos(s.yaw_head) > -0.2 and abs(np.sin(s.yaw_head)) > 0.3:  # a nose stands out in profile
        spot, _ = face_spot(stage, NOSE_U - 0.02, 0.0)
        bridge, _ = face_spot(stage, EYE_U + 0.02, 0.0)
        path = np.array([bridge, spot + vec(np.sin(s.yaw_head) * 0.007 * stage.unit, 0)])
        size = table((0, 1), (0.0068, 0.0050)) * stage.unit
        canvas.paint(canvas.limb(path, WHOLE, size, 0.0), head.skin, shade=0.2)
    _ears(stage, front=False)


def lay_hair(stage: Stage) -> Field | None:
    """Where the hair lies; None when there is none."""
    s, head = stage.skeleton, stage.person.head
    if head.hair is None:
        return None
    axis = stage.axis(s.roll_head, s.yaw_head)
    crown, chin = stage.joint(CROWN, CHIN)
    step, end = chin - crown, head.hair_end
    hangs = end > 0.95
    marks = [HAIR_TOP, 0.9, end] if hangs else [HAIR_TOP, end]
    centres, axes = [crown + HAIR_TOP * step, crown + min(end, 0.9) * step], [axis, axis]
    if hangs:  # below the jaw it hangs nearly straight down
        centres.append(centres[-1] + (end - 0.9) * np.array([0.25 * step[0], np.linalg.norm(step)]))
        axes.append(np.array([1.0, 0.0]))
    grow = head.volume * np.clip((np.array(HAIR_U) - HAIR_TOP) * 6, 0.3, 1)
    across, deep = np.array(HAIR_ACROSS) + grow, np.array(HAIR_DEEP) + grow
    half, phase = ellipse(table(HAIR_U, across, HAIR_TOP, end), table(HAIR_U, deep, HAIR_TOP, end), s.yaw_head)
    if head.style == "long":
        half = half * table((HAIR_TOP, end - 0.35, end), (1, 1, 0.72), HAIR_TOP, end)
    elif head.style == "afro":
        half = half * table((HAIR_TOP, end - 0.32, end - 0.12, end), (1, 1, 0.88, 0.55), HAIR_TOP, end)
    back = table((HAIR_TOP, 0.5, 0.9, 1.4, 2.3), (-0.002, -0.004, -0.012, -0.030, -0.034), HAIR_TOP, end)
    shift = np.sin(s.yaw_head) * back * stage.unit
    shape = Tube(
        np.stack(centres), np.stack(axes), np.array(marks), half * stage.unit, shift, phase, sag=0.012 * stage.unit
    )
    return stage.canvas.tube(shape)


def paint_hair_behind(stage: Stage, field: Field | None) -> None:
    """The far half of the hair, and what is tied at the back when that is the far side."""
    head = stage.person.head
    if np.cos(stage.skeleton.yaw_head) > FAR_SIDE:
        _tied(stage)
    if head.hair is not None:
        stage.canvas.paint(field, head.hair, HAIR_TOP, head.hair_end, far=True)


def paint_hair_over(stage: Stage, field: Field | None) -> None:
    """The near half of the hair."""
    head = stage.person.head
    if head.hair is not None:
        stage.canvas.paint(field, head.hair, HAIR_TOP, head.hair_end, shade=0.5)
    if np.cos(stage.skeleton.yaw_head) <= FAR_SIDE:
        _tied(stage)


def _tied(stage: Stage) -> None:
    """A pony tail or a bun."""
    head, unit, yaw = stage.person.head, stage.unit, stage.skeleton.yaw_head
    back = vec(-np.sin(yaw), 0)
    if head.style == "bun":
        spot: Floats = stage.joint(CROWN) + (vec(0, -0.004) + back * 0.018) * unit
        path: Floats = np.array([spot - vec(0, 2), spot + vec(0, 2)])
        size: Floats = table((0, 1), (0.026, 0.026)) * unit
    elif head.style == "pony":
        spot = face_spot(stage, 0.22, np.pi)[0]
        path = np.array([spot, spot + (back * 0.055 + vec(0, 0.06)) * unit, spot + (back * 0.05 + vec(0, 0.20)) * unit])
        size = table((0, 0.15, 0.5, 1), (0.014, 0.022, 0.026, 0.010)) * unit
    else:
        return
    stage.canvas.paint(stage.canvas.limb(path, np.linspace(0, 1, len(path)), size, 0.0), head.tail)
