"""Every backend with options that CSNLN's slots take at a training size of 16x16 or 12x12 pixels."""

from __future__ import annotations

from typing import Any

from saccade import attention

BACKENDS: dict[str, tuple[type[attention.SpatialAttention], dict[str, Any]]] = {
    "none": (attention.NoAttention, {}),
    "full": (attention.FullAttention, {}),
    "gpa": (attention.GridPartitionedAttention, {"coarse": 2, "cells": 2, "keys_per_cell": 3}),
    "ylg": (attention.YourLocalAttention, {"heads": 2, "patterns": ["ltr1", "rtl2"]}),
    "psal": (attention.PatchBasedStochasticAttention, {"iterations": 2}),
    "local": (attention.LocalAttention, {"window": 5}),
    "linear": (attention.LinearAttention, {}),
    "performer": (attention.PerformerAttention, {"features": 32, "score": "dot"}),
    "reformer": (attention.ReformerAttention, {"bucket_size": 6, "hashes": 2}),
    "nystromformer": (attention.NystromAttention, {"landmarks": 8}),
}
