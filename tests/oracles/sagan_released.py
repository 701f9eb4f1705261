"""The released SAGAN of Your Local GAN in its own terms: names and shapes of variables, and its forward pass in NHWC.

Written apart from the library: convolutions are sums over shifted maps, attention adds -1000 where a tiled mask forbids
and puts the head index fastest on the output channels. Only the patterns' cells come from `ylg_loops`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from oracles.ylg_loops import mask_loops

Shapes = dict[str, tuple[int, ...]]
U = "spectral_normalize/spectral_norm/spectral_norm_u"
YLG = ("rtl1", "rtl2", "rtl1", "rtl2", "ltr1", "ltr2", "ltr1", "ltr2")
DENSE = ("dense",) * 8


# Names and shapes


def _weight(scope: str, leaf: str, *shape: int) -> Shapes:
    name = f"{scope}/{leaf}"
    return {name: shape, f"{scope}/{name}/{U}": (int(np.prod(shape[:-1])), 1)}


def _conv(scope: str, side: int, inside: int, outside: int) -> Shapes:
    scope = f"{scope}/{scope.rpartition('/')[2]}"  # a layer opens a scope of its own name inside the block's
    return {**_weight(scope, "kernel", side, side, inside, outside), f"{scope}/bias": (outside,)}


def _linear(scope: str, inside: int, outside: int) -> Shapes:
    return {**_weight(f"{scope}/dense", "kernel", inside, outside), f"{scope}/dense/bias": (outside,)}


def _norm(scope: str, table: tuple[int, ...], channels: int) -> Shapes:
    tables: Shapes = {f"{scope}/{leaf}": (*table, channels) for leaf in ("gamma", "beta")}
    return {**tables, f"{scope}/moving_mean": (channels,), f"{scope}/moving_variance": (channels,)}


def _attention(scope: str, channels: int) -> Shapes:
    few, half = channels // 8, channels // 2
    found: Shapes = {f"{scope}/sigma_ratio": ()}
    for name, inside, outside in (
        ("theta", channels, few),
        ("phi", channels, few),
        ("g", channels, half),
        ("attn", half, channels),
    ):
        found |= _weight(f"{scope}/sn_conv_{name}", "weights", 1, 1, inside, outside)
    return found


def generator_shapes(widths: Sequence[int], classes: int, latent: int = 128) -> Shapes:
    """`widths`: channels at 4x4, 8x8 ... 128x128, six of them."""
    top = "Generator/generator"
    found = _linear(f"{top}/g_snh0", latent, 16 * widths[0])
    for number, (inside, outside) in enumerate(itertools.pairwise(widths), 1):
        scope = f"{top}/g_block{number}"
        found |= _norm(f"{scope}/cbn_0", (classes, 1, 1), inside) | _norm(f"{scope}/cbn_1", (classes, 1, 1), outside)
        found |= _conv(f"{scope}/snconv1", 3, inside, outside) | _conv(f"{scope}/snconv2", 3, outside, outside)
        found |= _conv(f"{scope}/snconv3", 1, inside, outside)
    found |= _attention(f"{top}/g_ops", widths[3]) | _norm(f"{top}/g_bn", (1, 1, 1), widths[-1])
    return found | _conv(f"{top}/g_snconv_last", 3, widths[-1], 3)


def discriminator_shapes(widths: Sequence[int], classes: int) -> Shapes:
    """`widths`: channels at 64x64, 32x32 ... 4x4 and of the last block, six of them."""
    top = "Discriminator/discriminator"
    found: Shapes = {}
    names = ["d_optimized_block1", *(f"d_block{number}" for number in range(2, 7))]
    for number, (name, inside, outside) in enumerate(zip(names, (3, *widths), widths, strict=False)):
        found |= _conv(f"{top}/{name}/sn_conv1", 3, inside, outside)
        found |= _conv(f"{top}/{name}/sn_conv2", 3, outside, outside)
        if number < 5 or inside != outside:
            found |= _conv(f"{top}/{name}/sn_conv3", 1, inside, outside)
    found |= _attention(f"{top}/d_ops", widths[1]) | _linear(f"{top}/d_sn_linear", widths[-1], 1)
    embedding: Shapes = {f"{top}/d_embedding/embedding_map": (classes, widths[-1])}
    return found | embedding | {f"{top}/d_embedding/{U}": (widths[-1], 1)}


def optimiser_shapes(shapes: Shapes) -> Shapes:
    """Adam's slots of the trainable variables, its powers and the step counter: what else a checkpoint has."""
    fixed = ("spectral_norm_u", "moving_mean", "moving_variance")
    found: Shapes = {
        f"{name}/{slot}": shape
        for name, shape in shapes.items()
        if not name.endswith(fixed)
        for slot in ("Adam", "Adam_1")
    }
    for scope in ("generator_train", "discriminator_train"):
        found |= {f"{scope}/beta1_power": (), f"{scope}/beta2_power": ()}
    return found | {"global_step": ()}


