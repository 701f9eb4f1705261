"""Your Local GAN attention: each head of a layer has its own sparse pattern over an enumeration of the key map.

Source: Daras, Odena, Zhang, Dimakis, "Your Local GAN", arXiv 1911.12287, and the released layer: eight heads, the two
steps of right-to-left and left-to-right patterns, in parallel; scores without a factor. Different here: sparse heads
are computed sparsely (`saccade.ops.ylg.structured`), keys may be masked, masked-out pairs weigh 0 and not e^-1000.
Heads are runs of channels on both sides; the released layer interleaves them on its output.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from saccade.geometry import AttentionShape
from saccade.ops.dense import dense_logits
from saccade.ops.dispatch import Kernel, Request, Score, check_kernel_name, check_score, choose
from saccade.ops.inputs import (
    at_least_float32,
    check_scale,
    default_scale,
    make_request,
    masked_softmax,
    no_autocast,
    read_shape,
)
from saccade.ops.patches import as_vectors, check_patch_size
from saccade.ops.ylg.gathered import gathered
from saccade.ops.ylg.patterns import (
    Order,
    Pattern,
    PatternLike,
    QueryMapping,
    check_order,
    mapping_reasons,
    read_patterns,
)
from saccade.ops.ylg.plan import Layout, cells_of, key_lists, mask_rows
from saccade.ops.ylg.structured import structured

__all__ = ["KERNELS", "ylg_attention", "ylg_weights"]


def ylg_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    patterns: str | Sequence[PatternLike] = "ylg",
    mapping: QueryMapping = "released",
    order: Order = "esa",
    score: Score = "dot",
    scale: float | None = 1.0,
    patch_size: int = 1,
    key_mask: Tensor | None = None,
    kernel: str = "auto",
) -> Tensor:
    """Let every head attend by its own pattern.

    Args:
        q: (B, G, D, Yq, Xq).
        k: (B, G, D, Yk, Xk).
        v: (B, G, E, Yk, Xk).
        patterns: one a head: names of `PATTERNS`, `Pattern`s, or functions from n to an (n, n) bool mask over
            enumerated tokens; or the name of a list of eight, of `HEADS`.
        mapping: which key cell's row of the pattern a query takes: "released", "tile" or "nearest"; see `key_cells`.
        order: how key cells are enumerated: "esa", "hilbert" or "row"; see `order_of`.
        score: "dot", "l2", "cosine" or "unit_key".
        scale: factor on the score, 1 as released; None is 1 / sqrt(channels compared), and 1 for unit vectors.
        patch_size: p, odd: queries and keys are compared as p x p patches.
        key_mask: (B, 1, Yk, Xk) bool, True = may be attended. A query left without a key gets zeros.
        kernel: "auto", "structured" (built-in patterns), "gathered" (any pattern) or "reference" (the masked product).
            "auto" chooses for the heads whose patterns have a structured form, and for the others.

    Returns:
        (B, G, E, Yq, Xq).

    Raises:
        ValueError: the maps do not fit together or the mapping, heads and patterns differ in number, an unknown option.
        RuntimeError: the named kernel cannot serve this call.
    """
    shape = read_shape("ylg", q, k, v, key_mask)
    chosen, layout = _read_options(shape, patterns, mapping, order, score, scale, patch_size)
    check_kernel_name("ylg", KERNELS, kernel)
    factor = default_scale(scale, shape.qk_channels * patch_size**2, score)
    q_vectors, k_vectors, kind = as_vectors(at_least_float32(q), at_least_float32(k), patch_size, score)
    maps = [x.flatten(3) for x in (q_vectors, k_vectors, at_least_float32(v))]
    request = make_request(shape, score, key_mask, q, k, v)
    parts = _parts(chosen) if kernel == "auto" else [tuple(range(shape.heads))]
    outs: dict[int, Tensor] = {}
    for heads in parts:
        of_heads = tuple(chosen[head] for head in heads)
        serve = choose("ylg", _kernels(of_heads), request, kernel)
        some = maps if len(parts) == 1 else [torch.stack([x[:, head] for head in heads], 1) for x in maps]
        with no_autocast(q.device):
            out = serve.run(*some, of_heads, layout, kind, factor, key_mask)  # (B, h, E, n_q)
        outs.update(zip(heads, out.unbind(1), strict=True))
    if len(parts) > 1:
        out = torch.stack([outs[head] for head in range(shape.heads)], 1)
    return torch.unflatten(out, 3, shape.q_size).to(v.dtype)


def ylg_weights(
    q: Tensor,
    k: Tensor,
    queries: Tensor,
    *,
    patterns: str | Sequence[PatternLike] = "ylg",
    mapping: QueryMapping = "released",
    order: Order = "esa",
    score: Score = "dot",
    scale: float | None = 1.0,
    patch_size: int = 1,
    key_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Which keys a few query pixels attend to, and how much. Arguments as in `ylg_attention`.

    Args:
        queries: (Q, 2) long, rows and cols in the query map.

    Returns:
        Flat key pixels (B, G, Q, K) and their weights, of the same shape; K is the longest list of the heads, shorter
        ones end in weights of 0.
    """
    shape = read_shape("ylg", q, k, key_mask=key_mask)
    chosen, layout = _read_options(shape, patterns, mapping, order, score, scale, patch_size)
    factor = default_scale(scale, shape.qk_channels * patch_size**2, score)
    q_vectors, k_vectors, score = as_vectors(at_least_float32(q), at_least_float32(k), patch_size, score)
    flat = (queries[:, 0] * shape.q_size.cols + queries[:, 1]).cpu()
    masks = torch.stack([mask_rows(pattern, layout, cells_of(layout)[flat]) for pattern in chosen])  # (G, Q, n_k)
    keys, used = (x.view(*masks.shape[:2], -1).to(q.device) for x in key_lists(masks.flatten(0, 1)))
    points = q_vectors[..., queries[:, 0], queries[:, 1]].transpose(2, 3).unsqueeze(4)  # (B, G, Q, D, 1)
    head = torch.arange(shape.heads, device=q.device).view(-1, 1, 1)
    picked = k_vectors.flatten(3).transpose(2, 3)[:, head, keys].transpose(3, 4)  # (B, G, Q, D, K)
    allowed = used if key_mask is None else used & key_mask.flatten(1)[:, keys]
    with no_autocast(q.device):
        logits = dense_logits(points, picked, score, factor).squeeze(3)  # (B, G, Q, K)
        return keys.expand(logits.shape), masked_softmax(logits, allowed)


