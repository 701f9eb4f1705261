"""CSNLN, cross-scale non-local attention for super-resolution (Mei et al., CVPR 2020, arXiv 2006.01424), as released.

Its cross-scale attention is what the PSAL paper replaces (arXiv 2202.03163, Table 7). One cell is applied `depth`
times; it projects the map up by cross-scale attention and by in-scale attention with a transposed convolution, and back
down. The large maps of all rounds make the picture. Parameters have the released names, so that a released state dict
loads strictly: 3,061,289 parameters for x2, 6,010,409 for x3, 6,568,627 for x4.

What differs: any size of picture is accepted (see `saccade.attention.cross_scale`), and `skip` (ours) adds bicubic
interpolation, which small networks need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.attention.block import SlotBlock
from saccade.attention.cross_scale import in_scale_attention
from saccade.attention.slots import SlotPolicy
from saccade.geometry import Size, SlotSpec
from saccade.ops.inputs import at_least_float32
from saccade.ops.options import sides, whole

Skip = Literal["none", "bicubic"]
SKIPS: tuple[Skip, ...] = ("none", "bicubic")
MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K, as released
# Kernel, stride and padding of the convolutions between the map and the large one; of x4 those of its first step.
RESIZES = {2: (6, 2, 2), 3: (9, 3, 3), 4: (6, 2, 2)}
TWICE = (8, 4, 2)  # of the second step of x4


class CrossScaleNet(nn.Module):
    """Small pictures to pictures `scale` times larger.

    Attention slots are called "cross_scale" and "in_scale"; x4 takes two steps of x2, and has "cross_scale_2" and
    "in_scale_2" on the larger map too.

    Args:
        scale: 2, 3 or 4.
        channels: of all maps; 128 as released.
        depth: rounds of the cell; 12 as released.
        attention: the policy of the cross-scale slots, with `CrossScaleBlock`; see `cross_scale_attention`.
        in_scale: the policy of the in-scale slots, with `InScaleBlock`; None is exact attention as released.
        skip: "none"; "bicubic" (ours) adds the bicubic interpolation, which the network then starts as. It needs
            a warm-up: Adam's first full step moves the whole tail from zero, which costs most of the gain.
        size: side, or (rows, cols), of the small training pictures in pixels, multiples of the scale (x4: of 2). 48 as
            released.

    Raises:
        ValueError: an option that does not exist or fit, or slots that a policy cannot fill.
    """

    def __init__(
        self,
        *,
        scale: int,
        channels: int = 128,
        depth: int = 12,
        attention: SlotPolicy,
        in_scale: SlotPolicy | None = None,
        skip: Skip = "none",
        size: int | Sequence[int] = 48,
    ) -> None:
        super().__init__()
        if scale not in RESIZES:
            raise ValueError(f"CrossScaleNet: scale is one of {', '.join(map(str, RESIZES))}; got {scale!r}.")
        if skip not in SKIPS:
            raise ValueError(f"CrossScaleNet: skip is one of {', '.join(SKIPS)}; got {skip!r}.")
        self.scale, self.skip = int(scale), skip
        self.channels = whole("CrossScaleNet", "channels", channels, 2)
        self.depth = whole("CrossScaleNet", "depth", depth)
        self.size = _training_size(sides("CrossScaleNet", "size", size), RESIZES[self.scale][1])
        self.sub_mean, self.add_mean = MeanShift(-1), MeanShift(1)
        self.head = nn.Sequential(_convolution(3, self.channels), _convolution(self.channels, self.channels))
        self.tail = nn.Sequential(nn.Conv2d(self.channels * self.depth, 3, 3, padding=1))
        self.SEM = SelfExemplarMining(self.scale, self.channels)
        # last, so that whatever the policies build leaves the weights above as they are
        cross_specs, in_specs = self.slot_specs()
        blocks = dict(attention.build(cross_specs).items())
        blocks |= in_scale_attention().build(in_specs).items() if in_scale is None else in_scale.build(in_specs).items()
        self.SEM.fill(blocks)
        if skip == "bicubic":
            for parameter in self.tail.parameters():
                nn.init.zeros_(parameter)

    def slot_specs(self) -> tuple[list[SlotSpec], list[SlotSpec]]:
        """The cross-scale and the in-scale slots."""
        factor, width = RESIZES[self.scale][1], self.channels
        cross, within = [], []
        for step in range(2 if self.scale == 4 else 1):
            large = Size(self.size.rows * factor**step, self.size.cols * factor**step)
            small = Size(large.rows // factor, large.cols // factor)
            name = "_2" if step else ""
            cross.append(SlotSpec(f"cross_scale{name}", width, width, width, large, small))
            within.append(SlotSpec(f"in_scale{name}", width, width, width, large, large))
        return cross, within

    @property
    def attention_blocks(self) -> dict[str, SlotBlock]:
        """The attention block of every slot, by name."""
        return self.SEM.attention_blocks

    def forward(self, low: Tensor) -> Tensor:
        """Enlarge pictures.

        Args:
            low: (B, 3, Y, X) in [0, 1].

        Returns:
            (B, 3, scale * Y, scale * X), not clamped.

        Raises:
            ValueError: no such pictures.
        """
        if low.dim() != 4 or low.shape[1] != 3 or low.numel() == 0:
            raise ValueError(f"CrossScaleNet: pictures must be (batch, 3, rows, cols); got {tuple(low.shape)}.")
        centred: Tensor = self.sub_mean(low)
        x = self.head(centred)
        # the tail is a sum over the rounds, so that without gradients no more than one large map is held
        weights, bias = self.tail.parameters()
        out: Tensor | None = None
        for weight in torch.chunk(weights, self.depth, 1):
            x, large = self.SEM(x)
            part = F.conv2d(large, weight, bias if out is None else None, padding=1)
            out = part if out is None else out + part
        if out is None:
            raise RuntimeError("CrossScaleNet has no rounds.")
        if self.skip == "bicubic":
            size = [side * self.scale for side in low.shape[2:]]
            out = out + F.interpolate(
                at_least_float32(centred), size=size, mode="bicubic", align_corners=False, antialias=True
            )
        shifted: Tensor = self.add_mean(out)
        return shifted


class MeanShift(nn.Conv2d):
    """Add (sign 1) or subtract (sign -1) the mean colour: a fixed 1x1 convolution, as released."""

    def __init__(self, sign: int) -> None:
        super().__init__(3, 3, 1)
        with torch.no_grad():
            self.weight.copy_(torch.eye(3)[:, :, None, None])
            self.bias.copy_(sign * torch.tensor(MEAN))  # type: ignore[union-attr]
        self.requires_grad_(False)


class SelfExemplarMining(nn.Module):
    """The cell: a map, projected up and back down, to the next map and the large one.

    For x4 the first large map is projected up once more, and both come down to the small map at once.
    """

    def __init__(self, scale: int, channels: int) -> None:
        super().__init__()
        first = RESIZES[scale]
        self.multi_source_projection = MultisourceProjection(channels, first)
        self.down_sample_1 = _down(channels, first)
        if scale != 4:
            self.down_sample_2 = _down(channels, first)
        self.error_encode = _up(channels, first)
        self.post_conv = _convolution(channels, channels)
        self.twice = scale == 4
        if self.twice:
            self.multi_source_projection_2 = MultisourceProjection(channels, first)
            self.down_sample_3 = _down(channels, TWICE)
            self.down_sample_4 = _down(channels, TWICE)
            self.error_encode_2 = _up(channels, TWICE)

    def projections(self) -> list[MultisourceProjection]:
        """The projections up, from the small map on."""
        return [self.multi_source_projection, *([self.multi_source_projection_2] if self.twice else [])]

    def fill(self, blocks: Mapping[str, SlotBlock]) -> None:
        """Put the attention blocks into their places, by slot name."""
        for projection, name in zip(self.projections(), ("", "_2"), strict=False):
            projection.up_attention = blocks[f"cross_scale{name}"]
            projection.down_attention = blocks[f"in_scale{name}"]

    @property
    def attention_blocks(self) -> dict[str, SlotBlock]:
        """The attention block of every slot, by name."""
        blocks: dict[str, SlotBlock] = {}
        for projection in self.projections():
            for block in (projection.up_attention, projection.down_attention):
                if isinstance(block, SlotBlock):
                    blocks[block.spec.name] = block
        return blocks

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, Y, X) -> (B, C, Y, X), and (B, C, scale * Y, scale * X)."""
        up = self.multi_source_projection(x)
        large = up + self.error_encode(x - self.down_sample_1(up))
        if not self.twice:
            return self.post_conv(self.down_sample_2(large)), large
        up = self.multi_source_projection_2(large)
        large = up + self.error_encode_2(x - self.down_sample_3(up))
        return self.post_conv(self.down_sample_4(large)), large


