"""Spectral normalisation: weights divided by an estimate of their largest singular value (Miyato et al. 2018).

Two forms, as in TF-GAN's SAGAN that Your Local GAN (arXiv 1911.12287) builds on: "bounded" divides by max(1, sigma), so
that the norm is at most 1; "equal" divides by sigma. One round of power iteration is made at every use of the weight,
from a vector `u` that is kept from use to use in training. `torch.nn.utils.parametrizations.spectral_norm` has only the
second form, and keeps its vector on the other side of the matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from saccade.layers.equalised import full_precision

Form = Literal["bounded", "equal", "none"]
FORMS: tuple[Form, ...] = ("bounded", "equal", "none")
# TF-GAN floors the squared length of a vector at 1e-12, its length at 1e-6.
LENGTH_FLOOR = 1e-6


def check_form(who: str, form: str) -> None:
    """Raise ValueError unless `form` is a form of spectral normalisation."""
    if form not in FORMS:
        raise ValueError(f"{who}: form is one of {', '.join(FORMS)}; got {form!r}.")


class _Spectral(nn.Module):
    """What the three layers share: a weight whose first axis is the column side of the matrix, and its vector `u`.

    The matrix is `weight.flatten(1)`, one row an output channel (a class, of an embedding); `u` lies on the other side,
    in_channels * rows * cols of the kernel long, in the order of the weight.
    """

    weight: Tensor
    u: Tensor
    form: Form

    def _prepare(self, form: Form) -> None:
        check_form(type(self).__name__, form)
        self.form = form
        self.register_buffer("u", torch.randn(self.weight[0].numel(), device=self.weight.device))

    def sigma(self) -> Tensor:
        """The estimate of the largest singular value after one more round of power iteration: a scalar.

        Its gradient flows to the weight, not to the vectors. In training mode the new `u` is kept; in evaluation mode
        every call starts from the one that training left.
        """
        u, v, _ = self._iterate()
        with torch.autocast(self.weight.device.type, enabled=False):
            return torch.dot(v, torch.mv(self.weight.flatten(1).to(v.dtype), u))

    def normalised(self) -> Tensor:
        """The weight as the layer uses it: divided by max(1, sigma), by sigma, or as it is."""
        if self.form == "none":
            return self.weight
        return _divided(self.weight, *self._iterate(), self.form == "bounded", None).to(self.weight.dtype)

    @torch.no_grad()
    def _iterate(self) -> tuple[Tensor, Tensor, Tensor]:
        """One round: `u`, the vector on the other side, and sigma, at least in float32."""
        with torch.autocast(self.weight.device.type, enabled=False):
            matrix = self.weight.flatten(1)
            matrix = matrix.to(full_precision(matrix.dtype))
            v = F.normalize(torch.mv(matrix, self.u.to(matrix.dtype)), dim=0, eps=LENGTH_FLOOR)
            u = torch.mv(matrix.t(), v)
            sigma = torch.linalg.vector_norm(u)  # v W u, as u is W'v before it is brought to length 1
            u = u / sigma.clamp_min(LENGTH_FLOOR)
            if self.training:
                self.u.copy_(u)  # `u` itself goes on: backward may come after the next use
            return u, v, sigma


def _mix(weight: Tensor, mixing: Tensor) -> Tensor:
    """(O, I, rows, cols) kernels times (rows * cols, s * s) -> (O, I, s, s)."""
    side = math.isqrt(mixing.shape[1])
    return (weight.flatten(2) @ mixing).view(*weight.shape[:2], side, side)


class _Divided(torch.autograd.Function):
    """A weight over max(1, sigma) or sigma = v W u, then its kernels times a matrix: two passes back instead of ten."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, u: Tensor, v: Tensor, sigma: Tensor, bounded: bool, mixing: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(weight, u, v, sigma, mixing)
        ctx.bounded = bounded
        divisor = sigma.clamp_min(1.0) if bounded else sigma
        if mixing is None:
            return weight / divisor
        return _mix(weight.to(divisor.dtype), mixing / divisor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, u, v, sigma, mixing = ctx.saved_tensors
        wide = weight.to(sigma.dtype)
        if torch.is_grad_enabled():  # create_graph=True: now sigma must know where it is from
            sigma = torch.dot(v, torch.mv(wide.flatten(1), u))
        divisor = sigma.clamp_min(1.0) if ctx.bounded else sigma
        if mixing is None:
            direct = grad / divisor
        else:
            direct = (grad.to(sigma.dtype).flatten(2) @ (mixing.t() / divisor)).view_as(weight)
        slope = (direct * wide).sum() / divisor
        if ctx.bounded:
            slope = slope * (sigma > 1)
        through_sigma = torch.addr(direct.flatten(1), v * -slope, u)
        return through_sigma.view_as(weight).to(weight.dtype), None, None, None, None, None


# `apply` has no types of its own
_divided: Callable[[Tensor, Tensor, Tensor, Tensor, bool, Tensor | None], Tensor] = _Divided.apply


class SpectralConv2d(_Spectral, nn.Conv2d):
    """Convolution of spectrally normalised weight; zero padding.

    Args:
        in_channels, out_channels: channels of the input and output maps.
        kernel_size: side of the kernel, in pixels.
        stride: step of the kernel, in pixels.
        padding: zeros on each side.
        bias: whether there is a bias; it is not normalised.
        form: "bounded", "equal", or "none" for a plain convolution.

    Raises:
        ValueError: unknown `form`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        form: Form = "bounded",
    ) -> None:
        nn.Conv2d.__init__(self, in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=bias)
        self._prepare(form)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, Y, X) -> (B, out, Y', X')."""
        return F.conv2d(x, self.normalised(), self.bias, self.stride, self.padding)

    def mixed(self, mixing: Tensor) -> Tensor:
        """`normalised()` with the pixels of every kernel mixed by a matrix: (out, in, s', s'), at least in float32.

        Args:
            mixing: (kernel_size^2, s'^2).
        """
        with torch.autocast(self.weight.device.type, enabled=False):
            if self.form == "none":
                return _mix(self.weight.to(mixing.dtype), mixing)
            return _divided(self.weight, *self._iterate(), self.form == "bounded", mixing)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, {self.kernel_size[0]}, stride={self.stride[0]}, "
            f"padding={self.padding[0]}, bias={self.bias is not None}, form={self.form}"
        )


