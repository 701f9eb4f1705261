"""Windowed attention in plain differentiable PyTorch: all pairs, masked; and the scores of a few queries."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.geometry import Size
from saccade.ops.dense import dense_logits
from saccade.ops.inputs import at_least_float32, masked_softmax
from saccade.ops.local.window import LocalCall, in_window
from saccade.ops.patches import as_vectors, box_sum, patch_length


def reference(q: Tensor, k: Tensor, v: Tensor, call: LocalCall, key_mask: Tensor | None) -> Tensor:
    """All pairs of patches, those outside the windows masked: memory grows with the square of the map."""
    allowed = in_window(Size(*q.shape[3:]), Size(*k.shape[3:]), call.window, q.device)
    if key_mask is not None:
        allowed = allowed & key_mask.flatten(2).unsqueeze(2)  # (B, 1, Nq, Nk)
    queries, keys, score = as_vectors(at_least_float32(q), at_least_float32(k), call.patch_size, call.score)
    weights = masked_softmax(dense_logits(queries.flatten(3), keys.flatten(3), score, call.scale), allowed)
    out = at_least_float32(v).flatten(3) @ weights.transpose(2, 3)  # (B, G, E, Nq)
    return torch.unflatten(out, 3, q.shape[3:]).to(q.dtype)


def score_maps(q: Tensor, k: Tensor, queries: Tensor, call: LocalCall) -> Tensor:
    """Scores of a few query pixels with every key, times the scale, but for a constant of the query's where l2.

    Args:
        queries: (Q, 2) long, rows and cols in the query map.

    Returns:
        (B, G, Q, Yk, Xk) in at least float32.
    """
    q, k = at_least_float32(q), at_least_float32(k)
    batch, heads, _, key_rows, key_cols = k.shape
    halo = call.patch_size // 2
    span = torch.arange(call.patch_size, device=q.device)
    rows = (queries[:, 0, None] + span)[:, :, None]  # (Q, p, 1) in the padded map
    cols = (queries[:, 1, None] + span)[:, None, :]
    patches = F.pad(q, [halo] * 4)[..., rows, cols].transpose(2, 3).flatten(0, 2)  # (B*G*Q, D, p, p)
    maps = F.conv2d(k.flatten(0, 2).unsqueeze(0), patches, padding=halo, groups=batch * heads)
    products = maps.view(batch, heads, len(queries), key_rows, key_cols)
    if call.score == "l2":
        return call.scale * (2 * products - box_sum(k.square().sum(2, keepdim=True), call.patch_size))
    if call.score in ("cosine", "unit_key"):
        products = products / patch_length(k, call.patch_size)
    if call.score == "cosine":
        lengths = patch_length(q, call.patch_size)[:, :, 0, queries[:, 0], queries[:, 1]]  # (B, G, Q)
        products = products / lengths[..., None, None]
    return call.scale * products
