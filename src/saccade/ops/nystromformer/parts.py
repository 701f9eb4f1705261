"""What Nystromformer is made of (arXiv 2102.03902): segments, whose means are landmarks, and an iterative inverse."""

from __future__ import annotations

import torch
from torch import Tensor


class Segments:
    """A scan line of pixels cut into runs of nearly equal length, the i-th from floor(i n / L) on.

    Args:
        pixels: n, length of the scan line.
        count: L; with more than n every pixel is a segment.
        allowed: (N, n) bool, the pixels that count; the mean of a segment without any is zero.
        like: gives device and dtype.
    """

    def __init__(self, pixels: int, count: int, allowed: Tensor | None, like: Tensor) -> None:
        self.pixels, self.count = pixels, min(pixels, count)
        self.allowed = allowed
        self.dtype, self.device = like.dtype, like.device
        edges = torch.arange(self.count + 1, device=like.device) * pixels // self.count
        if allowed is None:
            self.sizes = edges.diff().unsqueeze(0)  # (1, L)
        else:
            before = torch.nn.functional.pad(allowed.long().cumsum(1), (1, 0))  # (N, n + 1)
            self.sizes = before[:, edges].diff(dim=1)  # (N, L)

    def of(self, pixel: int) -> int:
        """The segment that a pixel is in."""
        return ((pixel + 1) * self.count - 1) // self.pixels

    def reached(self, span: slice) -> slice:
        """The segments that a span of pixels reaches."""
        return slice(self.of(span.start), self.of(span.stop - 1) + 1)

    def averages(self, span: slice) -> Tensor:
        """Shares of a span's pixels in the means of the segments it reaches: (N or 1, R, S)."""
        reached = self.reached(span)
        pixels = torch.arange(span.start, span.stop, device=self.device)
        mine = ((pixels + 1) * self.count - 1) // self.pixels  # (R,)
        member = mine.unsqueeze(1) == torch.arange(reached.start, reached.stop, device=self.device)  # (R, S)
        shares = member.to(self.dtype) / self.sizes[:, reached].clamp_min(1).unsqueeze(1).to(self.dtype)
        return shares if self.allowed is None else shares * self.allowed[:, span].unsqueeze(2)

    def empty(self) -> Tensor | None:
        """(N, L) bool: segments without an allowed pixel; None where there can be none."""
        return None if self.allowed is None else self.sizes == 0


def pseudo_inverse(matrix: Tensor, iterations: int) -> Tensor:
    """Moore-Penrose inverse (.., R, C) -> (.., C, R) by the third-order iteration that the paper takes.

    It starts from the transpose over the largest column sum and the largest row sum, each matrix by its own.
    """
    sums = matrix.abs()
    largest = sums.sum(-2).amax(-1) * sums.sum(-1).amax(-1)
    inverse = matrix.transpose(-1, -2) / largest[..., None, None]
    eye = torch.eye(matrix.shape[-2], dtype=matrix.dtype, device=matrix.device)
    for _ in range(iterations):
        product = matrix @ inverse
        inner = 15 * eye - product @ (7 * eye - product)
        inverse = 0.25 * (inverse @ (13 * eye - product @ inner))
    return inverse


def landmark_attention(q: Tensor, k: Tensor, factor: float, bias: Tensor | None) -> Tensor:
    """Softmax over the key landmarks: (.., d, L_q), (.., d, L_k) -> (.., L_q, L_k); bias (.., 1, L_k) is added."""
    logits = factor * (q.transpose(-1, -2) @ k)
    return torch.softmax(logits if bias is None else logits + bias, -1)
