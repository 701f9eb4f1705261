"""Attention as stateless functions: one file an algorithm, each with a plain differentiable reference."""

from saccade.ops.dense import dense_attention
from saccade.ops.dispatch import double_backward, ledger, reset_ledger
from saccade.ops.gpa import gpa_attention, gpa_coverage, gpa_select, gpa_weights

__all__ = [
    "dense_attention",
    "double_backward",
    "gpa_attention",
    "gpa_coverage",
    "gpa_select",
    "gpa_weights",
    "ledger",
    "reset_ledger",
]
