"""Patch-based stochastic attention as plain loops: the oracle for `saccade.ops.psal` and its kernels.

Written from the description of the schedule (Cherel et al., arXiv 2202.03163, Algorithm 1, as refined in the docstrings
of the library's search and random numbers), sharing no code with it. One map at a time: q is (D, Yq, Xq), k is
(D, Yk, Xk), v is (E, Yk, Xk), in float64. Random numbers and positions are Python integers. Costs and read-outs are
differentiable tensor operations on one query at a time, so autograd gives the gradients.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

MODULUS = 2**32
Pixel = tuple[int, int]


def mix(x: int) -> int:
    x %= MODULUS
    x ^= x >> 16
    x = x * 0x7FEB352D % MODULUS
    x ^= x >> 15
    x = x * 0x846CA68B % MODULUS
    return x ^ (x >> 16)


def random_below(seed: int, head: int, pixel: int, number: int, bound: int) -> int:
    low, high = seed % MODULUS, seed // MODULUS % MODULUS
    state = mix(low + 0x9E3779B9 * (pixel + 1))
    return mix(state ^ ((number * 0x85EBCA6B + high + head * 0xC2B2AE35) % MODULUS)) * bound // MODULUS


def patch_of(maps: Tensor, pixel: Pixel, size: int) -> Tensor:
    """(C, p, p), zeros outside."""
    half = size // 2
    entries = [
        maps[:, row, col] if 0 <= row < maps.shape[1] and 0 <= col < maps.shape[2] else maps.new_zeros(maps.shape[0])
        for row in range(pixel[0] - half, pixel[0] + half + 1)
        for col in range(pixel[1] - half, pixel[1] + half + 1)
    ]
    return torch.stack(entries, 1)


def cost_of(query: Tensor, key: Tensor, score: str) -> Tensor:
    if score == "l2":
        return (query - key).square().sum()
    product = -(query * key).sum()
    if score in ("cosine", "unit_key"):
        product = product / key.square().sum().clamp_min(1e-8).sqrt()
    if score == "cosine":
        product = product / query.square().sum().clamp_min(1e-8).sqrt()
    return product


class Loops:
    """Search of one map."""

    def __init__(self, q, k, *, matches, patch_size, score="l2", border="zeros", allowed=None, seed=0, head=0):
        self.q_size, self.k_size = tuple(q.shape[1:]), tuple(k.shape[1:])
        self.matches, self.seed, self.head = matches, seed, head
        self.score = score
        ring = patch_size // 2 if border == "released" else 0
        self.queries = list(itertools.product(*(range(side) for side in self.q_size)))
        keys = itertools.product(*(range(side) for side in self.k_size))
        self.searched = {x for x in self.queries if self._inside(x, self.q_size, ring)}
        self.allowed = [y for y in keys if self._inside(y, self.k_size, ring) and (allowed is None or allowed[y])]
        self.is_allowed = set(self.allowed)
        self.q_patches = {x: patch_of(q, x, patch_size) for x in self.queries}
        self.k_patches = {y: patch_of(k, y, patch_size) for y in self.allowed}
        self.lists: dict[Pixel, list[tuple[float, Pixel]]] = {}

    @staticmethod
    def _inside(pixel, size, ring=0):
        return all(ring <= place < side - ring for place, side in zip(pixel, size, strict=True))

    def cost(self, x, y):
        return float(cost_of(self.q_patches[x], self.k_patches[y], self.score)) if x in self.searched else 0.0

    def draw(self, x, number, bound):
        return random_below(self.seed, self.head, x[0] * self.q_size[1] + x[1], number, bound)

    def start(self):
        for x in self.queries:
            ranks: list[int] = []
            for number in range(self.matches):
                rank = self.draw(x, number, len(self.allowed))
                while rank in ranks:
                    rank = (rank + 1) % len(self.allowed)
                ranks.append(rank)
            drawn = [(self.cost(x, self.allowed[rank]), self.allowed[rank]) for rank in ranks]
            self.lists[x] = sorted(drawn, key=lambda entry: entry[0])

    def offer(self, x, y):
        mine = self.lists[x]
        if x not in self.searched or y not in self.is_allowed or y in [key for _, key in mine]:
            return
        cost = self.cost(x, y)
        if cost < mine[-1][0]:
            mine[-1] = (cost, y)
            mine.sort(key=lambda entry: entry[0])

    def jump(self, iterations):
        self.start()
        longest = max(self.k_size)
        windows = int(math.log2(longest))
        for t in range(iterations):
            for step in (1, 2, 4, 8):
                best = {x: self.lists[x][0][1] for x in self.queries}
                for x in self.queries:
                    for di, dj in ((0, step), (step, 0), (0, -step), (-step, 0)):
                        near = (x[0] + di, x[1] + dj)
                        if near in self.searched:
                            self.offer(x, (best[near][0] - di, best[near][1] - dj))
            for x in self.queries:
                centre = self.lists[x][0][1]
                for z in range(windows):
                    reach = int(longest * 0.5**z)
                    number = self.matches + 2 * (t * windows + z)
                    row = centre[0] - reach + self.draw(x, number, 2 * reach)
                    col = centre[1] - reach + self.draw(x, number + 1, 2 * reach)
                    self.offer(x, (row, col))
        return self.result()

    def exact(self):
        self.start()
        for x in self.searched:
            found = sorted((self.cost(x, y), y) for y in self.allowed)
            self.lists[x] = found[: self.matches]
        return self.result()

    def result(self):
        """Flat keys and costs, (K, n_q) each."""
        keys = [[key[0] * self.k_size[1] + key[1] for _, key in self.lists[x]] for x in self.queries]
        costs = [[cost for cost, _ in self.lists[x]] for x in self.queries]
        return torch.tensor(keys).T, torch.tensor(costs, dtype=torch.float64).T


def costs_loops(q: Tensor, k: Tensor, matches: Tensor, patch_size: int, score: str, border: str = "zeros") -> Tensor:
    """(K, Yq, Xq) costs of given matches (K, Yq, Xq); 0 in the released ring."""
    half = patch_size // 2
    rows = []
    for match, row, col in itertools.product(*(range(side) for side in matches.shape)):
        key = divmod(int(matches[match, row, col]), k.shape[2])
        inside = half <= row < q.shape[1] - half and half <= col < q.shape[2] - half
        if border == "released" and not inside:
            rows.append(q.new_zeros(()))
        else:
            rows.append(cost_of(patch_of(q, (row, col), patch_size), patch_of(k, key, patch_size), score))
    return torch.stack(rows).view(matches.shape)


def read_loops(
    matches: Tensor,
    costs: Tensor,
    v: Tensor,
    *,
    patch_size: int,
    scale: float,
    readout: str,
    border: str = "zeros",
    fold_divisor: float | None = None,
) -> Tensor:
    """(E, Yq, Xq) from matches and costs (K, Yq, Xq)."""
    count, rows, cols = matches.shape
    size = (v.shape[1], v.shape[2])
    half = 0 if readout == "centre" else patch_size // 2
    offsets = list(itertools.product(range(-half, half + 1), repeat=2))

    def value(place):
        return v[:, place[0], place[1]]

    def match(k, source):
        return divmod(int(matches[k, source[0], source[1]]), size[1])

    def aggregate(x):
        logits, values = [], []
        for (a, b), k in itertools.product(offsets, range(count)):
            source = (x[0] + a, x[1] + b)
            if 0 <= source[0] < rows and 0 <= source[1] < cols:
                place, cost = match(k, source), costs[k, source[0], source[1]]
            elif border == "released":
                place, cost = (10, 10), costs.new_tensor(10.0)
            else:
                continue
            place = (place[0] - a, place[1] - b)
            if border == "released":
                place = (min(max(place[0], 0), size[0] - 1), min(max(place[1], 0), size[1] - 1))
            elif not (0 <= place[0] < size[0] and 0 <= place[1] < size[1]):
                continue
            logits.append(-scale * cost)
            values.append(value(place))
        return torch.stack(values, 1) @ torch.softmax(torch.stack(logits), 0)

    def fold(x):
        total, overlaps = v.new_zeros(v.shape[0]), 0
        for a, b in offsets:
            source = (x[0] - a, x[1] - b)
            if not (0 <= source[0] < rows and 0 <= source[1] < cols):
                continue
            overlaps += 1
            weights = torch.softmax(-scale * costs[:, source[0], source[1]], 0)
            for k in range(count):
                place = match(k, source)
                place = (place[0] + a, place[1] + b)
                if 0 <= place[0] < size[0] and 0 <= place[1] < size[1]:
                    total = total + weights[k] * value(place)
        return total / (overlaps if fold_divisor is None else fold_divisor)

    read = aggregate if readout == "aggregate" else fold
    out = [read(x) for x in itertools.product(range(rows), range(cols))]
    return torch.stack(out, 1).view(v.shape[0], rows, cols)
