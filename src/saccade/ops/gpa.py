"""Grid-partitioned attention (GPA): each cell of a grid over the query map attends to the few key blocks it chooses.

Source: Jetchev, Yildirim, Bracher, Vollgraf, "Grid Partitioned Attention", arXiv 2107.03742, Algorithm 1, and the
released layer. Different here: sizes are whole numbers given by the caller, ties go to the lower index, keys may be
masked. As in the released layer the choice of keys has no gradient, and each head chooses for itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saccade.geometry import Size
from saccade.ops.dense import dense_logits
from saccade.ops.dispatch import Kernel, Request, Score, check_score, choose
from saccade.ops.gpa_cells import Grid, block_pixels, cell_of_pixel, join_cells, make_grid, split_cells
from saccade.ops.gpa_keys import gpa_select, select_keys
from saccade.ops.gpa_recompute import recompute
from saccade.ops.inputs import at_least_float32, default_scale, make_request, masked_softmax, no_autocast, read_shape

__all__ = ["gpa_attention", "gpa_coverage", "gpa_select", "gpa_weights"]

# Ours: full-attention weights that the coverage measure holds at a time.
COVERAGE_ENTRIES = 2**22


def gpa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cells: Size,
    keys_per_cell: int,
    coarse: Size,
    score: Score = "dot",
    scale: float | None = None,
    key_mask: Tensor | None = None,
    kernel: str = "auto",
) -> Tensor:
    """Let the queries of each cell attend to the pixels of the cell's `keys_per_cell` best coarse keys.

    Args:
        q: (B, G, D, Yq, Xq).
        k: (B, G, D, Yk, Xk).
        v: (B, G, E, Yk, Xk).
        cells: number of cells over the query map, (rows, cols); divides `coarse`.
        keys_per_cell: kappa, coarse keys that a cell chooses; more than there are means all, which is dense attention.
        coarse: size of the average-pooled query map. The factor d = q size / coarse is a whole number, the same for
            rows and cols, and the key map is pooled by the same d.
        score: "dot" or "l2".
        scale: factor on the score; None is 1 / sqrt(D), as in the released layer; 1.0 with "dot" is the paper's Eq. 1.
        key_mask: (B, 1, Yk, Xk) bool, True = may be attended. A cell whose chosen keys are all masked gives zeros.
        kernel: "auto", "recompute" (memory linear in the maps) or "reference" (readable; twice differentiable).

    Returns:
        (B, G, E, Yq, Xq).

    Raises:
        ValueError: the maps do not fit together or do not partition this way, or an unknown score or kernel.
        RuntimeError: the named kernel cannot serve this call.
    """
    shape = read_shape("gpa", q, k, v, key_mask)
    check_score("gpa", score)
    grid = make_grid("gpa", shape.q_size, shape.kv_size, coarse, cells, keys_per_cell)
    chosen = choose("gpa", KERNELS, make_request(shape, score, key_mask, q, k, v), kernel)
    scale = default_scale(scale, shape.qk_channels)
    indices = select_keys(q, k, grid, score, scale, key_mask)
    return chosen.run(q, k, v, indices, grid, score, scale, key_mask)


def gpa_weights(
    q: Tensor,
    k: Tensor,
    queries: Tensor,
    *,
    cells: Size,
    keys_per_cell: int,
    coarse: Size,
    score: Score = "dot",
    scale: float | None = None,
    key_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Which keys a few query pixels attend to, and how much. Arguments as in `gpa_attention`.

    Args:
        queries: (Q, 2) long, rows and cols in the query map.

    Returns:
        Flat key pixels (B, G, Q, kappa * d^2) and their weights, of the same shape.
    """
    shape = read_shape("gpa", q, k, key_mask=key_mask)
    check_score("gpa", score)
    grid = make_grid("gpa", shape.q_size, shape.kv_size, coarse, cells, keys_per_cell)
    scale = default_scale(scale, shape.qk_channels)
    chosen = select_keys(q, k, grid, score, scale, key_mask)[:, :, cell_of_pixel(queries, grid)]  # (B, G, Q, kappa)
    pixels = block_pixels(chosen, grid)  # (B, G, Q, L)
    points = q[..., queries[:, 0], queries[:, 1]].transpose(2, 3).unsqueeze(4)  # (B, G, Q, D, 1)
    with no_autocast(q.device):
        logits = dense_logits(points, _gather(k, pixels), score, scale).squeeze(3)  # (B, G, Q, L)
        return pixels, masked_softmax(logits, _gather_mask(key_mask, pixels))


