"""Windowed (local) attention: every query attends to the keys of a window around the key pixel under it.

The baseline "Local" of PSAL (Cherel et al., arXiv 2202.03163, Table 1: w = 50, l2 between 7 x 7 patches). The paper
leaves borders and the centre of an even window open; here keys outside the map do not exist, and an even window w
takes the offsets -w/2 to w/2 - 1. Different here: query and key map may differ in size, keys may be masked.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saccade.geometry import AttentionShape, Size
from saccade.ops.dispatch import Kernel, Request, Score, check_score, choose
from saccade.ops.inputs import (
    check_scale,
    default_scale,
    exact_products,
    make_request,
    masked_softmax,
    no_autocast,
    read_shape,
)
from saccade.ops.local.plain import reference, score_maps
from saccade.ops.local.shift import against_shift, shift, shift_flops
from saccade.ops.local.tiles import tile_flops, tiles
from saccade.ops.local.window import LocalCall, centres, check_window, offsets
from saccade.ops.patches import check_patch_size

__all__ = ["local_attention", "local_flops", "local_weights"]

# Ours: pixels of a map, times those of a patch, up to which tiles are as fast as shift planes, or faster.
SMALL_MAP = 24 * 24


def local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | Sequence[int],
    score: Score = "l2",
    scale: float | None = None,
    patch_size: int = 1,
    key_mask: Tensor | None = None,
    kernel: str = "auto",
) -> Tensor:
    """Let every query attend to the keys in a window.

    The query at row r looks around the key row floor((r + 0.5) * Yk / Yq), and likewise for columns. Keys outside the
    map are left out; a query that no key is left to gives zeros.

    Args:
        q: (B, G, D, Yq, Xq).
        k: (B, G, D, Yk, Xk).
        v: (B, G, E, Yk, Xk).
        window: side in key pixels, or (rows, cols). Odd w: offsets -(w // 2) to w // 2; even w: -w / 2 to w / 2 - 1.
        score: "dot", "l2", "cosine" or "unit_key", between patches.
        scale: factor on the score; None is 1 / sqrt(D * p * p), or 1 for "cosine" and "unit_key".
        patch_size: odd side p of the patches that stand for pixels, zeros outside the map.
        key_mask: (B, 1, Yk, Xk) bool, True = may be attended.
        kernel: "auto", "shift" (maps of one size), "tiles" (any sizes) or "reference" (all pairs, masked; twice
            differentiable).

    Returns:
        (B, G, E, Yq, Xq).

    Raises:
        ValueError: the maps do not fit together, or a wrong window, score, scale, patch size or kernel.
        RuntimeError: the named kernel cannot serve this call.
    """
    shape = read_shape("local", q, k, v, key_mask)
    call = _checked(shape.qk_channels, window, score, scale, patch_size)
    chosen = choose("local", _preferred(shape, patch_size), make_request(shape, score, key_mask, q, k, v), kernel)
    with no_autocast(q.device):
        return chosen.run(q, k, v, call, key_mask)


def local_weights(
    q: Tensor,
    k: Tensor,
    queries: Tensor,
    *,
    window: int | Sequence[int],
    score: Score = "l2",
    scale: float | None = None,
    patch_size: int = 1,
    key_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The keys in the windows of a few query pixels, and their weights. Arguments as in `local_attention`.

    Args:
        queries: (Q, 2) long, rows and cols in the query map.

    Returns:
        Flat key pixels and weights, both (B, G, Q, K), K the pixels of a window, or of what of it a map can hold.
        Places outside the map have weight 0 and the index of a pixel at its border.
    """
    shape = read_shape("local", q, k, key_mask=key_mask)
    call = _checked(shape.qk_channels, window, score, scale, patch_size)
    keys = shape.kv_size
    places, seen = [], []
    for axis in (0, 1):
        first, count = offsets(call.window[axis], keys[axis])
        centre = centres(shape.q_size[axis], keys[axis], q.device)[queries[:, axis]]
        index = centre[:, None] + first + torch.arange(count, device=q.device)  # (Q, w)
        places.append(index.clamp(0, keys[axis] - 1))
        seen.append((index >= 0) & (index < keys[axis]))
    indices = (places[0][:, :, None] * keys.cols + places[1][:, None, :]).flatten(1)  # (Q, K)
    allowed = (seen[0][:, :, None] & seen[1][:, None, :]).flatten(1)
    indices = indices.expand(shape.batch, shape.heads, -1, -1)
    allowed = allowed.expand(shape.batch, shape.heads, -1, -1)
    with no_autocast(q.device), exact_products():
        logits = score_maps(q, k, queries, call).flatten(3).gather(3, indices)
    if key_mask is not None:
        allowed = allowed & key_mask.flatten(2).unsqueeze(2).expand(-1, shape.heads, len(queries), -1).gather(
            3, indices
        )
    return indices, masked_softmax(logits, allowed)


def _checked(channels: int, window: int | Sequence[int], score: Score, scale: float | None, patch: int) -> LocalCall:
    check_score("local", score)
    check_scale("local", scale)
    check_patch_size("local", patch)
    factor = default_scale(scale, channels * patch**2, score)
    return LocalCall(check_window("local", window), score, factor, patch)


def local_flops(shape: AttentionShape, window: Size, score: Score, patch_size: int) -> tuple[int, int]:
    """FLOPs that scores and weighted values take, in that order, in the kernel that "auto" takes on the CPU."""
    by_tiles = shape.q_size != shape.kv_size or _preferred(shape, patch_size)[0].name == "tiles"
    return (tile_flops if by_tiles else shift_flops)(shape, window, score, patch_size)


def _preferred(shape: AttentionShape, patch_size: int) -> tuple[Kernel, ...]:
    """The kernels, fastest first: tiles take a batch of small maps at once, shift planes one map after the other."""
    if shape.q_size.area * patch_size**2 <= SMALL_MAP:
        return tuple(sorted(KERNELS, key=lambda kernel: kernel.name != "tiles"))
    return KERNELS


def _anywhere(request: Request) -> list[str]:
    return []


KERNELS = (
    Kernel("shift", shift, against_shift),
    Kernel("tiles", tiles, _anywhere),
    Kernel("reference", reference, _anywhere, double_backward=True),
)
