"""Performer: softmax attention by positive orthogonal random features, FAVOR+ (Choromanski et al., arXiv 2009.14794).

exp(x.y) is the expectation over Gaussian directions w of exp(w.x - |x|^2 / 2) exp(w.y - |y|^2 / 2) (Lemma 1). With M
directions attention is a product of n x M features, whose sums over the keys come first: time and memory linear in the
number of pixels. The error falls as M^-1/2, and grows with exp of the vectors' lengths.

What differs from the paper and the released layers: numbers are stabilised by a maximum over the keys of each feature,
which cancels exactly, so that no constant is needed beside the features. The released layers take one maximum over all
keys and add 1e-4 to every feature; that constant outweighs the features of vectors that are long (at 784 channels and
the usual scale exp(-|x|^2 / 2) is near 1e-6), and the result tends to the mean of the values. `eps=1e-4` gives it.
The Gaussian kernel ("l2") by the same features, patches, and estimates about the maps' means (`centre`) are ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saccade.geometry import AttentionShape
from saccade.ops.dispatch import Kernel, Request, Score, check_score, choose
from saccade.ops.inputs import (
    at_least_float32,
    check_scale,
    default_scale,
    draw_seed,
    make_request,
    no_autocast,
    read_shape,
)
from saccade.ops.options import flag, not_negative, whole
from saccade.ops.patches import as_vectors, check_patch_size
from saccade.ops.performer.chunked import Estimate, chunked, feature_maps, key_sums, query_features
from saccade.ops.performer.features import default_features, kept_projection, performer_projection

SCORES: tuple[Score, ...] = ("dot", "l2")


def performer_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    features: int | None = None,
    projection: Tensor | None = None,
    score: Score = "dot",
    scale: float | None = None,
    patch_size: int = 1,
    eps: float = 0.0,
    centre: bool = False,
    key_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    kernel: str = "auto",
) -> Tensor:
    """Let every query attend to every key by M random features that estimate exp(score).

    Args:
        q: (B, G, D, Yq, Xq).
        k: (B, G, D, Yk, Xk).
        v: (B, G, E, Yk, Xk).
        features: M; None is d ln d, d = D * p * p the channels compared.
        projection: (M, d) directions, standard Gaussian each; None draws them by `generator`.
        score: "dot" or "l2".
        scale: factor on the score; None is 1 / sqrt(d).
        patch_size: p; queries and keys are compared as p x p patches, values are read at the centre.
        eps: constant beside every feature, stabilised as in the released layers, 1e-4 there; 0 is the unbiased estimate
            of numerator and denominator. The maximum that this stabiliser takes is a constant to the gradients.
        centre: estimate about the maps' mean vectors, the rest exactly: without bias too, at the same cost, and with
            the smaller error the more the vectors have in common. The means are constants to the gradients.
        key_mask: (B, 1, Yk, Xk) bool, True = may be attended.
        generator: draws one number, from which the directions are drawn; None is PyTorch's global one.
        kernel: "auto", "chunked" (n x M features are never stored) or "reference".

    Returns:
        (B, G, E, Yq, Xq).

    Raises:
        ValueError: the maps do not fit together, or a wrong option.
        RuntimeError: the named kernel cannot serve this call.
    """
    shape = read_shape("performer", q, k, v, key_mask)
    estimate = _read_options(shape, score, scale, patch_size, eps, centre)
    chosen = choose("performer", KERNELS, make_request(shape, score, key_mask, q, k, v), kernel)
    projection = _read_projection(q, projection, features, patch_size, generator)
    return chosen.run(q, k, v, projection, estimate, key_mask)


def performer_weights(
    q: Tensor,
    k: Tensor,
    queries: Tensor,
    *,
    features: int | None = None,
    projection: Tensor | None = None,
    score: Score = "dot",
    scale: float | None = None,
    patch_size: int = 1,
    eps: float = 0.0,
    centre: bool = False,
    key_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention weights of a few query pixels, (Q, 2) long rows and cols; see `performer_attention`.

    Returns:
        Flat key indices and weights, both (B, G, Q, Yk * Xk).
    """
    shape = read_shape("performer", q, k, key_mask=key_mask)
    estimate = _read_options(shape, score, scale, patch_size, eps, centre)
    projection = _read_projection(q, projection, features, patch_size, generator)
    allowed = None if key_mask is None else key_mask.flatten(1).repeat_interleave(shape.heads, 0)  # (B*G, K)
    with torch.no_grad(), no_autocast(q.device):
        flat_q, flat_k = q.flatten(0, 1).contiguous(), k.flatten(0, 1).contiguous()
        asked, keys = feature_maps(flat_q, flat_k, projection, estimate, allowed)
        sums = key_sums(keys, k.flatten(0, 1)[:, :0], allowed)
        at = queries[:, 0] * shape.q_size.cols + queries[:, 1]
        decay = asked.decay()[:, :, at] if eps else None
        phi = query_features(asked, asked.chunks.points(queries), decay, sums.shift) + eps  # (B*G, M, Q)
        bias = -keys.decay()
        weights = bias.new_empty(bias.shape[0], len(queries), shape.kv_size.area)
        for span in keys.spans():
            exponents = keys.exponents(keys.chunks.vectors(span), bias[:, :, span])
            of_keys = exponents.sub_(sums.shift).exp_().add_(eps)  # (B*G, M, R)
            weights[:, :, span] = torch.bmm(phi.transpose(1, 2), of_keys)
        if allowed is not None:
            weights.masked_fill_(~allowed.unsqueeze(1), 0.0)
        weights = torch.unflatten(weights / torch.bmm(phi.transpose(1, 2), sums.weights), 0, q.shape[:2])
    return torch.arange(weights.shape[3], device=q.device).expand(weights.shape), weights


