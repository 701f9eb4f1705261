"""Grid-partitioned attention (GPA): each cell of a grid over the query map attends to the few key blocks it chooses.

Source: Jetchev, Yildirim, Bracher, Vollgraf, "Grid Partitioned Attention", arXiv 2107.03742, Algorithm 1, and the
released layer. Different here: sizes are whole numbers given by the caller, ties go to the lower index, keys may be
masked. As in the released layer the choice of keys has no gradient, and each head chooses for itself. Ours, and off by
default: unit vectors and patches as what is compared, maps of one and three axes (a sequence, a video volume), causal
maps (`saccade.ops.gpa.causal`) and a choice that can be trained (`saccade.ops.gpa.soft`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saccade.ops.dense import dense_logits
from saccade.ops.dispatch import Kernel, Request, Score, choose
from saccade.ops.gpa.call import GpaOptions, Selection, prepare
from saccade.ops.gpa.cells import Blocks, block_pixels, centre_of, join_cells, split_cells
from saccade.ops.gpa.mass import gpa_coverage
from saccade.ops.gpa.recompute import recompute
from saccade.ops.inputs import at_least_float32, make_request, masked_softmax, no_autocast

__all__ = ["gpa_attention", "gpa_coverage", "gpa_select", "gpa_weights"]


def gpa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cells: Sequence[int],
    keys_per_cell: int,
    coarse: Sequence[int],
    score: Score = "dot",
    scale: float | None = None,
    patch_size: int = 1,
    causal: bool = False,
    selection: Selection = "hard",
    temperature: float = 0.1,
    candidates: int | None = None,
    key_mask: Tensor | None = None,
    kernel: str = "auto",
) -> Tensor:
    """Let the queries of each cell attend to the pixels of the cell's `keys_per_cell` best coarse keys.

    Maps have 1, 2 or 3 spatial axes; sizes have as many numbers. Below they are images.

    Args:
        q: (B, G, D, Yq, Xq).
        k: (B, G, D, Yk, Xk).
        v: (B, G, E, Yk, Xk).
        cells: number of cells over the query map, (rows, cols); divides `coarse`.
        keys_per_cell: kappa, coarse keys that a cell chooses; more than there are means all, which is dense attention.
        coarse: size of the average-pooled query map. The factor d = q size / coarse is a whole number, the same for
            rows and cols, and the key map is pooled by the same d. With 1 or 3 axes each axis has its own factor.
        score: "dot", "l2", "cosine" or "unit_key". Phase 1 compares the averages of what Phase 2 compares.
        scale: factor on the score; None is 1 / sqrt(D * p * p), as in the released layer, or 1 for unit vectors; 1.0
            with "dot" is the paper's Eq. 1.
        patch_size: p, odd: pixels of images are compared by the p x p patches around them, zeros outside the map.
            Queries and keys then take p * p times their memory.
        causal: a query attends only to keys that do not come after it in scan-line order, and nothing after it has a
            say in which: see `saccade.ops.gpa.causal`. The maps are of one size; patches and a soft selection are not
            possible.
        selection: "hard", or "soft": coarse keys weigh in by memberships that sum to kappa and pass gradients to what
            chose them: see `saccade.ops.gpa.soft`.
        temperature: of the soft selection, in units of the logarithm of the mass by which a cell ranks keys; towards 0
            it becomes the hard one.
        candidates: coarse keys of a cell that a soft selection attends to; None is twice `keys_per_cell`.
        key_mask: (B, 1, Yk, Xk) bool, True = may be attended. A cell whose chosen keys are all masked gives zeros.
        kernel: "auto", "recompute" (memory linear in the maps) or "reference" (readable; twice differentiable).

    Returns:
        (B, G, E, Yq, Xq).

    Raises:
        ValueError: the maps do not fit together or do not partition this way, or a wrong option.
        RuntimeError: the named kernel cannot serve this call.
    """
    options = GpaOptions(
        cells, keys_per_cell, coarse, score, scale, patch_size, causal, selection, temperature, candidates
    )
    call = prepare("gpa", q, k, v, key_mask, options)
    chosen = choose("gpa", KERNELS, make_request(call.shape, score, key_mask, q, k, v), kernel)
    values = call.arrangement.keys(v)
    out = chosen.run(call.q, call.k, values, call.blocks, call.score, call.scale, call.key_mask)
    return call.arrangement.restore(out)


def gpa_select(
    q: Tensor,
    k: Tensor,
    *,
    cells: Sequence[int],
    keys_per_cell: int,
    coarse: Sequence[int],
    score: Score = "dot",
    scale: float | None = None,
    patch_size: int = 1,
    causal: bool = False,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Choose the coarse keys of each cell. Arguments as in `gpa_attention`; no gradient.

    With a mask a coarse key is the mean of its allowed pixels and may be chosen when it has one; cells with fewer such
    keys than `keys_per_cell` fill up with masked ones, which get no attention. Causal cells have their own blocks
    beside the chosen ones.

    Returns:
        (B, G, cells, kappa) long: flat indices into the pooled key map, ascending in each cell.

    Raises:
        ValueError: the maps do not fit together or do not partition this way.
    """
    options = GpaOptions(cells, keys_per_cell, coarse, score, scale, patch_size, causal)
    return prepare("gpa", q, k, None, key_mask, options).blocks.indices


