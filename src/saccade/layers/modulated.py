"""Modulated convolution of StyleGAN2 (Karras et al. 2020, section 2.2) by scaling activations instead of weights.

Modulating the weights of every sample needs a grouped convolution. As a convolution is linear, scaling the input
channels by the style and the output channels by the demodulation gives the same result (their equations 1 and 3) with
one ordinary convolution. Without a style (the constant style of the encoders in GPA, arXiv 2107.03742) only the
demodulation of the weights remains.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from saccade.layers.equalised import EqualLinear, full_precision
from saccade.layers.resample import conv_downsample, conv_upsample

Resample = Literal["none", "up", "down"]
RESAMPLINGS: tuple[Resample, ...] = ("none", "up", "down")
DEMODULATION_EPS = 1e-8


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a convolution of `x` will run: that of an enabled autocast, else that of `x`."""
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind)


class ModulatedConv2d(nn.Module):
    """Convolution whose input channels are scaled by a style and whose output is brought back to unit variance.

    Args:
        in_channels, out_channels: channels of the input and output maps.
        kernel_size: side of the kernel, in pixels; 3 where the map is resampled.
        style_channels: width of the style vector; None for a constant style of ones.
        demodulate: divide each output channel by the norm of its modulated weights (eps 1e-8).
        resample: "up" doubles both sides, "down" halves them, both with the FIR filter; "none" keeps them.

    Raises:
        ValueError: unknown `resample`, or a kernel other than 3x3 where the map is resampled.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        style_channels: int | None,
        demodulate: bool = True,
        resample: Resample = "none",
    ) -> None:
        super().__init__()
        if resample not in RESAMPLINGS:
            raise ValueError(f"ModulatedConv2d: resample is one of {', '.join(RESAMPLINGS)}; got {resample!r}.")
        if resample != "none" and kernel_size != 3:
            raise ValueError(f"ModulatedConv2d: resampling needs kernel_size 3; got {kernel_size}.")
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.affine = None if style_channels is None else EqualLinear(style_channels, in_channels, bias_init=1.0)
        self.scale = 1.0 / math.sqrt(in_channels * kernel_size**2)
        self.demodulate = demodulate
        self.resample = resample

    def forward(
        self, x: Tensor, style: Tensor | None = None, *, bias: Tensor | None = None, gain: float = 1.0
    ) -> Tensor:
        """Convolve, multiply by `gain`, add `bias` (out): both are free where the channels are scaled anyway.

        (B, in, Y, X), style (B, style_channels) or None -> (B, out, Y', X').

        Raises:
            ValueError: a style is given to a layer of constant style, or missing where the layer needs one.
        """
        if (style is None) != (self.affine is None):
            need = "takes no style" if self.affine is None else "needs a style"
            raise ValueError(f"ModulatedConv2d {self.extra_repr()}: {need}; got style={style is not None}.")
        dtype = compute_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight.to(full_precision(self.weight.dtype)) * self.scale
            offset = None if bias is None else bias.to(dtype)
            x = x.to(dtype)
            if style is None or self.affine is None:
                factor = self._demodulation(weight, None) * gain if self.demodulate else gain
                return self._convolve(x, (weight * factor).to(dtype), offset)
            modulation = self.affine(style.to(weight.dtype))
            if not self.demodulate:
                modulation = modulation * gain
                return self._convolve(x * modulation.to(dtype)[:, :, None, None], weight.to(dtype), offset)
            if dtype == torch.float16:
                # cancelled by the demodulation; keeps activations inside the range of fp16 (StyleGAN2-ADA)
                modulation = modulation / modulation.abs().amax(dim=1, keepdim=True).clamp_min(DEMODULATION_EPS)
            x = self._convolve(x * modulation.to(dtype)[:, :, None, None], weight.to(dtype), None)
            factor = (self._demodulation(weight, modulation) * gain).to(dtype)
            return x * factor if offset is None else torch.addcmul(offset[:, None, None], x, factor)

    def _demodulation(self, weight: Tensor, modulation: Tensor | None) -> Tensor:
        """Inverse norms of the modulated weights: (O, 1, 1, 1) without a style, (B, O, 1, 1) with one."""
        power = weight.square().sum(dim=(2, 3))  # (O, I)
        if modulation is None:
            return torch.rsqrt(power.sum(dim=1) + DEMODULATION_EPS)[:, None, None, None]
        return torch.rsqrt(F.linear(modulation.square(), power) + DEMODULATION_EPS)[:, :, None, None]

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.resample == "up":
            return conv_upsample(x, weight, bias)
        if self.resample == "down":
            return conv_downsample(x, weight, bias)
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    def extra_repr(self) -> str:
        out_channels, in_channels, side, _ = self.weight.shape
        return f"{in_channels}, {out_channels}, {side}, demodulate={self.demodulate}, resample={self.resample}"
