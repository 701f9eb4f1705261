"""Nystromformer: attention through landmarks, means of runs of pixels (Xiong et al., arXiv 2102.03902).

out = F A^+ (B V): F lets queries attend to the key landmarks, B lets the query landmarks attend to the keys, A lets
landmarks attend to landmarks, each a softmax, and A^+ is found by an iteration. Time and memory are linear in the
number of pixels.

What differs from the paper: segments of the scan line may be of unequal lengths, so any map fits without padding, and
query and key map may differ, each with landmarks of its own (A need not be square); masked keys are left out of means
and softmaxes; the iteration starts from each matrix's own norms, not the batch's. Distances, cosine and patches are
ours. The weights that result sum to about 1, but some may be negative.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saccade.geometry import AttentionShape
from saccade.ops.dispatch import Kernel, Request, Score, check_score, choose
from saccade.ops.inputs import at_least_float32, check_scale, default_scale, make_request, no_autocast, read_shape
from saccade.ops.nystromformer.chunked import Approximation, Nystrom, chunked
from saccade.ops.nystromformer.parts import Segments, pseudo_inverse
from saccade.ops.options import whole
from saccade.ops.patches import as_vectors, check_patch_size


def nystrom_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    landmarks: int = 256,
    pinv_iterations: int = 6,
    score: Score = "dot",
    scale: float | None = None,
    patch_size: int = 1,
    key_mask: Tensor | None = None,
    kernel: str = "auto",
) -> Tensor:
    """Let every query attend to every key through landmarks.

    Args:
        q: (B, G, D, Yq, Xq).
        k: (B, G, D, Yk, Xk).
        v: (B, G, E, Yk, Xk).
        landmarks: L of the query map and of the key map; with more than a map has pixels, each of its pixels is one,
            and where that holds for both maps the result is full attention, as far as the iteration has converged.
        pinv_iterations: steps of the iterative pseudo-inverse, 6 in the paper. Few steps leave out the directions in
            which landmarks hardly differ; with very many, rounding errors of float32 grow in them.
        score: "dot", "l2", "cosine" or "unit_key".
        scale: factor on the score; None is 1 / sqrt(D * p * p), and 1 for the last two.
        patch_size: p; queries and keys are compared as p x p patches, values are read at the centre.
        key_mask: (B, 1, Yk, Xk) bool, True = may be attended.
        kernel: "auto", "chunked" (n x L kernels are never stored) or "reference".

    Returns:
        (B, G, E, Yq, Xq).

    Raises:
        ValueError: the maps do not fit together, or a wrong option.
        RuntimeError: the named kernel cannot serve this call.
    """
    shape = read_shape("nystromformer", q, k, v, key_mask)
    options = _read_options(shape, landmarks, pinv_iterations, score, scale, patch_size)
    chosen = choose("nystromformer", KERNELS, make_request(shape, score, key_mask, q, k, v), kernel)
    return chosen.run(q, k, v, options, key_mask)


def nystrom_weights(
    q: Tensor,
    k: Tensor,
    queries: Tensor,
    *,
    landmarks: int = 256,
    pinv_iterations: int = 6,
    score: Score = "dot",
    scale: float | None = None,
    patch_size: int = 1,
    key_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention weights of a few query pixels, (Q, 2) long rows and cols; see `nystrom_attention`.

    Returns:
        Flat key indices and weights, both (B, G, Q, Yk * Xk).
    """
    shape = read_shape("nystromformer", q, k, key_mask=key_mask)
    options = _read_options(shape, landmarks, pinv_iterations, score, scale, patch_size)
    allowed = None if key_mask is None else key_mask.flatten(1).repeat_interleave(shape.heads, 0)  # (B*G, K)
    with torch.no_grad(), no_autocast(q.device):
        call = Nystrom(q.flatten(0, 1).contiguous(), k.flatten(0, 1).contiguous(), allowed, options)
        _, log_sums = call.gather(k.flatten(0, 1)[:, :0])
        at_landmarks = call.mix(torch.eye(log_sums.shape[1], dtype=log_sums.dtype, device=q.device))  # the inverse
        asked = call.query_weights(call.queries.points(queries)).transpose(1, 2) @ at_landmarks  # (B*G, Q, L_q)
        weights = asked.new_empty(*asked.shape[:2], shape.kv_size.area)
        for span in call.keys.spans:
            share = call.key_logits(call.keys.vectors(span), span).sub_(log_sums).exp_()  # (B*G, L_q, R)
            weights[:, :, span] = torch.bmm(asked, share)
        weights = torch.unflatten(weights, 0, q.shape[:2])
    return torch.arange(weights.shape[3], device=q.device).expand(weights.shape), weights


