"""Stick figures over images: 18 keypoints in OpenPose's order, one colour a limb, missing points left out."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
from torch import Tensor

from saccade.data.pose import LIMBS
from saccade.pictures.canvas import Colour, Picture, blank, require_picture

_POINTS = 18
_SHIFT = 4  # OpenCV draws at 1/16 pixel


def _wheel(index: int) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(index / _POINTS, 0.85, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


JOINT_COLOURS: tuple[Colour, ...] = tuple(_wheel(index) for index in range(_POINTS))


def _fixed(x: float, y: float) -> tuple[int, int]:
    return round(x * (1 << _SHIFT)), round(y * (1 << _SHIFT))


def draw_skeleton(picture: Picture, keypoints: Tensor, *, scale: float = 1.0) -> Picture:
    """Return the picture with the limbs and joints of one figure drawn over it, anti-aliased.

    Args:
        picture: (rows, cols, 3) uint8.
        keypoints: (18, 3) x, y, v in pixels of the image before it was enlarged, pixel centres at integers.
        scale: how much larger the picture is than that image.

    Raises:
        ValueError: wrong shapes, or a scale that is not positive.
    """
    require_picture(picture, "draw_skeleton")
    if tuple(keypoints.shape) != (_POINTS, 3):
        raise ValueError(f"draw_skeleton: keypoints are ({_POINTS}, 3) x, y, v; got shape {tuple(keypoints.shape)}")
    if not scale > 0:
        raise ValueError(f"draw_skeleton: scale is above 0; got {scale}")
    points = keypoints.detach().double().cpu().numpy()
    present = (points[:, 2] > 0) & np.isfinite(points).all(axis=1)
    places = (points[:, :2] + 0.5) * scale - 0.5  # pixel centres stay centres when the picture grows
    canvas = np.ascontiguousarray(picture).copy()
    thickness = max(1, round(min(picture.shape[:2]) / 80))
    for first, second in LIMBS:
        if present[first] and present[second]:
            ends = _fixed(*places[first]), _fixed(*places[second])
            cv2.line(canvas, *ends, JOINT_COLOURS[second], thickness, cv2.LINE_AA, _SHIFT)
    radius = round(max(1.2, thickness * 0.9) * (1 << _SHIFT))
    for index in np.flatnonzero(present):
        cv2.circle(canvas, _fixed(*places[index]), radius, JOINT_COLOURS[index], -1, cv2.LINE_AA, _SHIFT)
    return canvas


def skeleton_picture(keypoints: Tensor, size: tuple[int, int], *, height: int | None = None) -> Picture:
    """A skeleton alone on a dark ground: the pose as the network is given it.

    Args:
        keypoints: (18, 3) in pixels of an image of `size`.
        size: (rows, cols) of that image.
        height: rows of the picture; None: those of the image.
    """
    rows, cols = size
    scale = 1.0 if height is None else height / rows
    ground = blank(round(rows * scale), max(1, round(cols * scale)), (24, 27, 34))
    return draw_skeleton(ground, keypoints, scale=scale)
