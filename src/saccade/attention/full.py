"""Full (exact) attention between two maps, in memory linear in the number of pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from saccade.attention.mixer import AttentionCost, AttentionWeights, SpatialAttention, check_queries
from saccade.geometry import AttentionShape, SlotSpec
from saccade.ops.dense import KERNELS, dense_attention, dense_weights
from saccade.ops.dispatch import Score, check_kernel_name, check_score


class FullAttention(SpatialAttention):
    """Every query attends to every key: `saccade.ops.dense_attention`.

    Args:
        spec: the slot it fills.
        heads: number of heads.
        score: "l2", -|q - k|^2, is the default of GPA's released layer at its full-attention levels too; "dot" is the
            field's and GPA's text (arXiv 2107.03742, Eq. 1).
        scale: factor on the score; None is 1 / sqrt(channels of a head), Eq. 1 has 1.
        kernel: "auto" or the name of one.
    """

    name = "full"

    def __init__(
        self,
        spec: SlotSpec | None = None,
        *,
        heads: int = 1,
        score: Score = "l2",
        scale: float | None = None,
        kernel: str = "auto",
    ) -> None:
        super().__init__(spec, heads=heads)
        check_score(self.name, score)
        check_kernel_name(self.name, KERNELS, kernel)
        self.score: Score = score
        self.scale = scale
        self.kernel = kernel

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        return dense_attention(q, k, v, score=self.score, scale=self.scale, key_mask=key_mask, kernel=self.kernel)

    def weights(self, q: Tensor, k: Tensor, queries: Tensor, key_mask: Tensor | None = None) -> AttentionWeights:
        check_queries(self.name, q, queries)
        weights = dense_weights(
            self.split_heads(q), self.split_heads(k), queries, score=self.score, scale=self.scale, key_mask=key_mask
        )
        return AttentionWeights(torch.arange(weights.shape[3], device=q.device).expand(weights.shape), weights)

    def cost(self, shape: AttentionShape) -> AttentionCost:
        """Forward 2 n_q n_k (D + E); backward recomputes the scores, makes three gradients. Saved: output and sums."""
        pairs = shape.batch * shape.heads * shape.q_size.area * shape.kv_size.area
        queries = shape.batch * shape.heads * shape.q_size.area
        return AttentionCost(
            forward_flops=2 * pairs * (shape.qk_channels + shape.v_channels),
            backward_flops=2 * pairs * (3 * shape.qk_channels + 2 * shape.v_channels),
            saved_bytes=4 * queries * (shape.v_channels + 1),
        )

    def reasons_against(self, shape: AttentionShape) -> list[str]:
        return []

    def extra_repr(self) -> str:
        return f"heads={self.heads}, score={self.score}, scale={self.scale}, kernel={self.kernel}"
