"""Modulated convolution against StyleGAN2's definition (weights scaled per sample), and its derivatives."""

import pytest
import torch
from torch.nn import functional as F

from saccade.layers import resample
from saccade.layers.modulated import ModulatedConv2d


def by_definition(layer, x, style):
    """Karras et al. 2020, equations 1 and 3, one sample at a time."""
    outputs = []
    for index in range(len(x)):
        modulation = torch.ones(x.shape[1], dtype=x.dtype) if style is None else layer.affine(style[index])
        weight = layer.weight * layer.scale * modulation[None, :, None, None]
        if layer.demodulate:
            weight = weight / (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        sample = x[index : index + 1]
        if layer.resample == "up":
            outputs.append(resample.conv_upsample(sample, weight))
        elif layer.resample == "down":
            outputs.append(resample.conv_downsample(sample, weight))
        else:
            outputs.append(F.conv2d(sample, weight, padding=layer.weight.shape[-1] // 2))
    return torch.cat(outputs)


def make(resampling, *, style_channels=5, demodulate=True, kernel_size=3):
    torch.manual_seed(0)
    layer = ModulatedConv2d(
        4, 6, kernel_size, style_channels=style_channels, demodulate=demodulate, resample=resampling
    ).double()
    x = torch.randn(3, 4, 6, 8, dtype=torch.float64)
    style = None if style_channels is None else torch.randn(3, style_channels, dtype=torch.float64)
    return layer, x, style


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("style_channels", [5, None])
@pytest.mark.parametrize("resampling", ["none", "up", "down"])
def test_equals_modulated_weights(resampling, style_channels, demodulate):
    layer, x, style = make(resampling, style_channels=style_channels, demodulate=demodulate)
    torch.testing.assert_close(layer(x, style), by_definition(layer, x, style), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("style_channels", [5, None])
@pytest.mark.parametrize("resampling", ["none", "up", "down"])
def test_gain_and_bias(resampling, style_channels, demodulate):
    layer, x, style = make(resampling, style_channels=style_channels, demodulate=demodulate)
    bias = torch.randn(6, dtype=torch.float64)
    wanted = 1.7 * by_definition(layer, x, style) + bias[:, None, None]
    torch.testing.assert_close(layer(x, style, bias=bias, gain=1.7), wanted, rtol=1e-12, atol=1e-12)


def test_pointwise():
    layer, x, style = make("none", demodulate=False, kernel_size=1)
    torch.testing.assert_close(layer(x, style), by_definition(layer, x, style), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("resampling", ["none", "up", "down"])
def test_second_derivatives(resampling):
    torch.manual_seed(0)
    layer = ModulatedConv2d(2, 2, 3, style_channels=2, resample=resampling).double()
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    style = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    names = ("weight", "affine.weight", "affine.bias")

    def call(x, style, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x, style))

    inputs = (x, style, *(layer.get_parameter(name) for name in names))
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_demodulation_undoes_the_size_of_the_style():
    layer, x, _ = make("none")
    with torch.no_grad():
        layer.affine.weight.zero_()
    small = layer(x, torch.zeros(3, 5, dtype=torch.float64))
    with torch.no_grad():
        layer.affine.bias.mul_(1000.0)
    torch.testing.assert_close(layer(x, torch.zeros(3, 5, dtype=torch.float64)), small, rtol=1e-6, atol=1e-8)


def test_half_precision_survives_a_style_out_of_its_range():
    """In fp16 a modulation of 1e5 is infinite; scaled before the cast it gives the float32 result."""
    layer, x, style = make("none")
    layer, x, style = layer.float(), x.float(), style.float()
    with torch.no_grad():
        layer.affine.bias.fill_(1e5)
    wanted = layer(x, style)
    got = layer(x.half(), style)
    assert got.dtype == torch.float16
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got.float(), wanted, rtol=0.02, atol=0.02)


def test_autocast_decides_the_dtype():
    layer, x, style = make("none")
    layer, x, style = layer.float(), x.float(), style.float()
    wanted = layer(x, style)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = layer(x, style)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), wanted, rtol=0.05, atol=0.1)


def test_wrong_calls_are_named():
    layer, x, style = make("none")
    with pytest.raises(ValueError, match="needs a style"):
        layer(x)
    constant, x, _ = make("none", style_channels=None)
    with pytest.raises(ValueError, match="takes no style"):
        constant(x, style)
    with pytest.raises(ValueError, match="none, up, down; got 'sideways'"):
        ModulatedConv2d(2, 2, 3, style_channels=None, resample="sideways")
    with pytest.raises(ValueError, match="kernel_size 3; got 1"):
        ModulatedConv2d(2, 2, 1, style_channels=None, resample="up")
