"""Errors of a backend in a dtype, and the budget that they must keep: what the reference kernel makes in that dtype.

The truth is the reference kernel in float64 on the CPU, on inputs that the dtype can represent. A backend that chooses
keys may choose others where two are nearly equal; so the pixels with the largest errors, a small share, are left out of
both sides.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Make = Callable[..., nn.Module]
OPS = {"full": "dense"}  # the op's file where it is not called like the backend
CHOOSING = {"gpa": 0.1, "psal": 0.1, "reformer": 0.1}
# How many times the reference kernel's error another kernel may make, and the dtype's rounding that is free to all.
FACTOR = 3.0
FREE = 4.0


def kernel_names(backend: str) -> list[str]:
    """Every kernel of a backend's op, fastest first, and "auto"."""
    op = importlib.import_module(f"saccade.ops.{OPS.get(backend, backend)}")
    return ["auto", *(kernel.name for kernel in op.KERNELS)]


def draw(
    dtype: torch.dtype, q_size: tuple[int, int], kv_size: tuple[int, int], channels: int, batch: int
) -> list[Tensor]:
    """q, k, v and a gradient of the output in float64, rounded to `dtype`."""
    generator = torch.Generator().manual_seed(0)
    sizes = (q_size, kv_size, kv_size, q_size)
    maps = [torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64) for size in sizes]
    return [x.to(dtype).double() for x in maps]


def outcomes(mixer: nn.Module, maps: Sequence[Tensor], dtype: torch.dtype, device: str) -> list[Tensor]:
    """Output and gradients of q, k and v in float64 on the CPU, as `mixer` makes them in `dtype` on `device`."""
    *inputs, upstream = (x.detach().to(device, dtype).clone() for x in maps)
    leaves = [x.requires_grad_() for x in inputs]
    out = mixer.to(device)(*leaves)
    if out.dtype != dtype or out.device.type != torch.device(device).type:
        raise AssertionError(f"the output is {out.dtype} on {out.device}, the inputs were {dtype} on {device}")
    out.backward(upstream)
    grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
    return [x.detach().double().cpu() for x in (out, *grads)]


def error(ours: Tensor, truth: Tensor, left_out: float) -> float:
    """Root mean square, relative to the truth's, of the error by pixel, without the worst share of pixels."""
    by_pixel = (ours - truth).square().mean(1).flatten().sort().values
    kept = by_pixel[: max(1, round(len(by_pixel) * (1 - left_out)))]
    return float((kept.mean() / truth.square().mean().clamp_min(1e-30)).sqrt())


@dataclass(frozen=True)
class Verdict:
    """Errors of output, dq, dk and dv beside what they may be."""

    errors: dict[str, float]
    allowed: dict[str, float]

    @property
    def over(self) -> dict[str, tuple[float, float]]:
        return {name: (e, self.allowed[name]) for name, e in self.errors.items() if not e <= self.allowed[name]}


def compare(make: Make, backend: str, kernel: str, maps: Sequence[Tensor], dtype: torch.dtype, device: str) -> Verdict:
    """Run a kernel and the reference in `dtype` on `device`, and set both beside float64.

    Raises:
        RuntimeError: the kernel cannot serve this call.
    """
    truth = outcomes(make(backend, kernel="reference"), maps, torch.float64, "cpu")
    ours = outcomes(make(backend, kernel=kernel), maps, dtype, device)
    plain = outcomes(make(backend, kernel="reference"), maps, dtype, device)
    left_out = CHOOSING.get(backend, 0.0)
    names = ("out", "dq", "dk", "dv")
    errors = {n: error(x, t, left_out) for n, x, t in zip(names, ours, truth, strict=True)}
    free = FREE * torch.finfo(dtype).eps
    allowed = {n: FACTOR * error(x, t, left_out) + free for n, x, t in zip(names, plain, truth, strict=True)}
    return Verdict(errors, allowed)
