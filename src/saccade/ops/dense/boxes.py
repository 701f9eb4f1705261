"""Dense attention between patches from products of single pixels, summed along diagonals: for the CPU.

The product of two patches is the sum of the p * p products of their pixels at the same place. For query row y and key
row y + s, all pairs of columns at once, these sums run along the diagonals of the matrix of pixel products, and then
over p neighbouring rows at the same s. Both take about 2 log2(p) additions a pair instead of the p * p * D
multiplications of vectors: for 7 x 7 patches of 16 channels about 10 additions instead of 784 multiply-adds. No sum is
made by subtraction, so nothing is lost to rounding. A running softmax joins the key rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.geometry import Size
from saccade.ops.dense.keys import KeyGrid
from saccade.ops.dispatch import Score, once_differentiable
from saccade.ops.inputs import LOG2_E, at_least_float32, no_autocast
from saccade.ops.patches import box_sum, patch_length

# Ours: products of a row of queries with a few rows of keys that are taken together; they should stay in the cache.
BUNDLE_ENTRIES = 2**15
# Below any logit of which a weight is left beside others.
LOWEST = -1e30


def box_attention(
    q: Tensor, k: Tensor, v: Tensor, grid: KeyGrid, patch_size: int, score: Score, scale: float, allowed: Tensor | None
) -> Tensor:
    """Attention of patches of (B, G, D, Yq, Xq) to those of (B, G, D, Yk, Xk) at the keys of `grid`, every row and col.

    Args:
        q, k: maps.
        v: values at the keys, (B, G, E, rows, cols).
        grid: which pixels are keys; of step 1.
        patch_size: p.
        score: any.
        scale: factor on the score.
        allowed: (B, 1, rows, cols) bool, True = may be attended; None is all.

    Returns:
        (B, G, E, Yq * Xq).
    """
    half, dtype = patch_size // 2, v.dtype
    with no_autocast(q.device):
        q, k, v = at_least_float32(q), at_least_float32(k), at_least_float32(v)
        per_query: Tensor | None = None
        per_key: Tensor | None = None
        bias: Tensor | None = None
        if score == "cosine":
            per_query = patch_length(q, patch_size).reciprocal()
        if score in ("cosine", "unit_key"):
            per_key = grid.of(patch_length(k, patch_size).reciprocal())
        padded_q, padded_k = F.pad(q, (half,) * 4), F.pad(k, (half - grid.first,) * 4)
        if score == "l2":  # distances are the same from the mean key, and rounded less
            centre = k.detach().mean((3, 4), keepdim=True)
            padded_q, padded_k, scale = padded_q - centre, padded_k - centre, 2 * scale
            squares = box_sum(padded_k.square().sum(2, keepdim=True), patch_size)
            rows, cols = (slice(half, side - half) for side in padded_k.shape[3:])
            bias = squares[..., rows, cols] * (-0.5 * scale)
        if allowed is not None:
            bias = torch.zeros_like(v[:, :, :1]) if bias is None else bias
            bias = bias.masked_fill(~allowed.unsqueeze(2), float("-inf"))
        if bias is not None:
            bias = bias * LOG2_E
        apply = cast(Any, _BoxAttention).apply
        out = cast(Tensor, apply(padded_q, padded_k, v, per_query, per_key, bias, patch_size, scale * LOG2_E))
        return out.to(dtype)


def box_pairs(q_size: Size, keys: Size, patch_size: int) -> tuple[int, int]:
    """How many products of single pixels, and of patches, one map of so many queries and keys takes."""
    bundle = _bundle(q_size.cols, keys.rows, keys.cols)
    counts = [len(rows) for _, rows in _shifts(q_size.rows, keys.rows, bundle)]
    more = patch_size - 1
    pixels = sum(count + more for count in counts) * (q_size.cols + more) * bundle * (keys.cols + more)
    return pixels, sum(counts) * q_size.cols * bundle * keys.cols


def _bundle(cols: int, key_rows: int, key_cols: int) -> int:
    return max(1, min(key_rows, BUNDLE_ENTRIES // (cols * key_cols)))


def _shifts(rows: int, key_rows: int, bundle: int) -> Iterator[tuple[int, range]]:
    for shift in range(1 - rows - (bundle - 1), key_rows, bundle):
        yield shift, range(max(0, 1 - bundle - shift), min(rows, key_rows - shift))


class _BoxAttention(torch.autograd.Function):
    """Padded q (B, G, D, Yq + p - 1, Xq + p - 1) and k, v (B, G, E, Yk, Xk), and (B, G, 1, Y, X) factors and bias.

    The logits, to the base of 2 (see `softmax_`), are scale * products * per_query * per_key + bias.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        per_query: Tensor | None,
        per_key: Tensor | None,
        bias: Tensor | None,
        patch_size: int,
        scale: float,
    ) -> Tensor:
        rows, cols = (side - patch_size + 1 for side in q.shape[3:])
        out = v.new_empty(*q.shape[:2], rows, cols, v.shape[2])
        sums = v.new_empty(*q.shape[:2], rows, cols, 1)
        for at in _every_map(q):
            maps = [None if x is None else x[at] for x in (q, k, v, per_query, per_key, bias)]
            _Head(maps, patch_size, scale).attend(out[at], sums[at])
        ctx.save_for_backward(q, k, v, per_query, per_key, bias, out, sums)
        ctx.options = (patch_size, scale)
        return out.flatten(2, 3).transpose(2, 3)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, out, sums = ctx.saved_tensors
        with torch.no_grad(), no_autocast(grad.device):
            grads = [None if x is None else torch.empty_like(x) for x in inputs]
            rows = torch.unflatten(grad.transpose(2, 3), 2, out.shape[2:4])  # (B, G, Yq, Xq, E)
            for at in _every_map(inputs[0]):
                head = _Head([None if x is None else x[at] for x in inputs], *ctx.options)
                found = _Gradients(head, rows[at], out[at], sums[at]).compute()
                for total, part in zip(grads, found, strict=True):
                    if total is not None and part is not None:
                        total[at] = part
        sources = [grad, *(x for x in inputs if x is not None)]
        return *once_differentiable("dense attention's boxes kernel", grads, sources), None, None


