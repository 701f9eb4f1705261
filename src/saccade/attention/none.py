"""No attention: the baseline that the papers call NO."""

from __future__ import annotations

import torch
from torch import Tensor

from saccade.attention.mixer import AttentionCost, AttentionWeights, SpatialAttention, check_queries
from saccade.geometry import AttentionShape
from saccade.ops.inputs import read_shape


class NoAttention(SpatialAttention):
    """Brings nothing: zeros of the value channels at the query size. The block around it skips the projections."""

    name = "none"
    attends = False

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        read_shape(self.name, q, k, v, key_mask)
        return v.new_zeros(*v.shape[:3], *q.shape[3:])

    def weights(self, q: Tensor, k: Tensor, queries: Tensor, key_mask: Tensor | None = None) -> AttentionWeights:
        """No keys: both tensors are (B, G, Q, 0)."""
        check_queries(self.name, q, queries)
        read_shape(self.name, self.split_heads(q), self.split_heads(k), key_mask=key_mask)
        shape = (q.shape[0], self.heads, queries.shape[0], 0)
        return AttentionWeights(torch.zeros(shape, dtype=torch.long, device=q.device), q.new_zeros(shape))

    def cost(self, shape: AttentionShape) -> AttentionCost:
        return AttentionCost(0, 0, 0)

    def reasons_against(self, shape: AttentionShape) -> list[str]:
        return []
