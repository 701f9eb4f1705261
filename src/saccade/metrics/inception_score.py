"""Inception score: exp of the mean KL divergence between p(class | image) and its mean (Salimans et al. 2016), float64.

The paper of "Your Local GAN" scores through TF-GAN: one set, no splits, softmax over all 1008 logits. OpenAI's code and
torch-fidelity average the score of ten parts of the set, which is lower. Both are here, under names of their own.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

SPLITS = 10
_SLICE = 4096  # rows that are in float64 at a time


def inception_score(logits: Tensor, *, bias: Tensor | None = None) -> float:
    """The score of (N, classes) logits in one go, as TF-GAN computes it: between 1 and the number of classes.

    Args:
        logits: one row an image.
        bias: (classes,), added to every row.

    Raises:
        ValueError: no logits, or not one row an image.
    """
    if logits.dim() != 2 or not len(logits):
        raise ValueError(f"inception score: logits must be (N, classes), N at least 1; got {tuple(logits.shape)}")
    mean = torch.zeros(logits.shape[1], dtype=torch.float64, device=logits.device)
    negative_entropy = torch.zeros((), dtype=torch.float64, device=logits.device)
    for start in range(0, len(logits), _SLICE):
        some = logits[start : start + _SLICE].detach().double()
        log_p = (some if bias is None else some + bias.detach().to(some)).log_softmax(1)
        p = log_p.exp()
        mean += p.sum(0) / len(logits)
        negative_entropy += (p * log_p).sum() / len(logits)
    # mean KL = mean sum p log p - sum q log q, q the mean of p; xlogy: a class that never occurs adds nothing
    return math.exp(float(negative_entropy - torch.xlogy(mean, mean).sum()))


def inception_score_of_parts(logits: Tensor, splits: int = SPLITS) -> tuple[float, float]:
    """Mean and population standard deviation of the scores of consecutive parts, as OpenAI's code computes them.

    Raises:
        ValueError: fewer rows than parts.
    """
    count = len(logits)
    if not 1 <= splits <= count:
        raise ValueError(f"inception score: {splits} splits need at least as many images; got {count}")
    starts = [part * count // splits for part in range(splits + 1)]
    scores = [inception_score(logits[start:end]) for start, end in itertools.pairwise(starts)]
    mean = math.fsum(scores) / splits
    return mean, math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / splits)
