"""Grid-partitioned attention (GPA): each cell of a grid over the query map attends to the few key blocks it chooses."""

from saccade.ops.gpa.op import (
    KERNELS,
    gpa_attention,
    gpa_coverage,
    gpa_select,
    gpa_weights,
)

__all__ = [
    "KERNELS",
    "gpa_attention",
    "gpa_coverage",
    "gpa_select",
    "gpa_weights",
]
