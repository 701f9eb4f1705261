"""Your Local GAN's attention for any mask: each query reads its list of allowed keys, a chunk of queries at a time."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saccade.ops.inputs import masked_softmax
from saccade.ops.ylg.patterns import Pattern
from saccade.ops.ylg.plan import (
    KEPT_MASKS,
    Layout,
    Places,
    key_lists,
    make_places,
    mask_rows,
    moved,
    queries_of,
    remembered,
    take,
)

# Ours: entries of the gathered keys and values that a chunk holds at a time, for all of the batch.
CHUNK_ENTRIES = 2**22


class ListPlan(NamedTuple):
    """Allowed keys of one pattern by key cell, and the queries that take them.

    `keys` (n_k, L) long, `used` (n_k, L) bool; `q` takes (N, n_q) to (N, n_k * r), `out` brings that back.
    """

    keys: Tensor
    used: Tensor
    q: Places
    out: Places


@functools.partial(remembered, kept=KEPT_MASKS)
def list_plan(pattern: Pattern, layout: Layout, device: torch.device) -> ListPlan:
    """The plan of one pattern over a pair of maps."""
    n_q, n_k = layout.q_size.area, layout.kv_size.area
    lists = key_lists(mask_rows(pattern, layout, torch.arange(n_k)))
    places = make_places(queries_of(layout).flatten(), n_q)
    there_and_back = make_places(places.back.long().squeeze(1), places.source.numel())
    return moved(ListPlan(lists.keys, lists.used, places, there_and_back), device)


def gathered(
    q: Tensor, k: Tensor, v: Tensor, patterns: Sequence[Pattern], layout: Layout, key_mask: Tensor | None
) -> Tensor:
    """Dot-product attention of every head over its lists of keys; arguments as in `structured`."""
    families: dict[Pattern, list[int]] = {}
    for head, pattern in enumerate(patterns):
        families.setdefault(pattern, []).append(head)
    heads: dict[int, Tensor] = {}
    for pattern, members in families.items():
        plan = list_plan(pattern, layout, q.device)
        maps = [torch.stack([x[:, head] for head in members], 1) for x in (q, k, v)]
        heads.update(zip(members, _attend(maps[0], maps[1], maps[2], plan, key_mask).unbind(1), strict=True))
    return torch.stack([heads[head] for head in range(len(patterns))], 1)


def _attend(q: Tensor, k: Tensor, v: Tensor, plan: ListPlan, key_mask: Tensor | None) -> Tensor:
    batch, count, d, n_q = q.shape
    e, (rows, longest) = v.shape[2], plan.keys.shape
    queries = (
        take(q.reshape(-1, n_q), plan.q).view(batch, count, d, rows, -1).permute(0, 1, 3, 4, 2)
    )  # (B, h, n_k, r, D)
    parts = []
    step = max(1, CHUNK_ENTRIES // (batch * count * longest * (d + e)))
    for start in range(0, rows, step):
        span = slice(start, min(start + step, rows))
        keys, used = plan.keys[span], plan.used[span]
        allowed = used if key_mask is None else used & key_mask[:, None, keys]  # (rows, L) or (B, 1, rows, L)
        logits = queries[:, :, span] @ k[..., keys].permute(0, 1, 3, 2, 4)  # (B, h, rows, r, L)
        weights = masked_softmax(logits, allowed.unsqueeze(-2))
        parts.append(weights @ v[..., keys].permute(0, 1, 3, 4, 2))  # (B, h, rows, r, E)
    out = torch.cat(parts, 2).permute(0, 1, 4, 2, 3).reshape(batch * count * e, -1)
    return take(out, plan.out).view(batch, count, e, n_q)
