"""Attention as stateless functions: one file an algorithm, each with a plain differentiable reference."""

from saccade.ops.dense import dense_attention
from saccade.ops.dispatch import double_backward, ledger, reset_ledger
from saccade.ops.gpa import gpa_attention, gpa_coverage, gpa_select, gpa_weights
from saccade.ops.inputs import finite_inputs
from saccade.ops.linear import linear_attention
from saccade.ops.local import local_attention
from saccade.ops.nystromformer import nystrom_attention
from saccade.ops.performer import performer_attention
from saccade.ops.psal import psal_attention, psal_read, psal_search
from saccade.ops.reformer import reformer_attention
from saccade.ops.ylg import ylg_attention

__all__ = [
    "dense_attention",
    "double_backward",
    "finite_inputs",
    "gpa_attention",
    "gpa_coverage",
    "gpa_select",
    "gpa_weights",
    "ledger",
    "linear_attention",
    "local_attention",
    "nystrom_attention",
    "performer_attention",
    "psal_attention",
    "psal_read",
    "psal_search",
    "reformer_attention",
    "reset_ledger",
    "ylg_attention",
]
