"""Losses: functions and modules that return named scalar terms, which ``weighted_sum`` adds by the caller's weights."""

from saccade.losses.adversarial import (
    hinge_discriminator,
    hinge_generator,
    logistic_discriminator,
    nonsaturating_generator,
    r1_penalty,
)
from saccade.losses.perceptual import VGGPerceptual
from saccade.losses.reconstruction import l1, masked_l1
from saccade.losses.terms import weighted_sum

__all__ = [
    "VGGPerceptual",
    "hinge_discriminator",
    "hinge_generator",
    "l1",
    "logistic_discriminator",
    "masked_l1",
    "nonsaturating_generator",
    "r1_penalty",
    "weighted_sum",
]
