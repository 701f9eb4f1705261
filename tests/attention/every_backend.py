"""Every backend once, at sizes that small maps take: what the contract tests run over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from saccade.attention import (
    FullAttention,
    GridPartitionedAttention,
    LinearAttention,
    LocalAttention,
    NoAttention,
    NystromAttention,
    PatchBasedStochasticAttention,
    PerformerAttention,
    ReformerAttention,
    SpatialAttention,
    YourLocalAttention,
)

MAKERS: dict[str, Callable[..., SpatialAttention]] = {
    "none": NoAttention,
    "full": FullAttention,
    "gpa": lambda **options: GridPartitionedAttention(**{"coarse": 4, "cells": 2, "keys_per_cell": 3, **options}),
    "ylg": lambda **options: YourLocalAttention(**{"heads": 2, "patterns": ["ltr1", "rtl2"], **options}),
    "psal": lambda **options: PatchBasedStochasticAttention(
        **{"matches": 2, "patch_size": 3, "iterations": 2, "seed": 0, **options}
    ),
    "local": lambda **options: LocalAttention(**{"window": 5, **options}),
    "linear": LinearAttention,
    "performer": lambda **options: PerformerAttention(**{"features": 32, **options}),
    "reformer": lambda **options: ReformerAttention(**{"bucket_size": 8, "hashes": 2, "seed": 0, **options}),
    "nystromformer": lambda **options: NystromAttention(**{"landmarks": 8, **options}),
}
ATTENDING = [name for name in MAKERS if name != "none"]
# Backends that compare queries and keys as patches.
PATCHED = [name for name in ATTENDING if name != "ylg"] + ["ylg"]
RANDOM = ["psal", "performer", "reformer"]


def make(name: str, **options: Any) -> SpatialAttention:
    """The backend of that name with small sizes; `options` override."""
    return MAKERS[name](**options)
