"""Dense attention over chunks of queries: no score matrix, weights recomputed in backward."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from saccade.ops.dispatch import Score, once_differentiable
from saccade.ops.inputs import at_least_float32, no_autocast, softmax_

# Ours: entries of the score chunk that is held at a time.
CHUNK_ENTRIES = {"cpu": 2**22, "other": 2**26}


def chunked_attention(
    q: Tensor, k: Tensor, v: Tensor, score: Score, scale: float, allowed: Tensor | None, order: Tensor | None
) -> Tensor:
    """Attention of vectors (B*G, D, Q) to (B*G, D, K) and (B*G, E, K): (B*G, E, Q).

    Args:
        q, k, v: the vectors.
        score: "dot" or "l2".
        scale: factor on the score.
        allowed: (B*G, K) bool, True = may be attended.
        order: (K,) long, ascending: the last query that may not attend key j is order[j] - 1; None is no such order.
    """
    return cast(Tensor, cast(Any, _ChunkedAttention).apply(q, k, v, score, scale, allowed, order))


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add the batched product to `total`; not by baddbmm_, which flop counters overlook."""
    torch.baddbmm(total, left, right, out=total)


class _ChunkedAttention(torch.autograd.Function):
    """Keeps its inputs only."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        score: Score,
        scale: float,
        allowed: Tensor | None,
        order: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, allowed, order)
        ctx.options = (score, scale)
        out = torch.empty(v.shape[0], v.shape[1], q.shape[2], dtype=v.dtype, device=v.device)
        with no_autocast(q.device):
            chunks = _QueryChunks(q, k, score, scale, allowed, order)
            values = at_least_float32(v).transpose(1, 2)  # (B*G, K, E)
            for span in chunks.spans():
                _, weights = chunks.weights(span)
                out[:, :, span] = torch.bmm(weights, values[:, : weights.shape[2]]).transpose(1, 2)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, allowed, order = ctx.saved_tensors
        score, scale = ctx.options
        with torch.no_grad(), no_autocast(q.device):
            chunks = _QueryChunks(q, k, score, scale, allowed, order)
            values = at_least_float32(v)
            dq, dk, dv = (torch.zeros_like(x, dtype=values.dtype) for x in (q, k, v))
            column = torch.zeros_like(values[:, :1])  # (B*G, 1, K): sum over queries of the gradient of the logits
            for span in chunks.spans():
                queries, weights = chunks.weights(span)  # (B*G, R, D), (B*G, R, K')
                seen = slice(weights.shape[2])
                grad_out = at_least_float32(grad[:, :, span])  # (B*G, E, R)
                add_product(dv[:, :, seen], grad_out, weights)
                slope = torch.bmm(grad_out.transpose(1, 2), values[:, :, seen])  # (B*G, R, K')
                slope.sub_((slope * weights).sum(2, keepdim=True)).mul_(weights)
                from_keys = torch.bmm(slope, chunks.keys[:, :, seen].transpose(1, 2))
                dq[:, :, span] = from_keys.mul_(chunks.factor).transpose(1, 2)
                add_product(dk[:, :, seen], queries.transpose(1, 2), slope)  # the queries carry the factor already
                column[:, :, seen] += slope.sum(1, keepdim=True)
            if score == "l2":
                dk.addcmul_(chunks.keys, column, value=-2 * scale)
            grads = [x.to(v.dtype) for x in (dq, dk, dv)]
        marked = once_differentiable("dense attention's chunked kernel", grads, (grad, q, k, v))
        return *marked, None, None, None, None


class _QueryChunks:
    """Attention weights of a span of queries at a time: (B*G, D, Q) and (B*G, D, K) vectors, never all pairs."""

    def __init__(
        self, q: Tensor, k: Tensor, score: Score, scale: float, allowed: Tensor | None, order: Tensor | None
    ) -> None:
        self.keys = at_least_float32(k)
        self.queries = q
        self.factor = scale
        self.order = order
        self.centre: Tensor | None = None
        self.bias: Tensor | None = None  # (B*G, 1, K), added to the logits
        self.alive: Tensor | None = None  # (B*G, 1, 1), False where no key is allowed
        if score == "l2":
            # with an order, not a word of later keys, not even in the rounding
            self.centre = self.keys.mean(2, keepdim=True) if order is None else self.keys[:, :, :1]
            self.keys = self.keys - self.centre
            self.factor = 2 * scale
            self.bias = -scale * self.keys.square().sum(1, keepdim=True)
        if allowed is not None:
            self.alive = allowed.any(1)[:, None, None]
            blocked = ~allowed.unsqueeze(1) & self.alive
            bias = torch.zeros_like(self.keys[:, :1]) if self.bias is None else self.bias
            self.bias = bias.masked_fill(blocked, float("-inf"))

    def spans(self) -> list[slice]:
        count = self.queries.shape[2]
        budget = CHUNK_ENTRIES["cpu" if self.queries.device.type == "cpu" else "other"]
        rows = max(1, min(count, budget // max(1, self.keys.shape[0] * self.keys.shape[2])))
        return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]

    def weights(self, span: slice) -> tuple[Tensor, Tensor]:
        """The span's queries times the factor (B*G, R, D), and their weights for all keys, or all they can see."""
        queries = at_least_float32(self.queries[:, :, span])
        if self.centre is not None:
            queries = queries - self.centre
        queries = (queries * self.factor).transpose(1, 2)
        if self.order is not None:
            return queries, self._ordered(span, queries, self.order)
        logits = torch.bmm(queries, self.keys)
        if self.bias is not None:
            logits += self.bias
        weights = softmax_(logits)
        return queries, weights if self.alive is None else weights.mul_(self.alive)

    def _ordered(self, span: slice, queries: Tensor, order: Tensor) -> Tensor:
        places = torch.arange(span.start, span.stop, device=order.device)
        seen = slice(int((order < span.stop).sum()) if order.device.type != "meta" else None)
        logits = torch.bmm(queries, self.keys[:, :, seen])
        if self.bias is not None:
            logits += self.bias[:, :, seen]
        logits.masked_fill_(order[seen] > places[:, None], float("-inf"))
        dead = logits.amax(2, keepdim=True) == float("-inf")
        return softmax_(logits.masked_fill_(dead, 0)).masked_fill_(dead, 0)