def gpa_weights(
    q: Tensor,
    k: Tensor,
    queries: Tensor,
    *,
    cells: Sequence[int],
    keys_per_cell: int,
    coarse: Sequence[int],
    score: Score = "dot",
    scale: float | None = None,
    patch_size: int = 1,
    causal: bool = False,
    selection: Selection = "hard",
    temperature: float = 0.1,
    candidates: int | None = None,
    key_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Which keys a few query pixels attend to, and how much. Arguments as in `gpa_attention`.

    Args:
        queries: (Q, axes) long, places in the query map: rows and cols of an image.

    Returns:
        Flat key pixels (B, G, Q, kappa * d^2) and their weights, of the same shape.
    """
    options = GpaOptions(
        cells, keys_per_cell, coarse, score, scale, patch_size, causal, selection, temperature, candidates
    )
    call = prepare("gpa", q, k, None, key_mask, options)
    blocks, order = call.blocks, call.arrangement.order(q.device)
    at = call.arrangement.cell_of(queries)
    pixels = block_pixels(blocks.indices[:, :, at], blocks.grid)  # (B, G, Q, L)
    flat = _flat(queries, call.arrangement.q_size)
    points = call.arrangement.restore(call.q).flatten(3)[..., flat].transpose(2, 3).unsqueeze(4)  # (B, G, Q, D, 1)
    with no_autocast(q.device):
        keys = _gather(call.k, pixels)  # (B, G, Q, D, L)
        if call.score == "l2":
            centre = centre_of(call.k, blocks.order).unsqueeze(2).squeeze(5)
            points, keys = points - centre, keys - centre
        logits = dense_logits(points, keys, call.score, call.scale).squeeze(3)  # (B, G, Q, L)
        if blocks.bias is not None:
            logits = logits + blocks.bias[:, :, at].repeat_interleave(blocks.grid.factor.area, 3)
        allowed = _gather_mask(call.key_mask, pixels)
        if blocks.order is not None:
            earlier = blocks.order.keys[pixels] <= flat[:, None]
            allowed = earlier if allowed is None else allowed & earlier
        return order.keys[pixels], masked_softmax(logits, allowed)


def _reference(
    q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, score: Score, scale: float, key_mask: Tensor | None
) -> Tensor:
    grid = blocks.grid
    pixels = block_pixels(blocks.indices, grid)  # (B, G, cells, L)
    with no_autocast(q.device):
        queries, keys = split_cells(q, grid.cells, grid.cell), _gather(k, pixels)  # (B, G, cells, D, Q or L)
        if score == "l2":
            centre = centre_of(k, blocks.order).unsqueeze(2).squeeze(5)
            queries, keys = queries - centre, keys - centre
        logits = dense_logits(queries, keys, score, scale)  # (B, G, cells, Q, L)
        if blocks.bias is not None:
            logits = logits + blocks.bias.repeat_interleave(grid.factor.area, 3).unsqueeze(3)
        allowed = _gather_mask(key_mask, pixels)
        allowed = None if allowed is None else allowed.unsqueeze(3)
        if blocks.order is not None:
            places = split_cells(blocks.order.queries[None, None, None], grid.cells, grid.cell).transpose(3, 4)
            earlier = blocks.order.keys[pixels].unsqueeze(3) <= places
            allowed = earlier if allowed is None else allowed & earlier
        values = at_least_float32(_gather(v, pixels))  # (B, G, cells, E, L)
        brought = values @ masked_softmax(logits, allowed).transpose(3, 4)
        return join_cells(brought, grid.cells, grid.cell).to(q.dtype)


def _flat(queries: Tensor, size: Sequence[int]) -> Tensor:
    """Flat pixels of places (Q, axes) in a map."""
    flat = torch.zeros_like(queries[:, 0])
    for axis, side in enumerate(size):
        flat = flat * side + queries[:, axis]
    return flat


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
