"""The two-stage network of contextual attention, and its critics.

Source: Yu et al. 2018, "Generative Image Inpainting with Contextual Attention", as released for PyTorch
(daa233/generative-inpainting-pytorch, `Generator`, `LocalDis`, `GlobalDis`), whose checkpoints load by key; PSAL (arXiv
2202.03163, section 4.3) puts its own attention in the place of contextual attention. At width 32 the generator has
3,601,542 parameters, and for 256x256 pictures with 128x128 holes the critics 2,684,289 and 2,733,441.

Different here: pictures of any size, for they are padded inside; every sample has its own mask; doubling and the
convolution after it are one, which is the same function.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from saccade.attention.block import SlotBlock
from saccade.attention.contextual import ContextualBlock
from saccade.attention.slots import AttentionSlots, SlotPolicy
from saccade.geometry import Size, SlotSpec
from saccade.models.inpainting_layers import ConvBlock, run, strips_of
from saccade.models.sagan import laid_out
from saccade.ops.options import whole

# Pixels of a picture to one of the maps that attend.
STRIDE = 4
# Sides are padded to multiples of it, as the released network with its rate of 2 needs them.
MULTIPLE = 8
# Ours: most pixels of a picture whose maps exist at once where no gradients are recorded.
STRIP_PIXELS = 2**20
Skip = Literal["none", "mean"]
SKIPS: tuple[Skip, ...] = ("none", "mean")


class InpaintingOutput(NamedTuple):
    """What the generator makes of pictures (B, 3, Y, X).

    Attributes:
        coarse: the first stage's picture, (B, 3, Y, X) in [-1, 1].
        fine: the second stage's.
        completed: the picture with the fine one in its holes.
        offsets: from every query to the key that it attends to most, (B, 2, y, x) long, rows and cols in key pixels;
            None if not asked for, or where nothing attends. y, x are sides of the padded picture over 4 * rate.
    """

    coarse: Tensor
    fine: Tensor
    completed: Tensor
    offsets: Tensor | None


class CoarseGenerator(nn.Module):
    """First stage: 5 channels (masked picture, ones, mask) to a picture."""

    def __init__(self, width: int) -> None:
        super().__init__()
        w = width
        self.conv1 = ConvBlock(5, w, kernel=5)
        self.conv2_downsample = ConvBlock(w, 2 * w, stride=2)
        self.conv3 = ConvBlock(2 * w, 2 * w)
        self.conv4_downsample = ConvBlock(2 * w, 4 * w, stride=2)
        self.conv5 = ConvBlock(4 * w, 4 * w)
        self.conv6 = ConvBlock(4 * w, 4 * w)
        self.conv7_atrous = ConvBlock(4 * w, 4 * w, dilation=2)
        self.conv8_atrous = ConvBlock(4 * w, 4 * w, dilation=4)
        self.conv9_atrous = ConvBlock(4 * w, 4 * w, dilation=8)
        self.conv10_atrous = ConvBlock(4 * w, 4 * w, dilation=16)
        self.conv11 = ConvBlock(4 * w, 4 * w)
        self.conv12 = ConvBlock(4 * w, 4 * w)
        self.conv13 = ConvBlock(4 * w, 2 * w, double=True)
        self.conv14 = ConvBlock(2 * w, 2 * w)
        self.conv15 = ConvBlock(2 * w, w, double=True)
        self.conv16 = ConvBlock(w, w // 2)
        self.conv17 = ConvBlock(w // 2, 3, activation="none")

    def chains(self) -> tuple[list[ConvBlock], list[ConvBlock], list[ConvBlock]]:
        """The layers that halve the picture twice, those on the small map, and those that double it twice."""
        head = [self.conv1, self.conv2_downsample, self.conv3, self.conv4_downsample]
        dilated = [self.conv7_atrous, self.conv8_atrous, self.conv9_atrous, self.conv10_atrous]
        tail = [self.conv13, self.conv14, self.conv15, self.conv16, self.conv17]
        return head, [self.conv5, self.conv6, *dilated, self.conv11, self.conv12], tail

    def forward(self, x: Tensor) -> Tensor:
        """(B, 5, Y, X) -> (B, 3, Y, X), not clamped; sides are multiples of 8."""
        head, middle, tail = self.chains()
        return run(tail, run(middle, run(head, x, STRIP_PIXELS)), STRIP_PIXELS)


class FineGenerator(nn.Module):
    """Second stage: a branch of dilated convolutions and one that attends, merged to a picture."""

    def __init__(self, width: int, map_size: Size, attention: SlotPolicy | None) -> None:
        super().__init__()
        w = width
        self.conv1 = ConvBlock(5, w, kernel=5)
        self.conv2_downsample = ConvBlock(w, w, stride=2)
        self.conv3 = ConvBlock(w, 2 * w)
        self.conv4_downsample = ConvBlock(2 * w, 2 * w, stride=2)
        self.conv5 = ConvBlock(2 * w, 4 * w)
        self.conv6 = ConvBlock(4 * w, 4 * w)
        self.conv7_atrous = ConvBlock(4 * w, 4 * w, dilation=2)
        self.conv8_atrous = ConvBlock(4 * w, 4 * w, dilation=4)
        self.conv9_atrous = ConvBlock(4 * w, 4 * w, dilation=8)
        self.conv10_atrous = ConvBlock(4 * w, 4 * w, dilation=16)
        self.pmconv1 = ConvBlock(5, w, kernel=5)
        self.pmconv2_downsample = ConvBlock(w, w, stride=2)
        self.pmconv3 = ConvBlock(w, 2 * w)
        self.pmconv4_downsample = ConvBlock(2 * w, 4 * w, stride=2)
        self.pmconv5 = ConvBlock(4 * w, 4 * w)
        self.pmconv6 = ConvBlock(4 * w, 4 * w, activation="relu")
        self.pmconv9 = ConvBlock(4 * w, 4 * w)
        self.pmconv10 = ConvBlock(4 * w, 4 * w)
        self.allconv11 = ConvBlock(8 * w, 4 * w)
        self.allconv12 = ConvBlock(4 * w, 4 * w)
        self.allconv13 = ConvBlock(4 * w, 2 * w, double=True)
        self.allconv14 = ConvBlock(2 * w, 2 * w)
        self.allconv15 = ConvBlock(2 * w, w, double=True)
        self.allconv16 = ConvBlock(w, w // 2)
        self.allconv17 = ConvBlock(w // 2, 3, activation="none")
        # last, so that whatever the policy builds leaves the weights above as they are
        spec = SlotSpec(f"fine.{map_size.rows}", 4 * w, 4 * w, 4 * w, map_size, map_size)
        self.attention = AttentionSlots({}) if attention is None else attention.build([spec])

    def chains(self) -> dict[str, list[ConvBlock]]:
        """The layers between the joints of the network; heads and tail run over the whole picture."""
        dilated = [self.conv7_atrous, self.conv8_atrous, self.conv9_atrous, self.conv10_atrous]
        return {
            "head": [self.conv1, self.conv2_downsample, self.conv3, self.conv4_downsample],
            "middle": [self.conv5, self.conv6, *dilated],
            "attending head": [self.pmconv1, self.pmconv2_downsample, self.pmconv3, self.pmconv4_downsample],
            "before": [self.pmconv5, self.pmconv6],
            "after": [self.pmconv9, self.pmconv10],
            "merged": [self.allconv11, self.allconv12],
            "tail": [self.allconv13, self.allconv14, self.allconv15, self.allconv16, self.allconv17],
        }

    def forward(self, x: Tensor, known: Tensor, offsets: bool = False) -> tuple[Tensor, Tensor | None]:
        """Input (B, 5, Y, X), sides multiples of 8, and what is known of its small map, (B, 1, Y / 4, X / 4) bool.

        Returns (B, 3, Y, X), not clamped, and the block's offsets if asked for.
        """
        chains = self.chains()
        attending = run(chains["before"], run(chains["attending head"], x, STRIP_PIXELS))
        found: Tensor | None = None
        for block in self.attention.values():
            if offsets and isinstance(block, ContextualBlock):
                found = block.offsets(attending, attending, known)
            attending = block(attending, attending, known)
        attending = run(chains["after"], attending)
        plain = run(chains["middle"], run(chains["head"], x, STRIP_PIXELS))
        merged = torch.cat([plain, attending], 1)
        del plain, attending
        return run(chains["tail"], run(chains["merged"], merged), STRIP_PIXELS), found


class InpaintingGenerator(nn.Module):
    """Fill the holes of pictures.

    ::

        picture, mask -> coarse network -> picture with coarse holes -> dilated convolutions ------+-> merged -> picture
                                                                     -> convolutions, attention ---+

    The attention slot is called "fine.<rows of its map>", 64 for pictures of 256 rows; its block is a
    `ContextualBlock`.

    Args:
        image_size: side, or (rows, cols), of the pictures in training, in pixels. Any picture can be given.
        width: channels of the first layer, even; 32 as released.
        attention: the policy that fills the slot; None leaves it out.
        skip: "none" as released. "mean" (ours, for small networks and short trainings): both stages see and predict
            differences from the mean colour of each picture's known pixels, and begin by predicting none.

    Raises:
        ValueError: an option that does not fit, or a slot that the policy cannot fill.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        width: int = 32,
        attention: SlotPolicy | None = None,
        skip: Skip = "none",
    ) -> None:
        super().__init__()
        who = type(self).__name__
        self.image_size = Size.of(image_size)
        self.width = whole(who, "width", width, 2)
        if self.width % 2:
            raise ValueError(f"{who}: width must be even; got {width}. Valid here: {width - 1}, {width + 1}.")
        self.coarse_generator = CoarseGenerator(self.width)
        self.fine_generator = FineGenerator(self.width, self._map_size(self.image_size, MULTIPLE), attention)
        if skip not in SKIPS:
            raise ValueError(f"{who}: skip={skip} is unknown. Valid here: {', '.join(SKIPS)}.")
        self.skip: Skip = skip
        if skip == "mean":
            for last in (self.coarse_generator.conv17, self.fine_generator.allconv17):
                for weight in last.parameters():
                    nn.init.zeros_(weight)
        rates = [block.rate for block in self.attention_blocks.values() if isinstance(block, ContextualBlock)]
        self.multiple = max([MULTIPLE, *(STRIDE * rate for rate in rates)])

    @property
    def attention_blocks(self) -> dict[str, SlotBlock]:
        """The attention block of every slot, by name."""
        return dict(self.fine_generator.attention.items())

    def forward(self, images: Tensor, masks: Tensor, *, offsets: bool = False) -> InpaintingOutput:
        """Fill holes.

        Args:
            images: (B, 3, Y, X) in [-1, 1]; what lies in holes is not looked at.
            masks: (B, 1, Y, X), or (1, 1, Y, X) for all, 1 in holes and 0 elsewhere; what is between is blended, and no
                key of the attention.
            offsets: also tell where the attention looks.

        Returns:
            Pictures of the size of `images`.

        Raises:
            ValueError: pictures and masks that do not fit together, or not to this network.
            RuntimeError: the attention cannot serve pictures of this size; says why.
        """
        masks = _checked(images, masks)
        size = Size(*images.shape[2:])
        reasons = [] if size == self.image_size else self.reasons_against(size)
        if reasons:
            raise RuntimeError(f"InpaintingGenerator: pictures of {size} cannot be completed. {' '.join(reasons)}.")
        padding = [-size.cols % self.multiple, -size.rows % self.multiple]
        holes = _padded(masks, padding)
        mean = _known_mean(images, masks) if self.skip == "mean" else None
        rest = _padded((images if mean is None else images - mean) * (1 - masks), padding)
        known = holes[:, :, ::STRIDE, ::STRIDE] == 0
        ones = torch.ones_like(holes)
        coarse = _moved(self.coarse_generator(laid_out(torch.cat([rest, ones, holes], 1))), mean)
        begun = laid_out(torch.cat([(coarse if mean is None else coarse - mean) * holes + rest, ones, holes], 1))
        fine, found = self.fine_generator(begun, known, offsets)
        fine = _moved(fine, mean)
        coarse, fine = (x[:, :, : size.rows, : size.cols] for x in (coarse, fine))
        return InpaintingOutput(coarse, fine, fine * masks + images * (1 - masks), found)

    def reasons_against(self, size: Size) -> list[str]:
        """Why the attention cannot serve one picture of this size, and what it can; empty if it can."""
        map_size = self._map_size(size, self.multiple)
        return [
            f"{block.mixer.name}, slot {name}: {reason}"
            for name, block in self.attention_blocks.items()
            if isinstance(block, ContextualBlock)
            for reason in block.mixer.reasons_against(block.shape_at(map_size))
        ]

    def module_calls(self, size: Size) -> int:
        """How often a pass over pictures of this size, without gradients, calls a `ConvBlock` or a `ContextualBlock`.

        For a progress bar: they run once, but for those over a large picture, which run once a strip.
        """
        picture = Size(*(side + -side % self.multiple for side in size))
        small = self._map_size(size, self.multiple)
        fine = self.fine_generator.chains()
        head, middle, tail = self.coarse_generator.chains()
        calls = len(self.attention_blocks)
        for chain in (head, fine["head"], fine["attending head"]):
            calls += len(chain) * len(list(strips_of(chain, picture, STRIP_PIXELS)))
        for chain in (tail, fine["tail"]):
            calls += len(chain) * len(list(strips_of(chain, small, STRIP_PIXELS)))
        return calls + len(middle) + sum(len(fine[name]) for name in ("middle", "before", "after", "merged"))

    @staticmethod
    def _map_size(size: Size, multiple: int) -> Size:
        """Of the map that attends, for a picture that is padded to a multiple."""
        return Size(*((side + -side % multiple) // STRIDE for side in size))


class InpaintingCritic(nn.Module):
    """Judge pictures of one size: (B, 3, Y, X) -> (B, 1), twice differentiable. Its keys are the released network's."""

    def __init__(self, size: Size, width: int) -> None:
        super().__init__()
        self.size = size
        self.dis_conv_module = _CriticLayers(width)
        rows, cols = (-(-side // 16) for side in size)
        self.linear = nn.Linear(4 * width * rows * cols, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Judge pictures.

        Args:
            images: (B, 3, Y, X) in [-1, 1], of the size that the critic was built for.

        Returns:
            (B, 1).

        Raises:
            ValueError: pictures of another size.
        """
        if images.dim() != 4 or tuple(images.shape[1:]) != (3, *self.size):
            raise ValueError(
                f"InpaintingCritic: images must be (batch, 3, {self.size.rows}, {self.size.cols}); got "
                f"{tuple(images.shape)}."
            )
        score: Tensor = self.linear(self.dis_conv_module(images).flatten(1))
        return score


class _CriticLayers(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _CriticLayer(3, width)
        self.conv2 = _CriticLayer(width, 2 * width)
        self.conv3 = _CriticLayer(2 * width, 4 * width)
        self.conv4 = _CriticLayer(4 * width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x))
        deepest: Tensor = self.conv4(self.conv3(x))
        return deepest


class _CriticLayer(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 5, stride=2, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.conv(x), 0.2)


class InpaintingCritics(nn.Module):
    """The critic of the hole and the critic of the whole picture, `local` and `whole`.

    Args:
        image_size: side, or (rows, cols), of the pictures in pixels.
        hole: of the crops around a hole.
        width: channels of the first layers; 64 as released.
    """

    def __init__(self, *, image_size: int | Sequence[int], hole: int | Sequence[int], width: int = 64) -> None:
        super().__init__()
        width = whole(type(self).__name__, "width", width)
        self.image_size, self.hole = Size.of(image_size), Size.of(hole)
        self.local = InpaintingCritic(self.hole, width)
        self.whole = InpaintingCritic(self.image_size, width)


def _checked(images: Tensor, masks: Tensor) -> Tensor:
    """The masks, one a picture, in the pictures' dtype."""
    if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point() or images.numel() == 0:
        raise ValueError(
            f"InpaintingGenerator: images must be floating (batch, 3, rows, cols); got {images.dtype} of shape "
            f"{tuple(images.shape)}."
        )
    wanted = (images.shape[0], 1, *images.shape[2:])
    if masks.dim() != 4 or tuple(masks.shape[1:]) != wanted[1:] or masks.shape[0] not in (1, wanted[0]):
        raise ValueError(f"InpaintingGenerator: masks must be {wanted}, as the images; got {tuple(masks.shape)}.")
    masks = masks.to(images.dtype)
    if masks.device.type == "cpu" and not 0 <= float(masks.min()) <= float(masks.max()) <= 1:
        raise ValueError(
            f"InpaintingGenerator: masks are 1 in holes and 0 elsewhere; got values from {float(masks.min()):g} to "
            f"{float(masks.max()):g}."
        )
    return masks.expand(wanted)


def _known_mean(images: Tensor, masks: Tensor) -> Tensor:
    """The mean colour of each picture's known pixels, (B, 3, 1, 1)."""
    known = 1 - masks
    return (images * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True).clamp_min(1.0)


def _moved(predicted: Tensor, mean: Tensor | None) -> Tensor:
    """What a stage predicts, around the mean colour if there is one, within the range of pictures."""
    return (predicted if mean is None else predicted + mean).clamp(-1.0, 1.0)


def _padded(maps: Tensor, padding: Sequence[int]) -> Tensor:
    """Maps that go on to the right and below by so many cols and rows: mirrored, or the last ones where too small."""
    cols, rows = padding
    if not rows and not cols:
        return maps
    mirrored = rows < maps.shape[2] and cols < maps.shape[3]
    return F.pad(maps, (0, cols, 0, rows), mode="reflect" if mirrored else "replicate")
