"""Your Local GAN's masks cell by cell and its attention as a masked dense product: written apart from the library."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

RULES = {  # query, key, number of tokens, stride
    "ltr1": lambda q, k, n, s: q // s == k // s and k <= q,
    "rtl1": lambda q, k, n, s: q // s == k // s and k >= q,
    "ltr2": lambda q, k, n, s: k == q or k == min(k // s * s + s - 1, n - 1),
    "rtl2": lambda q, k, n, s: k == q or k % s == 0,
    "fixed1": lambda q, k, n, s: q // s == k // s and k <= q,
    "fixed2": lambda q, k, n, s: k == q or (k < q and k == min(k // s * s + s - 1, n - 1)),
    "strided1": lambda q, k, n, s: 0 <= q - k < s,
    "strided2": lambda q, k, n, s: (q - k) % s == 0,
    "strided2_causal": lambda q, k, n, s: k <= q and (q - k) % s == 0,
    "strided1_two_sided": lambda q, k, n, s: abs(q - k) < s,
    "strided1_circular": lambda q, k, n, s: (q - k) % n < s or (n % s > 0 and q < s and n - k < s),
    "dense": lambda q, k, n, s: True,
}


@functools.cache
def token_mask(name: str, n: int) -> Tensor:
    """Which token may attend which of n, by arXiv 1911.12287, Figure 2, and the released masks: (n, n) bool."""
    rule, length = RULES[name], math.isqrt(n)
    return torch.tensor([[rule(q, k, n, length) for k in range(n)] for q in range(n)])


def esa_cells(rows: int, cols: int) -> list[int]:
    """Cells by Manhattan distance from the corner, ties by the smaller row."""
    cells = sorted((i + j, i, j) for i in range(rows) for j in range(cols))
    return [i * cols + j for _, i, j in cells]


def hilbert_cells(side: int) -> list[int]:
    """A square of 2^m x 2^m cells along the curve, by its rewriting rules, starting downwards as the released order."""
    level = side.bit_length() - 1
    walk, x, y = [0], 0, 0
    dx, dy = (1, 0) if level % 2 == 0 else (0, 1)

    def step() -> None:
        nonlocal x, y
        x, y = x + dx, y + dy
        walk.append(x * side + y)

    def turn(sign: int) -> None:
        nonlocal dx, dy
        dx, dy = -sign * dy, sign * dx

    def draw(level: int, sign: int) -> None:
        if level == 0:
            return
        turn(sign)
        draw(level - 1, -sign)
        step()
        turn(-sign)
        draw(level - 1, sign)
        step()
        draw(level - 1, sign)
        turn(-sign)
        step()
        draw(level - 1, -sign)
        turn(sign)

    draw(level, 1 if level % 2 == 0 else -1)
    return walk


def key_cell(mapping: str, r: int, c: int, q_size: tuple[int, int], kv_size: tuple[int, int]) -> int:
    """The key cell whose row of the mask the query at (r, c) takes."""
    if mapping == "released":
        return (r * q_size[1] + c) % (kv_size[0] * kv_size[1])
    if mapping == "tile":
        return (r % kv_size[0]) * kv_size[1] + c % kv_size[1]
    return math.floor(r * kv_size[0] / q_size[0]) * kv_size[1] + math.floor(c * kv_size[1] / q_size[1])


def mask_loops(
    name: str, q_size: tuple[int, int], kv_size: tuple[int, int], order: str = "esa", mapping: str = "released"
) -> Tensor:
    """(n_q, n_k) bool."""
    n = kv_size[0] * kv_size[1]
    cells = {"esa": esa_cells(*kv_size), "row": list(range(n))}[order]
    rank = [cells.index(cell) for cell in range(n)]
    grid = token_mask(name, n)[rank][:, rank]
    rows = [key_cell(mapping, r, c, q_size, kv_size) for r in range(q_size[0]) for c in range(q_size[1])]
    return grid[rows]


def masked_dense(q: Tensor, k: Tensor, v: Tensor, masks: Tensor, score: str = "dot", scale: float = 1.0) -> Tensor:
    """(B, G, D, Yq, Xq), (B, G, D, Yk, Xk), (B, G, E, Yk, Xk), masks (B or 1, G, n_q, n_k) -> (B, G, E, Yq, Xq).

    Scores: "dot"; "l2", minus the squared distance; "cosine", of unit vectors; "unit_key", of the key's unit vector.
    """
    a, b = q.flatten(3), k.flatten(3)
    if score == "cosine":
        a = a / a.square().sum(2, keepdim=True).sqrt()
    if score in ("cosine", "unit_key"):
        b = b / b.square().sum(2, keepdim=True).sqrt()
    if score == "l2":
        logits = -(a.unsqueeze(4) - b.unsqueeze(3)).square().sum(2)
    else:
        logits = torch.einsum("bgdq,bgdk->bgqk", a, b)
    numbers = torch.exp(scale * (logits - logits.amax(3, keepdim=True).detach())) * masks
    total = numbers.sum(3, keepdim=True)
    weights = numbers / torch.where(total == 0, torch.ones_like(total), total)
    return torch.einsum("bgqk,bgek->bgeq", weights, v.flatten(3)).unflatten(3, q.shape[3:])
