"""Reformer attention as a backend (arXiv 2001.04451): keys found by locality-sensitive hashing."""

from __future__ import annotations

import torch
from torch import Tensor

from saccade.attention.mixer import AttentionCost, AttentionWeights, SpatialAttention, check_queries
from saccade.geometry import AttentionShape, SlotSpec
from saccade.ops.dispatch import check_kernel_name
from saccade.ops.inputs import check_scale, check_seed
from saccade.ops.options import flag
from saccade.ops.reformer import (
    KERNELS,
    ROTATION_BUCKETS,
    check_reformer_options,
    reformer_attention,
    reformer_weights,
    size_reasons,
)
from saccade.ops.reformer.buckets import Chunking


class ReformerAttention(SpatialAttention):
    """Queries attend to the keys that share a bucket with them, or nearly: `saccade.ops.reformer.reformer_attention`.

    Args:
        spec: the slot it fills.
        bucket_size: most tokens of a chunk of the sorted sequence; queries see their chunk and the one before.
        hashes: rounds of hashing; each adds keys, time, and nothing to the memory but the order of the tokens.
        shared_qk: the queries are the keys, the paper's self-attention: the key map is not read, so a block's key
            projection gets no gradient.
        keys_only: False lets queries attend to query tokens too, which bring zeros: the released concatenation trick.
        rotation_buckets: most buckets that one rotation tells apart, beyond which there are two; None is always one.
        scale: factor on the product of a query and a key of length 1; None is 1 / sqrt(channels compared).
        patch_size: queries and keys are compared as patches of so many pixels a side, odd.
        seed: makes every call hash alike; None draws from the global generator, anew in every call.
        heads: number of heads; they share rotations, as in the released layers.
        kernel: "auto" or the name of one.
    """

    name = "reformer"

    def __init__(
        self,
        spec: SlotSpec | None = None,
        *,
        bucket_size: int = 64,
        hashes: int = 8,
        shared_qk: bool = False,
        keys_only: bool = True,
        rotation_buckets: int | None = ROTATION_BUCKETS,
        scale: float | None = None,
        patch_size: int = 1,
        seed: int | None = None,
        heads: int = 1,
        kernel: str = "auto",
    ) -> None:
        super().__init__(spec, heads=heads)
        check_reformer_options(self.name, bucket_size, hashes, rotation_buckets, scale, patch_size)
        check_kernel_name(self.name, KERNELS, kernel)
        self.bucket_size, self.hashes = int(bucket_size), int(hashes)
        self.shared_qk = flag(self.name, "shared_qk", shared_qk)
        self.keys_only = flag(self.name, "keys_only", keys_only)
        self.rotation_buckets = None if rotation_buckets is None else int(rotation_buckets)
        self.scale = check_scale(self.name, scale)
        self.patch_size = int(patch_size)
        self.seed = check_seed(self.name, seed)
        self.kernel = kernel

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        return reformer_attention(
            q,
            k,
            v,
            bucket_size=self.bucket_size,
            hashes=self.hashes,
            shared_qk=self.shared_qk,
            keys_only=self.keys_only,
            rotation_buckets=self.rotation_buckets,
            scale=self.scale,
            patch_size=self.patch_size,
            key_mask=key_mask,
            generator=self._generator(),
            kernel=self.kernel,
        )

    def weights(self, q: Tensor, k: Tensor, queries: Tensor, key_mask: Tensor | None = None) -> AttentionWeights:
        check_queries(self.name, q, queries)
        return AttentionWeights(
            *reformer_weights(
                self.split_heads(q),
                self.split_heads(k),
                queries,
                bucket_size=self.bucket_size,
                hashes=self.hashes,
                shared_qk=self.shared_qk,
                keys_only=self.keys_only,
                rotation_buckets=self.rotation_buckets,
                scale=self.scale,
                patch_size=self.patch_size,
                key_mask=key_mask,
                generator=self._generator(),
            )
        )

    def _generator(self) -> torch.Generator | None:
        return None if self.seed is None else torch.Generator("cpu").manual_seed(self.seed)

    def cost(self, shape: AttentionShape) -> AttentionCost:
        """Hashing 2 T D' columns; each round 2 T W (D' + E), T tokens, W the window of two chunks, D' = D p^2.

        Backward recomputes the products and makes three gradients. Saved: output, logsumexps, the tokens' order.
        """
        maps, queries = shape.batch * shape.heads, shape.q_size.area
        tokens = queries + (0 if self.shared_qk else shape.kv_size.area)
        chunking = Chunking(tokens, self.bucket_size, self.hashes, self.rotation_buckets)
        width = shape.qk_channels * self.patch_size**2
        pairs = maps * self.hashes * chunking.padded * chunking.length * (1 + chunking.back)
        return AttentionCost(
            forward_flops=2 * maps * tokens * width * chunking.rotation_columns
            + 2 * pairs * (width + shape.v_channels),
            backward_flops=2 * pairs * (3 * width + 2 * shape.v_channels),
            saved_bytes=4 * maps * (queries * (shape.v_channels + 1) + self.hashes * chunking.padded),
        )

    def reasons_against(self, shape: AttentionShape) -> list[str]:
        return size_reasons(shape, self.shared_qk)

    def extra_repr(self) -> str:
        return (
            f"bucket_size={self.bucket_size}, hashes={self.hashes}, shared_qk={self.shared_qk}, "
            f"keys_only={self.keys_only}, rotation_buckets={self.rotation_buckets}, scale={self.scale}, "
            f"patch_size={self.patch_size}, seed={self.seed}, heads={self.heads}, kernel={self.kernel}"
        )