def _every_map(maps: Tensor) -> list[tuple[int, int]]:
    return [(b, g) for b in range(maps.shape[0]) for g in range(maps.shape[1])]


class _Head:
    """One map of one head. Key rows are taken a few at a time, `self.bundle`, and have as many blank ones around."""

    def __init__(self, maps: list[Tensor | None], patch_size: int, scale: float) -> None:
        q, k, v, per_query, per_key, bias = maps
        if q is None or k is None or v is None:
            raise ValueError("q, k and v are needed")
        self.patch, self.scale = patch_size, scale
        self.rows, self.cols = q.shape[1] - patch_size + 1, q.shape[2] - patch_size + 1
        self.key_rows, self.key_cols = v.shape[1:]
        self.bundle = _bundle(self.cols, self.key_rows, self.key_cols)
        blank = self.bundle - 1
        self.queries = (q * scale).permute(1, 2, 0).contiguous()  # (rows, cols, D)
        self.keys = F.pad(k, (0, 0, blank, blank)).flatten(1)  # (D, rows * cols)
        values = F.pad(v, (0, 0, blank, blank)).flatten(1).T
        self.values = F.pad(values.contiguous(), (0, 1), value=1.0)  # (rows * cols, E + 1), ones for the softmax sum
        self.per_query = None if per_query is None else per_query.squeeze(0).unsqueeze(2)  # (rows, cols, 1)
        self.per_key = None if per_key is None else F.pad(per_key, (0, 0, blank, blank)).flatten()
        self.biased = bias is not None
        bias = torch.zeros_like(v[:1]) if bias is None else bias
        self.bias = F.pad(bias, (0, 0, blank, blank), value=float("-inf")).flatten()  # (rows * cols)

    def shifts(self) -> Iterator[tuple[int, range]]:
        """By how much bundles of key rows lie below query rows, and the query rows that have such key rows."""
        return _shifts(self.rows, self.key_rows, self.bundle)

    def pixels_of(self, row: int) -> slice:
        """Where a bundle of rows of padded keys lies in the flat keys; `row` is its first, from the map's top."""
        width = self.key_cols + self.patch - 1
        return slice((row + self.bundle - 1) * width, (row + 2 * self.bundle - 1) * width)

    def keys_of(self, row: int) -> slice:
        """Where a bundle of key rows lies in the flat values."""
        return slice((row + self.bundle - 1) * self.key_cols, (row + 2 * self.bundle - 1) * self.key_cols)

    def products(self, shift: int, rows: range) -> Iterator[tuple[int, slice, Tensor]]:
        """Query rows, the keys in the bundle of rows `shift` below, and the products of their patches (cols, keys)."""
        box = RunningBox(self.patch)
        for row in range(rows.start, rows.stop + self.patch - 1):
            products = self.queries[row] @ self.keys[:, self.pixels_of(row + shift)]
            sums = diagonal_box(products.view(products.shape[0], self.bundle, -1), self.patch)
            total = box.push(sums, wanted=row - rows.start >= self.patch - 1)
            if total is not None:
                y = row - self.patch + 1
                yield y, self.keys_of(y + shift), total.view(self.cols, -1)

    def logits(self, products: Tensor, y: int, keys: slice) -> Tensor:
        """The logits of a row of queries; without factors in the memory of the products."""
        if self.per_query is not None:
            products = products * self.per_query[y]
        if self.per_key is not None:
            products = products * self.per_key[keys]
        blank = (self.bundle - 1) * self.key_cols
        inside = blank <= keys.start and keys.stop <= self.bias.shape[0] - blank
        return products if inside and not self.biased else products.add_(self.bias[keys])

    def attend(self, out: Tensor, sums: Tensor) -> None:
        """Write the output (Yq, Xq, E) and the logarithms of the softmax sums (Yq, Xq, 1); +inf where no key is."""
        top = torch.full_like(sums, float("-inf"))
        total = sums.new_zeros(*sums.shape[:2], out.shape[2] + 1)
        for shift, rows in self.shifts():
            for y, keys, products in self.products(shift, rows):
                logits = self.logits(products, y, keys)
                higher = torch.maximum(top[y], logits.amax(1, keepdim=True))
                level = higher.clamp_min(LOWEST)  # where no key was so far, all weights are exp2(-inf)
                kept = total[y].mul_(top[y].sub_(level).exp2_())
                _add_product(kept, logits.sub_(level).exp2_(), self.values[keys])
                top[y] = higher
        dead = total[..., -1:] == 0
        out.copy_(total[..., :-1] / total[..., -1:].masked_fill(dead, 1))
        sums.copy_((top + total[..., -1:].log2()).masked_fill_(dead, float("inf")))


