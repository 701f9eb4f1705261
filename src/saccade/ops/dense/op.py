"""Dense (exact) attention between two maps: the library's oracle, and its `full` backend.

Scores: "dot" is scale * q.k, "l2" is -scale * |q - k|^2, "cosine" is scale * q.k of unit vectors, "unit_key" divides
the key alone by its length. `scale=None` is 1 / sqrt(channels compared) for the first two, as in GPA's released code,
and 1 for the others; 1.0 with "dot" is Eq. 1 of the GPA paper (arXiv 2107.03742). Queries and keys may be compared as
patches, and keys thinned out: the baseline of the PSAL paper (arXiv 2202.03163, section 4) is patch_size 7,
key_stride 3, keys "inside". Queries whose keys are all masked get zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.geometry import AttentionShape
from saccade.ops.dense.boxes import box_attention
from saccade.ops.dense.chunked import chunked_attention
from saccade.ops.dense.keys import KeyGrid, KeyPlaces, key_grid
from saccade.ops.dense.patches import patch_attention, patch_points
from saccade.ops.dispatch import Kernel, Request, Score, check_score, choose
from saccade.ops.inputs import (
    at_least_float32,
    check_scale,
    default_scale,
    exact_products,
    make_request,
    masked_softmax,
    no_autocast,
    read_shape,
)
from saccade.ops.options import flag
from saccade.ops.patches import SHORTEST, as_vectors, patch_length

# Ours: where SDPA would hold the score matrix, it may do so up to this size (64x64 maps in float32, 8 of them).
SDPA_MATRIX_BYTES = 512 * 2**20
# Ours: vectors of patches that SDPA may be given; above, other kernels make none, or a few rows of them at a time.
SDPA_VECTOR_BYTES = 32 * 2**20
# Ours: those of one map up to which SDPA is the faster one on a CPU, for every thread, as the small steps of the boxes
# kernel do not spread over threads. Measured on one: 3 and 16 channels, patches of 3 to 7 pixels, maps up to 64x64.
SDPA_FAST_BYTES = 4 * 2**20
# The widest head that the flash kernels of PyTorch take.
FLASH_CHANNELS = 256


@dataclass(frozen=True)
class DenseCall:
    """One call as the kernels get it: maps (B, G, D, Yq, Xq), (B, G, D, Yk, Xk), and values and mask of the keys alone.

    `v` is (B, G, E, rows, cols) and `key_mask` (B, 1, rows, cols) of the `grid` of keys.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    key_mask: Tensor | None
    grid: KeyGrid
    patch_size: int
    score: Score
    scale: float
    causal: bool

    def vectors(self) -> tuple[Tensor, Tensor, Tensor, Score]:
        """Queries and keys as vectors (B, G, D', Q) and (B, G, D', K), values (B, G, E, K), and their score."""
        q, k, score = as_vectors(self.q, self.k, self.patch_size, self.score)
        return q.flatten(3), self.grid.of(k).flatten(3), self.v.flatten(3), score

    def allowed(self) -> Tensor | None:
        """Which keys each query may attend to, (B, 1, Q or 1, K) bool."""
        allowed = None if self.key_mask is None else self.key_mask.flatten(2).unsqueeze(2)
        if not self.causal:
            return allowed
        queries = torch.arange(self.grid.kv_size.area, device=self.q.device)
        earlier = self.grid.pixels(self.q.device) <= queries[:, None]
        return earlier[None, None] if allowed is None else allowed & earlier


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    score: Score = "dot",
    scale: float | None = None,
    patch_size: int = 1,
    key_stride: int = 1,
    keys: KeyPlaces = "all",
    causal: bool = False,
    key_mask: Tensor | None = None,
    kernel: str = "auto",
) -> Tensor:
    """Let every query attend to every key.

    Args:
        q: (B, G, D, Yq, Xq).
        k: (B, G, D, Yk, Xk).
        v: (B, G, E, Yk, Xk).
        score: "dot", "l2", "cosine" or "unit_key".
        scale: factor on the score; None is 1 / sqrt(D * p * p) for "dot" and "l2", 1 for the others.
        patch_size: p, odd: pixels are compared by the p x p patches around them, zeros outside the map.
        key_stride: s: only the pixels in every s-th row and col are keys.
        keys: "all", from the first row and col on; "inside", only pixels whose patch lies inside the map.
        causal: a query attends only to keys that do not come after it in scan-line order; the maps are of one size.
        key_mask: (B, 1, Yk, Xk) bool, True = may be attended.
        kernel: "auto", "sdpa", "boxes" (patches of all keys on a CPU), "chunked" (memory linear in the number of
            pixels, as that of both before) or "reference" (materialised).

    Returns:
        (B, G, E, Yq, Xq).

    Raises:
        ValueError: the maps do not fit together, or an option is wrong.
        RuntimeError: the named kernel cannot serve this call.
    """
    shape = read_shape("full", q, k, v, key_mask)
    _check_options(shape, score, scale, patch_size, causal)
    grid = key_grid("full", shape.kv_size, patch_size, key_stride, keys)
    width = shape.qk_channels * patch_size**2
    call = DenseCall(
        q=q,
        k=k,
        v=grid.of(v),
        key_mask=None if key_mask is None else grid.of(key_mask),
        grid=grid,
        patch_size=patch_size,
        score=score,
        scale=default_scale(scale, width, score),
        causal=causal,
    )
    request = make_request(replace(shape, qk_channels=width, kv_size=grid.size), score, key_mask, q, k, v)
    out = choose("dense", _kernels(call), request, kernel, who="full").run(call)
    return torch.unflatten(out, 3, shape.q_size)


