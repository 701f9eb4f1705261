"""Your Local GAN's attention as a backend (arXiv 1911.12287): a sparse pattern for every head of one layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from saccade.attention.mixer import AttentionCost, AttentionWeights, SpatialAttention, check_map, check_queries
from saccade.geometry import AttentionShape, Size, SlotSpec, whole_number
from saccade.ops.dispatch import Score, check_kernel_name, check_score
from saccade.ops.inputs import check_scale
from saccade.ops.patches import check_patch_size
from saccade.ops.ylg import KERNELS, ylg_attention, ylg_weights
from saccade.ops.ylg.cost import ylg_cost
from saccade.ops.ylg.patterns import (
    HEADS,
    Order,
    Pattern,
    PatternLike,
    QueryMapping,
    check_mapping,
    check_order,
    mapping_reasons,
    read_patterns,
)
from saccade.ops.ylg.plan import Layout, full_mask


class YourLocalAttention(SpatialAttention):
    """Every head attends by its own sparse pattern over the enumerated key map: `saccade.ops.ylg_attention`.

    Args:
        spec: the slot it fills.
        heads: number of heads; eight as released.
        patterns: one a head: names of `saccade.ops.ylg.patterns.PATTERNS`, `Pattern`s, or functions from the number of
            keys n to an (n, n) bool mask in enumeration order; or the name of a list of eight: "ylg", "ltr", "rtl",
            "fixed", "strided", "strided_circular", "strided_released", "dense". None is the released order, pairs of
            right-to-left steps, then as many of left-to-right ones, for any even number of heads.
        mapping: which key cell's row of the pattern a query takes, "released" (its number modulo the number of keys),
            "tile" (row and column modulo those of the key map, the paper's text) or "nearest" (the cell under it).
        order: how key cells are enumerated, "esa" (Manhattan distance from the corner), "hilbert" or "row".
        scale: factor on the score, 1 as released; None is 1 / sqrt(channels compared).
        score: "dot" as released, "l2", "cosine" or "unit_key".
        patch_size: p, odd: queries and keys are compared as p x p patches.
        head_channels: how the query and key channels are shared among the heads: whole numbers in proportion, one a
            head; None is equally. (4, 4, 8) gives the third head half of the channels.
        head_values: the same for the value channels; None is as `head_channels`.
        kernel: "auto" or the name of one.
    """

    name = "ylg"

    def __init__(
        self,
        spec: SlotSpec | None = None,
        *,
        heads: int = 8,
        patterns: str | Sequence[PatternLike] | None = None,
        mapping: QueryMapping = "released",
        order: Order = "esa",
        scale: float | None = 1.0,
        score: Score = "dot",
        patch_size: int = 1,
        head_channels: Sequence[int] | None = None,
        head_values: Sequence[int] | None = None,
        kernel: str = "auto",
    ) -> None:
        super().__init__(spec, heads=heads)
        check_score(self.name, score)
        check_order(order)
        check_mapping(mapping)
        check_kernel_name(self.name, KERNELS, kernel)
        self.patterns = self._read_patterns(patterns)
        self.mapping: QueryMapping = mapping
        self.order: Order = order
        self.scale = check_scale(self.name, scale)
        self.score: Score = score
        self.patch_size = check_patch_size(self.name, patch_size)
        self.head_channels = self._read_shares("head_channels", head_channels)
        self.head_values = self.head_channels if head_values is None else self._read_shares("head_values", head_values)
        self.kernel = kernel

    def forward(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """As `SpatialAttention.forward`; heads may differ in width."""
        if self.head_channels is None and self.head_values is None:
            return super().forward(q, k, v, key_mask)
        maps = [self._split_widths(x, s) for x, s in zip((q, k, v), self._shares(), strict=True)]
        self._check_sizes(q, k)
        outs: dict[int, Tensor] = {}
        for heads in self._alike(*maps):
            some = [torch.stack([x[head] for head in heads], 1) for x in maps]
            out = ylg_attention(
                some[0],
                some[1],
                some[2],
                patterns=[self.patterns[head] for head in heads],
                mapping=self.mapping,
                order=self.order,
                score=self.score,
                scale=self.scale,
                patch_size=self.patch_size,
                key_mask=key_mask,
                kernel=self.kernel,
            )
            outs.update(zip(heads, out.unbind(1), strict=True))
        return torch.cat([outs[head] for head in range(self.heads)], 1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        self._check_sizes(q, k)
        return ylg_attention(
            q,
            k,
            v,
            patterns=self.patterns,
            mapping=self.mapping,
            order=self.order,
            score=self.score,
            scale=self.scale,
            patch_size=self.patch_size,
            key_mask=key_mask,
            kernel=self.kernel,
        )

    def weights(self, q: Tensor, k: Tensor, queries: Tensor, key_mask: Tensor | None = None) -> AttentionWeights:
        """As `SpatialAttention.weights`; K is the longest list of keys, shorter ones end in weights of 0."""
        check_queries(self.name, q, queries)
        shares = self._shares()[0]
        maps = [self._split_widths(x, shares) for x in (q, k)]
        self._check_sizes(q, k)
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for heads in self._alike(*maps):
            indices, weights = ylg_weights(
                torch.stack([maps[0][head] for head in heads], 1),
                torch.stack([maps[1][head] for head in heads], 1),
                queries,
                patterns=[self.patterns[head] for head in heads],
                mapping=self.mapping,
                order=self.order,
                score=self.score,
                scale=self.scale,
                patch_size=self.patch_size,
                key_mask=key_mask,
            )
            found.update(zip(heads, zip(indices.unbind(1), weights.unbind(1), strict=True), strict=True))
        longest = max(indices.shape[2] for indices, _ in found.values())
        padded = [
            [torch.nn.functional.pad(x, (0, longest - x.shape[2])) for x in found[head]] for head in range(self.heads)
        ]
        return AttentionWeights(torch.stack([x[0] for x in padded], 1), torch.stack([x[1] for x in padded], 1))

    def cost(self, shape: AttentionShape) -> AttentionCost:
        """Matrix products of the kernel that `auto` takes, n_q l (D + E) for most heads: see `saccade.ops.ylg.cost`.

        Raises:
            ValueError: the sizes do not fit the mapping, or the channels the heads; see `reasons_against`.
        """
        reasons = self.reasons_against(shape)
        if reasons:
            raise ValueError(f"ylg: {' '.join(reasons)}")
        layout = Layout(shape.q_size, shape.kv_size, self.order, self.mapping)
        widths = [
            [total * share // sum(shares) for share in shares]
            for total, shares in (
                (shape.qk_channels * self.heads, self._shares()[0]),
                (shape.v_channels * self.heads, self._shares()[2]),
            )
        ]
        forward, saved = ylg_cost(
            self.patterns, list(zip(*widths, strict=True)), layout, self.score, self.scale, self.patch_size
        )
        return AttentionCost(shape.batch * forward, 2 * shape.batch * forward, shape.batch * saved)

    def reasons_against(self, shape: AttentionShape) -> list[str]:
        reasons = mapping_reasons(shape.q_size, shape.kv_size, self.mapping)
        totals = (shape.qk_channels * self.heads, shape.qk_channels * self.heads, shape.v_channels * self.heads)
        for total, shares in zip(totals, self._shares(), strict=True):
            misfit = _share_reason(total, shares)
            if misfit and misfit not in reasons:
                reasons.append(misfit)
        for pattern in dict.fromkeys(self.patterns):
            if pattern.form is None:
                try:
                    full_mask(pattern, shape.kv_size.area)
                except ValueError as error:
                    reasons.append(str(error).removeprefix("ylg: "))
        return reasons

    def _read_patterns(self, patterns: str | Sequence[PatternLike] | None) -> tuple[Pattern, ...]:
        if patterns is None:
            if self.heads % 2:
                raise ValueError(
                    f"ylg: without patterns, heads are pairs of steps, an even number; got heads={self.heads}. Valid "
                    f"here: heads={self.heads + 1}, or patterns with {self.heads} entries."
                )
            left = self.heads // 4
            patterns = HEADS["rtl"][:2] * (self.heads // 2 - left) + HEADS["ltr"][:2] * left
        chosen = read_patterns(patterns)
        if len(chosen) != self.heads:
            raise ValueError(
                f"ylg: patterns name {len(chosen)} heads, heads={self.heads}. Valid here: heads={len(chosen)}, or "
                f"{self.heads} patterns."
            )
        return chosen

    def _read_shares(self, option: str, shares: Sequence[int] | None) -> tuple[int, ...] | None:
        if shares is None:
            return None
        given = list(shares) if isinstance(shares, Iterable) else []
        read = [share for share in map(whole_number, given) if share is not None and share >= 1]
        if len(given) != self.heads or len(read) != self.heads:
            raise ValueError(
                f"ylg: {option} must hold {self.heads} positive whole numbers, one a head; got {shares!r}. Valid "
                f"here: {[1] * self.heads}."
            )
        return tuple(read)

    def _shares(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The shares of the heads in the channels of q, k and v."""
        equal = (1,) * self.heads
        of_keys = self.head_channels or equal
        return of_keys, of_keys, self.head_values or equal

    def _split_widths(self, maps: Tensor, shares: Sequence[int]) -> list[Tensor]:
        """(B, channels, Y, X) -> for each head (B, its channels, Y, X)."""
        check_map(self.name, maps)
        reason = _share_reason(maps.shape[1], shares)
        if reason:
            raise ValueError(f"{self.name}: {reason}")
        return list(torch.split(maps, [maps.shape[1] * share // sum(shares) for share in shares], 1))

    def _alike(self, *maps: Sequence[Tensor]) -> list[list[int]]:
        """Heads of the same widths together."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for head in range(self.heads):
            groups.setdefault(tuple(x[head].shape[1] for x in maps), []).append(head)
        return list(groups.values())

    def _check_sizes(self, q: Tensor, k: Tensor) -> None:
        reasons = mapping_reasons(Size(*q.shape[-2:]), Size(*k.shape[-2:]), self.mapping) if k.numel() else []
        if reasons:
            slot = "" if self.spec is None else f", slot {self.spec.name}"
            raise ValueError(f"ylg{slot}: {' '.join(reasons)}")

    def extra_repr(self) -> str:
        widths = "" if self.head_channels is None else f", head_channels={self.head_channels}"
        widths += "" if self.head_values == self.head_channels else f", head_values={self.head_values}"
        return (
            f"heads={self.heads}, patterns={[p.name for p in self.patterns]}, mapping={self.mapping}, "
            f"order={self.order}, score={self.score}, scale={self.scale}, patch_size={self.patch_size}{widths}, "
            f"kernel={self.kernel}"
        )


def _share_reason(channels: int, shares: Sequence[int]) -> str | None:
    total = sum(shares)
    if all(channels * share % total == 0 for share in shares):
        return None
    below = channels // total * total
    valid = [str(value) for value in (below, below + total) if value]
    return (
        f"{channels} channels do not split in the proportion {':'.join(map(str, shares))}. "
        f"Valid numbers of channels here: {', '.join(valid)}."
    )
