"""Triton kernels of PSAL (Cherel et al., arXiv 2202.03163): jump search, costs of given matches, gradients of costs.

The schedule is that of `saccade.ops.psal.search`, the random numbers are those of `saccade.ops.psal.random`. A program
serves a tile of queries of one map and keeps their K matches in registers, unsorted, each with the number of its offer:
of equal costs the earlier one ranks before. It reads and writes them sorted. Propagation reads the neighbours' best
keys from an array of its own, of which there are two, so lists are updated in place. What a tile offers is compared
only where it is new, and not at all where nothing is.

Maps are channels-last with a ring of zeros: a patch row is one run of p * D numbers. They are read in their own dtype;
every product is in that of the costs (float32, or float64 for float64 maps): no arithmetic in half precision and no
tl.dot, so V100 (sm_70) runs the same code. A cost that is not a number counts as infinite, so that all matches stay
keys.

Not yet measured on a GPU: compared with the PyTorch kernels through Triton's interpreter, and compiled for sm_70,
sm_80 and sm_90. Tile and block sizes in `saccade.ops.psal.triton` are estimates.

This module imports triton; `saccade.ops.psal.triton` imports it when it is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl
from triton.language import constexpr, tensor

# Numbers, not constants: one compilation serves them all, also 1 and multiples of 16.
_DRAWS = ("low", "high", "heads", "ring", "count", "step", "first", "windows")
_SIZES = ("q_rows", "q_cols", "k_rows", "k_cols")


def _jit(function: Callable[..., Any]) -> Any:
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    return triton.jit(do_not_specialize=[name for name in names if name in _DRAWS + _SIZES])(function)


@_jit
def _mix32(x: tensor) -> tensor:
    """The hash of 32-bit numbers held in uint64, which wrap on purpose: 32-bit ones must not in Triton's debug mode."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


@_jit
def _state(low: tensor, pixel: tensor) -> tensor:
    """What all draws of a query pixel share; `low` is the lower half of the seed."""
    return _mix32((low.to(tl.uint64) + (pixel + 1).to(tl.uint64) * 0x9E3779B9) & 0xFFFFFFFF)


@_jit
def _below(state: tensor, high: tensor, head: tensor, number: tensor, bound: tensor) -> tensor:
    """Draw `number` of every query as a whole number in [0, bound)."""
    offset = number.to(tl.uint64) * 0x85EBCA6B + high.to(tl.uint64) + head.to(tl.uint64) * 0xC2B2AE35
    return ((_mix32(state ^ (offset & 0xFFFFFFFF)) * bound.to(tl.uint64)) >> 32).to(tl.int32)


@_jit
def _tile(rows: tensor, cols: tensor, TILE_Y: constexpr, TILE_X: constexpr) -> Any:
    """Which map (int64) a program serves, and the rows and columns of its pixels."""
    across = tl.cdiv(cols, TILE_X)
    tiles = tl.cdiv(rows, TILE_Y) * across
    program = tl.program_id(0)
    entry = program // tiles
    tile = program - entry * tiles
    lane = tl.arange(0, TILE_Y * TILE_X)
    row = tile // across * TILE_Y + lane // TILE_X
    col = tile % across * TILE_X + lane % TILE_X
    return entry.to(tl.int64), row, col


@_jit
def _within(row: tensor, col: tensor, rows: tensor, cols: tensor, ring: tensor) -> tensor:
    return (row >= ring) & (row < rows - ring) & (col >= ring) & (col < cols - ring)


@_jit
def _cost(
    q: tensor, k: tensor, inverse_q: tensor, inverse_k: tensor, row: tensor, col: tensor, key: tensor, wanted: tensor,
    q_cols: tensor, k_cols: tensor,
    D: constexpr, P: constexpr, BLOCK: constexpr, L2: constexpr, NUMBER: constexpr,
) -> tensor:  # fmt: skip
    """Costs between query pixels and key pixels where `wanted`; the pointers are those of the map."""
    RUN: constexpr = P * D
    total = tl.zeros((row.shape[0], BLOCK), NUMBER)
    key_row = key // k_cols
    corner_q = row * (q_cols + P - 1) + col
    corner_k = key_row * (k_cols + P - 1) + (key - key_row * k_cols)
    if tl.max(wanted.to(tl.int32), 0) > 0:
        for down in range(P):
            left = q + (corner_q + down * (q_cols + P - 1)) * D
            right = k + (corner_k + down * (k_cols + P - 1)) * D
            for start in range(0, RUN, BLOCK):
                run = start + tl.arange(0, BLOCK)
                mask = wanted[:, None]
                if RUN % BLOCK != 0:
                    mask = mask & (run < RUN)[None, :]
                a = tl.load(left[:, None] + run[None, :], mask=mask, other=0.0).to(NUMBER)
                b = tl.load(right[:, None] + run[None, :], mask=mask, other=0.0).to(NUMBER)
                if L2:
                    total += (a - b) * (a - b)
                else:
                    total += a * b
    cost = tl.sum(total, 1)
    if inverse_k is not None:
        cost *= tl.load(inverse_k + key, mask=wanted, other=0.0)
    if inverse_q is not None:
        cost *= tl.load(inverse_q + row * q_cols + col, mask=wanted, other=0.0)
    if not L2:
        cost = -cost
    return tl.where(cost == cost, cost, float("inf"))


