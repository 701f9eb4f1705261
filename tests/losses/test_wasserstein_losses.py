"""WGAN-GP terms against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from saccade.losses.wasserstein import gradient_penalty, wasserstein_critic, wasserstein_generator


def test_values() -> None:
    real, fake = torch.tensor([[1.5], [-2.0]]), torch.tensor([[0.5], [4.0]])
    assert wasserstein_critic(real, fake)["critic"].item() == pytest.approx(2.25 + 0.25)
    assert wasserstein_generator(fake)["gan"].item() == pytest.approx(-2.25)
    half = torch.tensor([60000.0, 60000.0], dtype=torch.float16)
    assert wasserstein_generator(half)["gan"].item() == -60000.0  # the sum does not overflow
    assert wasserstein_critic(half, -half)["critic"].item() == -120000.0


def test_penalty_of_a_linear_critic_is_closed_form_for_each_image() -> None:
    weights = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    images = torch.zeros(3, 1, 2, 2, dtype=torch.float64)
    penalty = gradient_penalty(lambda x: (x * weights).sum((1, 2, 3)), images, images + 1, torch.rand(3))["penalty"]
    assert penalty.item() == pytest.approx((5.0 - 1.0) ** 2)
    # weighted by the mask, the gradient has another norm in every image
    masks = torch.tensor([[[[1.0, 0], [0, 0]]], [[[0, 0], [0, 1.0]]], [[[0, 0], [0, 0]]]], dtype=torch.float64)
    penalty = gradient_penalty(lambda x: (x * weights).sum((1, 2, 3)), images, images, torch.rand(3), masks)["penalty"]
    assert penalty.item() == pytest.approx((4.0 + 9.0 + 1.0) / 3)


def test_penalty_is_taken_between_real_and_fake() -> None:
    # C(x) = sum x^2 / 2 has gradient x: its norm tells where it was taken
    real, fake = torch.full((3, 1, 1, 4), 2.0), torch.full((3, 1, 1, 4), -1.0)
    mix = torch.tensor([1.0, 0.0, 0.25])
    penalty = gradient_penalty(lambda x: x.square().sum((1, 2, 3)) / 2, real, fake, mix)["penalty"]
    at = [2.0, -1.0, 0.25 * 2 - 0.75]
    assert penalty.item() == pytest.approx(sum((2 * abs(x) - 1) ** 2 for x in at) / 3, rel=1e-6)


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1)
        self.second = nn.Linear(3 * 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.second(torch.nn.functional.leaky_relu(self.first(x), 0.2).flatten(1))
        return value


def test_penalty_trains_the_critic_as_finite_differences_say() -> None:
    critic = Critic().double()
    real, fake = torch.randn(2, 2, 4, 4, dtype=torch.float64), torch.randn(2, 2, 4, 4, dtype=torch.float64)
    fake.requires_grad_()
    mix = torch.tensor([0.3, 0.8], dtype=torch.float64)
    penalty = gradient_penalty(critic, real, fake, mix)["penalty"]
    penalty.backward()
    assert fake.grad is None  # it is the critic's own term
    for weight in (critic.first.weight, critic.second.weight):
        place = (0,) * weight.dim()
        found = float(weight.grad[place])  # type: ignore[index]
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                weight[place] += step
                values.append(float(gradient_penalty(critic, real, fake, mix)["penalty"]))
                weight[place] -= step
        assert found == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5, abs=1e-9)
        assert abs(found) > 1e-9
    # a bias behind the last layer moves no gradient
    assert critic.second.bias.grad is None or float(critic.second.bias.grad.abs().max()) == 0


def test_a_critic_without_slope_has_a_finite_gradient() -> None:
    critic = Critic()
    with torch.no_grad():
        critic.second.weight.zero_()
    penalty = gradient_penalty(critic, torch.ones(2, 2, 4, 4), torch.zeros(2, 2, 4, 4), torch.rand(2))["penalty"]
    penalty.backward()
    assert penalty.item() == 1.0
    assert math.isfinite(float(critic.second.weight.grad.abs().sum()))  # type: ignore[union-attr]


def test_wrong_inputs_are_refused() -> None:
    images = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"mix \(B,\); got .*\(3,\)"):
        gradient_penalty(Critic(), images, images, torch.rand(3))
    with pytest.raises(ValueError, match="does not depend on the images"):
        gradient_penalty(lambda x: torch.zeros(2), images, images, torch.rand(2))
    with pytest.raises(ValueError, match="does not depend on the images"):
        gradient_penalty(lambda x: nn.Parameter(torch.zeros(2)), images, images, torch.rand(2))
