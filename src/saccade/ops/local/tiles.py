"""Windowed attention by tiles of queries: each tile meets, in one product, all keys of its windows.

Keys that a query of the tile does not see get no weight. Nothing is kept but the inputs, the output and the softmax
sums; backward computes the weights again. Any sizes of query and key map: windows are gathered by index.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.geometry import AttentionShape, Size
from saccade.ops.dispatch import Score, once_differentiable
from saccade.ops.inputs import at_least_float32, no_autocast
from saccade.ops.local.window import Factored, LocalCall, Products, exponentials_, factor, offsets, padded

# Ours: scores and unfolded patches that a step holds at a time.
ENTRIES = {"cpu": 2**20, "other": 2**25}
# Ours: queries along a tile's sides. Small windows waste more of a large tile.
LARGE_TILE, SMALL_TILE, SMALL_WINDOW = 16, 8, 12


class Axis(NamedTuple):
    """Tiles along one axis: how many, queries in each, the keys that each may see, and where these begin."""

    tiles: int
    side: int
    keys: int
    starts: list[int]  # first key of each tile, in a map with `before` keys put before it
    seen: Tensor  # (tiles or 1, side, keys) bool
    before: int  # keys to put before and after the map, so that every tile finds its own
    after: int


def make_axis(queries: int, keys: int, window: int, side: int, device: torch.device | None = None) -> Axis:
    """Cut `queries` into tiles of `side`; the last one may reach over the end."""
    side = min(side, queries)
    tiles = -(-queries // side)
    offset, count = offsets(window, keys)
    first = [(2 * r + 1) * keys // (2 * queries) + offset for r in range(tiles * side)]  # see `centres`
    starts = first[::side]
    reach = max(first[(t + 1) * side - 1] - starts[t] for t in range(tiles)) + count
    distances = [[first[t * side + r] - starts[t] for r in range(side)] for t in range(tiles)]
    if all(distance == distances[0] for distance in distances):
        distances = distances[:1]
    inner = torch.arange(reach, device=device) - torch.tensor(distances, device=device)[..., None]
    before, after = max(0, -starts[0]), max(0, starts[-1] + reach - keys)
    return Axis(tiles, side, reach, [s + before for s in starts], (inner >= 0) & (inner < count), before, after)


def make_axes(q_size: Size, kv_size: Size, window: Size, device: torch.device | None = None) -> tuple[Axis, Axis]:
    """The tiles of a call, rows and cols."""
    side = SMALL_TILE if max(window) <= SMALL_WINDOW else LARGE_TILE
    return (
        make_axis(q_size.rows, kv_size.rows, window.rows, side, device),
        make_axis(q_size.cols, kv_size.cols, window.cols, side, device),
    )


def tiles(q: Tensor, k: Tensor, v: Tensor, call: LocalCall, key_mask: Tensor | None) -> Tensor:
    """Windowed attention by tiles: see `saccade.ops.local_attention`."""
    x = factor(q, k, v, call, key_mask)
    apply = cast(Any, _TiledAttention).apply
    out = cast(Tensor, apply(x.q, x.k, x.v, x.q_factor, x.k_factor, x.allowed, x.call))
    return torch.unflatten(out, 0, q.shape[:2]).to(q.dtype)


def tile_flops(shape: AttentionShape, window: Size, score: Score, patch_size: int) -> tuple[int, int]:
    """FLOPs of the products for scores and for values."""
    rows, cols = make_axes(shape.q_size, shape.kv_size, window)
    pairs = rows.tiles * rows.side * rows.keys * cols.tiles * cols.side * cols.keys * shape.batch * shape.heads
    vector = (shape.qk_channels + (score == "l2")) * patch_size**2
    return 2 * pairs * vector, 2 * pairs * shape.v_channels


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x = Factored.of(inputs[:-1], inputs[-1])
        out = x.new_output()
        logs = torch.empty_like(out[:, :1])
        with no_autocast(out.device):
            for span in batches(x):
                _Tiles(x.entries(span)).output(out[span], logs[span])
        ctx.save_for_backward(*inputs[:-1], out, logs)
        ctx.call = x.call
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *maps, out, logs = ctx.saved_tensors
        x = Factored.of(maps, ctx.call)
        with torch.no_grad(), no_autocast(grad.device):
            grads = [None if x is None else torch.empty_like(x) for x in maps[:5]]
            for span in batches(x):
                found = _Tiles(x.entries(span)).gradients(grad[span], out[span], logs[span])
                for whole, part in zip(grads, found, strict=True):
                    if whole is not None and part is not None:
                        whole[span] = part
        sources = [x for x in (grad, *maps[:5]) if x is not None]
        return *once_differentiable("local attention's tiles kernel", grads, sources), None, None


def batches(x: Factored) -> list[slice]:
    """Batch entries that go through the tiles together: as many as leave room for a few tiles each."""
    rows, cols = make_axes(Size(*x.q.shape[2:]), Size(*x.k.shape[2:]), x.call.window)
    count = len(x.q)
    step = max(1, min(count, entries(x.q) // (rows.side * cols.side * rows.keys * cols.keys)))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def entries(tensor: Tensor) -> int:
    """How many numbers a step may hold on this device."""
    return ENTRIES["cpu" if tensor.device.type == "cpu" else "other"]


class _Tiles:
    """The attention of some tiles at a time. T is a number of tiles, n of batch entries, R = n * T."""

    def __init__(self, x: Factored) -> None:
        self.x, self.patch = x, x.call.patch_size
        self.halo = self.patch // 2
        self.q_size, self.kv_size = Size(*x.q.shape[2:]), Size(*x.k.shape[2:])
        self.rows, self.cols = make_axes(self.q_size, self.kv_size, x.call.window, x.q.device)
        self.products = Products(x.k, x.call.score, x.call.scale)
        self.q = padded(self.products.queries(x.q), *self._q_margins(self.halo), self.products.q_outside)
        self.k = padded(self.products.keys(x.k), *self._k_margins(self.halo), self.products.k_outside)
        self.v = padded(at_least_float32(x.v), *self._k_margins(0), 0.0)
        self.q_factor = None if x.q_factor is None else padded(x.q_factor, *self._q_margins(0), 0.0)
        self.k_factor = None if x.k_factor is None else padded(x.k_factor, *self._k_margins(0), 0.0)
        self.bias = self._bias(x.allowed)
        self.band = self._band()

    def _q_margins(self, halo: int) -> tuple[tuple[int, int], tuple[int, int]]:
        over = [axis.tiles * axis.side - size for axis, size in zip((self.rows, self.cols), self.q_size, strict=True)]
        return (halo, halo + over[0]), (halo, halo + over[1])

    def _k_margins(self, halo: int) -> tuple[tuple[int, int], tuple[int, int]]:
        return (
            (halo + self.rows.before, halo + self.rows.after),
            (halo + self.cols.before, halo + self.cols.after),
        )

    def _bias(self, allowed: Tensor | None) -> Tensor | None:
        """-inf at keys outside the map and masked ones: (n, 1, rows, cols) or None where there are neither."""
        margins = self._k_margins(0)
        if allowed is None and not any(margins[0] + margins[1]):
            return None
        zeros = self.v.new_zeros(1, 1, *self.kv_size)
        if allowed is not None:
            zeros = zeros.expand(len(allowed), -1, -1, -1).masked_fill(~allowed.unsqueeze(1), float("-inf"))
        return padded(zeros, *margins, float("-inf"))

    def _band(self) -> Tensor | None:
        """-inf at keys that a query of the tile does not see: (1, queries, keys); None if that differs by tile."""
        if len(self.rows.seen) > 1 or len(self.cols.seen) > 1:
            return None
        seen = self.rows.seen[0][:, None, :, None] & self.cols.seen[0][None, :, None, :]
        return self._as_bias(seen.flatten(2).flatten(0, 1)).unsqueeze(0)

    def _as_bias(self, seen: Tensor) -> Tensor:
        return torch.zeros(seen.shape, dtype=self.v.dtype, device=seen.device).masked_fill_(~seen, float("-inf"))

    def steps(self) -> Iterator[tuple[slice, slice]]:
        """Blocks of tiles that are computed together."""
        tile, keys = self.rows.side * self.cols.side, self.rows.keys * self.cols.keys
        depth = self.k.shape[1] * self.patch**2
        room = max(1, entries(self.v) // (len(self.v) * (tile * keys + (depth * keys if self.patch > 1 else 0))))
        across = min(self.cols.tiles, room)
        down = min(self.rows.tiles, max(1, room // across))
        for top in range(0, self.rows.tiles, down):
            for left in range(0, self.cols.tiles, across):
                yield slice(top, min(top + down, self.rows.tiles)), slice(left, min(left + across, self.cols.tiles))

    def key_starts(self, step: tuple[slice, slice]) -> tuple[list[int], list[int]]:
        """Rows and cols of the padded key map at which some tiles' keys begin; with a halo of p // 2, their patches."""
        return self.rows.starts[step[0]], self.cols.starts[step[1]]

    def query_starts(self, step: tuple[slice, slice]) -> tuple[list[int], list[int]]:
        """Rows and cols of the padded query map at which some tiles begin."""
        return (
            [tile * self.rows.side for tile in range(step[0].start, step[0].stop)],
            [tile * self.cols.side for tile in range(step[1].start, step[1].stop)],
        )

    def key_tiles(self, maps: Tensor, step: tuple[slice, slice], halo: int = 0) -> Tensor:
        """(n, C, rows, cols) -> (R, C, keys down, keys across)."""
        return _gather(maps, self.key_starts(step), (self.rows.keys + 2 * halo, self.cols.keys + 2 * halo))

    def query_tiles(self, maps: Tensor, step: tuple[slice, slice], halo: int = 0) -> Tensor:
        """(n, C, rows, cols) -> (R, C, queries down, queries across)."""
        return _gather(maps, self.query_starts(step), (self.rows.side + 2 * halo, self.cols.side + 2 * halo))

    def vectors(self, tiles: Tensor) -> Tensor:
        """Patches as vectors: (R, C, down + 2h, across + 2h) -> (R, C * p * p, down * across)."""
        return tiles.flatten(2) if self.patch == 1 else F.unfold(tiles, self.patch)

    def from_vectors(self, vectors: Tensor, size: tuple[int, int]) -> Tensor:
        """The adjoint of `vectors`."""
        size = (size[0] + 2 * self.halo, size[1] + 2 * self.halo)
        return torch.unflatten(vectors, 2, size) if self.patch == 1 else F.fold(vectors, size, self.patch)

    def scores(self, step: tuple[slice, slice]) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors of queries (R, V, Q) and keys (R, V, K), factors within, and scores (R, Q, K) with -inf unseen."""
        queries = self.vectors(self.query_tiles(self.q, step, self.halo))
        keys = self.vectors(self.key_tiles(self.k, step, self.halo))
        if self.q_factor is not None:
            queries = queries * self.query_tiles(self.q_factor, step).flatten(2)
        if self.k_factor is not None:
            keys = keys * self.key_tiles(self.k_factor, step).flatten(2)
        scores = torch.bmm(queries.transpose(1, 2), keys)
        if self.band is not None:
            scores += self.band
        else:
            apart = scores.view(len(self.v), step[0].stop - step[0].start, -1, *scores.shape[1:])
            apart += self._bands(step)
        if self.bias is not None:
            outside = self.key_tiles(self.bias, step).flatten(2)  # (R, 1, K), or fewer entries for all of n
            if len(outside) == len(scores):
                scores += outside
            else:
                scores.view(-1, len(outside), *scores.shape[1:]).add_(outside)
        return queries, keys, scores

    def _bands(self, step: tuple[slice, slice]) -> Tensor:
        """`_band` of tiles that differ: (rows of tiles, cols of tiles, queries, keys)."""
        rows = self.rows.seen if len(self.rows.seen) == 1 else self.rows.seen[step[0]]
        cols = self.cols.seen if len(self.cols.seen) == 1 else self.cols.seen[step[1]]
        seen = rows[:, None, :, None, :, None] & cols[None, :, None, :, None, :]
        return self._as_bias(seen.flatten(4).flatten(2, 3))

    def output(self, out: Tensor, logs: Tensor) -> None:
        """Fill `out` (n, E, Yq, Xq) and `logs` (n, 1, Yq, Xq), the logarithms of the softmax sums."""
        for step in self.steps():
            _, _, scores = self.scores(step)
            sums, log = exponentials_(scores)
            values = self.key_tiles(self.v, step).flatten(2)  # (R, E, K)
            found = torch.bmm(scores, values.transpose(1, 2)).div_(sums)  # (R, Q, E)
            self._put(out, found, step)
            self._put(logs, log, step)

    def _put(self, maps: Tensor, found: Tensor, step: tuple[slice, slice]) -> None:
        """Write tiles (R, Q, C) to their place in (n, C, Yq, Xq)."""
        tiles = found.view(len(maps), *(s.stop - s.start for s in step), self.rows.side, self.cols.side, -1)
        joined = tiles.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
        top, left = step[0].start * self.rows.side, step[1].start * self.cols.side
        target = maps[:, :, top : top + joined.shape[2], left : left + joined.shape[3]]
        target.copy_(joined[:, :, : target.shape[2], : target.shape[3]])

    def gradients(self, grad: Tensor, out: Tensor, logs: Tensor) -> list[Tensor | None]:
        """Gradients of q, k, v and the two factors, (n, channels, Y, X) each."""
        margins = self._q_margins(0)
        grad = at_least_float32(grad)
        delta = padded((grad * out).sum(1, keepdim=True), *margins, 0.0)
        grad = padded(grad, *margins, 0.0)
        logs = padded(logs, *margins, float("inf"))  # no weight where there is no query
        sums: list[Tensor | None] = [
            None if maps is None else torch.zeros_like(maps)
            for maps in (self.q, self.k, self.v, self.q_factor, self.k_factor)
        ]
        for step in self.steps():
            queries, keys, weights = self.scores(step)
            weights.sub_(self.query_tiles(logs, step).flatten(2).transpose(1, 2)).exp_()
            upstream = self.query_tiles(grad, step).flatten(2)  # (R, E, Q)
            values = self.key_tiles(self.v, step).flatten(2)
            self._add_keys(sums[2], torch.bmm(upstream, weights), step)
            slope = torch.bmm(upstream.transpose(1, 2), values)  # (R, Q, K)
            slope.sub_(self.query_tiles(delta, step).flatten(2).transpose(1, 2)).mul_(weights)
            dq = torch.bmm(keys, slope.transpose(1, 2))  # (R, V, Q)
            dk = torch.bmm(queries, slope)  # (R, V, K)
            self._add_patches(sums, dq, dk, step)
        return self._cropped(sums)

    def _add_patches(self, sums: list[Tensor | None], dq: Tensor, dk: Tensor, step: tuple[slice, slice]) -> None:
        """Add gradients of the vectors of queries and keys, through the factors, to those of the maps."""
        if self.q_factor is not None:
            plain = self.vectors(self.query_tiles(self.q, step, self.halo))
            self._add_queries(sums[3], (dq * plain).sum(1, keepdim=True), step)
            dq *= self.query_tiles(self.q_factor, step).flatten(2)
        if self.k_factor is not None:
            plain = self.vectors(self.key_tiles(self.k, step, self.halo))
            self._add_keys(sums[4], (dk * plain).sum(1, keepdim=True), step)
            dk *= self.key_tiles(self.k_factor, step).flatten(2)
        queries = self.from_vectors(dq, (self.rows.side, self.cols.side))
        self._scatter(sums[0], queries, self.query_starts(step))
        keys = self.from_vectors(dk, (self.rows.keys, self.cols.keys))
        self._scatter(sums[1], keys, self.key_starts(step))

    def _add_queries(self, total: Tensor | None, found: Tensor, step: tuple[slice, slice]) -> None:
        self._scatter(total, torch.unflatten(found, 2, (self.rows.side, self.cols.side)), self.query_starts(step))

    def _add_keys(self, total: Tensor | None, found: Tensor, step: tuple[slice, slice]) -> None:
        self._scatter(total, torch.unflatten(found, 2, (self.rows.keys, self.cols.keys)), self.key_starts(step))

    def _scatter(self, total: Tensor | None, tiles: Tensor, starts: tuple[list[int], list[int]]) -> None:
        """Add tiles (R, C, down, across) at the rows and cols where they begin; tiles may overlap."""
        if total is None:
            return
        apart = tiles.view(len(total), len(starts[0]), len(starts[1]), *tiles.shape[1:])
        down, across = tiles.shape[2:]
        for i, top in enumerate(starts[0]):
            for j, left in enumerate(starts[1]):
                total[:, :, top : top + down, left : left + across] += apart[:, i, j]

    def _cropped(self, sums: list[Tensor | None]) -> list[Tensor | None]:
        """Without the margins, and for the maps as they were given."""
        margins = [self._q_margins(self.halo), self._k_margins(self.halo), self._k_margins(0)]
        margins += [self._q_margins(0), self._k_margins(0)]
        sizes = [self.q_size, self.kv_size, self.kv_size, self.q_size, self.kv_size]
        inner = [
            None if total is None else total[:, :, y[0] : y[0] + size.rows, x[0] : x[0] + size.cols]
            for total, (y, x), size in zip(sums, margins, sizes, strict=True)
        ]
        dq, dk = self.products.gradients(cast(Tensor, inner[0]), cast(Tensor, inner[1]), self.x.k)
        return [dq, dk, *inner[2:]]


def _gather(maps: Tensor, starts: tuple[list[int], list[int]], size: tuple[int, int]) -> Tensor:
    """Parts of one size of (n, C, Y, X), beginning at these rows and cols: (n * Ty * Tx, C, down, across)."""
    index = [
        (torch.tensor(first, device=maps.device)[:, None] + torch.arange(length, device=maps.device)).flatten()
        for first, length in zip(starts, size, strict=True)
    ]
    apart = maps[:, :, index[0]][..., index[1]].view(*maps.shape[:2], len(starts[0]), size[0], len(starts[1]), size[1])
    return apart.permute(0, 2, 4, 1, 3, 5).flatten(0, 2).contiguous()
