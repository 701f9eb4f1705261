"""Which kernel runs an op, why the faster ones did not, and the ledger that keeps both on record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, cast

import torch
from torch import Tensor

from saccade.geometry import AttentionShape

# q.k | -|q - k|^2 | q.k of unit vectors | q.k of the key's unit vector: ranks keys as cosine, keeps the query's length.
Score = Literal["dot", "l2", "cosine", "unit_key"]
SCORES: tuple[Score, ...] = ("dot", "l2", "cosine", "unit_key")


@dataclass(frozen=True)
class Request:
    """One call of an attention op, as far as the choice of a kernel depends on it."""

    device: torch.device
    dtype: torch.dtype
    shape: AttentionShape
    score: Score
    masked: bool
    requires_grad: bool


@dataclass(frozen=True)
class Kernel:
    """One way to compute an op.

    `run` takes the op's own tensors and options; `reasons_against` answers why it cannot serve a request (empty: it
    can). `double_backward` tells whether gradients of gradients pass through it.
    """

    name: str
    run: Callable[..., Tensor]
    reasons_against: Callable[[Request], list[str]]
    double_backward: bool = False


class LedgerEntry(TypedDict):
    """How often an op ran with a kernel, and the reasons against the kernels that were preferred to it."""

    op: str
    asked: str
    kernel: str
    skipped: dict[str, list[str]]
    calls: int


_double_backward: ContextVar[bool] = ContextVar("saccade_double_backward", default=False)
_ledger: dict[tuple[str, str, str, tuple[tuple[str, tuple[str, ...]], ...]], int] = {}


@contextmanager
def double_backward(enabled: bool = True) -> Iterator[None]:
    """Make every op called inside twice differentiable: `auto` then takes only kernels that declare it.

    Wrap the forward pass whose gradient is penalised (R1, path length, WGAN-GP); the backward passes may run outside.
    """
    token = _double_backward.set(enabled)
    try:
        yield
    finally:
        _double_backward.reset(token)


def double_backward_asked() -> bool:
    """Whether the caller is inside `double_backward()`."""
    return _double_backward.get()


def choose(
    op: str, kernels: Sequence[Kernel], request: Request, kernel: str = "auto", *, who: str | None = None
) -> Kernel:
    """Pick the kernel that runs `op`: the named one, or for "auto" the first that has no reason against it.

    Args:
        op: name of the op, for messages and the ledger.
        kernels: in order of preference.
        request: the call to serve.
        kernel: "auto" or the name of one of `kernels`.
        who: the name in messages; None is `op`.

    Raises:
        ValueError: no kernel has that name.
        RuntimeError: the named kernel, or with "auto" every kernel, cannot serve the request.
    """
    who = op if who is None else who
    check_kernel_name(who, kernels, kernel)
    skipped: dict[str, list[str]] = {}
    for candidate in kernels:
        if kernel not in ("auto", candidate.name):
            continue
        reasons = _reasons(candidate, request)
        if not reasons:
            _record(op, kernel, candidate.name, skipped)
            return candidate
        skipped[candidate.name] = reasons
    listed = " | ".join(f"{name}: {'; '.join(reasons)}" for name, reasons in skipped.items())
    others = [k.name for k in kernels if k.name not in skipped and not _reasons(k, request)]
    advice = f' Use kernel="auto", or one of: {", ".join(others)}.' if others else ""
    raise RuntimeError(f"{who}: kernel={kernel!r} cannot run here. {listed}.{advice}")


def check_kernel_name(op: str, kernels: Sequence[Kernel], kernel: str) -> None:
    """Raise ValueError, listing the valid names, unless `kernel` is "auto" or names one of `kernels`."""
    names = ["auto", *(k.name for k in kernels)]
    if kernel not in names:
        raise ValueError(f"{op}: no kernel is called {kernel!r}. Valid here: {', '.join(names)}.")


def ledger() -> list[LedgerEntry]:
    """What ran since the last `reset_ledger()`, one entry for each distinct outcome; ready for JSON."""
    return [
        LedgerEntry(
            op=op,
            asked=asked,
            kernel=name,
            skipped={other: list(reasons) for other, reasons in skipped},
            calls=calls,
        )
        for (op, asked, name, skipped), calls in _ledger.items()
    ]


def reset_ledger() -> None:
    """Forget every recorded call."""
    _ledger.clear()


def check_score(op: str, score: str, valid: Sequence[Score] = SCORES) -> None:
    """Raise ValueError, listing the valid names, unless `score` is one that the op knows."""
    if score not in valid:
        raise ValueError(f"{op}: no score is called {score!r}. Valid here: {', '.join(valid)}.")


def once_differentiable(
    who: str, grads: Sequence[Tensor | None], sources: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """Mark gradients that were computed without a graph, so that differentiating them raises instead of giving zeros.

    Call it at the end of an autograd function's backward with the tensors that the gradients depend on (`sources`).
    Outside `create_graph=True` it returns the gradients as they are.
    """
    if not torch.is_grad_enabled():
        return tuple(grads)
    present = [grad for grad in grads if grad is not None]
    marked = iter(cast(Any, _RaiseInBackward).apply(who, len(present), *present, *sources))
    return tuple(None if grad is None else next(marked) for grad in grads)


class _RaiseInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, who: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.who = who
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            f"{ctx.who} is not twice differentiable. Run the forward pass inside saccade.ops.double_backward(), or ask "
            'for kernel="reference".'
        )


def _reasons(kernel: Kernel, request: Request) -> list[str]:
    reasons = kernel.reasons_against(request)
    if _double_backward.get() and not kernel.double_backward:
        return [*reasons, "it is not twice differentiable, which double_backward() asks for"]
    return reasons


def _record(op: str, asked: str, name: str, skipped: dict[str, list[str]]) -> None:
    key = (op, asked, name, tuple((other, tuple(reasons)) for other, reasons in skipped.items()))
    _ledger[key] = _ledger.get(key, 0) + 1
