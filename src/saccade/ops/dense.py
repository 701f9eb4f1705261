"""Dense (exact) attention between two maps: the library's oracle, and its `full` backend.

Scores: "dot" is scale * q.k, "l2" is -scale * |q - k|^2. `scale=None` is 1 / sqrt(D), as in GPA's released code for
both scores; 1.0 with "dot" is Eq. 1 of the GPA paper (arXiv 2107.03742). Rows whose keys are all masked give zeros.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.ops.dispatch import Kernel, Request, Score, check_score, choose, once_differentiable
from saccade.ops.inputs import (
    at_least_float32,
    default_scale,
    make_request,
    masked_softmax,
    no_autocast,
    read_shape,
    softmax_,
)

# Ours: where SDPA would hold the score matrix, it may do so up to this size (64x64 maps in float32, 8 of them).
SDPA_MATRIX_BYTES = 512 * 2**20
# The widest head that the flash kernels of PyTorch take.
FLASH_CHANNELS = 256
# Ours: entries of the score chunk that the chunked kernel holds at a time.
CHUNK_ENTRIES = {"cpu": 2**22, "other": 2**26}


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    score: Score = "dot",
    scale: float | None = None,
    key_mask: Tensor | None = None,
    kernel: str = "auto",
) -> Tensor:
    """Let every query attend to every key.

    Args:
        q: (B, G, D, Yq, Xq).
        k: (B, G, D, Yk, Xk).
        v: (B, G, E, Yk, Xk).
        score: "dot" or "l2".
        scale: factor on the score; None is 1 / sqrt(D).
        key_mask: (B, 1, Yk, Xk) bool, True = may be attended.
        kernel: "auto", "sdpa", "chunked" (memory linear in the number of pixels) or "reference" (materialised).

    Returns:
        (B, G, E, Yq, Xq).

    Raises:
        ValueError: the maps do not fit together, or an unknown score or kernel.
        RuntimeError: the named kernel cannot serve this call.
    """
    shape = read_shape("dense", q, k, v, key_mask)
    check_score("dense", score)
    chosen = choose("dense", KERNELS, make_request(shape, score, key_mask, q, k, v), kernel)
    out = chosen.run(q.flatten(3), k.flatten(3), v.flatten(3), score, default_scale(scale, shape.qk_channels), key_mask)
    return torch.unflatten(out, 3, shape.q_size)


def dense_weights(
    q: Tensor,
    k: Tensor,
    queries: Tensor,
    *,
    score: Score = "dot",
    scale: float | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Attention weights of a few query pixels, (Q, 2) long rows and cols: (B, G, Q, keys); see `dense_attention`."""
    shape = read_shape("dense", q, k, key_mask=key_mask)
    check_score("dense", score)
    points = q[..., queries[:, 0], queries[:, 1]]  # (B, G, D, Q)
    with no_autocast(q.device):
        logits = dense_logits(points, k.flatten(3), score, default_scale(scale, shape.qk_channels))
        return masked_softmax(logits, None if key_mask is None else key_mask.flatten(2).unsqueeze(2))


def dense_logits(q: Tensor, k: Tensor, score: Score, scale: float) -> Tensor:
    """Scores of every query with every key: (..., D, Q), (..., D, K) -> (..., Q, K), in at least float32."""
    q, k = at_least_float32(q), at_least_float32(k)
    product = q.transpose(-1, -2) @ k  # (..., Q, K)
    if score == "dot":
        return scale * product
    return scale * (2 * product - q.square().sum(-2).unsqueeze(-1) - k.square().sum(-2).unsqueeze(-2))


def _reference(q: Tensor, k: Tensor, v: Tensor, score: Score, scale: float, key_mask: Tensor | None) -> Tensor:
    with no_autocast(q.device):
        allowed = None if key_mask is None else key_mask.flatten(2).unsqueeze(2)  # (B, 1, 1, K)
        weights = masked_softmax(dense_logits(q, k, score, scale), allowed)  # (B, G, Q, K)
        return (at_least_float32(v) @ weights.transpose(2, 3)).to(q.dtype)  # (B, G, E, Q)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, score: Score, scale: float, key_mask: Tensor | None) -> Tensor:
    channels = v.shape[2]
    if score == "l2":
        q, k = _fold_distance(q, k)
        scale = 2 * scale
    width = k.shape[2] if q.device.type == "cpu" else -(-k.shape[2] // 8) * 8
    if (
        score == "l2" or q.device.type == "cpu"
    ):  # the CPU's flash kernel wants one width; the others want multiples of 8
        width = max(width, channels)
        q, k, v = (F.pad(x, (0, 0, 0, width - x.shape[2])) for x in (q, k, v))
    q, k, v = (x.transpose(2, 3).contiguous() for x in (q, k, v))  # (B, G, N, channels)
    with no_autocast(q.device):  # it would round |k|^2
        if key_mask is None:
            out = F.scaled_dot_product_attention(q, k, v, scale=scale)
        else:
            allowed = key_mask.flatten(2).unsqueeze(2)  # (B, 1, 1, K)
            alive = allowed.any(-1, keepdim=True)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed | ~alive, scale=scale) * alive
    return out[..., :channels].transpose(2, 3)


