"""The attention blocks of cross-scale super-resolution: CSNLN (Mei et al., CVPR 2020, arXiv 2006.01424), as released.

`CrossScaleBlock`: every 3x3 patch of a map looks for similar patches in the same map made s times smaller, and pastes
the (3s)x(3s) pixels that they were made from, so the result is s times larger. In the released code values are
unfolded to patches and pasted by a transposed convolution. Here the s x s pixels of a key are its channels
(space to depth), a query pastes 3x3 of them (`SpatialAttention.paste`), and depth is put back to space: the same sums.

`InScaleBlock`: plain attention of a map to itself, unscaled dot products as released.

Parameters have the released names. What differs: sides that s does not divide are accepted. The map of keys and values
is continued to a multiple of s by its last rows and columns; the released code fails there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.attention.block import SlotBlock
from saccade.attention.full import FullAttention
from saccade.attention.mixer import AttentionWeights, SpatialAttention
from saccade.attention.slots import SlotPolicy
from saccade.geometry import Size, SlotSpec
from saccade.ops.options import positive, whole
from saccade.ops.patches import SHORTEST, check_patch_size

# As released: the matched and pasted patches, the factor on the scores, and the divisor of the overlapping pastes.
PATCH_SIZE, SCALE, DIVISOR = 3, 10.0, 6.0


def pointwise(in_channels: int, out_channels: int) -> nn.Sequential:
    """A biased 1x1 convolution and a PReLU with one parameter."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1), nn.PReLU())


