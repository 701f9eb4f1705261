"""What patch-based stochastic attention can be asked for, and what it answers to the rest."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from saccade.geometry import Size
from saccade.ops.dispatch import Score, check_score
from saccade.ops.inputs import check_scale, default_scale
from saccade.ops.options import positive, whole
from saccade.ops.patches import check_patch_size, nearest_odd
from saccade.ops.psal.compiled import LAST_WINDOWS
from saccade.ops.psal.read import READOUTS, Readout, ReadPlan
from saccade.ops.psal.search import (
    BORDERS,
    JUMPS,
    SEARCHES,
    Border,
    Search,
    SearchPlan,
    allowed_keys,
    coarse_patch,
    window_count,
)


def check_options(
    matches: int,
    patch_size: int,
    iterations: int,
    score: str,
    scale: float | None,
    readout: str,
    border: str,
    search: str,
    coarse_start: int | None,
    fold_divisor: float | None,
) -> None:
    """Raise ValueError for options that no map could be served with; see `psal_attention`."""
    check_score("psal", score)
    check_scale("psal", scale)
    check_patch_size("psal", patch_size)
    whole("psal", "matches", matches)
    whole("psal", "iterations", iterations, 0)
    words: tuple[tuple[str, str, tuple[str, ...]], ...] = (
        ("readout", readout, READOUTS),
        ("border", border, BORDERS),
        ("search", search, SEARCHES),
    )
    for what, word, valid in words:
        if word not in valid:
            raise ValueError(f"psal: no {what} is called {word!r}. Valid here: {', '.join(valid)}.")
    if coarse_start is not None:
        whole("psal", "coarse_start", coarse_start, 2, "None")
        if search == "exact":
            raise ValueError("psal: search='exact' looks at every key and starts nowhere; leave coarse_start None.")
    if fold_divisor is not None:
        if readout != "fold":
            raise ValueError(f"psal: fold_divisor belongs to readout='fold'; got readout={readout!r}.")
        positive("psal", "fold_divisor", fold_divisor, "None to average")


def size_reasons(q_size: Size, kv_size: Size, plan: SearchPlan) -> list[str]:
    """Why maps of these sizes cannot be searched as planned, with the nearest valid choices."""
    reasons, keys = [], kv_size.area
    patch = plan.patch_size
    if plan.border == "released":
        for what, size in (("query", q_size), ("key", kv_size)):
            if min(size) < patch:
                largest = min(min(q_size), min(kv_size))
                reasons.append(
                    f"border='released' needs patches of {patch} inside the {what} map of {size}. Valid here: "
                    f"patch_size={largest if largest % 2 else nearest_odd(largest).split()[0]}, or border='zeros'."
                )
        keys = max(0, kv_size.rows - patch + 1) * max(0, kv_size.cols - patch + 1)
    if not reasons and plan.matches > keys:
        reasons.append(
            f"matches={plan.matches} is more than the {keys} keys of the {kv_size} map. Valid here: 1 to {keys}."
        )
    return reasons


def make_plan(
    q: Tensor,
    k: Tensor,
    matches: int,
    patch_size: int,
    iterations: int,
    score: Score,
    border: Border,
    search: Search,
    coarse_start: int | None,
) -> SearchPlan:
    """The checked plan of a search between (B, G, D, Y, X) maps."""
    check_options(matches, patch_size, iterations, score, None, "centre", border, search, coarse_start, None)
    heads = q.shape[1] if q.dim() == 5 else 1
    factor = None if coarse_start is None else int(coarse_start)
    plan = SearchPlan(int(matches), int(patch_size), int(iterations), score, border, search, factor, heads)
    if q.dim() == 5 and k.dim() == 5:
        reasons = size_reasons(Size(*q.shape[3:]), Size(*k.shape[3:]), plan)
        if reasons:
            raise ValueError(f"psal: {' '.join(reasons)}")
    return plan


def make_read_plan(
    maps: Tensor,
    patch_size: int,
    score: Score,
    scale: float | None,
    readout: Readout,
    border: Border,
    fold_divisor: float | None,
) -> ReadPlan:
    """The checked plan of a read-out; `maps` (B, G, D, Y, X) are the queries, for the default scale."""
    check_options(1, patch_size, 0, score, scale, readout, border, "jump", None, fold_divisor)
    channels = maps.shape[2] if maps.dim() == 5 else 1
    divisor = None if fold_divisor is None else float(fold_divisor)
    return ReadPlan(readout, int(patch_size), default_scale(scale, channels * patch_size**2, score), border, divisor)


def check_keys(k: Tensor, key_mask: Tensor | None, plan: SearchPlan) -> Tensor | None:
    """The keys that may be matched, (B, n_k) bool or None for all.

    Raises:
        ValueError: the mask leaves a batch entry fewer than K of them.
    """
    allowed = allowed_keys(k, key_mask, plan)
    if key_mask is not None and allowed is not None and k.device.type != "meta":
        fewest = int(allowed.sum(1).min())
        if fewest < plan.matches:
            raise ValueError(
                f"psal: matches={plan.matches} is more than the {fewest} keys that key_mask allows in a batch entry. "
                f"Valid here: {f'1 to {fewest}' if fewest else 'a mask with keys whose patch lies inside the map'}."
            )
    return allowed


def check_found(name: str, maps: Tensor, found: Tensor, keys: Tensor, costs: Tensor | None = None) -> None:
    """Raise ValueError unless matches, and costs, are (B, G, K, Yq, Xq) beside maps of the same B and G.

    `maps` are the queries (named "q", of the matches' size) or the values ("v"); matches lie on the map `keys`, which
    is looked at on every device: kernels read wherever a match points.
    """
    rank = maps.dim() == found.dim() == 5 and maps.shape[:2] == found.shape[:2]
    if not rank or (name == "q" and maps.shape[3:] != found.shape[3:]):
        raise ValueError(
            f"psal: matches must be (B, G, K, Yq, Xq) for {name} of shape {tuple(maps.shape)}; got shape "
            f"{tuple(found.shape)}."
        )
    if found.is_floating_point() or (costs is not None and costs.shape != found.shape):
        raise ValueError(
            f"psal: matches must be whole numbers, and costs of their shape {tuple(found.shape)}; got {found.dtype}"
            f"{'' if costs is None else f' and {tuple(costs.shape)}'}."
        )
    size = Size(*keys.shape[3:])
    if found.device.type != "meta" and bool(((found < 0) | (found >= size.area)).any()):
        raise ValueError(
            f"psal: matches must be flat pixels of the {size} key map, 0 to {size.area - 1}; got {int(found.min())} to "
            f"{int(found.max())}."
        )


def distance_flops(plan: SearchPlan, channels: int, q_size: Size, kv_size: Size) -> int:
    """FLOPs of the distances that the search of one map evaluates: see `PatchBasedStochasticAttention.cost`."""
    each = (3 if plan.score == "l2" else 2) * channels * plan.patch_size**2
    if plan.search == "exact":
        return q_size.area * kv_size.area * each
    windows = window_count(kv_size)
    candidates = plan.matches
    for iteration in range(plan.iterations):
        if plan.search == "jump":
            candidates += 4 * len(JUMPS) + windows
        else:  # all matches of the two neighbours just visited, and fewer windows from sweep to sweep
            served = 2 * (iteration + (plan.coarse_start is not None))
            candidates += 2 * plan.matches + windows - max(0, min(served, windows - LAST_WINDOWS))
    if plan.coarse_start is None:
        return q_size.area * candidates * each
    factor = plan.coarse_start
    coarse = (Size(-(-size.rows // factor), -(-size.cols // factor)) for size in (q_size, kv_size))
    pooled = replace(plan, patch_size=coarse_patch(plan.patch_size, factor), search="exact", coarse_start=None)
    return q_size.area * (candidates + plan.matches) * each + distance_flops(pooled, channels, *coarse)
