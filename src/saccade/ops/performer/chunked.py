"""Performer's attention without its n x M features: one pass over the keys, one over the queries, a chunk at a time.

The keys' features are summed feature by feature under a running maximum of its own, as in online softmax, and that
maximum moves to the queries' exponents. So no sum under- or overflows, whatever the length of the vectors. What stays
for backward is q, k, v, the directions, and sums of M x (E + 1); features are computed again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from saccade.geometry import Size
from saccade.ops.dispatch import Score, once_differentiable
from saccade.ops.inputs import at_least_float32, no_autocast
from saccade.ops.patch_chunks import PatchChunks, pixel_spans
from saccade.ops.patches import box_sum

# Sums in place are torch.baddbmm(x, .., out=x): PyTorch's FLOP counter does not see x.baddbmm_(..).

# Ours: features, or entries of patch vectors, that a chunk holds.
CHUNK_ENTRIES = {"cpu": 2**20, "other": 2**24}


@dataclass(frozen=True)
class Estimate:
    """Which kernel the features estimate, and how: exponents are factor * w.x - decay * |x|^2.

    "dot" is exp(scale q.k) by x' = sqrt(scale) x and w.x' - |x'|^2 / 2 (Lemma 1); "l2" is exp(-scale |q - k|^2), the
    Gaussian kernel, by x' = sqrt(2 scale) x and w.x' - |x'|^2.
    """

    score: Score
    scale: float
    patch_size: int
    eps: float = 0.0
    centre: bool = False

    @property
    def factor(self) -> float:
        return math.sqrt(2 * self.scale if self.score == "l2" else self.scale)

    @property
    def decay(self) -> float:
        return 2 * self.scale if self.score == "l2" else self.scale / 2


def chunked(
    q: Tensor, k: Tensor, v: Tensor, projection: Tensor, estimate: Estimate, key_mask: Tensor | None = None
) -> Tensor:
    """Performer's attention of (B, G, channels, Y, X) maps with directions (M, D * p * p): (B, G, E, Yq, Xq)."""
    allowed = None if key_mask is None else key_mask.flatten(1).repeat_interleave(q.shape[1], 0)  # (B*G, K)
    flat = [x.flatten(0, 1).contiguous() for x in (q, k, v)]  # (B*G, channels, Y, X)
    out = cast(Tensor, cast(Any, _ChunkedPerformer).apply(*flat, projection, allowed, estimate))
    return torch.unflatten(out, 0, q.shape[:2])


class _ChunkedPerformer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, projection: Tensor, allowed: Tensor | None, estimate: Estimate
    ) -> Tensor:
        out = q.new_empty(q.shape[0], v.shape[1], *q.shape[2:])
        sums = []
        with no_autocast(q.device):
            for part in _parts(q, k, projection, estimate):
                some = None if allowed is None else allowed[part]
                queries, keys = feature_maps(q[part], k[part], projection, estimate, some)
                sums.append(key_sums(keys, v[part], some))
                _answer(queries, sums[-1], out[part])
        ctx.save_for_backward(q, k, v, projection, allowed, *(torch.cat(x) for x in zip(*sums, strict=True)))
        ctx.estimate = estimate
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, projection, allowed, *sums = ctx.saved_tensors
        estimate: Estimate = ctx.estimate
        with torch.no_grad(), no_autocast(q.device):
            upstream = grad.contiguous()
            grads = [torch.zeros(x.shape, dtype=projection.dtype, device=x.device) for x in (q, k, v)]
            for part in _parts(q, k, projection, estimate):
                some = None if allowed is None else allowed[part]
                of_part = KeySums(*(x[part] for x in sums))
                dq, dk, dv = (x[part] for x in grads)
                queries, keys = feature_maps(q[part], k[part], projection, estimate, some)
                of_sums = _query_gradients(queries, of_part, upstream[part], dq)
                _key_gradients(keys, v[part], some, of_part.shift, of_sums, dk, dv)
            grads = [x.to(q.dtype) for x in grads]
        return *once_differentiable("performer's chunked kernel", grads, (grad, q, k, v)), None, None, None


