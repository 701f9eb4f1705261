"""Performer: softmax attention by positive orthogonal random features (FAVOR+)."""

from saccade.ops.performer.op import (
    KERNELS,
    SCORES,
    check_eps,
    check_features,
    default_features,
    kept_projection,
    performer_attention,
    performer_weights,
)

__all__ = [
    "KERNELS",
    "SCORES",
    "check_eps",
    "check_features",
    "default_features",
    "kept_projection",
    "performer_attention",
    "performer_weights",
]