@_jit
def _offer(
    costs: tensor, keys: tensor, times: tensor, number: tensor, key_row: tensor, key_col: tensor, valid: tensor,
    allowed: tensor,
    q: tensor, k: tensor, inverse_q: tensor, inverse_k: tensor, row: tensor, col: tensor, q_cols: tensor,
    k_rows: tensor, k_cols: tensor,
    D: constexpr, P: constexpr, BLOCK: constexpr, L2: constexpr, NUMBER: constexpr,
) -> Any:  # fmt: skip
    """Lists (Q, KP) after one candidate a query: it takes the place of the last one if it is new and costs less."""
    valid = valid & _within(key_row, key_col, k_rows, k_cols, 0)
    key = tl.where(valid, key_row * k_cols + key_col, 0)
    if allowed is not None:
        valid = valid & (tl.load(allowed + key, mask=valid, other=0) != 0)
    valid = valid & (tl.max((keys == key[:, None]).to(tl.int32), 1) == 0)
    cost = _cost(q, k, inverse_q, inverse_k, row, col, key, valid, q_cols, k_cols, D, P, BLOCK, L2, NUMBER)
    worst = tl.max(costs, 1)
    latest = tl.max(tl.where(costs == worst[:, None], times, -1), 1)
    place = (valid & (cost < worst))[:, None] & (times == latest[:, None])
    costs = tl.where(place, cost[:, None], costs)
    keys = tl.where(place, key[:, None], keys)
    return costs, keys, tl.where(place, number, times)


@_jit
def _read(
    costs_at: tensor,
    keys_at: tensor,
    pixel: tensor,
    mask: tensor,
    pixels: tensor,
    K: constexpr,
    KP: constexpr,
) -> Any:
    """Sorted lists from (K, pixels): costs, keys, times, each (Q, KP); empty places are -infinity, -1 and -1."""
    slot = tl.arange(0, KP)
    at = slot[None, :] * pixels + pixel[:, None]
    real = mask[:, None] & (slot < K)[None, :]
    costs = tl.load(costs_at + at, mask=real, other=-float("inf"))
    keys = tl.load(keys_at + at, mask=real, other=-1)
    return costs, keys, tl.where(real, slot[None, :], -1)


@_jit
def _first(costs: tensor, keys: tensor, times: tensor) -> tensor:
    """The best key of every list."""
    real = times >= 0
    lowest = tl.min(tl.where(real, costs, float("inf")), 1)
    earliest = tl.min(tl.where(real & (costs == lowest[:, None]), times, 2147483647), 1)
    return tl.sum(tl.where(times == earliest[:, None], keys, 0), 1)


@_jit
def _write(
    costs_at: tensor, keys_at: tensor, best_at: tensor, costs: tensor, keys: tensor, times: tensor, pixel: tensor,
    mask: tensor, pixels: tensor,
    K: constexpr, KP: constexpr,
) -> None:  # fmt: skip
    """Sort lists into (K, pixels), and their best keys into (pixels,)."""
    slot = tl.arange(0, KP)[None, :]
    rank = tl.zeros(costs.shape, tl.int32)
    for other in range(K):
        cost = tl.sum(tl.where(slot == other, costs, 0.0), 1)[:, None]
        time = tl.sum(tl.where(slot == other, times, 0), 1)[:, None]
        rank += ((cost < costs) | ((cost == costs) & (time < times))).to(tl.int32)
    real = mask[:, None] & (slot < K)
    at = rank * pixels + pixel[:, None]
    tl.debug_barrier()  # a place may have been read by another thread
    tl.store(costs_at + at, costs, mask=real)
    tl.store(keys_at + at, keys, mask=real)
    tl.store(best_at + pixel, _first(costs, keys, times), mask=mask)


