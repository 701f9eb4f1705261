"""The methods of inversion as data: every constant with its source.

"paper": arXiv 1911.12287, section 5. "released": the published inverse_image, which uses the four right-to-left heads
only, norms that are not squared, another normaliser, learning rate and number of starts, and no Lookahead in its loop.
"pixel": Bora et al. 2017 (arXiv 1703.03208), and "generator_weighted", the pixel error weighted by the saliency: the
paper's two baselines, here with the paper's optimiser, so that they differ from it in the loss alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from saccade.geometry import whole_number
from saccade.inversion.saliency_maps import Normaliser, check_normaliser

Space = Literal["features", "pixels"]


@dataclass(frozen=True)
class Method:
    """How to invert.

    Attributes:
        name: of the preset.
        space: where images are compared: the discriminator's map before its attention, or pixels.
        weighted: whether the saliency of the discriminator's attention on the image weighs the comparison.
        squared: squared norms, or norms.
        coupled: with norms, one norm over all starts of an image, as released, in place of one a start.
        heads: of the saliency; None is all.
        normaliser: of the saliency, see `saccade.inversion.saliency_maps`.
        lr, betas, steps: of Adam.
        lookahead: k and alpha, or None.
        seeds: starts of an image.
        truncation: limit of the starts' normal distribution, in sigma.
        patience, gain: a start stops when its loss has not fallen by the share `gain` within `patience` steps; patience
            0 never stops.
    """

    name: str
    space: Space = "features"
    weighted: bool = True
    squared: bool = True
    coupled: bool = False
    heads: tuple[int, ...] | None = None
    normaliser: Normaliser = "queries"
    lr: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    steps: int = 1500
    lookahead: tuple[int, float] | None = (5, 0.5)
    seeds: int = 4
    truncation: float = 2.0
    patience: int = 200
    gain: float = 0.01

    def __post_init__(self) -> None:
        who = f"inversion, method {self.name}"
        for option, least in (("steps", 1), ("seeds", 1), ("patience", 0)):
            number = whole_number(getattr(self, option))
            if number is None or number < least:
                raise ValueError(f"{who}: {option} is a whole number, {least} or more; got {getattr(self, option)!r}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"{who}: lr is above 0; got {self.lr!r}")
        if not 0 <= self.gain < 1:
            raise ValueError(f"{who}: gain is a share, 0 or more and below 1; got {self.gain!r}")
        if self.coupled and (self.squared or self.patience):
            raise ValueError(
                f"{who}: coupled is one norm over all starts, so it needs squared=False, and patience=0, because no "
                f"start may stop before the others; got squared={self.squared}, patience={self.patience}"
            )
        check_normaliser(self.normaliser)

    @property
    def needs_features(self) -> bool:
        """Whether the discriminator is used at all."""
        return self.space == "features" or self.weighted

    def but(self, **changes: Any) -> Method:
        """The method with some attributes changed; those that are None are left as they are."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        # Patience and gain are ours everywhere: the paper says "at most" 1500 steps and 4 starts.
        "paper": Method("paper"),
        "released": Method(
            "released",
            squared=False,
            heads=(0, 1, 2, 3),
            normaliser="attending",
            lr=0.07,
            steps=1000,
            lookahead=None,
            seeds=8,
            patience=0,  # always runs all steps
        ),
        "pixel": Method("pixel", space="pixels", weighted=False),
        "generator_weighted": Method("generator_weighted", space="pixels"),
    }
)


def method_named(name: str) -> Method:
    """A preset.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in METHODS:
        raise ValueError(f"inversion: no method is called {name!r}. Valid here: {', '.join(METHODS)}.")
    return METHODS[name]
