"""SAGAN's generator and discriminator (Zhang et al. 2019), the networks of Your Local GAN (arXiv 1911.12287).

They follow the TF-GAN example that Your Local GAN was made from: ResNet bodies, class-conditional batch norm, a
projection head, spectral norm everywhere but in the tables of the batch norm ("bounded": at most 1; the 1x1
convolutions of the attention "equal": exactly 1), Xavier-uniform weights. At 128x128 with 1000 classes the generator
has 42,078,852 parameters and the discriminator 39,463,618, with any attention that has none of its own.

What differs: the vectors of the power iteration move only in training mode; there, the discriminator's moved in
evaluation as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import saccade.attention as backends
from saccade.attention.block import SlotBlock
from saccade.attention.mixer import SpatialAttention
from saccade.attention.pooled_block import PooledAttentionBlock
from saccade.attention.slots import AttentionSlots, MixerFactory, SlotPolicy
from saccade.geometry import Size, SlotSpec
from saccade.layers.batch_norm import BatchNorm
from saccade.layers.equalised import full_precision
from saccade.layers.sagan import DiscriminatorBlock, FirstDiscriminatorBlock, GeneratorBlock, initialise
from saccade.layers.spectral import Form, SpectralConv2d, SpectralEmbedding, SpectralLinear, spectral_pointwise

Init = Literal["xavier", "orthogonal"]
START = 4  # rows and columns of the coarsest map
POOL = 2  # of the keys and values, as released


def sagan_attention(
    mixer: str | MixerFactory = "ylg", *, exact_up_to: int = 0, form: Form = "equal", **options: Any
) -> SlotPolicy:
    """A policy for the `attention` of both networks: a backend inside SAGAN's block, at every slot.

    Args:
        mixer: name of a backend ("ylg", "full", "none", "gpa", ...), or what makes one from a SlotSpec. As in SAGAN, a
            backend given by name does not scale its scores, and "full" takes dot products, unless `options` say so.
        exact_up_to: side of the largest query map that gets exact attention instead.
        form: spectral normalisation of the block's 1x1 convolutions.
        options: of a backend given by name, such as heads=8.

    Raises:
        ValueError: no backend has that name, or options beside a factory.
    """
    dense = partial(backends.FullAttention, score="dot", scale=1.0)
    chosen: MixerFactory
    if isinstance(mixer, str):
        backend = _named(mixer)
        own = {"scale": 1.0} if "scale" in signature(backend).parameters else {}
        chosen = partial(dense if backend is backends.FullAttention else backend, **{**own, **options})
    elif options:
        raise ValueError(
            f"sagan_attention: options ({', '.join(options)}) belong to a backend given by name; a factory has its own."
        )
    else:
        chosen = mixer
    block = partial(PooledAttentionBlock, pool=POOL, convolution=partial(spectral_pointwise, form=form))
    return SlotPolicy(chosen, exact_up_to=exact_up_to, exact=dense, block=block)


def _named(name: str) -> type[SpatialAttention]:
    """The backend of that name among those of `saccade.attention`."""
    members = [getattr(backends, member) for member in backends.__all__]
    found = {
        member.name: member
        for member in members
        if isinstance(member, type) and issubclass(member, SpatialAttention) and member is not SpatialAttention
    }
    if name not in found:
        raise ValueError(f"sagan_attention: no backend is called {name!r}. Valid here: {', '.join(sorted(found))}.")
    return found[name]


class SaganGenerator(nn.Module):
    """Latent vectors and labels to images.

    ::

        z -> linear -> 4x4 -> block -> 8x8 -> ... -> block -> image size -> norm, ReLU, 3x3, tanh
                                              attention after the block that reaches `attention_at`

    Attention slots are called "up.<rows>", coarsest first.

    Args:
        image_size: side of the images in pixels, 4 times a power of 2; or (rows, cols), which are equal.
        channels: of each map, coarsest first: at 128, (1024, 1024, 512, 256, 128, 64) for 4x4 ... 128x128.
        attention: the policy that fills the slots; None for a network without slots.
        attention_at: side, or sides, of the maps that attend: 8 ... image_size.
        classes: number of classes; None for an unconditional network, with plain batch norm.
        latent: length of z.
        spectral: form of spectral normalisation outside the attention.
        eps, momentum: of the batch norm.
        init: of weights, "xavier" (uniform) or "orthogonal"; biases are 0.

    Raises:
        ValueError: an option that does not exist or fit, or slots that the policy cannot fill.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        channels: Sequence[int],
        attention: SlotPolicy | None = None,
        attention_at: int | Sequence[int] = 32,
        classes: int | None = 1000,
        latent: int = 128,
        spectral: Form = "bounded",
        eps: float = 1e-3,
        momentum: float = 1e-3,
        init: Init = "xavier",
    ) -> None:
        super().__init__()
        who = type(self).__name__
        self.sizes = map_sizes(who, image_size, channels)
        self.image_size = self.sizes[-1]
        self.channels = tuple(channels)
        self.classes = check_classes(who, classes)
        self.latent = latent
        width = self.channels[0]
        self.linear = SpectralLinear(latent, START * START * width, form=spectral)
        self.blocks = nn.ModuleDict()
        for size, channel in zip(self.sizes[1:], self.channels[1:], strict=True):
            self.blocks[str(size.rows)] = GeneratorBlock(
                width, channel, classes=classes, form=spectral, eps=eps, momentum=momentum
            )
            width = channel
        self.norm = BatchNorm(width, eps=eps, momentum=momentum)
        self.to_rgb = SpectralConv2d(width, 3, 3, padding=1, form=spectral)
        valid = dict(zip(self.sizes[1:], self.channels[1:], strict=True))
        # last, so that whatever the policy builds leaves the weights above as they are
        self.attention = build_slots(who, "up", attention, attention_at, valid)
        initialise(self, init)

    @property
    def attention_blocks(self) -> dict[str, SlotBlock]:
        """The attention block of every slot, by name, coarsest first."""
        return dict(self.attention.items())

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Make images.

        Args:
            z: (B, latent).
            labels: (B,) long; None for an unconditional network.

        Returns:
            (B, 3, Y, X) in [-1, 1], at least float32.

        Raises:
            ValueError: shapes or labels that do not fit.
        """
        if z.dim() != 2 or z.shape[1] != self.latent:
            raise ValueError(f"SaganGenerator: z must be (batch, {self.latent}); got {tuple(z.shape)}.")
        check_labels("SaganGenerator", labels, z.shape[0], self.classes)
        x = laid_out(torch.unflatten(self.linear(z), 1, (self.channels[0], START, START)))
        for rows, block in self.blocks.items():
            x = block(x, labels)
            if f"up.{rows}" in self.attention:
                x = self.attention[f"up.{rows}"](x, x)
        x = self.to_rgb(F.relu(self.norm(x), inplace=True))
        return torch.tanh(x.to(full_precision(x.dtype)))


class SaganDiscriminator(nn.Module):
    """Images and labels to logits: linear(f) + <f, embedding(label)>, f the features summed over space.

    Attention slots are called "down.<rows>", finest first.

    Args:
        image_size: the same; 8 or more.
        channels: the generator's, coarsest first; the block that leaves the image has the last of them.
        attention: the policy that fills the slots; None for a network without slots.
        attention_at: side, or sides, of the maps that attend: 4 ... image_size / 2.
        classes: number of classes; None for an unconditional network, without embedding.
        spectral: form of spectral normalisation outside the attention.
        init: of weights, "xavier" (uniform) or "orthogonal"; biases are 0.

    Raises:
        ValueError: an option that does not exist or fit, or slots that the policy cannot fill.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        channels: Sequence[int],
        attention: SlotPolicy | None = None,
        attention_at: int | Sequence[int] = 32,
        classes: int | None = 1000,
        spectral: Form = "bounded",
        init: Init = "xavier",
    ) -> None:
        super().__init__()
        who = type(self).__name__
        sizes = map_sizes(who, image_size, channels)
        if len(sizes) < 2:
            raise ValueError(f"{who}: image_size {image_size} leaves nothing to halve. Nearest valid: {2 * START}.")
        self.image_size = sizes[-1]
        self.channels = tuple(channels)
        self.classes = check_classes(who, classes)
        finest_first = self.channels[::-1]
        valid = dict(zip(sizes[-2::-1], finest_first[:-1], strict=True))
        width = 3
        self.blocks = nn.ModuleDict()
        for size, channel in valid.items():
            make = FirstDiscriminatorBlock if width == 3 and not self.blocks else DiscriminatorBlock
            self.blocks[str(size.rows)] = make(width, channel, form=spectral)
            width = channel
        self.last = DiscriminatorBlock(width, finest_first[-1], down=False, form=spectral)
        width = finest_first[-1]
        self.linear = SpectralLinear(width, 1, form=spectral)
        self.embedding = None if classes is None else SpectralEmbedding(classes, width, form=spectral)
        # last, so that whatever the policy builds leaves the weights above as they are
        self.attention = build_slots(who, "down", attention, attention_at, valid)
        self._feature_rows = max(sides_of(attention_at))
        initialise(self, init)

    @property
    def attention_blocks(self) -> dict[str, SlotBlock]:
        """The attention block of every slot, by name, finest first."""
        return dict(self.attention.items())

    def features(self, images: Tensor) -> Tensor:
        """The map that enters the first attention, D0 of the inversion (arXiv 1911.12287, section 4).

        (B, 3, Y, X) in [-1, 1] -> (B, C, y, x), y the largest side of `attention_at`.
        """
        x = self._checked(images)
        for rows, block in self.blocks.items():
            x = block(x)
            if int(rows) == self._feature_rows:
                break
        return x

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Judge images.

        Args:
            images: (B, 3, Y, X) in [-1, 1], of the size that the network was built for.
            labels: (B,) long; None for an unconditional network.

        Returns:
            (B,) logits, at least float32.

        Raises:
            ValueError: shapes or labels that do not fit.
        """
        x = self._checked(images)
        check_labels("SaganDiscriminator", labels, images.shape[0], self.classes)
        for rows, block in self.blocks.items():
            x = block(x)
            if f"down.{rows}" in self.attention:
                x = self.attention[f"down.{rows}"](x, x)
        x = self.last(x)
        with torch.autocast(x.device.type, enabled=False):
            features = F.relu(x.to(full_precision(x.dtype))).sum(dim=(2, 3))
            logits: Tensor = self.linear(features).squeeze(1)
            if self.embedding is not None:
                logits = logits + (features * self.embedding(labels)).sum(dim=1)
        return logits

    def _checked(self, images: Tensor) -> Tensor:
        if images.dim() != 4 or tuple(images.shape[1:]) != (3, *self.image_size):
            raise ValueError(
                f"SaganDiscriminator: images must be (batch, 3, {self.image_size.rows}, {self.image_size.cols}); "
                f"got {tuple(images.shape)}."
            )
        return laid_out(images)


def laid_out(maps: Tensor) -> Tensor:
    """The maps as convolutions take them fastest: channels last on a CPU (an eighth off a training step)."""
    return maps.contiguous(memory_format=torch.channels_last) if maps.device.type == "cpu" else maps


def map_sizes(who: str, image_size: int | Sequence[int], channels: Sequence[int]) -> list[Size]:
    """Sizes of the maps, 4x4 to the image, one for each entry of `channels`.

    Raises:
        ValueError: the image is no power of 2 times 4, or there are not as many channels as maps.
    """
    side = Size.of(image_size)
    levels = max(side.rows // START, 1).bit_length()
    if side.rows != side.cols or side.rows != START << (levels - 1):
        nearest = START << (levels - 1)
        raise ValueError(
            f"{who}: image_size {side} is no square of side 4 times a power of 2. "
            f"Nearest valid: {nearest}, {2 * nearest}."
        )
    if len(channels) != levels or min(channels) < 1:
        raise ValueError(
            f"{who}: images of {side} have {levels} maps, 4x4 to {side}, each with its channels, coarsest first; got "
            f"{len(channels)} channels, {list(channels)}. Valid here: {levels} numbers of 1 or more."
        )
    return [Size.of(START << level) for level in range(levels)]


def check_classes(who: str, classes: int | None) -> int | None:
    """The number of classes; ValueError unless it is None or 1 or more."""
    if classes is not None and (not isinstance(classes, int) or classes < 1):
        raise ValueError(f"{who}: classes must be 1 or more, or None for an unconditional network; got {classes!r}.")
    return classes


def check_labels(who: str, labels: Tensor | None, batch: int, classes: int | None) -> None:
    """Raise ValueError unless there are labels exactly where there are classes, one long number a sample.

    Their range is looked at on the CPU only: elsewhere the look would make the device wait.
    """
    if classes is None:
        if labels is not None:
            raise ValueError(f"{who}: the network is unconditional (classes=None), but labels were given.")
        return
    if labels is None or labels.dtype != torch.long or tuple(labels.shape) != (batch,):
        got = "none" if labels is None else f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise ValueError(f"{who}: labels must be long of shape ({batch},), one a sample; got {got}.")
    if labels.device.type == "cpu" and batch and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"{who}: labels must lie in 0 ... {classes - 1}; got {int(labels.min())} ... {int(labels.max())}."
        )


def sides_of(attention_at: int | Sequence[int]) -> list[int]:
    """The sides of the maps that attend."""
    return [attention_at] if isinstance(attention_at, int) else list(attention_at)


def build_slots(
    who: str,
    direction: str,
    attention: SlotPolicy | None,
    attention_at: int | Sequence[int],
    widths: Mapping[Size, int],
) -> AttentionSlots:
    """Fill the slots of a network: a self-attention with pooled keys at each side in `attention_at`.

    Args:
        who: the network, for messages.
        direction: "up" or "down", the first word of the slots' names.
        attention: the policy; None for no slots.
        attention_at: side, or sides, of the maps.
        widths: size and channels of every map that could attend, in the order in which they come.

    Raises:
        ValueError: a side that no map has, or slots that the policy cannot fill.
    """
    sides = sides_of(attention_at)
    known = [size.rows for size in widths]
    unknown = [side for side in sides if side not in known]
    if unknown or not sides:
        raise ValueError(
            f"{who}: attention_at {unknown or sides} is no map of this network. "
            f"Valid here: {', '.join(map(str, sorted(known)))}."
        )
    if attention is None:
        return AttentionSlots({})
    specs = [
        SlotSpec(f"{direction}.{size.rows}", width, width, width, size, Size.of(size.rows // POOL))
        for size, width in widths.items()
        if size.rows in sides
    ]
    return attention.build(specs)
