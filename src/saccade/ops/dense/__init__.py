"""Dense (exact) attention between two maps: the library's oracle, and its `full` backend."""

from saccade.ops.dense.op import (
    KERNELS,
    SDPA_VECTOR_BYTES,
    dense_attention,
    dense_logits,
    dense_weights,
    vector_bytes,
)

__all__ = [
    "KERNELS",
    "SDPA_VECTOR_BYTES",
    "dense_attention",
    "dense_logits",
    "dense_weights",
    "vector_bytes",
]
