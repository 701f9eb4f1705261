"""Linear attention on patches without unfolding them, by two identities.

With phi(q) and phi(k) the feature maps, padded with phi(0) = 1, and p x p patches of them as vectors of D * p * p:
sum_k phi(k) v^T is the weight gradient of a p x p convolution (input phi(k), output gradient v), and phi(q) times it is
that convolution with this weight. A value channel of ones gives the denominator. Nothing of n * D * p * p is stored;
what stays for backward is q, k, v, the weight (E + 1) * D * p * p, the output and the denominator.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from saccade.geometry import Size
from saccade.ops.inputs import at_least_float32, exact_products, no_autocast

# The papers' code adds it to the denominator (fast-transformers, attention/linear_attention.py).
EPS = 1e-6
# Ours: map area from which products over rows beat the CPU's convolutions, and entries that they hold at a time.
ROW_AREA = 32 * 32
ROW_ENTRIES = 2**19
# Channels that the CPU's convolutions take at once.
BLOCK = 16


def features(maps: Tensor) -> Tensor:
    """elu(x) + 1, in at least float32."""
    return F.elu(at_least_float32(maps)) + 1


def padded_features(maps: Tensor, patch_size: int) -> Tensor:
    """`features` with the ones that zeros outside the map become: (..., Y, X) -> (..., Y + p - 1, X + p - 1)."""
    return F.pad(features(maps), [patch_size // 2] * 4, value=1.0)


def convolution(q: Tensor, k: Tensor, v: Tensor, patch_size: int, key_mask: Tensor | None) -> Tensor:
    """Linear attention by convolutions: see `saccade.ops.linear_attention`."""
    mask = None if key_mask is None else key_mask.repeat_interleave(q.shape[1], 0)  # (B*G, 1, Yk, Xk)
    apply = cast(Any, _LinearAttention).apply
    flat = (maps.flatten(0, 1) for maps in (q, k, v))  # (B*G, channels, Y, X)
    return torch.unflatten(cast(Tensor, apply(*flat, mask, patch_size)), 0, q.shape[:2])


class _LinearAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, patch_size: int) -> Tensor:
        channels = v.shape[1]
        centre = _centre(v)
        weight = weight_of(padded_features(k, patch_size), _values(v, centre, mask), patch_size)
        products = correlate(padded_features(q, patch_size), weight)
        bottom = products[:, channels:] + EPS
        out = torch.addcmul(products[:, :channels], centre, products[:, channels:]).div_(bottom)
        ctx.save_for_backward(q, k, v, mask, weight, bottom, out)
        ctx.patch_size = patch_size
        return out.to(v.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, weight, bottom, out = ctx.saved_tensors
        with no_autocast(q.device):
            if torch.is_grad_enabled():  # asked for gradients of these gradients
                wanted = [x for x, need in zip((q, k, v), ctx.needs_input_grad, strict=False) if need]
                again = _differentiable(q, k, v, mask, ctx.patch_size)
                found = iter(torch.autograd.grad(again, wanted, grad, create_graph=True))
                return *(next(found) if need else None for need in ctx.needs_input_grad[:3]), None, None
            grads = _gradients(q, k, v, mask, ctx.patch_size, weight, bottom, out, at_least_float32(grad))
        return *grads, None, None


def _differentiable(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, patch_size: int) -> Tensor:
    """The same output by operations that autograd differentiates any number of times."""
    with exact_products():
        values = torch.cat([at_least_float32(v), torch.ones_like(at_least_float32(v[:, :1]))], 1)
        values = values if mask is None else values * mask
        weight = _convolution_weight(padded_features(k, patch_size), values, patch_size)
        products = _convolve(padded_features(q, patch_size), weight)
    return (products[:, :-1] / (products[:, -1:] + EPS)).to(v.dtype)


def _gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    patch_size: int,
    weight: Tensor,
    bottom: Tensor,
    out: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, (B*G, channels, Y, X) each."""
    centre = _centre(v)
    # of the products, (B*G, E + 1, Yq, Xq)
    slope = torch.cat([grad, (grad * (centre - out)).sum(1, keepdim=True)], 1).div_(bottom)
    dq = spread(slope, weight).mul_(_feature_slope(q)).to(q.dtype)
    dweight = weight_of(padded_features(q, patch_size), slope, patch_size)
    del slope
    values = _values(v, centre, mask)
    dk = spread(values, dweight).mul_(_feature_slope(k)).to(k.dtype)
    del values
    dv = correlate(padded_features(k, patch_size), dweight[:, :-1])
    if mask is not None:
        dv *= mask
    return dq, dk, dv.to(v.dtype)


