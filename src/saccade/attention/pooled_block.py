"""SAGAN's attention block: keys and values pooled, the result added with a scalar weight that starts at 0.

Source: Zhang et al. 2019 as released, and as in Your Local GAN (arXiv 1911.12287): 1x1 convolutions without bias to an
eighth of the channels for queries and keys and to half of them for values, 2x2 max-pooling of keys and values, a 1x1
convolution back, and x + sigma * out. The papers mention neither the pooling nor the halved values.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from saccade.attention.block import SlotBlock
from saccade.attention.mixer import AttentionWeights, SpatialAttention
from saccade.geometry import Size, SlotSpec
from saccade.ops.options import whole


def _plain(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Conv2d(in_channels, out_channels, 1, bias=False)


class PooledAttentionBlock(SlotBlock):
    """x + sigma * out(mixer(query(x), pool(key(y)), pool(value(y)))), sigma a learnt scalar from 0.

    x is the query map and y the map of keys and values; in SAGAN they are one. The spec's `kv_size` is that of the
    keys, after pooling.

    Args:
        spec: channels and sizes of the slot; `out_channels` equals `q_channels`.
        mixer: the backend; one that brings nothing (`NoAttention`) leaves x, and the parameters in the state dict.
        qk_ratio: channels of queries and keys are `q_channels // qk_ratio`.
        v_ratio: channels of values are `q_channels // v_ratio`.
        pool: side of the max-pooling of keys and values, in pixels; 1 for none.
        convolution: makes a 1x1 convolution without bias of (in, out) channels; None is PyTorch's. SAGAN's is
            `saccade.layers.spectral.spectral_pointwise`.

    Raises:
        ValueError: an option or channels that do not fit.
    """

    def __init__(
        self,
        spec: SlotSpec,
        mixer: SpatialAttention,
        *,
        qk_ratio: int = 8,
        v_ratio: int = 2,
        pool: int = 2,
        convolution: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        who = f"{mixer.name}, slot {spec.name}"
        super().__init__(
            spec,
            mixer,
            qk_channels=_share(who, spec.q_channels, "qk_ratio", qk_ratio),
            v_channels=_share(who, spec.q_channels, "v_ratio", v_ratio),
        )
        self.pool = whole(who, "pool", pool)
        if spec.out_channels != spec.q_channels:
            raise ValueError(
                f"{who}: the block adds to the query map, so out_channels ({spec.out_channels}) must equal q_channels "
                f"({spec.q_channels})."
            )
        make = _plain if convolution is None else convolution
        self.query = make(spec.q_channels, self.qk_channels)
        self.key = make(spec.kv_channels, self.qk_channels)
        self.value = make(spec.kv_channels, self.v_channels)
        self.out = make(self.v_channels, spec.out_channels)
        self.sigma = nn.Parameter(torch.zeros(()))
        if not mixer.attends:
            self.requires_grad_(False)  # or distributed training would wait for their gradients

    @property
    def kv_map_size(self) -> Size:
        return Size(self.spec.kv_size.rows * self.pool, self.spec.kv_size.cols * self.pool)

    def key_size(self, kv_map: Size) -> Size:
        return Size(kv_map.rows // self.pool, kv_map.cols // self.pool)

    def _pooled(self, maps: Tensor) -> Tensor:
        return maps if self.pool == 1 else F.max_pool2d(maps, self.pool)

    def forward(self, q_map: Tensor, kv_map: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Add what the queries read.

        Args:
            q_map: (B, q_channels, Yq, Xq).
            kv_map: (B, kv_channels, pool * Yk, pool * Xk).
            key_mask: (B, 1, Yk, Xk) bool, True = may be attended.

        Returns:
            (B, q_channels, Yq, Xq).
        """
        if not self.mixer.attends:
            return q_map
        q, k, v = self.query(q_map), self._pooled(self.key(kv_map)), self._pooled(self.value(kv_map))
        brought: Tensor = self.out(self.mixer(q, k, v, key_mask))
        return q_map + self.sigma * brought

    def weights(
        self, q_map: Tensor, kv_map: Tensor, queries: Tensor, key_mask: Tensor | None = None
    ) -> AttentionWeights:
        """Where a few queries look: (Q, 2) long rows and cols of the query map; indices number the pooled keys."""
        return self.mixer.weights(self.query(q_map), self._pooled(self.key(kv_map)), queries, key_mask)

    def extra_repr(self) -> str:
        return f"slot={self.spec.name}, pool={self.pool}"


def _share(who: str, channels: int, name: str, ratio: int) -> int:
    """The part of the channels that is one in `ratio`."""
    share = channels // whole(who, name, ratio)
    if share < 1:
        raise ValueError(f"{who}: {name}={ratio} leaves no channel of {channels}. Valid here: up to {channels}.")
    return share
