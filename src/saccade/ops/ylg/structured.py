"""Your Local GAN's heads computed as sparsely as they are: small dense products, nothing of n_q * n_k.

In enumeration order the first step of a pattern (arXiv 1911.12287, section 3) is attention inside blocks of l =
sqrt(n_k) tokens, a stride is attention inside the rows of the transposed (l, l) tokens, a window is a block with its
neighbours; the second step is l summary keys for all queries, and each query's own key. Exact, plain differentiable
PyTorch, any number of times. The published code masks the dense product instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from saccade.ops.dense import dense_attention
from saccade.ops.ylg.patterns import Pattern
from saccade.ops.ylg.plan import BlockPlan, Kind, Layout, SummaryPlan, block_plan, form_of, summary_plan, take

# Ours: logits that are computed at a time on the CPU.
CHUNK_ENTRIES = 2**20


class HeadGroup(NamedTuple):
    """Heads that one batched computation serves."""

    family: str
    heads: tuple[int, ...]
    patterns: tuple[Pattern, ...]


def head_groups(patterns: Sequence[Pattern]) -> Iterator[HeadGroup]:
    """Collect the heads whose keys lie alike; within a group patterns differ in the pairs that are masked."""
    families: dict[str, list[int]] = {}
    for head, pattern in enumerate(patterns):
        form = form_of(pattern)
        families.setdefault("summary" if form.startswith("summary") else form, []).append(head)
    for family, heads in families.items():
        yield HeadGroup(family, tuple(heads), tuple(patterns[head] for head in heads))


def structured(
    q: Tensor, k: Tensor, v: Tensor, patterns: Sequence[Pattern], layout: Layout, key_mask: Tensor | None
) -> Tensor:
    """Dot-product attention of every head by its pattern's form, with no factor on the score.

    Args:
        q: (B, G, D, n_q), k: (B, G, D, n_k), v: (B, G, E, n_k), row-major pixels, at least float32.
        patterns: one a head, each with a form.
        key_mask: (B, n_k) bool, True = may be attended; queries left without a key get zeros.

    Returns:
        (B, G, E, n_q).
    """
    heads: dict[int, Tensor] = {}
    kind = Kind(q.shape[1], q.dtype, q.device)
    channels = (q.shape[2], v.shape[2])
    for family, members, chosen in head_groups(patterns):
        if family == "dense":
            out = _dense(q, k, v, members, layout, key_mask)
        elif family == "summary":
            out = _summary(q, k, v, members, summary_plan(chosen, members, layout, channels, kind), key_mask)
        else:
            out = _blocks(q, k, v, block_plan(chosen, members, layout, channels, kind), key_mask)
        if len(members) == len(patterns):
            return out
        heads.update(zip(members, out.unbind(1), strict=True))
    return torch.stack([heads[head] for head in range(len(patterns))], 1)


def _blocks(q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, key_mask: Tensor | None) -> Tensor:
    batch, d, e = q.shape[0], q.shape[2], v.shape[2]
    heads, _, keys, queries = plan.bias.shape
    blocks = plan.key_cells.shape[0]
    parts = _parts(batch, heads, blocks * keys * queries, q.device)
    q_blocks = _split(take(q.flatten(1), plan.q).view(-1, blocks, d, queries), parts)  # (B * h, blocks, D, m) in parts
    k_blocks = _split(take(k.flatten(1), plan.k).view(-1, blocks, d, keys), parts)
    v_blocks = _split(take(v.flatten(1), plan.v).view(-1, blocks, e, keys), parts)
    outs = []
    for part, q_part, k_part, v_part in zip(parts, q_blocks, k_blocks, v_blocks, strict=True):
        logits = torch.bmm(k_part.flatten(0, 1).transpose(1, 2), q_part.flatten(0, 1))
        logits = logits.view(*part.shape, blocks, keys, queries).add_(plan.bias[part.heads])
        if key_mask is not None:
            logits = logits.masked_fill(~key_mask[part.entries, None, plan.key_cells, None], float("-inf"))
        weights = _softmax(logits, key_mask is not None).flatten(0, 2)
        outs.append(torch.bmm(v_part.flatten(0, 1), weights).view(-1, blocks * e * queries))
    return take(_join(outs), plan.out).view(batch, heads, e, -1)


def _summary(
    q: Tensor, k: Tensor, v: Tensor, heads: Sequence[int], plan: SummaryPlan, key_mask: Tensor | None
) -> Tensor:
    batch, d, e, n_q = q.shape[0], q.shape[2], v.shape[2], q.shape[3]
    count, summaries = plan.key_cells.shape
    own_k, own_v = (_heads(x, heads).flatten(0, 1) for x in (k, v))
    if plan.own_k is not None and plan.own_v is not None:
        own_k, own_v = take(own_k.flatten(1), plan.own_k), take(own_v.flatten(1), plan.own_v)
    parts = _parts(batch, count, (summaries + 1) * n_q, q.device)
    pieces = zip(
        parts,
        _split(_heads(q, heads).flatten(0, 1), parts),  # (B * h, D, n_q) in parts
        _split(own_k.view(-1, d, *plan.k_view), parts),
        _split(own_v.view(-1, e, *plan.k_view), parts),
        _split(take(k.flatten(1), plan.k).view(-1, d, summaries), parts),
        _split(take(v.flatten(1), plan.v).view(-1, e, summaries), parts),
        strict=True,
    )
    outs = []
    for part, queries, k_own, v_own, k_shared, v_shared in pieces:
        shared = torch.bmm(k_shared.transpose(1, 2), queries).view(*part.shape, summaries, n_q)
        if plan.bias is not None:
            shared = shared.add_(plan.bias[part.heads])
        own = (queries.view(-1, d, *plan.q_view) * k_own).sum(1).view(*part.shape, 1, n_q) + plan.own_bias[part.heads]
        if key_mask is not None:
            seen = key_mask[part.entries]
            shared = shared.masked_fill(~seen[:, plan.key_cells[part.heads], None], float("-inf"))
            own = own.masked_fill(~seen[:, None, None, plan.cells], float("-inf"))
        weights = _softmax(torch.cat([shared, own], 2), key_mask is not None).flatten(0, 1)  # (B * h, s + 1, n_q)
        of_shared, of_own = cast(list[Tensor], cast(Any, torch).split(weights, [summaries, 1], 1))
        out = torch.bmm(v_shared, of_shared).view(-1, e, *plan.q_view)
        outs.append(torch.addcmul(out, of_own.view(-1, 1, *plan.q_view), v_own))
    return _join(outs).view(batch, count, e, -1)


class _Part(NamedTuple):
    """Batch entries and heads that are computed at a time: whole entries, or single heads of one."""

    entries: slice
    heads: slice
    shape: tuple[int, int]


def _parts(batch: int, heads: int, logits: int, device: torch.device) -> list[_Part]:
    """Split (batch, heads) so that the logits of a part, given per head, fit the CPU's caches."""
    room = CHUNK_ENTRIES // logits if device.type == "cpu" else batch * heads
    if room < heads:
        return [_Part(slice(b, b + 1), slice(h, h + 1), (1, 1)) for b in range(batch) for h in range(heads)]
    step = room // heads
    starts = range(0, batch, step)
    return [_Part(slice(b, b + step), slice(0, heads), (min(step, batch - b), heads)) for b in starts]


