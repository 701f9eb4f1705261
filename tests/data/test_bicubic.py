"""MATLAB's bicubic against hand-computed weights and against an independent restatement in exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.data.bicubic import crop_to_multiple, degrade, matlab_resize, matlab_resize_float, resized
from saccade.geometry import Size

FACTORS = (Fraction(1, 2), Fraction(1, 3), Fraction(1, 4), Fraction(2), Fraction(3), Fraction(4), Fraction(3, 4))


def keys(x: Fraction) -> Fraction:
    """The cubic of Keys 1981 with a = -1/2, written from its two conditions."""
    x, a = abs(x), Fraction(-1, 2)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else Fraction(0)


def line_weights(length: int, factor: Fraction, place: int) -> dict[int, Fraction]:
    """What each pixel of a line counts in pixel `place` of the resized line."""
    centre = (place + Fraction(1, 2)) / factor - Fraction(1, 2)
    wide = min(factor, Fraction(1))
    reach = int(2 / wide) + 2
    found: dict[int, Fraction] = {}
    for at in range(int(centre) - reach, int(centre) + reach + 1):
        inside = min(max(at, 0), length - 1)
        found[inside] = found.get(inside, Fraction(0)) + wide * keys(wide * (centre - at))
    total = sum(found.values())
    return {at: weight / total for at, weight in found.items() if weight}


def eight_bits(value: Fraction) -> int:
    """Rounded, halves upwards, and clamped."""
    return min(max((value + Fraction(1, 2)).__floor__(), 0), 255)


def restated(picture: np.ndarray, factor: Fraction, *, between: bool = True) -> np.ndarray:
    """Rows first, then columns, in exact arithmetic; `between`: 8 bits after the first pass too."""
    size = resized(Size(*picture.shape), factor)
    half = [[Fraction(0)] * picture.shape[1] for _ in range(size.rows)]
    for i in range(size.rows):
        weights = line_weights(picture.shape[0], factor, i)
        for j in range(picture.shape[1]):
            value = sum((w * int(picture[at, j]) for at, w in weights.items()), Fraction(0))
            half[i][j] = Fraction(eight_bits(value)) if between else value
    out = np.zeros(size, np.uint8)
    for j in range(size.cols):
        weights = line_weights(picture.shape[1], factor, j)
        for i in range(size.rows):
            out[i, j] = eight_bits(sum((w * half[i][at] for at, w in weights.items()), Fraction(0)))
    return out


def test_weights_of_halving_by_hand() -> None:
    """128ths of Keys' cubic at 1/4, 3/4, 5/4 and 7/4, halved: 111, 29, -9, -3 over 256."""
    line = np.full((1, 16), 100, np.uint8)
    line[0, 7] = 228  # 128 more
    found = matlab_resize(line, 0.5)[0].astype(int) - 100
    #       pixel 7 lies 7/2, 3/2 ... half-pixels from the centres 1.5, 2.5, ... of the halved line's pixels
    assert found.tolist() == [0, 0, round(-9 * 128 / 256 + 1e-9), 56, 15, -1, 0, 0]
    exact = matlab_resize_float(torch.from_numpy(line).double()[None], 0.5)[0, 0] - 100
    assert (exact * 2).tolist() == pytest.approx([0, 0, -9, 111, 29, -3, 0, 0], abs=1e-12)


def test_halves_are_rounded_upwards_after_each_pass() -> None:
    """Two rows, 0 and 1, doubled: the outer weights are exact and the sums are halves only where they are shrunk."""
    checks = np.array([[0, 1], [1, 0]], np.uint8)
    # every row's mean is 0.5 -> 1 after the first pass (rows), and then all ones: rounding once at the end gives 1 too,
    # but with 0 and 2 over 1 and 1 only rounding in between gives 2 in place of 1
    assert matlab_resize(checks, Fraction(1, 2)).tolist() == [[1]]
    steps = np.array([[0, 1], [1, 2]], np.uint8)
    assert matlab_resize(steps, Fraction(1, 2)).tolist() == [[2]]  # 0.5 -> 1, 1.5 -> 2, then 1.5 -> 2
    assert restated(steps, Fraction(1, 2), between=False).tolist() == [[1]]