def _feature_slope(maps: Tensor) -> Tensor:
    """The derivative of elu + 1: 1 above 0, exp(x) below, which is the feature itself."""
    return features(maps).clamp_max_(1.0)


def _centre(v: Tensor) -> Tensor:
    """The mean value, (N, E, 1, 1). Values are moved by it, and the output back.

    Weights are nearly uniform, so outputs lie near it, and gradients of q and k are small differences of sums that
    would lose their digits otherwise.
    """
    return at_least_float32(v).mean((2, 3), keepdim=True)


def _values(v: Tensor, centre: Tensor, mask: Tensor | None) -> Tensor:
    """Values less their centre and a channel of ones, zeros where masked: (N, E, Y, X) -> (N, E + 1, Y, X)."""
    values = centre.new_ones(len(v), v.shape[1] + 1, *v.shape[2:])
    torch.sub(v, centre, out=values[:, :-1])
    return values if mask is None else values.mul_(mask)


def correlate(maps: Tensor, weight: Tensor) -> Tensor:
    """A convolution for each batch entry: (N, C, Y+p-1, X+p-1), (N, F, C, p, p) -> (N, F, Y, X)."""
    patch_size, (outs, channels) = weight.shape[-1], weight.shape[1:3]
    if patch_size == 1:
        return torch.unflatten(weight[..., 0, 0] @ maps.flatten(2), 2, maps.shape[2:])
    if not _by_rows(maps):
        with exact_products():
            return _convolve(maps, weight)
    size = (maps.shape[2] - patch_size + 1, maps.shape[3] - patch_size + 1)
    total = maps.new_zeros(len(maps), outs, *size)
    some, few = _blocks(outs, channels, maps.dtype)
    for n, (entry, matrix) in enumerate(zip(maps, weight, strict=True)):
        if some:
            total[n, :some] = F.conv2d(entry[None, :few], matrix[:some, :few])[0]
            if few < channels:
                _add_row_products(total[n, :some], entry[few:], matrix[:some, few:])
        if some < outs:
            _add_row_products(total[n, some:], entry, matrix[some:])
    return total


def weight_of(maps: Tensor, outs: Tensor, patch_size: int) -> Tensor:
    """Weight gradient of `correlate`: (N, C, Y+p-1, X+p-1), (N, F, Y, X) -> (N, F, C, p, p)."""
    if patch_size == 1:
        return (outs.flatten(2) @ maps.flatten(2).transpose(1, 2))[..., None, None]
    if not _by_rows(maps):
        with exact_products():
            return _convolution_weight(maps, outs, patch_size)
    weight = maps.new_empty(len(maps), outs.shape[1], maps.shape[1], patch_size, patch_size)
    some, few = _blocks(outs.shape[1], maps.shape[1], maps.dtype)
    for entry, given, matrix in zip(maps, outs, weight, strict=True):
        if some:
            matrix[:some, :few] = _convolution_weight(entry[None, :few], given[None, :some], patch_size)[0]
            if few < len(entry):
                matrix[:some, few:] = _row_weight(entry[few:], given[:some], patch_size)
        if some < len(given):
            matrix[some:] = _row_weight(entry, given[some:], patch_size)
    return weight


def product_flops(channels: int, outs: int, size: Size, patch_size: int) -> int:
    """FLOPs of `correlate` from C to F channels, and of its weight gradient, for float32 maps of Y x X on the CPU."""
    halo = patch_size - 1
    some, few = outs, channels
    if patch_size > 1 and (size.rows + halo) * (size.cols + halo) >= ROW_AREA:
        some, few = _blocks(outs, channels, torch.float32)
    by_rows = (outs * channels - some * few) * size.rows * (size.cols + halo)
    return 2 * patch_size**2 * (some * few * size.area + by_rows)


