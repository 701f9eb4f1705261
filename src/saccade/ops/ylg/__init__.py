"""Your Local GAN attention: each head of a layer has its own sparse pattern over an enumeration of the key map."""

from saccade.ops.ylg.op import (
    KERNELS,
    ylg_attention,
    ylg_weights,
)

__all__ = [
    "KERNELS",
    "ylg_attention",
    "ylg_weights",
]
