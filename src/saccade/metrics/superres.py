"""PSNR and SSIM as the super-resolution literature reports them: on luma, without a border as wide as the scale.

Pictures are rounded to 8 bits before. Luma is BT.601's in studio range, 16 to 235, and is not rounded; the peak is 255
all the same. SSIM is Wang's (IEEE TIP 2004): an 11x11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, and only
windows that lie in the picture. DIV2K's validation is scored in RGB, without a border of scale + 6 (EDSR, and CSNLN
after it).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PEAK = 255.0
_LUMA = (65.481, 128.553, 24.966)  # of 255, BT.601
_WINDOW, _SIGMA = 11, 1.5
_DIV2K_SHAVE = 6


def luma(images: Tensor) -> Tensor:
    """BT.601 luma in studio range, not rounded: (B, 3, Y, X) uint8 -> (B, 1, Y, X) float64 in [16, 235].

    Raises:
        ValueError: not uint8 RGB.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"luma: images are uint8 (B, 3, Y, X); got {images.dtype} {tuple(images.shape)}")
    weights = torch.tensor(_LUMA, dtype=torch.float64, device=images.device).view(1, 3, 1, 1) / 255
    return 16 + (images.double() * weights).sum(1, keepdim=True)


def psnr(generated: Tensor, target: Tensor, shave: int) -> Tensor:
    """Peak signal-to-noise ratio in dB, peak 255, over all channels: (B, C, Y, X) twice -> (B,) float64.

    Equal pictures get the value of one wrong level in one pixel and channel in place of infinity.

    Args:
        shave: pixels left out at every side.

    Raises:
        ValueError: other shapes, or nothing left within the border.
    """
    _require_alike("psnr", generated, target)
    error = (shaved(generated, shave).double() - shaved(target, shave).double()).square()
    mean = error.flatten(1).mean(1)
    return 10 * torch.log10(PEAK**2 / mean.clamp_min(1 / error[0].numel()))


def ssim(generated: Tensor, target: Tensor, shave: int) -> Tensor:
    """Mean structural similarity, channels averaged: (B, C, Y, X) in 0..255 twice -> (B,) float64.

    Pictures that hold no whole window within their border get NaN.

    Raises:
        ValueError: other shapes, or nothing left within the border.
    """
    _require_alike("ssim", generated, target)
    x, y = shaved(generated, shave).double(), shaved(target, shave).double()
    if min(x.shape[-2:]) < _WINDOW:
        return torch.full((len(x),), math.nan, dtype=torch.float64, device=x.device)
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    mean_x, mean_y = _blurred(x), _blurred(y)
    variance_x, variance_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    alike = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    alike = alike / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    return alike.flatten(1).mean(1)


def shaved(images: Tensor, shave: int) -> Tensor:
    """Images (..., Y, X) without a border.

    Raises:
        ValueError: nothing is left.
    """
    rows, cols = images.shape[-2:]
    if shave < 0 or min(rows, cols) <= 2 * shave:
        raise ValueError(f"a border of {shave} pixels leaves nothing of {rows}x{cols}; use larger pictures")
    return images[..., shave : rows - shave, shave : cols - shave]


def scores(generated: Tensor, target: Tensor, scale: int) -> dict[str, Tensor]:
    """Every score of 8-bit pictures by the name of its protocol: (B, 3, Y, X) uint8 twice -> (B,) float64 each.

    `psnr_y_shave<s>` and `ssim_y_shave<s>` as on Set5, Set14, B100 and Urban100; `psnr_rgb_shave<s + 6>` as on DIV2K,
    NaN for pictures that have nothing within that border.

    Raises:
        ValueError: not uint8 RGB of one shape, or too small for the border.
    """
    _require_alike("scores", generated, target)
    ours, theirs = luma(generated), luma(target)
    wide = scale + _DIV2K_SHAVE
    whole = min(target.shape[-2:]) > 2 * wide
    return {
        f"psnr_y_shave{scale}": psnr(ours, theirs, scale),
        f"ssim_y_shave{scale}": ssim(ours, theirs, scale),
        f"psnr_rgb_shave{wide}": psnr(generated, target, wide)
        if whole
        else torch.full_like(ours[:, 0, 0, 0], math.nan),
    }


def _require_alike(who: str, generated: Tensor, target: Tensor) -> None:
    if generated.shape != target.shape:
        raise ValueError(f"{who}: pictures must be of one shape; got {tuple(generated.shape)}, {tuple(target.shape)}")


def _blurred(images: Tensor) -> Tensor:
    """The Gaussian mean of every whole window, by shifted sums: in float64 far faster than a convolution."""
    window = [math.exp(-((place - _WINDOW // 2) ** 2) / (2 * _SIGMA**2)) for place in range(_WINDOW)]
    for axis in (-2, -1):
        length = images.shape[axis] - _WINDOW + 1
        total = images.narrow(axis, 0, length) * (window[0] / sum(window))
        for place in range(1, _WINDOW):
            total.add_(images.narrow(axis, place, length), alpha=window[place] / sum(window))
        images = total
    return images
