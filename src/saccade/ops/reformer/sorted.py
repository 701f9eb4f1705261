"""Reformer attention over the sorted sequence: a span of chunks at a time, recomputed in backward.

Rounds are combined by the logsumexp of their logits, so the whole is one softmax in which a key counts as often as it
is met. Backward needs each query's total logsumexp only; what stays for it beside q, k and v are the output, that
number, and the order of the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from saccade.geometry import Size
from saccade.ops.dispatch import once_differentiable
from saccade.ops.inputs import at_least_float32, no_autocast
from saccade.ops.patches import SHORTEST, box_sum, patch_length
from saccade.ops.reformer.buckets import Chunking, with_chunk_before
from saccade.ops.reformer.tokens import PatchTable, Tokens

# Ours: numbers of a span's largest tensors.
SPAN_ENTRIES = {"cpu": 2**20, "other": 2**25}


@dataclass(frozen=True)
class Reach:
    """Who meets whom: the tokens, their chunks, and whether queries attend to query tokens too."""

    tokens: Tokens
    chunking: Chunking
    keys_only: bool
    scale: float
    patch_size: int

    @property
    def meets_itself(self) -> bool:
        """Whether a query's own token is among those that it may attend to."""
        return self.tokens.shared or not self.keys_only


def attend_sorted(q: Tensor, k: Tensor, v: Tensor, order: Tensor, reach: Reach, key_mask: Tensor | None) -> Tensor:
    """Attention of every query to the tokens that it meets in `order` (rounds, maps, padded).

    Args:
        key_mask: (maps, keys) bool.
    """
    apply = cast(Any, _SortedAttention).apply
    return cast(Tensor, apply(q, q if reach.tokens.shared else k, v, order, key_mask, reach))


def column_terms(q: Tensor, k: Tensor, reach: Reach, key_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """For every token, by what its products are multiplied, scale / length, and what is added, 0 or -inf if masked."""
    tokens = reach.tokens
    lengths = patch_length(k, reach.patch_size).flatten(0, 2).flatten(1)  # (maps, keys)
    closed = torch.zeros_like(lengths)
    if key_mask is not None:
        closed = closed.masked_fill(~key_mask, float("-inf"))
    factor, bias = tokens.of_keys(reach.scale / lengths), tokens.of_keys(closed, float("-inf"))
    if not tokens.shared and not reach.keys_only:  # query tokens may be attended to: their values are zero
        lengths = patch_length(q, reach.patch_size).flatten(0, 2).flatten(1)
        factor = factor + tokens.of_queries(reach.scale / lengths)
        bias = torch.maximum(bias, tokens.of_queries(torch.zeros_like(lengths), float("-inf")))
    return factor, bias


class _SortedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, order: Tensor, key_mask: Tensor | None, reach: Reach
    ) -> Tensor:
        with no_autocast(q.device):
            rows, total = _Chunks(q, k, v, order, reach, key_mask).forward()
        out = rows.transpose(1, 2).reshape(*v.shape[:3], *q.shape[3:]).to(v.dtype)
        ctx.save_for_backward(q, k, v, order, key_mask, out, total)
        ctx.reach = reach
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, order, key_mask, out, total = ctx.saved_tensors
        with torch.no_grad(), no_autocast(q.device):
            chunks = _Chunks(q, k, v, order, ctx.reach, key_mask)
            grads = chunks.backward(_rows(grad), _rows(out), total)
        marked = once_differentiable("reformer's sorted kernel", grads, (grad, q, k, v))
        return *marked, None, None, None


