"""What every attention op checks and prepares before a kernel runs: shapes, masks, softmax statistics, autocast."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from saccade.geometry import AttentionShape, Size
from saccade.ops.dispatch import Request, Score
from saccade.ops.options import positive, whole

# exp(x) is exp2(LOG2_E * x).
LOG2_E = 1 / math.log(2)

_finite_inputs: ContextVar[bool] = ContextVar("saccade_finite_inputs", default=False)


@contextmanager
def finite_inputs(enabled: bool = True) -> Iterator[None]:
    """Make every op called inside refuse NaN and infinite maps, on any device and in training.

    Outside, ops look on the CPU and where no gradients are recorded: on a GPU looking means waiting, and a training
    step that is not finite is for the training loop to count and skip. A mask is looked at wherever it lies.
    """
    token = _finite_inputs.set(enabled)
    try:
        yield
    finally:
        _finite_inputs.reset(token)


def read_shape(
    op: str, q: Tensor, k: Tensor, v: Tensor | None = None, key_mask: Tensor | None = None
) -> AttentionShape:
    """Check that the maps of one attention call fit together, and name their sizes.

    Args:
        op: name of the op, for messages.
        q: (B, G, D, Yq, Xq).
        k: (B, G, D, Yk, Xk).
        v: (B, G, E, Yk, Xk); without it the shape's `v_channels` is D.
        key_mask: (B, 1, Yk, Xk) bool.

    Raises:
        ValueError: a map has the wrong rank, size, dtype or device, is empty, or holds NaN or infinity (looked for as
            `finite_inputs` says); the mask leaves a batch entry no key.
    """
    maps = {"q": q, "k": k} if v is None else {"q": q, "k": k, "v": v}
    for name, tensor in maps.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{op}: {name} must be a tensor; got {type(tensor).__name__}.")
        if tensor.dim() != 5:
            raise ValueError(f"{op}: {name} must be (B, G, channels, rows, cols); got shape {tuple(tensor.shape)}.")
        if not tensor.is_floating_point():
            raise ValueError(f"{op}: q, k and v must be floating; {name} is {tensor.dtype}.")
        if tensor.dtype != q.dtype or tensor.device != q.device:
            raise ValueError(
                f"{op}: q, k and v must share one floating dtype and one device; q is {q.dtype} on {q.device}, "
                f"{name} is {tensor.dtype} on {tensor.device}."
            )
    if q.shape[:3] != k.shape[:3]:
        raise ValueError(f"{op}: q {tuple(q.shape)} and k {tuple(k.shape)} must agree in batch, heads and channels.")
    if v is not None and (v.shape[:2] != k.shape[:2] or v.shape[3:] != k.shape[3:]):
        raise ValueError(f"{op}: v {tuple(v.shape)} must agree with k {tuple(k.shape)} in batch, heads, rows and cols.")
    batch, heads, channels, rows, cols = k.shape
    if key_mask is not None and not isinstance(key_mask, Tensor):
        raise ValueError(
            f"{op}: key_mask must be a bool tensor of shape {(batch, 1, rows, cols)}; got {type(key_mask).__name__}."
        )
    if key_mask is not None and (key_mask.dtype != torch.bool or key_mask.shape != (batch, 1, rows, cols)):
        raise ValueError(
            f"{op}: key_mask must be a bool tensor of shape {(batch, 1, rows, cols)}; got {key_mask.dtype} of shape "
            f"{tuple(key_mask.shape)}."
        )
    if key_mask is not None and key_mask.device != q.device:
        raise ValueError(f"{op}: key_mask is on {key_mask.device}, the maps are on {q.device}; move it there.")
    for name, tensor in maps.items():
        if tensor.numel() == 0:
            raise ValueError(f"{op}: {name} is empty, shape {tuple(tensor.shape)}; every axis must be at least 1.")
    _check_values(op, maps, key_mask)
    return AttentionShape(
        batch=batch,
        heads=heads,
        qk_channels=channels,
        v_channels=channels if v is None else v.shape[2],
        q_size=Size(*q.shape[3:]),
        kv_size=Size(rows, cols),
    )


def _check_values(op: str, maps: Mapping[str, Tensor], key_mask: Tensor | None) -> None:
    device = next(iter(maps.values())).device
    if device.type == "meta" or torch.compiler.is_compiling():
        return
    recording = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in maps.values())
    if _finite_inputs.get() or (device.type == "cpu" and not recording):
        for name, tensor in maps.items():
            # a sum is NaN or infinite if an entry is; it may overflow without one, so only then look at each
            if not bool(torch.isfinite(tensor.detach().sum())) and not bool(torch.isfinite(tensor.detach()).all()):
                raise ValueError(f"{op}: {name} holds NaN or infinite values; all of them must be finite numbers.")
    if key_mask is not None:
        dead = ~key_mask.flatten(1).any(1)
        if bool(dead.any()):
            raise ValueError(
                f"{op}: key_mask leaves batch entry {int(dead.nonzero()[0])} no key; it must allow at least one."
            )


def make_request(shape: AttentionShape, score: Score, key_mask: Tensor | None, *tensors: Tensor) -> Request:
    """Describe a call for `choose`; `tensors` are those that gradients may be asked for."""
    return Request(
        device=tensors[0].device,
        dtype=tensors[0].dtype,
        shape=shape,
        score=score,
        masked=key_mask is not None,
        requires_grad=torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors),
    )


def default_scale(scale: float | None, channels: int, score: Score = "dot") -> float:
    """`scale`; or 1 / sqrt(channels compared) for "dot" and "l2", as in GPA's released code, and 1 for unit vectors."""
    if scale is not None:
        return float(scale)
    return 1.0 if score in ("cosine", "unit_key") else float(channels**-0.5)


