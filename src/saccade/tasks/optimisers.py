"""Optimiser factories and learning-rate schedules, both functions of images seen and so exact under resume."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn


def adam(
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float = 1e-8,
    lazy_interval: int | None = None,
) -> torch.optim.Adam:
    """Adam, corrected for lazy regularisation if an interval is given.

    A regulariser that runs every k-th step adds a step to every k, so StyleGAN2 (Karras et al. 2020, appendix B)
    scales the learning rate by r = k/(k+1) and raises the betas to the power r.
    """
    ratio = 1.0 if not lazy_interval else lazy_interval / (lazy_interval + 1)
    return torch.optim.Adam(parameters, lr=lr * ratio, betas=(float(beta1) ** ratio, float(beta2) ** ratio), eps=eps)


class Schedule:
    """Learning-rate factor over a run: linear warm-up, constant, then linear decay to `final`; and steps.

    Args:
        warmup: share of the run spent rising from 0 to 1.
        decay_from: share of the run after which the factor falls; 1 keeps it constant.
        final: factor at the end of the run.
        milestones: shares of the run, ascending, from each of which on the factor is multiplied by `gamma`.
        gamma: see `milestones`.

    Raises:
        ValueError: shares that are none or out of order.
    """

    def __init__(
        self,
        *,
        warmup: float = 0.0,
        decay_from: float = 1.0,
        final: float = 0.0,
        milestones: Sequence[float] = (),
        gamma: float = 0.5,
    ) -> None:
        if not 0.0 <= warmup <= decay_from <= 1.0:
            raise ValueError(
                f"schedule: need 0 <= warmup <= decay_from <= 1; got warmup={warmup}, decay_from={decay_from}"
            )
        if list(milestones) != sorted(milestones) or not all(0.0 < share <= 1.0 for share in milestones):
            raise ValueError(f"schedule: milestones are ascending shares of the run, in (0, 1]; got {list(milestones)}")
        self.warmup, self.decay_from, self.final = warmup, decay_from, final
        self.milestones, self.gamma = tuple(milestones), gamma

    def __call__(self, progress: float) -> float:
        """Factor at `progress`, the share of the run's images already seen (0 to 1)."""
        steps: float = self.gamma ** sum(progress >= share for share in self.milestones)
        if progress < self.warmup:
            return steps * progress / self.warmup
        if progress <= self.decay_from or self.decay_from == 1.0:
            return steps
        fall = min(1.0, (progress - self.decay_from) / (1.0 - self.decay_from))
        return steps * (1.0 + fall * (self.final - 1.0))
