"""Patch-based stochastic attention (PSAL): PatchMatch finds each query's few best keys."""

from saccade.ops.psal.op import (
    KERNELS,
    psal_attention,
    psal_costs,
    psal_read,
    psal_search,
    psal_weights,
)

__all__ = [
    "KERNELS",
    "psal_attention",
    "psal_costs",
    "psal_read",
    "psal_search",
    "psal_weights",
]
