"""Patch-based stochastic attention (PSAL): PatchMatch finds each query's few best keys, and only those are attended to.

Source: Cherel, Almansa, Gousseau, Newson, "Patch-Based Stochastic Attention for Image Editing", CVIU 2023, arXiv
2202.03163, Algorithm 1 and sections 3.3, 3.4, and the released layer. The search is `psal_search`, the read-outs are
`psal_read`. Different here: any number of matches and any odd patch; scores beside l2; patches read zeros outside the
map, so that borders are searched like the rest; updates are double-buffered, so that a seed fixes the result; gradients
are exact. Matches are constants to differentiation, as in the paper.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from saccade.geometry import Size
from saccade.ops.dispatch import Kernel, Request, Score, choose
from saccade.ops.inputs import draw_seed, make_request, no_autocast, read_shape
from saccade.ops.psal.autograd import ReadThrough, costs_of, search_and_read
from saccade.ops.psal.compiled import COMPILED
from saccade.ops.psal.engine import REFERENCE, TORCH, Engine
from saccade.ops.psal.plan import check_found, check_keys, make_plan, make_read_plan
from saccade.ops.psal.read import Readout, weights_of
from saccade.ops.psal.search import Border, Search, SearchPlan
from saccade.ops.psal.triton import TRITON

__all__ = ["psal_attention", "psal_costs", "psal_read", "psal_search", "psal_weights"]

ENGINES: tuple[Engine, ...] = (COMPILED, TRITON, TORCH, REFERENCE)


def psal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
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
    key_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    kernel: str = "auto",
) -> Tensor:
    """Let every query attend to the few keys that a PatchMatch search finds for it.

    Args:
        q: (B, G, D, Yq, Xq).
        k: (B, G, D, Yk, Xk).
        v: (B, G, E, Yk, Xk).
        matches: K, keys that a query keeps.
        patch_size: side of the patches that are compared, odd.
        iterations: rounds of propagation and random search; the paper trains with 5 or 10.
        score: "l2", minus the summed squared difference; "dot"; "cosine"; "unit_key", the product with the key patch
            of unit length.
        scale: factor on the score, 1 / temperature; None is 1 / sqrt(D * p * p) for "l2" and "dot", else 1.
        readout: "centre" reads the centre of the matches; "aggregate" also those of all neighbours whose patch covers
            the query, in one softmax; "fold" pastes patches of values and averages overlaps. See `psal_read`.
        border: "zeros"; or "released", the released layer's: queries whose patch leaves the map keep random matches
            at cost 0.
        search: "jump", the paper's; "sweep", serial scans of the compiled kernel; "exact", all keys.
        coarse_start: start from exact matches of maps pooled by this factor.
        fold_divisor: what "fold" divides the sum of overlaps by; None averages.
        key_mask: (B, 1, Yk, Xk) bool, True = may be matched; a key's patch may overlap masked pixels.
        generator: where the seed of this call is drawn from; None is the global one.
        kernel: "auto" or the name of one of `KERNELS`.

    Returns:
        (B, G, E, Yq, Xq).

    Raises:
        ValueError: wrong maps or options, or fewer allowed keys than `matches`.
        RuntimeError: the named kernel cannot serve this call.
    """
    plan = make_plan(q, k, matches, patch_size, iterations, score, border, search, coarse_start)
    read = make_read_plan(q, patch_size, score, scale, readout, border, fold_divisor)
    shape = read_shape("psal", q, k, v, key_mask)
    allowed = check_keys(k, key_mask, plan)
    chosen = choose("psal", kernels(plan), make_request(shape, score, key_mask, q, k, v), kernel)
    if q.device.type == "meta":
        return q.mean(2, keepdim=True) + k.mean() + v.mean((3, 4), keepdim=True)
    with no_autocast(q.device):
        out = chosen.run(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), allowed, plan, read, draw_seed(generator))
    return torch.unflatten(out, 0, q.shape[:2])


def psal_search(
    q: Tensor,
    k: Tensor,
    *,
    matches: int = 3,
    patch_size: int = 7,
    iterations: int = 5,
    score: Score = "l2",
    border: Border = "zeros",
    search: Search = "jump",
    coarse_start: int | None = None,
    key_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    kernel: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The search alone, without gradients. Arguments as in `psal_attention`.

    Returns:
        Matches (B, G, K, Yq, Xq) int32, flat key pixels (row * Xk + col), best first; and their costs, minus the score,
        in at least float32.
    """
    plan = make_plan(q, k, matches, patch_size, iterations, score, border, search, coarse_start)
    shape = read_shape("psal", q, k, key_mask=key_mask)
    allowed = check_keys(k, key_mask, plan)
    with torch.no_grad(), no_autocast(q.device):
        request = make_request(shape, score, key_mask, q, k)
        engine = _engine(choose("psal", kernels(plan), request, kernel).name)
        found, costs = engine.search(q.flatten(0, 1), k.flatten(0, 1), allowed, plan, draw_seed(generator))
    size = (*q.shape[:2], plan.matches, *q.shape[3:])
    return found.view(size), costs.view(size)


