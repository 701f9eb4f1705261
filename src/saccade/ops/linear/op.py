"""Linear attention: softmax replaced by a product of positive features, so that no pair of pixels is ever looked at.

Source: Katharopoulos, Vyas, Pappas, Fleuret, "Transformers are RNNs", arXiv 2006.16236, section 3.2: features
elu(x) + 1 of queries and keys, and phi(q) (sum_k phi(k) v^T) / (phi(q) sum_k phi(k) + 1e-6). As in the paper's code
there is no factor on the queries. Different here: queries and keys may be compared as p x p patches, as in the
baseline of PSAL (arXiv 2202.03163, Table 1), but not unfolded: see `saccade.ops.linear.convolution`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.ops.dispatch import Kernel, Request, choose
from saccade.ops.inputs import at_least_float32, exact_products, make_request, no_autocast, read_shape
from saccade.ops.linear.convolution import EPS, convolution, features, padded_features
from saccade.ops.patches import check_patch_size, patchify

__all__ = ["linear_attention", "linear_weights"]


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    patch_size: int = 1,
    key_mask: Tensor | None = None,
    kernel: str = "auto",
) -> Tensor:
    """Let every query attend to every key with weights phi(q).phi(k), phi = elu + 1, in time linear in the pixels.

    Args:
        q: (B, G, D, Yq, Xq).
        k: (B, G, D, Yk, Xk).
        v: (B, G, E, Yk, Xk).
        patch_size: odd side p of the patches that stand for pixels; outside the map they hold zeros, of feature 1.
        key_mask: (B, 1, Yk, Xk) bool, True = may be attended.
        kernel: "auto", "convolution" (nothing is unfolded) or "reference" (the patches unfolded).

    Returns:
        (B, G, E, Yq, Xq).

    Raises:
        ValueError: the maps do not fit together, an even patch size, or an unknown kernel.
    """
    shape = read_shape("linear", q, k, v, key_mask)
    patch_size = check_patch_size("linear", patch_size)
    chosen = choose("linear", KERNELS, make_request(shape, "dot", key_mask, q, k, v), kernel)
    with no_autocast(q.device):
        return chosen.run(q, k, v, patch_size, key_mask)


def linear_weights(
    q: Tensor,
    k: Tensor,
    queries: Tensor,
    *,
    patch_size: int = 1,
    key_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The weights of all keys for a few query pixels. Arguments as in `linear_attention`.

    Args:
        queries: (Q, 2) long, rows and cols in the query map.

    Returns:
        Flat key pixels and weights, both (B, G, Q, Yk * Xk). They sum to 1 but for the 1e-6 in the denominator.
    """
    shape = read_shape("linear", q, k, key_mask=key_mask)
    patch_size = check_patch_size("linear", patch_size)
    count, maps = queries.shape[0], shape.batch * shape.heads
    with no_autocast(q.device), exact_products():
        span = torch.arange(patch_size, device=q.device)
        rows = (queries[:, 0, None] + span)[:, :, None]  # (Q, p, 1) in the padded map
        cols = (queries[:, 1, None] + span)[:, None, :]
        patches = padded_features(q.flatten(0, 1), patch_size)[:, :, rows, cols]  # (B*G, D, Q, p, p)
        kernels = patches.transpose(1, 2).flatten(0, 1)  # (B*G*Q, D, p, p)
        keys = padded_features(k.flatten(0, 1), patch_size).flatten(0, 1).unsqueeze(0)
        products = F.conv2d(keys, kernels, groups=maps).view(shape.batch, shape.heads, count, shape.kv_size.area)
    if key_mask is not None:
        products = products * key_mask.flatten(2).unsqueeze(2)
    weights = products / (products.sum(-1, keepdim=True) + EPS)
    return torch.arange(shape.kv_size.area, device=q.device).expand(weights.shape), weights


def _reference(q: Tensor, k: Tensor, v: Tensor, patch_size: int, key_mask: Tensor | None) -> Tensor:
    queries = features(patchify(q, patch_size)).flatten(3)  # (B, G, D * p * p, Nq)
    keys = features(patchify(k, patch_size)).flatten(3)  # (B, G, D * p * p, Nk)
    if key_mask is not None:
        keys = keys * key_mask.flatten(2).unsqueeze(2)
    product = keys @ at_least_float32(v).flatten(3).transpose(2, 3)  # (B, G, D * p * p, E)
    top = product.transpose(2, 3) @ queries  # (B, G, E, Nq)
    bottom = keys.sum(3).unsqueeze(2) @ queries + EPS  # (B, G, 1, Nq)
    return torch.unflatten(top / bottom, 3, q.shape[3:]).to(q.dtype)


def _anywhere(request: Request) -> list[str]:
    return []


KERNELS = (
    Kernel("convolution", convolution, _anywhere, double_backward=True),
    Kernel("reference", _reference, _anywhere, double_backward=True),
)