class _Chunks:
    """Spans of chunks of the sorted sequence, with what their tokens are and hold."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, order: Tensor, reach: Reach, key_mask: Tensor | None) -> None:
        self.q, self.k, self.v = q, k, v
        self.reach, self.tokens, self.chunking = reach, reach.tokens, reach.chunking
        tokens = self.tokens
        self.table = PatchTable(q, k, tokens, reach.patch_size)
        self.values = tokens.of_keys(_rows(v))  # (all tokens, E)
        self.factor, self.bias = column_terms(q, k, reach, key_mask)
        offsets = (tokens.count + 1) * torch.arange(tokens.maps, device=q.device)
        self.order = with_chunk_before(order.long() + offsets[:, None], self.chunking)

    def spans(self) -> Iterator[Tensor]:
        """Tokens (maps, (chunks + back) * length) of a span of chunks and the chunk before, round by round."""
        size, back, count = self.chunking.length, self.chunking.back, self.chunking.count
        each = size * max(self.table.width, (1 + back) * size)
        room = max(1, SPAN_ENTRIES["cpu" if self.q.device.type == "cpu" else "other"] // each)  # chunks at a time
        some = max(1, min(room // count, self.tokens.maps))
        for round_order in self.order:
            for maps in round_order.split(some):
                for start in range(0, count, room):
                    yield maps[:, start * size : (min(start + room, count) + back) * size]

    def alive(self) -> Tensor:
        """Whether each key may be attended: (maps, keys)."""
        return self.tokens.keys(self.bias) == 0

    def own(self, rows: Tensor) -> Tensor:
        """Of a span's rows (maps, tokens, ...), those of its own chunks: (maps, chunks, length, ...)."""
        size = self.chunking.length
        return torch.unflatten(rows[:, self.chunking.back * size :], 1, (-1, size))

    def window(self, rows: Tensor) -> Tensor:
        """Of a span's rows (maps, tokens, C), what each chunk may attend to: (maps, chunks, C, window), a view."""
        size = self.chunking.length
        return rows.unfold(1, (1 + self.chunking.back) * size, size)

    def overlap_add(self, windows: Tensor) -> Tensor:
        """Undo `window`, adding up: (maps, chunks, window, C) -> (maps, tokens, C)."""
        size, back = self.chunking.length, self.chunking.back
        maps, chunks, _, channels = windows.shape
        rows = windows.new_zeros(maps, (chunks + back) * size, channels)
        self.own(rows).add_(windows[:, :, back * size :])
        if back:
            torch.unflatten(rows[:, : chunks * size], 1, (-1, size)).add_(windows[:, :, :size])
        return rows

    def logits(self, span: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (maps, chunks, length, window), the products they come from, and the factor of each column."""
        products = self.own(vectors) @ self.window(vectors)
        factor = self.window(self.factor[span].unsqueeze(2))  # (maps, chunks, 1, window)
        logits = products * factor
        logits += self.window(self.bias[span].unsqueeze(2))
        if self.reach.meets_itself:
            logits.masked_fill_(self.own(span).unsqueeze(3) == self.window(span.unsqueeze(2)), float("-inf"))
        return logits, products, factor

    def forward(self) -> tuple[Tensor, Tensor]:
        """Output (maps, queries, E) and logsumexp over all rounds (maps, queries), -inf where no token was met."""
        total = self.values.new_full((self.values.shape[0],), float("-inf"))
        out = torch.zeros_like(self.values)
        for span in self.spans():
            logits, _, _ = self.logits(span, self.table.vectors(span))
            highest = logits.amax(3, keepdim=True)
            highest.masked_fill_(highest == float("-inf"), 0)
            weights = logits.sub_(highest).exp_()
            mass = weights.sum(3, keepdim=True)
            brought = weights @ self.window(self.values[span]).transpose(2, 3)  # (maps, chunks, length, E)
            brought /= mass.masked_fill(mass == 0, 1)
            self._combine(out, total, self.own(span).flatten(), brought.flatten(0, 2), (highest + mass.log()).flatten())
        rows, total = self.tokens.queries(out), self.tokens.queries(total)
        if self.tokens.shared:
            alone = (total == float("-inf")) & self.alive()
            rows = torch.where(alone.unsqueeze(2), _rows(self.v).to(rows.dtype), rows)
        return rows, total.contiguous()

    @staticmethod
    def _combine(out: Tensor, total: Tensor, tokens: Tensor, brought: Tensor, found: Tensor) -> None:
        """Add what a round brought to some tokens, weighted by the logsumexps so far and of the round."""
        before = total[tokens]
        both = torch.logaddexp(before, found)
        finite = both.masked_fill(both == float("-inf"), 0)
        kept, added = (before - finite).exp_(), (found - finite).exp_()
        out.index_copy_(0, tokens, torch.addcmul(brought * added[:, None], out[tokens], kept[:, None]))
        total.index_copy_(0, tokens, both)

    def backward(self, grad: Tensor, out: Tensor, total: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """(dq, dk, dv); dk is None where the queries are the keys."""
        alone = total == float("-inf")
        slack = self.tokens.of_queries((grad * out).sum(2))  # (all tokens,): what the softmax takes from every slope
        spread = self.tokens.of_queries(grad)
        ceiling = self.tokens.of_queries(total.masked_fill(alone, float("inf")), float("inf"))
        dv, dfactor = torch.zeros_like(self.values), torch.zeros_like(self.factor)
        for span in self.spans():
            vectors = self.table.vectors(span)
            logits, products, factor = self.logits(span, vectors)
            weights = logits.sub_(self.own(ceiling[span]).unsqueeze(3)).exp_()
            grads = self.own(spread[span])  # (maps, chunks, length, E)
            dv.index_add_(0, span.flatten(), self.overlap_add(weights.transpose(2, 3) @ grads).flatten(0, 1))
            slope = grads @ self.window(self.values[span])
            slope.sub_(self.own(slack[span]).unsqueeze(3)).mul_(weights)
            columns = (products.mul_(slope)).sum(2).unsqueeze(3)  # (maps, chunks, window, 1)
            dfactor.index_add_(0, span.flatten(), self.overlap_add(columns).flatten())
            slope.mul_(factor)
            dvectors = self.overlap_add(slope.transpose(2, 3) @ self.own(vectors))
            self.own(dvectors).add_(slope @ self.window(vectors).transpose(2, 3))
            self.table.add(span, dvectors)
        return self._to_maps(dv, dfactor, grad, alone)

    def _to_maps(
        self, dv: Tensor, dfactor: Tensor, grad: Tensor, alone: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        rows = self.tokens.keys(dv)
        if self.tokens.shared:
            rows = rows + grad * (alone & self.alive()).unsqueeze(2)
        q, k, v, grads = self.q, self.k, self.v, self.table.gradients()
        dq = grads[0].reshape(q.shape)
        if self.tokens.shared:
            dq = dq + self._through_length(q, self.tokens.keys(dfactor))
            dk = None
        else:
            dk = (grads[1].reshape(k.shape) + self._through_length(k, self.tokens.keys(dfactor))).to(k.dtype)
            if not self.reach.keys_only:
                dq = dq + self._through_length(q, self.tokens.queries(dfactor))
        return dq.to(q.dtype), dk, rows.transpose(1, 2).reshape(v.shape).to(v.dtype)

    def _through_length(self, maps: Tensor, dfactor: Tensor) -> Tensor:
        """The gradient that reaches a map through the lengths of its patches, by which the logits are divided."""
        lengths = patch_length(maps, self.reach.patch_size)  # (B, G, 1, Y, X)
        slope = dfactor.reshape(lengths.shape) * -self.reach.scale / lengths**3
        slope = slope.masked_fill_(lengths <= SHORTEST, 0)
        return at_least_float32(maps) * box_sum(slope, self.reach.patch_size)


def _rows(maps: Tensor) -> Tensor:
    """(B, G, C, Y, X) -> (B * G, Y * X, C) in at least float32."""
    return at_least_float32(maps).flatten(0, 1).flatten(2).transpose(1, 2)


def make_tokens(q: Tensor, k: Tensor, shared: bool) -> Tokens:
    """The tokens of two maps (B, G, C, Y, X)."""
    return Tokens(q.shape[0] * q.shape[1], Size(*q.shape[3:]), Size(*k.shape[3:]), shared)
