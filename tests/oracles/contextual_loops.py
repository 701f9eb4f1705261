"""Contextual attention and the network around it, one number at a time in float64, written from the released layer's
description: the oracle of `saccade.attention.contextual` and `saccade.models.inpainting`. It shares no code with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F


def _at(plane: Tensor, row: int, col: int) -> Tensor:
    """(C,) of a map (C, Y, X), zeros outside."""
    inside = 0 <= row < plane.shape[1] and 0 <= col < plane.shape[2]
    return plane[:, row, col] if inside else torch.zeros(plane.shape[0], dtype=plane.dtype)


def patch(plane: Tensor, row: int, col: int, side: int) -> Tensor:
    """The patch around a pixel, zeros outside: (C * side * side,)."""
    half = side // 2
    reach = range(-half, side - half)
    return torch.cat([_at(plane, row + down, col + right) for down in reach for right in reach])


def scores(queries: Tensor, keys: Tensor, side: int) -> list[list[float]]:
    """Products of query patches with key patches over sqrt(sum(k^2 + 1e-4)), [key][query], row by row."""
    found = []
    places = [(row, col) for row in range(queries.shape[1]) for col in range(queries.shape[2])]
    for row in range(keys.shape[1]):
        for col in range(keys.shape[2]):
            key = patch(keys, row, col, side)
            length = math.sqrt(float((key * key + 1e-4).sum()))
            found.append([float((patch(queries, *place, side) * key).sum()) / length for place in places])
    return found


def _along(matrix: list[list[float]], count: int) -> list[list[float]]:
    keys, queries, reach = len(matrix), len(matrix[0]), count // 2
    return [
        [
            sum(
                matrix[key + step][query + step]
                for step in range(-reach, reach + 1)
                if 0 <= key + step < keys and 0 <= query + step < queries
            )
            for query in range(queries)
        ]
        for key in range(keys)
    ]


def _turned(rows: int, cols: int) -> list[int]:
    """Where the pixels of a map that is read column by column stand when it is read row by row."""
    return [row * cols + col for col in range(cols) for row in range(rows)]


def fuse(matrix: list[list[float]], key_size: tuple[int, int], query_size: tuple[int, int], count: int) -> Tensor:
    """Add neighbours along the rows' scan line, then along the columns': (keys, queries), row by row."""
    matrix = _along(matrix, count)
    keys, queries = _turned(*key_size), _turned(*query_size)
    turned = _along([[matrix[key][query] for query in queries] for key in keys], count)
    back = torch.zeros(len(keys), len(queries), dtype=torch.float64)
    for place, key in enumerate(keys):
        for other, query in enumerate(queries):
            back[key, query] = turned[place][other]
    return back


def usable(hole: Tensor, rate: int, window: int) -> list[bool]:
    """Which sampled pixels of a mask (Y, X), True = hole, have no hole in the window around them, row by row."""
    sampled = hole[::rate, ::rate]
    rows, cols = sampled.shape
    half = window // 2
    return [
        not any(
            bool(sampled[y, x])
            for y in range(max(0, row - half), min(rows, row + half + 1))
            for x in range(max(0, col - half), min(cols, col + half + 1))
        )
        for row in range(rows)
        for col in range(cols)
    ]


def attend(
    plane: Tensor,
    hole: Tensor,
    *,
    rate: int = 2,
    side: int = 3,
    scale: float = 10.0,
    count: int = 3,
    window: int = 3,
    drop: bool = False,
) -> Tensor:
    """The released layer on one map (C, Y, X) and its mask (Y, X), True = hole, with f = b."""
    plane = plane.double()
    small = plane[:, ::rate, ::rate]
    rows, cols = small.shape[1:]
    fused = fuse(scores(small, small, side), (rows, cols), (rows, cols), count)
    free = usable(hole, rate, window)
    out = torch.zeros_like(plane)
    for query in range(rows * cols):
        logits = [scale * float(fused[key, query]) * free[key] for key in range(rows * cols)]
        taken = [key for key in range(rows * cols) if free[key] or not drop]
        top = max(logits[key] for key in taken)
        total = sum(math.exp(logits[key] - top) for key in taken)
        for key in (key for key in taken if free[key]):
            weight = math.exp(logits[key] - top) / total
            _paste(out, plane, query, key, cols, rate, weight)
    return out


def _paste(out: Tensor, plane: Tensor, query: int, key: int, cols: int, rate: int, weight: float) -> None:
    """Add a quarter of the patch of side 2 * rate around a key at the query's place; the pixel itself with rate 1."""
    (y, x), (to_y, to_x) = divmod(key, cols), divmod(query, cols)
    if rate == 1:
        out[:, to_y, to_x] += weight * plane[:, y, x]
        return
    for down in range(-(rate // 2), 2 * rate - rate // 2):
        for right in range(-(rate // 2), 2 * rate - rate // 2):
            row, col = to_y * rate + down, to_x * rate + right
            if 0 <= row < out.shape[1] and 0 <= col < out.shape[2]:
                out[:, row, col] += weight / 4 * _at(plane, y * rate + down, x * rate + right)


def nearest_known(plane: Tensor, hole: Tensor, *, matches: int, side: int, scale: float = 1.0) -> Tensor:
    """PSAL's masked layer with an exact search: hole pixels read the centres of their nearest known patches by l2."""
    plane = plane.double()
    rows, cols = hole.shape
    out = plane.clone()
    known = [(y, x) for y in range(rows) for x in range(cols) if not bool(hole[y, x])]
    for y in range(rows):
        for x in range(cols):
            if not bool(hole[y, x]):
                continue
            mine = patch(plane, y, x, side)
            costs = sorted((float((mine - patch(plane, *key, side)).square().sum()), key) for key in known)[:matches]
            weights = [math.exp(-scale * (cost - costs[0][0])) for cost, _ in costs]
            out[:, y, x] = sum(
                weight / sum(weights) * plane[:, row, col]
                for weight, (_, (row, col)) in zip(weights, costs, strict=True)
            )
    return out


# Layers of both stages: name, kernel, stride, dilation, whether the map is doubled first.
_COARSE = (
    ("conv1", 5, 1, 1, False),
    ("conv2_downsample", 3, 2, 1, False),
    ("conv3", 3, 1, 1, False),
    ("conv4_downsample", 3, 2, 1, False),
    ("conv5", 3, 1, 1, False),
    ("conv6", 3, 1, 1, False),
    ("conv7_atrous", 3, 1, 2, False),
    ("conv8_atrous", 3, 1, 4, False),
    ("conv9_atrous", 3, 1, 8, False),
    ("conv10_atrous", 3, 1, 16, False),
    ("conv11", 3, 1, 1, False),
    ("conv12", 3, 1, 1, False),
    ("conv13", 3, 1, 1, True),
    ("conv14", 3, 1, 1, False),
    ("conv15", 3, 1, 1, True),
    ("conv16", 3, 1, 1, False),
    ("conv17", 3, 1, 1, False),
)
_MERGED = tuple((f"all{name}", *rest) for name, *rest in _COARSE[10:])
_ATTENDING = tuple((f"pm{name}", *rest) for name, *rest in _COARSE[:6])
_AFTER = (("pmconv9", 3, 1, 1, False), ("pmconv10", 3, 1, 1, False))


def complete(
    weights: Mapping[str, Tensor], image: Tensor, mask: Tensor, attention: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Both stages' pictures (3, Y, X) of a picture (3, Y, X) and its mask (Y, X), 1 = hole; sides multiples of 8.

    `attention` takes the small map (C, y, x) and its holes (y, x) bool.
    """
    weights = {name: weight.double() for name, weight in weights.items()}
    image, mask = image.double(), mask.double()
    frame = torch.stack([torch.ones_like(mask), mask])
    masked = image * (1 - mask)

    def run(prefix: str, layers: tuple[tuple[str, int, int, int, bool], ...], x: Tensor) -> Tensor:
        for name, kernel, stride, dilation, doubled in layers:
            if doubled:
                x = x.repeat_interleave(2, 1).repeat_interleave(2, 2)
            weight, bias = (weights[f"{prefix}.{name}.conv.{what}"] for what in ("weight", "bias"))
            x = F.conv2d(x[None], weight, bias, stride, dilation * (kernel // 2), dilation)[0]
            if name == "pmconv6":
                x = x.clamp_min(0)
            elif not name.endswith("conv17"):
                x = torch.where(x > 0, x, x.exp() - 1)
        return x

    coarse = run("coarse_generator", _COARSE, torch.cat([masked, frame])).clamp(-1, 1)
    begun = torch.cat([coarse * mask + masked, frame])
    plain = run("fine_generator", _COARSE[:10], begun)
    attending = run("fine_generator", _ATTENDING, begun)
    attending = run("fine_generator", _AFTER, attention(attending, mask[::4, ::4] > 0))
    fine = run("fine_generator", _MERGED, torch.cat([plain, attending])).clamp(-1, 1)
    return coarse, fine
