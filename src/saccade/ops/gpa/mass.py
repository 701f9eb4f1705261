"""How much of full attention's mass the keys hold that grid-partitioned attention selects."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saccade.geometry import Size
from saccade.ops.dense import dense_logits
from saccade.ops.dispatch import Score
from saccade.ops.gpa.call import GpaOptions, prepare
from saccade.ops.gpa.cells import block_pixels
from saccade.ops.inputs import at_least_float32, masked_softmax, no_autocast

# Ours: full-attention weights that the coverage measure holds at a time.
COVERAGE_ENTRIES = 2**22


@torch.no_grad()
def gpa_coverage(
    q: Tensor,
    k: Tensor,
    *,
    cells: Sequence[int],
    keys_per_cell: int,
    coarse: Sequence[int],
    score: Score = "dot",
    scale: float | None = None,
    patch_size: int = 1,
    key_mask: Tensor | None = None,
    queries: Tensor | None = None,
    samples: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The mean share of full attention's mass on the keys that GPA selects: rises with kappa, to 1 when it selects all.

    Other arguments as in `gpa_attention`.

    Args:
        queries: (Q, 2) long rows and cols of the query pixels to average over.
        samples: instead of `queries`, this many different pixels drawn at random; with neither, all pixels.
        generator: makes the draw reproducible; on the CPU.

    Returns:
        (B, G) in at least float32, one mean for each head.

    Raises:
        ValueError: as `gpa_attention`, or `queries` beside `samples`, or more samples than pixels.
    """
    options = GpaOptions(cells, keys_per_cell, coarse, score, scale, patch_size)
    call = prepare("gpa coverage", q, k, None, key_mask, options)
    if call.arrangement.axes != 2:
        raise ValueError(f"gpa coverage: the maps must have two axes; these have {call.arrangement.axes}.")
    queries = _coverage_queries(call.shape.q_size, queries, samples, generator).to(q.device)
    with no_autocast(q.device):
        q, keys = call.q, call.k.flatten(3)
        allowed = None if key_mask is None else key_mask.flatten(2).unsqueeze(2)
        total = torch.zeros(q.shape[:2], dtype=at_least_float32(q[:0]).dtype, device=q.device)
        rows = max(1, COVERAGE_ENTRIES // (q.shape[0] * q.shape[1] * call.shape.kv_size.area))
        for part in torch.split(queries, rows):
            points = q[..., part[:, 0], part[:, 1]]  # (B, G, D, R)
            mass = masked_softmax(dense_logits(points, keys, call.score, call.scale), allowed)  # (B, G, R, K)
            chosen = call.blocks.indices[:, :, call.arrangement.cell_of(part)]
            total += mass.gather(3, block_pixels(chosen, call.blocks.grid)).sum((2, 3))  # (B, G, R, L)
        return total / queries.shape[0]


def _coverage_queries(
    size: Size, queries: Tensor | None, samples: int | None, generator: torch.Generator | None
) -> Tensor:
    if queries is not None:
        if samples is not None:
            raise ValueError("gpa coverage: give queries or samples, not both.")
        return queries
    if samples is None:
        flat = torch.arange(size.area)
    elif not 1 <= samples <= size.area:
        raise ValueError(
            f"gpa coverage: samples must be between 1 and the {size.area} pixels of {size}; got {samples}."
        )
    else:
        flat = torch.randperm(size.area, generator=generator)[:samples]
    return torch.stack([flat // size.cols, flat % size.cols], 1)