@_jit
def start(
    q: tensor, k: tensor, inverse_q: tensor, inverse_k: tensor, listed: tensor, counts: tensor, keys_at: tensor,
    costs_at: tensor, best_at: tensor,
    low: tensor, high: tensor, heads: tensor, q_rows: tensor, q_cols: tensor, k_rows: tensor, k_cols: tensor,
    ring: tensor,
    D: constexpr, P: constexpr, K: constexpr, KP: constexpr, L2: constexpr,
    BLOCK: constexpr, TILE_Y: constexpr, TILE_X: constexpr,
) -> None:  # fmt: skip
    """Step 1 of the schedule: K distinct random keys for each query, with their costs.

    q (N, Yq + P - 1, Xq + P - 1, D), k likewise; inverse lengths (N, n) or None; listed (batch, n_k) int32, the allowed
    keys first, and their counts (batch,) int64, or None; keys and costs (N, K, n_q), best (N, n_q).
    """
    NUMBER: constexpr = costs_at.dtype.element_ty
    entry, row, col = _tile(q_rows, q_cols, TILE_Y, TILE_X)
    pixel, pixels, all_keys = row * q_cols + col, q_rows * q_cols, k_rows * k_cols
    mask = _within(row, col, q_rows, q_cols, 0)
    searched = _within(row, col, q_rows, q_cols, ring)
    q += entry * (q_rows + P - 1) * (q_cols + P - 1) * D
    k += entry * (k_rows + P - 1) * (k_cols + P - 1) * D
    if inverse_q is not None:
        inverse_q += entry * pixels
    if inverse_k is not None:
        inverse_k += entry * all_keys
    sample = entry // heads
    bound = all_keys
    if listed is not None:
        listed += sample * all_keys
        bound = tl.load(counts + sample).to(tl.int32)
    state, head = _state(low, pixel), entry - sample * heads
    slot = tl.arange(0, KP)[None, :]
    keys = tl.full((TILE_Y * TILE_X, KP), -1, tl.int32)
    for number in range(K):
        rank = _below(state, high, head, tl.full((1,), number, tl.int32), bound)
        for _ in range(number):  # every step leaves one taken key behind
            taken = tl.max((keys == rank[:, None]).to(tl.int32), 1) > 0
            rank = tl.where(taken, tl.where(rank + 1 == bound, 0, rank + 1), rank)
        keys = tl.where(slot == number, rank[:, None], keys)
    real = mask[:, None] & (slot < K)
    if listed is not None:
        keys = tl.load(listed + keys, mask=real, other=-1)
    costs = tl.full((TILE_Y * TILE_X, KP), -float("inf"), NUMBER)
    for number in range(K):
        key = tl.sum(tl.where(slot == number, keys, 0), 1)
        cost = _cost(q, k, inverse_q, inverse_k, row, col, key, searched, q_cols, k_cols, D, P, BLOCK, L2, NUMBER)
        costs = tl.where(slot == number, tl.where(searched, cost, 0.0)[:, None], costs)
    times = tl.where(slot < K, slot, -1)
    keys_at, costs_at, best_at = keys_at + entry * K * pixels, costs_at + entry * K * pixels, best_at + entry * pixels
    _write(costs_at, keys_at, best_at, costs, keys, times, pixel, mask, pixels, K, KP)


