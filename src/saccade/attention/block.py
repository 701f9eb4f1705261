"""The attention block: projections, a mixer, and the fusion of what it brings with the query map.

Source: GPA's released layer (arXiv 2107.03742). There and here q, k and v are biased 1x1 convolutions of PyTorch's
default initialisation, and queries and keys have max(q_channels, kv_channels) channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.attention.mixer import AttentionWeights, SpatialAttention
from saccade.geometry import AttentionShape, Size, SlotSpec

Fusion = Literal["concat", "concat_plain", "gamma"]
Empty = Literal["keep", "drop"]
FUSIONS: tuple[Fusion, ...] = ("concat", "concat_plain", "gamma")
EMPTIES: tuple[Empty, ...] = ("keep", "drop")
# The released layer's starting weight of the attention term where it is simply added.
GAMMA_START = 0.1


class SlotBlock(nn.Module, ABC):
    """What fills an attention slot: projections around a mixer, and a way to bring the result into the query map.

    Args:
        spec: channels and sizes of the slot.
        mixer: the backend.
        qk_channels, v_channels: channels of queries and keys, and of values, over all heads.

    Raises:
        ValueError: channels that do not fit the heads.
    """

    def __init__(self, spec: SlotSpec, mixer: SpatialAttention, *, qk_channels: int, v_channels: int) -> None:
        super().__init__()
        for channels in (qk_channels, v_channels):
            if channels % mixer.heads:
                raise ValueError(f"{mixer.name}, slot {spec.name}: {mixer.head_reason(channels)}")
        self.spec = spec
        self.qk_channels = qk_channels
        self.v_channels = v_channels
        self.mixer = mixer

    def shape(self, batch: int = 1) -> AttentionShape:
        """The attention call that this block makes at the training resolution."""
        heads = self.mixer.heads
        return AttentionShape(
            batch=batch,
            heads=heads,
            qk_channels=self.qk_channels // heads,
            v_channels=self.v_channels // heads,
            q_size=self.spec.q_size,
            kv_size=self.spec.kv_size,
        )

    @abstractmethod
    def forward(self, q_map: Tensor, kv_map: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """(B, q_channels, Yq, Xq) and the map of keys and values -> (B, out_channels, Yq, Xq)."""

    @abstractmethod
    def weights(
        self, q_map: Tensor, kv_map: Tensor, queries: Tensor, key_mask: Tensor | None = None
    ) -> AttentionWeights:
        """Where a few queries look: (Q, 2) long rows and cols of the query map; see `SpatialAttention.weights`."""

    @property
    def kv_map_size(self) -> Size:
        """Size of the map of keys and values that the block is given, at the training resolution."""
        return self.spec.kv_size

    def key_size(self, kv_map: Size) -> Size:
        """Size of the map that key indices number, for a map of keys and values of the given size."""
        return kv_map


class AttentionBlock(SlotBlock):
    """Read a value map through a mixer and fuse it with the query map.

    Fusion, with x the query map, m = out_channels and att what the mixer brings:
        "concat": x[:, :m] + conv1x1([x, att]), the released layer's default (outmod 1).
        "concat_plain": conv1x1([x, att]), as the paper words it.
        "gamma": x[:, :m] + gamma * att, gamma a learnt scalar from 0.1 (outmod 0).

    Args:
        spec: channels and sizes of the slot. `out_channels` must not exceed `q_channels` where the query map is added.
        mixer: the backend.
        fusion: see above.
        qk_channels: channels of q and k over all heads; None is max(q_channels, kv_channels).
        qk_gain: factor on the initial weights of query and key; the released layer has 1. Larger ones spread the choice
            of keys at the start of training.
        empty: what a mixer that brings nothing (`NoAttention`) leaves of the block. "keep": the fusion with att = 0,
            and all parameters, so that state dicts are alike whatever the backend; "drop": x[:, :m], no parameters.

    Raises:
        ValueError: an unknown option, or channels that do not fit the heads or the fusion.
    """

    def __init__(
        self,
        spec: SlotSpec,
        mixer: SpatialAttention,
        *,
        fusion: Fusion = "concat",
        qk_channels: int | None = None,
        qk_gain: float = 1.0,
        empty: Empty = "keep",
    ) -> None:
        widest = max(spec.q_channels, spec.kv_channels)
        super().__init__(
            spec,
            mixer,
            qk_channels=widest if qk_channels is None else qk_channels,
            v_channels=spec.out_channels,
        )
        self.fusion: Fusion = fusion
        self._check(spec, mixer, fusion, empty)
        self.dropped = empty == "drop" and not mixer.attends
        self._build(spec, qk_gain)
        if self.dropped:  # built all the same: the random numbers that follow must not depend on the backend
            for name in ("value", "key", "query", "fuse", "gamma"):
                delattr(self, name)
        elif not mixer.attends:
            for unused in (self.value, self.key, self.query):
                unused.requires_grad_(False)  # or distributed training would wait for their gradients

    def _check(self, spec: SlotSpec, mixer: SpatialAttention, fusion: str, empty: str) -> None:
        who = f"{mixer.name}, slot {spec.name}"
        if fusion not in FUSIONS:
            raise ValueError(f"{who}: no fusion is called {fusion!r}. Valid here: {', '.join(FUSIONS)}.")
        if empty not in EMPTIES:
            raise ValueError(f"{who}: no way to be empty is called {empty!r}. Valid here: {', '.join(EMPTIES)}.")
        if fusion != "concat_plain" and spec.out_channels > spec.q_channels:
            raise ValueError(
                f"{who}: fusion {fusion!r} adds the query map, so out_channels ({spec.out_channels}) must not exceed "
                f"q_channels ({spec.q_channels}). Valid here: out_channels up to {spec.q_channels}, or fusion "
                "'concat_plain'."
            )

    def _build(self, spec: SlotSpec, qk_gain: float) -> None:
        self.value = nn.Conv2d(spec.kv_channels, spec.out_channels, 1)
        self.key = nn.Conv2d(spec.kv_channels, self.qk_channels, 1)
        self.query = nn.Conv2d(spec.q_channels, self.qk_channels, 1)
        self.fuse: nn.Conv2d | None = None
        self.gamma: nn.Parameter | None = None
        if self.fusion == "gamma":
            self.gamma = nn.Parameter(torch.full((1,), GAMMA_START))
        else:
            self.fuse = nn.Conv2d(spec.q_channels + spec.out_channels, spec.out_channels, 1)
        if qk_gain != 1.0:
            with torch.no_grad():
                self.key.weight.mul_(qk_gain)
                self.query.weight.mul_(qk_gain)

    def forward(self, q_map: Tensor, kv_map: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """(B, q_channels, Yq, Xq), (B, kv_channels, Yk, Xk) -> (B, out_channels, Yq, Xq)."""
        residual = q_map[:, : self.spec.out_channels]
        if self.dropped:
            return residual
        if not self.mixer.attends:
            return self._fuse(q_map, residual, None)
        q, k, v = self.query(q_map), self.key(kv_map), self.value(kv_map)
        return self._fuse(q_map, residual, self.mixer(q, k, v, key_mask))

    def _fuse(self, q_map: Tensor, residual: Tensor, brought: Tensor | None) -> Tensor:
        if self.fuse is None:
            return residual if brought is None or self.gamma is None else residual + self.gamma * brought
        # conv1x1([x, att]) without the copy that joins them
        of_query, of_brought = self.fuse.weight[:, : self.spec.q_channels], self.fuse.weight[:, self.spec.q_channels :]
        fused = F.conv2d(q_map, of_query, self.fuse.bias)
        if brought is not None:
            fused = fused + F.conv2d(brought, of_brought)
        return fused if self.fusion == "concat_plain" else residual + fused

    def weights(
        self, q_map: Tensor, kv_map: Tensor, queries: Tensor, key_mask: Tensor | None = None
    ) -> AttentionWeights:
        """Where a few queries look: (Q, 2) long rows and cols of the query map; see `SpatialAttention.weights`.

        Raises:
            RuntimeError: the block was dropped with its attention.
        """
        if self.dropped:
            raise RuntimeError(f"slot {self.spec.name}: the block is empty (empty='drop'), so no query looks anywhere.")
        return self.mixer.weights(self.query(q_map), self.key(kv_map), queries, key_mask)

    def extra_repr(self) -> str:
        return f"slot={self.spec.name}, fusion={self.fusion}"
