"""CSNLN (Mei et al., arXiv 2006.01424) as published, on a state dict with the released names: the oracle of its tests.

Everything is written out: patches are cut one by one, weights are one dense matrix, and each query adds its patches to
the picture. Shares no code with the library. Sides must be multiples of the factor, as in the released code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MEAN = (0.4488, 0.4371, 0.4040)
RESIZES = {2: (6, 2, 2), 3: (9, 3, 3), 4: (6, 2, 2)}
State = dict[str, Tensor]


def below(state: State, prefix: str) -> State:
    return {name.removeprefix(f"{prefix}."): value for name, value in state.items() if name.startswith(f"{prefix}.")}


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x > 0, x, slope * x)


def act_conv(x: Tensor, state: State, prefix: str, **options: int) -> Tensor:
    part = below(state, prefix)
    return prelu(F.conv2d(x, part["0.weight"], part["0.bias"], **options), part["1.weight"])


def act_deconv(x: Tensor, state: State, prefix: str, stride: int, padding: int) -> Tensor:
    part = below(state, prefix)
    return prelu(F.conv_transpose2d(x, part["0.weight"], part["0.bias"], stride, padding), part["1.weight"])


def shrunk(x: Tensor, factor: int) -> Tensor:
    """Bilinear without antialiasing: the mean of the middle pixels of each block (one where the factor is odd)."""
    first = (factor - 1) // 2
    picks = [first] if factor % 2 else [first, first + 1]
    return sum(x[..., r::factor, c::factor] for r in picks for c in picks) / len(picks) ** 2


def patches_of(x: Tensor, side: int, step: int, margin: int) -> list[Tensor]:
    """(C, side, side) each, of one map (C, Y, X) with zeros around, row by row."""
    rows, cols = x.shape[1] // step, x.shape[2] // step
    padded = F.pad(x, (margin,) * 4)
    return [padded[:, r * step : r * step + side, c * step : c * step + side] for r in range(rows) for c in range(cols)]


def match_weights(q: Tensor, k: Tensor, patch: int = 3, scale: float = 10.0, best: int | None = None) -> Tensor:
    """(queries, keys): softmax of scale * <q, k / max(|k|, 1e-4)>, over the `best` keys of each query where given."""
    queries = torch.stack([p.flatten() for p in patches_of(q, patch, 1, patch // 2)])
    keys = torch.stack([p.flatten() for p in patches_of(k, patch, 1, patch // 2)])
    lengths = keys.square().sum(1).sqrt().clamp_min(1e-4)
    logits = scale * queries @ (keys / lengths[:, None]).T
    if best is not None:
        worst = logits.topk(best, 1).values[:, -1:]
        logits = logits.masked_fill(logits < worst, float("-inf"))
    return logits.softmax(1)


def pasted(weights: Tensor, values: Tensor, factor: int, q_size: tuple[int, int], divisor: float = 6.0) -> Tensor:
    """(C, s * Y, s * X): every query adds its mean of (3s)x(3s) patches of the values (C, s * Yk, s * Xk)."""
    patches = torch.stack(patches_of(values, 3 * factor, factor, factor))
    brought = torch.einsum("qk,kcab->qcab", weights, patches)
    rows, cols = q_size
    out = values.new_zeros(values.shape[0], (rows + 2) * factor, (cols + 2) * factor)
    for place, patch in enumerate(brought):
        top, left = place // cols * factor, place % cols * factor
        window = torch.zeros_like(out)
        window[:, top : top + 3 * factor, left : left + 3 * factor] = 1
        out = out.masked_scatter(window.bool(), out[:, top : top + 3 * factor, left : left + 3 * factor] + patch)
    return out[:, factor:-factor, factor:-factor] / divisor


def cross_scale(x: Tensor, state: State, factor: int, best: int | None = None) -> Tensor:
    """(B, C, Y, X) -> (B, C, s * Y, s * X)."""
    q, values = act_conv(x, state, "conv_match_1"), act_conv(x, state, "conv_assembly")
    k = act_conv(shrunk(x, factor), state, "conv_match_2")
    size = (x.shape[2], x.shape[3])
    return torch.stack(
        [pasted(match_weights(a, b, best=best), v, factor, size) for a, b, v in zip(q, k, values, strict=True)]
    )


def in_scale(x: Tensor, state: State) -> Tensor:
    q, k = (act_conv(x, state, name).flatten(2) for name in ("conv_match1", "conv_match2"))
    weights = torch.einsum("bcq,bck->bqk", q, k).softmax(2)
    values = act_conv(x, state, "conv_assembly").flatten(2)
    return torch.einsum("bqk,bck->bcq", weights, values).view(x.shape)


def projection(x: Tensor, state: State, scale: int) -> Tensor:
    """The mutual-projected fusion of both attentions."""
    _, stride, padding = RESIZES[scale]
    within = act_deconv(in_scale(x, below(state, "down_attention")), state, "upsample", stride, padding)
    across = cross_scale(x, below(state, "up_attention"), stride)
    body, difference = below(state, "encoder.body"), across - within
    inner = prelu(F.conv2d(difference, body["0.weight"], body["0.bias"], padding=1), body["1.weight"])
    return within + difference + F.conv2d(inner, body["2.weight"], body["2.bias"], padding=1)


def cell(x: Tensor, state: State, scale: int) -> tuple[Tensor, Tensor]:
    _, stride, padding = RESIZES[scale]
    up = projection(x, below(state, "multi_source_projection"), scale)
    error = x - act_conv(up, state, "down_sample_1", stride=stride, padding=padding)
    large = up + act_deconv(error, state, "error_encode", stride, padding)
    if scale == 4:
        up = projection(large, below(state, "multi_source_projection_2"), scale)
        error = x - act_conv(up, state, "down_sample_3", stride=4, padding=2)
        large = up + act_deconv(error, state, "error_encode_2", 4, 2)
        down = act_conv(large, state, "down_sample_4", stride=4, padding=2)
    else:
        down = act_conv(large, state, "down_sample_2", stride=stride, padding=padding)
    return act_conv(down, state, "post_conv", padding=1), large


def network(low: Tensor, state: State, scale: int, depth: int) -> Tensor:
    """(B, 3, Y, X) in [0, 1] -> (B, 3, scale * Y, scale * X)."""
    mean = torch.tensor(MEAN).to(low.dtype).view(1, 3, 1, 1)  # float32 numbers, as in a released file
    x = act_conv(act_conv(low - mean, state, "head.0", padding=1), state, "head.1", padding=1)
    larges = []
    for _ in range(depth):
        x, large = cell(x, below(state, "SEM"), scale)
        larges.append(large)
    return F.conv2d(torch.cat(larges, 1), state["tail.0.weight"], state["tail.0.bias"], padding=1) + mean
