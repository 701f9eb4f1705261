"""Grid-partitioned attention as a backend (arXiv 2107.03742): sizes derived from the map as in the released layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TypedDict

import torch
from torch import Tensor

from saccade.attention.mixer import AttentionCost, AttentionWeights, SpatialAttention, check_queries
from saccade.geometry import AttentionShape, Size, SlotSpec, whole_number
from saccade.ops.dispatch import Score, check_kernel_name
from saccade.ops.gpa import KERNELS, gpa_attention, gpa_coverage, gpa_weights
from saccade.ops.gpa.call import GpaOptions, Selection, check_options
from saccade.ops.gpa.cells import grid_reasons, valid_cell_counts, valid_coarse
from saccade.ops.inputs import check_scale
from saccade.ops.options import flag, positive, sides, whole
from saccade.ops.patches import check_patch_size, saved_for_vectors

#: Options in which the paper's text (Eq. 1, section 3) differs from the released layer, whose values are the defaults.
PAPER: Mapping[str, object] = MappingProxyType({"score": "dot", "scale": 1.0})


class _Options(TypedDict):
    keys_per_cell: int
    score: Score
    scale: float | None
    patch_size: int
    causal: bool
    selection: Selection
    temperature: float
    candidates: int | None


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
        scale: factor on the score; None is the released layer's 1 / sqrt(channels compared), or 1 for "cosine" and
            "unit_key"; 1.0 in the paper's Eq. 1. `PAPER` holds what the paper sets apart.
        patch_size: p, odd: queries and keys are compared as p x p patches, which take p * p times their memory.
        causal: attend to nothing that comes later in scan-line order.
        selection: "hard", or "soft": a choice of keys that learns (`saccade.ops.gpa.soft`).
        temperature: of the soft selection; towards 0 it becomes the hard one.
        candidates: coarse keys that a soft selection of a cell attends to; None is twice `keys_per_cell`.
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
        patch_size: int = 1,
        causal: bool = False,
        selection: Selection = "hard",
        temperature: float = 0.1,
        candidates: int | None = None,
        heads: int = 1,
        kernel: str = "auto",
    ) -> None:
        super().__init__(spec, heads=heads)
        check_kernel_name(self.name, KERNELS, kernel)
        self.coarse = self._read_sides("coarse", coarse)
        self.cells = self._read_sides("cells", cells)
        self.keys_per_cell = whole(self.name, "keys_per_cell", keys_per_cell)
        self.score: Score = score
        self.scale = check_scale(self.name, scale)
        self.patch_size = check_patch_size(self.name, patch_size)
        self.causal = flag(self.name, "causal", causal)
        self.selection: Selection = selection
        self.temperature = positive(self.name, "temperature", temperature)
        twice = "None for twice keys_per_cell"
        self.candidates = None if candidates is None else whole(self.name, "candidates", candidates, other=twice)
        self.kernel = kernel
        check_options(self.name, GpaOptions(cells=(1, 1), coarse=(1, 1), **self._options()))

    def _read_sides(self, option: str, value: int | Sequence[int]) -> int | Size:
        size = sides(self.name, option, value)
        return size if whole_number(value) is None else size.rows

    def _options(self) -> _Options:
        """What the op takes beside the sizes."""
        return {
            "keys_per_cell": self.keys_per_cell,
            "score": self.score,
            "scale": self.scale,
            "patch_size": self.patch_size,
            "causal": self.causal,
            "selection": self.selection,
            "temperature": self.temperature,
            "candidates": self.candidates,
        }

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        coarse, cells = self._sizes_or_raise(q, k)
        return gpa_attention(
            q, k, v, cells=cells, coarse=coarse, key_mask=key_mask, kernel=self.kernel, **self._options()
        )

    def weights(self, q: Tensor, k: Tensor, queries: Tensor, key_mask: Tensor | None = None) -> AttentionWeights:
        check_queries(self.name, q, queries)
        q, k = self.split_heads(q), self.split_heads(k)
        coarse, cells = self._sizes_or_raise(q, k)
        return AttentionWeights(
            *gpa_weights(q, k, queries, cells=cells, coarse=coarse, key_mask=key_mask, **self._options())
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
            patch_size=self.patch_size,
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
        """Phase 1 2 n'^2 D p^2; phase 2 2 n L (D p^2 + E) with L = kappa d^2; saved are the chosen indices.

        Beside them patches and unit vectors, and of a soft selection the scores of Phase 1, are saved.

        Raises:
            ValueError: the shape does not partition; see `reasons_against`.
        """
        reasons = self.reasons_against(shape)
        if reasons:
            raise ValueError(f"gpa: {' '.join(reasons)}")
        maps, channels = shape.batch * shape.heads, shape.qk_channels * self.patch_size**2
        coarse = self.coarse_size(shape.q_size)
        cells = self.cell_count(coarse).area
        block = (shape.q_size.rows // coarse.rows) ** 2
        coarse_keys = shape.kv_size.area // block
        kappa = min(self.keys_per_cell, coarse_keys)
        searched = 2 * cells if self.causal else coarse.area  # causal: one query a cell, blocks above and beside
        attended = min(self._attended(coarse.area // cells), coarse_keys)
        everything = (attended if self.causal else kappa) == coarse_keys
        search = 0 if everything else searched * coarse_keys
        soft = self.selection == "soft" and attended > kappa
        saved = 8 * (1 if everything else maps * cells) * attended + 4 * maps * self._saved_vectors(shape)
        if self.causal:
            saved += 8 * (shape.q_size.area + shape.kv_size.area)
        if soft:
            scores = coarse.area * (coarse_keys + channels + attended + 1) + coarse_keys * channels
            saved += 4 * maps * (scores + cells * (11 * attended + 7))  # eleven steps from scores to memberships
        pairs = shape.q_size.area * attended * block
        return AttentionCost(
            forward_flops=2 * maps * (search * channels + pairs * (channels + shape.v_channels)),
            backward_flops=2 * maps * (2 * soft * search * channels + pairs * (3 * channels + 2 * shape.v_channels)),
            saved_bytes=saved,
        )

    def _attended(self, cell_area: int) -> int:
        """Coarse keys that Phase 2 of a cell of so many coarse pixels attends to."""
        if self.causal:
            return self.keys_per_cell + cell_area
        if self.selection == "soft":
            return 2 * self.keys_per_cell if self.candidates is None else self.candidates
        return self.keys_per_cell

    def _saved_vectors(self, shape: AttentionShape) -> int:
        """Entries of the patches and unit vectors that stay for backward, a head."""
        queries, keys = shape.q_size.area, shape.kv_size.area
        made = saved_for_vectors(self.patch_size, self.score, shape.qk_channels, queries, keys)
        units = {"cosine": queries + keys, "unit_key": keys}.get(self.score, 0)
        vectors = units if self.patch_size == 1 else queries + keys
        return made + shape.qk_channels * self.patch_size**2 * vectors

    def reasons_against(self, shape: AttentionShape) -> list[str]:
        return self._reasons(shape.q_size, shape.kv_size)

    def _reasons(self, q_size: Size, kv_size: Size) -> list[str]:
        if self.causal and q_size != kv_size:
            return [f"causal attention needs maps of one size; the query map is {q_size}, the key map {kv_size}."]
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
            f"scale={self.scale}, patch_size={self.patch_size}, causal={self.causal}, selection={self.selection}, "
            f"temperature={self.temperature}, candidates={self.candidates}, heads={self.heads}, kernel={self.kernel}"
        )


def _listed(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in dict.fromkeys(values))
