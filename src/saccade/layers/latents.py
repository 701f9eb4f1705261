"""Latent vectors of a GAN that are the same wherever they are drawn: a function of a seed and of their positions.

Truncation resamples, as TensorFlow's truncated normal does: every component that lies beyond the limit is drawn again
until it lies within. "Your Local GAN" (arXiv 1911.12287) draws sample figures and starts of inversion at 2 sigma, and
interpolates between vectors truncated at 1 sigma; scores are taken without truncation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

# Ours: below it more than nine in ten draws are thrown away, and the samples are all but equal.
LEAST_TRUNCATION = 0.1


def check_truncation(truncation: float | None) -> float | None:
    """The limit as a float, or None for no truncation.

    Raises:
        ValueError: not a finite number of at least `LEAST_TRUNCATION` sigma.
    """
    if truncation is None:
        return None
    limit = float(truncation)
    if not math.isfinite(limit) or limit < LEAST_TRUNCATION:
        raise ValueError(
            f"latents: truncation is a limit in sigma, {LEAST_TRUNCATION} or more, or none; got {truncation}. "
            "The paper's sample figures use 2."
        )
    return limit


def truncated_normal(
    count: int, size: int, *, truncation: float | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Standard normal vectors (count, size) on the CPU, every component beyond the limit drawn again.

    Args:
        truncation: limit in sigma; None draws without one.
        generator: of the CPU; None is torch's own.

    Raises:
        ValueError: a negative count, a size below 1, or a wrong limit.
    """
    limit = check_truncation(truncation)
    if count < 0 or size < 1:
        raise ValueError(f"latents: count is 0 or more and size 1 or more; got {count} and {size}")
    z = torch.randn(count, size, generator=generator)
    if limit is None:
        return z
    beyond = z.abs() > limit
    while bool(beyond.any()):
        z[beyond] = torch.randn(int(beyond.sum()), generator=generator)
        beyond = z.abs() > limit
    return z


def latents_at(seed: int, positions: Iterable[int] | Tensor, size: int, *, truncation: float | None = None) -> Tensor:
    """The vectors (P, size) of some positions of an endless list that the seed names, on the CPU.

    A position's vector does not depend on which others are asked for, so that ranks, batches and later calls agree.

    Raises:
        ValueError: a negative seed or position, a size below 1, or a wrong limit.
    """
    rows = [
        truncated_normal(1, size, truncation=truncation, generator=position_generator(seed, int(position)))
        for position in positions
    ]
    return torch.cat(rows) if rows else torch.empty(0, size)


def position_generator(seed: int, position: int) -> torch.Generator:
    """A generator of the CPU that differs for every (seed, position).

    Raises:
        ValueError: a negative seed or position.
    """
    if seed < 0 or position < 0:
        raise ValueError(f"latents: seeds and positions are 0 or more; got seed {seed} and position {position}")
    state = np.random.SeedSequence((seed, position)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def point_between(start: Tensor, end: Tensor, share: Tensor, *, spherical: bool = False) -> Tensor:
    """Vectors on the way from `start` to `end`, (B, size) each: at `share` (B,) of it, 0 ... 1.

    Linear, as the paper's interpolations; or along the great circle of the directions with the length changing
    linearly, which keeps vectors on the way as long as normal ones are.

    Raises:
        ValueError: shapes that do not fit.
    """
    if start.shape != end.shape or start.ndim != 2 or share.shape != start.shape[:1]:
        raise ValueError(
            f"latents: both ends are (B, size) and shares (B,); got {tuple(start.shape)}, {tuple(end.shape)} and "
            f"{tuple(share.shape)}"
        )
    share = share.unsqueeze(1)
    straight = torch.lerp(start, end, share)
    if not spherical:
        return straight
    lengths = start.norm(dim=1, keepdim=True), end.norm(dim=1, keepdim=True)
    tiny = torch.finfo(start.dtype).tiny
    units = start / lengths[0].clamp_min(tiny), end / lengths[1].clamp_min(tiny)
    cosine = (units[0] * units[1]).sum(1, keepdim=True)
    angle = torch.acos(cosine.clamp(-1, 1))
    turned = torch.sin((1 - share) * angle) * units[0] + torch.sin(share * angle) * units[1]
    turned = turned / torch.sin(angle) * torch.lerp(lengths[0], lengths[1], share)
    # parallel directions have no plane to turn in: the straight way is the limit
    way = torch.where(cosine.abs() < 1 - 1e-6, turned, straight)
    return torch.where(share == 0, start, torch.where(share == 1, end, way))
