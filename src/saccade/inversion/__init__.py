"""GAN inversion through the discriminator's attention, and saliency of attention maps: "Your Local GAN".

Source: arXiv 1911.12287, section 5 and its appendix; constants of the released code are named as such.
"""

from __future__ import annotations

from saccade.inversion.lookahead import Lookahead
from saccade.inversion.method import METHODS, Method, method_named
from saccade.inversion.saliency_maps import NORMALISERS, Normaliser, attention_rows, project, saliency
from saccade.inversion.samples import Samples, own_samples
from saccade.inversion.search import Inversion, invert

__all__ = [
    "METHODS",
    "NORMALISERS",
    "Inversion",
    "Lookahead",
    "Method",
    "Normaliser",
    "Samples",
    "attention_rows",
    "invert",
    "method_named",
    "own_samples",
    "project",
    "saliency",
]
