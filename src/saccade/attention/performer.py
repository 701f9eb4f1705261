"""Performer as a backend (arXiv 2009.14794): attention estimated by positive orthogonal random features."""

from __future__ import annotations

from torch import Tensor

from saccade.attention.mixer import AttentionCost, AttentionWeights, SpatialAttention, check_queries
from saccade.geometry import AttentionShape, SlotSpec
from saccade.ops.dispatch import Score, check_kernel_name, check_score
from saccade.ops.inputs import check_scale, check_seed
from saccade.ops.patches import check_patch_size
from saccade.ops.performer import (
    KERNELS,
    SCORES,
    check_eps,
    check_features,
    default_features,
    kept_projection,
    performer_attention,
    performer_weights,
)


class PerformerAttention(SpatialAttention):
    """Every query attends to every key by random features: `saccade.ops.performer.performer_attention`.

    The directions are no part of the state dict: a seed gives them.

    Args:
        spec: the slot it fills.
        features: M; None is d ln d, d the channels compared (5224 for 7x7 patches of 16 channels, as in PSAL's tables).
        score: "dot" as in the paper; "l2" is the Gaussian kernel by the same features.
        scale: factor on the score; None is 1 / sqrt(d).
        patch_size: p; queries and keys are compared as p x p patches, values are read at the centre.
        eps: constant beside every feature; 1e-4 is the released layers', 0 leaves the estimate unbiased.
        centre: estimate about the maps' mean vectors, the rest exactly: on feature maps, whose vectors have much in
            common, several times closer to full attention than the paper's estimate, at the same cost.
        seed: of the directions, the same in every call; None draws new ones in each, by PyTorch's global generator.
        heads: number of heads; they share the directions.
        kernel: "auto" or the name of one.
    """

    name = "performer"

    def __init__(
        self,
        spec: SlotSpec | None = None,
        *,
        features: int | None = None,
        score: Score = "dot",
        scale: float | None = None,
        patch_size: int = 1,
        eps: float = 0.0,
        centre: bool = False,
        seed: int | None = 0,
        heads: int = 1,
        kernel: str = "auto",
    ) -> None:
        super().__init__(spec, heads=heads)
        check_score(self.name, score, SCORES)
        check_kernel_name(self.name, KERNELS, kernel)
        self.features = check_features(features)
        self.score: Score = score
        self.scale = check_scale(self.name, scale)
        self.patch_size = check_patch_size(self.name, patch_size)
        self.eps = check_eps(eps, centre)
        self.centre = centre
        self.seed = check_seed(self.name, seed)
        self.kernel = kernel

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        return performer_attention(
            q,
            k,
            v,
            features=self.features,
            projection=self._projection(q),
            score=self.score,
            scale=self.scale,
            patch_size=self.patch_size,
            eps=self.eps,
            centre=self.centre,
            key_mask=key_mask,
            kernel=self.kernel,
        )

    def weights(self, q: Tensor, k: Tensor, queries: Tensor, key_mask: Tensor | None = None) -> AttentionWeights:
        check_queries(self.name, q, queries)
        q, k = self.split_heads(q), self.split_heads(k)
        return AttentionWeights(
            *performer_weights(
                q,
                k,
                queries,
                features=self.features,
                projection=self._projection(q),
                score=self.score,
                scale=self.scale,
                patch_size=self.patch_size,
                eps=self.eps,
                centre=self.centre,
                key_mask=key_mask,
            )
        )

    def cost(self, shape: AttentionShape) -> AttentionCost:
        """Forward 2 (n_q + n_k) M (d + E); backward computes features again. Saved: sums M x (E + 2), directions."""
        maps, width, values = shape.batch * shape.heads, shape.qk_channels * self.patch_size**2, shape.v_channels
        features = self.features or default_features(width)
        queries, keys = (maps * features * size.area for size in (shape.q_size, shape.kv_size))
        return AttentionCost(
            forward_flops=2 * (queries * (width + values + 1) + keys * (width + values)),
            backward_flops=2 * (queries * (2 * width + 2 * values + 3) + keys * (2 * width + 2 * values)),
            saved_bytes=4 * features * (maps * (values + (1 if self.eps else 2)) + width),
        )

    def reasons_against(self, shape: AttentionShape) -> list[str]:
        return []

    def extra_repr(self) -> str:
        return (
            f"features={self.features}, score={self.score}, scale={self.scale}, patch_size={self.patch_size}, "
            f"eps={self.eps}, centre={self.centre}, seed={self.seed}, heads={self.heads}, kernel={self.kernel}"
        )

    def _projection(self, q: Tensor) -> Tensor | None:
        if self.seed is None:
            return None
        width = q.shape[2] * self.patch_size**2
        return kept_projection(self.features or default_features(width), width, self.seed, q)
