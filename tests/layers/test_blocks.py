"""Blocks: sizes, normalisation, skips, the running image, the minibatch statistic and R1's second derivatives."""

import math

import pytest
import torch

from saccade.layers import resample
from saccade.layers.blocks import (
    DecoderBlock,
    EncoderBlock,
    MinibatchStddev,
    ResidualDownBlock,
    StyledConv,
    ToRGB,
    pixel_norm,
)
from saccade.layers.equalised import leaky_relu


def test_encoder_block_sizes():
    x = torch.randn(2, 3, 6, 8)
    assert EncoderBlock(3, 5, down=True)(x).shape == (2, 5, 3, 4)
    assert EncoderBlock(3, 5, down=False)(x).shape == (2, 5, 6, 8)


@pytest.mark.parametrize("skip", ["concat", "add"])
def test_decoder_block_joins_the_skip(skip):
    torch.manual_seed(0)
    block = DecoderBlock(4, 6, skip_channels=6, style_channels=3, up=True, skip=skip)
    x, style = torch.randn(2, 4, 3, 5), torch.randn(2, 3)
    joined = torch.randn(2, 6, 6, 10, requires_grad=True)
    y = block(x, joined, style)
    assert y.shape == (2, 6, 6, 10)
    (gradient,) = torch.autograd.grad(y.square().sum(), joined)
    assert gradient.abs().min() > 0
    with pytest.raises(ValueError, match="joins 6 skip channels"):
        block(x, None, style)


def test_decoder_block_without_skip():
    block = DecoderBlock(4, 6, skip_channels=0, style_channels=3, up=False)
    assert block(torch.randn(2, 4, 3, 5), None, torch.randn(2, 3)).shape == (2, 6, 3, 5)


def test_styled_conv_is_convolution_bias_activation():
    torch.manual_seed(0)
    layer = StyledConv(4, 6, style_channels=3)
    with torch.no_grad():
        layer.bias.normal_()
    x, style = torch.randn(2, 4, 5, 5), torch.randn(2, 3)
    wanted = leaky_relu(layer.conv(x, style) + layer.bias[:, None, None])
    torch.testing.assert_close(layer(x, style), wanted)


@pytest.mark.parametrize("normalisation", ["pixel", "both"])
def test_pixel_normalisation_gives_unit_mean_square(normalisation):
    torch.manual_seed(0)
    layer = StyledConv(4, 16, style_channels=3, normalisation=normalisation)
    y = layer(100.0 * torch.randn(2, 4, 5, 5), torch.randn(2, 3))
    torch.testing.assert_close(y.square().mean(dim=1), torch.ones(2, 5, 5), rtol=1e-4, atol=1e-4)


def test_pixel_norm_in_half_precision_does_not_overflow():
    x = torch.full((1, 4, 1, 1), 1000.0, dtype=torch.float16)
    assert pixel_norm(x).tolist() == torch.ones(1, 4, 1, 1).tolist()


def test_demodulated_features_are_not_renormalised():
    torch.manual_seed(0)
    layer = StyledConv(4, 16, style_channels=None)
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(layer(10.0 * x), 10.0 * layer(x))


def test_noise_starts_silent_and_is_learned():
    torch.manual_seed(0)
    layer = StyledConv(4, 4, style_channels=None, noise=True)
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(layer(x), layer(x))
    with torch.no_grad():
        layer.noise.strength.fill_(0.5)
    assert (layer(x) - layer(x)).abs().max() > 0.01
    layer(x).square().sum().backward()
    assert layer.noise.strength.grad.abs() > 0


def test_to_rgb_adds_to_the_upsampled_image():
    torch.manual_seed(0)
    block = ToRGB(4, style_channels=3)
    x, style, image = torch.randn(2, 4, 6, 6), torch.randn(2, 3), torch.randn(2, 3, 3, 3)
    torch.testing.assert_close(block(x, style, image), block(x, style, None) + resample.upsample(image))


def test_to_rgb_accumulates_in_float32_under_autocast():
    torch.manual_seed(0)
    block = ToRGB(4, style_channels=3)
    x, style, image = torch.randn(2, 4, 6, 6), torch.randn(2, 3), torch.randn(2, 3, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own, total = block(x, style, None), block(x, style, image)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total - own, resample.upsample(image), rtol=1e-5, atol=1e-5)


def test_residual_block_is_the_mean_of_two_paths():
    torch.manual_seed(0)
    block = ResidualDownBlock(4, 6)
    x = torch.randn(2, 4, 6, 8)
    assert block(x).shape == (2, 6, 3, 4)
    with torch.no_grad():
        block.conv1.weight.zero_()
    wanted = torch.einsum("oi,biyx->boyx", block.shortcut.weight[:, :, 0, 0] / 2, resample.downsample(x)) / math.sqrt(2)
    torch.testing.assert_close(block(x), wanted)
    with pytest.raises(ValueError, match="even"):
        block(torch.zeros(1, 4, 5, 6))


@pytest.mark.parametrize(("batch", "group", "size"), [(8, 4, 4), (3, 4, 3), (6, 4, 3), (5, 4, 1), (2, 4, 2), (1, 4, 1)])
def test_stddev_group_divides_the_batch(batch, group, size):
    layer = MinibatchStddev(group)
    assert layer.group_size(batch) == size
    x = torch.randn(batch, 2, 3, 4)
    y = layer(x)
    assert y.shape == (batch, 3, 3, 4)
    groups = batch // size
    for sample in range(batch):
        members = x[sample % groups :: groups]
        wanted = members.std(dim=0, unbiased=False).mean() if size > 1 else torch.tensor(0.0)
        torch.testing.assert_close(y[sample, 2], wanted.expand(3, 4), rtol=1e-4, atol=2e-4)
        torch.testing.assert_close(y[sample, :2], x[sample])


def test_stddev_needs_a_group():
    with pytest.raises(ValueError, match="at least 1; got 0"):
        MinibatchStddev(0)


@pytest.mark.parametrize(
    "block",
    [
        ResidualDownBlock(2, 3),
        EncoderBlock(2, 3, down=True),
        EncoderBlock(2, 3, down=False, normalisation="both"),
        MinibatchStddev(4),
    ],
    ids=["residual", "encoder", "pixel", "stddev"],
)
def test_second_derivatives(block):
    block = block.double()
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5), requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,))
    assert torch.autograd.gradgradcheck(block, (x,))


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="demodulate, pixel, both; got 'batch'"):
        StyledConv(2, 2, style_channels=None, normalisation="batch")
    with pytest.raises(ValueError, match="concat, add; got 'mul'"):
        DecoderBlock(2, 2, skip_channels=2, style_channels=2, up=True, skip="mul")
    with pytest.raises(ValueError, match="skip_channels=4"):
        DecoderBlock(2, 4, skip_channels=2, style_channels=2, up=True, skip="add")
