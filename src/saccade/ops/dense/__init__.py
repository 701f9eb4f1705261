"""Dense (exact) attention between two maps: the library's oracle, and its `full` backend."""

from saccade.ops.dense.op import (
    KERNELS,
    against_vectors,
    dense_attention,
    dense_logits,
    dense_weights,
)

__all__ = [
    "KERNELS",
    "against_vectors",
    "dense_attention",
    "dense_logits",
    "dense_weights",
]
