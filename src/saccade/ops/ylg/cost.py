"""What Your Local GAN's heads cost: the matrix products that the kernels execute, and what they keep for backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from saccade.ops.dispatch import Score
from saccade.ops.ylg.patterns import Pattern
from saccade.ops.ylg.plan import Layout, block_tokens, key_lists, mask_rows, own_views, queries_of, summary_tokens


def ylg_cost(
    patterns: Sequence[Pattern],
    widths: Sequence[tuple[int, int]],
    layout: Layout,
    score: Score = "dot",
    scale: float | None = 1.0,
    patch_size: int = 1,
) -> tuple[int, int]:
    """FLOPs of a forward pass over one batch entry, and float32 bytes that stay for backward beside q, k and v.

    Blocks are counted with their masked half, as they are computed; the own key of a summary head is no matrix product
    and not counted (1 / l of that head's pairs). Dense heads keep their output and the sums of their rows.

    Args:
        widths: D and E of each head.
    """
    flops = entries = 0
    n_q, n_k = layout.q_size.area, layout.kv_size.area
    for pattern, (channels, e) in zip(patterns, widths, strict=True):
        d = channels * patch_size**2 + (score == "l2")  # distances carry a channel of squares
        pairs, copies = _head_cost(pattern, d, e, layout)
        flops += 2 * pairs * (d + e)
        entries += copies
    if any(pattern.form and pattern.form.startswith("summary") for pattern in patterns):
        vectors = sum(channels * patch_size**2 + (score == "l2") for channels, _ in widths)
        entries += n_q * vectors * (score in ("l2", "cosine") or patch_size > 1)
        entries += n_k * vectors * (own_views(layout) is not None and (score, scale, patch_size) != ("dot", 1.0, 1))
    if score == "l2":
        entries += n_k * sum(channels * patch_size**2 for channels, _ in widths)
    return flops, 4 * entries


def _head_cost(pattern: Pattern, d: int, e: int, layout: Layout) -> tuple[int, int]:
    """Pairs of queries and keys that one head multiplies, and the entries that it keeps for backward."""
    n_q, n_k = layout.q_size.area, layout.kv_size.area
    ratio = queries_of(layout).shape[1]
    if pattern.form is None:
        longest = key_lists(mask_rows(pattern, layout, torch.arange(n_k))).keys.shape[1]
        pairs = n_k * ratio * longest
        return pairs, pairs + n_k * longest * (d + e) + n_k * ratio * d
    if pattern.form == "dense":
        return n_q * n_k, n_q * (e + 1)
    if pattern.form.startswith("summary"):
        summaries = summary_tokens(pattern.form, n_k).numel()
        own = 0 if own_views(layout) else n_q * (d + e)
        return n_q * summaries, n_q * (summaries + 1) + summaries * (d + e) + own
    tokens, keys = block_tokens(pattern.form, n_k)
    blocks, length = tokens.shape[0], tokens.shape[1] * ratio
    pairs = blocks * length * keys.shape[1]
    return pairs, pairs + blocks * (length * d + keys.shape[1] * (d + e))
