"""Pixelwise measures: L1, L1 inside a mask, PSNR. One value per image; the mean over images is the caller's."""

from __future__ import annotations

import torch
from torch import Tensor


def to_uint8(images: Tensor) -> Tensor:
    """Quantise [-1, 1] to 0..255 as saving to PNG does: clamp, then round to the nearest level."""
    return ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def l1_per_image(generated: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of each image in [-1, 1] units: (B, 3, Y, X) twice -> (B,) float64."""
    return (generated.detach().double() - target.detach().double()).abs().flatten(1).mean(1)


def masked_l1_per_image(generated: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """As ``l1_per_image`` over the pixels of a (B, 1, Y, X) mask; NaN for an image whose mask is empty."""
    difference = (generated.detach().double() - target.detach().double()).abs().mean(1, keepdim=True)
    weight = mask.double()
    # 0/0 is the NaN that is promised
    return (difference * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)


def psnr_per_image(generated: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each uint8 RGB image in dB, peak 255: (B, 3, Y, X) twice -> (B,) float64.

    The mean square error is over all channels and pixels. Equal images get the value of a single wrong level (at
    256x256 about 101 dB) in place of infinity, which no mean survives.

    Raises:
        ValueError: the images are not uint8.
    """
    if generated.dtype != torch.uint8 or target.dtype != torch.uint8:
        raise ValueError(f"psnr: images must be uint8; got {generated.dtype} and {target.dtype}")
    error = (generated.double() - target.double()).square().flatten(1).mean(1)
    floor = 1.0 / generated[0].numel()
    return 10 * torch.log10(255.0**2 / error.clamp_min(floor))