def chunk_pixels(device: torch.device, features: int, channels: int) -> int:
    """How many pixels' features a chunk holds."""
    return max(1, CHUNK_ENTRIES["cpu" if device.type == "cpu" else "other"] // max(features, channels))


def _parts(q: Tensor, k: Tensor, projection: Tensor, estimate: Estimate) -> list[slice]:
    """Entries of the batch that are computed together: more than one only where whole maps fit into a chunk."""
    most = chunk_pixels(q.device, *projection.shape)
    # about the means, each entry has directions of its own
    taken = max(q.shape[2] * q.shape[3], k.shape[2] * k.shape[3], min(projection.shape) if estimate.centre else 1)
    together = max(1, most // taken)
    return [slice(start, min(start + together, q.shape[0])) for start in range(0, q.shape[0], together)]


class FeatureMap:
    """Exponents of the features of a map (N, C, Y, X), for a span of pixels at a time."""

    def __init__(self, maps: Tensor, projection: Tensor, estimate: Estimate) -> None:
        self.maps = maps
        self.size = Size(*maps.shape[2:])
        self.estimate = estimate
        self.projection = projection.expand(maps.shape[0], -1, -1)  # (N, M, d)
        self.offset: Tensor | None = None  # (N, M, 1), taken off the exponents
        self.chunks = PatchChunks(maps, estimate.patch_size)

    def spans(self) -> Iterator[slice]:
        most = chunk_pixels(self.maps.device, *self.projection.shape[1:])
        yield from pixel_spans(self.size, self.estimate.patch_size, most)

    def decay(self) -> Tensor:
        """decay * |x|^2 of every pixel's patch, by box sums: (N, 1, pixels)."""
        square = at_least_float32(self.maps).square().sum(1, keepdim=True)
        return (box_sum(square, self.estimate.patch_size) * self.estimate.decay).flatten(2)

    def exponents(self, vectors: Tensor, bias: Tensor) -> Tensor:
        """factor * w.x + bias: vectors (N, d, R), bias broadcast to (N, M, R)."""
        bias = bias if self.offset is None else bias - self.offset
        return torch.baddbmm(bias, self.projection, vectors, alpha=self.estimate.factor)

    def add_gradient(self, total: Tensor, span: slice, slope: Tensor) -> None:
        """Add the gradient through w.x, but for the factor: slope (N, M, R) of the exponents."""
        self.chunks.add_gradient(total, span, torch.bmm(self.projection.transpose(1, 2), slope))

    def finish_gradient(self, total: Tensor, column: Tensor | None) -> None:
        """Put in the factor and the gradient through |x|^2: `column` (N, 1, pixels) sums the exponents' gradients."""
        total.mul_(self.estimate.factor)
        if column is not None:
            around = box_sum(torch.unflatten(column, 2, self.size), self.estimate.patch_size)
            total.addcmul_(self.maps.to(total.dtype), around, value=-2 * self.estimate.decay)

    def mean(self, allowed: Tensor | None) -> Tensor:
        """Mean vector of the allowed pixels: (N, d, 1)."""
        some = self.projection.new_ones(self.maps.shape[0], self.size.area) if allowed is None else allowed
        some = some.to(self.projection.dtype).unsqueeze(2)
        total = self.projection.new_zeros(self.maps.shape[0], self.projection.shape[2], 1)
        for span in self.spans():
            total += torch.bmm(self.chunks.vectors(span), some[:, span])
        return total / some.sum(1, keepdim=True)


def feature_maps(
    q: Tensor, k: Tensor, projection: Tensor, estimate: Estimate, allowed: Tensor | None
) -> tuple[FeatureMap, FeatureMap]:
    """Features of the query and the key map, both about their means where asked.

    q.k = (q - a).(k - b) + a.(k - b) + q.b: the last term is the same for every key, the middle one is known for each
    and is kept exact, so that features estimate only the first. It is likewise with distances. With exponents
    multiplied out, that moves the keys' directions by one vector and takes a constant off each feature.
    """
    queries, keys = FeatureMap(q, projection, estimate), FeatureMap(k, projection, estimate)
    if estimate.centre:
        of_q, of_k = queries.mean(None), keys.mean(allowed)  # (N, d, 1)
        tilt = estimate.factor * (of_q - of_k if estimate.score == "l2" else of_q)
        tilt += 2 * estimate.decay / estimate.factor * of_k
        queries.offset = estimate.factor * torch.bmm(queries.projection, of_q + of_k)
        keys.projection = keys.projection + tilt.transpose(1, 2)
    return queries, keys


@dataclass
class KeySums:
    """What the queries need to know of the keys.

    values (N, M, E) and weights (N, M, 1) are sums over the keys of exp(exponent - shift), with shift (N, M, 1) the
    largest exponent of each feature. With eps > 0 they are those of the released layers' features instead,
    exp(exponent - shift) + eps, and shift is the largest w.x of all.
    """

    values: Tensor
    weights: Tensor
    shift: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.values, self.weights, self.shift))


