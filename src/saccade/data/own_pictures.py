"""A person's own picture and poses, from outside any data set (Fig. 10 of the GPA paper)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from saccade.data.batches import to_float_image
from saccade.data.images import (
    Box,
    Side,
    decode_image,
    move_keypoints,
    paint,
    place,
    require_no_enlarging,
    to_tensor,
)
from saccade.data.keypoints import read_pose_json
from saccade.geometry import Size


class OwnPicture(NamedTuple):
    """A picture and its pose on the network's canvas.

    Attributes:
        image: (1, 3, Y, X) float32 in [-1, 1].
        keypoints: (1, 18, 3) of x, y, v in canvas pixels.
        box: where the picture lies on the canvas.
        size: rows and columns of the file.
    """

    image: Tensor
    keypoints: Tensor
    box: Box
    size: Size


def load_picture(
    path: Path | str,
    pose: Path | str,
    canvas: Size,
    *,
    side: Side = "centre",
    fill: int = 255,
    upscale: bool = False,
) -> OwnPicture:
    """Read a picture of any aspect and its pose (JSON in the picture's pixels) onto a canvas.

    Raises:
        ValueError: unreadable file, a picture smaller than the canvas without `upscale`, a pose that is not this
            picture's; names the file.
    """
    pixels = decode_image(path)
    size = Size(*pixels.shape[:2])
    box = place(size, canvas, side)
    require_no_enlarging(path, size, box, canvas, upscale)
    image = to_float_image(to_tensor(paint(pixels, box, canvas, fill))).unsqueeze(0)
    return OwnPicture(image, load_pose(pose, size, canvas, side=side), box, size)


def load_pose(pose: Path | str, picture: Size, canvas: Size, *, side: Side = "centre") -> Tensor:
    """Read a pose (JSON) given in the pixels of a picture of `picture` rows and columns: (1, 18, 3) on the canvas.

    Raises:
        ValueError: unreadable, or more than half of the points lie outside the picture; names the file.
    """
    points = read_pose_json(pose)
    moved = move_keypoints(points, picture, place(picture, canvas, side), canvas)
    there = points[:, 2] > 0
    x, y = points[:, 0], points[:, 1]
    inside = there & (x > -0.5) & (x < picture.cols - 0.5) & (y > -0.5) & (y < picture.rows - 0.5)
    if 2 * int(inside.sum()) < int(there.sum()):
        raise ValueError(
            f"{pose}: {int(there.sum() - inside.sum())} of {int(there.sum())} points lie outside the picture of "
            f"{picture} (rows x cols); a pose is given in the pixels of its own picture"
        )
    return (moved * inside.unsqueeze(1)).unsqueeze(0)