def _split(maps: Tensor, parts: Sequence[_Part]) -> Sequence[Tensor]:
    """(B * h, ...) -> the rows of each part."""
    if len(parts) == 1:
        return [maps]
    return cast(Sequence[Tensor], cast(Any, torch).split(maps, [part.shape[0] * part.shape[1] for part in parts]))


def _join(outs: Sequence[Tensor]) -> Tensor:
    return outs[0] if len(outs) == 1 else torch.cat(list(outs))


def _dense(q: Tensor, k: Tensor, v: Tensor, heads: Sequence[int], layout: Layout, key_mask: Tensor | None) -> Tensor:
    maps = [
        torch.unflatten(_heads(x, heads), 3, size)
        for x, size in ((q, layout.q_size), (k, layout.kv_size), (v, layout.kv_size))
    ]
    mask = None if key_mask is None else key_mask.view(-1, 1, *layout.kv_size)
    return dense_attention(maps[0], maps[1], maps[2], scale=1.0, key_mask=mask).flatten(3)


def _heads(maps: Tensor, heads: Sequence[int]) -> Tensor:
    """Some heads of (B, G, C, n), as a view where they lie evenly."""
    step = heads[1] - heads[0] if len(heads) > 1 else 1
    if list(heads) == list(range(heads[0], heads[-1] + 1, step)):
        return maps[:, heads[0] : heads[-1] + 1 : step]
    return torch.stack([maps[:, head] for head in heads], 1)


def _softmax(logits: Tensor, masked: bool) -> Tensor:
    """Softmax over the keys, which lie on the axis before the last; with `masked`, zeros where every key is out."""
    if not masked:
        return torch.softmax(logits, -2)
    dead = logits.amax(-2, keepdim=True) == float("-inf")
    return torch.softmax(logits.masked_fill(dead, 0.0), -2) * ~dead
