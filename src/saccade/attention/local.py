"""Windowed attention between two maps, in memory linear in the number of pixels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from saccade.attention.mixer import AttentionCost, AttentionWeights, SpatialAttention, check_queries
from saccade.geometry import AttentionShape, SlotSpec
from saccade.ops.dispatch import Score, check_kernel_name, check_score
from saccade.ops.inputs import check_scale
from saccade.ops.local import KERNELS, local_attention, local_flops, local_weights
from saccade.ops.local.window import check_window
from saccade.ops.patches import check_patch_size


class LocalAttention(SpatialAttention):
    """Every query attends to the window of keys around it: `saccade.ops.local.local_attention`.

    Args:
        spec: the slot it fills.
        window: side in key pixels, or (rows, cols); 50 in PSAL's comparison (arXiv 2202.03163, Table 1).
        score: "l2" as in that comparison, or "dot", "cosine", "unit_key".
        scale: factor on the score; None is 1 / sqrt(channels compared), or 1 for "cosine" and "unit_key".
        patch_size: odd side of the patches that stand for pixels.
        heads: number of heads.
        kernel: "auto" or the name of one.
    """

    name = "local"

    def __init__(
        self,
        spec: SlotSpec | None = None,
        *,
        window: int | Sequence[int] = 50,
        score: Score = "l2",
        scale: float | None = None,
        patch_size: int = 1,
        heads: int = 1,
        kernel: str = "auto",
    ) -> None:
        super().__init__(spec, heads=heads)
        check_score(self.name, score)
        check_kernel_name(self.name, KERNELS, kernel)
        self.window = check_window(self.name, window)
        self.score: Score = score
        self.scale = check_scale(self.name, scale)
        self.patch_size = check_patch_size(self.name, patch_size)
        self.kernel = kernel

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        return local_attention(
            q,
            k,
            v,
            window=self.window,
            score=self.score,
            scale=self.scale,
            patch_size=self.patch_size,
            key_mask=key_mask,
            kernel=self.kernel,
        )

    def weights(self, q: Tensor, k: Tensor, queries: Tensor, key_mask: Tensor | None = None) -> AttentionWeights:
        check_queries(self.name, q, queries)
        return AttentionWeights(
            *local_weights(
                self.split_heads(q),
                self.split_heads(k),
                queries,
                window=self.window,
                score=self.score,
                scale=self.scale,
                patch_size=self.patch_size,
                key_mask=key_mask,
            )
        )

    def cost(self, shape: AttentionShape) -> AttentionCost:
        """The products that the tiles of the kernel make, keys outside windows that they meet included.

        Backward makes the scores once more and two products for each of the forward's. Saved: output and softmax sums.
        """
        scores, values = local_flops(shape, self.window, self.score, self.patch_size)
        return AttentionCost(
            forward_flops=scores + values,
            backward_flops=3 * scores + 2 * values,
            saved_bytes=4 * shape.batch * shape.heads * shape.q_size.area * (shape.v_channels + 1),
        )

    def reasons_against(self, shape: AttentionShape) -> list[str]:
        return []

    def extra_repr(self) -> str:
        return (
            f"window={self.window}, score={self.score}, scale={self.scale}, patch_size={self.patch_size}, "
            f"heads={self.heads}, kernel={self.kernel}"
        )
