"""Blurred resampling with StyleGAN2's FIR filter [1, 3, 3, 1], in plain PyTorch (Karras et al. 2020, appendix B).

The filter is a depthwise 4x4 convolution with zero padding, of sum 1; up-sampling multiplies it by 4 to make good the
zeros that it inserts. Everything is linear, so it is differentiable any number of times.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TAPS = (1.0, 3.0, 3.0, 1.0)


def fir_kernel(channels: int, gain: float, like: Tensor) -> Tensor:
    """The 4x4 filter of sum `gain`, repeated for depthwise use: (channels, 1, 4, 4), dtype and device of `like`."""
    taps = torch.tensor(TAPS, dtype=like.dtype, device=like.device)
    kernel = torch.outer(taps, taps) * (gain / sum(TAPS) ** 2)
    return kernel.expand(channels, 1, len(TAPS), len(TAPS))


def blur(x: Tensor, padding: int, gain: float = 1.0, bias: Tensor | None = None) -> Tensor:
    """Filter every channel, then add a bias (C): (B, C, Y, X) -> (B, C, Y + 2 padding - 3, X + 2 padding - 3)."""
    channels = x.shape[1]
    return F.conv2d(x, fir_kernel(channels, gain, x), bias, padding=padding, groups=channels)


def upsample(x: Tensor) -> Tensor:
    """Double both sides: zeros inserted, then the filter with gain 4. (B, C, Y, X) -> (B, C, 2 Y, 2 X)."""
    channels = x.shape[1]
    return F.conv_transpose2d(x, fir_kernel(channels, 4.0, x), stride=2, padding=1, groups=channels)


def downsample(x: Tensor) -> Tensor:
    """Halve both sides: the filter, then every second pixel. (B, C, Y, X) -> (B, C, Y / 2, X / 2).

    Raises:
        ValueError: a side is odd.
    """
    require_even(x, "downsample")
    channels = x.shape[1]
    return F.conv2d(x, fir_kernel(channels, 1.0, x), stride=2, padding=1, groups=channels)


def conv_upsample(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """3x3 convolution of the map with zeros inserted, then the filter, then the bias.

    (B, I, Y, X), weight (O, I, 3, 3), bias (O) -> (B, O, 2 Y, 2 X). The transposed convolution costs a quarter of a
    3x3 convolution at the larger size.
    """
    x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)  # (B, O, 2 Y + 1, 2 X + 1)
    return blur(x, padding=1, gain=4.0, bias=bias)


def conv_downsample(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The filter, then a 3x3 convolution of stride 2.

    (B, I, Y, X), weight (O, I, 3, 3), bias (O) -> (B, O, Y / 2, X / 2).

    Raises:
        ValueError: a side is odd.
    """
    require_even(x, "conv_downsample")
    return F.conv2d(blur(x, padding=2), weight, bias, stride=2)


def require_even(x: Tensor, who: str) -> None:
    rows, cols = x.shape[-2:]
    if rows % 2 or cols % 2:
        raise ValueError(
            f"{who}: both sides must be even to be halved; got {rows}x{cols}. "
            f"Nearest valid: {rows + rows % 2}x{cols + cols % 2}."
        )
