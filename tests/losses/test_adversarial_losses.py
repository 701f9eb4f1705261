"""GAN terms and R1 against closed forms."""

import math

import pytest
import torch

from saccade.losses import (
    hinge_discriminator,
    hinge_generator,
    logistic_discriminator,
    nonsaturating_generator,
    r1_penalty,
)


def softplus(x):
    return math.log1p(math.exp(x))


def test_logistic_values():
    real, fake = torch.tensor([[1.0], [-2.0]]), torch.tensor([[0.5], [3.0]])
    assert nonsaturating_generator(fake)["gan"].item() == pytest.approx((softplus(-0.5) + softplus(-3.0)) / 2, rel=1e-6)
    terms = logistic_discriminator(real, fake)
    assert terms["d_real"].item() == pytest.approx((softplus(-1.0) + softplus(2.0)) / 2, rel=1e-6)
    assert terms["d_fake"].item() == pytest.approx((softplus(0.5) + softplus(3.0)) / 2, rel=1e-6)


def test_hinge_values():
    real, fake = torch.tensor([[1.5], [-2.0], [0.25]]), torch.tensor([[0.5], [-3.0], [-0.75]])
    terms = hinge_discriminator(real, fake)
    assert terms["d_real"].item() == pytest.approx((0.0 + 3.0 + 0.75) / 3, rel=1e-6)
    assert terms["d_fake"].item() == pytest.approx((1.5 + 0.0 + 0.25) / 3, rel=1e-6)
    assert hinge_generator(fake)["gan"].item() == pytest.approx((-0.5 + 3.0 + 0.75) / 3, rel=1e-6)
    assert sum(hinge_discriminator(torch.zeros(4), torch.zeros(4)).values()) == 2  # one that knows nothing


def test_hinge_teaches_nothing_beyond_the_margin():
    real = torch.tensor([1.5, 0.5], dtype=torch.float64, requires_grad=True)
    fake = torch.tensor([-1.5, -0.5], dtype=torch.float64, requires_grad=True)
    sum(hinge_discriminator(real, fake).values()).backward()
    assert real.grad.tolist() == [0.0, -0.5]
    assert fake.grad.tolist() == [0.0, 0.5]
    hinge_generator(fake)["gan"].backward()
    assert fake.grad.tolist() == [-0.5, 0.0]  # the generator's own is constant


def test_generator_gradient_does_not_vanish_where_the_discriminator_is_sure():
    fake = torch.tensor([-40.0], requires_grad=True)
    nonsaturating_generator(fake)["gan"].backward()
    assert fake.grad.item() == pytest.approx(-1.0)


def test_half_precision_logits_give_float32_terms():
    half = torch.tensor([7.0], dtype=torch.float16)
    hinge = [*hinge_generator(half).values(), *hinge_discriminator(half, half).values()]
    terms = {**nonsaturating_generator(half), **logistic_discriminator(half, half)}
    assert {term.dtype for term in [*terms.values(), *hinge]} == {torch.float32}
    assert terms["d_real"].item() == pytest.approx(softplus(-7.0), rel=1e-5)


def test_r1_of_a_linear_discriminator_is_its_squared_norm():
    torch.manual_seed(0)
    weight = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    images = torch.randn(6, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    penalty = r1_penalty((images * weight).flatten(1).sum(1, keepdim=True), images, gamma=7.0)["r1"]
    assert penalty.item() == pytest.approx(3.5 * weight.square().sum().item(), rel=1e-12)
    penalty.backward()
    assert torch.allclose(weight.grad, 7.0 * weight.detach(), rtol=1e-12)


def test_r1_is_a_mean_over_images():
    # D(x) = |x|^2 / 2 has the gradient x
    images = torch.tensor([[3.0, 4.0], [0.0, 1.0]], requires_grad=True)
    assert r1_penalty(images.square().sum(1) / 2, images, gamma=2.0)["r1"].item() == pytest.approx((25 + 1) / 2)


def test_r1_through_a_network_gradchecks():
    torch.manual_seed(0)
    first, second = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    images = torch.randn(2, 3, dtype=torch.float64)

    def penalty(first, second):
        x = images.clone().requires_grad_()
        return r1_penalty((x @ first.T).tanh() @ second, x)["r1"]

    assert torch.autograd.gradcheck(penalty, (first.requires_grad_(), second.requires_grad_()))


def test_r1_refuses_what_it_cannot_differentiate():
    images = torch.randn(2, 3)
    other = torch.randn(2, 3, requires_grad=True)
    with pytest.raises(ValueError, match="must require a gradient"):
        r1_penalty(other.sum(1), images)
    with pytest.raises(ValueError, match="no graph"):
        r1_penalty(images.sum(1), images.clone().requires_grad_())
    with pytest.raises(ValueError, match="does not depend"):
        r1_penalty(other.sum(1), images.clone().requires_grad_())