@_jit
def improve(
    q: tensor, k: tensor, inverse_q: tensor, inverse_k: tensor, allowed: tensor, keys_at: tensor, costs_at: tensor,
    now: tensor, after: tensor,
    offers: tensor, count: tensor, low: tensor, high: tensor, heads: tensor, q_rows: tensor, q_cols: tensor,
    k_rows: tensor, k_cols: tensor,
    ring: tensor, step: tensor, first: tensor, windows: tensor,
    D: constexpr, P: constexpr, K: constexpr, KP: constexpr, L2: constexpr,
    BLOCK: constexpr, TILE_Y: constexpr, TILE_X: constexpr,
) -> None:  # fmt: skip
    """One pass over all queries: given offers, then one jump, then the random windows; each may be absent.

    allowed (batch, n_k) uint8 or None; now and after (N, n_q): best keys before and after the pass; offers (count,
    N * n_q) int32, -1 for none, or None; step 0 is no jump; `first` is the number of the first draw. The rest as in
    `start`.
    """
    NUMBER: constexpr = costs_at.dtype.element_ty
    entry, row, col = _tile(q_rows, q_cols, TILE_Y, TILE_X)
    pixel, pixels, all_keys = row * q_cols + col, q_rows * q_cols, k_rows * k_cols
    mask = _within(row, col, q_rows, q_cols, 0)
    searched = _within(row, col, q_rows, q_cols, ring)
    q += entry * (q_rows + P - 1) * (q_cols + P - 1) * D
    k += entry * (k_rows + P - 1) * (k_cols + P - 1) * D
    if inverse_q is not None:
        inverse_q += entry * pixels
    if inverse_k is not None:
        inverse_k += entry * all_keys
    sample = entry // heads
    if allowed is not None:
        allowed += sample * all_keys
    keys_at, costs_at = keys_at + entry * K * pixels, costs_at + entry * K * pixels
    now, after = now + entry * pixels, after + entry * pixels
    costs, keys, times = _read(costs_at, keys_at, pixel, mask, pixels, K, KP)
    number = KP
    if offers is not None:
        total = tl.num_programs(0).to(tl.int64) // (tl.cdiv(q_rows, TILE_Y) * tl.cdiv(q_cols, TILE_X)) * pixels
        offers += entry * pixels
        for offered in range(count):
            key = tl.load(offers + offered * total + pixel, mask=searched, other=-1)
            key_row = key // k_cols
            costs, keys, times = _offer(
                costs, keys, times, number, key_row, key - key_row * k_cols, key >= 0, allowed,
                q, k, inverse_q, inverse_k, row, col, q_cols, k_rows, k_cols, D, P, BLOCK, L2, NUMBER,
            )  # fmt: skip
            number += 1
    if step > 0:
        for direction in range(4):
            right = tl.where(direction == 0, step, tl.where(direction == 2, -step, 0))
            down = tl.where(direction == 1, step, tl.where(direction == 3, -step, 0))
            exists = searched & _within(row + down, col + right, q_rows, q_cols, ring)
            near = tl.load(now + (row + down) * q_cols + col + right, mask=exists, other=0)
            near_row = near // k_cols
            key_row, key_col = near_row - down, near - near_row * k_cols - right
            costs, keys, times = _offer(
                costs, keys, times, number, key_row, key_col, exists, allowed,
                q, k, inverse_q, inverse_k, row, col, q_cols, k_rows, k_cols, D, P, BLOCK, L2, NUMBER,
            )  # fmt: skip
            number += 1
    if windows > 0:
        best = _first(costs, keys, times)
        best_row = best // k_cols
        best_col = best - best_row * k_cols
        state, head = _state(low, pixel), entry - sample * heads
        for window in range(windows):
            reach = tl.maximum(k_rows, k_cols) >> window
            drawn = first + 2 * window
            key_row = best_row - reach + _below(state, high, head, drawn, 2 * reach)
            key_col = best_col - reach + _below(state, high, head, drawn + 1, 2 * reach)
            costs, keys, times = _offer(
                costs, keys, times, number, key_row, key_col, searched, allowed,
                q, k, inverse_q, inverse_k, row, col, q_cols, k_rows, k_cols, D, P, BLOCK, L2, NUMBER,
            )  # fmt: skip
            number += 1
    _write(costs_at, keys_at, after, costs, keys, times, pixel, mask, pixels, K, KP)


@_jit
def given(
    q: tensor, k: tensor, inverse_q: tensor, inverse_k: tensor, keys_at: tensor, costs_at: tensor,
    q_rows: tensor, q_cols: tensor, k_rows: tensor, k_cols: tensor,
    D: constexpr, P: constexpr, K: constexpr, L2: constexpr,
    BLOCK: constexpr, TILE_Y: constexpr, TILE_X: constexpr,
) -> None:  # fmt: skip
    """Costs (N, K, n_q) of given matches (N, K, n_q); the rest as in `start`."""
    NUMBER: constexpr = costs_at.dtype.element_ty
    entry, row, col = _tile(q_rows, q_cols, TILE_Y, TILE_X)
    pixel, pixels = row * q_cols + col, q_rows * q_cols
    mask = _within(row, col, q_rows, q_cols, 0)
    q += entry * (q_rows + P - 1) * (q_cols + P - 1) * D
    k += entry * (k_rows + P - 1) * (k_cols + P - 1) * D
    if inverse_q is not None:
        inverse_q += entry * pixels
    if inverse_k is not None:
        inverse_k += entry * k_rows * k_cols
    for number in range(K):
        at = (entry * K + number) * pixels + pixel
        key = tl.load(keys_at + at, mask=mask, other=0).to(tl.int32)
        cost = _cost(q, k, inverse_q, inverse_k, row, col, key, mask, q_cols, k_cols, D, P, BLOCK, L2, NUMBER)
        tl.store(costs_at + at, cost, mask=mask)


