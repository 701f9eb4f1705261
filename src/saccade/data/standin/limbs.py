"""Trunk, skirt, legs, arms, hands and shoes of a staged person."""

from __future__ import annotations

import numpy as np

from saccade.data.standin.bodies import L_ANKLE, L_HIP, L_KNEE, NECK, PELVIS, R_ANKLE, R_HIP, R_KNEE, vec
from saccade.data.standin.garments import TORSO_LENGTH
from saccade.data.standin.painter import STEPS, Field, Floats, Tube, smooth, table
from saccade.data.standin.stage import Stage, ellipse

TORSO_U = (0.0, 0.035, 0.08, 0.13, 0.32, 0.56, 0.76, 0.90, 1.0)
SHOULDERS_U, HIPS_U = 0.08, 0.88
ARM_U = (0.0, 0.03, 0.07, 0.14, 0.30, 0.52, 0.62, 0.80, 1.0)
ARM_R = (0.016, 0.0205, 0.0245, 0.0275, 0.0255, 0.0220, 0.0230, 0.0185, 0.0150)
LEG_U = (0.0, 0.12, 0.30, 0.46, 0.52, 0.66, 0.78, 0.92, 1.0)
LEG_R = (0.050, 0.052, 0.0455, 0.0355, 0.0325, 0.0365, 0.0320, 0.0210, 0.0195)
WHOLE = np.array([0.0, 1.0])


def paint_torso(stage: Stage) -> Field | None:
    """The trunk with everything worn on it, down to the crotch or the skirt's hem; where it lies."""
    s, outfit = stage.skeleton, stage.person.outfit
    up = s.points[NECK] - s.points[PELVIS]
    up = up / np.linalg.norm(up)
    top, bottom = s.points[NECK] + 0.03 * up, s.points[PELVIS] - np.array([0, 0.045, 0])
    centres = [stage.place(top), stage.joint(NECK), stage.joint(PELVIS), stage.place(bottom)]
    axes = [stage.axis(s.roll_shoulders, s.yaw_shoulders)] * 2 + [stage.axis(s.roll_hips, s.yaw_hips)] * 2
    marks = [0.0, SHOULDERS_U, HIPS_U, 1.0]
    u, across, deep, forward = _trunk(stage)
    end = outfit.torso_end
    if end > 1:
        middle, hem_across, hem_deep = _hem(stage, end)
        centres.append(middle)
        axes.append(stage.axis(0.4 * s.roll_hips, s.yaw_hips))
        marks.append(end)
        u[-1] = end
        across[-1], deep[-1], forward[-1] = max(hem_across, across[-2]), max(hem_deep, deep[-2]), 0.0
    dense = np.linspace(0, end, STEPS)
    yaw = np.interp(dense, [SHOULDERS_U, HIPS_U], [s.yaw_shoulders, s.yaw_hips])
    half, phase = ellipse(table(u, across, 0, end), table(u, deep, 0, end), yaw)
    shift = np.sin(yaw) * table(u, forward, 0, end) * stage.unit
    sag, cut = (0.020, 0.0) if end > 1 else (0.0, 0.042)
    tube = Tube(
        np.array(centres), np.array(axes), np.array(marks), half * stage.unit, shift, phase,
        sag=sag * stage.unit, cut=cut * stage.unit,
    )  # fmt: skip
    field = stage.canvas.tube(tube)
    stage.canvas.paint(field, outfit.torso, 0.0, end)
    return field


def _trunk(stage: Stage) -> tuple[list[float], list[float], list[float], list[float]]:
    """The trunk's sections: u, half breadth, half depth and how far its middle lies forward, in body heights."""
    body, ease, female = stage.person.body, stage.person.outfit.torso_ease, stage.person.female
    girth, wide = body.girth, body.shoulder
    across = [0.030, 0.044, 0.074, wide + 0.004, (wide + 0.002) * 1.0]
    across += [g * girth for g in ((0.074, 0.094, 0.104, 0.098) if female else (0.090, 0.092, 0.098, 0.092))]
    deep = [0.030, 0.040, 0.052, 0.064, 0.080, 0.060, 0.072, 0.080, 0.072]
    if not female:
        deep[4:8] = [0.077, 0.066, 0.070, 0.076]
    forward = [0.0, 0.0, 0.0, 0.004, 0.012 if female else 0.006, 0.0, -0.004, -0.010, -0.006]
    across = across[:3] + [value + ease for value in across[3:]]
    deep = deep[:3] + [value * girth + ease for value in deep[3:]]
    return list(TORSO_U), across, deep, forward