def check_landmarks(landmarks: int, pinv_iterations: int) -> tuple[int, int]:
    """The numbers of landmarks and of steps of the iteration, at least one each."""
    op = "nystromformer"
    return whole(op, "landmarks", landmarks), whole(op, "pinv_iterations", pinv_iterations)


def _read_options(
    shape: AttentionShape, landmarks: int, iterations: int, score: Score, scale: float | None, patch_size: int
) -> Approximation:
    landmarks, iterations = check_landmarks(landmarks, iterations)
    check_score("nystromformer", score)
    check_scale("nystromformer", scale)
    patch_size = check_patch_size("nystromformer", patch_size)
    scale = default_scale(scale, shape.qk_channels * patch_size**2, score)
    return Approximation(landmarks, iterations, score, scale, patch_size)


def _reference(q: Tensor, k: Tensor, v: Tensor, options: Approximation, key_mask: Tensor | None) -> Tensor:
    with no_autocast(q.device):
        queries, keys, score = as_vectors(at_least_float32(q), at_least_float32(k), options.patch_size, options.score)
        queries, keys = queries.flatten(3).transpose(2, 3), keys.flatten(3).transpose(2, 3)  # (B, G, N, d)
        allowed = None if key_mask is None else key_mask.flatten(1)  # (B, K)
        q_marks, _ = _means(queries, options.landmarks, None)  # (B, G, L_q, d)
        k_marks, kept = _means(keys, options.landmarks, allowed)
        reach = None if allowed is None else allowed[:, None, None]
        out = _softmax(q_marks, keys, score, options.scale, reach) @ at_least_float32(v).flatten(3).transpose(2, 3)
        inner = _softmax(q_marks, k_marks, score, options.scale, kept)
        out = pseudo_inverse(inner, options.iterations) @ out  # (B, G, L_k, E)
        out = _softmax(queries, k_marks, score, options.scale, kept) @ out
        return torch.unflatten(out.transpose(2, 3), 3, q.shape[3:]).to(q.dtype)


def _means(vectors: Tensor, landmarks: int, allowed: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Landmarks of (B, G, N, d), and (B, 1, 1, L) bool where a mask leaves some without a pixel."""
    segments = Segments(vectors.shape[2], landmarks, allowed, vectors)
    shares = segments.averages(slice(0, vectors.shape[2])).unsqueeze(1)  # (B or 1, 1, N, L)
    empty = segments.empty()
    return shares.transpose(2, 3) @ vectors, None if empty is None else ~empty[:, None, None]


def _softmax(q: Tensor, k: Tensor, score: Score, scale: float, allowed: Tensor | None) -> Tensor:
    logits = q @ k.transpose(2, 3)
    if score == "l2":
        logits = 2 * logits - q.square().sum(3).unsqueeze(3) - k.square().sum(3).unsqueeze(2)
    logits = scale * logits
    return torch.softmax(logits if allowed is None else logits.masked_fill(~allowed, float("-inf")), -1)


def _anywhere(request: Request) -> list[str]:
    return []


KERNELS = (
    Kernel("chunked", chunked, _anywhere),
    Kernel("reference", _reference, _anywhere, double_backward=True),
)