@torch.no_grad()
def gpa_coverage(
    q: Tensor,
    k: Tensor,
    *,
    cells: Size,
    keys_per_cell: int,
    coarse: Size,
    score: Score = "dot",
    scale: float | None = None,
    key_mask: Tensor | None = None,
    queries: Tensor | None = None,
    samples: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The mean share of full attention's mass on the keys that GPA selects: rises with kappa, to 1 when it selects all.

    Other arguments as in `gpa_attention`. Batch entries with every key masked count as 0.

    Args:
        queries: (Q, 2) long rows and cols of the query pixels to average over.
        samples: instead of `queries`, this many different pixels drawn at random; with neither, all pixels.
        generator: makes the draw reproducible; on the CPU.

    Returns:
        (B, G) in at least float32, one mean for each head.

    Raises:
        ValueError: as `gpa_attention`, or `queries` beside `samples`, or more samples than pixels.
    """
    shape = read_shape("gpa coverage", q, k, key_mask=key_mask)
    check_score("gpa coverage", score)
    grid = make_grid("gpa coverage", shape.q_size, shape.kv_size, coarse, cells, keys_per_cell)
    scale = default_scale(scale, shape.qk_channels)
    queries = _coverage_queries(shape.q_size, queries, samples, generator).to(q.device)
    with no_autocast(q.device):
        chosen = select_keys(q, k, grid, score, scale, key_mask)
        keys, allowed = k.flatten(3), None if key_mask is None else key_mask.flatten(2).unsqueeze(2)
        total = torch.zeros(q.shape[:2], dtype=at_least_float32(q[:0]).dtype, device=q.device)
        rows = max(1, COVERAGE_ENTRIES // (q.shape[0] * q.shape[1] * shape.kv_size.area))
        for part in torch.split(queries, rows):
            points = q[..., part[:, 0], part[:, 1]]  # (B, G, D, R)
            mass = masked_softmax(dense_logits(points, keys, score, scale), allowed)  # (B, G, R, K)
            pixels = block_pixels(chosen[:, :, cell_of_pixel(part, grid)], grid)  # (B, G, R, L)
            total += mass.gather(3, pixels).sum((2, 3))
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


def _reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    grid: Grid,
    score: Score,
    scale: float,
    key_mask: Tensor | None,
) -> Tensor:
    pixels = block_pixels(indices, grid)  # (B, G, cells, L)
    with no_autocast(q.device):
        queries = split_cells(q, grid.cells, grid.cell)  # (B, G, cells, D, Q)
        logits = dense_logits(queries, _gather(k, pixels), score, scale)  # (B, G, cells, Q, L)
        allowed = _gather_mask(key_mask, pixels)
        weights = masked_softmax(logits, None if allowed is None else allowed.unsqueeze(3))
        values = at_least_float32(_gather(v, pixels))  # (B, G, cells, E, L)
        return join_cells(values @ weights.transpose(3, 4), grid.cells, grid.cell).to(q.dtype)


def _gather(maps: Tensor, pixels: Tensor) -> Tensor:
    """Read (B, G, C, Y, X) maps at flat pixels (B, G, M, L) -> (B, G, M, C, L)."""
    channels = maps.shape[2]
    flat = pixels.flatten(2).unsqueeze(2).expand(-1, -1, channels, -1)  # (B, G, C, M * L)
    return torch.unflatten(maps.flatten(3).gather(3, flat), 3, pixels.shape[2:]).transpose(2, 3)


def _gather_mask(key_mask: Tensor | None, pixels: Tensor) -> Tensor | None:
    """Read a (B, 1, Y, X) mask at flat pixels (B, G, M, L) -> (B, G, M, L)."""
    if key_mask is None:
        return None
    flat = key_mask.flatten(2).expand(-1, pixels.shape[1], -1)  # (B, G, K)
    return flat.gather(2, pixels.flatten(2)).view(pixels.shape)


def _anywhere(request: Request) -> list[str]:
    return []


KERNELS = (
    Kernel("recompute", recompute, _anywhere),
    Kernel("reference", _reference, _anywhere, double_backward=True),
)