def key_sums(keys: FeatureMap, v: Tensor, allowed: Tensor | None) -> KeySums:
    """Sum the features of the allowed keys (N, pixels), with their values (N, E, Y, X)."""
    like, eps = keys.projection, keys.estimate.eps
    features = like.shape[:2]
    values, weights = like.new_zeros(*features, v.shape[1]), like.new_zeros(*features, 1)
    top = like.new_full((*features, 1), torch.finfo(like.dtype).min / 4)  # finite: all keys so far may be masked
    largest = top[:, :1].clone()
    decay = keys.decay()
    bias = _masked(decay.neg(), allowed)
    for span in keys.spans():
        exponents = keys.exponents(keys.chunks.vectors(span), bias[:, :, span])
        new_top = torch.maximum(top, exponents.amax(2, keepdim=True))
        if eps:
            largest = torch.maximum(largest, (exponents + decay[:, :, span]).amax((1, 2), keepdim=True))
        shrink = (top - new_top).exp_()
        exponents.sub_(new_top).exp_()
        of_span = at_least_float32(v.flatten(2)[:, :, span]).transpose(1, 2)
        torch.baddbmm(values.mul_(shrink), exponents, of_span, out=values)
        weights.mul_(shrink).add_(exponents.sum(2, keepdim=True))
        top = new_top
    if not eps:
        return KeySums(values, weights, top)
    stretch = (top - largest).exp_()
    kept = at_least_float32(v.flatten(2)).transpose(1, 2)  # (N, pixels, E)
    count = like.new_tensor(float(keys.size.area))
    if allowed is not None:
        kept, count = kept * allowed.unsqueeze(2), allowed.sum(1)[:, None, None].to(like.dtype)
    return KeySums(values * stretch + eps * kept.sum(1, keepdim=True), weights * stretch + eps * count, largest)


def query_features(queries: FeatureMap, vectors: Tensor, decay: Tensor | None, shift: Tensor) -> Tensor:
    """exp of a chunk's exponents (N, M, R), each query's up to a factor that its normalisation takes out again.

    Without eps that factor also holds |q|^2, so `decay` is None; with it, it is the chunk of `FeatureMap.decay`, and
    eps remains to be added.
    """
    exponents = queries.exponents(vectors, shift if decay is None else torch.zeros_like(shift))
    exponents.sub_(exponents.amax(1, keepdim=True))
    if decay is not None:
        exponents.sub_(decay)
    return exponents.exp_()


def _masked(bias: Tensor, allowed: Tensor | None) -> Tensor:
    return bias if allowed is None else bias.masked_fill(~allowed.unsqueeze(1), float("-inf"))


