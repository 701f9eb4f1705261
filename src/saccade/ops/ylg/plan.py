"""Where tokens lie: the index tensors by which Your Local GAN's sparse kernels read maps and write them back.

Everything here depends on sizes and names alone, is made once on the CPU and kept per device; nothing has n_q * n_k
entries, but for the mask that a user's own pattern is given as.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from saccade.geometry import Size
from saccade.ops.ylg.patterns import Form, Order, Pattern, QueryMapping, Rule, key_cells, order_of, stride_of

# Ours: plans kept of each kind, and masks, which grow with the square of the map.
KEPT_PLANS, KEPT_MASKS = 64, 8
Plan = TypeVar("Plan", bound=Callable[..., Any])
Fields = TypeVar("Fields", bound=tuple[Any, ...])


def remembered(make: Plan, kept: int = KEPT_PLANS) -> Plan:
    """Keep the last plans that a function made, as plain tensors whatever mode it is called in."""

    @functools.lru_cache(maxsize=kept)
    @functools.wraps(make)
    def outside_modes(*key: Any) -> Any:
        with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
            return make(*key)

    return cast(Plan, outside_modes)


class Layout(NamedTuple):
    """How patterns lie over a pair of maps: the sizes, the enumeration of key cells, the queries of each cell."""

    q_size: Size
    kv_size: Size
    order: Order
    mapping: QueryMapping


class Kind(NamedTuple):
    """What besides sizes a plan is made for: the heads of the whole maps, and the tensors."""

    heads: int
    dtype: torch.dtype
    device: torch.device


def moved(plan: Fields, device: torch.device) -> Fields:
    """A plan, or the places in one, with all its tensors on a device."""
    parts: list[Any] = []
    for part in plan:
        nested = isinstance(part, tuple) and hasattr(part, "_fields")
        parts.append(part.to(device) if isinstance(part, Tensor) else moved(part, device) if nested else part)
    return type(plan)(*parts)


class Places(NamedTuple):
    """A rearrangement of the last axis: y[j] = x[source[j]], and for each x the few j that read it.

    `back` is (inputs, times) with the number of outputs as "none"; `full` says that it has no such entry.
    """

    source: Tensor
    back: Tensor
    full: bool


def make_places(index: Tensor, inputs: int) -> Places:
    """Places from the inputs that are read, (outputs,) long with -1 for outputs that nobody looks at."""
    outputs = index.numel()
    kept = (index >= 0).nonzero().squeeze(1)
    source = index[kept]
    counts = torch.bincount(source, minlength=inputs)
    by_source = torch.argsort(source, stable=True)
    turn = torch.arange(source.numel()) - (counts.cumsum(0) - counts)[source[by_source]]
    back = torch.full((inputs, max(1, int(counts.max()))), outputs)
    back[source[by_source], turn] = kept[by_source]
    full = bool((back < outputs).all())
    return Places(index.clamp_min(0).int(), back.int(), full)


def take(x: Tensor, places: Places) -> Tensor:
    """(N, inputs) -> (N, outputs). Its backward pass reads by `back`: deterministic on every device, no scatter."""
    return cast(Tensor, cast(Any, _Take).apply(x, *places))


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor, full: bool) -> Tensor:
        ctx.places = Places(index, back, full)
        return x.index_select(1, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return cast(Any, _Return).apply(grad, *ctx.places), None, None, None


class _Return(torch.autograd.Function):
    """The transpose of `_Take`: each input sums what the outputs that read it hold."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, index: Tensor, back: Tensor, full: bool) -> Tensor:
        ctx.places = Places(index, back, full)
        if not full:
            y = torch.nn.functional.pad(y, (0, 1))
        read = y.index_select(1, back.flatten())
        return read if back.shape[1] == 1 else read.view(y.shape[0], *back.shape).sum(2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return cast(Any, _Take).apply(grad, *ctx.places), None, None, None


@remembered
def cells_of(layout: Layout) -> Tensor:
    """The key cell of each query, (n_q,) long."""
    return key_cells(layout.q_size, layout.kv_size, layout.mapping)


@remembered
def queries_of(layout: Layout) -> Tensor:
    """The queries of each key cell, (n_k, r) long, -1 where a cell has fewer than the r of the others."""
    back = make_places(cells_of(layout), layout.kv_size.area).back.long()
    return back.masked_fill(back == layout.q_size.area, -1)


@remembered
def ranks_of(layout: Layout) -> Tensor:
    """The enumeration number of every key cell, (n_k,) long."""
    return torch.argsort(order_of(layout.kv_size, layout.order))


@functools.partial(remembered, kept=KEPT_MASKS)
def full_mask(pattern: Pattern, n: int) -> Tensor:
    """A pattern's mask, kept because a user's function may be slow."""
    return pattern(n)


def mask_rows(pattern: Pattern, layout: Layout, cells: Tensor) -> Tensor:
    """Rows of a pattern's grid mask, of the given key cells (Q,): (Q, n_k) bool on the CPU, columns row-major."""
    ranks = ranks_of(layout)
    n = layout.kv_size.area
    if pattern.form is None:
        return full_mask(pattern, n)[ranks[cells]][:, ranks]
    return rule_of(pattern)(ranks[cells].unsqueeze(1), ranks.unsqueeze(0), n, stride_of(n))


class KeyLists(NamedTuple):
    """Allowed keys by query cell: `keys` (rows, L) long row-major cells, `used` (rows, L) bool, False where padded."""

    keys: Tensor
    used: Tensor


def key_lists(mask: Tensor) -> KeyLists:
    """(rows, n_k) bool on the CPU -> the allowed keys of each row in order, padded to the longest row."""
    counts = mask.sum(1)
    rows, cols = mask.nonzero(as_tuple=True)
    turn = torch.arange(rows.numel()) - (counts.cumsum(0) - counts)[rows]
    keys = torch.zeros(mask.shape[0], int(counts.max()), dtype=torch.long)
    keys[rows, turn] = cols
    return KeyLists(keys, torch.arange(keys.shape[1]) < counts.unsqueeze(1))


def rule_of(pattern: Pattern) -> Rule:
    """The rule of a pattern that has a form."""
    if pattern.rule is None:
        raise ValueError(f"ylg: pattern {pattern.name!r} has no rule that allows pairs one by one.")
    return pattern.rule


def form_of(pattern: Pattern) -> Form:
    """The form of a pattern that has one."""
    if pattern.form is None:
        raise ValueError(f"ylg: pattern {pattern.name!r} has no form that the structured computation knows.")
    return pattern.form


def as_bias(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where allowed, else -inf."""
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, float("-inf"))


def channel_index(cells: Tensor, channels: int, n: int) -> Tensor:
    """Places in a (channels, n) map: cells (..., L), -1 for none, become (..., channels, L)."""
    index = cells.unsqueeze(-2) + n * torch.arange(channels).unsqueeze(1)
    return index.masked_fill(cells.unsqueeze(-2) < 0, -1)


def head_places(cells: Tensor, heads: Sequence[int], channels: int, n: int, kind: Kind) -> Places:
    """Read some heads of (B, G * channels * n) at their cells (h, blocks, L): (B, h * blocks * channels * L)."""
    index = channel_index(cells, channels, n)
    starts = channels * n * torch.tensor(list(heads)).view(-1, 1, 1, 1)
    index = (index + starts).masked_fill(index < 0, -1)
    return make_places(index.flatten(), kind.heads * channels * n)


class BlockPlan(NamedTuple):
    """Heads whose queries split into blocks, each with one list of keys.

    `q`, `k`, `v` take (B, G * C * n) maps to (B, h * blocks * C * length); `out` brings (B * h, blocks * E * queries)
    back to (B * h, E * n_q). `bias` is 0 or -inf, (h, blocks or 1, keys, queries). `key_cells` (blocks, keys) long.
    """

    q: Places
    k: Places
    v: Places
    out: Places
    bias: Tensor
    key_cells: Tensor


def block_tokens(form: Form, n: int) -> tuple[Tensor, Tensor]:
    """Tokens of the queries (blocks, m) and of the keys (blocks, s) of each block, -1 where there is none."""
    stride = stride_of(n)
    count = -(-n // stride)
    if form == "stride":
        queries = keys = torch.arange(stride).unsqueeze(1) + stride * torch.arange(count)
    else:
        start = stride * torch.arange(count).unsqueeze(1)
        queries = keys = start + torch.arange(stride)
        if form == "two_sided_window":
            keys = start + torch.arange(1 - stride, 2 * stride - 1)
        elif form != "block":
            keys = start + torch.arange(1 - stride, stride)
        if form == "circular_window":
            keys = torch.where(keys < 0, keys + n, keys)
    inside = [torch.where((tokens >= 0) & (tokens < n), tokens, -1) for tokens in (queries, keys)]
    return inside[0], inside[1]


@remembered
def block_plan(
    patterns: tuple[Pattern, ...], heads: tuple[int, ...], layout: Layout, channels: tuple[int, int], kind: Kind
) -> BlockPlan:
    """The plan of heads whose patterns share one form; `channels` are D and E."""
    n_q, n_k = layout.q_size.area, layout.kv_size.area
    order = order_of(layout.kv_size, layout.order)
    tokens, keys = block_tokens(form_of(patterns[0]), n_k)
    cells = torch.where(keys < 0, -1, order[keys.clamp_min(0)])  # (blocks, s)
    of_cell = queries_of(layout)[order]  # (n_k, r)
    queries = of_cell[tokens.clamp_min(0)].masked_fill(tokens.unsqueeze(2) < 0, -1).flatten(1)  # (blocks, m * r)
    each = [x.expand(len(heads), -1, -1) for x in (queries, cells)]
    spots = channel_index(queries, channels[1], n_q).flatten()
    back = make_places(spots, channels[1] * n_q).back.squeeze(1)  # each query is in one block
    bias = torch.stack([_block_bias(pattern, tokens, keys, n_k, of_cell.shape[1], kind.dtype) for pattern in patterns])
    if bool((bias == bias[:, :1]).all()):
        bias = bias[:, :1].contiguous()
    plan = BlockPlan(
        q=head_places(each[0], heads, channels[0], n_q, kind),
        k=head_places(each[1], heads, channels[0], n_k, kind),
        v=head_places(each[1], heads, channels[1], n_k, kind),
        out=make_places(back.long(), spots.numel()),
        bias=bias,
        key_cells=cells.clamp_min(0),
    )
    return moved(plan, kind.device)


def _block_bias(pattern: Pattern, tokens: Tensor, keys: Tensor, n: int, ratio: int, dtype: torch.dtype) -> Tensor:
    """0 where a pair is allowed, else -inf: (blocks, s, m * ratio). Queries that are not there may see all keys."""
    of, to = tokens.unsqueeze(1), keys.unsqueeze(2)
    allowed = rule_of(pattern)(of, to, n, stride_of(n)) & (to >= 0) | (of < 0)
    return as_bias(allowed.repeat_interleave(ratio, 2), dtype)


class SummaryPlan(NamedTuple):
    """Heads whose queries share the summary tokens, s to a head, and see their own key besides.

    `k` and `v` take (B, G * C * n_k) maps to (B, h * C * s). `bias` (h, s, n_q) is None where every query may see every
    summary; `own_bias` (h, 1, n_q) is -inf where the query's own key is a summary, which counts once. Views of queries
    and keys that broadcast a cell to its queries are `q_view` and `k_view`; where none does, `own_k` and `own_v` take
    (B * h, C * n_k) maps to (B * h, C * n_q). `key_cells` (h, s) and `cells` (n_q,) long are for key masks.
    """

    k: Places
    v: Places
    bias: Tensor | None
    own_bias: Tensor
    q_view: tuple[int, ...]
    k_view: tuple[int, ...]
    own_k: Places | None
    own_v: Places | None
    key_cells: Tensor
    cells: Tensor


def summary_tokens(form: Form, n: int) -> Tensor:
    """The last or first token of every block, (s,) long."""
    stride = stride_of(n)
    first = torch.arange(0, n, stride)
    return first if form == "summary_first" else (first + stride - 1).clamp_max(n - 1)


def own_views(layout: Layout) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Views of the query and the key axis that broadcast each key to its queries; None where there is no fast one."""
    (rows, cols), keys = layout.q_size, layout.kv_size
    if layout.q_size == keys:
        return (keys.area,), (keys.area,)
    if layout.mapping == "released":
        return (rows * cols // keys.area, keys.area), (1, keys.area)
    if layout.mapping == "tile":
        return (rows // keys.rows, keys.rows, cols // keys.cols, keys.cols), (1, keys.rows, 1, keys.cols)
    return None


@remembered
def summary_plan(
    patterns: tuple[Pattern, ...], heads: tuple[int, ...], layout: Layout, channels: tuple[int, int], kind: Kind
) -> SummaryPlan:
    """The plan of heads whose patterns have summary tokens; `channels` are D and E."""
    n_k = layout.kv_size.area
    order, ranks, cells = order_of(layout.kv_size, layout.order), ranks_of(layout), cells_of(layout)
    tokens = torch.stack([summary_tokens(form_of(pattern), n_k) for pattern in patterns])  # (h, s)
    places = order[tokens].unsqueeze(1)  # (h, 1, s)
    steps = torch.arange(n_k)
    allowed = [
        rule_of(each)(steps, row.unsqueeze(1), n_k, stride_of(n_k)) for each, row in zip(patterns, tokens, strict=True)
    ]
    everywhere = all(bool(mask.all()) for mask in allowed)
    is_summary = torch.zeros(len(heads), 1, n_k, dtype=torch.bool).scatter_(2, tokens.unsqueeze(1), True)
    views = own_views(layout)
    taken = [make_places(channel_index(cells, width, n_k).flatten(), width * n_k) for width in channels]
    plan = SummaryPlan(
        k=head_places(places, heads, channels[0], n_k, kind),
        v=head_places(places, heads, channels[1], n_k, kind),
        bias=None if everywhere else as_bias(torch.stack(allowed)[:, :, ranks[cells]], kind.dtype),
        own_bias=as_bias(~is_summary[:, :, ranks[cells]], kind.dtype),
        q_view=views[0] if views else (layout.q_size.area,),
        k_view=views[1] if views else (layout.q_size.area,),
        own_k=None if views else taken[0],
        own_v=None if views else taken[1],
        key_cells=order[tokens],
        cells=cells,
    )
    return moved(plan, kind.device)