def dense_weights(
    q: Tensor,
    k: Tensor,
    queries: Tensor,
    *,
    score: Score = "dot",
    scale: float | None = None,
    patch_size: int = 1,
    key_stride: int = 1,
    keys: KeyPlaces = "all",
    causal: bool = False,
    key_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Which keys a few query pixels attend to, and how much. Arguments as in `dense_attention`.

    Args:
        queries: (Q, 2) long, rows and cols in the query map.

    Returns:
        Flat key pixels (B, G, Q, keys) and their weights, of the same shape.
    """
    shape = read_shape("full", q, k, key_mask=key_mask)
    _check_options(shape, score, scale, patch_size, causal)
    grid = key_grid("full", shape.kv_size, patch_size, key_stride, keys)
    pixels = grid.pixels(q.device)
    with no_autocast(q.device), exact_products():
        logits = _point_scores(q, k, queries, grid, patch_size, score)
        logits = logits * default_scale(scale, shape.qk_channels * patch_size**2, score)  # (B, G, Q, keys)
        allowed = None if key_mask is None else grid.of(key_mask).flatten(2).unsqueeze(2)
        if causal:
            earlier = pixels <= (queries[:, :1] * shape.q_size.cols + queries[:, 1:])
            allowed = earlier if allowed is None else allowed & earlier
        return pixels.expand(logits.shape), masked_softmax(logits, allowed)


def _point_scores(q: Tensor, k: Tensor, queries: Tensor, grid: KeyGrid, patch_size: int, score: Score) -> Tensor:
    """Scores of a few queries with all keys, patches as convolution kernels: (B, G, Q, keys)."""
    batch, heads, channels = k.shape[:3]
    q, k, half = at_least_float32(q), at_least_float32(k), patch_size // 2
    points = patch_points(q, queries, patch_size)  # (B, G, D * p * p, Q)
    border = half - grid.first
    if score == "cosine":
        points = points / points.norm(dim=2, keepdim=True).clamp_min(SHORTEST)
    if score in ("cosine", "unit_key"):
        lengths = grid.of(patch_length(k, patch_size)).flatten(3)  # (B, G, 1, keys)
    padded = F.pad(k, (border,) * 4)
    if score == "l2":
        centre = k.mean((3, 4), keepdim=True)
        padded = padded - centre
        points = points - centre.flatten(3).repeat_interleave(patch_size**2, 2)
    taps = points.transpose(2, 3).reshape(-1, channels, patch_size, patch_size)  # (B * G * Q, D, p, p)
    products = F.conv2d(padded.flatten(0, 2).unsqueeze(0), taps, stride=grid.step, groups=batch * heads)
    products = products.view(batch, heads, -1, grid.size.area)
    if score == "l2":
        ones = torch.ones_like(padded[:1, 0, :, :patch_size, :patch_size])
        squares = F.conv2d(padded.flatten(0, 1).square(), ones, stride=grid.step).view(batch, heads, 1, -1)
        return 2 * products - squares - points.square().sum(2).unsqueeze(3)
    return products if score == "dot" else products / lengths


def dense_logits(q: Tensor, k: Tensor, score: Score, scale: float) -> Tensor:
    """Scores of vectors with vectors, "dot" or "l2": (..., D, Q), (..., D, K) -> (..., Q, K), in at least float32."""
    q, k = at_least_float32(q), at_least_float32(k)
    product = q.transpose(-1, -2) @ k  # (..., Q, K)
    if score == "dot":
        return scale * product
    return scale * (2 * product - q.square().sum(-2).unsqueeze(-1) - k.square().sum(-2).unsqueeze(-2))


def _check_options(shape: AttentionShape, score: str, scale: float | None, patch_size: int, causal: bool) -> None:
    check_score("full", score)
    check_scale("full", scale)
    flag("full", "causal", causal)
    if causal and shape.q_size != shape.kv_size:
        raise ValueError(
            f"full: causal attention needs maps of one size; the query map is {shape.q_size}, the key map "
            f"{shape.kv_size}."
        )
    if causal and patch_size != 1:
        raise ValueError(
            f"full: causal attention needs patch_size=1, for a patch reaches past its centre; got {patch_size}."
        )


def _reference(call: DenseCall) -> Tensor:
    with no_autocast(call.q.device):
        q, k, v, score = call.vectors()
        weights = masked_softmax(dense_logits(q, k, score, call.scale), call.allowed())  # (B, G, Q, K)
        return (at_least_float32(v) @ weights.transpose(2, 3)).to(q.dtype)  # (B, G, E, Q)


def _sdpa(call: DenseCall) -> Tensor:
    with no_autocast(call.q.device):  # it would round |k|^2
        q, k, v, score = call.vectors()
        scale, channels = call.scale, v.shape[2]
        if score == "l2":
            q, k = _fold_distance(q, k)
            scale = 2 * scale
        width = k.shape[2] if q.device.type == "cpu" else -(-k.shape[2] // 8) * 8
        # the CPU's flash kernel wants one width; the others want multiples of 8
        if score == "l2" or q.device.type == "cpu":
            width = max(width, channels)
            q, k, v = (F.pad(x, (0, 0, 0, width - x.shape[2])) for x in (q, k, v))
        q, k, v = (x.transpose(2, 3).contiguous() for x in (q, k, v))  # (B, G, N, channels)
        if call.key_mask is None:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=call.causal, scale=scale)
        else:
            allowed = call.key_mask.flatten(2).unsqueeze(2)  # (B, 1, 1, K)
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


def _chunked(call: DenseCall) -> Tensor:
    batch, heads = call.q.shape[:2]
    allowed = None if call.key_mask is None else call.key_mask.flatten(1).repeat_interleave(heads, 0)  # (B*G, K)
    if call.patch_size > 1:
        q, k, v = call.q.flatten(0, 1), call.k.flatten(0, 1), call.v.flatten(0, 1).flatten(2)
        out = patch_attention(q, k, v, call.grid, call.patch_size, call.score, call.scale, allowed)
        return torch.unflatten(out, 0, (batch, heads))
    q, k, v, score = call.vectors()
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    order = call.grid.pixels(call.q.device) if call.causal else None
    out = chunked_attention(q, k, v, score, call.scale, allowed, order)
    return torch.unflatten(out, 0, (batch, heads))


def _boxes(call: DenseCall) -> Tensor:
    return box_attention(call.q, call.k, call.v, call.grid, call.patch_size, call.score, call.scale, call.key_mask)


def _against_boxes(request: Request) -> list[str]:
    if request.device.type == "cpu":
        return []
    return ["its many small steps are for a CPU"]


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


def _kernels(call: DenseCall) -> tuple[Kernel, ...]:
    """`KERNELS`, with what this call has against them beside its shapes."""

    def against(request: Request) -> list[str]:
        reasons = _against_sdpa(request)
        if call.patch_size > 1:
            boxes = call.grid.step == 1 and request.device.type == "cpu"
            reasons += against_vectors(request.shape, request.dtype.itemsize, boxes)
        if call.causal and (call.key_mask is not None or not call.grid.whole):
            reasons.append("it would hold the causal mask of every pair of pixels")
        return reasons

    def against_boxes(request: Request) -> list[str]:
        reasons = _against_boxes(request)
        if call.patch_size == 1:
            reasons.append("it is for patches")
        if call.grid.step > 1:
            reasons.append("it cannot leave out rows and cols of keys")
        return reasons

    sdpa, boxes, *others = KERNELS
    return replace(sdpa, reasons_against=against), replace(boxes, reasons_against=against_boxes), *others


def against_vectors(shape: AttentionShape, itemsize: int, boxes: bool) -> list[str]:
    """What speaks against giving SDPA patches as vectors.

    Args:
        shape: the call, with `qk_channels` the length of a vector.
        itemsize: bytes of an entry.
        boxes: whether the boxes kernel could run instead.
    """
    each = (shape.q_size.area + shape.kv_size.area) * shape.qk_channels * itemsize
    size = shape.batch * shape.heads * each
    if size > SDPA_VECTOR_BYTES:
        return [f"it would hold {size >> 20} MiB of patches as vectors"]
    if boxes and each > SDPA_FAST_BYTES * torch.get_num_threads():
        return [f"with {each >> 20} MiB of patches as vectors for each map, the boxes kernel is faster"]
    return []


KERNELS = (
    Kernel("sdpa", _sdpa, _against_sdpa),
    Kernel("boxes", _boxes, _against_boxes),
    Kernel("chunked", _chunked, _anywhere),
    Kernel("reference", _reference, _anywhere, double_backward=True),
)
