"""Linear and local attention on patches as papers describe them: every pixel's patch unrolled to a vector first.

This is our own code: the peer that a backend which never unrolls is measured against. PSAL's Table 1 (arXiv 2202.03163)
marks such layers "patches unrolled to vectors". Patches are zero outside the map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def unfolded_linear(q: Tensor, k: Tensor, v: Tensor, *, patch_size: int) -> Tensor:
    """Linear attention with elu(x) + 1 (Katharopoulos et al. 2020) on unrolled patches.

    Args:
        q: (B, C, Yq, Xq).
        k: (B, C, Yk, Xk).
        v: (B, E, Yk, Xk).

    Returns:
        (B, E, Yq, Xq).
    """
    # The feature map acts on each entry, so an entry outside the map, 0, has the feature elu(0) + 1 = 1.
    queries, keys = (F.elu(F.unfold(x, patch_size, padding=patch_size // 2)) + 1 for x in (q, k))  # (B, C*p*p, N)
    values = v.flatten(2)  # (B, E, K)
    summary = values @ keys.transpose(1, 2)  # (B, E, C*p*p)
    mass = keys.sum(2, keepdim=True).transpose(1, 2) @ queries  # (B, 1, N)
    return (summary @ queries / (mass + 1e-6)).unflatten(2, q.shape[2:])


def unfolded_local(
    q: Tensor, k: Tensor, v: Tensor, *, window: int, patch_size: int, scale: float | None = None, rows: int = 1
) -> Tensor:
    """Attention of each query patch to the unrolled patches in a window of keys around it, l2 score.

    A window of even side w reaches from -w/2 to w/2 - 1. Keys outside the map do not count. The gathered windows of
    `rows` rows of queries are held at a time; of all of them nothing could be held.

    Args:
        q: (B, C, Y, X).
        k: (B, C, Y, X).
        v: (B, E, Y, X).
        scale: factor on -|q - k|^2; None is 1 / sqrt(C * p * p).

    Returns:
        (B, E, Y, X).
    """
    height, width = q.shape[2:]
    before, after = window // 2, (window - 1) // 2
    queries, keys = (F.unfold(x, patch_size, padding=patch_size // 2).unflatten(2, (height, width)) for x in (q, k))
    scale = queries.shape[1] ** -0.5 if scale is None else scale
    border = (before, after, before, after)
    keys, values = F.pad(keys, border), F.pad(v, border)
    inside = F.pad(torch.ones(1, 1, height, width, dtype=torch.bool, device=q.device), border)

    def windows(maps: Tensor, top: int, count: int) -> Tensor:
        """(B, C, ...) -> (B, count, X, C, window * window)."""
        strip = maps[:, :, top : top + count + window - 1]
        return strip.unfold(2, window, 1).unfold(3, window, 1).permute(0, 2, 3, 1, 4, 5).flatten(4)

    outputs = []
    for top in range(0, height, rows):
        count = min(rows, height - top)
        near = windows(keys, top, count)  # (B, count, X, C*p*p, w*w)
        query = queries[:, :, top : top + count].permute(0, 2, 3, 1).unsqueeze(3)  # (B, count, X, 1, C*p*p)
        distance = near.square().sum(3, keepdim=True) - 2 * query @ near + query.square().sum(4, keepdim=True)
        logits = (-scale * distance).masked_fill(~windows(inside, top, count), float("-inf"))
        weights = torch.softmax(logits, -1)  # (B, count, X, 1, w*w)
        outputs.append((windows(values, top, count) @ weights.transpose(3, 4)).squeeze(4))  # (B, count, X, E)
    return torch.cat(outputs, 1).permute(0, 3, 1, 2)
