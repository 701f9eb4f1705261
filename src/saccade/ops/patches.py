"""Queries and keys compared as p x p patches: the vectors they stand for, and their lengths.

One definition for every backend: the vector of a pixel is the p x p neighbourhood around it, channel by channel, with
zeros outside the map. A key mask says which patches may be attended by their centres alone.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from saccade.geometry import whole_number
from saccade.ops.dispatch import Score
from saccade.ops.inputs import at_least_float32

# Shortest length that a patch is divided by, as in contextual attention and CSNLN.
SHORTEST = 1e-4


def check_patch_size(op: str, patch_size: int) -> int:
    """The side of a patch, which must have a centre: an odd whole number of at least 1."""
    side = whole_number(patch_size)
    if side is None or side < 1 or side % 2 == 0:
        raise ValueError(
            f"{op}: patch_size must be an odd number of pixels, 1 or more; got {patch_size!r}. "
            f"Valid here: {nearest_odd(patch_size)}."
        )
    return side


def nearest_odd(value: object) -> str:
    """The odd sizes around a wrong one, for messages."""
    side = whole_number(value)
    if side is not None and side > 1:
        return f"{side - 1} or {side + 1}"
    return "1, 3, 5, 7"


def patchify(maps: Tensor, patch_size: int) -> Tensor:
    """Give every pixel its patch as channels: (B, G, C, Y, X) -> (B, G, C * p * p, Y, X), zeros outside the map.

    Channel c * p * p + row * p + col is channel c at that place of the patch. With p = 1 it is the map itself; else it
    holds p * p times its memory, which the ops that can do without do not.
    """
    if patch_size == 1:
        return maps
    batch, heads, channels, rows, cols = maps.shape
    unfolded = F.unfold(maps.flatten(0, 1), patch_size, padding=patch_size // 2)  # (B * G, C * p * p, Y * X)
    return unfolded.view(batch, heads, channels * patch_size**2, rows, cols)


def box_sum(maps: Tensor, patch_size: int) -> Tensor:
    """Sum over each pixel's p x p neighbourhood, zeros outside: (..., Y, X) -> (..., Y, X)."""
    if patch_size == 1:
        return maps
    planes = maps.reshape(-1, 1, *maps.shape[-2:])
    return (F.avg_pool2d(planes, patch_size, 1, patch_size // 2) * patch_size**2).view(maps.shape)


def patch_length(maps: Tensor, patch_size: int) -> Tensor:
    """Length of each pixel's patch, at least SHORTEST, in at least float32: (B, G, C, Y, X) -> (B, G, 1, Y, X)."""
    square = at_least_float32(maps).square().sum(2, keepdim=True)
    return box_sum(square, patch_size).clamp_min(SHORTEST**2).sqrt()


def as_vectors(q: Tensor, k: Tensor, patch_size: int, score: Score) -> tuple[Tensor, Tensor, Score]:
    """Patches as channels, scaled so that "dot" or "l2" between the results is the score that was asked for.

    "cosine" divides both patches by their lengths, "unit_key" the key's alone.
    """
    if score in ("cosine", "unit_key"):
        lengths = patch_length(k, patch_size), patch_length(q, patch_size) if score == "cosine" else None
        k = patchify(k, patch_size) / lengths[0].to(k.dtype)
        q = patchify(q, patch_size)
        return (q if lengths[1] is None else q / lengths[1].to(q.dtype)), k, "dot"
    return patchify(q, patch_size), patchify(k, patch_size), score


def saved_for_vectors(patch_size: int, score: Score, channels: int, queries: int, keys: int) -> int:
    """Entries, beside the maps and the result, that autograd keeps of `as_vectors` on maps of so many pixels.

    Those are lengths, and of patches that are divided by theirs the undivided ones.
    """
    divided = {"cosine": queries + keys, "unit_key": keys}.get(score, 0)
    return 2 * divided if patch_size == 1 else (channels * patch_size**2 + 3) * divided