def _read_options(
    shape: AttentionShape,
    patterns: str | Sequence[PatternLike],
    mapping: QueryMapping,
    order: Order,
    score: Score,
    scale: float | None,
    patch_size: int,
) -> tuple[tuple[Pattern, ...], Layout]:
    check_score("ylg", score)
    check_scale("ylg", scale)
    check_patch_size("ylg", patch_size)
    check_order(order)
    chosen = read_patterns(patterns)
    if len(chosen) != shape.heads:
        raise ValueError(
            f"ylg: {len(chosen)} patterns for {shape.heads} heads: {', '.join(p.name for p in chosen)}; each head "
            f"needs one. Valid here: {shape.heads} patterns, or maps of {len(chosen)} heads."
        )
    reasons = mapping_reasons(shape.q_size, shape.kv_size, mapping)
    if reasons:
        raise ValueError(f"ylg: {' '.join(reasons)}")
    return chosen, Layout(shape.q_size, shape.kv_size, order, mapping)


def _parts(patterns: Sequence[Pattern]) -> list[tuple[int, ...]]:
    """Heads whose patterns have a form, and the others."""
    formed = tuple(head for head, pattern in enumerate(patterns) if pattern.form is not None)
    others = tuple(head for head, pattern in enumerate(patterns) if pattern.form is None)
    return [heads for heads in (formed, others) if heads]


def _as_dot(q: Tensor, k: Tensor, score: Score, scale: float) -> tuple[Tensor, Tensor]:
    """Vectors (B, G, D, n) whose products are the scores, but for what is the same for all keys of a query."""
    if score == "dot":
        return q, (k if scale == 1.0 else k * scale)
    centre = k.detach().mean(3, keepdim=True)  # distances do not change, and the squares cancel less
    q, k = q - centre, k - centre
    return (
        torch.cat([q, torch.ones_like(q[:, :, :1])], 2),
        torch.cat([(2 * scale) * k, -scale * k.square().sum(2, keepdim=True)], 2),
    )


def _structured(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    patterns: Sequence[Pattern],
    layout: Layout,
    score: Score,
    scale: float,
    key_mask: Tensor | None,
) -> Tensor:
    mask = None if key_mask is None else key_mask.flatten(1)
    return structured(*_as_dot(q, k, score, scale), v, patterns, layout, mask)


def _gathered(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    patterns: Sequence[Pattern],
    layout: Layout,
    score: Score,
    scale: float,
    key_mask: Tensor | None,
) -> Tensor:
    mask = None if key_mask is None else key_mask.flatten(1)
    return gathered(*_as_dot(q, k, score, scale), v, patterns, layout, mask)


def _reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    patterns: Sequence[Pattern],
    layout: Layout,
    score: Score,
    scale: float,
    key_mask: Tensor | None,
) -> Tensor:
    masks = torch.stack([mask_rows(pattern, layout, cells_of(layout)) for pattern in patterns]).to(q.device)
    allowed = masks if key_mask is None else masks & key_mask.flatten(2).unsqueeze(2)
    weights = masked_softmax(dense_logits(q, k, score, scale), allowed)  # (B, G, n_q, n_k)
    return v @ weights.transpose(2, 3)


def _anywhere(request: Request) -> list[str]:
    return []


KERNELS = (
    Kernel("structured", _structured, _anywhere, double_backward=True),
    Kernel("gathered", _gathered, _anywhere, double_backward=True),
    Kernel("reference", _reference, _anywhere, double_backward=True),
)


def _kernels(patterns: Sequence[Pattern]) -> tuple[Kernel, ...]:
    """The kernels, of which the first knows which of these patterns it cannot serve."""
    formless = dict.fromkeys(pattern.name for pattern in patterns if pattern.form is None)
    reasons = [f"pattern {name!r} is a bare mask, without a form that it knows" for name in formless]
    return dataclasses.replace(KERNELS[0], reasons_against=lambda request: reasons), *KERNELS[1:]
