"""The pose-morph generator of Grid Partitioned Attention (arXiv 2107.03742, section 3, figures 4, 12, tables 2-4).

What the paper leaves open is an option; the defaults and the readings behind them:

- `style`: the paper modulates by "the mean of the last encoder layer" and does not say of which encoder. The source
  decoder takes that of its own encoder. The target decoder takes the source encoder's too ("source", default: the
  appearance is there, the target encoder sees only a skeleton), its own encoder's ("own"), or both ("both").
- `skip`: how an encoder's map joins the decoder of its level: "concat" (default) before the block's second convolution,
  or "add".
- `normalisation`: "demodulate" (default) is StyleGAN2's; "pixel" normalises features instead; "both" does both.
- `style_mlp`, `noise`, `output`: in none of the paper's figures; "none", False and "none" are the defaults.
- The attention of a level reads what that level's two decoder blocks put out, and its result replaces the target's map:
  the projection to RGB and the next level see it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor, nn

from saccade.geometry import Size, SlotSpec
from saccade.layers.blocks import DecoderBlock, EncoderBlock, Normalisation, Skip, ToRGB
from saccade.layers.equalised import EqualLinear, full_precision, leaky_relu

if TYPE_CHECKING:
    from saccade.attention.block import AttentionBlock

StyleSource = Literal["source", "own", "both"]
StyleMlp = Literal["none", "linear"]
Output = Literal["none", "tanh"]
OPTIONS: dict[str, tuple[str, ...]] = {
    "style": ("source", "own", "both"),
    "style_mlp": ("none", "linear"),
    "output": ("none", "tanh"),
}


class SlotBuilder(Protocol):
    """What fills attention slots: a SlotPolicy."""

    def build(self, specs: Sequence[SlotSpec]) -> Mapping[str, AttentionBlock]: ...


def level_sizes(image_size: Size, levels: int) -> list[Size]:
    """Sizes of `levels` maps, coarsest first, each half of the next; the last is the image.

    Raises:
        ValueError: the image cannot be halved that often.
    """
    if levels < 1:
        raise ValueError("channels: at least one level is needed; got none.")
    factor = 2 ** (levels - 1)
    if image_size.rows % factor or image_size.cols % factor:
        below = [max(side // factor, 1) * factor for side in image_size]
        raise ValueError(
            f"image_size {image_size}: {levels} levels halve the image {levels - 1} times, so both sides must be "
            f"multiples of {factor}. Nearest valid: {Size.of(below)}."
        )
    return [Size(image_size.rows >> step, image_size.cols >> step) for step in reversed(range(levels))]


class Encoder(nn.Module):
    """One block a level; the finest keeps the image's size, every other halves it.

    Blocks are named by their rows ("256" ... "8") in the state dict.
    """

    def __init__(
        self, in_channels: int, sizes: Sequence[Size], channels: Sequence[int], normalisation: Normalisation
    ) -> None:
        super().__init__()
        blocks: dict[str, nn.Module] = {}
        for level in reversed(range(len(sizes))):
            finest = level == len(sizes) - 1
            blocks[str(sizes[level].rows)] = EncoderBlock(
                in_channels if finest else channels[level + 1],
                channels[level],
                down=not finest,
                normalisation=normalisation,
            )
        self.blocks = nn.ModuleDict(blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in, Y, X) -> maps of all levels, coarsest first."""
        maps: list[Tensor] = []
        for block in self.blocks.values():
            x = block(x)
            maps.append(x)
        return maps[::-1]


