"""Improved precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991, section 3), in any feature space.

The manifold of a set is the union of balls around its points, each reaching to the point's k-th nearest neighbour.
Precision is the share of generated images inside the manifold of real ones; recall the share of real images inside that
of generated ones. Distances are in float64 and taken in slices, so memory is a few copies of the features.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

NEIGHBOURS = 3
_SLICE_ELEMENTS = 1 << 23  # distances of one slice: 64 MiB


def precision_recall(generated: Tensor, real: Tensor, *, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Precision and recall of generated against real features.

    Args:
        generated: (N, C) features, on the device that computes.
        real: (M, C) features.
        neighbours: k; each set needs more points than that.

    Raises:
        ValueError: shapes that do not fit, or too few points.
    """
    if generated.dim() != 2 or real.dim() != 2 or generated.shape[1] != real.shape[1]:
        raise ValueError(
            f"precision and recall: features must be (N, C) and (M, C); got {tuple(generated.shape)} and "
            f"{tuple(real.shape)}"
        )
    if neighbours < 1 or min(len(generated), len(real)) <= neighbours:
        raise ValueError(
            f"precision and recall: {neighbours} neighbours need at least {neighbours + 1} points in each set; got "
            f"{len(generated)} generated and {len(real)} real"
        )
    # Distances from squares lose digits far from the origin: centred, they keep them.
    centre = real.double().mean(0)
    fake = generated.detach().double() - centre.to(generated.device)
    true = real.to(generated.device).double() - centre.to(generated.device)
    precision = _share_inside(fake, true, _squared_radii(true, neighbours))
    recall = _share_inside(true, fake, _squared_radii(fake, neighbours))
    return precision, recall


def _squared_radii(points: Tensor, neighbours: int) -> Tensor:
    """Squared distance of each point to its k-th nearest other point: (N,)."""
    found = []
    for start, distances in _slices(points, points):
        rows = torch.arange(distances.shape[0], device=points.device)
        distances[rows, rows + start] = torch.inf  # a point is not its own neighbour
        found.append(distances.topk(neighbours, dim=1, largest=False).values[:, -1])
    return torch.cat(found)


def _share_inside(points: Tensor, centres: Tensor, squared_radii: Tensor) -> float:
    inside = sum(int((distances <= squared_radii).any(1).sum()) for _, distances in _slices(points, centres))
    return inside / len(points)


def _slices(points: Tensor, others: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Squared distances of points to others, some rows at a time, with the first row's number."""
    rows = max(1, _SLICE_ELEMENTS // len(others))
    norms = others.square().sum(1)
    for start in range(0, len(points), rows):
        some = points[start : start + rows]
        yield start, (some.square().sum(1, keepdim=True) + norms - 2 * some @ others.T).clamp_min_(0)
