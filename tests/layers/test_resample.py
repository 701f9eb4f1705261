"""FIR resampling against its definition by shifted sums, its gains, and its derivatives."""

import pytest
import torch
from torch.nn import functional as F

from saccade.layers import resample

TAPS = (1.0, 3.0, 3.0, 1.0)


def filtered(x, before, after, gain):
    """Zero-pad by (before, after), then the 4x4 filter as sixteen shifted sums."""
    x = F.pad(x, (before, after, before, after))
    rows, cols = x.shape[2] - 3, x.shape[3] - 3
    total = torch.zeros(*x.shape[:2], rows, cols, dtype=x.dtype)
    for i, a in enumerate(TAPS):
        for j, b in enumerate(TAPS):
            total += gain * a * b / 64 * x[:, :, i : i + rows, j : j + cols]
    return total


def zeros_inserted(x):
    out = torch.zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3], dtype=x.dtype)
    out[:, :, ::2, ::2] = x
    return out


@pytest.fixture
def x():
    return torch.randn(2, 3, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def weight():
    return torch.randn(5, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_blur(x):
    torch.testing.assert_close(resample.blur(x, 2), filtered(x, 2, 2, 1.0))
    torch.testing.assert_close(resample.blur(x, 1, 4.0), filtered(x, 1, 1, 4.0))


def test_upsample(x):
    torch.testing.assert_close(resample.upsample(x), filtered(zeros_inserted(x), 2, 1, 4.0))


def test_downsample(x):
    torch.testing.assert_close(resample.downsample(x), filtered(x, 1, 1, 1.0)[:, :, ::2, ::2])


def test_conv_upsample(x, weight):
    """Convolution of the map with zeros inserted, then the filter."""
    stretched = zeros_inserted(x)[:, :, :-1, :-1]
    convolved = F.conv2d(stretched, weight.flip(2, 3), padding=2)
    torch.testing.assert_close(resample.conv_upsample(x, weight), filtered(convolved, 1, 1, 4.0))


def test_conv_downsample(x, weight):
    torch.testing.assert_close(resample.conv_downsample(x, weight), F.conv2d(filtered(x, 2, 2, 1.0), weight, stride=2))


def test_constants_keep_their_value_inside():
    ones = torch.ones(1, 1, 8, 8)
    torch.testing.assert_close(resample.upsample(ones)[:, :, 1:-1, 1:-1], torch.ones(1, 1, 14, 14))
    torch.testing.assert_close(resample.downsample(ones)[:, :, 1:-1, 1:-1], torch.ones(1, 1, 2, 2))


def test_a_ramp_is_interpolated():
    """Up-sampling by this filter is linear interpolation: pixel 2 i lies at i - 1/4, pixel 2 i + 1 at i + 1/4."""
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    wanted = torch.arange(8.0).repeat_interleave(2) + torch.tensor([-0.25, 0.25]).repeat(8)
    torch.testing.assert_close(resample.upsample(ramp)[0, 0, 4, 1:-1], wanted[1:-1])


def test_odd_sides_are_refused(weight):
    for call in (resample.downsample, lambda x: resample.conv_downsample(x, weight)):
        with pytest.raises(ValueError, match=r"even.*got 5x6.*6x6"):
            call(torch.zeros(1, 3, 5, 6, dtype=torch.float64))


@pytest.mark.parametrize("name", ["blur", "upsample", "downsample", "conv_upsample", "conv_downsample"])
def test_second_derivatives(name):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    calls = {
        "blur": (lambda x: resample.blur(x, 2).square(), (x,)),
        "upsample": (lambda x: resample.upsample(x).square(), (x,)),
        "downsample": (lambda x: resample.downsample(x).square(), (x,)),
        "conv_upsample": (lambda x, w: resample.conv_upsample(x, w), (x, weight)),
        "conv_downsample": (lambda x, w: resample.conv_downsample(x, w), (x, weight)),
    }
    call, inputs = calls[name]
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)
