"""Windowed (local) attention: every query attends to the keys of a window around the key pixel under it."""

from saccade.ops.local.op import (
    KERNELS,
    local_attention,
    local_flops,
    local_weights,
)

__all__ = [
    "KERNELS",
    "local_attention",
    "local_flops",
    "local_weights",
]