class PoseMorphGenerator(nn.Module):
    """Two UNets that repaint a person in another pose; attention copies from the source decoder into the target's.

    ::

        M1, B1 --> source encoder --skips--> source decoder          (no image of its own)
                        | mean over space        | keys, values
                        v style                  v
        B2 ------> target encoder --skips--> target decoder --> attention --> RGB, added up over the levels --> image
                                                 ^ queries         |
                                                 +-- next level <--+

    Attention slots are called "up.<rows>", coarsest first: "up.8" ... "up.256" at 256x256. The maps of both decoders at
    a level have the same number of channels; that is also what the slot gives back.

    Args:
        image_size: side, or (rows, cols), of the training images in pixels; multiples of 2^(levels - 1).
        channels: of each level, coarsest first; six levels in the paper, (640, 640, 640, 640, 320, 160) at 256x256 and
            (768, 768, 768, 512, 256, 128) at 512x256.
        attention: the policy that fills the slots.
        pose_channels: heatmaps of a pose.
        style, style_mlp, skip, normalisation, noise, output: see the module's docstring.

    Raises:
        ValueError: an unknown option, a size that the levels do not halve, or slots that the policy cannot fill.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        channels: Sequence[int],
        attention: SlotBuilder,
        pose_channels: int = 18,
        style: StyleSource = "source",
        style_mlp: StyleMlp = "none",
        skip: Skip = "concat",
        normalisation: Normalisation = "demodulate",
        noise: bool = False,
        output: Output = "none",
    ) -> None:
        super().__init__()
        for name, value in (("style", style), ("style_mlp", style_mlp), ("output", output)):
            if value not in OPTIONS[name]:
                raise ValueError(f"PoseMorphGenerator: {name} is one of {', '.join(OPTIONS[name])}; got {value!r}.")
        self.image_size = Size.of(image_size)
        self.channels = tuple(channels)
        self.sizes = level_sizes(self.image_size, len(self.channels))
        self.pose_channels = pose_channels
        self.style = style
        self.output = output
        source_style = self.channels[0]
        target_style = self.channels[0] * (2 if style == "both" else 1)
        self.source_encoder = Encoder(3 + pose_channels, self.sizes, self.channels, normalisation)
        self.target_encoder = Encoder(pose_channels, self.sizes, self.channels, normalisation)
        linear = style_mlp == "linear"
        self.source_mlp = EqualLinear(source_style, source_style) if linear else None
        self.target_mlp = EqualLinear(target_style, target_style) if linear else None
        self.source_decoder = self._decoder(source_style, skip, normalisation, noise)
        self.target_decoder = self._decoder(target_style, skip, normalisation, noise)
        self.to_rgb = nn.ModuleDict(
            {
                str(size.rows): ToRGB(width, style_channels=target_style)
                for size, width in zip(self.sizes, self.channels, strict=True)
            }
        )
        # last, so that whatever the policy builds leaves the weights above as they are
        self.attention = attention.build(self.slot_specs())
        self._freeze_unread()

    def _decoder(self, style_channels: int, skip: Skip, normalisation: Normalisation, noise: bool) -> nn.ModuleDict:
        """One block a level, coarsest first, named by its rows; the coarsest starts from its encoder's map."""
        return nn.ModuleDict(
            {
                str(size.rows): DecoderBlock(
                    self.channels[max(level - 1, 0)],
                    self.channels[level],
                    skip_channels=0 if level == 0 else self.channels[level],
                    style_channels=style_channels,
                    up=level > 0,
                    skip=skip,
                    normalisation=normalisation,
                    noise=noise,
                )
                for level, size in enumerate(self.sizes)
            }
        )

    def _freeze_unread(self) -> None:
        """Leave out what no slot reads: source levels above the last slot that attends (GPA's NO has none above 64x64).

        Their weights stay in the state dict, so that it is the same whatever the backend; without gradients, since
        distributed training would wait for them.
        """
        attending = [level for level, block in enumerate(self.attention_blocks.values()) if block.mixer.attends]
        self.source_levels = attending[-1] + 1 if attending else 0
        for size in self.sizes[self.source_levels :]:
            self.source_decoder[str(size.rows)].requires_grad_(False)
        if not attending:
            if self.source_mlp is not None:
                self.source_mlp.requires_grad_(False)
            if self.style == "own":
                self.source_encoder.requires_grad_(False)

    def slot_specs(self) -> list[SlotSpec]:
        """The attention slots, coarsest first."""
        return [
            SlotSpec(f"up.{size.rows}", width, width, width, size, size)
            for size, width in zip(self.sizes, self.channels, strict=True)
        ]

    @property
    def attention_blocks(self) -> dict[str, AttentionBlock]:
        """The attention block of every slot, by name, coarsest first."""
        return {spec.name: self.attention[spec.name] for spec in self.slot_specs()}

    def forward(self, source_image: Tensor, source_pose: Tensor, target_pose: Tensor) -> Tensor:
        """Paint the person of `source_image` in the target pose.

        Args:
            source_image: (B, 3, Y, X) in [-1, 1].
            source_pose, target_pose: (B, pose_channels, Y, X) heatmaps; the target's size may differ from the source's.

        Returns:
            (B, 3, Y, X) of the target's size, at least float32; unbounded with output="none".

        Raises:
            ValueError: channels, batch or sizes that do not fit.
        """
        self._check(source_image, source_pose, target_pose)
        source_maps = self.source_encoder(torch.cat((source_image, source_pose), dim=1))
        target_maps = self.target_encoder(target_pose)
        source_style, target_style = self._styles(source_maps[0], target_maps[0])
        source, target = source_maps[0], target_maps[0]
        image: Tensor | None = None
        for level, slot in enumerate(self.slot_specs()):
            name = str(slot.q_size.rows)
            if level < self.source_levels:
                source = self.source_decoder[name](source, source_maps[level] if level else None, source_style)
            target = self.target_decoder[name](target, target_maps[level] if level else None, target_style)
            target = self.attention[slot.name](target, source)
            image = self.to_rgb[name](target, target_style, image)
        if image is None:
            raise RuntimeError("PoseMorphGenerator has no levels.")
        return torch.tanh(image) if self.output == "tanh" else image

    def _styles(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Style vectors of both decoders from the encoders' last maps, at least in float32: (B, S) each."""
        with torch.autocast(source.device.type, enabled=False):
            dtype = full_precision(source.dtype)
            source_mean = source.to(dtype).mean(dim=(2, 3))
            target_mean = target.to(dtype).mean(dim=(2, 3))
            if self.style == "source":
                target_style = source_mean
            elif self.style == "own":
                target_style = target_mean
            else:
                target_style = torch.cat((source_mean, target_mean), dim=1)
            source_style = source_mean
            if self.source_mlp is not None and self.target_mlp is not None:
                source_style = leaky_relu(self.source_mlp(source_style))
                target_style = leaky_relu(self.target_mlp(target_style))
            return source_style, target_style

    def _check(self, source_image: Tensor, source_pose: Tensor, target_pose: Tensor) -> None:
        batch, _, *size = source_image.shape
        factor = 2 ** (len(self.channels) - 1)
        wanted = {
            "source_image": (source_image, 3, size),
            "source_pose": (source_pose, self.pose_channels, size),
            "target_pose": (target_pose, self.pose_channels, list(target_pose.shape[2:])),
        }
        for name, (tensor, width, sides) in wanted.items():
            fits = list(tensor.shape) == [batch, width, *sides]
            if not fits or len(sides) != 2 or any(side % factor or side < 1 for side in sides):
                raise ValueError(
                    f"PoseMorphGenerator: {name} must be (batch, {width}, rows, cols), with one batch for all inputs, "
                    f"the size of source_image for source_pose, and sides that are multiples of {factor}; got "
                    f"{tuple(tensor.shape)} beside a source_image of {tuple(source_image.shape)}."
                )