def _add_row_products(total: Tensor, maps: Tensor, weight: Tensor) -> None:
    """Add to (F, Y, X) what `correlate` makes of (C, Y+p-1, X+p-1) and (F, C, p, p), by products over rows."""
    (outs, channels, patch_size), (rows, cols), width = weight.shape[:3], total.shape[1:], maps.shape[2]
    strips = _strips(maps, patch_size)
    # (p * F, p * C): rows (place across, output channel), columns (place down, channel)
    matrix = weight.permute(3, 0, 2, 1).reshape(patch_size * outs, patch_size * channels)
    for span in _spans(rows, width * patch_size * (outs + channels)):
        some = strips[span]
        shifts = torch.bmm(matrix.expand(len(some), -1, -1), some).view(len(some), patch_size, outs, width)
        target = total[:, span].transpose(0, 1)
        for across in range(patch_size):
            target += shifts[:, across, :, across : across + cols]


def _row_weight(maps: Tensor, outs: Tensor, patch_size: int) -> Tensor:
    """`weight_of` for one entry by products over rows: (C, Y+p-1, X+p-1), (F, Y, X) -> (F, C, p, p)."""
    (channels, _, width), (out_channels, rows, cols) = maps.shape, outs.shape
    strips = _strips(maps, patch_size)
    spans = _spans(rows, width * patch_size * (out_channels + channels))
    total = maps.new_zeros(patch_size * channels, patch_size * out_channels)
    shifted = maps.new_zeros(spans[0].stop, patch_size, out_channels, width)
    for span in spans:
        some = shifted[: span.stop - span.start]
        lines = outs[:, span].transpose(0, 1)  # (R, F, X)
        for across in range(patch_size):
            some[:, across, :, across : across + cols] = lines
        total += torch.bmm(strips[span], some.flatten(1, 2).transpose(1, 2)).sum(0)
    return total.view(patch_size, channels, patch_size, out_channels).permute(3, 1, 0, 2)


def spread(outs: Tensor, weight: Tensor) -> Tensor:
    """Gradient of `correlate`'s maps inside the padding: (N, F, Y, X), (N, F, C, p, p) -> (N, C, Y, X)."""
    padding = weight.shape[-1] // 2
    return correlate(F.pad(outs, [padding] * 4), weight.flip(3, 4).transpose(1, 2))


def _by_rows(maps: Tensor) -> bool:
    """Whether to choose between convolutions and rows: on the CPU, where maps are worth it."""
    return maps.device.type == "cpu" and maps.shape[2] * maps.shape[3] >= ROW_AREA


def _blocks(outs: int, channels: int, dtype: torch.dtype) -> tuple[int, int]:
    """Channels, output and input, that the CPU's convolution is fast for: whole blocks of 16, in float32.

    It rounds 17 channels up to 32, and in float64 unfolds the map; the other channels go by rows.
    """
    if dtype != torch.float32 or not bool(cast(Any, torch.backends.mkldnn).is_available()):
        return 0, 0
    some, few = outs // BLOCK * BLOCK, channels // BLOCK * BLOCK
    return (some, few) if some and few else (0, 0)


def _strips(maps: Tensor, patch_size: int) -> Tensor:
    """A view (Y, p * C, X+p-1) of a copy of (C, Y+p-1, X+p-1): the p rows of the map that an output row is made of."""
    channels, rows, width = maps.shape
    lines = maps.transpose(0, 1).contiguous()  # (Y+p-1, C, X+p-1)
    return lines.as_strided((rows - patch_size + 1, patch_size * channels, width), (channels * width, width, 1))


def _spans(rows: int, entries_per_row: int) -> list[slice]:
    step = max(1, min(rows, ROW_ENTRIES // entries_per_row))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _convolve(maps: Tensor, weight: Tensor) -> Tensor:
    count = maps.shape[0]
    joined = F.conv2d(maps.flatten(0, 1).unsqueeze(0), weight.flatten(0, 1), groups=count)
    return joined.view(count, weight.shape[1], *joined.shape[2:])


def _convolution_weight(maps: Tensor, outs: Tensor, patch_size: int) -> Tensor:
    count, channels = maps.shape[:2]
    size = (count * outs.shape[1], channels, patch_size, patch_size)
    some = maps.flatten(0, 1).unsqueeze(0), size, outs.flatten(0, 1).unsqueeze(0)
    joined: Tensor = cast(Any, conv2d_weight)(*some, groups=count)
    return joined.view(count, outs.shape[1], channels, patch_size, patch_size)
