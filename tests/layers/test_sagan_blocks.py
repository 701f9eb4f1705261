"""SAGAN's residual blocks against the plain order of operations (arXiv 1911.12287's release), in float64."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F

from saccade.layers.sagan import (
    DiscriminatorBlock,
    FirstDiscriminatorBlock,
    GeneratorBlock,
    blur_matrix,
    conv_halve,
    double_conv,
    initialise,
)
from saccade.layers.spectral import SpectralConv2d, SpectralEmbedding, SpectralLinear


def maps(channels=4, size=(4, 6)):
    return torch.randn(3, channels, *size, dtype=torch.float64)


def conv(layer, x):
    """The layer's convolution with the same padding at every size."""
    return F.conv2d(x, layer.normalised(), layer.bias, padding=layer.weight.shape[-1] // 2)


def frozen(block):
    """The block in evaluation mode, so that every use has one weight, with biases and moments that are not 0 and 1."""
    block = block.double().eval()
    with torch.no_grad():
        for name, tensor in [*block.named_parameters(), *block.named_buffers()]:
            if name.endswith(("bias", "running_mean")):
                tensor.normal_()
            elif name.endswith("running_var") or ("norm" in name and name.endswith("weight")):
                tensor.uniform_(0.5, 2)
    return block


def test_folded_resampling_is_the_plain_one():
    x, weight, bias = maps(), torch.randn(5, 4, 3, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    layer = SpectralConv2d(4, 5, 3, padding=1, form="none").double()
    layer.load_state_dict({"weight": weight, "bias": bias, "u": layer.u})
    doubled = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)
    torch.testing.assert_close(double_conv(x, layer, blur_matrix(turned=True)), doubled)
    torch.testing.assert_close(
        conv_halve(x, layer, blur_matrix(turned=False)), F.avg_pool2d(F.conv2d(x, weight, bias, padding=1), 2)
    )


@pytest.mark.parametrize("classes", [None, 3])
def test_generator_block(classes):
    block = frozen(GeneratorBlock(4, 5, classes=classes))
    x, labels = maps(), None if classes is None else torch.tensor([0, 2, 1])
    y = F.interpolate(F.relu(block.norm0(x, labels)), scale_factor=2, mode="nearest")
    y = conv(block.conv1, F.relu(block.norm1(conv(block.conv0, y), labels)))
    expected = y + conv(block.shortcut, F.interpolate(x, scale_factor=2, mode="nearest"))
    torch.testing.assert_close(block(x, labels), expected)
    same = GeneratorBlock(4, 4, classes=classes)
    assert same.shortcut.weight.shape == (4, 4, 1, 1)  # always there


def test_first_discriminator_block():
    block = frozen(FirstDiscriminatorBlock(3, 5))
    x = maps(3)
    expected = F.avg_pool2d(conv(block.conv1, F.relu(conv(block.conv0, x))), 2)
    torch.testing.assert_close(block(x), expected + conv(block.shortcut, F.avg_pool2d(x, 2)))


@pytest.mark.parametrize(("out", "down"), [(5, True), (4, True), (4, False), (5, False)])
def test_discriminator_block(out, down):
    block = frozen(DiscriminatorBlock(4, out, down=down))
    x = maps()
    pool = nn.AvgPool2d(2) if down else nn.Identity()
    expected = pool(conv(block.conv1, F.relu(conv(block.conv0, F.relu(x)))))
    before = x.clone()
    assert (block.shortcut is None) == (out == 4 and not down)
    short = x if block.shortcut is None else pool(conv(block.shortcut, x))
    torch.testing.assert_close(block(x), expected + short)
    assert torch.equal(x, before)  # the first ReLU is not in place


@pytest.mark.parametrize("make", [lambda: FirstDiscriminatorBlock(3, 4), lambda: DiscriminatorBlock(3, 4)])
def test_odd_sides_are_refused(make):
    with pytest.raises(ValueError, match=r"both sides must be even to be halved; got 5x4"):
        make()(torch.zeros(1, 3, 5, 4))


def test_xavier_is_uniform_within_its_bound():
    net = nn.ModuleList([SpectralConv2d(8, 24, 3), SpectralLinear(64, 32), SpectralEmbedding(40, 24)])
    initialise(net, "xavier")
    for layer, fans in zip(net, (9 * 32, 96, 64), strict=True):
        bound = (6 / fans) ** 0.5
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
        assert not getattr(layer, "bias", torch.zeros(1)).any()


def test_orthogonal_weights_and_unknown_ways():
    layer = SpectralLinear(16, 8)
    initialise(layer, "orthogonal")
    torch.testing.assert_close(layer.weight @ layer.weight.T, torch.eye(8))
    with pytest.raises(ValueError, match=r"init is one of xavier, orthogonal; got 'normal'"):
        initialise(layer, "normal")


def test_a_pass_without_data_leaves_nothing_behind():
    with FakeTensorMode():
        assert isinstance(GeneratorBlock(4, 4, classes=None)(torch.zeros(2, 4, 4, 4)), FakeTensor)
    assert not isinstance(GeneratorBlock(4, 4, classes=None)(torch.zeros(2, 4, 4, 4)), FakeTensor)
