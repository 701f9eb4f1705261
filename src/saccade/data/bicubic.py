"""MATLAB's imresize with the bicubic kernel, bit for bit: what every super-resolution benchmark was made with.

The kernel is Keys' cubic with a = -0.5, widened by the factor when a picture shrinks (antialiasing); rows are resized
first, then columns; pixels beyond the border repeat the outermost one; and 8-bit pictures are rounded to 8 bits after
the first pass too, halves upwards. Other libraries differ in one or more of these, Pillow and OpenCV by several levels,
and scores then by tenths of a decibel.

Source: the conventions were settled by comparing with the published low resolutions of Set5, Set14 and BSD100 at x2, x3
and x4 and of Urban100 at x4 (SelfExSR's repository): every pixel is the same. Enlargements score what is listed there
for bicubic, picture by picture.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from saccade.data.images import Pixels
from saccade.geometry import Size

Factor = float | Fraction
_SUPPORT = 4.0  # width of the cubic kernel, in pixels of the coarser grid


class _Taps(NamedTuple):
    """Which pixels of a line enter each pixel of the resized line, and with what weights: (out, taps) both."""

    places: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]


def resized(size: Size, factor: Factor) -> Size:
    """The size that a picture of `size` gets: rounded up, as MATLAB does.

    Raises:
        ValueError: the factor is not positive.
    """
    _check(size, factor)
    exact = Fraction(factor).limit_denominator(1_000_000)
    return Size(math.ceil(size.rows * exact), math.ceil(size.cols * exact))


def matlab_resize(picture: Pixels, factor: Factor) -> Pixels:
    """Resize an 8-bit picture as `imresize(picture, factor, 'bicubic')` does.

    Args:
        picture: (Y, X) or (Y, X, C) uint8.
        factor: of both sides; `Fraction(1, 3)` and 1 / 3 are the same.

    Returns:
        uint8, the sides times `factor`, rounded up.

    Raises:
        ValueError: not an 8-bit picture, or a factor that is not positive.
    """
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3):
        raise ValueError(
            f"matlab_resize: a picture is uint8 (Y, X) or (Y, X, C); got {picture.dtype} {picture.shape}; "
            f"matlab_resize_float takes tensors of floats"
        )
    rows, cols = _taps_of(Size(*picture.shape[:2]), factor)
    half = _to_8_bits(_pass(picture, rows))
    return _to_8_bits(_pass(half.swapaxes(0, 1), cols)).swapaxes(0, 1).copy()


def matlab_resize_float(images: Tensor, factor: Factor) -> Tensor:
    """The same without rounding, for pictures of floats, as MATLAB treats doubles; differentiable.

    Args:
        images: (..., Y, X) floating point.
        factor: of both sides.

    Raises:
        ValueError: not floating point, fewer than two axes, or a factor that is not positive.
    """
    if not images.is_floating_point() or images.ndim < 2:
        raise ValueError(
            f"matlab_resize_float: images are floating point (..., Y, X); got {images.dtype} {tuple(images.shape)}; "
            f"matlab_resize takes 8-bit pictures"
        )
    rows, cols = _taps_of(Size(*images.shape[-2:]), factor)
    for taps, axis in ((rows, -2), (cols, -1)):
        places = torch.from_numpy(taps.places).to(images.device)
        weights = torch.from_numpy(taps.weights).to(images)
        if axis == -2:
            weights = weights[:, None]  # (out, 1, taps) beside columns
        images = sum(images.index_select(axis, places[:, tap]) * weights[..., tap] for tap in range(places.shape[1]))  # type: ignore[assignment]
    return images


def degrade(picture: Pixels, scale: int) -> Pixels:
    """The benchmarks' low-resolution picture: cut to a multiple of `scale` at the bottom and right, then shrunk.

    Raises:
        ValueError: the picture is smaller than `scale`, or not 8-bit.
    """
    return matlab_resize(crop_to_multiple(picture, scale), Fraction(1, scale))


def crop_to_multiple(picture: Pixels, scale: int) -> Pixels:
    """Cut a (Y, X, ...) picture at the bottom and right to sides that `scale` divides.

    Raises:
        ValueError: nothing would be left, or `scale` is below 1.
    """
    rows, cols = picture.shape[:2]
    if scale < 1 or min(rows, cols) < scale:
        raise ValueError(f"crop_to_multiple: a scale is 1 up to the shorter side; got {scale} for {rows}x{cols}")
    return picture[: rows - rows % scale, : cols - cols % scale]


def _taps_of(size: Size, factor: Factor) -> tuple[_Taps, _Taps]:
    out = resized(size, factor)
    return _taps(size.rows, out.rows, float(factor)), _taps(size.cols, out.cols, float(factor))


def _check(size: Size, factor: Factor) -> None:
    if not factor > 0 or min(size) < 1:
        raise ValueError(f"matlab_resize: the factor is positive and sides are 1 or more; got {factor} for {size}")


def _cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys' cubic convolution kernel (IEEE TASSP 1981) with a = -0.5."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


@lru_cache(maxsize=64)
def _taps(length: int, out: int, factor: float) -> _Taps:
    shrink = min(factor, 1.0)
    width = _SUPPORT / shrink
    # pixel centres: output pixel i (from 0) lies at (i + 0.5) / factor - 0.5 of the input
    centres = (np.arange(out) + 0.5) / factor - 0.5
    first = np.floor(centres - width / 2).astype(np.int64)
    places = first[:, None] + np.arange(math.ceil(width) + 2)
    weights = shrink * _cubic(shrink * (centres[:, None] - places))
    weights /= weights.sum(1, keepdims=True)
    used = (weights != 0).any(0)
    return _Taps(places[:, used].clip(0, length - 1), weights[:, used])


def _pass(lines: Pixels, taps: _Taps) -> npt.NDArray[np.float64]:
    """Resize along the first axis."""
    weights = taps.weights.reshape(*taps.weights.shape, *(1,) * (lines.ndim - 1))  # (out, taps, 1 ...)
    total = lines[taps.places[:, 0]] * weights[:, 0]
    for tap in range(1, taps.places.shape[1]):
        total += lines[taps.places[:, tap]] * weights[:, tap]
    return total


def _to_8_bits(values: npt.NDArray[np.float64]) -> Pixels:
    """Clamp and round, halves upwards."""
    return np.floor(values.clip(0, 255) + 0.5).astype(np.uint8)
