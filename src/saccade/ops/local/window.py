"""What the kernels of windowed attention share: where windows lie, and scores as plain products of channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saccade.geometry import Size
from saccade.ops.dispatch import Score
from saccade.ops.inputs import at_least_float32
from saccade.ops.options import sides
from saccade.ops.patches import as_vectors, patch_length


@dataclass(frozen=True)
class LocalCall:
    """The options of one call, checked: `score` is any, `scale` a number."""

    window: Size
    score: Score
    scale: float
    patch_size: int


def check_window(op: str, window: int | Sequence[int]) -> Size:
    """Read a window's sides, rows and cols, in key pixels.

    Raises:
        ValueError: neither a positive integer nor two.
    """
    return sides(op, "window", window, " Valid here: 7, 50, (16, 32).")


def centres(queries: int, keys: int, device: torch.device | str | None = None) -> Tensor:
    """The key under each query along one axis, floor((r + 0.5) * keys / queries): (queries,) long."""
    return ((2 * torch.arange(queries, device=device) + 1) * keys).div(2 * queries, rounding_mode="floor")


def offsets(side: int, keys: int) -> tuple[int, int]:
    """First offset of a window from its centre along one axis, and how many there are.

    -(w // 2) to w // 2 for odd w, to w // 2 - 1 for even w; offsets that leave every map of `keys` are dropped.
    """
    first, last = max(-(side // 2), 1 - keys), min(side - 1 - side // 2, keys - 1)
    return first, last - first + 1


def inside(queries: int, keys: int, side: int, device: torch.device | None = None) -> Tensor:
    """Which keys lie in which query's window, along one axis: (queries, keys) bool."""
    first, count = offsets(side, keys)
    distance = torch.arange(keys, device=device) - centres(queries, keys, device)[:, None] - first
    return (distance >= 0) & (distance < count)


def in_window(q_size: Size, kv_size: Size, window: Size, device: torch.device | None = None) -> Tensor:
    """Which keys lie in which query's window: (Yq * Xq, Yk * Xk) bool."""
    rows = inside(q_size.rows, kv_size.rows, window.rows, device)
    cols = inside(q_size.cols, kv_size.cols, window.cols, device)
    return (rows[:, None, :, None] & cols[None, :, None, :]).flatten(2).flatten(0, 1)


@dataclass(frozen=True)
class Factored:
    """A call whose score is "dot" or "l2" between patches, times a factor of the query and one of the key.

    Maps are (B*G, channels, Y, X), the factors (B*G, 1, Y, X) or None, the mask (B*G, Yk, Xk) or None.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    q_factor: Tensor | None
    k_factor: Tensor | None
    allowed: Tensor | None
    call: LocalCall

    @classmethod
    def of(cls, maps: Sequence[Any], call: LocalCall) -> Factored:
        """From what an autograd function is given, or has kept."""
        q, k, v, q_factor, k_factor, allowed = maps
        return cls(q, k, v, q_factor, k_factor, allowed, call)

    def entry(self, n: int) -> Factored:
        """One batch entry and head."""
        return self.entries(slice(n, n + 1))

    def entries(self, span: slice) -> Factored:
        """Some batch entries and heads."""
        q_factor, k_factor, allowed = (
            None if x is None else x[span] for x in (self.q_factor, self.k_factor, self.allowed)
        )
        return Factored(self.q[span], self.k[span], self.v[span], q_factor, k_factor, allowed, self.call)

    def new_output(self) -> Tensor:
        """An empty (B*G, E, Yq, Xq) in at least float32."""
        dtype = at_least_float32(self.v[:0]).dtype
        return self.q.new_empty(self.q.shape[0], self.v.shape[1], *self.q.shape[2:], dtype=dtype)


def factor(q: Tensor, k: Tensor, v: Tensor, call: LocalCall, key_mask: Tensor | None) -> Factored:
    """Bring a call of (B, G, channels, Y, X) maps to the kernels' form; differentiable."""
    allowed = None if key_mask is None else key_mask[:, 0].repeat_interleave(q.shape[1], 0)
    q_factor = k_factor = None
    score = call.score
    if score in ("cosine", "unit_key"):
        if call.patch_size == 1:
            q, k, score = as_vectors(at_least_float32(q), at_least_float32(k), 1, score)
        else:
            k_factor = 1 / patch_length(k, call.patch_size).flatten(0, 1)
            q_factor = 1 / patch_length(q, call.patch_size).flatten(0, 1) if score == "cosine" else None
            score = "dot"
    plain = LocalCall(call.window, score, call.scale, call.patch_size)
    return Factored(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), q_factor, k_factor, allowed, plain)


class Products:
    """Scores as sums over channels of products: of q and k for "dot"; for "l2" one channel more carries -|k|^2.

    Distances move by the mean key first, which keeps |k|^2 small; the squared length of the query is left out, since
    softmax does not see it. `q_outside` and `k_outside` (N, C, 1, 1) are what the results are outside their maps.
    """

    def __init__(self, k: Tensor, score: Score, scale: float) -> None:
        self._scale = scale
        zeros = torch.zeros_like(at_least_float32(k[:, :, :1, :1]))
        self._centre = at_least_float32(k).mean((2, 3), keepdim=True) if score == "l2" else None
        self.q_outside, self.k_outside = self.queries(zeros), self.keys(zeros)

    def queries(self, q: Tensor) -> Tensor:
        """(N, D, Y, X) -> (N, C, Y, X), the scale within."""
        q = at_least_float32(q)
        if self._centre is None:
            return q * self._scale
        return torch.cat([(q - self._centre).mul_(2 * self._scale), torch.full_like(q[:, :1], -self._scale)], 1)

    def keys(self, k: Tensor) -> Tensor:
        """(N, D, Y, X) -> (N, C, Y, X)."""
        k = at_least_float32(k)
        if self._centre is None:
            return k
        k = k - self._centre
        return torch.cat([k, k.square().sum(1, keepdim=True)], 1)

    def gradients(self, dq: Tensor, dk: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of q and k, from those of `queries(q)` and `keys(k)`."""
        if self._centre is None:
            return dq * self._scale, dk
        moved = at_least_float32(k) - self._centre
        return dq[:, :-1] * (2 * self._scale), dk[:, :-1] + moved.mul_(2).mul_(dk[:, -1:])


def padded(maps: Tensor, rows: tuple[int, int], cols: tuple[int, int], outside: Tensor | float) -> Tensor:
    """(N, C, Y, X) with `rows` and `cols` of `outside` before and after."""
    count, channels, height, width = maps.shape
    size = (count, channels, height + sum(rows), width + sum(cols))
    out = maps.new_empty(size)
    out.copy_(outside if isinstance(outside, Tensor) else torch.full_like(maps[:1, :1, :1, :1], outside))
    out[:, :, rows[0] : rows[0] + height, cols[0] : cols[0] + width] = maps
    return out


def exponentials_(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Turn finite or -inf scores into unnormalised softmax weights in place.

    Returns:
        The sums of the weights, at least a tiny number, and the logarithms of what would normalise them; (..., 1).
    """
    top = scores.amax(-1, keepdim=True).clamp_min_(torch.finfo(scores.dtype).min)
    sums = scores.sub_(top).exp_().sum(-1, keepdim=True).clamp_min_(torch.finfo(scores.dtype).tiny)
    return sums, top.add_(sums.log())
