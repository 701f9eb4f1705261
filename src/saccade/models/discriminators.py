"""The discriminator of the pose-morph generator: an image and its pose in, one logit out.

GPA (arXiv 2107.03742) shows it (M1, B1) as real and (G(M1, B1, B2), B2) as fake, takes loss and design from StyleGAN2,
and gives it the channels of the encoder (table 2). Its text also says that discriminator blocks equal encoder blocks,
which StyleGAN2's do not: `block` chooses. The head is StyleGAN2's (minibatch standard deviation, 3x3 convolution, two
linear layers) on the coarsest map of the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from saccade.geometry import Size
from saccade.layers.blocks import EncoderBlock, MinibatchStddev, ResidualDownBlock
from saccade.layers.equalised import EqualConv2d, EqualLinear, full_precision, leaky_relu
from saccade.models.posemorph import level_sizes

BlockKind = Literal["residual", "plain"]
BLOCKS: tuple[BlockKind, ...] = ("residual", "plain")


class PointwiseIn(nn.Module):
    """StyleGAN2's first layer: a 1x1 convolution from the input channels, then the leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = EqualConv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, Y, X) -> (B, out, Y, X)."""
        return leaky_relu(self.conv(x))


class PoseDiscriminator(nn.Module):
    """Judge whether an image is a photograph of a person in the given pose.

    Args:
        image_size: side, or (rows, cols), of the images in pixels; multiples of 2^(levels - 1).
        channels: of each level, coarsest first, as the generator's.
        pose_channels: heatmaps of a pose.
        block: "residual" (default) for StyleGAN2's blocks, "plain" for encoder blocks of constant style.
        stddev_group: largest group of the minibatch standard deviation; the largest divisor of the batch up to it is
            used.

    Raises:
        ValueError: unknown `block`, or a size that the levels do not halve.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        channels: Sequence[int],
        pose_channels: int = 18,
        block: BlockKind = "residual",
        stddev_group: int = 4,
    ) -> None:
        super().__init__()
        if block not in BLOCKS:
            raise ValueError(f"PoseDiscriminator: block is one of {', '.join(BLOCKS)}; got {block!r}.")
        self.image_size = Size.of(image_size)
        self.pose_channels = pose_channels
        sizes = level_sizes(self.image_size, len(channels))
        finest_first = list(reversed(channels))
        steps = list(pairwise(finest_first))
        blocks: list[nn.Module]
        if block == "residual":
            blocks = [PointwiseIn(3 + pose_channels, finest_first[0])]
            blocks += [ResidualDownBlock(fine, coarse) for fine, coarse in steps]
        else:
            blocks = [EncoderBlock(3 + pose_channels, finest_first[0], down=False)]
            blocks += [EncoderBlock(fine, coarse, down=True) for fine, coarse in steps]
        self.blocks = nn.Sequential(*blocks)
        width = channels[0]
        self.stddev = MinibatchStddev(stddev_group)
        self.final_conv = EqualConv2d(width + 1, width, 3)
        self.final_linear = EqualLinear(width * sizes[0].area, width)
        self.logit = EqualLinear(width, 1)

    def forward(self, image: Tensor, pose: Tensor) -> Tensor:
        """(B, 3, Y, X) and (B, pose_channels, Y, X) of the size it was built for -> logits (B, 1), at least float32.

        Raises:
            ValueError: other channels, sizes or unequal batches.
        """
        for name, tensor, channels in (("image", image, 3), ("pose", pose, self.pose_channels)):
            wanted = (image.shape[0], channels, *self.image_size)
            if tuple(tensor.shape) != wanted:
                raise ValueError(f"PoseDiscriminator: {name} must be {wanted}; got {tuple(tensor.shape)}.")
        x = self.blocks(torch.cat((image, pose), dim=1))
        x = leaky_relu(self.final_conv(self.stddev(x)))
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(full_precision(x.dtype)).flatten(1)
            logit: Tensor = self.logit(leaky_relu(self.final_linear(x)))
        return logit
