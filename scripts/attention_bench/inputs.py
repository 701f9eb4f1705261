"""The maps that attention is given: features of photographs, or noise with the same mean and spread.

Photographs ship inside scikit-image (public domain and CC0). A picture and a smoothly warped copy of it go through the
same fixed random 3x3 convolution and ReLU: queries come from the picture, keys from the copy, values from the copy
through another such convolution. "photograph-raw" is that, as in the network of PSAL's experiments
(arXiv 2202.03163, section 3.3, one convolution before attention); "photograph" brings each channel of q and k to mean 0
and variance 1 over the key map, as a normalisation layer in front of a projection does.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attention_bench.cells import DTYPES, Case

if TYPE_CHECKING:
    from torch import Tensor

PICTURES = ("astronaut", "cat", "coffee", "rocket")
# Ours: the largest displacement of the warp is about this share of the picture's side.
WARP = 0.045


def make_maps(case: Case, dtype: str, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values (B, channels, rows, cols) and a gradient of the output, the same at every call."""
    import torch

    q, k, v = photograph_maps(case)
    generator = torch.Generator().manual_seed(1)
    if case.inputs == "noise":
        q, k, v = (_noise_like(x, generator) for x in (q, k, v))
    upstream = torch.randn(case.batch, case.v_channels, *case.q_size, generator=generator)
    q, k, v, upstream = (x.to(device, getattr(torch, DTYPES[dtype])).contiguous() for x in (q, k, v, upstream))
    return q, k, v, upstream


def photograph_maps(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of pictures, keys and values of their warped copies; batch entries take turns with the pictures."""
    import torch

    names = [PICTURES[number % len(PICTURES)] for number in range(case.batch)]
    pictures = [picture(name) for name in names]
    query_pictures = torch.cat([resize(x, case.q_size) for x in pictures])
    key_pictures = torch.cat([warp(resize(x, case.kv_size)) for x in pictures])
    q, k = (stem(x, case.channels, seed=0) for x in (query_pictures, key_pictures))
    v = stem(key_pictures, case.v_channels, seed=1)
    if case.inputs != "photograph-raw":
        mean, deviation = k.mean((0, 2, 3), keepdim=True), k.std((0, 2, 3), keepdim=True)
        deviation = deviation.clamp_min(0.1 * float(deviation.mean()))  # a ReLU may have left a channel dead
        q, k = (q - mean) / deviation, (k - mean) / deviation
    return q, k, v


def picture(name: str) -> Tensor:
    """The largest centred square of a photograph, (1, 3, side, side) in [0, 1]."""
    import torch
    from skimage import data

    image = torch.from_numpy(getattr(data, name)()).permute(2, 0, 1).unsqueeze(0).float() / 255
    side = min(image.shape[2:])
    top, left = ((length - side) // 2 for length in image.shape[2:])
    return image[:, :, top : top + side, left : left + side]


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    import torch.nn.functional as F

    return F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)


def warp(image: Tensor) -> Tensor:
    """The picture under a smooth displacement that no shift of the whole explains."""
    import torch
    import torch.nn.functional as F

    rows, cols = (torch.linspace(-1, 1, length) for length in image.shape[2:])
    y, x = torch.meshgrid(rows, cols, indexing="ij")
    dx = torch.sin(math.pi * (1.3 * y + 0.2)) + 0.5 * torch.cos(0.9 * math.pi * x)
    dy = torch.cos(math.pi * (1.1 * x - 0.3))
    grid = torch.stack([x + 2 * WARP * dx, y + 2 * WARP * dy], -1).expand(image.shape[0], -1, -1, -1)
    return F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)


def stem(image: Tensor, channels: int, seed: int) -> Tensor:
    """ReLU of a 3x3 convolution with fixed random weights: (B, 3, Y, X) -> (B, channels, Y, X)."""
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(channels, 3, 3, 3, generator=generator) * (2 / 27) ** 0.5
    bias = 0.1 * torch.randn(channels, generator=generator)
    return F.relu(F.conv2d(image, weight, bias, padding=1))


def _noise_like(maps: Tensor, generator: object) -> Tensor:
    import torch

    mean, deviation = maps.mean((2, 3), keepdim=True), maps.std((2, 3), keepdim=True)
    return mean + deviation * torch.randn(maps.shape, generator=generator)  # type: ignore[call-overload]
