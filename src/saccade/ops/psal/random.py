"""Random numbers of patch-based stochastic attention: a counter-based hash, the same in every kernel.

The released layer keeps a 64-bit state for each pixel and draws from it in an order that depends on how threads run.
Ours is a function of (seed, head, query pixel, number of the draw) and of nothing else, in 32-bit unsigned arithmetic:

    mix32(x): x ^= x >> 16; x *= 0x7feb352d; x ^= x >> 15; x *= 0x846ca68b; x ^= x >> 16
    state(pixel) = mix32(low + 0x9E3779B9 * (pixel + 1))                    low, high: the halves of the 64-bit seed
    rand(pixel, number) = mix32(state(pixel) ^ (number * 0x85EBCA6B + high + head * 0xC2B2AE35))
    a whole number in [0, n) = (rand * n) >> 32

so results do not depend on the device, on the kernel or on how a batch is split: every batch entry has the same draws.
The multipliers of mix32 are those of C. Wellons' search for 32-bit hashes with little bias.
"""

from __future__ import annotations

from torch import Tensor

_LOW = 0xFFFFFFFF
_PIXEL = 0x9E3779B9
_NUMBER = 0x85EBCA6B
_HEAD = 0xC2B2AE35


def mix32(x: Tensor) -> Tensor:
    """Hash 32-bit numbers held in int64; only the low 32 bits of `x` count."""
    x = x & _LOW
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _LOW
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _LOW  # int64 wraps, its low 32 bits are right
    return x ^ (x >> 16)


def pixel_state(seed: int, pixels: Tensor) -> Tensor:
    """The part of the hash that all draws of a query pixel share: flat pixels (int64) -> the same shape."""
    return mix32((seed & _LOW) + _PIXEL * (pixels + 1))


def draw(state: Tensor, seed: int, heads: Tensor, number: int) -> Tensor:
    """Draw `number` of every pixel: (state of the pixels, their heads, both int64) -> int64 in [0, 2^32)."""
    offset = number * _NUMBER + ((seed >> 32) & _LOW)
    return mix32(state ^ ((heads * _HEAD + (offset & _LOW)) & _LOW))


def below(hashes: Tensor, bound: int | Tensor) -> Tensor:
    """Whole numbers in [0, bound) from draws."""
    return (hashes * bound) >> 32
