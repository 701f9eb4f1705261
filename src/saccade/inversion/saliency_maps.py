"""Saliency: where an attention layer looks as a whole, per head (arXiv 1911.12287, section 5; released inverse_image).

A head's map gives each key the weight that the queries give to it. Three ways to normalise, A[q, k] the weights of one
head, n_q the number of queries:

    "queries":   sum_q A[q, k] / n_q, the paper's average; sums to 1 over the keys.
    "attending": sum_q A[q, k] / |{q: A[q, k] > 0}|, the released code's.
    "baseline":  sum_q A[q, k] / sum_q U[q, k], ours, U uniform over the keys that a query may attend: 1 everywhere if
                 the layer distinguishes nothing, whatever its mask.

With sparse heads the first is dominated by the mask: uniform attention in a left-to-right step over 256 keys gives a
ratio of 54 between the most and the least salient key (3.4 by the second, 1 by the third).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.attention.block import SlotBlock
from saccade.geometry import Size

Normaliser = Literal["queries", "attending", "baseline"]
NORMALISERS: tuple[Normaliser, ...] = ("queries", "attending", "baseline")
# Ours: entries of the dense attention rows held at a time, for all of the batch and heads.
CHUNK_ENTRIES = 2**23


def require_attending(block: SlotBlock) -> None:
    """Raise RuntimeError unless the block's backend attends to anything."""
    if not block.mixer.attends:
        raise RuntimeError(
            f"saliency, slot {block.spec.name}: the backend {block.mixer.name} attends nowhere, so nothing is salient. "
            "Choose a network with attention, or a method that needs none: pixel."
        )


def attention_rows(block: SlotBlock, q_map: Tensor, kv_map: Tensor, queries: Tensor) -> Tensor:
    """Dense attention of a few queries, whatever the backend: (B, G, Q, n_k), keys row-major, 0 where none looks.

    Args:
        q_map, kv_map: the maps that reach the block, (B, C, Y, X) each.
        queries: (Q, 2) long, rows and cols of the query map.

    Raises:
        RuntimeError: the block attends nowhere.
    """
    require_attending(block)
    found = block.weights(q_map, kv_map, queries)
    keys = key_size(block, kv_map).area
    dense = found.weights.new_zeros(*found.weights.shape[:3], keys)
    return dense.scatter_add_(3, found.indices, found.weights)


def key_size(block: SlotBlock, kv_map: Tensor) -> Size:
    """Size of the map of keys that a block makes of a map (B, C, Y, X)."""
    return block.key_size(Size(*kv_map.shape[-2:]))


def grid_points(size: Size, device: torch.device) -> Tensor:
    """All (row, col) of a grid in row-major order: (area, 2) long."""
    flat = torch.arange(size.area, device=device)
    return torch.stack([flat // size.cols, flat % size.cols], 1)


@torch.no_grad()
def saliency(
    block: SlotBlock, q_map: Tensor, kv_map: Tensor | None = None, *, normaliser: Normaliser = "queries"
) -> Tensor:
    """The saliency of every key, per head, from all queries of the map.

    Args:
        q_map: (B, C, Yq, Xq), the map that reaches the block.
        kv_map: the map that keys are made of; None is `q_map`.
        normaliser: see the module.

    Returns:
        (B, G, Yk, Xk) over the key map of the slot, 0 for a key that no query attends.

    Raises:
        ValueError: unknown normaliser.
        RuntimeError: the block attends nowhere.
    """
    check_normaliser(normaliser)
    require_attending(block)
    kv_map = q_map if kv_map is None else kv_map
    keys = key_size(block, kv_map)
    points = grid_points(Size(*q_map.shape[-2:]), q_map.device)
    step = max(1, CHUNK_ENTRIES // (q_map.shape[0] * block.mixer.heads * keys.area))
    total: Tensor | None = None
    divisor: Tensor | None = None
    for some in torch.split(points, step):
        rows = attention_rows(block, q_map, kv_map, some).double()  # (B, G, Q, n_k)
        share = _shares(rows, normaliser)
        total = rows.sum(2) if total is None else total + rows.sum(2)
        divisor = share if divisor is None else divisor + share
    if total is None or divisor is None:
        raise ValueError(f"saliency, slot {block.spec.name}: the query map is empty")
    looked_at = divisor != 0
    maps = torch.where(looked_at, total / torch.where(looked_at, divisor, 1.0), 0.0)
    return maps.to(q_map.dtype).view(*maps.shape[:2], *keys)


def _shares(rows: Tensor, normaliser: Normaliser) -> Tensor:
    """What some queries add to the divisor of each key: (B, G, n_k) from (B, G, Q, n_k)."""
    if normaliser == "queries":
        return torch.full_like(rows[:, :, 0], rows.shape[2])
    seen = (rows != 0).to(rows.dtype)
    if normaliser == "attending":
        return seen.sum(2)
    return (seen / seen.sum(3, keepdim=True).clamp_min(1)).sum(2)


def project(maps: Tensor, size: Size) -> Tensor:
    """Bring saliency maps (B, G, Yk, Xk) to another grid as S' of the paper: nearest, cells repeated, not rescaled."""
    return F.interpolate(maps, size=tuple(size), mode="nearest")


def check_normaliser(normaliser: str) -> None:
    """Raise ValueError, listing the valid names, unless `normaliser` is one."""
    if normaliser not in NORMALISERS:
        raise ValueError(f"saliency: no normaliser is called {normaliser!r}. Valid here: {', '.join(NORMALISERS)}.")


def choose_heads(heads: int, chosen: tuple[int, ...] | None, who: str) -> list[int]:
    """The heads to use: all, or those chosen.

    Raises:
        ValueError: none, one twice, or one that the block does not have.
    """
    if chosen is None:
        return list(range(heads))
    wrong = [head for head in chosen if not 0 <= head < heads]
    if wrong or not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(
            f"{who}: heads are distinct numbers from 0 to {heads - 1}, of the {heads} that the layer has; got "
            f"{', '.join(map(str, chosen)) or 'none'}"
        )
    return list(chosen)
