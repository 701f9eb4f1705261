"""Nystromformer as a backend (arXiv 2102.03902): attention through landmarks, with its optional convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saccade.attention.mixer import AttentionCost, AttentionWeights, SpatialAttention, check_queries
from saccade.geometry import AttentionShape, Size, SlotSpec, whole_number
from saccade.ops.dispatch import Score, check_kernel_name, check_score
from saccade.ops.inputs import check_scale
from saccade.ops.nystromformer import KERNELS, check_landmarks, nystrom_attention, nystrom_weights
from saccade.ops.nystromformer.chunked import pooling_products
from saccade.ops.patches import check_patch_size, nearest_odd


class NystromAttention(SpatialAttention):
    """Every query attends to every key through landmarks: `saccade.ops.nystromformer.nystrom_attention`.

    Without `value_conv` it has no parameters, so checkpoints fit any backend. With it the state dict of the slot gains
    `value_conv.weight` (heads, 1, c, c): a checkpoint from another backend then loads with strict=False, and the
    convolution keeps its fresh weights; one trained with it loads into another backend with strict=False, without it.

    Args:
        spec: the slot it fills.
        landmarks: L of the query map and of the key map.
        pinv_iterations: steps of the iterative pseudo-inverse, 6 in the paper.
        score: "dot" as in the paper, "l2", "cosine" or "unit_key".
        scale: factor on the score; None is 1 / sqrt(channels compared), 1 for the last two.
        patch_size: p; queries and keys are compared as p x p patches, values are read at the centre.
        value_conv: odd side c of the depthwise convolution that is added to the output (along the sequence in the
            paper, over the map here): one c x c filter a head on the values, masked ones as zeros. It
            ties a value to the query at its place, so query and key map must be of one size. None is none.
        heads: number of heads.
        kernel: "auto" or the name of one.
    """

    name = "nystromformer"

    def __init__(
        self,
        spec: SlotSpec | None = None,
        *,
        landmarks: int = 256,
        pinv_iterations: int = 6,
        score: Score = "dot",
        scale: float | None = None,
        patch_size: int = 1,
        value_conv: int | None = None,
        heads: int = 1,
        kernel: str = "auto",
    ) -> None:
        super().__init__(spec, heads=heads)
        check_score(self.name, score)
        check_kernel_name(self.name, KERNELS, kernel)
        side = whole_number(value_conv)
        if value_conv is not None and (side is None or side < 1 or side % 2 == 0):
            raise ValueError(
                f"nystromformer: value_conv must be an odd side of 1 or more, or None; got {value_conv!r}. "
                f"Valid here: {nearest_odd(value_conv)}."
            )
        self.landmarks, self.pinv_iterations = check_landmarks(landmarks, pinv_iterations)
        self.score: Score = score
        self.scale = check_scale(self.name, scale)
        self.patch_size = check_patch_size(self.name, patch_size)
        self.kernel = kernel
        self.value_conv: nn.Conv2d | None = None
        if side is not None:
            heads = self.heads
            self.value_conv = nn.Conv2d(heads, heads, side, padding=side // 2, groups=heads, bias=False)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        self._check_sizes(q, k)
        out = nystrom_attention(
            q,
            k,
            v,
            landmarks=self.landmarks,
            pinv_iterations=self.pinv_iterations,
            score=self.score,
            scale=self.scale,
            patch_size=self.patch_size,
            key_mask=key_mask,
            kernel=self.kernel,
        )
        return out if self.value_conv is None else out + self._convolved(self.value_conv, v, key_mask)

    def weights(self, q: Tensor, k: Tensor, queries: Tensor, key_mask: Tensor | None = None) -> AttentionWeights:
        """As in every backend; some weights may be negative, and those of `value_conv` are not among them."""
        check_queries(self.name, q, queries)
        q, k = self.split_heads(q), self.split_heads(k)
        return AttentionWeights(
            *nystrom_weights(
                q,
                k,
                queries,
                landmarks=self.landmarks,
                pinv_iterations=self.pinv_iterations,
                score=self.score,
                scale=self.scale,
                patch_size=self.patch_size,
                key_mask=key_mask,
            )
        )

    def cost(self, shape: AttentionShape) -> AttentionCost:
        """Forward 2 (n_q + n_k) L (d + E), means and the inverse; saved are landmarks and what they gather."""
        maps, width, values = shape.batch * shape.heads, shape.qk_channels * self.patch_size**2, shape.v_channels
        q_area, k_area = shape.q_size.area, shape.kv_size.area
        of_q, of_k = min(self.landmarks, q_area), min(self.landmarks, k_area)
        kernels = 2 * (q_area * of_k + k_area * of_q)
        inverse = self.pinv_iterations * (4 * of_q**2 * of_k + 4 * of_q**3)
        inner = 2 * of_q * of_k * (width + values) + inverse
        means = (
            2
            * width
            * sum(
                pooling_products(size, self.landmarks, width, self.patch_size) for size in (shape.q_size, shape.kv_size)
            )
        )
        side = 0 if self.value_conv is None else self.value_conv.kernel_size[0]
        conv = 2 * values * q_area * side**2
        return AttentionCost(
            forward_flops=maps * (kernels * (width + values) + inner + means + conv),
            backward_flops=maps * (kernels * (3 * width + 2 * values) + 3 * inner + means + 2 * conv),
            saved_bytes=4 * maps * ((of_q + of_k) * width + of_q * (values + 1)),
        )

    def reasons_against(self, shape: AttentionShape) -> list[str]:
        return self._size_reasons(shape.q_size, shape.kv_size)

    def _size_reasons(self, q_size: Size, kv_size: Size) -> list[str]:
        if self.value_conv is None or q_size == kv_size:
            return []
        return [
            f"value_conv adds each value to the query at its place, but the query map is {q_size} and the key map is "
            f"{kv_size}. Valid here: value_conv=None."
        ]

    def _check_sizes(self, q: Tensor, k: Tensor) -> None:
        reasons = self._size_reasons(Size(*q.shape[-2:]), Size(*k.shape[-2:]))
        if reasons:
            slot = "" if self.spec is None else f", slot {self.spec.name}"
            raise ValueError(f"nystromformer{slot}: {' '.join(reasons)}")

    def _convolved(self, conv: nn.Conv2d, v: Tensor, key_mask: Tensor | None) -> Tensor:
        values = v if key_mask is None else v * key_mask.unsqueeze(1)
        planes = values.transpose(1, 2).flatten(0, 1)  # (B, G, E, Y, X) -> (B*E, G, Y, X)
        by_head = conv(planes.to(conv.weight.dtype)).to(v.dtype)
        return torch.unflatten(by_head, 0, (v.shape[0], v.shape[2])).transpose(1, 2)

    def extra_repr(self) -> str:
        return (
            f"landmarks={self.landmarks}, pinv_iterations={self.pinv_iterations}, score={self.score}, "
            f"scale={self.scale}, patch_size={self.patch_size}, heads={self.heads}, kernel={self.kernel}"
        )