def check_scale(op: str, scale: float | None) -> float | None:
    """The factor on the score, which must be None or a finite number above 0."""
    return None if scale is None else positive(op, "scale", scale, "None for the default")


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor, or its float32 copy where it is fp16 or bf16: scores and softmax statistics need the digits."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def no_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Keep autocast from lowering the products of a kernel that manages its own precision."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def exact_products() -> Any:
    """Keep cuDNN from rounding the float32 products of convolutions to TF32, which PyTorch lets it do by default."""
    return torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled,
        benchmark=torch.backends.cudnn.benchmark,
        deterministic=torch.backends.cudnn.deterministic,
        allow_tf32=False,
    )


def check_seed(op: str, seed: int | None) -> int | None:
    """The seed, which must be None or a whole number that a generator takes."""
    if seed is None:
        return None
    number = whole(op, "seed", seed, 0, "None for new draws")
    if number >= 2**63:
        raise ValueError(f"{op}: seed must be below 2**63; got {seed!r}.")
    return number


def draw_seed(generator: torch.Generator | None) -> int:
    """Draw the one number that a call derives all its randomness from; from the CPU's generator if None is given."""
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**62, (), generator=generator, device=device))


def softmax_(logits: Tensor) -> Tensor:
    """Softmax over the last axis in place of its logits, which must be finite or -inf, with one finite entry a row.

    On the CPU torch.softmax takes several times as long as these passes where rows are long, and exp_, but not exp2_,
    ten times as long where it underflows.
    """
    if logits.device.type != "cpu":
        return torch.softmax(logits, -1)
    logits.sub_(logits.amax(-1, keepdim=True)).mul_(LOG2_E).exp2_()
    return logits.div_(logits.sum(-1, keepdim=True))


def masked_softmax(logits: Tensor, allowed: Tensor | None) -> Tensor:
    """Softmax over the last axis among the allowed entries; zeros where none is allowed.

    Args:
        logits: (..., K).
        allowed: bool, broadcastable to `logits`, or None for all.
    """
    if allowed is None:
        return torch.softmax(logits, -1)
    alive = allowed.any(-1, keepdim=True)
    logits = logits.masked_fill(~allowed & alive, float("-inf"))
    return torch.softmax(logits, -1) * alive
