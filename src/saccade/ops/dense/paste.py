"""Dense attention whose queries paste patches of values: contextual and cross-scale attention's read-out, exactly.

Every query x brings the side x side patch of values around each key, weighted, to its own place, and overlaps are
summed: out[x] = sum over offsets o and keys m of P[x - o, m - o] v[m] / divisor. The weights are summed along the
diagonals of query and key pixels before they meet the values, so values are never unfolded: side^2 times less memory
and fewer products than a transposed convolution with all patches. Scores of patches are the same sums of the products
of single pixels. Where the matrix of weights is large it is made a band of query rows at a time, and again in backward.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from saccade.geometry import Size
from saccade.ops.dispatch import Score, check_score
from saccade.ops.inputs import at_least_float32, check_scale, default_scale, no_autocast, read_shape
from saccade.ops.options import positive
from saccade.ops.patches import box_sum, check_patch_size, patch_length

# Ours: entries of the weights that are held at a time, a few times over.
BAND_ENTRIES = {"cpu": 2**24, "other": 2**27}
# Ours: entries up to which training keeps the weights for backward instead of making them again.
KEPT_ENTRIES = 2**22


def dense_paste(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    side: int = 3,
    divisor: float | None = None,
    score: Score = "dot",
    scale: float | None = None,
    patch_size: int = 1,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Let every query attend to every key and paste patches of values.

    Args:
        q: (B, G, D, Yq, Xq).
        k: (B, G, D, Yk, Xk).
        v: (B, G, E, Yk, Xk).
        side: of the pasted patches in pixels of the maps, odd; what lies outside the value map is zero.
        divisor: of the sum of overlapping patches; None is the number of those that overlap away from borders, side^2.
        score: "dot", "l2", "cosine" or "unit_key".
        scale: factor on the score; None is the default of `saccade.ops.dense_attention`.
        patch_size: queries and keys are compared as patches of this side, odd, zeros outside the maps.
        key_mask: (B, 1, Yk, Xk) bool, True = may be attended; a pasted patch may hold masked pixels.

    Returns:
        (B, G, E, Yq, Xq).

    Raises:
        ValueError: wrong maps or options.
    """
    check_score("full", score)
    read_shape("full", q, k, v, key_mask)
    side, patch_size = check_patch_size("full", side), check_patch_size("full", patch_size)
    scale = default_scale(check_scale("full", scale), q.shape[2] * patch_size**2, score)
    share = float(side**2) if divisor is None else positive("full", "divisor", divisor, "None for side^2")
    heads, sizes = q.shape[:2], (Size(*q.shape[3:]), Size(*k.shape[3:]))
    with no_autocast(q.device):
        vectors = at_least_float32(v).flatten(0, 1).flatten(2).transpose(1, 2) / share  # (N, n_k, E)
        maps = _Maps.of(at_least_float32(q), at_least_float32(k), vectors, key_mask, score, scale, patch_size, side)
        out = _paste(maps, patch_size // 2 + side // 2, sizes)  # (N, E, Yq, Xq)
    return torch.unflatten(out.to(v.dtype), 0, heads)


@dataclass(frozen=True)
class _Maps:
    """What the weights are made of; N = B * G. Logits are products of patches * factor + bias, of each key."""

    q: Tensor  # (N, D, Yq, Xq)
    k: Tensor  # (N, D, n_k)
    v: Tensor  # (N, n_k, E)
    factor: Tensor  # (N, 1, 1, Yk, Xk)
    bias: Tensor | None  # (N, 1, 1, Yk, Xk)
    per_query: Tensor | None  # (N, Yq, Xq, 1, 1)
    patch_size: int
    side: int

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_mask: Tensor | None,
        score: Score,
        scale: float,
        patch_size: int,
        side: int,
    ) -> _Maps:
        factor = k.new_full((1, 1, 1, 1, 1), 2 * scale if score == "l2" else scale)
        bias: Tensor | None = None
        per_query: Tensor | None = None
        if score == "l2":  # -|q - k|^2 without what is the same for all keys of a query
            centre = k.detach().mean((3, 4), keepdim=True) if patch_size == 1 else 0.0  # less is rounded
            q, k = q - centre, k - centre
            bias = box_sum(k.square().sum(2), patch_size).flatten(0, 1)[:, None, None] * -scale
        if score in ("cosine", "unit_key"):
            factor = (scale / patch_length(k, patch_size)).flatten(0, 1).unsqueeze(1)
        if score == "cosine":
            per_query = patch_length(q, patch_size).flatten(0, 1).squeeze(1).reciprocal()[..., None, None]
        if key_mask is not None:
            mask = key_mask.repeat_interleave(q.shape[1], 0).unsqueeze(1)
            bias = (k.new_zeros(()) if bias is None else bias).masked_fill(~mask, float("-inf"))
        queries, keys = q.flatten(0, 1), k.flatten(0, 1).flatten(2)
        return cls(queries, keys, v, factor, bias, per_query, patch_size, side)

    def band(self, start: int, stop: int, kv_size: Size) -> Tensor:
        """What query rows start ... stop - 1 read: (N, stop - start, Xq, E)."""
        weights = self._weights(start - self.side // 2, stop + self.side // 2, kv_size)
        summed = diagonal_sums(weights, self.side, cropped=True)
        read = torch.bmm(summed.flatten(1, 2).flatten(2), self.v)  # (N, rows * Xq, E)
        return torch.unflatten(read, 1, summed.shape[1:3])

    def _weights(self, start: int, stop: int, kv_size: Size) -> Tensor:
        """Weights of these rows of queries (N, rows, Xq, Yk, Xk); zeros for rows outside the map."""
        half, rows = self.patch_size // 2, self.q.shape[2]
        queries = _rows(self.q, start - half, stop + half, 2)
        products = torch.bmm(queries.flatten(2).transpose(1, 2), self.k)  # (N, rows * Xq, n_k)
        pairs = products.view(-1, *queries.shape[2:], *kv_size)
        logits = diagonal_sums(pairs, self.patch_size, cropped=True) * self.factor
        if self.per_query is not None:
            logits = logits * _rows(self.per_query, start, stop, 1)
        if self.bias is not None:
            logits = logits + self.bias
        weights = torch.unflatten(torch.softmax(logits.flatten(3), 3), 3, kv_size)
        if start >= 0 and stop <= rows:
            return weights
        place = torch.arange(start, stop, device=weights.device)
        return weights * ((place >= 0) & (place < rows)).to(weights.dtype)[:, None, None, None]


def _rows(maps: Tensor, start: int, stop: int, dim: int) -> Tensor:
    """Rows start ... stop - 1 along an axis, zeros where there are none."""
    inside = maps.narrow(dim, max(start, 0), min(stop, maps.shape[dim]) - max(start, 0))
    pads = [0, 0] * (maps.dim() - 1 - dim) + [max(-start, 0), max(stop - maps.shape[dim], 0)]
    return F.pad(inside, pads) if any(pads) else inside


def _paste(maps: _Maps, halo: int, sizes: tuple[Size, Size]) -> Tensor:
    """All queries, in as few bands as the budget of weights allows: (N, E, Yq, Xq)."""
    q_size, kv_size = sizes
    count = maps.q.shape[0]
    row = q_size.cols * kv_size.area  # entries of a row of queries of one map
    budget = BAND_ENTRIES["cpu" if maps.q.device.type == "cpu" else "other"]
    together = max(1, min(count, budget // ((q_size.rows + 2 * halo) * row)))
    step = min(q_size.rows, max(1, budget // (together * row) - 2 * halo))
    records = torch.is_grad_enabled() and any(x.requires_grad for x in (maps.q, maps.k, maps.v))
    again = records and count * q_size.rows * row > KEPT_ENTRIES
    parts = []
    for first in range(0, count, together):
        some = _some(maps, slice(first, first + together))
        bands = []
        for start in range(0, q_size.rows, step):
            read = partial(some.band, start, min(start + step, q_size.rows), kv_size)
            bands.append(
                cast(Tensor, checkpoint(read, use_reentrant=False, preserve_rng_state=False)) if again else read()
            )
        parts.append(bands[0] if len(bands) == 1 else torch.cat(bands, 1))
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).permute(0, 3, 1, 2).contiguous()


def _some(maps: _Maps, at: slice) -> _Maps:
    """The maps of some of the N."""

    def cut(tensor: Tensor) -> Tensor:
        return tensor if tensor.shape[0] == 1 else tensor[at]

    return replace(
        maps,
        q=cut(maps.q),
        k=cut(maps.k),
        v=cut(maps.v),
        factor=cut(maps.factor),
        bias=None if maps.bias is None else cut(maps.bias),
        per_query=None if maps.per_query is None else cut(maps.per_query),
    )


def diagonal_sums(pairs: Tensor, side: int, *, cropped: bool = False) -> Tensor:
    """Sum what belongs to pairs of pixels over the pairs of the patches around them.

    Args:
        pairs: (N, Yq, Xq, Yk, Xk); entries of pairs outside are zero.
        side: of the patches, odd.
        cropped: leave out the side // 2 first and last rows of queries.

    Returns:
        (N, Yq, Xq, Yk, Xk): out[y, x, i, j] = sum over a, b of pairs[y + a, x + b, i + a, j + b].
    """
    if side == 1:
        return pairs
    return cast(Tensor, cast(Any, _DiagonalSums).apply(pairs, side // 2, cropped))


class _DiagonalSums(torch.autograd.Function):
    """Linear and, but for the crop, its own adjoint; nothing is kept for backward."""

    @staticmethod
    def forward(ctx: Any, pairs: Tensor, half: int, cropped: bool) -> Tensor:
        ctx.options = (half, cropped)
        return _summed(_summed(pairs, half, 1, half if cropped else 0), half, 2, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        half, cropped = ctx.options
        if cropped:
            grad = F.pad(grad, (0, 0, 0, 0, 0, 0, half, half))
        return cast(Any, _DiagonalSums).apply(grad, half, False), None, None


def _summed(pairs: Tensor, half: int, dim: int, crop: int) -> Tensor:
    """Sums over `half` steps to either side along axis `dim` of the queries and the axis two behind it of the keys."""
    length, keys = pairs.shape[dim], pairs.shape[dim + 2]
    out = pairs.narrow(dim, crop, length - 2 * crop).clone(memory_format=torch.contiguous_format)
    for step in (s for s in range(-half, half + 1) if s):
        first, last = max(0, -step - crop), min(out.shape[dim], length - step - crop)
        if last <= first or abs(step) >= keys:
            continue
        target = out.narrow(dim, first, last - first).narrow(dim + 2, max(0, -step), keys - abs(step))
        target += pairs.narrow(dim, first + crop + step, last - first).narrow(dim + 2, max(0, step), keys - abs(step))
    return out
