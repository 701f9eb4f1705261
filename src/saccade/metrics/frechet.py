"""Frechet distance between two sets of features (Heusel et al. 2017), in float64, by symmetric eigen-decomposition.

scipy's matrix square root of a product of covariances is avoided: it returns imaginary parts for singular matrices, and
its behaviour changed between versions. The trace of the square root is the sum of the singular values of
C1^(1/2) C2^(1/2), which is real by construction.
"""

from __future__ import annotations

import torch
from torch import Tensor


class FeatureMoments:
    """Count, sum and sum of outer products of feature vectors, in float64, on `device` or that of the first batch.

    Sums can be merged and added over processes, so the statistics do not depend on how images were batched or spread.
    """

    def __init__(self, channels: int, device: torch.device | str | None = None) -> None:
        self.count = 0
        self.total = torch.zeros(channels, dtype=torch.float64, device=device)
        self.outer = torch.zeros(channels, channels, dtype=torch.float64, device=device)

    @classmethod
    def of(cls, mean: Tensor, covariance: Tensor, count: int) -> FeatureMoments:
        """The moments whose mean and (unbiased) covariance are given.

        Raises:
            ValueError: count below 2, or shapes that do not fit.
        """
        if count < 2 or covariance.shape != (mean.numel(), mean.numel()):
            raise ValueError(
                f"moments: need a count of 2 or more and a square covariance; got count {count}, mean "
                f"{tuple(mean.shape)}, covariance {tuple(covariance.shape)}"
            )
        moments = cls(mean.numel())
        moments.count = count
        moments.total = mean.double() * count
        moments.outer = covariance.double() * (count - 1) + torch.outer(mean, mean).double() * count
        return moments

    def update(self, features: Tensor) -> None:
        """Add a batch of feature vectors, (B, channels).

        Raises:
            ValueError: wrong shape, or a value that is not finite.
        """
        if features.dim() != 2 or features.shape[1] != self.total.numel():
            raise ValueError(f"moments: features must be (B, {self.total.numel()}); got {tuple(features.shape)}")
        wide = features.detach().double()
        if not bool(torch.isfinite(wide).all()):
            raise ValueError("moments: a feature is not finite; the image behind it is broken")
        self.total = self.total.to(wide.device) + wide.sum(0)
        self.outer = self.outer.to(wide.device) + wide.T @ wide
        self.count += wide.shape[0]

    def merge(self, other: FeatureMoments) -> None:
        """Add another set's moments to these."""
        self.count += other.count
        self.total = self.total + other.total.to(self.total.device)
        self.outer = self.outer + other.outer.to(self.outer.device)

    def over_processes(self) -> FeatureMoments:
        """The moments of all processes of torch.distributed together; these ones where there is one process.

        Every process must call it. With NCCL the sums must be on the GPU: by `device`, or because a batch was seen.
        """
        if not several_processes():
            return self
        everyone = FeatureMoments(self.total.numel())
        count = torch.tensor([float(self.count)], dtype=torch.float64, device=self.total.device)
        everyone.total, everyone.outer = self.total.clone(), self.outer.clone()
        for tensor in (count, everyone.total, everyone.outer):
            torch.distributed.all_reduce(tensor)
        everyone.count = round(count.item())
        return everyone

    @property
    def mean(self) -> Tensor:
        """Mean feature vector, float64.

        Raises:
            ValueError: no features yet.
        """
        if self.count < 1:
            raise ValueError("moments: no features were added")
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance, float64.

        Raises:
            ValueError: fewer than two feature vectors.
        """
        if self.count < 2:
            raise ValueError(f"moments: a covariance needs at least 2 images; got {self.count}")
        mean = self.mean
        return (self.outer - torch.outer(mean, mean) * self.count) / (self.count - 1)


def frechet_distance(first: FeatureMoments, second: FeatureMoments) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two sets of features, as if both were Gaussian.

    Raises:
        ValueError: different numbers of channels, or a set of fewer than two vectors.
    """
    if first.total.numel() != second.total.numel():
        raise ValueError(f"frechet: {first.total.numel()} and {second.total.numel()} channels cannot be compared")
    device = first.total.device
    mean1, cov1 = first.mean, first.covariance
    mean2, cov2 = second.mean.to(device), second.covariance.to(device)
    # The singular values of R1^T R2, C = R R^T, are those of C1^(1/2) C2^(1/2); roots are thin where C is singular.
    cross = torch.linalg.svdvals(_root(cov1).T @ _root(cov2)).sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross
    return max(float(distance), 0.0)


def _root(covariance: Tensor) -> Tensor:
    # (channels, rank) with root root^T = covariance; directions below rounding error are left out
    values, vectors = torch.linalg.eigh(covariance)
    keep = values > values[-1].clamp_min(0) * values.numel() * torch.finfo(torch.float64).eps
    root: Tensor = vectors[:, keep] * values[keep].sqrt()
    return root


def several_processes() -> bool:
    """Whether torch.distributed runs with more than one process."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