@_jit
def gradient_q(
    q: tensor, k: tensor, keys_at: tensor, factor: tensor, grad_q: tensor,
    q_rows: tensor, q_cols: tensor, k_rows: tensor, k_cols: tensor,
    D: constexpr, P: constexpr, K: constexpr, L2: constexpr,
    BLOCK: constexpr, TILE_Y: constexpr, TILE_X: constexpr,
) -> None:  # fmt: skip
    """The gradient in q: every pixel gathers from the matches of the queries whose patch covers it.

    keys and factor (N, K, n_q), see `saccade.ops.psal.patches.cross_factor`; grad_q in the padded layout of q,
    its ring stays as it is. The second axis of the grid is blocks of channels.
    """
    NUMBER: constexpr = grad_q.dtype.element_ty
    entry, row, col = _tile(q_rows, q_cols, TILE_Y, TILE_X)
    pixels, width, k_width = q_rows * q_cols, q_cols + P - 1, k_cols + P - 1
    mask = _within(row, col, q_rows, q_cols, 0)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = (
        entry * (q_rows + P - 1) * width * D + ((row + P // 2) * width + col + P // 2)[:, None] * D + channel[None, :]
    )
    k += entry * (k_rows + P - 1) * k_width * D
    present = mask[:, None] & (channel < D)[None, :]
    own = tl.load(q + here, mask=present, other=0.0).to(NUMBER)
    total = tl.zeros((TILE_Y * TILE_X, BLOCK), NUMBER)
    for offset in range(P * P):
        down, right = offset // P, offset % P
        query_row, query_col = row + P // 2 - down, col + P // 2 - right
        covers = mask & _within(query_row, query_col, q_rows, q_cols, 0)
        for number in range(K):
            at = (entry * K + number) * pixels + query_row * q_cols + query_col
            key = tl.load(keys_at + at, mask=covers, other=0).to(tl.int32)
            weight = tl.load(factor + at, mask=covers, other=0.0)[:, None]
            key_row = key // k_cols
            place = ((key_row + down) * k_width + key - key_row * k_cols + right) * D
            other = tl.load(k + place[:, None] + channel[None, :], mask=present & covers[:, None], other=0.0).to(NUMBER)
            if L2:
                other -= own
            total += weight * other
    tl.store(grad_q + here, total, mask=present)


@_jit
def gradient_k(
    q: tensor, k: tensor, keys_at: tensor, factor: tensor, grad_k: tensor,
    q_rows: tensor, q_cols: tensor, k_rows: tensor, k_cols: tensor,
    D: constexpr, P: constexpr, K: constexpr, L2: constexpr,
    BLOCK: constexpr, TILE_Y: constexpr, TILE_X: constexpr,
) -> None:  # fmt: skip
    """Add the gradient in k, pixel by pixel of every query's patch, with atomics: in no fixed order.

    grad_k in the padded layout of k; nothing is added to its ring. The rest as in `gradient_q`.
    """
    NUMBER: constexpr = grad_k.dtype.element_ty
    entry, row, col = _tile(q_rows, q_cols, TILE_Y, TILE_X)
    pixels, width, k_width = q_rows * q_cols, q_cols + P - 1, k_cols + P - 1
    mask = _within(row, col, q_rows, q_cols, 0)
    channel = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    q += entry * (q_rows + P - 1) * width * D
    k += entry * (k_rows + P - 1) * k_width * D
    grad_k += entry * (k_rows + P - 1) * k_width * D
    for number in range(K):
        at = (entry * K + number) * pixels + row * q_cols + col
        key = tl.load(keys_at + at, mask=mask, other=0).to(tl.int32)
        weight = tl.load(factor + at, mask=mask, other=0.0)[:, None]
        key_row = key // k_cols
        key_col = key - key_row * k_cols
        for offset in range(P * P):
            down, right = offset // P, offset % P
            inside = _within(key_row + down - P // 2, key_col + right - P // 2, k_rows, k_cols, 0)
            present = (mask & inside)[:, None] & (channel < D)
            mine = ((row + down) * width + col + right)[:, None] * D + channel
            theirs = ((key_row + down) * k_width + key_col + right)[:, None] * D + channel
            value = tl.load(q + mine, mask=present, other=0.0).to(NUMBER)
            if L2:
                value -= tl.load(k + theirs, mask=present, other=0.0).to(NUMBER)
            tl.atomic_add(grad_k + theirs, weight * value, mask=present, sem="relaxed")
