"""The random directions of Performer's features (arXiv 2009.14794, section 2.4 and Algorithm 1 of its appendix)."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor

# Ours: drawn directions that are kept, by size, seed, dtype and device. At the papers' 5224 x 784 one takes 16 MiB.
KEPT = 8
_kept: OrderedDict[tuple[int, int, int, torch.dtype, str], Tensor] = OrderedDict()


def default_features(channels: int) -> int:
    """int(d ln d), the number of features that the paper recommends (Theorem 4) for vectors of d channels."""
    return max(1, int(channels * math.log(channels)))


def performer_projection(features: int, channels: int, seed: int, *, orthogonal: bool = True) -> Tensor:
    """Draw M directions, each standard Gaussian in d channels: (M, d) float64 on the CPU.

    Orthogonal directions come in blocks of d: the rows of a uniformly random rotation, stretched to the lengths of
    independent Gaussian vectors. They leave every expectation as it is and lower the variance.

    Args:
        features: M.
        channels: d, channels of the vectors compared.
        seed: same seed, same directions.
        orthogonal: or all independent.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)

    def draw(rows: int) -> Tensor:
        return torch.randn(rows, channels, generator=generator, dtype=torch.float64, device="cpu")

    if not orthogonal:
        return draw(features)
    blocks = []
    for start in range(0, features, channels):
        turn, triangle = torch.linalg.qr(draw(channels))
        # Without the signs a QR's rotation is not uniform, and the estimate is biased.
        turn = turn * triangle.diagonal().sign()
        blocks.append(turn.T[: features - start])
    lengths: Tensor = torch.linalg.vector_norm(draw(features), dim=1, keepdim=True)
    return torch.cat(blocks) * lengths


def kept_projection(features: int, channels: int, seed: int, like: Tensor) -> Tensor:
    """`performer_projection` on the device of `like` in its dtype, at least float32; drawn once for each."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    if like.device.type == "meta":
        return torch.empty(features, channels, dtype=dtype, device="meta")
    key = (features, channels, seed, dtype, str(like.device))
    if key not in _kept:
        with torch.inference_mode(False), torch.no_grad():  # it may be kept for a call that needs gradients
            _kept[key] = performer_projection(features, channels, seed).to(like.device, dtype)
    _kept.move_to_end(key)
    while len(_kept) > KEPT:
        _kept.popitem(last=False)
    return _kept[key]
