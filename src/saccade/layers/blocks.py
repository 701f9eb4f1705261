"""UNet blocks of the pose-morph generator and blocks of the StyleGAN2 discriminator.

Source: GPA (arXiv 2107.03742) figures 4 and 12 for what a block holds, Karras et al. 2020 for its parts: up-convolution
3x3, convolution 3x3 and projection to RGB in a decoder, residual blocks and minibatch standard deviation in a
discriminator.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from saccade.layers.equalised import LEAKY_GAIN, LEAKY_SLOPE, EqualConv2d, full_precision, leaky_relu
from saccade.layers.modulated import ModulatedConv2d, Resample
from saccade.layers.resample import blur, downsample, require_even, upsample

Normalisation = Literal["demodulate", "pixel", "both"]
NORMALISATIONS: tuple[Normalisation, ...] = ("demodulate", "pixel", "both")
Skip = Literal["concat", "add"]
SKIPS: tuple[Skip, ...] = ("concat", "add")

PIXEL_EPS = 1e-8
STDDEV_EPS = 1e-8


def pixel_norm(x: Tensor) -> Tensor:
    """Divide by the root mean square over channels, at every pixel (Karras et al. 2018, section 4.2).

    The statistic is taken at least in float32.
    """
    wide = x.to(full_precision(x.dtype))
    return (wide * torch.rsqrt(wide.square().mean(dim=1, keepdim=True) + PIXEL_EPS)).to(x.dtype)


class NoiseInput(nn.Module):
    """Add one N(0, 1) map to all channels, with a learned strength that starts at 0 (StyleGAN2)."""

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(x.shape[0], 1, *x.shape[2:], dtype=x.dtype, device=x.device)
        return x + self.strength.to(x.dtype) * noise


class StyledConv(nn.Module):
    """Modulated 3x3 convolution, noise if asked for, bias, leaky ReLU, and the normalisation of the features.

    Args:
        in_channels, out_channels: channels of the input and output maps.
        style_channels: width of the style vector; None for the constant style.
        resample: "none", "up" or "down".
        normalisation: "demodulate" normalises weights as StyleGAN2 does; "pixel" normalises features after the
            activation instead; "both" does both.
        noise: add noise before the activation.

    Raises:
        ValueError: unknown `normalisation` or `resample`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        style_channels: int | None,
        resample: Resample = "none",
        normalisation: Normalisation = "demodulate",
        noise: bool = False,
    ) -> None:
        super().__init__()
        if normalisation not in NORMALISATIONS:
            raise ValueError(f"StyledConv: normalisation is one of {', '.join(NORMALISATIONS)}; got {normalisation!r}.")
        self.conv = ModulatedConv2d(
            in_channels,
            out_channels,
            3,
            style_channels=style_channels,
            demodulate=normalisation != "pixel",
            resample=resample,
        )
        self.noise = NoiseInput() if noise else None
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.pixel_norm = normalisation != "demodulate"

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        """(B, in, Y, X), style (B, style_channels) or None -> (B, out, Y', X')."""
        # leaky ReLU commutes with a positive factor: its gain goes where channels are scaled anyway
        x = self.conv(x, style, bias=self.bias * LEAKY_GAIN, gain=LEAKY_GAIN)
        if self.noise is not None:
            x = self.noise(x)
        x = F.leaky_relu(x, LEAKY_SLOPE)
        return pixel_norm(x) if self.pixel_norm else x


