"""One call of grid-partitioned attention: its options, their checks, and the way to the blocks that cells attend to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from saccade.geometry import AttentionShape
from saccade.ops.dispatch import Score, check_score
from saccade.ops.gpa.arrange import Arrangement, arrange, read_maps
from saccade.ops.gpa.causal import select_causal
from saccade.ops.gpa.cells import Blocks
from saccade.ops.gpa.keys import select_keys
from saccade.ops.gpa.soft import select_soft
from saccade.ops.inputs import check_scale, default_scale, no_autocast
from saccade.ops.options import flag, positive, whole
from saccade.ops.patches import as_vectors, check_patch_size

Selection = Literal["hard", "soft"]
SELECTIONS: tuple[Selection, ...] = ("hard", "soft")


@dataclass(frozen=True)
class GpaOptions:
    """The options of `gpa_attention` that say what is computed."""

    cells: Sequence[int]
    keys_per_cell: int
    coarse: Sequence[int]
    score: Score = "dot"
    scale: float | None = None
    patch_size: int = 1
    causal: bool = False
    selection: Selection = "hard"
    temperature: float = 0.1
    candidates: int | None = None


@dataclass(frozen=True)
class GpaCall:
    """One call behind its checks: maps as laid out for the kernels, and the blocks that each cell attends to."""

    q: Tensor
    k: Tensor
    key_mask: Tensor | None
    shape: AttentionShape
    arrangement: Arrangement
    score: Score
    scale: float
    blocks: Blocks


def prepare(op: str, q: Tensor, k: Tensor, v: Tensor | None, key_mask: Tensor | None, options: GpaOptions) -> GpaCall:
    """Check a call, lay its maps out and choose the blocks of each cell.

    Raises:
        ValueError: see `gpa_attention`.
    """
    shape, q_size, kv_size = read_maps(op, q, k, v, key_mask)
    check_options(op, options)
    arrangement = arrange(op, q_size, kv_size, options.coarse, options.cells, options.keys_per_cell)
    if options.patch_size != 1 and arrangement.axes != 2:
        raise ValueError(f"{op}: patches are for maps of two axes; these have {arrangement.axes}. Valid: patch_size=1.")
    if options.causal and q_size != kv_size:
        raise ValueError(
            f"{op}: causal attention needs maps of one size; the query map is {q_size}, the key map {kv_size}."
        )
    scale = default_scale(options.scale, shape.qk_channels * options.patch_size**2, options.score)
    with no_autocast(q.device):
        q, k, score = as_vectors(q, k, options.patch_size, options.score)
    if options.causal:
        blocks = select_causal(q, k, arrangement, score, scale, key_mask)
    q, k = arrangement.queries(q), arrangement.keys(k)
    mask = None if key_mask is None else arrangement.keys(key_mask)
    grid = arrangement.grid
    if options.selection == "soft":
        blocks = select_soft(q, k, grid, score, scale, mask, options.temperature, options.candidates)
    elif not options.causal:
        blocks = Blocks(grid, select_keys(q, k, grid, score, scale, mask))
    return GpaCall(q, k, mask, shape, arrangement, score, scale, blocks)


def check_options(op: str, options: GpaOptions) -> None:
    """Raise ValueError unless the options are valid whatever the maps."""
    check_score(op, options.score)
    check_scale(op, options.scale)
    check_patch_size(op, options.patch_size)
    whole(op, "keys_per_cell", options.keys_per_cell)
    flag(op, "causal", options.causal)
    if options.selection not in SELECTIONS:
        raise ValueError(f"{op}: no selection is called {options.selection!r}. Valid here: {', '.join(SELECTIONS)}.")
    positive(op, "temperature", options.temperature)
    twice = "None for twice keys_per_cell"
    if options.candidates is not None and whole(op, "candidates", options.candidates, 1, twice) < options.keys_per_cell:
        raise ValueError(
            f"{op}: candidates must be at least keys_per_cell={options.keys_per_cell}, or None for twice as many; "
            f"got {options.candidates}."
        )
    if options.causal and options.patch_size != 1:
        raise ValueError(
            f"{op}: causal attention needs patch_size=1, for a patch reaches past its centre; got {options.patch_size}."
        )
    if options.causal and options.selection != "hard":
        raise ValueError(f"{op}: causal attention chooses keys by selection='hard' alone; got {options.selection!r}.")
