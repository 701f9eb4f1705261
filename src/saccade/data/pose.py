"""The 18 keypoints of a person, as heatmaps for the network and as a figure mask for losses and metrics.

Order: OpenPose-18 (Cao et al. 2017) as stored in the DeepFashion annotation files. The label lists of the PATN family
call entries 14-17 left eye, right eye, left ear, right ear; their data has the right ones first, as named here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saccade.geometry import Size

KEYPOINT_NAMES = (
    "nose",
    "neck",
    "right_shoulder",
    "right_elbow",
    "right_wrist",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "right_hip",
    "right_knee",
    "right_ankle",
    "left_hip",
    "left_knee",
    "left_ankle",
    "right_eye",
    "left_eye",
    "right_ear",
    "left_ear",
)
LIMBS = (
    (1, 2), (2, 3), (3, 4), (1, 5), (5, 6), (6, 7),
    (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
FLIP_PAIRS = ((2, 5), (3, 6), (4, 7), (8, 11), (9, 12), (10, 13), (14, 15), (16, 17))

_FACE = (0, 14, 15, 16, 17)
_TORSO = (2, 5, 11, 8)
# Ours, for a person 0.9 of the picture high; PG2 dilates by about 10 px at 256.
_LIMB_RADIUS = 0.043
_HEAD_RADIUS = 0.08
_HAND = 0.35
_FOOT = 0.15


def heatmaps(keypoints: Tensor, size: Size, sigma: float | None = None) -> Tensor:
    """One Gaussian bump exp(-r^2 / 2 sigma^2) for each keypoint, peak 1, all zeros where it is missing.

    The field's recipe (DSC, Siarohin et al. 2018; PATN, Zhu et al. 2019): 6 px at 256 rows, not normalised.

    Args:
        keypoints: (B, K, 3) of x, y, v in pixels of the map; any device, fractions allowed.
        size: rows and columns of the maps.
        sigma: in pixels; None scales 6 px by rows / 256.

    Returns:
        (B, K, rows, cols) in the dtype of the keypoints.

    Raises:
        ValueError: keypoints of another shape, sigma not positive.
    """
    _check_keypoints("heatmaps", keypoints, None)
    sigma = 6 * size.rows / 256 if sigma is None else sigma
    if not sigma > 0:
        raise ValueError(f"heatmaps: sigma must be positive, in pixels; got {sigma}")
    x, y, v = keypoints.unbind(-1)  # (B, K) each
    cols = torch.arange(size.cols, device=keypoints.device, dtype=keypoints.dtype)
    rows = torch.arange(size.rows, device=keypoints.device, dtype=keypoints.dtype)
    across = torch.exp(-((cols - x.unsqueeze(-1)) ** 2) / (2 * sigma**2))  # (B, K, X)
    down = torch.exp(-((rows - y.unsqueeze(-1)) ** 2) / (2 * sigma**2))  # (B, K, Y)
    present = (v > 0).to(keypoints.dtype)[..., None, None]
    return down.unsqueeze(-1) * across.unsqueeze(-2) * present


def flip_keypoints(keypoints: Tensor, size: Size) -> Tensor:
    """Mirror points (..., 18, 3) left to right and swap the names of left and right; missing points stay zeros."""
    order = list(range(len(KEYPOINT_NAMES)))
    for right, left in FLIP_PAIRS:
        order[right], order[left] = left, right
    x, y, v = keypoints[..., order, :].unbind(-1)
    return torch.stack([torch.where(v > 0, size.cols - 1 - x, x), y, v], dim=-1)


def figure_mask(keypoints: Tensor, size: Size) -> Tensor:
    """Where the person is, from the pose alone: PG2's pose mask (Ma et al. 2017).

    Limbs are capsules (lengthened to take in hands and feet), the torso is the convex hull of shoulders and hips
    widened by a limb's radius, the head is a disc about the face points and a point above the neck, joined to the neck.
    Radii are fractions of the picture's height. Missing points leave out what hangs on them.

    Args:
        keypoints: (B, 18, 3) of x, y, v in pixels.
        size: rows and columns of the mask.

    Returns:
        (B, 1, rows, cols) bool, on the keypoints' device.

    Raises:
        ValueError: keypoints are not (B, 18, 3).
    """
    _check_keypoints("figure_mask", keypoints, len(KEYPOINT_NAMES))
    points, there = keypoints[..., :2].float(), keypoints[..., 2] > 0
    radius = _LIMB_RADIUS * size.rows
    canvas = _Canvas(keypoints.shape[0], size, keypoints.device)
    for a, b in LIMBS[:12]:
        end = points[:, b]
        if b in (4, 7):
            end = end + _HAND * (end - points[:, a])
        elif b in (10, 13):
            end = end + _FOOT * (end - points[:, a])
        canvas.capsule(points[:, a], end, radius, there[:, a] & there[:, b])
    for i, a in enumerate(_TORSO):
        b = _TORSO[(i + 1) % 4]
        canvas.capsule(points[:, a], points[:, b], radius, there[:, a] & there[:, b])
        c = _TORSO[(i + 2) % 4]
        canvas.triangle(points[:, a], points[:, b], points[:, c], there[:, a] & there[:, b] & there[:, c])
    centre, seen = _head_centre(points, there, size)
    canvas.capsule(centre, centre, _HEAD_RADIUS * size.rows, seen)
    canvas.capsule(points[:, 1], centre, radius, there[:, 1])
    return canvas.mask.unsqueeze(1)


def _head_centre(points: Tensor, there: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Mean of the face points that are seen and of a point above the neck: (B, 2), and whether there is any, (B,)."""
    above = points[:, 1] - points.new_tensor([0.0, 0.11 * size.rows])
    marks = torch.cat([points[:, _FACE], above.unsqueeze(1)], dim=1)  # (B, 6, 2)
    seen = torch.cat([there[:, _FACE], there[:, 1:2]], dim=1)
    weight = seen.to(points.dtype).unsqueeze(-1)
    return (marks * weight).sum(1) / weight.sum(1).clamp(min=1), seen.any(1)


