"""What a kernel of patch-based stochastic attention brings: its search, and the gradients of the costs it found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from saccade.ops.dispatch import Request, Score
from saccade.ops.psal.patches import cost_gradients, given_costs
from saccade.ops.psal.search import SearchPlan, search


class SearchCall(Protocol):
    """(q, k, allowed, plan, seed) -> matches and costs: see `saccade.ops.psal.search.search`."""

    def __call__(
        self, q: Tensor, k: Tensor, allowed: Tensor | None, plan: SearchPlan, seed: int
    ) -> tuple[Tensor, Tensor]: ...


class GradientCall(Protocol):
    """Gradients of q and k from the gradient of the costs: see `saccade.ops.psal.patches.cost_gradients`."""

    def __call__(
        self, q: Tensor, k: Tensor, matches: Tensor, costs: Tensor, grad: Tensor, patch_size: int, score: Score
    ) -> tuple[Tensor, Tensor]: ...


class CostCall(Protocol):
    """Costs of given matches: see `saccade.ops.psal.patches.given_costs`."""

    def __call__(self, q: Tensor, k: Tensor, matches: Tensor, patch_size: int, score: Score) -> Tensor: ...


@dataclass(frozen=True)
class Engine:
    """One way to search. `reasons_against` answers why it cannot serve a request with a plan (empty: it can).

    `recorded` makes every step after the search a plain differentiable one: the reference.
    """

    name: str
    search: SearchCall
    cost_gradients: GradientCall
    reasons_against: Callable[[Request, SearchPlan], list[str]]
    recorded: bool = False
    costs: CostCall = given_costs


def against_torch(request: Request, plan: SearchPlan) -> list[str]:
    """Why plain PyTorch cannot serve the plan."""
    if plan.search == "sweep":
        return ["serial sweeps need the compiled kernel; search='jump' is what PyTorch can run"]
    return []


TORCH = Engine("torch", search, cost_gradients, against_torch)
REFERENCE = Engine("reference", search, cost_gradients, against_torch, recorded=True)
