"""When a GAN is past saving: a discriminator without loss, or a generator whose samples are all alike.

A SAGAN collapses late and stays so: the discriminator's loss goes to zero, or the samples lose their variety, and days
of computing follow that improve no score. The thresholds are ours, set so that no training that may still recover
passes them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class TrainingCollapsed(RuntimeError):
    """The run stopped, with its checkpoints intact, because nothing more can be expected of it."""


class CollapseGuard:
    """Decide that a training has collapsed.

    Args:
        loss_below: the discriminator's whole loss counts as zero below this; 0 switches the check off. Hinge loss is 2
            for a discriminator that knows nothing and about 1 in a healthy training.
        loss_steps: steps in a row with such a loss that end the run.
        diversity_below: the samples' variety, or that within a class, counts as lost below this share of the real
            images'; 0 switches it off.
        diversity_evaluations: evaluations in a row with such a variety that end the run, once there was any.
        diversity_patience: evaluations in a row that end a run whose samples never had any; an untrained generator's
            have none.
        samples: images of the fixed set whose variety is measured; at least 2.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(
        self,
        *,
        loss_below: float = 0.01,
        loss_steps: int = 1000,
        diversity_below: float = 0.1,
        diversity_evaluations: int = 2,
        diversity_patience: int = 10,
        samples: int = 64,
    ) -> None:
        if loss_below < 0 or diversity_below < 0:
            raise ValueError(
                f"collapse: loss_below and diversity_below are 0 (off) or more; got {loss_below} and {diversity_below}"
            )
        if min(loss_steps, diversity_evaluations, diversity_patience) < 1 or samples < 2:
            raise ValueError(
                "collapse: loss_steps, diversity_evaluations and diversity_patience are 1 or more, samples 2 or more; "
                f"got {loss_steps}, {diversity_evaluations}, {diversity_patience} and {samples}"
            )
        self.loss_below, self.loss_steps = loss_below, loss_steps
        self.diversity_below, self.diversity_evaluations = diversity_below, diversity_evaluations
        self.diversity_patience, self.samples = diversity_patience, samples

    def check_loss(self, steps: int, images_seen: int) -> None:
        """Raise TrainingCollapsed after `loss_steps` steps in a row without loss."""
        if self.loss_below > 0 and steps >= self.loss_steps:
            raise TrainingCollapsed(
                f"The training has collapsed at image {images_seen:,}: the discriminator's loss was below "
                f"{self.loss_below:g} in {steps:,} steps in a row, so it teaches the generator nothing any more. "
                + _ADVICE.format(option="loss_below")
            )

    def check_diversity(self, diversity: float, evaluations: int, images_seen: int, *, varied: bool) -> None:
        """Raise TrainingCollapsed after too many evaluations in a row without variety.

        Args:
            diversity: share of the real images' variety at the last one.
            evaluations: how many they are.
            images_seen: when.
            varied: whether any evaluation before found variety.
        """
        limit = self.diversity_evaluations if varied else self.diversity_patience
        if self.diversity_below > 0 and evaluations >= limit:
            raise TrainingCollapsed(
                f"The training has collapsed at image {images_seen:,}: the samples, or those of a class, differ by "
                f"{diversity:.3f} of what real images do, below {self.diversity_below:g} for {evaluations} evaluations "
                f"in a row{'' if varied else ', the first ones included'}. " + _ADVICE.format(option="diversity_below")
            )


_ADVICE = (
    "The checkpoints are intact. Cures, each a new run: a larger batch (task.module.accumulate), lower learning rates, "
    "another seed; task.module.collapse.{option}=0 lets it train on. To go on with this run: the same command with "
    "runtime.ignore_collapse=true"
)


def diversity(images: Tensor, *, size: int = 8) -> float:
    """Mean root-mean-square difference between all pairs of images at low resolution.

    Args:
        images: (N, C, Y, X), two or more.
        size: side they are averaged down to, so that grain and noise do not count.

    Raises:
        ValueError: fewer than two images.
    """
    if images.ndim != 4 or len(images) < 2:
        raise ValueError(f"diversity: images are (N, C, Y, X) with N of 2 or more; got {tuple(images.shape)}")
    small = F.adaptive_avg_pool2d(images.float(), size).flatten(1).double()
    # (N, C * size * size)
    return float(torch.pdist(small).mean()) / math.sqrt(small.shape[1])


def class_diversity(images: Tensor, labels: Tensor) -> float:
    """Mean `diversity` within a class, over the classes that have two images or more; 0 if none has.

    A conditional generator can keep its classes apart and still make one image of each.

    Args:
        images: (N, C, Y, X).
        labels: (N,).
    """
    labels = labels.to(images.device)
    several = (torch.bincount(labels) > 1).nonzero().flatten()
    found = [diversity(images[labels == label]) for label in several]
    return sum(found) / max(len(found), 1)
