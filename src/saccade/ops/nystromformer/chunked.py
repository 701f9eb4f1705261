"""Nystrom attention without its n x L kernels: a chunk of pixels at a time, computed again in backward.

What stays for backward is q, k, v and tensors of the landmarks' size: the landmarks, what they gather, its log-sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from saccade.geometry import Size
from saccade.ops.dispatch import Score, once_differentiable
from saccade.ops.inputs import at_least_float32, no_autocast
from saccade.ops.nystromformer.parts import Segments, landmark_attention, pseudo_inverse
from saccade.ops.patch_chunks import PatchChunks, pixel_spans
from saccade.ops.patches import SHORTEST, patch_length

# Sums in place are torch.baddbmm(x, .., out=x): PyTorch's FLOP counter does not see x.baddbmm_(..).

# Ours: entries of a kernel, or of patch vectors, that a chunk holds.
CHUNK_ENTRIES = {"cpu": 2**20, "other": 2**24}


@dataclass(frozen=True)
class Approximation:
    """Options of one call, with the scale filled in."""

    landmarks: int
    iterations: int
    score: Score
    scale: float
    patch_size: int

    @property
    def factor(self) -> float:
        """Of the products in the logits: -s |q - k|^2 is 2 s q.k - s |k|^2 up to what a softmax does not see."""
        return 2 * self.scale if self.score == "l2" else self.scale


def chunked(q: Tensor, k: Tensor, v: Tensor, options: Approximation, key_mask: Tensor | None = None) -> Tensor:
    """Nystrom attention of (B, G, channels, Y, X) maps: (B, G, E, Yq, Xq)."""
    allowed = None if key_mask is None else key_mask.flatten(1).repeat_interleave(q.shape[1], 0)  # (B*G, K)
    flat = [x.flatten(0, 1).contiguous() for x in (q, k, v)]  # (B*G, channels, Y, X)
    out = cast(Tensor, cast(Any, _ChunkedNystrom).apply(*flat, allowed, options))
    return torch.unflatten(out, 0, q.shape[:2])


class _ChunkedNystrom(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, options: Approximation) -> Tensor:
        out = q.new_empty(q.shape[0], v.shape[1], *q.shape[2:])
        kept = []
        with no_autocast(q.device):
            for part in batch_parts(q, k, options):
                call = Nystrom(q[part], k[part], None if allowed is None else allowed[part], options)
                gathered, log_sums = call.gather(v[part])
                call.scatter(call.mix(gathered), out[part])
                kept.append((*call.means, gathered, log_sums))
        ctx.save_for_backward(q, k, v, allowed, *(torch.cat(x) for x in zip(*kept, strict=True)))
        ctx.options = options
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, allowed, *kept = ctx.saved_tensors
        with torch.no_grad(), no_autocast(q.device):
            upstream = grad.contiguous()
            grads = [torch.zeros(x.shape, dtype=kept[0].dtype, device=x.device) for x in (q, k, v)]
            for part in batch_parts(q, k, ctx.options):
                some = None if allowed is None else allowed[part]
                q_means, k_means, gathered, log_sums = (x[part] for x in kept)
                call = Nystrom(q[part], k[part], some, ctx.options, (q_means, k_means))
                call.gradients(v[part], gathered, log_sums, upstream[part], *(x[part] for x in grads))
            grads = [x.to(q.dtype) for x in grads]
        return *once_differentiable("nystromformer's chunked kernel", grads, (grad, q, k, v)), None, None


def chunk_pixels(device: torch.device, landmarks: int, channels: int) -> int:
    """How many pixels' kernel entries a chunk holds."""
    return max(1, CHUNK_ENTRIES["cpu" if device.type == "cpu" else "other"] // max(landmarks, channels))


def batch_parts(q: Tensor, k: Tensor, options: Approximation) -> list[slice]:
    """Entries of the batch that are computed together: more than one only where whole maps fit into a chunk."""
    pixels = max(q.shape[2] * q.shape[3], k.shape[2] * k.shape[3])
    most = chunk_pixels(q.device, min(options.landmarks, pixels), q.shape[1] * options.patch_size**2)
    together = max(1, most // pixels)
    return [slice(start, min(start + together, q.shape[0])) for start in range(0, q.shape[0], together)]


class Side:
    """A query or key map (N, C, Y, X) as patch vectors, a span of its scan line at a time."""

    def __init__(self, maps: Tensor, allowed: Tensor | None, options: Approximation, *, unit: bool) -> None:
        self.maps, self.allowed = maps, allowed
        self.chunks = PatchChunks(maps, options.patch_size)
        self.width = maps.shape[1] * options.patch_size**2
        self.lengths = patch_length(maps.unsqueeze(1), options.patch_size).flatten(2) if unit else None  # (N, 1, n)
        self.centre: Tensor | None = None  # (N, d, 1), what vectors are counted from
        self.like = at_least_float32(maps[:1, :1, :1, :1])
        size = Size(*maps.shape[2:])
        self.segments = Segments(size.area, options.landmarks, allowed, self.like)
        self.spans = pixel_spans(size, options.patch_size, chunk_pixels(maps.device, self.segments.count, self.width))

    def vectors(self, span: slice) -> Tensor:
        """(N, d, R): patches, of unit length under "cosine", counted from the centre under "l2"."""
        return self._placed(self.chunks.vectors(span), None if self.lengths is None else self.lengths[:, :, span])

    def points(self, queries: Tensor) -> Tensor:
        """The vectors of a few pixels, (Q, 2) long rows and cols: (N, d, Q)."""
        at = queries[:, 0] * self.maps.shape[3] + queries[:, 1]
        return self._placed(self.chunks.points(queries), None if self.lengths is None else self.lengths[:, :, at])

    def _placed(self, vectors: Tensor, lengths: Tensor | None) -> Tensor:
        if lengths is not None:
            return vectors / lengths
        return vectors if self.centre is None else vectors - self.centre

    def add_gradient(self, total: Tensor, span: slice, grads: Tensor, vectors: Tensor | None = None) -> None:
        """Add to the map's gradient that of the span's vectors, which are computed again where needed and not given."""
        if self.lengths is not None:
            vectors = self.vectors(span) if vectors is None else vectors
            length = self.lengths[:, :, span]
            turned = (vectors * grads).sum(1, keepdim=True) * (length > SHORTEST)
            grads = (grads - vectors * turned) / length
        self.chunks.add_gradient(total, span, grads)

    def means(self) -> Tensor:
        """Mean vector of every segment: (N, d, L)."""
        means = self.like.new_zeros(self.maps.shape[0], self.width, self.segments.count)
        for span in self.spans:
            shares = self.segments.averages(span).expand(means.shape[0], -1, -1)
            means[:, :, self.segments.reached(span)] += torch.bmm(self.vectors(span), shares)
        return means

    def spread(self, span: slice, grads: Tensor) -> Tensor:
        """Gradient of the span's vectors from that of the means, (N, d, L) -> (N, d, R)."""
        shares = self.segments.averages(span).expand(grads.shape[0], -1, -1)
        return torch.bmm(grads[:, :, self.segments.reached(span)], shares.transpose(1, 2))


class Nystrom:
    """The attention of some entries of a batch, from (N, channels, Y, X) maps and landmarks' means, if known."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        allowed: Tensor | None,
        options: Approximation,
        means: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.options = options
        self.queries = Side(q, None, options, unit=options.score == "cosine")
        self.keys = Side(k, allowed, options, unit=options.score in ("cosine", "unit_key"))
        self.means = means or (self.queries.means(), self.keys.means())  # (N, d, L_q), (N, d, L_k)
        self.q_marks, self.k_marks = self.means
        if options.score == "l2":  # counting from a mean changes no distance, and keeps |k|^2 and its rounding small
            centre = self.k_marks.mean(2, keepdim=True)
            self.queries.centre = self.keys.centre = centre
            self.q_marks, self.k_marks = self.q_marks - centre, self.k_marks - centre

    def gather(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """What the query landmarks gather from all keys, (N, L_q, E), and the logarithms of their sums, (N, L_q, 1)."""
        marks = self.q_marks
        top = marks.new_full((marks.shape[0], marks.shape[2], 1), torch.finfo(marks.dtype).min / 4)
        gathered, sums = marks.new_zeros(*top.shape[:2], v.shape[1]), torch.zeros_like(top)
        for span in self.keys.spans:
            logits = self.key_logits(self.keys.vectors(span), span)
            new_top = torch.maximum(top, logits.amax(2, keepdim=True))
            shrink = (top - new_top).exp_()
            logits.sub_(new_top).exp_()
            values = at_least_float32(v.flatten(2)[:, :, span]).transpose(1, 2)
            torch.baddbmm(gathered.mul_(shrink), logits, values, out=gathered)
            sums.mul_(shrink).add_(logits.sum(2, keepdim=True))
            top = new_top
        return gathered.div_(sums), top + sums.log()

    def key_logits(self, vectors: Tensor, span: slice) -> Tensor:
        """Logits of the query landmarks with a span's keys, -inf where masked: (N, L_q, R)."""
        bias = vectors.new_zeros(1)
        if self.options.score == "l2":
            bias = vectors.square().sum(1, keepdim=True).mul_(-self.options.scale)
        logits = torch.baddbmm(bias, self.q_marks.transpose(1, 2), vectors, alpha=self.options.factor)
        if self.keys.allowed is not None:
            logits.masked_fill_(~self.keys.allowed[:, span].unsqueeze(1), float("-inf"))
        return logits

    def mark_bias(self, k_marks: Tensor) -> Tensor:
        """What is added to the logits of key landmarks: (N, 1, L_k)."""
        bias = torch.zeros_like(k_marks[:, :1])
        if self.options.score == "l2":
            bias = k_marks.square().sum(1, keepdim=True) * -self.options.scale
        empty = self.keys.segments.empty()
        return bias if empty is None else bias.masked_fill(empty.unsqueeze(1), float("-inf"))

    def mix(self, gathered: Tensor, q_marks: Tensor | None = None, k_marks: Tensor | None = None) -> Tensor:
        """What each key landmark stands for: the inverse of the landmarks' attention, times `gathered`: (N, L_k, E)."""
        q_marks, k_marks = self.q_marks if q_marks is None else q_marks, self.k_marks if k_marks is None else k_marks
        matrix = landmark_attention(q_marks, k_marks, self.options.factor, self.mark_bias(k_marks))
        return pseudo_inverse(matrix, self.options.iterations) @ gathered

    def query_weights(self, vectors: Tensor) -> Tensor:
        """Softmax of query vectors (N, d, R) over the key landmarks: (N, L_k, R)."""
        bias = self.mark_bias(self.k_marks).transpose(1, 2)  # (N, L_k, 1)
        weights = torch.baddbmm(bias, self.k_marks.transpose(1, 2), vectors, alpha=self.options.factor)
        weights.sub_(weights.amax(1, keepdim=True)).exp_()
        return weights.div_(weights.sum(1, keepdim=True))

    def scatter(self, mixed: Tensor, out: Tensor) -> None:
        """Bring the key landmarks' values (N, L_k, E) to the queries."""
        for span in self.queries.spans:
            weights = self.query_weights(self.queries.vectors(span))
            out.flatten(2)[:, :, span] = torch.bmm(mixed.transpose(1, 2), weights)

    def gradients(
        self, v: Tensor, gathered: Tensor, log_sums: Tensor, grad: Tensor, dq: Tensor, dk: Tensor, dv: Tensor
    ) -> None:
        """Write the gradients of the maps to `dq`, `dk` and `dv` (zeros)."""
        with torch.enable_grad():
            inner = [x.detach().requires_grad_() for x in (gathered, self.q_marks, self.k_marks)]
            mixed = self.mix(*inner)
        dmixed, dk_marks = self._scatter_gradients(mixed.detach(), grad, dq)
        dgathered, dq_marks, through_matrix = torch.autograd.grad(mixed, inner, dmixed)
        del mixed, inner
        dk_marks += through_matrix
        self._gather_gradients(v, (gathered, log_sums, dgathered), dq_marks, dk_marks, dk, dv)
        for span in self.queries.spans:
            self.queries.add_gradient(dq, span, self.queries.spread(span, dq_marks))

    def _scatter_gradients(self, mixed: Tensor, grad: Tensor, dq: Tensor) -> tuple[Tensor, Tensor]:
        """Add to `dq` what reaches the queries not as landmarks; gradients of `mixed` and of the key landmarks."""
        dmixed, dk_marks = torch.zeros_like(mixed), torch.zeros_like(self.k_marks)
        row_sums = torch.zeros_like(self.k_marks[:, :1])  # (N, 1, L_k)
        for span in self.queries.spans:
            vectors = self.queries.vectors(span)
            weights = self.query_weights(vectors)  # (N, L_k, R)
            upstream = at_least_float32(grad.flatten(2)[:, :, span])  # (N, E, R)
            torch.baddbmm(dmixed, weights, upstream.transpose(1, 2), out=dmixed)
            slope = torch.bmm(mixed, upstream)
            slope.sub_((slope * weights).sum(1, keepdim=True)).mul_(weights)
            torch.baddbmm(dk_marks, vectors, slope.transpose(1, 2), alpha=self.options.factor, out=dk_marks)
            row_sums += slope.sum(2).unsqueeze(1)
            self.queries.add_gradient(dq, span, torch.bmm(self.k_marks, slope).mul_(self.options.factor), vectors)
        if self.options.score == "l2":
            dk_marks.addcmul_(self.k_marks, row_sums, value=-2 * self.options.scale)
        return dmixed, dk_marks

    def _gather_gradients(
        self,
        v: Tensor,
        gathering: tuple[Tensor, Tensor, Tensor],
        dq_marks: Tensor,
        dk_marks: Tensor,
        dk: Tensor,
        dv: Tensor,
    ) -> None:
        """Write the gradients of the keys, as landmarks too, and of the values; add to that of the query landmarks."""
        gathered, log_sums, dgathered = gathering
        back = (dgathered * gathered).sum(2, keepdim=True)  # (N, L_q, 1)
        for span in self.keys.spans:
            vectors = self.keys.vectors(span)
            weights = self.key_logits(vectors, span).sub_(log_sums).exp_()  # (N, L_q, R)
            dv.flatten(2)[:, :, span] = torch.bmm(dgathered.transpose(1, 2), weights)
            values = at_least_float32(v.flatten(2)[:, :, span])
            slope = torch.baddbmm(back, dgathered, values, beta=-1).mul_(weights)
            torch.baddbmm(dq_marks, vectors, slope.transpose(1, 2), alpha=self.options.factor, out=dq_marks)
            dvectors = torch.bmm(self.q_marks, slope).mul_(self.options.factor)
            if self.options.score == "l2":
                dvectors.addcmul_(vectors, slope.sum(1, keepdim=True), value=-2 * self.options.scale)
            self.keys.add_gradient(dk, span, dvectors.add_(self.keys.spread(span, dk_marks)), vectors)


def pooling_products(size: Size, landmarks: int, width: int, patch_size: int) -> int:
    """Shares that `Side.means` multiplies a map's vectors of `width` channels with, on the CPU; for costs."""
    segments = Segments(size.area, landmarks, None, torch.empty(0))
    spans = pixel_spans(size, patch_size, chunk_pixels(torch.device("cpu"), segments.count, width))
    reached = [segments.reached(span) for span in spans]
    return sum((span.stop - span.start) * (some.stop - some.start) for span, some in zip(spans, reached, strict=True))
