"""Equalised learning rate: weights drawn from N(0, 1) and scaled by 1 / sqrt(fan_in) at run time.

Karras et al. 2018 (progressive GANs, section 4.1), with the constants of StyleGAN2 (Karras et al. 2020). Under Adam,
whose step does not depend on the size of the gradient, every layer then learns at the same relative speed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEAKY_SLOPE = 0.2
LEAKY_GAIN = math.sqrt(2.0)


def leaky_relu(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2 times sqrt(2), so that unit-variance input keeps about unit second moment (StyleGAN2)."""
    return F.leaky_relu(x, LEAKY_SLOPE) * LEAKY_GAIN


def full_precision(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which statistics are taken: float32, or float64 where the input is float64."""
    return torch.promote_types(dtype, torch.float32)


class EqualConv2d(nn.Module):
    """Convolution with equalised learning rate, square kernel, zero padding that keeps the size at stride 1.

    Args:
        in_channels, out_channels: channels of the input and output maps.
        kernel_size: side of the kernel, in pixels.
        stride: step of the kernel, in pixels.
        padding: zeros on each side; by default kernel_size // 2.
        bias: whether a bias, starting at 0, is added.
        lr_mul: how much faster than the other layers this one learns; leaves the initial function unchanged.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int | None = None,
        bias: bool = True,
        lr_mul: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size) / lr_mul)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.scale = lr_mul / math.sqrt(in_channels * kernel_size**2)
        self.lr_mul = lr_mul
        self.stride = stride
        self.padding = kernel_size // 2 if padding is None else padding

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, Y, X) -> (B, out, Y / stride, X / stride)."""
        bias = None if self.bias is None else self.bias * self.lr_mul
        return F.conv2d(x, self.weight * self.scale, bias, stride=self.stride, padding=self.padding)

    def extra_repr(self) -> str:
        out_channels, in_channels, side, _ = self.weight.shape
        return f"{in_channels}, {out_channels}, {side}, stride={self.stride}, padding={self.padding}"


class EqualLinear(nn.Module):
    """Linear layer with equalised learning rate.

    Args:
        in_features, out_features: widths.
        bias_init: initial value of every bias; StyleGAN2 uses 1 for the layers that make a modulation.
        lr_mul: how much faster than the other layers this one learns; leaves the initial function unchanged.
    """

    def __init__(self, in_features: int, out_features: int, *, bias_init: float = 0.0, lr_mul: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_mul)
        self.bias = nn.Parameter(torch.full((out_features,), float(bias_init) / lr_mul))
        self.scale = lr_mul / math.sqrt(in_features)
        self.lr_mul = lr_mul

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(x, self.weight * self.scale, self.bias * self.lr_mul)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}"
