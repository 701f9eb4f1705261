"""Windowed attention on patches by shift planes: patches are never unfolded.

For one shift of the key map against the query map, the product of two p x p patches is a p x p box sum over the plane
of products of pixels. So a tile of queries needs the products of its pixels with the keys of its windows, D channels
deep and not D * p * p, and two running sums. Planes are laid out query by query (rows, cols, shift down, shift across):
products of a row of queries with a row of keys, read along their diagonal, and sums over a few rows are then sums of
whole blocks of memory. Forward and backward hold one tile at a time; backward computes the weights again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from saccade.geometry import AttentionShape, Size
from saccade.ops.dispatch import Request, Score, once_differentiable
from saccade.ops.inputs import at_least_float32, no_autocast
from saccade.ops.local.planes import Scratch, add_region, diagonal, diagonal_adjoint, region, window_sum
from saccade.ops.local.window import Factored, LocalCall, Products, exponentials_, factor, offsets, padded

# Ours: scores of a tile, and products of pixels, that are held at a time.
SCORE_ENTRIES = {"cpu": 2**21, "other": 2**26}
PLANE_ENTRIES = {"cpu": 2**19, "other": 2**25}
# Ours: queries along a tile's sides; more would waste products of pixels whose columns are too far apart.
TILE_COLS, TILE_ROWS = 40, 64


class Tile(NamedTuple):
    """A block of queries and the shifts at which some of its windows lie inside the map."""

    row: int
    rows: int
    col: int
    cols: int
    down: int  # first shift of rows
    downs: int
    across: int  # first shift of columns
    acrosses: int


def cut(size: Size, window: Size, room: int) -> Iterator[Tile]:
    """Tiles over a map of queries whose scores take at most `room` entries, as long as a row of them does."""
    width = min(size.cols, TILE_COLS)
    pairs = width * offsets(window.rows, size.rows)[1] * offsets(window.cols, size.cols)[1]
    height = max(1, min(size.rows, TILE_ROWS, room // pairs))
    for row in _parts(size.rows, height):
        for col in _parts(size.cols, width):
            down, downs = _shifts(row, size.rows, window.rows)
            across, acrosses = _shifts(col, size.cols, window.cols)
            yield Tile(row[0], row[1] - row[0], col[0], col[1] - col[0], down, downs, across, acrosses)


def _parts(length: int, side: int) -> list[tuple[int, int]]:
    """Nearly equal parts, of at most `side`."""
    count = -(-length // side)
    return [(length * i // count, length * (i + 1) // count) for i in range(count)]


def _shifts(part: tuple[int, int], length: int, side: int) -> tuple[int, int]:
    """Offsets at which some query of a part still finds a key: the first, and how many."""
    first, count = offsets(side, length)
    last = min(first + count, length - part[0])
    first = max(first, 1 - part[1])
    return first, last - first


def shift_flops(shape: AttentionShape, window: Size, score: Score, patch_size: int) -> tuple[int, int]:
    """FLOPs of the products for scores and for values, on the CPU."""
    halo, scores, values = patch_size - 1, 0, 0
    for tile in cut(shape.q_size, window, SCORE_ENTRIES["cpu"]):
        width = tile.cols + tile.acrosses - 1
        values += tile.rows * tile.cols * tile.downs * width
        scores += (tile.rows + halo) * (tile.cols + halo) * tile.downs * (width + halo)
    maps = 2 * shape.batch * shape.heads
    return maps * scores * (shape.qk_channels + (score == "l2")), maps * values * shape.v_channels


def against_shift(request: Request) -> list[str]:
    """Shift planes need each query's window at the same offset."""
    shape = request.shape
    if shape.q_size != shape.kv_size:
        return [f"query map {shape.q_size} and key map {shape.kv_size} must be of one size"]
    return []


def shift(q: Tensor, k: Tensor, v: Tensor, call: LocalCall, key_mask: Tensor | None) -> Tensor:
    """Windowed attention by shift planes: see `saccade.ops.local.local_attention`."""
    x = factor(q, k, v, call, key_mask)
    apply = cast(Any, _ShiftAttention).apply
    out = cast(Tensor, apply(x.q, x.k, x.v, x.q_factor, x.k_factor, x.allowed, x.call))
    return torch.unflatten(out, 0, q.shape[:2]).to(q.dtype)