class SpectralLinear(_Spectral, nn.Linear):
    """Linear layer of spectrally normalised weight.

    Args:
        in_features, out_features: widths.
        bias: whether there is a bias; it is not normalised.
        form: "bounded", "equal", or "none" for a plain layer.

    Raises:
        ValueError: unknown `form`.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True, form: Form = "bounded") -> None:
        nn.Linear.__init__(self, in_features, out_features, bias=bias)
        self._prepare(form)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(x, self.normalised(), self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, form={self.form}"


class SpectralEmbedding(_Spectral, nn.Embedding):
    """Table of spectrally normalised weight, one row a class.

    Args:
        num_embeddings, embedding_dim: rows, and the width of one.
        form: "bounded", "equal", or "none" for a plain table.

    Raises:
        ValueError: unknown `form`.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, *, form: Form = "bounded") -> None:
        nn.Embedding.__init__(self, num_embeddings, embedding_dim, _weight=torch.randn(num_embeddings, embedding_dim))
        self._prepare(form)

    def forward(self, labels: Tensor) -> Tensor:
        """(...) long -> (..., embedding_dim)."""
        return F.embedding(labels, self.normalised())

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, form={self.form}"


def spectral_pointwise(in_channels: int, out_channels: int, *, form: Form = "equal") -> SpectralConv2d:
    """A 1x1 convolution without bias: the projections of SAGAN's attention, whose form is "equal" as released."""
    return SpectralConv2d(in_channels, out_channels, 1, bias=False, form=form)
