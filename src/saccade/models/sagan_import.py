"""The released weights of Your Local GAN (arXiv 1911.12287) as state dicts of the networks of `saccade.models.sagan`.

The release is one TensorFlow checkpoint of both networks. This reads its arrays, NumPy's by the names of the variables;
TensorFlow is not needed here. What differs between the two sides:
- kernels are (rows, cols, in, out) there and (out, in, rows, cols) here, and the vectors of the power iteration lie
  along the flattened first three axes there;
- the first linear layer is read as 4x4 pixels of channels there, and as channels of 4x4 pixels here;
- the attention joins its heads with the head fastest there, channel d * heads + head. Here a head's channels lie
  together, head * channels + d, on both sides of the mixer;
- gains and offsets of the batch norm have two axes of length 1 between classes and channels there.
Optimiser slots, step counters and averages of weights in a checkpoint are left out and counted.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CHANNELS = (1024, 1024, 512, 256, 128, 64)  # of both released networks, coarsest first
SIZE = 128
HEADS = 8
# The number that an estimator counts training steps by.
STEP = "global_step"
_U = "spectral_normalize/spectral_norm/spectral_norm_u"
_IGNORED = {
    "optimiser slots": re.compile(r"/(Adam|Adam_\d+)$"),
    "optimiser counters": re.compile(r"(^|/)beta[12]_power(_\d+)?$"),
    "averages of weights": re.compile(r"/ExponentialMovingAverage(_\d+)?$"),
}

Read = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Variable:
    """One array of the checkpoint.

    Args:
        name: of the variable.
        shape: of its array.
        target: "generator" or "discriminator".
        key: in the state dict of that network.
        read: turns the array, as a tensor, into what the state dict holds.
    """

    name: str
    shape: tuple[int, ...]
    target: str
    key: str
    read: Read


@dataclass(frozen=True)
class Imported:
    """State dicts of both networks, the checkpoint's training step if it tells, and what was left out, by kind."""

    generator: dict[str, Tensor]
    discriminator: dict[str, Tensor]
    step: int | None
    ignored: dict[str, int] = field(default_factory=dict)


def import_released(
    arrays: Mapping[str, NDArray[np.generic]],
    *,
    channels: Sequence[int] = CHANNELS,
    discriminator_channels: Sequence[int] | None = None,
    classes: int = 1000,
    latent: int = 128,
    heads: int = HEADS,
) -> Imported:
    """Read a checkpoint's arrays.

    The state dicts fit networks of 128x128 with attention at 32x32, in float32.

    Args:
        arrays: the checkpoint, by variable name.
        channels: of the generator, coarsest first.
        discriminator_channels: of the discriminator, coarsest first; None for the generator's.
        classes: number of classes.
        latent: length of z.
        heads: of the attention in both networks.

    Raises:
        ValueError: options that do not fit, or arrays that are missing, unknown, of another shape, or not finite: all
            of them in one message.
    """
    table = released_variables(
        channels=channels, discriminator_channels=discriminator_channels, classes=classes, latent=latent, heads=heads
    )
    ignored: Counter[str] = Counter()
    known = {variable.name for variable in table}
    unknown = []
    for name in arrays:
        kinds = [kind for kind, form in _IGNORED.items() if form.search(name)]
        if kinds:
            ignored[kinds[0]] += 1
        elif name not in known and name != STEP:
            unknown.append(name)
    _check(arrays, table, unknown)
    states: dict[str, dict[str, Tensor]] = {"generator": {}, "discriminator": {}}
    for variable in table:
        read = variable.read(torch.tensor(np.asarray(arrays[variable.name], np.float32)))
        states[variable.target][variable.key] = read.contiguous()
    step = int(np.asarray(arrays[STEP]).item()) if STEP in arrays else None
    return Imported(**states, step=step, ignored=dict(ignored))