class _Gradients:
    """Gradients of what one head's attention is made of, from that of its output (Yq, Xq, E)."""

    def __init__(self, head: _Head, grad: Tensor, out: Tensor, sums: Tensor) -> None:
        self._head, self._grad, self._sums = head, grad, sums
        self._natural = grad * math.log(2)  # logits are to the base of 2
        self._share = (self._natural * out).sum(2, keepdim=True)
        self._dq, self._dk = torch.zeros_like(head.queries), torch.zeros_like(head.keys)
        self._dv = grad.new_zeros(grad.shape[2], head.values.shape[0])
        self._per_query = None if head.per_query is None else torch.zeros_like(head.per_query)
        self._per_key = None if head.per_key is None else torch.zeros_like(head.per_key)
        self._bias = torch.zeros_like(head.bias) if head.biased else None

    def compute(self) -> list[Tensor | None]:
        """Those of q, k, v, per_query, per_key and bias, in their shapes."""
        head = self._head
        for shift, rows in head.shifts():
            spread = RunningBox(head.patch)
            for y, keys, products in head.products(shift, rows):
                slope = self._slope(products, y, keys)
                self._add_pixels(spread.push(slope.view(head.cols, head.bundle, -1)), y, shift)
            for row in range(rows.stop, rows.stop + head.patch - 1):
                self._add_pixels(spread.push(None), row, shift)
        return [
            self._dq.permute(2, 0, 1) * head.scale,
            self._map(self._dk, head.patch - 1),
            self._map(self._dv),
            None if self._per_query is None else self._per_query.squeeze(2).unsqueeze(0),
            None if self._per_key is None else self._map(self._per_key.unsqueeze(0)),
            None if self._bias is None else self._map(self._bias.unsqueeze(0)),
        ]

    def _map(self, flat: Tensor, more: int = 0) -> Tensor:
        """(C, rows * cols) with blank rows -> (C, rows, cols) without."""
        blank = self._head.bundle - 1
        maps = torch.unflatten(flat, 1, (-1, self._head.key_cols + more))
        return maps[:, blank : maps.shape[1] - blank]

    def _slope(self, products: Tensor, y: int, keys: slice) -> Tensor:
        """Gradient of the products of a row of queries; adds those of values, factors and bias."""
        head = self._head
        kept = products.clone() if head.per_key is not None else products
        weights = head.logits(products, y, keys).sub_(self._sums[y]).exp2_()
        _add_product(self._dv[:, keys], self._grad[y].T, weights)
        slope = torch.addmm(self._share[y], self._natural[y], head.values[keys, :-1].T, beta=-1).mul_(weights)
        if self._bias is not None:
            self._bias[keys] += slope.sum(0)
        if head.per_key is None or self._per_key is None:
            return slope
        kept.mul_(slope)  # the gradient of the product of both factors
        slope *= head.per_key[keys]
        if head.per_query is not None and self._per_query is not None:
            self._per_query[y] += (kept @ head.per_key[keys]).unsqueeze(1)
            kept *= head.per_query[y]
            slope *= head.per_query[y]
        self._per_key[keys] += kept.sum(0)
        return slope

    def _add_pixels(self, spread: Tensor | None, row: int, shift: int) -> None:
        """Bring gradients, summed over the patches that a row of pixels is in, along the diagonals to its pixels."""
        if spread is None:
            return
        head, more = self._head, self._head.patch - 1
        slopes = diagonal_box(F.pad(spread, (more, more, 0, 0, more, more)), head.patch).flatten(1)
        keys = head.pixels_of(row + shift)
        _add_product(self._dq[row], slopes, head.keys[:, keys].T)
        _add_product(self._dk[:, keys], head.queries[row].T, slopes)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add the product to `total`; not by addmm_, which flop counters overlook."""
    torch.addmm(total, left, right, out=total)


class RunningBox:
    """Sums of the last `size` of a run of matrices: sums of 1, 2, 4 ... of them, put together anew at each step."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._levels: list[list[Tensor | None]] = [[] for _ in range(size.bit_length())]

    def push(self, item: Tensor | None, wanted: bool = True) -> Tensor | None:
        """Take the next matrix, None for zeros; the sum if it is wanted, None for zeros. Not to be changed in place."""
        total: Tensor | None = None
        behind = 0
        for level, history in enumerate(self._levels):
            history.append(item)
            span = 1 << level
            if self._size & span:
                total = _add(total, _back(history, behind)) if wanted else None
                behind += span
            item = _add(item, _back(history, span)) if 2 * span <= self._size else None
            del history[: -2 * self._size]
        return total


def _back(history: list[Tensor | None], steps: int) -> Tensor | None:
    return history[-1 - steps] if steps < len(history) else None


def _add(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def diagonal_box(matrix: Tensor, size: int) -> Tensor:
    """Sums of `size` entries along the diagonals of the outer axes: (Y + size - 1, M, X + size - 1) -> (Y, M, X)."""
    rows, cols = matrix.shape[0] - size + 1, matrix.shape[2] - size + 1
    total: Tensor | None = None
    behind, span = 0, 1
    while span <= size:
        if size & span:
            part = matrix[behind : behind + rows, :, behind : behind + cols]
            total = part if total is None else total + part
            behind += span
        if 2 * span <= size:
            matrix = matrix[:-span, :, :-span] + matrix[span:, :, span:]
        span *= 2
    return matrix if total is None else total