def _answer(queries: FeatureMap, sums: KeySums, out: Tensor) -> None:
    eps = queries.estimate.eps
    decay = queries.decay() if eps else None
    values, weights = sums.values.transpose(1, 2), sums.weights.transpose(1, 2)  # (N, E, M), (N, 1, M)
    for span in queries.spans():
        of_span = None if decay is None else decay[:, :, span]
        phi = query_features(queries, queries.chunks.vectors(span), of_span, sums.shift)
        number, total = torch.bmm(values, phi), torch.bmm(weights, phi)  # (N, E, R), (N, 1, R)
        if eps:
            number.add_(eps * values.sum(2, keepdim=True))
            total.add_(eps * weights.sum(2, keepdim=True))
        out.flatten(2)[:, :, span] = number.div_(total)


def _query_gradients(queries: FeatureMap, sums: KeySums, grad: Tensor, dq: Tensor) -> tuple[Tensor, Tensor]:
    """Write the gradient of the query map to `dq` (zeros); return those of the keys' sums of values and weights."""
    eps = queries.estimate.eps
    decay = queries.decay() if eps else None
    column = None if decay is None else torch.empty_like(decay)
    dvalues, dweights = torch.zeros_like(sums.values), torch.zeros_like(sums.weights)
    for span in queries.spans():
        of_span = None if decay is None else decay[:, :, span]
        phi = query_features(queries, queries.chunks.vectors(span), of_span, sums.shift)
        total = torch.bmm(sums.weights.transpose(1, 2), phi)  # (N, 1, R)
        if eps:
            total.add_(eps * sums.weights.sum(1, keepdim=True))
        upstream = at_least_float32(grad.flatten(2)[:, :, span]) / total  # (N, E, R)
        slope = torch.bmm(sums.values, upstream)  # (N, M, R)
        back = (phi * slope).sum(1, keepdim=True)
        if eps:
            back.add_(slope.sum(1, keepdim=True), alpha=eps)
        back.div_(total)  # (N, 1, R)
        torch.baddbmm(dvalues, phi, upstream.transpose(1, 2), out=dvalues)
        dweights.sub_(torch.bmm(phi, back.transpose(1, 2)))
        if eps:
            dvalues.add_(upstream.sum(2).unsqueeze(1), alpha=eps)
            dweights.sub_(back.sum(2, keepdim=True), alpha=eps)
        torch.baddbmm(slope, sums.weights, back, alpha=-1, out=slope).mul_(phi)
        if column is not None:
            column[:, :, span] = slope.sum(1, keepdim=True)
        queries.add_gradient(dq, span, slope)
    queries.finish_gradient(dq, column)
    return dvalues, dweights


def _key_gradients(
    keys: FeatureMap,
    v: Tensor,
    allowed: Tensor | None,
    shift: Tensor,
    of_sums: tuple[Tensor, Tensor],
    dk: Tensor,
    dv: Tensor,
) -> None:
    """Write the gradients of the key map and of the values to `dk` and `dv` (zeros), from those of the keys' sums."""
    dvalues, dweights = of_sums
    bias = _masked(keys.decay().neg_(), allowed)
    column = torch.empty_like(bias)
    for span in keys.spans():
        phi = keys.exponents(keys.chunks.vectors(span), bias[:, :, span]).sub_(shift).exp_()
        dv.flatten(2)[:, :, span] = torch.bmm(dvalues.transpose(1, 2), phi)
        values = at_least_float32(v.flatten(2)[:, :, span])
        slope = torch.baddbmm(dweights, dvalues, values).mul_(phi)
        column[:, :, span] = slope.sum(1, keepdim=True)
        keys.add_gradient(dk, span, slope)
    if keys.estimate.eps:
        through_eps = keys.estimate.eps * dvalues.sum(1).unsqueeze(2)  # (N, E, 1)
        dv.flatten(2).add_(through_eps if allowed is None else through_eps * allowed.unsqueeze(1))
    keys.finish_gradient(dk, column)
