"""A hand-made person, and the names that DeepFashion would give to pictures."""

from __future__ import annotations

import torch

from saccade.geometry import Size

PICTURE = Size(256, 176)


def a_pose(size: Size = PICTURE, shift: float = 0.0) -> torch.Tensor:
    """A standing person in the middle of a picture, (18, 3), whole numbers."""
    unit = [
        (0.50, 0.12), (0.50, 0.20), (0.38, 0.21), (0.33, 0.35), (0.31, 0.48), (0.62, 0.21), (0.67, 0.35), (0.69, 0.48),
        (0.42, 0.50), (0.42, 0.70), (0.41, 0.90), (0.58, 0.50), (0.58, 0.70), (0.59, 0.90),
        (0.47, 0.10), (0.53, 0.10), (0.44, 0.11), (0.56, 0.11),
    ]  # fmt: skip
    points = torch.tensor(unit) * torch.tensor([size.cols, size.rows]) + torch.tensor([shift, 0.0])
    return torch.cat([points.round(), torch.ones(18, 1)], dim=1)


def a_name(garment: int, view: int, colour: int = 1) -> str:
    return f"fashionWOMENDressesid{garment:08d}{colour:02d}_{view}front.jpg"