class _Canvas:
    """Boolean pictures (B, Y, X) on which shapes are painted, one of each kind for every picture at a time."""

    def __init__(self, batch: int, size: Size, device: torch.device) -> None:
        self.mask = torch.zeros(batch, size.rows, size.cols, dtype=torch.bool, device=device)
        self.x = torch.arange(size.cols, device=device, dtype=torch.float32)  # (X,)
        self.y = torch.arange(size.rows, device=device, dtype=torch.float32).unsqueeze(-1)  # (Y, 1)

    def capsule(self, start: Tensor, end: Tensor, radius: float, present: Tensor) -> None:
        """All pixels within `radius` of the segments from start to end, each (B, 2); present (B,) bool."""
        along = end - start
        length2 = along.square().sum(-1).clamp(min=1e-12)[:, None, None]
        dx, dy = self.x - start[:, 0, None, None], self.y - start[:, 1, None, None]
        ux, uy = along[:, 0, None, None], along[:, 1, None, None]
        t = ((dx * ux + dy * uy) / length2).clamp(0, 1)
        near = (dx - t * ux).square() + (dy - t * uy).square() <= radius**2  # (B, Y, X)
        self.mask |= near & present[:, None, None]

    def triangle(self, a: Tensor, b: Tensor, c: Tensor, present: Tensor) -> None:
        """All pixels inside the triangles a, b, c, each (B, 2), whichever way round."""
        sides = [self._side(p, q) for p, q in ((a, b), (b, c), (c, a))]
        left = (sides[0] >= 0) & (sides[1] >= 0) & (sides[2] >= 0)
        right = (sides[0] <= 0) & (sides[1] <= 0) & (sides[2] <= 0)
        self.mask |= (left ^ right) & present[:, None, None]  # both at once: the triangle has no area

    def _side(self, p: Tensor, q: Tensor) -> Tensor:
        ux, uy = (q - p)[:, 0, None, None], (q - p)[:, 1, None, None]
        return ux * (self.y - p[:, 1, None, None]) - uy * (self.x - p[:, 0, None, None])  # (B, Y, X)


def _check_keypoints(who: str, keypoints: Tensor, count: int | None) -> None:
    wanted = count if count is not None else "K"
    if keypoints.ndim != 3 or keypoints.shape[-1] != 3 or (count is not None and keypoints.shape[1] != count):
        raise ValueError(f"{who}: keypoints must be (B, {wanted}, 3) of x, y, v; got {tuple(keypoints.shape)}")
