"""Full (exact) attention between two maps, in memory linear in the number of pixels."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from saccade.attention.mixer import AttentionCost, AttentionWeights, SpatialAttention, check_queries
from saccade.geometry import AttentionShape, SlotSpec
from saccade.ops.dense import KERNELS, against_vectors, dense_attention, dense_weights
from saccade.ops.dense.boxes import box_pairs
from saccade.ops.dense.keys import KeyGrid, KeyPlaces, check_key_options, key_grid, key_reasons
from saccade.ops.dense.paste import dense_paste
from saccade.ops.dispatch import Score, check_kernel_name, check_score
from saccade.ops.inputs import check_scale
from saccade.ops.patches import saved_for_vectors


class FullAttention(SpatialAttention):
    """Every query attends to every key: `saccade.ops.dense_attention`.

    The PSAL paper's "Full" (arXiv 2202.03163, section 4) is `score="l2", scale=1.0, patch_size=7, key_stride=3,
    keys="inside"` at 256x256; its strides at other sizes are 1 at 64, 2 at 128, 5 at 256 (Table 3), 10 at 512.

    Args:
        spec: the slot it fills.
        heads: number of heads.
        score: "l2", -|q - k|^2, is the default of GPA's released layer at its full-attention levels too; "dot" is the
            field's and GPA's text (arXiv 2107.03742, Eq. 1); "cosine" compares directions, "unit_key" divides the key
            alone by its length.
        scale: factor on the score; None is 1 / sqrt(channels compared), Eq. 1 has 1, cosine and unit_key 1.
        patch_size: p, odd: queries and keys are compared as p x p patches; values are read at the centre.
        key_stride: only every so many rows and cols hold keys.
        keys: "all", or "inside": only keys whose patch lies inside the map.
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
        patch_size: int = 1,
        key_stride: int = 1,
        keys: KeyPlaces = "all",
        kernel: str = "auto",
    ) -> None:
        super().__init__(spec, heads=heads)
        check_score(self.name, score)
        check_kernel_name(self.name, KERNELS, kernel)
        self.score: Score = score
        self.scale = check_scale(self.name, scale)
        self.patch_size, self.key_stride = check_key_options(self.name, patch_size, key_stride, keys)
        self.keys: KeyPlaces = keys
        self.kernel = kernel

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        return dense_attention(
            q,
            k,
            v,
            score=self.score,
            scale=self.scale,
            patch_size=self.patch_size,
            key_stride=self.key_stride,
            keys=self.keys,
            key_mask=key_mask,
            kernel=self.kernel,
        )

    def paste(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None, *, side: int = 3, divisor: float = 1.0
    ) -> Tensor:
        """As in `SpatialAttention`, without patches of values where all keys are kept: `saccade.ops.dense.paste`."""
        if self.key_stride > 1 or self.keys == "inside" or self.kernel == "reference":
            return super().paste(q, k, v, key_mask, side=side, divisor=divisor)
        brought = dense_paste(
            self.split_heads(q),
            self.split_heads(k),
            self.split_heads(v),
            side=side,
            divisor=divisor,
            score=self.score,
            scale=self.scale,
            patch_size=self.patch_size,
            key_mask=key_mask,
        )
        return brought.flatten(1, 2)

    def weights(self, q: Tensor, k: Tensor, queries: Tensor, key_mask: Tensor | None = None) -> AttentionWeights:
        check_queries(self.name, q, queries)
        return AttentionWeights(
            *dense_weights(
                self.split_heads(q),
                self.split_heads(k),
                queries,
                score=self.score,
                scale=self.scale,
                patch_size=self.patch_size,
                key_stride=self.key_stride,
                keys=self.keys,
                key_mask=key_mask,
            )
        )

    def cost(self, shape: AttentionShape) -> AttentionCost:
        """Forward 2 n_q n_k (D p^2 + E); backward recomputes the scores and makes three gradients.

        Of patches "auto" takes, on a CPU, SDPA where there are few, and where all keys are kept the boxes kernel, which
        multiplies single pixels. Saved by SDPA: output, softmax sums, and queries, keys and values as vectors; by the
        chunked kernel of patches the first two; and whatever was made of the maps before.
        """
        grid = key_grid(self.name, shape.kv_size, self.patch_size, self.key_stride, self.keys)
        channels, maps = shape.qk_channels * self.patch_size**2, shape.batch * shape.heads
        queries, keys = shape.q_size.area, grid.size.area
        pixel_pairs = patch_pairs = queries * keys
        values = shape.v_channels
        made = saved_for_vectors(self.patch_size, self.score, shape.qk_channels, queries, shape.kv_size.area)
        kernel = self._kernel(shape, grid)
        if kernel == "sdpa":
            width = max(channels + (self.score == "l2"), values)
            saved = made + width * (2 * queries + 2 * keys) + queries + (self.score == "l2") * channels * keys
        elif kernel == "boxes":
            channels = shape.qk_channels
            pixel_pairs, patch_pairs = box_pairs(shape.q_size, grid.size, self.patch_size)
            saved = queries * (values + 1) + self._saved_by_boxes(shape, grid)
            values += 1  # the softmax sum
        elif self.patch_size > 1:
            saved = queries * (values + 1) + values * (0 if grid.whole else keys)
        else:
            units = {"cosine": queries + keys, "unit_key": keys}.get(self.score, 0 if grid.whole else keys)
            saved = made + channels * units + values * (0 if grid.whole else keys)
        return AttentionCost(
            forward_flops=2 * maps * (pixel_pairs * channels + patch_pairs * values),
            backward_flops=2 * maps * (3 * pixel_pairs * channels + 2 * patch_pairs * shape.v_channels),
            saved_bytes=4 * maps * saved,
        )

    def _kernel(self, shape: AttentionShape, grid: KeyGrid) -> str:
        """What "auto" takes on a CPU."""
        if self.kernel != "auto" or self.patch_size == 1:
            return "sdpa" if self.kernel == "auto" else self.kernel
        vectors = replace(shape, qk_channels=shape.qk_channels * self.patch_size**2, kv_size=grid.size)
        if not against_vectors(vectors, 4, boxes=grid.step == 1):
            return "sdpa"
        return "boxes" if grid.step == 1 else "chunked"

    def _saved_by_boxes(self, shape: AttentionShape, grid: KeyGrid) -> int:
        """Entries of the padded maps and of what is made of lengths, a head."""
        border = self.patch_size - 1
        queries = (shape.q_size.rows + border) * (shape.q_size.cols + border)
        keys = (grid.size.rows + border) * (grid.size.cols + border)
        saved = shape.qk_channels * (queries + keys)
        if self.score == "l2":
            saved += keys + grid.size.area
        lengths = {"cosine": shape.q_size.area + shape.kv_size.area, "unit_key": shape.kv_size.area}
        return saved + 4 * lengths.get(self.score, 0)

    def reasons_against(self, shape: AttentionShape) -> list[str]:
        return key_reasons(shape.kv_size, self.patch_size, self.keys)

    def query_rim(self) -> int | None:
        return self.patch_size // 2

    def extra_repr(self) -> str:
        return (
            f"heads={self.heads}, score={self.score}, scale={self.scale}, patch_size={self.patch_size}, "
            f"key_stride={self.key_stride}, keys={self.keys}, kernel={self.kernel}"
        )