def test_rows_come_first() -> None:
    uneven = np.array([[0, 1], [0, 1], [0, 1], [1, 1]], np.uint8)
    assert matlab_resize(uneven, Fraction(1, 4)).tolist() == restated(uneven, Fraction(1, 4)).tolist()
    both = np.random.default_rng(0).integers(0, 256, (12, 12)).astype(np.uint8)
    assert (matlab_resize(both, Fraction(1, 3)) != matlab_resize(both.T, Fraction(1, 3)).T).any()


@pytest.mark.parametrize("factor", FACTORS, ids=str)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_equals_the_restatement_in_fractions(factor: Fraction, data: st.DataObject) -> None:
    rows, cols = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    seed = data.draw(st.integers(0, 10_000))
    picture = np.random.default_rng(seed).integers(0, 256, (rows, cols)).astype(np.uint8)
    assert matlab_resize(picture, factor).tolist() == restated(picture, factor).tolist()


def test_rounding_in_between_shows_in_every_larger_picture() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (16, 16)).astype(np.uint8)
    assert (restated(picture, Fraction(1, 2), between=False) != matlab_resize(picture, 0.5)).any()


@pytest.mark.parametrize("factor", FACTORS, ids=str)
def test_floats_are_the_same_without_rounding_and_differentiable(factor: Fraction) -> None:
    images = torch.rand(2, 3, 11, 8, dtype=torch.float64, requires_grad=True)
    found = matlab_resize_float(images, factor)
    down, across = (
        np.array([[float(line_weights(n, factor, i).get(j, 0)) for j in range(n)] for i in range(m)])
        for n, m in zip((11, 8), resized(Size(11, 8), factor), strict=True)
    )
    wanted = torch.from_numpy(down) @ images.detach() @ torch.from_numpy(across).T
    torch.testing.assert_close(found.detach(), wanted, rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(found.sum(), images)
    # the sum of all weights that a pixel has
    torch.testing.assert_close(gradient[0, 0], torch.from_numpy(np.outer(down.sum(0), across.sum(0))))


def test_colours_are_apart_and_constants_stay() -> None:
    picture = np.random.default_rng(2).integers(0, 256, (12, 18, 3)).astype(np.uint8)
    for channel in range(3):
        assert (matlab_resize(picture, 0.5)[..., channel] == matlab_resize(picture[..., channel], 0.5)).all()
    for factor in FACTORS:
        assert (matlab_resize(np.full((13, 7), 37, np.uint8), factor) == 37).all()


def test_sizes_are_rounded_up_also_for_thirds_as_floats() -> None:
    assert resized(Size(481, 321), Fraction(1, 3)) == Size(161, 107)
    assert resized(Size(480, 321), 1 / 3) == Size(160, 107)
    assert resized(Size(7, 5), 3) == Size(21, 15)


def test_a_picture_is_cut_before_it_is_shrunk() -> None:
    picture = np.random.default_rng(3).integers(0, 256, (13, 10, 3)).astype(np.uint8)
    assert degrade(picture, 4).shape == (3, 2, 3)
    assert (degrade(picture, 4) == matlab_resize(picture[:12, :8], 0.25)).all()
    assert crop_to_multiple(picture, 5).shape == (10, 10, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: matlab_resize(np.zeros((4, 4)), 0.5), "matlab_resize_float takes tensors"),
        (lambda: matlab_resize(np.zeros((4, 4), np.uint8), 0), "the factor is positive"),
        (lambda: matlab_resize_float(torch.zeros(4, 4, dtype=torch.uint8), 0.5), "matlab_resize takes 8-bit"),
        (lambda: degrade(np.zeros((3, 9), np.uint8), 4), "up to the shorter side"),
    ],
)
def test_wrong_input_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
