"""Batch normalisation with a gain and an offset for each class, over all processes of a distributed run.

Conditional batch norm as in TF-GAN's SAGAN, which Your Local GAN (arXiv 1911.12287) builds on: a table of gains and one
of offsets with a row a class, eps 1e-3, running estimates that keep 0.999 of their value and take the biased variance
(PyTorch's take the unbiased one). There the moments were those of all TPU cores; here they are those of all processes.

The gain of a sample's class is folded into the scale that normalises, so that a call reads its input twice, writes its
output once and keeps no map but the input for backward. Backward is written out once: in training mode a gradient of a
gradient through the layer raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from saccade.layers.equalised import full_precision


class BatchNorm(nn.Module):
    """Normalise every channel over the batch and space, then scale and shift it, by class where there are classes.

    Args:
        channels: of the map.
        classes: rows of the tables of gains and offsets; None is one gain and one offset for all.
        eps: added to the variance.
        momentum: share of the running estimates that one batch replaces.
        sync: take the moments over all processes where torch.distributed runs; batches may differ in size.

    Raises:
        ValueError: no channels, or classes below 1.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        channels: int,
        *,
        classes: int | None = None,
        eps: float = 1e-3,
        momentum: float = 1e-3,
        sync: bool = True,
    ) -> None:
        super().__init__()
        if channels < 1 or (classes is not None and classes < 1):
            raise ValueError(f"BatchNorm: channels and classes must be 1 or more; got {channels} and {classes}.")
        self.channels = channels
        self.classes = classes
        self.eps = eps
        self.momentum = momentum
        self.sync = sync
        shape = (channels,) if classes is None else (classes, channels)
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Normalise by the moments of the batch in training mode, by the running estimates in evaluation mode.

        Args:
            x: (B, C, Y, X).
            labels: (B,) long; None without classes.

        Returns:
            (B, C, Y, X), dtype of `x`; moments and scales are taken at least in float32.

        Raises:
            ValueError: another number of channels, or labels where there are no classes, or none where there are.
        """
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ValueError(f"BatchNorm: a map must be (batch, {self.channels}, rows, cols); got {tuple(x.shape)}.")
        if (labels is None) != (self.classes is None):
            need = "takes no labels" if self.classes is None else f"needs labels of its {self.classes} classes"
            raise ValueError(f"BatchNorm: the layer {need}; got {None if labels is None else tuple(labels.shape)}.")
        with torch.autocast(x.device.type, enabled=False):
            gain, offset = self._rows(x, labels)
            if not self.training:
                scale = gain * torch.rsqrt(self.running_var.to(gain.dtype) + self.eps)
                return _scaled(x, scale, offset - self.running_mean.to(gain.dtype) * scale)
            y, mean, var = _normalised(x, gain, offset, self.eps, self.sync and _processes() > 1)
            self._follow(self.running_mean, mean)
            self._follow(self.running_var, var)
            return y

    @torch.no_grad()
    def _follow(self, estimate: Tensor, moment: Tensor) -> None:
        # an overflow in one batch, whose step is skipped, must not stay in the estimates for ever
        moment = moment.to(estimate.dtype)
        estimate.lerp_(torch.where(moment.isfinite(), moment, estimate), self.momentum)

    def _rows(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Gain and offset of every sample, (B, C) or (1, C) each, at least in float32."""
        dtype = full_precision(x.dtype)
        if labels is None:
            return self.weight[None].to(dtype), self.bias[None].to(dtype)
        return F.embedding(labels, self.weight).to(dtype), F.embedding(labels, self.bias).to(dtype)

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, classes={self.classes}, eps={self.eps}, momentum={self.momentum}"
            f"{'' if self.sync else ', sync=False'}"
        )


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _scaled(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x * scale + shift, scale and shift (B or 1, C), in the dtype of x."""
    return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None]).to(x.dtype)


def _moments(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel, (C,) each."""
    if x.device.type in ("cpu", "cuda"):  # several times faster than var_mean, which goes channel by channel
        unused = torch.zeros(2, x.shape[1], dtype=dtype, device=x.device)
        mean, var = torch.batch_norm_update_stats(x, unused[0], unused[1], 0.0)
    else:
        var, mean = torch.var_mean(x.to(dtype), (0, 2, 3), correction=0)
    return mean, var


def _moments_of_all(mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same over all processes, of which each gives its own; and how many values a channel has in all."""
    own = torch.cat((mean, var, mean.new_full((1,), count)))
    every = [torch.empty_like(own) for _ in range(_processes())]
    dist.all_gather(every, own)
    means, variances, counts = torch.split(torch.stack(every), [len(mean), len(mean), 1], dim=1)  # a row a process
    total = counts.sum()
    share = counts / total
    middle = (share * means).sum(0)
    # not the mean square less the squared mean, which cancel
    spread = (share * (variances + (means - middle).square())).sum(0)
    return middle, spread, total


class _Normalised(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * gain + offset, with the moments of the batch, which it also returns."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, offset: Tensor, eps: float, everywhere: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        count = x.numel() // x.shape[1]
        mean, var = _moments(x, gain.dtype)
        total = torch.full((), count, dtype=gain.dtype, device=x.device)
        if everywhere:
            mean, var, total = _moments_of_all(mean, var, count)
        inverse = torch.rsqrt(var + eps)
        scale = gain * inverse
        ctx.save_for_backward(x, gain, mean, inverse, total)
        ctx.everywhere = everywhere
        ctx.mark_non_differentiable(mean, var)
        return _scaled(x, scale, offset - mean * scale), mean, var

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError(
                "BatchNorm: in training mode a gradient through the layer cannot be differentiated again "
                "(create_graph=True). Valid here: eval(), whose running estimates are constants."
            )
        x, gain, mean, inverse, total = ctx.saved_tensors
        wide = grad.to(gain.dtype)
        # with n = (x - mean) * inverse: sums over space of the gradient and of its product with n, (B, C)
        of_offset = wide.sum((2, 3))
        of_gain = ((wide * x).sum((2, 3)) - mean * of_offset) * inverse
        sums = torch.stack(((gain * of_offset).sum(0), (gain * of_gain).sum(0)))
        if ctx.everywhere:
            dist.all_reduce(sums)
        along_one, along_n = sums / total
        # inverse * (grad * gain - along_one - n * along_n), sorted by what multiplies the maps
        of_x = -inverse.square() * along_n
        rest = -inverse * along_one - mean * of_x
        grad_x = torch.addcmul(rest[:, None, None], x, of_x[:, None, None])
        grad_x = torch.addcmul(grad_x, wide, (gain * inverse)[:, :, None, None])
        if gain.shape[0] == 1:
            of_gain, of_offset = of_gain.sum(0, keepdim=True), of_offset.sum(0, keepdim=True)
        return grad_x.to(x.dtype), of_gain, of_offset, None, None


# `apply` has no types of its own
_normalised: Callable[[Tensor, Tensor, Tensor, float, bool], tuple[Tensor, Tensor, Tensor]] = _Normalised.apply
