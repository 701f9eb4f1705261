"""Scores a picture, kept by the picture's key until the evaluation ends, and joined over all processes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Rows = dict[str, dict[str, float]]


def require_finite(who: str, pictures: Tensor, keys: Sequence[str]) -> None:
    """Refuse to score pictures (B, ...) that hold NaN or infinity: a mean would leave them out, 8 bits hide them.

    Raises:
        ValueError: names the first one.
    """
    finite = torch.isfinite(pictures).flatten(1).all(1).tolist()
    if not all(finite):
        raise ValueError(f"{who}: {keys[finite.index(False)]} was made with values that are not finite")


def gathered_rows(rows: Rows) -> Rows:
    """The rows of all processes, joined by key: a picture that two processes scored counts once.

    Under torch.distributed every process must call it.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return rows
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, rows)
    return {key: row for part in parts for key, row in part.items()}


def column_means(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each column over the rows that have it with a finite value; columns in order of appearance."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if math.isfinite(value):
                found.setdefault(name, []).append(value)
    return {name: math.fsum(values) / len(values) for name, values in found.items()}
