"""Convolutions of the inpainting networks, and chains of them over pictures of any size.

A chain runs over a large picture in strips of rows, each with the rows around it that its result depends on, so that no
map of full size and many channels exists. That is the same function, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from saccade.geometry import Size
from saccade.layers.sagan import blur_matrix

Activation = Literal["elu", "relu", "none"]


class ConvBlock(nn.Module):
    """A biased convolution that keeps the size, or divides it by its stride, zeros outside the map; and an activation.

    Args:
        in_channels, out_channels: of the maps.
        kernel: side of the kernel, odd.
        stride: 1 or 2.
        dilation: of the kernel.
        double: double the map first, each pixel to 2x2. That and the 3x3 convolution are one transposed convolution
            with a 4x4 kernel, as in `saccade.layers.sagan`.
        activation: "elu", "relu" or "none".
    """

    blur: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        dilation: int = 1,
        double: bool = False,
        activation: Activation = "elu",
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride=stride, padding=dilation * (kernel // 2), dilation=dilation
        )
        self.kernel, self.stride, self.dilation, self.doubles = kernel, stride, dilation, double
        self.activation: Activation = activation
        self.register_buffer("blur", blur_matrix(turned=True) if double else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, Y, X) -> (B, out, Y, X), of twice the sides if `double`, of ceil(side / stride) else."""
        if self.blur is None:
            x = self.conv(x)
        else:
            weight = self.conv.weight  # (O, I, 3, 3)
            kernels = torch.unflatten(weight.flatten(2) @ self.blur.to(weight.dtype), 2, (4, 4))
            x = F.conv_transpose2d(x, kernels.transpose(0, 1), self.conv.bias, stride=2, padding=1)
        if self.activation == "elu":
            return F.elu(x, inplace=True)
        return F.relu(x, inplace=True) if self.activation == "relu" else x

    def rows_out(self, rows: int) -> int:
        """Rows of the result for a map of so many."""
        return 2 * rows if self.doubles else -(-rows // self.stride)

    def needs(self, wanted: Span, rows: int) -> tuple[Span, int]:
        """Rows of the map that some rows of the result depend on, and where the result for them alone begins.

        `rows` is the height of the map. Rows outside it are zeros, as for the whole map.
        """
        if self.doubles:
            first = max(0, (wanted.start - 1) // 2)
            return Span(first, min(rows, wanted.stop // 2 + 1)), 2 * first
        reach = self.dilation * (self.kernel // 2)
        first = max(0, (wanted.start * self.stride - reach) // self.stride)
        last = (wanted.stop - 1) * self.stride + reach
        return Span(first * self.stride, min(rows, last + 1)), first


class Span(NamedTuple):
    """Rows start ... stop - 1."""

    start: int
    stop: int


def run(layers: Sequence[ConvBlock], x: Tensor, strip_pixels: int | None = None) -> Tensor:
    """Run a chain of convolutions, in strips where no gradients are recorded.

    Args:
        layers: the chain.
        x: (B, C, Y, X).
        strip_pixels: most pixels of a strip of the chain's largest map; None is the whole map at once.
    """
    strips = [] if strip_pixels is None else list(strips_of(layers, Size(*x.shape[2:]), strip_pixels))
    if len(strips) < 2 or torch.is_grad_enabled():
        return _chained(layers, x)
    heights = [x.shape[2]]
    for layer in layers:
        heights.append(layer.rows_out(heights[-1]))
    out: Tensor | None = None
    for strip in strips:
        part = _strip(layers, x, strip, heights)
        if out is None:
            out = part.new_empty(*part.shape[:2], heights[-1], part.shape[3])
        out[:, :, strip.start : strip.stop] = part
    return x if out is None else out


def strips_of(layers: Sequence[ConvBlock], size: Size, strip_pixels: int) -> Iterator[Span]:
    """Rows of the result of a chain, cut such that its largest map has about `strip_pixels` pixels in each strip."""
    sizes = [size]
    for layer in layers:
        sizes.append(Size(layer.rows_out(sizes[-1].rows), layer.rows_out(sizes[-1].cols)))
    rows = sizes[-1].rows
    count = min(rows, -(-max(each.area for each in sizes) // strip_pixels))
    for number in range(count):
        yield Span(rows * number // count, rows * (number + 1) // count)


def _chained(layers: Sequence[ConvBlock], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _strip(layers: Sequence[ConvBlock], x: Tensor, strip: Span, heights: Sequence[int]) -> Tensor:
    """The rows `strip` of the chain's result; `heights` are those of its maps, the first one's and every result's."""
    wanted = strip
    steps: list[tuple[ConvBlock, Span, int]] = []  # of each layer: the rows of its result, and where they begin
    for layer, rows in zip(reversed(layers), reversed(heights[:-1]), strict=True):
        needed, begins = layer.needs(wanted, rows)
        steps.append((layer, wanted, begins))
        wanted = needed
    x = x[:, :, wanted.start : wanted.stop]
    for layer, rows_wanted, begins in reversed(steps):
        x = layer(x)[:, :, rows_wanted.start - begins : rows_wanted.stop - begins]
    return x