class CrossScaleBlock(SlotBlock):
    """Make a map s times larger from patches of itself at a coarser scale.

    Args:
        spec: channels and sizes of the slot: `q_size` is s times `kv_size`, that of the keys.
        mixer: the backend. As released it is `FullAttention(score="unit_key", scale=10, patch_size=3)`. One that brings
            nothing (`NoAttention`) gives zeros, and leaves the parameters in the state dict.
        reduction: queries and keys have `q_channels // reduction` channels.
        side: of the pasted patches, in keys: s * side pixels.
        divisor: of the sum of overlapping pastes. 6 as released; their number is side^2 away from borders. PSAL with
            `readout="fold"` has its own.

    Raises:
        ValueError: an option, channels or sizes that do not fit.
    """

    def __init__(
        self,
        spec: SlotSpec,
        mixer: SpatialAttention,
        *,
        reduction: int = 2,
        side: int = PATCH_SIZE,
        divisor: float = DIVISOR,
    ) -> None:
        who = f"{mixer.name}, slot {spec.name}"
        self.factor = _factor(who, spec)
        self.side = check_patch_size(who, side)
        self.divisor = positive(who, "divisor", divisor)
        super().__init__(
            spec,
            mixer,
            qk_channels=_reduced(who, spec.q_channels, reduction),
            v_channels=spec.out_channels * (self.factor * self.side) ** 2,
        )
        if spec.q_channels != spec.kv_channels:
            raise ValueError(
                f"{who}: queries, keys and values come from one map; got {spec.q_channels} and {spec.kv_channels} "
                f"channels. Valid here: {spec.q_channels} for both."
            )
        # the released shortest length of a key, always SHORTEST here; kept for its name in the state dict
        self.register_buffer("escape_NaN", torch.tensor([SHORTEST]))
        self.conv_match_1 = pointwise(spec.q_channels, self.qk_channels)
        self.conv_match_2 = pointwise(spec.kv_channels, self.qk_channels)
        self.conv_assembly = pointwise(spec.kv_channels, spec.out_channels)
        if not mixer.attends:
            self.requires_grad_(False)  # or distributed training would wait for their gradients

    @property
    def kv_map_size(self) -> Size:
        return self.spec.q_size

    def key_size(self, kv_map: Size) -> Size:
        return Size(-(-kv_map.rows // self.factor), -(-kv_map.cols // self.factor))

    def forward(self, q_map: Tensor, kv_map: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Enlarge.

        Args:
            q_map: (B, q_channels, Y, X).
            kv_map: (B, kv_channels, Y', X'); in the network the same map.
            key_mask: (B, 1, ceil(Y' / s), ceil(X' / s)) bool, True = may be attended.

        Returns:
            (B, out_channels, s * Y, s * X).
        """
        if not self.mixer.attends:
            return q_map.new_zeros(
                q_map.shape[0], self.spec.out_channels, *(self.factor * side for side in q_map.shape[2:])
            )
        whole_map = self._continued(kv_map)
        values = F.pixel_unshuffle(self.conv_assembly(whole_map), self.factor)  # (B, C * s * s, Yk, Xk)
        q, k = self.conv_match_1(q_map), self._keys(whole_map)
        pasted = self.mixer.paste(q, k, values, key_mask, side=self.side, divisor=self.divisor)
        return F.pixel_shuffle(pasted, self.factor)

    def weights(
        self, q_map: Tensor, kv_map: Tensor, queries: Tensor, key_mask: Tensor | None = None
    ) -> AttentionWeights:
        """Which keys the patches of a few queries match: (Q, 2) long; indices number the map made s times smaller."""
        return self.mixer.weights(self.conv_match_1(q_map), self._keys(self._continued(kv_map)), queries, key_mask)

    def _keys(self, whole_map: Tensor) -> Tensor:
        size = [side // self.factor for side in whole_map.shape[2:]]
        reduced = F.interpolate(whole_map, size=size, mode="bilinear", align_corners=False)
        keys: Tensor = self.conv_match_2(reduced)
        return keys

    def _continued(self, maps: Tensor) -> Tensor:
        bottom, right = (-side % self.factor for side in maps.shape[2:])
        return F.pad(maps, (0, right, 0, bottom), mode="replicate") if bottom or right else maps

    def extra_repr(self) -> str:
        return f"slot={self.spec.name}, factor={self.factor}, side={self.side}, divisor={self.divisor:g}"


class InScaleBlock(SlotBlock):
    """Rewrite a map by attention to itself.

    Args:
        spec: channels and sizes of the slot; `kv_size` equals `q_size`.
        mixer: the backend. As released it is `FullAttention(score="dot", scale=1.0)`. One that brings nothing
            (`NoAttention`) leaves every pixel its own value.
        reduction: queries and keys have `q_channels // reduction` channels.

    Raises:
        ValueError: an option or channels that do not fit.
    """

    def __init__(self, spec: SlotSpec, mixer: SpatialAttention, *, reduction: int = 2) -> None:
        who = f"{mixer.name}, slot {spec.name}"
        super().__init__(
            spec, mixer, qk_channels=_reduced(who, spec.q_channels, reduction), v_channels=spec.out_channels
        )
        self.conv_match1 = pointwise(spec.q_channels, self.qk_channels)
        self.conv_match2 = pointwise(spec.kv_channels, self.qk_channels)
        self.conv_assembly = pointwise(spec.kv_channels, spec.out_channels)
        if not mixer.attends:
            for unused in (self.conv_match1, self.conv_match2):
                unused.requires_grad_(False)  # or distributed training would wait for their gradients

    def forward(self, q_map: Tensor, kv_map: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """(B, q_channels, Y, X), (B, kv_channels, Y, X) -> (B, out_channels, Y, X)."""
        values: Tensor = self.conv_assembly(kv_map)
        if not self.mixer.attends:
            return values
        return self.mixer.at_any_size(self.conv_match1(q_map), self.conv_match2(kv_map), values, key_mask)

    def weights(
        self, q_map: Tensor, kv_map: Tensor, queries: Tensor, key_mask: Tensor | None = None
    ) -> AttentionWeights:
        """Where a few queries look: (Q, 2) long rows and cols of the query map."""
        return self.mixer.weights(self.conv_match1(q_map), self.conv_match2(kv_map), queries, key_mask)

    def extra_repr(self) -> str:
        return f"slot={self.spec.name}"


def cross_scale_attention(mixer: Callable[..., SpatialAttention] = FullAttention, **options: Any) -> SlotPolicy:
    """A policy for CSNLN's cross-scale slots: a backend that compares as released, as far as it has the options.

    Args:
        mixer: class of the backend.
        options: its options; score="unit_key", scale=10 and patch_size=3 unless given.
    """
    released = {"score": "unit_key", "scale": SCALE, "patch_size": PATCH_SIZE}
    return _policy(mixer, released, options, CrossScaleBlock)


def in_scale_attention(mixer: Callable[..., SpatialAttention] = FullAttention, **options: Any) -> SlotPolicy:
    """A policy for CSNLN's in-scale slots: the same, with score="dot" and scale=1 unless given."""
    return _policy(mixer, {"score": "dot", "scale": 1.0}, options, InScaleBlock)


def _policy(
    mixer: Callable[..., SpatialAttention],
    released: dict[str, Any],
    options: dict[str, Any],
    block: Callable[[SlotSpec, SpatialAttention], SlotBlock],
) -> SlotPolicy:
    known = signature(mixer).parameters
    chosen = {**{name: value for name, value in released.items() if name in known}, **options}
    return SlotPolicy(partial(mixer, **chosen), exact_up_to=0, block=block)


def _factor(who: str, spec: SlotSpec) -> int:
    factor = spec.q_size.rows // spec.kv_size.rows
    if factor < 2 or spec.q_size != Size(factor * spec.kv_size.rows, factor * spec.kv_size.cols):
        raise ValueError(
            f"{who}: a cross-scale slot has s times as many rows and cols of queries as of keys, s 2 or more; got "
            f"queries {spec.q_size} and keys {spec.kv_size}. Nearest valid queries: "
            f"{Size(*(max(2, factor) * side for side in spec.kv_size))}."
        )
    return factor


def _reduced(who: str, channels: int, reduction: int) -> int:
    reduced = channels // whole(who, "reduction", reduction)
    if reduced < 1:
        raise ValueError(f"{who}: reduction={reduction} leaves no channel of {channels}. Valid here: up to {channels}.")
    return reduced