def _hem(stage: Stage, end: float) -> tuple[Floats, float, float]:
    """The skirt's hem: its middle on the canvas, and its half axes in body heights, wide enough for both legs."""
    points, body = stage.skeleton.points, stage.person.body
    length = (end - HIPS_U) * TORSO_LENGTH
    spots = []
    for hip, knee, ankle in ((R_HIP, R_KNEE, R_ANKLE), (L_HIP, L_KNEE, L_ANKLE)):
        if length < body.thigh:
            spots.append(points[hip] + length / body.thigh * (points[knee] - points[hip]))
        else:
            part = min((length - body.thigh) / body.shin, 1.0)
            spots.append(points[knee] + part * (points[ankle] - points[knee]))
    middle = 0.5 * (spots[0] + spots[1])
    middle[1] = min(middle[1], points[PELVIS][1] - 0.85 * length)
    apart, yaw = spots[1] - spots[0], stage.skeleton.yaw_hips
    across = abs(apart[0] * np.cos(yaw) - apart[2] * np.sin(yaw)) / 2
    deep = abs(apart[0] * np.sin(yaw) + apart[2] * np.cos(yaw)) / 2
    room = 0.042 + stage.person.outfit.flare
    return stage.place(middle), float(across) + room, float(deep) + room


def paint_leg(stage: Stage, side: int) -> None:
    """One leg with its shoe; side 0 is the right leg, 1 the left."""
    hip, knee, ankle, toe = (8, 9, 10, 23) if side == 0 else (11, 12, 13, 24)
    outfit, body = stage.person.outfit, stage.person.body
    ease = np.interp(np.linspace(0, 1, STEPS), outfit.leg_ease[:, 0], outfit.leg_ease[:, 1])
    radius = table(LEG_U, LEG_R) * body.girth + smooth(ease, 1)
    marks = np.array([0.0, body.thigh, body.thigh + body.shin]) / (body.thigh + body.shin)
    field = stage.canvas.limb(stage.joint(hip, knee, ankle), marks, radius * stage.unit, stage.skeleton.yaw_hips)
    stage.canvas.shadow(field, 0.30, 0.012 * stage.unit)
    _shoe(stage, ankle, toe)
    stage.canvas.paint(field, outfit.leg)


def _shoe(stage: Stage, ankle: int, toe: int) -> None:
    outfit, unit, canvas = stage.person.outfit, stage.unit, stage.canvas
    start, tip = stage.joint(ankle, toe)
    down = vec(0, (0.020 + outfit.heel) * unit)
    size = table((0, 0.35, 0.8, 1), (0.022, 0.021, 0.020, 0.015)) * unit
    if outfit.heel > 0:
        spike = np.array([start + vec(0, 0.01 * unit), start + down + vec(0, 0.012 * unit)])
        canvas.paint(canvas.limb(spike, WHOLE, table((0, 1), (0.010, 0.005)) * unit, 0.0), outfit.sole)
        heel = start + vec(0, 0.012 * unit)
    else:
        heel = start + down * 0.7
        under = np.array([heel + vec(0, 0.007 * unit), tip + vec(0, 0.005 * unit)])
        canvas.paint(canvas.limb(under, WHOLE, size, 0.0), outfit.sole)
    path = np.array([start, heel, tip])
    canvas.paint(canvas.limb(path, np.array([0.0, 0.3, 1.0]), size, 0.0), outfit.shoe)


def paint_arm(stage: Stage, side: int) -> None:
    """One arm with its hand; side 0 is the right arm, 1 the left."""
    shoulder, elbow, wrist, hand = (2, 3, 4, 21) if side == 0 else (5, 6, 7, 22)
    person, canvas, unit = stage.person, stage.canvas, stage.unit
    outfit, body, skin = person.outfit, person.body, person.head.skin
    ease = np.interp(np.linspace(0, 1, STEPS), outfit.arm_ease[:, 0], outfit.arm_ease[:, 1])
    radius = table(ARM_U, ARM_R) * body.girth * (0.92 if person.female else 1.08) + smooth(ease, 1)
    marks = np.array([0.0, body.upper_arm, body.upper_arm + body.forearm]) / (body.upper_arm + body.forearm)
    field = canvas.limb(stage.joint(shoulder, elbow, wrist), marks, radius * unit, stage.skeleton.yaw_shoulders)
    canvas.shadow(field, 0.34, 0.014 * unit)
    start, tip = stage.joint(wrist, hand)
    palm = table((0, 0.3, 0.6, 1), (0.013, 0.0175, 0.0155, 0.009)) * unit * (0.95 if person.female else 1.1)
    canvas.paint(canvas.limb(np.array([start, tip]), WHOLE, palm, 0.0), skin)
    along = tip - start
    turn = (1 if side == 0 else -1) * (1 if np.cos(stage.skeleton.yaw_hips) > 0 else -1)
    thumb = np.array([start + 0.15 * along, start + 0.58 * along + 0.30 * turn * np.array([along[1], -along[0]])])
    canvas.paint(canvas.limb(thumb, WHOLE, table((0, 1), (0.009, 0.006)) * unit, 0.0), skin)
    canvas.paint(field, outfit.arm)
