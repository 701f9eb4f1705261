"""Grid Partitioned Attention on maps of any number of axes, causal or not, hard or soft, one query at a time.

Written from the description (Jetchev et al., arXiv 2107.03742, Algorithm 1, and this library's documented additions),
not from the library's code: pixels are tuples, blocks and cells are found by division, and nothing is laid out anew.
The search runs on Python floats; what follows it is differentiable, one query at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

Place = tuple[int, ...]


def _places(size: Place) -> Iterator[Place]:
    return product(*(range(side) for side in size))


def _divide(place: Place, by: Place) -> Place:
    return tuple(x // d for x, d in zip(place, by, strict=True))


def _mean(vectors: list[list[float]]) -> list[float]:
    return [math.fsum(column) / len(vectors) for column in zip(*vectors, strict=True)]


def _score(query: list[float], key: list[float], score: str, scale: float) -> float:
    if score == "dot":
        return scale * math.fsum(a * b for a, b in zip(query, key, strict=True))
    assert score == "l2"
    return -scale * math.fsum((a - b) ** 2 for a, b in zip(query, key, strict=True))


def _softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(logit - max(logits)) for logit in logits]
    return [power / math.fsum(powers) for power in powers]


def memberships(ranks: list[float], kappa: int, temperature: float) -> list[float]:
    """sigmoid(r / T - t) that sum to kappa, by bisection; ones where there are no more than kappa."""
    if len(ranks) <= kappa:
        return [1.0] * len(ranks)
    levels = [rank / temperature for rank in ranks]
    low, high = min(levels) - 50, max(levels) + 50
    for _ in range(200):
        middle = (low + high) / 2
        total = math.fsum(1 / (1 + math.exp(min(700, middle - level))) for level in levels)
        low, high = (middle, high) if total > kappa else (low, middle)
    return [1 / (1 + math.exp(min(700, low - level))) for level in levels]


class Loops:
    """One map of one head: q (D, *size), k (D, *size), v (E, *size), mask (*size) bool or None."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, options: dict[str, object]) -> None:
        self.q_size, self.k_size = tuple(q.shape[1:]), tuple(k.shape[1:])
        self.coarse, self.cells = tuple(options["coarse"]), tuple(options["cells"])  # type: ignore[arg-type]
        self.factor = _divide(self.q_size, self.coarse)
        self.sides = _divide(self.coarse, self.cells)
        self.kappa = int(options["keys_per_cell"])  # type: ignore[call-overload]
        self.score = str(options.get("score", "dot"))
        scale = options.get("scale")
        self.scale = 1 / math.sqrt(q.shape[0]) if scale is None else float(scale)  # type: ignore[arg-type]
        self.causal = bool(options.get("causal", False))
        self.temperature = options.get("temperature")
        self.candidates = options.get("candidates")
        self.queries = {at: q[(slice(None), *at)] for at in _places(self.q_size)}
        self.keys = {at: k[(slice(None), *at)] for at in _places(self.k_size)}
        self.values = {at: v[(slice(None), *at)] for at in _places(self.k_size)}
        self.allowed = {at: mask is None or bool(mask[at]) for at in _places(self.k_size)}
        self.blocks = list(_places(_divide(self.k_size, self.factor)))
        self.members: dict[Place, list[Place]] = {block: [] for block in self.blocks}
        for at in self.keys:
            self.members[_divide(at, self.factor)].append(at)
        self.smallest_gap = math.inf

    def choose(self, cell: Place) -> dict[Place, float]:
        """The blocks of a cell with what is added to their logits."""
        if self.causal:
            return dict.fromkeys(self._choose_causal(cell), 0.0)
        means = {}
        for block in self.blocks:
            pixels = [at for at in self.members[block] if self.allowed[at]]
            if pixels:
                means[block] = _mean([self.keys[at].tolist() for at in pixels])
        mass = dict.fromkeys(means, 0.0)
        for place in _places(self.coarse):
            if _divide(place, self.sides) != cell:
                continue
            pixels = [at for at in self.queries if _divide(at, self.factor) == place]
            query = _mean([self.queries[at].tolist() for at in pixels])
            shares = _softmax([_score(query, key, self.score, self.scale) for key in means.values()])
            for block, share in zip(means, shares, strict=True):
                mass[block] += share
        order = sorted(mass, key=lambda block: (-mass[block], self.blocks.index(block)))
        self._note_gap([mass[block] for block in order], self.kappa)
        if self.temperature is None:
            return dict.fromkeys(order[: self.kappa], 0.0)
        wide = 2 * self.kappa if self.candidates is None else int(self.candidates)  # type: ignore[call-overload]
        self._note_gap([mass[block] for block in order], wide)
        picked = order[:wide]
        parts = memberships([math.log(mass[block]) for block in picked], self.kappa, float(self.temperature))
        return {block: math.log(part) for block, part in zip(picked, parts, strict=True)}

    def _choose_causal(self, cell: Place) -> list[Place]:
        own = [block for block in self.blocks if _divide(block, self.sides) == cell]
        first = tuple(c * s * d for c, s, d in zip(cell, self.sides, self.factor, strict=True))
        query = self.queries[first].tolist()
        scores = {}
        for block in self.blocks:
            pixels = [at for at in self.members[block] if at <= first and self.allowed[at]]
            if pixels and block not in own:
                scores[block] = _score(query, _mean([self.keys[at].tolist() for at in pixels]), self.score, self.scale)
        order = sorted(scores, key=lambda block: (-scores[block], self.blocks.index(block)))
        self._note_gap([scores[block] for block in order], self.kappa)
        rest = [block for block in self.blocks if block not in own and block not in scores]
        return own + (order + rest)[: self.kappa]

    def _note_gap(self, ordered: list[float], count: int) -> None:
        if count < len(ordered):
            self.smallest_gap = min(self.smallest_gap, ordered[count - 1] - ordered[count])

    def attend(self) -> Tensor:
        """(E, *size)."""
        choices = {cell: self.choose(cell) for cell in _places(self.cells)}
        columns = []
        for at, query in self.queries.items():
            bias = choices[_divide(_divide(at, self.factor), self.sides)]
            seen = [
                (key, extra)
                for block, extra in bias.items()
                for key in self.members[block]
                if self.allowed[key] and not (self.causal and key > at)
            ]
            if not seen:
                columns.append(torch.zeros_like(next(iter(self.values.values()))))
                continue
            logits = []
            for key, extra in seen:
                vector = self.keys[key]
                apart = query @ vector if self.score == "dot" else -(query - vector).square().sum()
                logits.append(self.scale * apart + extra)
            weights = torch.softmax(torch.stack(logits), 0)
            columns.append(weights @ torch.stack([self.values[key] for key, _ in seen]))
        return torch.stack(columns, 1).view(-1, *self.q_size)


def gpa_nd_loops(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None, **options: object) -> Loops:
    """Output of (B, G, D, *size) maps as `.output`, with the smallest gap at any choice: a test needs it off ties.

    Options are those of `gpa_attention`; `temperature` makes the selection soft.
    """
    maps, gaps = [], []
    for b in range(q.shape[0]):
        for g in range(q.shape[1]):
            loops = Loops(q[b, g], k[b, g], v[b, g], None if key_mask is None else key_mask[b, 0], options)
            maps.append(loops.attend())
            gaps.append(loops.smallest_gap)
    loops.output = torch.stack(maps).view(*v.shape[:3], *q.shape[3:])  # type: ignore[attr-defined]
    loops.smallest_gap = min(gaps)
    return loops