class _ShiftAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x = Factored.of(inputs[:-1], inputs[-1])
        out = x.new_output()
        logs = torch.empty_like(out[:, :1])
        with no_autocast(out.device):
            scratch = Scratch(out)
            for n in range(len(out)):
                _Planes(x.entry(n), scratch).output(out[n], logs[n, 0])
        ctx.save_for_backward(*inputs[:-1], out, logs)
        ctx.call = x.call
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *maps, out, logs = ctx.saved_tensors
        x = Factored.of(maps, ctx.call)
        with torch.no_grad(), no_autocast(grad.device):
            scratch = Scratch(out)
            grads = [None if x is None else torch.empty_like(x) for x in maps[:5]]
            for n in range(len(grad)):
                planes = _Planes(x.entry(n), scratch)
                found = planes.gradients(at_least_float32(grad[n]), out[n], logs[n, 0])
                for whole, part in zip(grads, found, strict=True):
                    if whole is not None and part is not None:
                        whole[n] = part
        sources = [x for x in (grad, *maps[:5]) if x is not None]
        return *once_differentiable("local attention's shift kernel", grads, sources), None, None


class _Planes:
    """The attention of one batch entry and head, tile by tile. Maps are (Y, X, channels) here, padded by p // 2."""

    def __init__(self, x: Factored, scratch: Scratch) -> None:
        self.x, self.scratch, self.patch = x, scratch, x.call.patch_size
        self.halo = self.patch // 2
        self.size = Size(*x.q.shape[2:])
        self.products = Products(x.k, x.call.score, x.call.scale)
        margin = (self.halo, self.halo)
        self.q = _channels_last(padded(self.products.queries(x.q), margin, margin, self.products.q_outside))
        self.k = _channels_last(padded(self.products.keys(x.k), margin, margin, self.products.k_outside))
        self.v = _channels_last(at_least_float32(x.v))
        self.q_factor = None if x.q_factor is None else x.q_factor[0, 0]
        self.k_factor = None if x.k_factor is None else x.k_factor[0, 0].unsqueeze(2)
        self.bias = self.v.new_zeros(*self.size, 1)  # -inf where masked
        if x.allowed is not None:
            self.bias.masked_fill_(~x.allowed[0].unsqueeze(2), float("-inf"))

    def tiles(self) -> Iterator[Tile]:
        return cut(self.size, self.x.call.window, SCORE_ENTRIES[self._device()])

    def _device(self) -> str:
        return "cpu" if self.v.device.type == "cpu" else "other"

    def chunks(self, tile: Tile) -> list[tuple[int, int]]:
        """Spans of row shifts whose products of pixels are held together."""
        halo = 2 * self.halo
        entries = (tile.rows + halo) * (tile.cols + halo) * (tile.cols + halo + tile.acrosses - 1)
        return _parts(tile.downs, max(1, PLANE_ENTRIES[self._device()] // entries))

    def key_region(self, maps: Tensor, tile: Tile, halo: int = 0, outside: float = 0.0) -> Tensor:
        """What a tile sees of a key map: (rows + downs - 1 + 2 * halo, cols + acrosses - 1 + 2 * halo, C)."""
        rows, cols = tile.rows + tile.downs - 1 + 2 * halo, tile.cols + tile.acrosses - 1 + 2 * halo
        return region(maps, tile.row + tile.down, tile.col + tile.across, rows, cols, outside)

    def query_region(self, maps: Tensor, tile: Tile, halo: int = 0) -> Tensor:
        """A tile of a query map: (rows + 2 * halo, cols + 2 * halo, C)."""
        rows, cols = tile.rows + 2 * halo, tile.cols + 2 * halo
        return maps[tile.row : tile.row + rows, tile.col : tile.col + cols].contiguous()

    def scores(self, tile: Tile, kept: Tensor | None = None) -> Tensor:
        """Scores of a tile, (rows, cols, downs, acrosses), -inf where there is no key.

        Args:
            kept: filled with them as they are before keys are masked.
        """
        queries = self.query_region(self.q, tile, self.halo)  # (R', C', D)
        keys = self.key_region(self.k, tile, self.halo)  # (R' + downs - 1, W, D)
        scores = self.scratch.take("scores", tile.rows, tile.cols, tile.downs, tile.acrosses)
        for start, stop in self.chunks(tile):
            plane = self.scratch.take("dense", len(queries), queries.shape[1], (stop - start) * keys.shape[1])
            torch.bmm(queries, _row_blocks(keys, start, stop, len(queries)).transpose(1, 2), out=plane)
            products = diagonal(plane, stop - start, tile.acrosses)  # (R', C', shifts, acrosses)
            sums = products
            if self.patch > 1:
                sums = self.scratch.take("sums", len(queries), tile.cols, stop - start, tile.acrosses)
                window_sum(products, 1, self.patch, sums, self.scratch)
            window_sum(sums, 0, self.patch, scores[:, :, start:stop], self.scratch)
        if self.q_factor is not None:
            scores *= self.query_region(self.q_factor, tile)[:, :, None, None]
        if self.k_factor is not None:
            scores *= _windows(self.key_region(self.k_factor, tile), tile)
        if kept is not None:
            kept.copy_(scores)
        bias = self.key_region(self.bias, tile, outside=float("-inf"))
        if self.x.allowed is not None or self._leaves_map(tile):
            scores += _windows(bias, tile)
        return scores

    def _leaves_map(self, tile: Tile) -> bool:
        top, left = tile.row + tile.down, tile.col + tile.across
        bottom, right = top + tile.rows + tile.downs - 1, left + tile.cols + tile.acrosses - 1
        return top < 0 or left < 0 or bottom > self.size.rows or right > self.size.cols

    def band(self, tile: Tile, plane: Tensor, name: str) -> Tensor:
        """Weights of some row shifts (R, C, shifts, acrosses) as rows over all columns: (R, C, shifts * W)."""
        width = tile.cols + tile.acrosses - 1
        dense = self.scratch.zeros(name, *plane.shape[:2], plane.shape[2] * width)
        diagonal(dense, plane.shape[2], tile.acrosses).copy_(plane)
        return dense

    def output(self, out: Tensor, logs: Tensor) -> None:
        """Fill `out` (E, Y, X) and `logs` (Y, X), the logarithms of the softmax sums."""
        for tile in self.tiles():
            weights = self.scores(tile)
            sums, log = exponentials_(weights.flatten(2))
            values = self.key_region(self.v, tile)
            found = torch.zeros(tile.rows, tile.cols, values.shape[2], dtype=values.dtype, device=values.device)
            for start, stop in self.chunks(tile):
                band = self.band(tile, weights[:, :, start:stop], "band")
                torch.baddbmm(found, band, _row_blocks(values, start, stop, tile.rows), out=found)
            rows, cols = slice(tile.row, tile.row + tile.rows), slice(tile.col, tile.col + tile.cols)
            out[:, rows, cols] = found.div_(sums).permute(2, 0, 1)
            logs[rows, cols] = log.squeeze(2)

    def gradients(self, grad: Tensor, out: Tensor, logs: Tensor) -> list[Tensor | None]:
        """Gradients of q, k, v and the factors of one entry, (channels, Y, X) each, from (E, Y, X) ones."""
        delta = (grad * out).sum(0)
        grad = _channels_last(grad.unsqueeze(0))
        self.sums = [torch.zeros_like(x) for x in (self.q, self.k, self.v)]
        self.factor_sums = [None if x is None else torch.zeros_like(x) for x in (self.q_factor, self.k_factor)]
        for tile in self.tiles():
            kept = None
            if self.q_factor is not None or self.k_factor is not None:
                kept = self.scratch.take("kept", tile.rows, tile.cols, tile.downs, tile.acrosses)
            weights = self.scores(tile, kept)
            weights.sub_(self.query_region(logs, tile)[:, :, None, None]).exp_()
            upstream = self.query_region(grad, tile)
            self._add_value_gradients(tile, weights, upstream)
            self._slopes_(tile, weights, upstream, self.query_region(delta, tile))
            if kept is not None:
                self._add_factor_gradients(tile, weights, kept)
            self._add_map_gradients(tile, weights)
        rows, cols = slice(self.halo, self.halo + self.size.rows), slice(self.halo, self.halo + self.size.cols)
        dq, dk = (_channels_first(total[rows, cols]) for total in self.sums[:2])
        dq, dk = self.products.gradients(dq, dk, self.x.k)
        dv = _channels_first(self.sums[2])
        return [dq[0], dk[0], dv[0], *(None if x is None else x.view(1, *self.size) for x in self.factor_sums)]

    def _add_value_gradients(self, tile: Tile, weights: Tensor, upstream: Tensor) -> None:
        values = self.key_region(self.v, tile)
        total = torch.zeros_like(values)
        for start, stop in self.chunks(tile):
            band = self.band(tile, weights[:, :, start:stop], "band")
            _add_row_blocks(total, band, upstream, start, stop)
        add_region(self.sums[2], total, tile.row + tile.down, tile.col + tile.across)

    def _slopes_(self, tile: Tile, weights: Tensor, upstream: Tensor, delta: Tensor) -> None:
        """Turn the weights of a tile into the gradients of its scores, in place."""
        values = self.key_region(self.v, tile)
        for start, stop in self.chunks(tile):
            plane = self.scratch.take("dense", tile.rows, tile.cols, (stop - start) * values.shape[1])
            torch.bmm(upstream, _row_blocks(values, start, stop, tile.rows).transpose(1, 2), out=plane)
            some = self.scratch.take("sums", tile.rows, tile.cols, stop - start, tile.acrosses)
            torch.sub(diagonal(plane, stop - start, tile.acrosses), delta[:, :, None, None], out=some)
            weights[:, :, start:stop] *= some

    def _add_factor_gradients(self, tile: Tile, slopes: Tensor, kept: Tensor) -> None:
        """Gradients of the factors, and of the scores through them; both factors are above 0."""
        kept *= slopes  # the gradient of the logarithm of either factor, once summed
        if self.q_factor is not None:
            factor = self.query_region(self.q_factor, tile)
            found = kept.flatten(2).sum(2) / factor
            add_region(cast(Tensor, self.factor_sums[0]), found, tile.row, tile.col)
            slopes *= factor[:, :, None, None]
        if self.k_factor is not None:
            factor = self.key_region(self.k_factor, tile, outside=1.0)  # (rows + downs - 1, W, 1)
            total = torch.zeros_like(factor)
            for start, stop in self.chunks(tile):
                columns = self.band(tile, kept[:, :, start:stop], "band").sum(1).view(tile.rows, stop - start, -1, 1)
                for row in range(tile.rows):
                    total[row + start : row + stop] += columns[row]
            add_region(cast(Tensor, self.factor_sums[1]), total / factor, tile.row + tile.down, tile.col + tile.across)
            slopes *= _windows(factor, tile)

    def _add_map_gradients(self, tile: Tile, slopes: Tensor) -> None:
        """From gradients of the scores to those of q and k: box sums of them, then the products' transposes."""
        queries, keys = self.query_region(self.q, tile, self.halo), self.key_region(self.k, tile, self.halo)
        dq, dk = torch.zeros_like(queries), torch.zeros_like(keys)
        for start, stop in self.chunks(tile):
            plane = diagonal_adjoint(slopes[:, :, start:stop], self.patch, self.scratch)  # (R', C', shifts * W)
            torch.baddbmm(dq, plane, _row_blocks(keys, start, stop, len(queries)), out=dq)
            _add_row_blocks(dk, plane, queries, start, stop)
        add_region(self.sums[0], dq, tile.row, tile.col)
        add_region(self.sums[1], dk, tile.row + tile.down, tile.col + tile.across)


def _channels_last(maps: Tensor) -> Tensor:
    """(1, C, Y, X) -> (Y, X, C) contiguous."""
    return maps[0].permute(1, 2, 0).contiguous()


def _channels_first(maps: Tensor) -> Tensor:
    """(Y, X, C) -> (1, C, Y, X)."""
    return maps.permute(2, 0, 1).unsqueeze(0)


def _row_blocks(maps: Tensor, start: int, stop: int, rows: int) -> Tensor:
    """For each of `rows` rows r the map's rows r + start to r + stop: (Y, X, C) seen as (rows, shifts * X, C)."""
    _, width, channels = maps.shape
    offset = maps.storage_offset() + start * width * channels
    return maps.as_strided((rows, (stop - start) * width, channels), (width * channels, channels, 1), offset)


def _add_row_blocks(total: Tensor, weights: Tensor, maps: Tensor, start: int, stop: int) -> None:
    """Add weights (R, C, shifts * X) transposed times maps (R, C, D) to the row blocks of total (Y, X, D)."""
    flat, width = total.flatten(0, 1), total.shape[1]
    for row in range(len(maps)):
        block = flat[(row + start) * width : (row + stop) * width]
        torch.addmm(block, weights[row].t(), maps[row], out=block)


def _windows(maps: Tensor, tile: Tile) -> Tensor:
    """The window of each query of a tile as a view (rows, cols, downs, acrosses) of (Y, X, 1)."""
    width = maps.shape[1]
    size = (tile.rows, tile.cols, tile.downs, tile.acrosses)
    return maps.as_strided(size, (width, 1, width, 1), maps.storage_offset())
