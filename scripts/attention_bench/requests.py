"""What the command line may ask for: wrong values are refused before the first cell runs."""

from __future__ import annotations

import argparse
import inspect
import math
from typing import Any

from attention_bench.cells import Cell


def whole(text: str) -> int:
    """A number from 1, for argparse."""
    return _at_least_one(text, "a whole number from 1")


def odd(text: str) -> int:
    """An odd number from 1, for argparse."""
    value = _at_least_one(text, "an odd number from 1")
    if value % 2 == 0:
        raise argparse.ArgumentTypeError(f"must be an odd number from 1; got {text}, nearest: {value - 1}, {value + 1}")
    return value


def positive(text: str) -> float:
    """A number above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0; got {text!r}")
    return value


def _at_least_one(text: str, what: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be {what}; got {text!r}")
    return value


def check_device(device: str) -> None:
    """Raise ValueError, saying what there is, unless cells can run on the device."""
    import torch

    try:
        asked = torch.device(device)
    except RuntimeError:
        asked = None
    if asked is None or asked.type not in ("cpu", "cuda"):
        raise ValueError(f"--device takes cpu, cuda or cuda:N; got {device!r}")
    if asked.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise ValueError(f"--device {device}: PyTorch {torch.__version__} finds no CUDA device here; valid: cpu")
        if (asked.index or 0) >= count:
            valid = ", ".join(f"cuda:{index}" for index in range(count))
            raise ValueError(f"--device {device}: there is no such device; valid: cpu, {valid}")


def check_options(cell: Cell, backend: Any, altered: set[str]) -> None:
    """Build a cell's module once, so that options it refuses are told before anything is measured.

    Args:
        cell: the cell, its options as they will be.
        backend: the class of the module.
        altered: options that --set has given; with any, the module must also fit the cell's maps.

    Raises:
        ValueError: an unknown option, a value the module refuses, or maps that it cannot take with what --set gives.
    """
    from saccade.geometry import AttentionShape, Size

    known = [name for name in inspect.signature(backend).parameters if name != "spec"]
    unknown = sorted(set(cell.options) - set(known))
    if unknown:
        raise ValueError(f"{cell.label} has no option {', '.join(unknown)}; valid here: {', '.join(known)}")
    try:
        module = backend(**cell.options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{cell.label} on {cell.case.name}: {error}") from error
    if not altered:
        return
    case, heads = cell.case, module.heads
    reasons = [module.head_reason(count) for count in {case.channels, case.v_channels} if count % heads]
    if not reasons:
        sizes = (case.channels // heads, case.v_channels // heads, Size(*case.q_size), Size(*case.kv_size))
        reasons = module.reasons_against(AttentionShape(case.batch, heads, *sizes))
    if reasons:
        raise ValueError(f"{cell.label} on {case.name}: {' '.join(reasons)}")