def check_features(features: int | None) -> int | None:
    """The number of features, which must be None or at least 1."""
    return None if features is None else whole("performer", "features", features, other="None for d ln d")


def check_eps(eps: float, centre: bool) -> float:
    """The constant beside the features, which must be finite and not negative, and 0 about the means."""
    constant = not_negative("performer", "eps", eps)
    if flag("performer", "centre", centre) and constant:
        raise ValueError(f"performer: centre=True needs eps=0; got eps={eps!r}.")
    return constant


def _read_options(
    shape: AttentionShape, score: Score, scale: float | None, patch_size: int, eps: float, centre: bool
) -> Estimate:
    check_score("performer", score, SCORES)
    check_scale("performer", scale)
    check_patch_size("performer", patch_size)
    check_eps(eps, centre)
    scale = default_scale(scale, shape.qk_channels * patch_size**2, score)
    return Estimate(score, scale, patch_size, eps, centre)


def _read_projection(
    q: Tensor, projection: Tensor | None, features: int | None, patch_size: int, generator: torch.Generator | None
) -> Tensor:
    channels = q.shape[2] * patch_size**2
    dtype = torch.promote_types(q.dtype, torch.float32)
    check_features(features)
    if projection is None:
        count = features or default_features(channels)
        if q.device.type == "meta":
            return torch.empty(count, channels, dtype=dtype, device="meta")
        return performer_projection(count, channels, draw_seed(generator)).to(q.device, dtype)
    count = projection.shape[0] if features is None else features
    if projection.shape != (count, channels):
        raise ValueError(
            f"performer: projection must be (features, channels compared) = {(count, channels)}; got "
            f"{tuple(projection.shape)}."
        )
    return projection.detach().to(q.device, dtype)


def _reference(
    q: Tensor, k: Tensor, v: Tensor, projection: Tensor, estimate: Estimate, key_mask: Tensor | None
) -> Tensor:
    with no_autocast(q.device):
        queries, keys, _ = as_vectors(q, k, estimate.patch_size, "dot")
        queries, keys = at_least_float32(queries).flatten(3), at_least_float32(keys).flatten(3)  # (B, G, d, N)
        allowed = None if key_mask is None else key_mask.flatten(2).unsqueeze(1)  # (B, 1, 1, K)
        bias: Tensor | float = 0.0  # exact part of a key's exponents
        if estimate.centre:
            of_q, of_k = queries.detach().mean(3, keepdim=True), _mean(keys.detach(), allowed)  # (B, G, d, 1)
            keys = keys - of_k
            bias = estimate.factor**2 * ((of_q - of_k if estimate.score == "l2" else of_q) * keys).sum(2, keepdim=True)
            queries = queries - of_q
        along_q, along_k = (estimate.factor * (projection @ x) for x in (queries, keys))  # (B, G, M, N)
        decay_q, decay_k = (estimate.decay * x.square().sum(2, keepdim=True) for x in (queries, keys))
        if allowed is not None:
            along_k = along_k.masked_fill(~allowed, float("-inf"))
        if estimate.eps:
            phi_q = (along_q - decay_q - along_q.detach().amax(2, keepdim=True)).exp() + estimate.eps
            phi_k = (along_k - decay_k - along_k.detach().amax((2, 3), keepdim=True)).exp() + estimate.eps
            phi_k = phi_k if allowed is None else phi_k * allowed
        else:
            exponents = along_k - decay_k + bias
            shift = exponents.detach().amax(3, keepdim=True)  # (B, G, M, 1)
            phi_k = (exponents - shift).exp()
            along_q = along_q + shift
            phi_q = (along_q - along_q.detach().amax(2, keepdim=True)).exp()
        values = at_least_float32(v).flatten(3) @ phi_k.transpose(2, 3)  # (B, G, E, M)
        out = (values @ phi_q) / (phi_k.sum(3).unsqueeze(2) @ phi_q)
        return torch.unflatten(out, 3, q.shape[3:]).to(q.dtype)


def _mean(vectors: Tensor, allowed: Tensor | None) -> Tensor:
    if allowed is None:
        return vectors.mean(3, keepdim=True)
    return (vectors * allowed).sum(3, keepdim=True) / allowed.sum(3, keepdim=True)


def _anywhere(request: Request) -> list[str]:
    return []


KERNELS = (
    Kernel("chunked", chunked, _anywhere),
    Kernel("reference", _reference, _anywhere, double_backward=True),
)

__all__ = [
    "KERNELS",
    "SCORES",
    "check_eps",
    "check_features",
    "default_features",
    "kept_projection",
    "performer_attention",
    "performer_projection",
    "performer_weights",
]