class EncoderBlock(nn.Module):
    """Two 3x3 convolutions of constant style; the first halves the map (blur, then stride 2) where `down` is set."""

    def __init__(
        self, in_channels: int, out_channels: int, *, down: bool, normalisation: Normalisation = "demodulate"
    ) -> None:
        super().__init__()
        resample: Resample = "down" if down else "none"
        self.conv0 = StyledConv(
            in_channels, out_channels, style_channels=None, resample=resample, normalisation=normalisation
        )
        self.conv1 = StyledConv(out_channels, out_channels, style_channels=None, normalisation=normalisation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, Y, X) -> (B, out, Y / 2, X / 2), or the same size without `down`."""
        return self.conv1(self.conv0(x))  # type: ignore[no-any-return]


class DecoderBlock(nn.Module):
    """Up-convolution 3x3, join with the encoder's map of the same level, convolution 3x3; both modulated by the style.

    Args:
        in_channels, out_channels: channels of the coarser map that comes in and of the map that goes out.
        skip_channels: channels of the encoder's map; 0 where none is joined (the coarsest level, which starts from it).
        style_channels: width of the style vector.
        up: whether the block doubles the map.
        skip: "concat" widens the second convolution; "add" needs skip_channels == out_channels, and divides the sum by
            sqrt(2).
        normalisation, noise: as in StyledConv.

    Raises:
        ValueError: unknown `skip`, or "add" with other channels than the block's own.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        skip_channels: int,
        style_channels: int,
        up: bool,
        skip: Skip = "concat",
        normalisation: Normalisation = "demodulate",
        noise: bool = False,
    ) -> None:
        super().__init__()
        if skip not in SKIPS:
            raise ValueError(f"DecoderBlock: skip is one of {', '.join(SKIPS)}; got {skip!r}.")
        if skip == "add" and skip_channels not in (0, out_channels):
            raise ValueError(
                f"DecoderBlock: skip='add' needs as many skip channels as output channels; "
                f"got {skip_channels} and {out_channels}. Valid here: skip_channels={out_channels}, or skip='concat'."
            )
        self.skip = skip
        self.skip_channels = skip_channels
        self.conv0 = StyledConv(
            in_channels,
            out_channels,
            style_channels=style_channels,
            resample="up" if up else "none",
            normalisation=normalisation,
            noise=noise,
        )
        self.conv1 = StyledConv(
            out_channels + (skip_channels if skip == "concat" else 0),
            out_channels,
            style_channels=style_channels,
            normalisation=normalisation,
            noise=noise,
        )

    def forward(self, x: Tensor, skip: Tensor | None, style: Tensor) -> Tensor:
        """(B, in, Y, X), skip (B, skip_channels, 2 Y, 2 X) or None, style (B, S) -> (B, out, 2 Y, 2 X).

        Raises:
            ValueError: a skip map is given to a block that joins none, or missing where one is joined.
        """
        if (skip is None) != (self.skip_channels == 0):
            raise ValueError(f"DecoderBlock: joins {self.skip_channels} skip channels; got skip={skip is not None}.")
        x = self.conv0(x, style)
        if skip is not None:
            x = torch.cat((x, skip), dim=1) if self.skip == "concat" else (x + skip) * math.sqrt(0.5)
        return self.conv1(x, style)  # type: ignore[no-any-return]


class ToRGB(nn.Module):
    """1x1 modulated convolution to the image, not demodulated, added to the up-sampled image of the coarser level.

    The running image is kept in float32 (float64 for float64 input) whatever the dtype of the features.
    """

    def __init__(self, in_channels: int, *, style_channels: int, image_channels: int = 3) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, image_channels, 1, style_channels=style_channels, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(image_channels))

    def forward(self, x: Tensor, style: Tensor, image: Tensor | None) -> Tensor:
        """(B, in, Y, X), style (B, S), image (B, 3, Y / 2, X / 2) or None -> (B, 3, Y, X)."""
        rgb: Tensor = self.conv(x, style)
        with torch.autocast(x.device.type, enabled=False):
            rgb = rgb.to(full_precision(rgb.dtype)) + self.bias[:, None, None]
            return rgb if image is None else rgb + upsample(image)


class ResidualDownBlock(nn.Module):
    """StyleGAN2's discriminator block: 3x3, then blur and 3x3 of stride 2; 1x1 shortcut; (a + b) / sqrt(2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv0 = EqualConv2d(in_channels, in_channels, 3)
        self.conv1 = EqualConv2d(in_channels, out_channels, 3, stride=2, padding=0)
        self.shortcut = EqualConv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, Y, X) -> (B, out, Y / 2, X / 2).

        Raises:
            ValueError: a side is odd.
        """
        require_even(x, "ResidualDownBlock")
        y = leaky_relu(self.conv0(x))
        y = leaky_relu(self.conv1(blur(y, padding=2)))
        joined: Tensor = y + self.shortcut(downsample(x))
        return joined * math.sqrt(0.5)


class MinibatchStddev(nn.Module):
    """Append one map that holds the mean standard deviation over a group of samples (Karras et al. 2018, section 3).

    Samples are grouped as StyleGAN2 does: with n groups, group j holds samples j, j + n, j + 2 n, ... The group size is
    the largest divisor of the batch that is at most `group`, so that batch 3 (GPA's) makes one group of 3.
    """

    def __init__(self, group: int = 4) -> None:
        super().__init__()
        if group < 1:
            raise ValueError(f"MinibatchStddev: group must be at least 1; got {group}.")
        self.group = group

    def group_size(self, batch: int) -> int:
        return max(size for size in range(1, min(self.group, batch) + 1) if batch % size == 0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, Y, X) -> (B, C + 1, Y, X)."""
        batch, channels, rows, cols = x.shape
        size = self.group_size(batch)
        wide = x.to(full_precision(x.dtype)).reshape(size, batch // size, channels, rows, cols)  # (S, n, C, Y, X)
        variance = wide.var(dim=0, unbiased=False)
        deviation = (variance + STDDEV_EPS).sqrt().mean(dim=(1, 2, 3))  # (n)
        statistic = deviation.repeat(size).to(x.dtype)[:, None, None, None].expand(batch, 1, rows, cols)
        return torch.cat((x, statistic), dim=1)