class MultisourceProjection(nn.Module):
    """Two projections up, by in-scale and by cross-scale attention, and a residual of their difference.

    `SelfExemplarMining.fill` brings the attention.
    """

    up_attention: nn.Module
    down_attention: nn.Module

    def __init__(self, channels: int, resize: tuple[int, int, int]) -> None:
        super().__init__()
        self.upsample = _up(channels, resize)
        self.encoder = Residual(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, Y, X) -> (B, C, s * Y, s * X)."""
        within: Tensor = self.upsample(self.down_attention(x, x))
        across: Tensor = self.up_attention(x, x)
        error: Tensor = self.encoder(across - within)
        return within + error


class Residual(nn.Module):
    """x + 3x3, PReLU, 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.PReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.body(x)
        return added + x


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.PReLU())


def _down(channels: int, resize: tuple[int, int, int]) -> nn.Sequential:
    kernel, stride, padding = resize
    return nn.Sequential(nn.Conv2d(channels, channels, kernel, stride=stride, padding=padding), nn.PReLU())


def _up(channels: int, resize: tuple[int, int, int]) -> nn.Sequential:
    kernel, stride, padding = resize
    return nn.Sequential(nn.ConvTranspose2d(channels, channels, kernel, stride=stride, padding=padding), nn.PReLU())


def _training_size(size: Size, factor: int) -> Size:
    if size.rows % factor or size.cols % factor:
        nearest = Size(*(max(factor, round(side / factor) * factor) for side in size))
        raise ValueError(
            f"CrossScaleNet: the training size {size} must be a multiple of {factor} along both sides: the keys are a "
            f"{factor} times smaller map. Nearest valid: {nearest}."
        )
    return size
