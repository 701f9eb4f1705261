"""Linear attention between two maps, in time and memory linear in the number of pixels."""

from __future__ import annotations

from torch import Tensor

from saccade.attention.mixer import AttentionCost, AttentionWeights, SpatialAttention, check_queries
from saccade.geometry import AttentionShape, SlotSpec
from saccade.ops.dispatch import check_kernel_name
from saccade.ops.linear import KERNELS, linear_attention, linear_weights
from saccade.ops.linear.convolution import product_flops
from saccade.ops.patches import check_patch_size


class LinearAttention(SpatialAttention):
    """Weights phi(q).phi(k) with phi = elu + 1 in place of a softmax: `saccade.ops.linear.linear_attention`.

    Args:
        spec: the slot it fills.
        patch_size: odd side of the patches that stand for pixels; PSAL's comparison (arXiv 2202.03163, Table 1) has 7.
        heads: number of heads.
        kernel: "auto" or the name of one.
    """

    name = "linear"

    def __init__(
        self,
        spec: SlotSpec | None = None,
        *,
        patch_size: int = 1,
        heads: int = 1,
        kernel: str = "auto",
    ) -> None:
        super().__init__(spec, heads=heads)
        check_kernel_name(self.name, KERNELS, kernel)
        self.patch_size = check_patch_size(self.name, patch_size)
        self.kernel = kernel

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        return linear_attention(q, k, v, patch_size=self.patch_size, key_mask=key_mask, kernel=self.kernel)

    def weights(self, q: Tensor, k: Tensor, queries: Tensor, key_mask: Tensor | None = None) -> AttentionWeights:
        check_queries(self.name, q, queries)
        q, k = self.split_heads(q), self.split_heads(k)
        return AttentionWeights(*linear_weights(q, k, queries, patch_size=self.patch_size, key_mask=key_mask))

    def cost(self, shape: AttentionShape) -> AttentionCost:
        """Forward 2 (n_q + n_k) D p^2 (E + 1), and p - 1 columns more where the CPU goes by rows.

        Backward spreads two gradients and makes one weight and one correlation. Saved: the weight (E + 1) D p^2, the
        denominator and the output.
        """
        depth, values, patch = shape.qk_channels, shape.v_channels + 1, self.patch_size
        queries, keys = (product_flops(depth, values, size, patch) for size in (shape.q_size, shape.kv_size))
        backward = queries + product_flops(values, depth, shape.q_size, patch)
        backward += product_flops(values, depth, shape.kv_size, patch)
        backward += product_flops(depth, values - 1, shape.kv_size, patch)
        maps = shape.batch * shape.heads
        return AttentionCost(
            forward_flops=maps * (queries + keys),
            backward_flops=maps * backward,
            saved_bytes=4 * maps * values * (depth * patch**2 + shape.q_size.area),
        )

    def reasons_against(self, shape: AttentionShape) -> list[str]:
        return []

    def extra_repr(self) -> str:
        return f"patch_size={self.patch_size}, heads={self.heads}, kernel={self.kernel}"
