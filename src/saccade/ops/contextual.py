"""Contextual attention's matching: exact scores of patches, fused along neighbours, before the softmax.

Source: Yu et al. 2018, "Generative Image Inpainting with Contextual Attention", as released for PyTorch
(daa233/generative-inpainting-pytorch, `ContextualAttention`). Queries are patches as they are, keys are divided by
sqrt(sum(k^2 + 1e-4)). Fusing adds to the score of a query and a key those of their neighbours along the scan line,
left and right, then up and down; the scan line does not end at the end of a row. A masked key keeps the logit 0 inside
the softmax and loses its weight after it, so that weights sum to less than 1 (`masked="zero"`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from saccade.geometry import AttentionShape, Size
from saccade.ops.dispatch import Kernel, Request, choose
from saccade.ops.inputs import (
    at_least_float32,
    check_scale,
    make_request,
    masked_softmax,
    no_autocast,
    read_shape,
    softmax_,
)
from saccade.ops.options import whole
from saccade.ops.patches import check_patch_size, patchify

Masked = Literal["zero", "drop"]
MASKED: tuple[Masked, ...] = ("zero", "drop")
# Added to every square of a key's patch before they are summed up (the released layer's).
SOFTENING = 1e-4
# Score matrices of one sample, or when gradients are recorded of the batch, that exist at once.
MATRICES, RECORDED_MATRICES = 2, 5


@dataclass(frozen=True)
class Matching:
    """What is matched and how.

    Args:
        scale: factor on the fused scores.
        patch_size: side of the patches that are compared, odd; zeros outside the map.
        fuse: how many neighbours along each direction are added up, odd; 1 fuses nothing.
        masked: "zero", as released, or "drop": masked keys are no part of the softmax.

    Raises:
        ValueError: an option that no map could be served with.
    """

    scale: float = 10.0
    patch_size: int = 3
    fuse: int = 3
    masked: Masked = "zero"

    def __post_init__(self) -> None:
        check_scale("full", self.scale)
        check_patch_size("full", self.patch_size)
        if whole("full", "fuse", self.fuse) % 2 == 0:
            raise ValueError(f"full: fuse must be odd; got {self.fuse}. Valid here: {self.fuse - 1}, {self.fuse + 1}.")
        if self.masked not in MASKED:
            raise ValueError(
                f"full: no treatment of masked keys is called {self.masked!r}. Valid here: {', '.join(MASKED)}."
            )


def contextual_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    matching: Matching,
    *,
    key_mask: Tensor | None = None,
    kernel: str = "auto",
    memory: int | None = None,
    who: str = "full",
) -> Tensor:
    """Let every query attend to every key by fused scores. Twice differentiable.

    Args:
        q: (B, G, D, Yq, Xq).
        k: (B, G, D, Yk, Xk).
        v: (B, G, E, Yk, Xk).
        matching: how.
        key_mask: (B, 1, Yk, Xk) bool, True = may be attended.
        kernel: "auto" or "reference", its only kernel: it holds the scores of all pairs.
        memory: bytes that the scores may take; None does not look.
        who: name in messages.

    Returns:
        (B, G, E, Yq, Xq).

    Raises:
        ValueError: the maps do not fit together, or the mask leaves a sample no key.
        RuntimeError: the scores do not fit into `memory`.
    """
    shape = read_shape("full", q, k, v, key_mask)
    request = make_request(shape, "unit_key", key_mask, q, k, v)
    choose("contextual", (_reference(memory),), request, kernel, who=who)
    allowed = _by_columns(key_mask, shape)  # (B * G, 1, K) or None
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    with no_autocast(q.device):
        if request.requires_grad:
            out = _read(q, k, v, matching, allowed)
        else:
            samples = [slice(n, n + 1) for n in range(q.shape[0])]
            out = torch.cat(
                [_read(q[n], k[n], v[n], matching, None if allowed is None else allowed[n]) for n in samples]
            )
    return torch.unflatten(out, 0, (shape.batch, shape.heads))


def contextual_weights(
    q: Tensor, k: Tensor, queries: Tensor, matching: Matching, *, key_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Which keys a few query pixels attend to, and how much. Arguments as in `contextual_attention`.

    Args:
        queries: (Q, 2) long, rows and cols in the query map.

    Returns:
        Flat key pixels (B, G, Q, keys) and their weights, of the same shape.
    """
    shape = read_shape("full", q, k, key_mask=key_mask)
    with no_autocast(q.device):
        scores = fused_scores(q.flatten(0, 1), k.flatten(0, 1), matching)
        picked = queries[:, 1] * shape.q_size.rows + queries[:, 0]
        weights = _weights(scores[:, picked], _by_columns(key_mask, shape), matching)
    pixels = torch.arange(shape.kv_size.area, device=q.device).view(shape.kv_size).t().flatten()
    weights = torch.unflatten(weights, 0, q.shape[:2])
    return pixels.expand(weights.shape), weights