def _check(arrays: Mapping[str, NDArray[np.generic]], table: Sequence[Variable], unknown: Sequence[str]) -> None:
    problems = {"missing": [v.name for v in table if v.name not in arrays], "unknown": sorted(unknown)}
    shapes, values = [], []
    for variable in table:
        if variable.name not in arrays:
            continue
        array = np.asarray(arrays[variable.name])
        if array.shape != variable.shape:
            shapes.append(f"{variable.name}: {array.shape}, expected {variable.shape}")
        elif array.dtype.kind != "f" or not np.isfinite(array).all():
            kind = "not finite" if array.dtype.kind == "f" else f"of type {array.dtype}, expected floating point"
            values.append(f"{variable.name}: {kind}")
    problems |= {"of another shape": shapes, "of wrong values": values}
    if any(problems.values()):
        found = [f"{len(names)} {what}:\n  " + "\n  ".join(names) for what, names in problems.items() if names]
        raise ValueError(
            f"sagan_import: these arrays are not the {len(table)} variables of a released 128x128 checkpoint of these "
            "channels, classes, latent and heads; " + "\n".join(found)
        )


def released_variables(
    *,
    channels: Sequence[int] = CHANNELS,
    discriminator_channels: Sequence[int] | None = None,
    classes: int = 1000,
    latent: int = 128,
    heads: int = HEADS,
) -> list[Variable]:
    """Every variable of a checkpoint that the networks use. Arguments as of `import_released`.

    Raises:
        ValueError: not one number of channels for each of the six maps, or heads that do not divide the attention's.
    """
    of_discriminator = channels if discriminator_channels is None else discriminator_channels
    for who, widths, at in (("generator", channels, 3), ("discriminator", of_discriminator, 4)):
        if len(widths) != len(CHANNELS):
            raise ValueError(
                f"sagan_import: the {who} has {len(CHANNELS)} maps, 4x4 to {SIZE}x{SIZE}, each with its channels, "
                f"coarsest first; got {list(widths)}. As released: {list(CHANNELS)}."
            )
        if heads < 1 or (widths[at] // 8) % heads or (widths[at] // 2) % heads:
            raise ValueError(
                f"sagan_import: {heads} heads do not divide the attention of the {who}, {widths[at] // 8} channels of "
                f"queries and keys and {widths[at] // 2} of values. As released: {HEADS} heads of 256 channels."
            )
    generator = _generator(tuple(channels), classes, latent, heads)
    return generator + _discriminator(tuple(of_discriminator)[::-1], classes, heads)


# Layers


@dataclass(frozen=True)
class _Side:
    """Where a network's variables come from and go to."""

    scope: str
    target: str

    def variable(self, name: str, shape: Sequence[int], key: str, read: Read) -> Variable:
        return Variable(f"{self.scope}/{name}", tuple(shape), self.target, key, read)

    def kernel(self, name: str, shape: Sequence[int], key: str, read: Read, read_u: Read) -> list[Variable]:
        """A kernel (..., out) and the vector of its power iteration, along all of its axes but the last.

        The vector's name repeats the full name of the kernel, for it is made inside the scope that the kernel lies in.
        """
        inside = int(np.prod(shape[:-1]))
        vector = f"{name.rpartition('/')[0]}/{self.scope}/{name}/{_U}"
        return [
            self.variable(name, shape, f"{key}.weight", read),
            self.variable(vector, (inside, 1), f"{key}.u", read_u),
        ]

    def conv_kernel(self, name: str, shape: tuple[int, ...], key: str, read: Read) -> list[Variable]:
        # the vector is permuted as the kernel of a single output channel
        return self.kernel(name, shape, key, read, lambda u: read(u.view(*shape[:-1], 1)).flatten())

    def conv(self, scope: str, side: int, inside: int, outside: int, key: str) -> list[Variable]:
        scope = f"{scope}/{scope.rpartition('/')[2]}"
        return [
            *self.conv_kernel(f"{scope}/kernel", (side, side, inside, outside), key, _kernel),
            self.variable(f"{scope}/bias", (outside,), f"{key}.bias", _same),
        ]

    def linear(self, scope: str, inside: int, outside: int, read: Read) -> list[Variable]:
        """`read` takes (out, ...): the bias, and the kernel with its axes in our order."""
        scope = f"{scope}/dense"
        return [
            *self.kernel(f"{scope}/kernel", (inside, outside), "linear", lambda w: read(w.t()), torch.flatten),
            self.variable(f"{scope}/bias", (outside,), "linear.bias", read),
        ]

    def norm(self, scope: str, classes: int | None, channels: int, key: str) -> list[Variable]:
        table = (1 if classes is None else classes, 1, 1, channels)
        read: Read = torch.flatten if classes is None else _table
        return [
            self.variable(f"{scope}/gamma", table, f"{key}.weight", read),
            self.variable(f"{scope}/beta", table, f"{key}.bias", read),
            self.variable(f"{scope}/moving_mean", (channels,), f"{key}.running_mean", _same),
            self.variable(f"{scope}/moving_variance", (channels,), f"{key}.running_var", _same),
        ]

    def attention(self, scope: str, channels: int, heads: int, key: str) -> list[Variable]:
        few, half = channels // 8, channels // 2
        found = [self.variable(f"{scope}/sigma_ratio", (), f"{key}.sigma", _same)]
        for name, inside, outside, part, read in (
            ("theta", channels, few, "query", _kernel),
            ("phi", channels, few, "key", _kernel),
            ("g", channels, half, "value", _kernel),
            ("attn", half, channels, "out", _merging(heads)),
        ):
            kernel = f"{scope}/sn_conv_{name}/weights"
            found += self.conv_kernel(kernel, (1, 1, inside, outside), f"{key}.{part}", read)
        return found


def _generator(channels: tuple[int, ...], classes: int, latent: int, heads: int) -> list[Variable]:
    side = _Side("Generator/generator", "generator")
    found = side.linear("g_snh0", latent, 16 * channels[0], _pixels(channels[0]))
    for number, (inside, outside) in enumerate(itertools.pairwise(channels), 1):
        block, key = f"g_block{number}", f"blocks.{4 << number}"
        found += side.norm(f"{block}/cbn_0", classes, inside, f"{key}.norm0")
        found += side.norm(f"{block}/cbn_1", classes, outside, f"{key}.norm1")
        found += side.conv(f"{block}/snconv1", 3, inside, outside, f"{key}.conv0")
        found += side.conv(f"{block}/snconv2", 3, outside, outside, f"{key}.conv1")
        found += side.conv(f"{block}/snconv3", 1, inside, outside, f"{key}.shortcut")
    found += side.attention("g_ops", channels[3], heads, "attention.up_32")
    found += side.norm("g_bn", None, channels[-1], "norm")
    return found + side.conv("g_snconv_last", 3, channels[-1], 3, "to_rgb")


def _discriminator(channels: tuple[int, ...], classes: int, heads: int) -> list[Variable]:
    """`channels` finest first: of the maps of 64x64 ... 4x4, and of the last block."""
    side, last = _Side("Discriminator/discriminator", "discriminator"), channels[-1]
    found: list[Variable] = []
    names = ["d_optimized_block1", *(f"d_block{number}" for number in range(2, 7))]
    keys = [*(f"blocks.{SIZE >> number}" for number in range(1, 6)), "last"]
    for block, key, inside, outside in zip(names, keys, (3, *channels[:-1]), channels, strict=True):
        found += side.conv(f"{block}/sn_conv1", 3, inside, outside, f"{key}.conv0")
        found += side.conv(f"{block}/sn_conv2", 3, outside, outside, f"{key}.conv1")
        if key != "last" or inside != outside:
            found += side.conv(f"{block}/sn_conv3", 1, inside, outside, f"{key}.shortcut")
    found += side.attention("d_ops", channels[1], heads, "attention.down_32")
    found += side.linear("d_sn_linear", last, 1, _same)
    found.append(side.variable("d_embedding/embedding_map", (classes, last), "embedding.weight", _same))
    # made outside a getter, so its scope is told once
    return [*found, side.variable(f"d_embedding/{_U}", (last, 1), "embedding.u", torch.flatten)]


# Layouts


def _same(array: Tensor) -> Tensor:
    return array


def _table(array: Tensor) -> Tensor:
    return array.flatten(1)  # (classes, 1, 1, C) -> (classes, C)


def _kernel(array: Tensor) -> Tensor:
    return array.permute(3, 2, 0, 1)  # (rows, cols, in, out) -> (out, in, rows, cols)


def _merging(heads: int) -> Read:
    """A 1x1 kernel whose input channels are the merged heads'."""

    def read(array: Tensor) -> Tensor:
        kernel = _kernel(array)  # (out, d * heads + head, 1, 1)
        return torch.unflatten(kernel, 1, (-1, heads)).transpose(1, 2).flatten(1, 2)

    return read


def _pixels(channels: int) -> Read:
    """The first linear layer's outputs, along the first axis: from pixels of channels to channels of pixels."""

    def read(array: Tensor) -> Tensor:
        return torch.unflatten(array, 0, (16, channels)).transpose(0, 1).flatten(0, 1)

    return read
