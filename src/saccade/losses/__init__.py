"""Losses: functions and modules that return named scalar terms, which ``weighted_sum`` adds by the caller's weights."""

from saccade.losses.adversarial import (
    hinge_discriminator,
    hinge_generator,
    logistic_discriminator,
    nonsaturating_generator,
    r1_penalty,
)
from saccade.losses.discounted import discounted_l1
from saccade.losses.perceptual import VGGPerceptual
from saccade.losses.reconstruction import l1, masked_l1
from saccade.losses.terms import weighted_sum
from saccade.losses.wasserstein import gradient_penalty, wasserstein_critic, wasserstein_generator

__all__ = [
    "VGGPerceptual",
    "discounted_l1",
    "gradient_penalty",
    "hinge_discriminator",
    "hinge_generator",
    "l1",
    "logistic_discriminator",
    "masked_l1",
    "nonsaturating_generator",
    "r1_penalty",
    "wasserstein_critic",
    "wasserstein_generator",
    "weighted_sum",
]
