"""Pictures of one subject each, cut out of the photographs that ship inside scikit-image (public domain or CC0).

No two are alike: each is moved, zoomed, turned a little, mirrored or not, and seen in another light.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import cv2
import numpy as np

from saccade.data.standin.fabrics import photograph
from saccade.data.standin.painter import Bytes
from saccade.data.standin.scene import Rng
from saccade.geometry import Size


class Subject(NamedTuple):
    """Where a photograph shows its subject: centre (x, y) and side of a square, in widths of the picture; radians."""

    name: str
    x: float
    y: float
    side: float
    turn: float


def cut_out(subject: Subject, rng: Rng, size: Size) -> Bytes:
    """A picture of the subject: moved, zoomed, turned a little, mirrored or not, in another light."""
    side = subject.side * photograph(subject.name).shape[1] * float(rng.uniform(0.82, 1.12))
    halvings = max(0, round(np.log2(side / min(size))))  # warpAffine takes no mean, so the photograph is halved first
    photo = _halved(subject.name, halvings)
    side /= 2**halvings
    centre = np.array([subject.x, subject.y]) * photo.shape[1] + rng.uniform(-0.07, 0.07, 2) * side
    step, angle = side / min(size), float(rng.uniform(-subject.turn, subject.turn))
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    across = step * np.array([[mirror * np.cos(angle), -np.sin(angle)], [mirror * np.sin(angle), np.cos(angle)]])
    start = centre - across @ (np.array([size.cols - 1, size.rows - 1]) / 2)
    found = cv2.warpAffine(
        photo,
        np.column_stack([across, start]),
        (size.cols, size.rows),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101,
    ).astype(np.float32)
    grey = found.mean(axis=2, keepdims=True)
    lively = grey + (found - grey) * float(rng.uniform(0.75, 1.3))
    tint = rng.uniform(0.88, 1.12, 3).astype(np.float32) * float(rng.uniform(0.8, 1.15))
    picture: Bytes = np.clip(lively * tint + float(rng.uniform(-10, 10)), 0, 255).astype(np.uint8)
    return picture


@functools.cache
def _halved(name: str, times: int) -> Bytes:
    photo = photograph(name)
    for _ in range(times):
        photo = cv2.resize(photo, (photo.shape[1] // 2, photo.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return photo
