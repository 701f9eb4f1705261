"""Attention as stateless functions: a folder an algorithm, each with a plain differentiable reference."""

from saccade.ops.dense import dense_attention, dense_weights
from saccade.ops.dispatch import double_backward, ledger, reset_ledger
from saccade.ops.gpa import gpa_attention, gpa_coverage, gpa_select, gpa_weights
from saccade.ops.inputs import finite_inputs
from saccade.ops.linear import linear_attention, linear_weights
from saccade.ops.local import local_attention, local_weights
from saccade.ops.nystromformer import nystrom_attention, nystrom_weights
from saccade.ops.performer import performer_attention, performer_weights
from saccade.ops.psal import psal_attention, psal_costs, psal_read, psal_search, psal_weights
from saccade.ops.reformer import reformer_attention, reformer_weights
from saccade.ops.ylg import ylg_attention, ylg_weights

__all__ = [
    "dense_attention",
    "dense_weights",
    "double_backward",
    "finite_inputs",
    "gpa_attention",
    "gpa_coverage",
    "gpa_select",
    "gpa_weights",
    "ledger",
    "linear_attention",
    "linear_weights",
    "local_attention",
    "local_weights",
    "nystrom_attention",
    "nystrom_weights",
    "performer_attention",
    "performer_weights",
    "psal_attention",
    "psal_costs",
    "psal_read",
    "psal_search",
    "psal_weights",
    "reformer_attention",
    "reformer_weights",
    "reset_ledger",
    "ylg_attention",
    "ylg_weights",
]
