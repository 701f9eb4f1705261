"""Where attention looks, as colours: the hue is the direction, the strength the distance.

The colour wheel is Middlebury's (Baker et al. 2011, "A Database and Evaluation Methodology for Optical Flow"), as in
the released contextual attention: 15, 6, 4, 11, 13, 6 steps from red over yellow, green, cyan, blue and magenta.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from saccade.geometry import Size

# Steps from each of the six corners of the wheel to the next; the corners are (R, G, B).
STEPS = (15, 6, 4, 11, 13, 6)
CORNERS = ((1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1))


def colour_wheel() -> Tensor:
    """(55, 3) in [0, 1], from red on."""
    colours = []
    for number, steps in enumerate(STEPS):
        here = torch.tensor(CORNERS[number], dtype=torch.float32)
        after = torch.tensor(CORNERS[(number + 1) % len(CORNERS)], dtype=torch.float32)
        share = torch.arange(steps)[:, None] / steps
        colours.append(here + share * (after - here))
    return torch.cat(colours)


def offsets_picture(offsets: Tensor, size: Size, *, longest: float | None = None) -> Tensor:
    """Colour what looks elsewhere; white is where a query looks at its own place.

    Args:
        offsets: (B, 2, y, x), rows and cols from each query to the key that it attends to most, in key pixels.
        size: of the pictures, in pixels.
        longest: the offset that has full colour, in key pixels; None is the longest of the batch.

    Returns:
        (B, 3, *size) float32 in [-1, 1].

    Raises:
        ValueError: offsets of another shape, or a `longest` that is not above 0.
    """
    if offsets.dim() != 4 or offsets.shape[1] != 2:
        raise ValueError(f"offsets_picture: offsets must be (batch, 2, rows, cols); got {tuple(offsets.shape)}.")
    if longest is not None and not longest > 0:
        raise ValueError(f"offsets_picture: longest must be above 0, or None for the longest; got {longest!r}.")
    down, right = offsets.float().unbind(1)
    length = torch.hypot(down, right)
    full = max(float(length.max()), 1.0) if longest is None else longest
    wheel = colour_wheel().to(offsets.device)
    place = (torch.atan2(-down, -right) / math.pi + 1) / 2 * (len(wheel) - 1)  # 0 ... 54; to the right is 0
    first = place.floor().long()
    share = (place - first)[..., None]
    colour = (1 - share) * wheel[first] + share * wheel[(first + 1) % len(wheel)]  # (B, y, x, 3)
    strength = (length / full).clamp(max=1)[..., None]
    painted = (1 - strength * (1 - colour)).permute(0, 3, 1, 2)
    return F.interpolate(painted, size=tuple(size), mode="nearest") * 2 - 1
