"""The pose discriminator: tables of the paper, both kinds of block, R1's second derivative, the batch statistic."""

from itertools import pairwise

import pytest
import torch

from saccade.models.discriminators import PoseDiscriminator

SMALL = {"image_size": (16, 8), "channels": (8, 6, 4)}


def inputs(batch=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(batch, 3, 16, 8, generator=generator, dtype=dtype) * 2 - 1
    return image, torch.rand(batch, 18, 16, 8, generator=generator, dtype=dtype)


def small(**options):
    torch.manual_seed(0)
    return PoseDiscriminator(**SMALL, **options)


def residual_parameters(channels, area):
    fine = list(reversed(channels))
    total = 21 * fine[0] + fine[0]
    for before, after in pairwise(fine):
        total += 9 * before**2 + before + 9 * before * after + after + before * after
    width = channels[0]
    return total + 9 * (width + 1) * width + width + area * width * width + width + width + 1


def plain_parameters(channels, area):
    fine = list(reversed(channels))
    total = 0
    for before, after in zip([21, *fine], fine, strict=False):
        total += 9 * before * after + after + 9 * after**2 + after
    width = channels[0]
    return total + 9 * (width + 1) * width + width + area * width * width + width + width + 1


@pytest.mark.parametrize(("block", "formula"), [("residual", residual_parameters), ("plain", plain_parameters)])
@pytest.mark.parametrize(
    ("image_size", "channels", "area"),
    [(256, (640, 640, 640, 640, 320, 160), 64), ((512, 256), (768, 768, 768, 512, 256, 128), 128)],
    ids=["256x256", "512x256"],
)
def test_tables_of_the_paper(image_size, channels, area, block, formula):
    with torch.device("meta"):
        net = PoseDiscriminator(image_size=image_size, channels=channels, block=block)
    assert sum(parameter.numel() for parameter in net.parameters()) == formula(channels, area)


@pytest.mark.parametrize("block", ["residual", "plain"])
def test_logits_and_gradients(block):
    net = small(block=block)
    logits = net(*inputs())
    assert logits.shape == (3, 1)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


@pytest.mark.parametrize("block", ["residual", "plain"])
def test_r1_reaches_the_weights(block):
    """R1 differentiates the squared input gradient; finite differences of it along a direction agree."""
    net = small(block=block).double()
    image, pose = inputs(dtype=torch.float64)
    image.requires_grad_()

    def penalty():
        (gradient,) = torch.autograd.grad(net(image, pose).sum(), image, create_graph=True)
        return gradient.square().sum(dim=(1, 2, 3)).mean()

    weight = net.final_conv.weight
    (gradient,) = torch.autograd.grad(penalty(), weight)
    direction = torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    step = 1e-6
    with torch.no_grad():
        weight += step * direction
    above = penalty()
    with torch.no_grad():
        weight -= 2 * step * direction
    below = penalty()
    torch.testing.assert_close((above - below) / (2 * step), (gradient * direction).sum(), rtol=1e-5, atol=1e-9)


def test_both_inputs_matter_and_samples_meet_in_the_statistic():
    net = small()
    image, pose = inputs()
    first = net(image, pose)
    assert (net(image, pose.flip(3)) - first).abs().max() > 1e-5
    other = image.clone()
    other[2] = -other[2]
    assert (net(other, pose)[0] - first[0]).abs() > 1e-7  # through the minibatch standard deviation
    alone = small(stddev_group=1)
    torch.testing.assert_close(alone(other, pose)[0], alone(image, pose)[0], rtol=1e-6, atol=1e-7)


def test_autocast_keeps_the_logit_in_float32():
    net = small()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = net(*inputs())
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, net(*inputs()), rtol=0.1, atol=0.05)


def test_wrong_use_is_named():
    with pytest.raises(ValueError, match="block is one of residual, plain; got 'dense'"):
        small(block="dense")
    with pytest.raises(ValueError, match=r"multiples of 4.*16x8"):
        PoseDiscriminator(image_size=(18, 10), channels=(8, 6, 4))
    net = small()
    image, pose = inputs()
    with pytest.raises(ValueError, match=r"image must be \(3, 3, 16, 8\)"):
        net(image[:, :, :8], pose)
    with pytest.raises(ValueError, match="pose must be"):
        net(image, pose[:2])