def fused_scores(q: Tensor, k: Tensor, matching: Matching) -> Tensor:
    """Scores (N, Q, K) of maps (N, D, Yq, Xq) and (N, D, Yk, Xk), both axes column by column."""
    sizes, patch_size, fuse = (Size(*q.shape[2:]), Size(*k.shape[2:])), matching.patch_size, matching.fuse
    queries = patchify(at_least_float32(q).unsqueeze(1), patch_size).flatten(3).squeeze(1)  # (N, D * p * p, Q)
    keys = patchify(at_least_float32(k).unsqueeze(1), patch_size).flatten(3).squeeze(1)
    keys = keys / (keys.square() + SOFTENING).sum(1, keepdim=True).sqrt()
    scores = diagonal_sum(torch.bmm(queries.transpose(1, 2), keys), fuse)
    scores = scores.view(-1, *sizes[0], *sizes[1]).permute(0, 2, 1, 4, 3)  # (N, Xq, Yq, Xk, Yk)
    scores = scores.reshape(-1, sizes[0].area, sizes[1].area)  # a copy, and the old scores are gone
    return diagonal_sum(scores, fuse)


def diagonal_sum(scores: Tensor, count: int) -> Tensor:
    """Add up `count` neighbours along the diagonal, zeros outside: out[q, k] = sum over a of in[q + a, k + a].

    Args:
        scores: (N, Q, K).
        count: odd; a runs from -(count // 2) to count // 2.
    """
    return scores if count == 1 else cast(Tensor, cast(Any, _DiagonalSum).apply(scores, count // 2))


class _DiagonalSum(torch.autograd.Function):
    """Its own transpose, so its gradient is itself."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, reach: int) -> Tensor:
        ctx.reach = reach
        total = scores.clone()
        for step in range(1, min(reach, *(side - 1 for side in scores.shape[1:])) + 1):
            total[:, step:, step:] += scores[:, :-step, :-step]
            total[:, :-step, :-step] += scores[:, step:, step:]
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return cast(Tensor, cast(Any, _DiagonalSum).apply(grad, ctx.reach)), None


def _read(q: Tensor, k: Tensor, v: Tensor, matching: Matching, allowed: Tensor | None) -> Tensor:
    weights = _weights(fused_scores(q, k, matching), allowed, matching)
    values = at_least_float32(v).transpose(2, 3).flatten(2)  # (N, E, K), column by column
    out = torch.bmm(values, weights.transpose(1, 2))
    return out.view(*out.shape[:2], q.shape[3], q.shape[2]).transpose(2, 3).to(v.dtype)


def _weights(scores: Tensor, allowed: Tensor | None, matching: Matching) -> Tensor:
    """Softmax of (N, Q, K) scores; `allowed` is (N, 1, K). May take the scores' place where nothing is recorded."""
    if matching.masked == "drop" and allowed is not None:
        return masked_softmax(scores * matching.scale, allowed)
    if torch.is_grad_enabled() and scores.requires_grad:
        logits = scores * matching.scale
        if allowed is None:
            return torch.softmax(logits, -1)
        return torch.softmax(logits.masked_fill(~allowed, 0), -1) * allowed
    scores.mul_(matching.scale)
    if allowed is None:
        return softmax_(scores)
    return softmax_(scores.masked_fill_(~allowed, 0)).mul_(allowed)


def _by_columns(key_mask: Tensor | None, shape: AttentionShape) -> Tensor | None:
    """(B, 1, Yk, Xk) -> (B * G, 1, K), column by column."""
    if key_mask is None:
        return None
    return key_mask.transpose(2, 3).flatten(2).repeat_interleave(shape.heads, 0)


def matching_bytes(shape: AttentionShape, itemsize: int, recorded: bool) -> int:
    """Bytes of the score matrices that one call holds: of one sample, or of the batch if gradients are recorded."""
    maps = shape.batch * shape.heads * RECORDED_MATRICES if recorded else MATRICES
    return maps * shape.q_size.area * shape.kv_size.area * max(4, itemsize)


def memory_reason(shape: AttentionShape, itemsize: int, recorded: bool, memory: int) -> str | None:
    """Why the score matrices of a call do not fit into so many bytes; None if they do."""
    needed = matching_bytes(shape, itemsize, recorded)
    if needed <= memory:
        return None
    side = int((shape.q_size.area * (memory / needed) ** 0.5) ** 0.5)
    return (
        f"matching {shape.q_size} queries with {shape.kv_size} keys holds the scores of all {shape.q_size.area:,} x "
        f"{shape.kv_size.area:,} pairs, {_gib(needed)}, and {_gib(memory)} may be taken. Valid here: maps of up to "
        f"{side}x{side}, or attention=psal, whose memory grows with the pixels and not with their pairs"
    )


def _gib(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def _reference(memory: int | None = None) -> Kernel:
    def against(request: Request) -> list[str]:
        if memory is None or request.device.type == "meta":
            return []
        reason = memory_reason(request.shape, request.dtype.itemsize, request.requires_grad, memory)
        return [] if reason is None else [reason]

    return Kernel("reference", _read, against, double_backward=True)


KERNELS = (_reference(),)