def random_arrays(shapes: Shapes, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays at which nothing cancels: sigma_ratio is not 0, statistics and gains are not 1, kernels exceed norm 1."""
    random = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        leaf = name.rpartition("/")[2]
        numbers = random.standard_normal(shape)
        if leaf in ("kernel", "weights"):
            numbers = numbers * 1.3 * (2 / (np.prod(shape[:-1]) + shape[-1])) ** 0.5
        elif leaf in ("gamma", "moving_variance"):
            numbers = 1 + 0.4 * np.tanh(numbers)
        elif leaf == "sigma_ratio":
            numbers = np.array(0.7)
        elif leaf == "global_step":
            numbers = np.array(900_000, np.int64)
        arrays[name] = np.asarray(numbers) if leaf == "global_step" else np.asarray(numbers, np.float32)
    return arrays


# The forward pass, with moving averages


class Released:
    """Both networks in float64, evaluation mode, from the arrays of a checkpoint."""

    def __init__(self, arrays: Mapping[str, np.ndarray], heads: Sequence[str] = YLG) -> None:
        self.arrays = {name: torch.from_numpy(np.asarray(value, np.float64)) for name, value in arrays.items()}
        self.heads = tuple(heads)

    def normed(self, name: str, *, bounded: bool = True, transpose: bool = False) -> Tensor:
        """The weight that is used: one round of power iteration from the stored vector, then divided."""
        weight = self.arrays[name]
        u = next(value for key, value in self.arrays.items() if key.endswith(f"{name}/{U}"))
        return self._divided(weight, u, bounded)

    def _divided(self, weight: Tensor, u: Tensor, bounded: bool) -> Tensor:
        matrix = weight.reshape(-1, weight.shape[-1])
        v = matrix.T @ u
        v = v / v.norm()
        u = matrix @ v
        u = u / u.norm()
        sigma = (u.T @ matrix @ v).item()
        return weight / (max(1.0, sigma) if bounded else sigma)

    def conv(self, x: Tensor, scope: str) -> Tensor:
        scope = f"{scope}/{scope.rpartition('/')[2]}"
        return convolve(x, self.normed(f"{scope}/kernel")) + self.arrays[f"{scope}/bias"]

    def norm(self, x: Tensor, scope: str, labels: Tensor | None) -> Tensor:
        gamma, beta = self.arrays[f"{scope}/gamma"], self.arrays[f"{scope}/beta"]
        if labels is not None:
            gamma, beta = gamma[labels], beta[labels]
        mean, variance = self.arrays[f"{scope}/moving_mean"], self.arrays[f"{scope}/moving_variance"]
        return (x - mean) / (variance + 1e-3).sqrt() * gamma + beta

    def attention(self, x: Tensor, scope: str) -> Tensor:
        batch, rows, cols, channels = x.shape
        count, queries, keys = len(self.heads), rows * cols, rows * cols // 4
        theta, phi, g = (
            convolve(x, self.normed(f"{scope}/sn_conv_{name}/weights", bounded=False)) for name in ("theta", "phi", "g")
        )
        theta = theta.reshape(batch, queries, count, -1).permute(0, 2, 1, 3)
        phi = pool_max(phi).reshape(batch, keys, count, -1).permute(0, 2, 1, 3)
        g = pool_max(g).reshape(batch, keys, count, -1).permute(0, 2, 1, 3)
        logits = theta @ phi.transpose(2, 3) - 1000.0 * (1.0 - tiled_masks(self.heads, rows, cols))
        brought = logits.softmax(3) @ g  # (batch, head, queries, d)
        merged = brought.permute(0, 2, 3, 1).reshape(batch, rows, cols, channels // 2)  # the head is fastest
        out = convolve(merged, self.normed(f"{scope}/sn_conv_attn/weights", bounded=False))
        return x + self.arrays[f"{scope}/sigma_ratio"] * out

    def first_linear(self, z: Tensor) -> Tensor:
        scope = "Generator/generator/g_snh0/dense"
        flat = z @ self.normed(f"{scope}/kernel") + self.arrays[f"{scope}/bias"]
        return flat.reshape(len(z), 4, 4, -1)

    def up_block(self, x: Tensor, labels: Tensor, scope: str) -> Tensor:
        inner = double(self.norm(x, f"{scope}/cbn_0", labels).relu())
        inner = self.norm(self.conv(inner, f"{scope}/snconv1"), f"{scope}/cbn_1", labels).relu()
        return self.conv(double(x), f"{scope}/snconv3") + self.conv(inner, f"{scope}/snconv2")

    def down_block(self, x: Tensor, scope: str, *, first: bool = False, last: bool = False) -> Tensor:
        inner = self.conv(x if first else x.relu(), f"{scope}/sn_conv1")
        inner = self.conv(inner.relu(), f"{scope}/sn_conv2")
        if last:
            widens = x.shape[3] != inner.shape[3]
            return (self.conv(x, f"{scope}/sn_conv3") if widens else x) + inner
        if first:
            return self.conv(pool_mean(x), f"{scope}/sn_conv3") + pool_mean(inner)
        return pool_mean(self.conv(x, f"{scope}/sn_conv3")) + pool_mean(inner)

    def generator(self, z: Tensor, labels: Tensor) -> Tensor:
        """(B, latent), (B,) -> (B, 128, 128, 3)."""
        top, x = "Generator/generator", self.first_linear(z)
        for number in range(1, 6):
            x = self.up_block(x, labels, f"{top}/g_block{number}")
            if number == 3:
                x = self.attention(x, f"{top}/g_ops")
        return self.conv(self.norm(x, f"{top}/g_bn", None).relu(), f"{top}/g_snconv_last").tanh()

    def features(self, images: Tensor) -> Tensor:
        """(B, 128, 128, 3) -> the map before attention, (B, 32, 32, C)."""
        top = "Discriminator/discriminator"
        return self.down_block(self.down_block(images, f"{top}/d_optimized_block1", first=True), f"{top}/d_block2")

    def discriminator(self, images: Tensor, labels: Tensor) -> Tensor:
        """(B, 128, 128, 3), (B,) -> (B,)."""
        top = "Discriminator/discriminator"
        x = self.attention(self.features(images), f"{top}/d_ops")
        for number in range(3, 7):
            x = self.down_block(x, f"{top}/d_block{number}", last=number == 6)
        summed, scope = x.relu().sum((1, 2)), f"{top}/d_sn_linear/dense"
        table = self.arrays[f"{top}/d_embedding/embedding_map"].T
        table = self._divided(table, self.arrays[f"{top}/d_embedding/{U}"], True).T
        logits = summed @ self.normed(f"{scope}/kernel") + self.arrays[f"{scope}/bias"]
        return logits[:, 0] + (summed * table[labels]).sum(1)


def convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """(B, Y, X, in), (side, side, in, out) -> (B, Y, X, out), zeros around."""
    _, rows, cols, _ = x.shape
    reach = kernel.shape[0] // 2
    padded = torch.nn.functional.pad(x, (0, 0, reach, reach, reach, reach))
    shifts = [(i, j) for i in range(kernel.shape[0]) for j in range(kernel.shape[1])]
    return sum((padded[:, i : i + rows, j : j + cols] @ kernel[i, j] for i, j in shifts), torch.zeros(()).double())


def _cells(x: Tensor) -> Tensor:
    """(B, Y, X, C) -> (B, Y/2, X/2, C, 4)."""
    batch, rows, cols, channels = x.shape
    return x.reshape(batch, rows // 2, 2, cols // 2, 2, channels).permute(0, 1, 3, 5, 2, 4).flatten(4)


def pool_max(x: Tensor) -> Tensor:
    return _cells(x).amax(4)


def pool_mean(x: Tensor) -> Tensor:
    return _cells(x).mean(4)


def double(x: Tensor) -> Tensor:
    """Every pixel four times."""
    batch, rows, cols, channels = x.shape
    return x[:, :, None, :, None].expand(-1, -1, 2, -1, 2, -1).reshape(batch, 2 * rows, 2 * cols, channels)


@functools.cache
def tiled_masks(heads: tuple[str, ...], rows: int, cols: int, order: str = "esa") -> Tensor:
    """(heads, n_q, n_q / 4) of 0 and 1: the square masks of the pooled grid, one below the other."""
    size = (rows // 2, cols // 2)
    square = {name: mask_loops(name, size, size, order).double() for name in dict.fromkeys(heads)}
    return torch.stack([square[name].repeat(4, 1) for name in heads])
