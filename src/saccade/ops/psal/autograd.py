"""Patch-based stochastic attention from search to output, and its gradients with the matches held fixed.

What stays for backward is q, k, v, the matches and their costs, and for "aggregate" the output and one number a query.
Gradients of k and v are sums over the queries that match a pixel: on the CPU in a fixed order, on CUDA in none.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from saccade.geometry import Size
from saccade.ops.dispatch import once_differentiable
from saccade.ops.inputs import at_least_float32, no_autocast
from saccade.ops.patches import as_vectors
from saccade.ops.psal.engine import Engine, GradientCall
from saccade.ops.psal.read import Kept, ReadPlan, read_gradients, read_out, read_reference, steers
from saccade.ops.psal.search import SearchPlan, inside_ring

# Ours: from so many channels on, gradients of costs are made for half of them at a time.
WIDE = 16


def search_and_read(
    engine: Engine,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor | None,
    plan: SearchPlan,
    read: ReadPlan,
    seed: int,
) -> Tensor:
    """Search, cost and read (N, D, Yq, Xq), (N, D, Yk, Xk), (N, E, Yk, Xk) maps -> (N, E, Yq, Xq)."""
    with torch.no_grad():
        found, costs = engine.search(q, k, allowed, plan, seed)
    size = Size(*q.shape[2:])
    if engine.recorded:
        return read_reference(found, _reference_costs(q, k, found, plan), v, size, read)
    gradients = engine.cost_gradients if steers(read, plan.matches) else _no_gradients
    costs = cast(Any, KnownCosts).apply(q, k, found, costs, plan, gradients)
    return cast(Tensor, cast(Any, ReadThrough).apply(found, costs, v, size, read))


def costs_of(engine: Engine, q: Tensor, k: Tensor, found: Tensor, plan: SearchPlan) -> Tensor:
    """Costs of matches that were found before, (N, K, n_q), differentiable in q and k."""
    if engine.recorded:
        return _reference_costs(q, k, found, plan)
    with torch.no_grad():
        costs = engine.costs(q, k, found, plan.patch_size, plan.score)
    return cast(Tensor, cast(Any, KnownCosts).apply(q, k, found, costs, plan, engine.cost_gradients))


def _reference_costs(q: Tensor, k: Tensor, found: Tensor, plan: SearchPlan) -> Tensor:
    """Costs (N, K, n_q) from the patches as vectors."""
    queries, keys, score = as_vectors(
        at_least_float32(q).unsqueeze(1), at_least_float32(k).unsqueeze(1), plan.patch_size, plan.score
    )
    queries, keys = queries.flatten(3).squeeze(1), keys.flatten(3).squeeze(1)  # (N, D * p * p, pixels)
    costs = []
    for row in found.long().unbind(1):
        chosen = keys.gather(2, row.unsqueeze(1).expand(-1, keys.shape[1], -1))
        costs.append((queries - chosen).square().sum(1) if score == "l2" else -(queries * chosen).sum(1))
    stacked = torch.stack(costs, 1)
    ring = _ring(q, plan)
    return stacked if ring is None else stacked.masked_fill(ring, 0)


def _ring(q: Tensor, plan: SearchPlan) -> Tensor | None:
    """The queries whose cost is the constant 0, (Yq * Xq,) bool; None if there are none."""
    if plan.border == "zeros" or plan.patch_size == 1:
        return None
    return ~inside_ring(Size(*q.shape[2:]), plan.patch_size // 2, q.device)


def _no_gradients(q: Tensor, k: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """For read-outs that do not depend on the costs."""
    return torch.zeros_like(q), torch.zeros_like(k)


class KnownCosts(torch.autograd.Function):
    """Costs that are known already, with their gradients in q and k."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, found: Tensor, costs: Tensor, plan: SearchPlan, gradients: Any
    ) -> Tensor:
        ctx.plan, ctx.gradients = plan, gradients
        ring = _ring(q, plan)
        if ring is not None:
            costs = costs.masked_fill(ring, 0)
        ctx.save_for_backward(q, k, found, costs)
        return costs.view_as(costs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, found, costs = ctx.saved_tensors
        with torch.no_grad(), no_autocast(q.device):
            ring = _ring(q, ctx.plan)
            weight = grad if ring is None else grad.masked_fill(ring, 0)
            grads = _by_channels(ctx.gradients, q, k, found, costs, weight, ctx.plan)
        return *once_differentiable("psal", grads, (grad, q, k)), None, None, None, None


def _by_channels(
    gradients: GradientCall, q: Tensor, k: Tensor, found: Tensor, costs: Tensor, grad: Tensor, plan: SearchPlan
) -> tuple[Tensor, Tensor]:
    """The engine's gradients, half of the channels at a time where that saves memory: they do not depend on others."""
    channels = q.shape[1]
    if channels < WIDE or plan.score not in ("l2", "dot"):
        return gradients(q, k, found, costs, grad, plan.patch_size, plan.score)
    grad_q, grad_k = torch.empty_like(q), torch.empty_like(k)
    for span in (slice(0, channels // 2), slice(channels // 2, channels)):
        part = gradients(q[:, span], k[:, span], found, costs, grad, plan.patch_size, plan.score)
        grad_q[:, span], grad_k[:, span] = part
        del part
    return grad_q, grad_k


class ReadThrough(torch.autograd.Function):
    """Values read through given matches, with gradients in the costs and in v."""

    @staticmethod
    def forward(ctx: Any, found: Tensor, costs: Tensor, v: Tensor, size: Size, read: ReadPlan) -> Tensor:
        out, kept = read_out(found, costs, v, size, read)
        ctx.options = (size, read)
        ctx.save_for_backward(found, costs, v, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        found, costs, v, *kept = ctx.saved_tensors
        with torch.no_grad(), no_autocast(v.device):
            wanted = (ctx.needs_input_grad[1], ctx.needs_input_grad[2])
            size, read = ctx.options
            grads = read_gradients(found, costs, v, size, read, Kept(*kept), grad, wanted)
        for_costs, for_values = once_differentiable("psal", grads, (grad, costs, v))
        return None, for_costs, for_values, None, None