def psal_costs(
    q: Tensor,
    k: Tensor,
    found: Tensor,
    *,
    patch_size: int = 7,
    score: Score = "l2",
    border: Border = "zeros",
    kernel: str = "auto",
) -> Tensor:
    """Costs of given matches, differentiable in q and k.

    Args:
        q: (B, G, D, Yq, Xq).
        k: (B, G, D, Yk, Xk).
        found: (B, G, K, Yq, Xq) flat key pixels.
        kernel: "auto" or the name of one of `KERNELS`; "reference" is twice differentiable.

    Raises:
        ValueError: `found` does not fit the maps.

    Returns:
        (B, G, K, Yq, Xq) in at least float32; with border "released" 0 where the query's patch leaves the map.
    """
    plan = make_plan(q, k, 1, patch_size, 0, score, border, "jump", None)
    shape = read_shape("psal", q, k)
    check_found("q", q, found, k)
    engine = _engine(choose("psal", kernels(plan), make_request(shape, score, None, q, k), kernel).name)
    with no_autocast(q.device):
        matches = found.flatten(3).flatten(0, 1).int()
        costs = costs_of(engine, q.flatten(0, 1), k.flatten(0, 1), matches, plan)
    return costs.view(found.shape)


def psal_read(
    found: Tensor,
    costs: Tensor,
    v: Tensor,
    *,
    patch_size: int = 7,
    scale: float = 1.0,
    readout: Readout = "aggregate",
    border: Border = "zeros",
    fold_divisor: float | None = None,
) -> Tensor:
    """Read values through given matches; differentiable in the costs and in v. Options as in `psal_attention`.

    Args:
        found: (B, G, K, Yq, Xq) flat key pixels.
        costs: (B, G, K, Yq, Xq).
        v: (B, G, E, Yk, Xk).

    Returns:
        (B, G, E, Yq, Xq).
    """
    read = make_read_plan(v, patch_size, "l2", scale, readout, border, fold_divisor)
    check_found("v", v, found, v, costs)
    size = Size(*found.shape[3:])
    flat = (x.flatten(3).flatten(0, 1) for x in (found, costs))
    with no_autocast(v.device):
        out = cast(Tensor, cast(Any, ReadThrough).apply(*flat, v.flatten(0, 1), size, read))
    return torch.unflatten(out, 0, v.shape[:2])


def psal_weights(
    q: Tensor,
    k: Tensor,
    queries: Tensor,
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
    key_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    kernel: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Which keys a few query pixels attend to, and how much. Arguments as in `psal_attention`.

    Args:
        queries: (Q, 2) long, rows and cols in the query map.

    Returns:
        Flat key pixels (B, G, Q, K'), and their weights, of the same shape. K' is K, or K * p * p for "aggregate" and
        "fold"; candidates that do not exist have weight 0.
    """
    found, costs = psal_search(
        q,
        k,
        matches=matches,
        patch_size=patch_size,
        iterations=iterations,
        score=score,
        border=border,
        search=search,
        coarse_start=coarse_start,
        key_mask=key_mask,
        generator=generator,
        kernel=kernel,
    )
    read = make_read_plan(q, patch_size, score, scale, readout, border, fold_divisor)
    q_size, kv_size = Size(*q.shape[3:]), Size(*k.shape[3:])
    picked = queries[:, 0] * q_size.cols + queries[:, 1]
    found, costs = found.flatten(3).flatten(0, 1), costs.flatten(3).flatten(0, 1)  # (N, K, n_q)
    places, shares = weights_of(picked, found, costs, q_size, kv_size, read)  # (N, Q, K')
    return torch.unflatten(places, 0, q.shape[:2]), torch.unflatten(shares, 0, q.shape[:2])


def _engine(name: str) -> Engine:
    return next(engine for engine in ENGINES if engine.name == name)


def kernels(plan: SearchPlan) -> tuple[Kernel, ...]:
    """The kernels as they stand to a plan, fastest first."""
    return tuple(
        Kernel(
            engine.name,
            partial(search_and_read, engine),
            partial(_against, engine, plan),
            double_backward=engine.recorded,
        )
        for engine in ENGINES
    )


def _against(engine: Engine, plan: SearchPlan, request: Request) -> list[str]:
    return engine.reasons_against(request, plan)


KERNELS = kernels(SearchPlan(1, 1, 0, "l2"))
