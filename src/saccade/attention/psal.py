"""Patch-based stochastic attention as a backend (arXiv 2202.03163): PatchMatch finds the keys of every query."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from saccade.attention.mixer import AttentionCost, AttentionWeights, SpatialAttention, check_queries
from saccade.geometry import AttentionShape, SlotSpec
from saccade.ops.dispatch import Score, check_kernel_name
from saccade.ops.inputs import check_scale, check_seed
from saccade.ops.options import positive, whole
from saccade.ops.patches import check_patch_size
from saccade.ops.psal import KERNELS, psal_attention, psal_weights
from saccade.ops.psal.plan import check_options, distance_flops, size_reasons
from saccade.ops.psal.read import Readout
from saccade.ops.psal.search import Border, Search, SearchPlan


class _Options(TypedDict):
    matches: int
    patch_size: int
    iterations: int
    score: Score
    scale: float | None
    readout: Readout
    border: Border
    search: Search
    coarse_start: int | None
    fold_divisor: float | None


class PatchBasedStochasticAttention(SpatialAttention):
    """Every query attends to the few keys that a random search finds for its patch: `saccade.ops.psal_attention`.

    The paper's PSAL-3 and its 7 x 7 patches are the defaults; 5 iterations are its inpainting's, its demonstration and
    its colourisation take 10. "PSAL Aggreg." is `matches=1, readout="aggregate"`.

    Args:
        spec: the slot it fills.
        matches: keys that a query keeps, K.
        patch_size: side of the patches that are compared, odd.
        iterations: rounds of the search.
        score: "l2" as in the paper, "dot", "cosine" or "unit_key".
        scale: factor on the score, 1 / temperature; None is 1 / sqrt(channels compared) for "l2" and "dot", else 1.
        readout: "centre", "aggregate" or "fold": see `saccade.ops.psal.read`.
        border: "zeros"; "released" leaves a ring of half a patch unsearched, as the released layer does.
        search: "jump" as in the paper; "sweep", serial scans of the compiled kernel; "exact", all keys.
        coarse_start: pooling factor of an exact coarse search to start from (ours), or None.
        fold_divisor: what "fold" divides the sum of overlapping patches by; None averages them.
        seed: a number draws the same start and candidates at every call; None draws from the global generator.
        heads: number of heads; each searches for itself.
        kernel: "auto" or the name of one.
    """

    name = "psal"

    def __init__(
        self,
        spec: SlotSpec | None = None,
        *,
        matches: int = 3,
        patch_size: int = 7,
        iterations: int = 5,
        score: Score = "l2",
        scale: float | None = 1.0,
        readout: Readout = "centre",
        border: Border = "zeros",
        search: Search = "jump",
        coarse_start: int | None = None,
        fold_divisor: float | None = None,
        seed: int | None = None,
        heads: int = 1,
        kernel: str = "auto",
    ) -> None:
        super().__init__(spec, heads=heads)
        self._options = _Options(
            matches=whole(self.name, "matches", matches),
            patch_size=check_patch_size(self.name, patch_size),
            iterations=whole(self.name, "iterations", iterations, 0),
            score=score,
            scale=check_scale(self.name, scale),
            readout=readout,
            border=border,
            search=search,
            coarse_start=coarse_start and whole(self.name, "coarse_start", coarse_start, 2, "None"),
            fold_divisor=fold_divisor and positive(self.name, "fold_divisor", fold_divisor, "None to average"),
        )
        check_options(**self._options)
        check_kernel_name(self.name, KERNELS, kernel)
        self.seed = check_seed(self.name, seed)
        self.kernel = kernel

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        options, kernel = self._options, self.kernel
        return psal_attention(q, k, v, **options, key_mask=key_mask, generator=self._generator(), kernel=kernel)

    def paste(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None, *, side: int = 3, divisor: float = 1.0
    ) -> Tensor:
        """As in `SpatialAttention`, by the read-out "fold" where the patches that are compared have the pasted side.

        With `readout="fold"` it is `forward`: the mixer pastes by its own options, `fold_divisor` among them.
        """
        if self._options["readout"] == "fold":
            folded: Tensor = self(q, k, v, key_mask)
            return folded
        if self._options["readout"] == "aggregate" or self._options["patch_size"] != side:
            return super().paste(q, k, v, key_mask, side=side, divisor=divisor)
        options, kernel = self._options.copy(), self.kernel
        options["readout"], options["fold_divisor"] = "fold", positive(self.name, "divisor", divisor)
        q, k, v = self.split_heads(q), self.split_heads(k), self.split_heads(v)
        return psal_attention(
            q, k, v, **options, key_mask=key_mask, generator=self._generator(), kernel=kernel
        ).flatten(1, 2)

    def weights(self, q: Tensor, k: Tensor, queries: Tensor, key_mask: Tensor | None = None) -> AttentionWeights:
        """As in `SpatialAttention`; only with a `seed` are they the weights of another call."""
        check_queries(self.name, q, queries)
        q, k = self.split_heads(q), self.split_heads(k)
        options, kernel = self._options, self.kernel
        return AttentionWeights(
            *psal_weights(q, k, queries, **options, key_mask=key_mask, generator=self._generator(), kernel=kernel)
        )

    def cost(self, shape: AttentionShape) -> AttentionCost:
        """FLOPs of the schedule as written, without what kernels leave out; saved are matches, costs and sums.

        A distance counts its differences and squares too, 3 D p^2 FLOPs, as the paper's Table 8 does; a product of
        patches 2 D p^2. Backward visits the K matches again, unless they have no gradient (K = 1 without aggregation).

        Raises:
            ValueError: the shape cannot be searched; see `reasons_against`.
        """
        reasons = self.reasons_against(shape)
        if reasons:
            raise ValueError(f"psal: {' '.join(reasons)}")
        options, maps = self._options, shape.batch * shape.heads
        queries = maps * shape.q_size.area
        matches, patch = options["matches"], options["patch_size"] ** 2
        joint = options["readout"] == "aggregate"
        reads = queries * matches * (1 if options["readout"] == "centre" else patch) * shape.v_channels
        searched = maps * distance_flops(self._plan(), shape.qk_channels, shape.q_size, shape.kv_size)
        steers = joint or matches > 1  # whether costs have a gradient
        return AttentionCost(
            forward_flops=searched + 2 * reads,
            backward_flops=(4 if steers else 2) * reads + steers * 4 * queries * matches * shape.qk_channels * patch,
            saved_bytes=4 * queries * (2 * matches + joint * (1 + shape.v_channels)),
        )

    def reasons_against(self, shape: AttentionShape) -> list[str]:
        return size_reasons(shape.q_size, shape.kv_size, self._plan())

    def query_rim(self) -> int | None:
        """The search is random in any case; neighbours whose matches are read as well reach twice as far."""
        reach = self._options["patch_size"] // 2
        return reach if self._options["readout"] == "centre" else 2 * reach

    def fewest_keys(self) -> int:
        return self._options["matches"]

    def _plan(self) -> SearchPlan:
        options = self._options
        return SearchPlan(
            matches=options["matches"],
            patch_size=options["patch_size"],
            iterations=options["iterations"],
            score=options["score"],
            border=options["border"],
            search=options["search"],
            coarse_start=options["coarse_start"],
            heads=self.heads,
        )

    def _generator(self) -> torch.Generator | None:
        return None if self.seed is None else torch.Generator().manual_seed(self.seed)

    def extra_repr(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self._options.items())
        return f"{options}, seed={self.seed}, heads={self.heads}, kernel={self.kernel}"
