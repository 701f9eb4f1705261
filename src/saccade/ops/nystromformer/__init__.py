"""Nystromformer: attention through landmarks, means of runs of pixels (Xiong et al., arXiv 2102.03902)."""

from saccade.ops.nystromformer.op import (
    KERNELS,
    check_landmarks,
    nystrom_attention,
    nystrom_weights,
)

__all__ = [
    "KERNELS",
    "check_landmarks",
    "nystrom_attention",
    "nystrom_weights",
]