def _fold_distance(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Append channels such that 2 q.k of the results is 2 q.k - |k|^2: minus the squared distance but for |q|^2.

    The softmax does not see |q|^2. Distances do not change when both maps move by the mean key, which keeps |k|^2, and
    with it the cancellation, small. In fp16 and bf16 two channels carry |k|^2, a rounded value and its rest.
    """
    centre = at_least_float32(k.detach()).mean(-1, keepdim=True).to(k.dtype)
    q, k = q - centre, k - centre
    half_square = at_least_float32(k).square().sum(2, keepdim=True) * -0.5  # (B, G, 1, K)
    if k.dtype == half_square.dtype:
        return torch.cat([q, torch.ones_like(q[:, :, :1])], 2), torch.cat([k, half_square], 2)
    shift = 64.0  # a power of two: |k|^2 up to 8 million stays in fp16's range
    high = (half_square / shift).to(k.dtype)
    low = (half_square / shift - high).to(k.dtype)
    return torch.cat([q, torch.full_like(q[:, :, :2], shift)], 2), torch.cat([k, high, low], 2)


def _chunked(q: Tensor, k: Tensor, v: Tensor, score: Score, scale: float, key_mask: Tensor | None) -> Tensor:
    heads = q.shape[1]
    allowed = None if key_mask is None else key_mask.flatten(1).repeat_interleave(heads, 0)  # (B*G, K)
    flat = [x.flatten(0, 1) for x in (q, k, v)]  # (B*G, channels, N)
    out = cast(Tensor, cast(Any, _ChunkedAttention).apply(*flat, score, scale, allowed))
    return torch.unflatten(out, 0, q.shape[:2])


class _ChunkedAttention(torch.autograd.Function):
    """Dense attention over chunks of queries; keeps its inputs only and recomputes the weights in backward."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, score: Score, scale: float, allowed: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, allowed)
        ctx.options = (score, scale)
        out = torch.empty(v.shape[0], v.shape[1], q.shape[2], dtype=v.dtype, device=v.device)
        with no_autocast(q.device):
            chunks = _QueryChunks(q, k, score, scale, allowed)
            values = at_least_float32(v).transpose(1, 2)  # (B*G, K, E)
            for span in chunks.spans():
                _, weights = chunks.weights(span)
                out[:, :, span] = torch.bmm(weights, values).transpose(1, 2)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, allowed = ctx.saved_tensors
        score, scale = ctx.options
        with torch.no_grad(), no_autocast(q.device):
            chunks = _QueryChunks(q, k, score, scale, allowed)
            values = at_least_float32(v)
            dq, dk, dv = (torch.zeros_like(x, dtype=values.dtype) for x in (q, k, v))
            column = torch.zeros_like(values[:, :1])  # (B*G, 1, K): sum over queries of the gradient of the logits
            for span in chunks.spans():
                queries, weights = chunks.weights(span)  # (B*G, R, D), (B*G, R, K)
                grad_out = at_least_float32(grad[:, :, span])  # (B*G, E, R)
                dv.baddbmm_(grad_out, weights)
                slope = torch.bmm(grad_out.transpose(1, 2), values)  # (B*G, R, K)
                slope.sub_((slope * weights).sum(2, keepdim=True)).mul_(weights)
                dq[:, :, span] = torch.bmm(slope, chunks.keys.transpose(1, 2)).mul_(chunks.factor).transpose(1, 2)
                dk.baddbmm_(queries.transpose(1, 2), slope)  # the queries carry the factor already
                column += slope.sum(1, keepdim=True)
            if score == "l2":
                dk.addcmul_(chunks.keys, column, value=-2 * scale)
            grads = [x.to(v.dtype) for x in (dq, dk, dv)]
        return *once_differentiable("dense attention's chunked kernel", grads, (grad, q, k, v)), None, None, None


class _QueryChunks:
    """Attention weights of a span of queries at a time: (B*G, D, Q) and (B*G, D, K) maps, never all pairs."""

    def __init__(self, q: Tensor, k: Tensor, score: Score, scale: float, allowed: Tensor | None) -> None:
        self.keys = at_least_float32(k)
        self.queries = q
        self.factor = scale
        self.centre: Tensor | None = None
        self.bias: Tensor | None = None  # (B*G, 1, K), added to the logits
        self.alive: Tensor | None = None  # (B*G, 1, 1), False where no key is allowed
        if score == "l2":
            self.centre = self.keys.mean(2, keepdim=True)
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
        """The span's queries times the factor (B*G, R, D), and their attention weights (B*G, R, K)."""
        queries = at_least_float32(self.queries[:, :, span])
        if self.centre is not None:
            queries = queries - self.centre
        queries = (queries * self.factor).transpose(1, 2)
        logits = torch.bmm(queries, self.keys)
        if self.bias is not None:
            logits += self.bias
        weights = softmax_(logits)
        return queries, weights if self.alive is None else weights.mul_(self.alive)


def _anywhere(request: Request) -> list[str]:
    return []


def _against_sdpa(request: Request) -> list[str]:
    shape = request.shape
    if request.device.type == "cpu":
        return []
    matrix = shape.batch * shape.heads * shape.q_size.area * shape.kv_size.area * request.dtype.itemsize
    if matrix <= SDPA_MATRIX_BYTES:
        return []
    width = max(shape.qk_channels + 2 * (request.score == "l2"), shape.v_channels)
    if request.device.type == "cuda" and request.dtype != torch.float64 and width <= FLASH_CHANNELS:
        return []
    why = (
        f"a head of {width} channels is wider than the {FLASH_CHANNELS} that its fused kernels take for certain"
        if width > FLASH_CHANNELS
        else f"no fused kernel is known for {request.dtype} on {request.device.type}"
    )
    return [f"{why}, and without one it would hold a score matrix of {matrix >> 20} MiB"]


KERNELS = (
    Kernel("sdpa", _sdpa, _against_sdpa),
    Kernel("chunked", _chunked, _anywhere),
    Kernel("reference", _reference, _anywhere, double_backward=True),
)
