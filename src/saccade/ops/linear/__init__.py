"""Linear attention: softmax replaced by a product of positive features, so that no pair of pixels is ever looked at."""

from saccade.ops.linear.op import (
    KERNELS,
    linear_attention,
    linear_weights,
)

__all__ = [
    "KERNELS",
    "linear_attention",
    "linear_weights",
]
