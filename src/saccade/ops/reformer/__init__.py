"""Reformer attention: each query attends to the keys that a locality-sensitive hash puts near it."""

from saccade.ops.reformer.op import (
    KERNELS,
    ROTATION_BUCKETS,
    check_reformer_options,
    reformer_attention,
    reformer_weights,
    size_reasons,
)

__all__ = [
    "KERNELS",
    "ROTATION_BUCKETS",
    "check_reformer_options",
    "reformer_attention",
    "reformer_weights",
    "size_reasons",
]
