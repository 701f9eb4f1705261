"""Equalised learning rate: scales of the initial function, and that lr_mul changes the speed of learning only."""

import pytest
import torch

from saccade.layers.equalised import EqualConv2d, EqualLinear, leaky_relu


def test_initial_output_has_unit_variance():
    torch.manual_seed(0)
    x = torch.randn(16, 40, 12, 12)
    y = EqualConv2d(40, 64, 3)(x)[:, :, 1:-1, 1:-1]
    assert y.var().item() == pytest.approx(1.0, rel=0.05)
    z = EqualLinear(300, 400)(torch.randn(200, 300))
    assert z.var().item() == pytest.approx(1.0, rel=0.05)


def test_leaky_relu_keeps_the_second_moment():
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    # E[y^2] = 2 (1 + 0.2^2) / 2 of a standard normal
    assert leaky_relu(x).square().mean().item() == pytest.approx(1.04, rel=0.02)


@pytest.mark.parametrize("lr_mul", [1.0, 0.01])
def test_lr_mul_leaves_the_initial_function(lr_mul):
    torch.manual_seed(1)
    reference = EqualLinear(5, 7, bias_init=1.0)
    torch.manual_seed(1)
    layer = EqualLinear(5, 7, bias_init=1.0, lr_mul=lr_mul)
    x = torch.randn(3, 5)
    torch.testing.assert_close(layer(x), reference(x))
    # a step of the raw weight moves the function lr_mul times as far
    with torch.no_grad():
        layer.weight += 1.0
        reference.weight += 1.0
        layer.bias += 1.0
        reference.bias += 1.0
    base = EqualLinear(5, 7, bias_init=1.0)
    with torch.no_grad():
        base.weight.copy_(reference.weight - 1.0)
    torch.testing.assert_close(layer(x) - base(x), lr_mul * (reference(x) - base(x)), rtol=1e-3, atol=1e-4)


def test_conv_is_the_scaled_convolution():
    torch.manual_seed(2)
    layer = EqualConv2d(3, 4, 3, stride=2, padding=0, lr_mul=0.5)
    with torch.no_grad():
        layer.bias += 2.0
    x = torch.randn(2, 3, 7, 9)
    wanted = torch.nn.functional.conv2d(x, layer.weight * 0.5 / 27**0.5, torch.full((4,), 1.0), stride=2)
    torch.testing.assert_close(layer(x), wanted)
