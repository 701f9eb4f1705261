"""Grid-partitioned attention as a backend (arXiv 2107.03742): sizes derived from the map as in the released layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from saccade.attention.mixer import AttentionCost, AttentionWeights, SpatialAttention, check_queries
from saccade.geometry import AttentionShape, Size, SlotSpec
from saccade.ops.dispatch import Score, check_kernel_name, check_score
from saccade.ops.gpa import KERNELS, gpa_attention, gpa_coverage, gpa_weights
from saccade.ops.gpa_cells import grid_reasons, valid_cell_counts, valid_coarse

#: Options in which the paper's text (Eq. 1, section 3) differs from the released layer, whose values are the defaults.
PAPER: Mapping[str, object] = MappingProxyType({"score": "dot", "scale": 1.0})


class GridPartitionedAttention(SpatialAttention):
    """Queries of a cell share the few key blocks that the cell finds relevant: `saccade.ops.gpa_attention`.

    The paper's GPA1024_12_64 is `coarse=64, cells=32, keys_per_cell=12`, the defaults.

    Args:
        spec: the slot it fills.
        coarse: rows of the pooled query map that the pooling factor is derived from, d = query rows // coarse (the
            released layer's SHIERARCHY); or the pooled map's exact (rows, cols).
        cells: number of cells along the shorter side of the pooled map, which are squares of shorter side // cells
            coarse pixels (its splitM); or the exact (rows, cols) of cells.
        keys_per_cell: kappa, the coarse keys that a cell chooses, each a block of d x d keys.
        score: "l2" as the released layer's default; "dot" in the paper.
        scale: factor on the score; None is the released layer's 1 / sqrt(channels of a head); 1.0 in the paper's Eq. 1.
            `PAPER` holds what the paper sets apart.
        heads: number of heads; each chooses its own keys.
        kernel: "auto" or the name of one.
    """

    name = "gpa"

    def __init__(
        self,
        spec: SlotSpec | None = None,
        *,
        coarse: int | Sequence[int] = 64,
        cells: int | Sequence[int] = 32,
        keys_per_cell: int = 12,
        score: Score = "l2",
        scale: float | None = None,
        heads: int = 1,
        kernel: str = "auto",
    ) -> None:
        super().__init__(spec, heads=heads)
        check_score(self.name, score)
        check_kernel_name(self.name, KERNELS, kernel)
        if keys_per_cell < 1:
            raise ValueError(f"gpa: keys_per_cell must be at least 1; got {keys_per_cell}.")
        self.coarse = coarse if isinstance(coarse, int) and coarse >= 1 else Size.of(coarse)
        self.cells = cells if isinstance(cells, int) and cells >= 1 else Size.of(cells)
        self.keys_per_cell = keys_per_cell
        self.score: Score = score
        self.scale = scale
        self.kernel = kernel

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        coarse, cells = self._sizes_or_raise(q, k)
        return gpa_attention(
            q,
            k,
            v,
            cells=cells,
            keys_per_cell=self.keys_per_cell,
            coarse=coarse,
            score=self.score,
            scale=self.scale,
            key_mask=key_mask,
            kernel=self.kernel,
        )

    def weights(self, q: Tensor, k: Tensor, queries: Tensor, key_mask: Tensor | None = None) -> AttentionWeights:
        check_queries(self.name, q, queries)
        q, k = self.split_heads(q), self.split_heads(k)
        coarse, cells = self._sizes_or_raise(q, k)
        return AttentionWeights(
            *gpa_weights(
                q,
                k,
                queries,
                cells=cells,
                keys_per_cell=self.keys_per_cell,
                coarse=coarse,
                score=self.score,
                scale=self.scale,
                key_mask=key_mask,
            )
        )

    def coverage(
        self,
        q: Tensor,
        k: Tensor,
        key_mask: Tensor | None = None,
        *,
        samples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The share of full attention's mass on the selected keys, (B, G): see `saccade.ops.gpa_coverage`."""
        q, k = self.split_heads(q), self.split_heads(k)
        coarse, cells = self._sizes_or_raise(q, k)
        return gpa_coverage(
            q,
            k,
            cells=cells,
            keys_per_cell=self.keys_per_cell,
            coarse=coarse,
            score=self.score,
            scale=self.scale,
            key_mask=key_mask,
            samples=samples,
            generator=generator,
        )

    def coarse_size(self, q_size: Size) -> Size:
        """The pooled size of a query map; where `coarse` does not fit, the nearest by rounding down."""
        if isinstance(self.coarse, Size):
            return self.coarse
        factor = max(1, q_size.rows // self.coarse)
        return Size(q_size.rows // factor, q_size.cols // factor)

    def cell_count(self, coarse: Size) -> Size:
        """The number of cells of a pooled map; where `cells` does not fit, the nearest by rounding down."""
        if isinstance(self.cells, Size):
            return self.cells
        side = max(1, min(coarse) // self.cells)
        return Size(coarse.rows // side, coarse.cols // side)

    def cost(self, shape: AttentionShape) -> AttentionCost:
        """Phase 1 2 n'^2 D; phase 2 2 n L (D + E) with L = kappa d^2; saved are the chosen indices.

        Raises:
            ValueError: the shape does not partition; see `reasons_against`.
        """
        reasons = self.reasons_against(shape)
        if reasons:
            raise ValueError(f"gpa: {' '.join(reasons)}")
        coarse = self.coarse_size(shape.q_size)
        block = (shape.q_size.rows // coarse.rows) ** 2
        coarse_keys = shape.kv_size.area // block
        kappa = min(self.keys_per_cell, coarse_keys)
        maps = shape.batch * shape.heads
        pairs = maps * shape.q_size.area * kappa * block
        return AttentionCost(
            forward_flops=2 * maps * coarse.area * coarse_keys * shape.qk_channels
            + 2 * pairs * (shape.qk_channels + shape.v_channels),
            backward_flops=2 * pairs * (3 * shape.qk_channels + 2 * shape.v_channels),
            saved_bytes=8 * maps * self.cell_count(coarse).area * kappa,
        )

    def reasons_against(self, shape: AttentionShape) -> list[str]:
        return self._reasons(shape.q_size, shape.kv_size)

    def _reasons(self, q_size: Size, kv_size: Size) -> list[str]:
        coarse = self.coarse_size(q_size)
        cells = self.cell_count(coarse)
        if isinstance(self.coarse, int):
            if q_size.rows < self.coarse:
                valid = _listed([size.rows for size in valid_coarse(q_size, kv_size, Size.of(self.coarse))])
                return [f"query map {q_size} has fewer rows than coarse={self.coarse}. Valid here: {valid}."]
            factor = q_size.rows // self.coarse
            if q_size.rows % factor or q_size.cols % factor:
                valid = _listed([size.rows for size in valid_coarse(q_size, kv_size, coarse)])
                return [
                    f"query map {q_size} is not a multiple of the factor {factor} that coarse={self.coarse} gives it. "
                    f"Valid here: coarse={valid}."
                ]
        misfit = grid_reasons(q_size, kv_size, coarse, Size(1, 1), self.keys_per_cell)
        if misfit:
            return misfit
        if isinstance(self.cells, int):
            valid = _listed(valid_cell_counts(coarse, self.cells))
            if min(coarse) < self.cells:
                return [
                    f"query map {q_size}, pooled to {coarse}, has fewer pixels along its shorter side than "
                    f"cells={self.cells}. Valid here: {valid}."
                ]
            side = min(coarse) // self.cells
            if coarse.rows % side or coarse.cols % side:
                return [
                    f"query map {q_size}, pooled to {coarse}, does not split into square cells of {side} coarse "
                    f"pixels, which cells={self.cells} along the shorter side gives. Valid here: {valid}."
                ]
        return grid_reasons(q_size, kv_size, coarse, cells, self.keys_per_cell)

    def _sizes_or_raise(self, q: Tensor, k: Tensor) -> tuple[Size, Size]:
        q_size, kv_size = Size(*q.shape[-2:]), Size(*k.shape[-2:])
        reasons = self._reasons(q_size, kv_size)
        if reasons:
            slot = "" if self.spec is None else f", slot {self.spec.name}"
            raise ValueError(f"gpa{slot}: {' '.join(reasons)}")
        coarse = self.coarse_size(q_size)
        return coarse, self.cell_count(coarse)

    def extra_repr(self) -> str:
        return (
            f"coarse={self.coarse}, cells={self.cells}, keys_per_cell={self.keys_per_cell}, score={self.score}, "
            f"scale={self.scale}, heads={self.heads}, kernel={self.kernel}"
        )


def _listed(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in dict.fromkeys(values))
