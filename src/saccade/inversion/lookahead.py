"""Lookahead (Zhang et al. 2019, arXiv 1907.08610, algorithm 1): slow weights that follow any optimiser's fast ones.

Every k inner steps slow += alpha * (fast - slow), then fast = slow. The inner optimiser's own state is kept.
"Your Local GAN" inverts with k = 5 and alpha = 0.5; its released code builds a Lookahead but never applies it in the
loop, and its counter would wait for k + 1 steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from saccade.geometry import whole_number


class Lookahead(Optimizer):
    """Wrap an optimiser; each entry of each parameter is treated by itself, so that rows stay independent.

    Args:
        inner: the optimiser of the fast weights, whose parameter groups this one shares.
        k: inner steps from one synchronisation to the next.
        alpha: share of the way that the slow weights go, above 0 and at most 1; 1 is the inner optimiser alone.

    Raises:
        ValueError: a wrong option.
    """

    def __init__(self, inner: Optimizer, *, k: int = 5, alpha: float = 0.5) -> None:
        steps = whole_number(k)
        if steps is None or steps < 1:
            raise ValueError(f"lookahead: k is a number of steps, 1 or more; got {k!r}")
        if not 0.0 < alpha <= 1.0:
            raise ValueError(f"lookahead: alpha is above 0 and at most 1; got {alpha!r}")
        self.inner, self.k, self.alpha = inner, steps, float(alpha)
        self.count = 0
        super().__init__(inner.param_groups, {})
        self.param_groups = inner.param_groups

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One inner step, and a synchronisation after every k. The slow weights start where the fast ones do."""
        for parameter in self._parameters():
            if "slow" not in self.state[parameter]:
                self.state[parameter]["slow"] = parameter.detach().clone()
        loss = self.inner.step() if closure is None else self.inner.step(closure)
        self.count += 1
        if self.count % self.k == 0:
            self._synchronise()
        return loss

    @torch.no_grad()
    def _synchronise(self) -> None:
        for parameter in self._parameters():
            slow: Tensor = self.state[parameter]["slow"]
            slow.lerp_(parameter, self.alpha)
            parameter.copy_(slow)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if not hasattr(self, "state") or param_group in self.inner.param_groups:  # the base class is being built
            self.param_groups = self.inner.param_groups
            return
        self.inner.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The inner optimiser's state, the slow weights (None before the first step), and the steps taken."""
        slow = [self.state[parameter].get("slow") for parameter in self._parameters()]
        return {"inner": self.inner.state_dict(), "slow": slow, "count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a `state_dict`.

        Raises:
            ValueError: of another number of parameters, or not of a Lookahead.
        """
        if set(state_dict) != {"inner", "slow", "count"}:
            raise ValueError(f"lookahead: a state has inner, slow and count; got {', '.join(map(str, state_dict))}")
        self.inner.load_state_dict(state_dict["inner"])
        self.param_groups = self.inner.param_groups  # loading replaces the inner optimiser's list
        self.count = int(state_dict["count"])
        parameters = self._parameters()
        if len(state_dict["slow"]) != len(parameters):
            raise ValueError(
                f"lookahead: the state has slow weights of {len(state_dict['slow'])} parameters, the optimiser has "
                f"{len(parameters)}"
            )
        for parameter, slow in zip(parameters, state_dict["slow"], strict=True):
            self.state[parameter].clear()
            if slow is not None:
                self.state[parameter]["slow"] = slow.detach().clone().to(parameter)
