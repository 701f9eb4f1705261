"""SSIM under the protocols that the pose-transfer literature uses.

All are computed by scikit-image on uint8 RGB, K1 = .01, K2 = .03, per image. They differ in window, covariance, data
range and in the region that is looked at, and the region moves the value most: the published 0.75-0.77 come from
256x256 images whose outer 40 columns on each side are constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from saccade.geometry import Size

Image = NDArray[np.uint8]

_SQUARE = Size(256, 256)
_NARROW = Size(256, 176)
_BORDER = 40
_WHITE = 255


@dataclass(frozen=True)
class SSIMProtocol:
    """One way to compute SSIM.

    Attributes:
        name: what it is asked for by; ``label`` adds the size.
        window: side of the window; with ``gaussian`` 11 (sigma 1.5 truncated at 3.5 sigma).
        gaussian: Gaussian weights and no sample covariance; else a uniform window with sample covariance.
        data_range: ``generated`` is max - min of the generated image (a quirk of the published code); ``255`` is fixed.
        region: ``all``; ``centre176``, the middle 176 columns of 256x256; ``repadded``, those with 40 white columns on
            each side (a 256x176 image is padded only).
    """

    name: str
    window: int
    gaussian: bool
    data_range: Literal["generated", "255"] = "255"
    region: Literal["all", "centre176", "repadded"] = "all"

    def reason_against(self, size: Size) -> str | None:
        """Why this protocol is not defined at a size, or None."""
        if self.region == "centre176" and size != _SQUARE:
            return f"{self.name} needs 256x256 images, these are {size}"
        if self.region == "repadded" and size not in (_SQUARE, _NARROW):
            return f"{self.name} needs 256x256 or 256x176 images, these are {size}"
        if min(self._seen(size)) < self.window:
            return f"{self.name} needs sides of at least {self.window}, these are {size}"
        return None

    def label(self, size: Size) -> str:
        """The metric's name in a record: ``ssim_patn`` means 256x256 by itself, all others get the size they see."""
        if self.region == "repadded":
            return self.name
        return f"{self.name.removesuffix('_176')}_{self._seen(size)}"

    def score(self, generated: Image, target: Image) -> float:
        """SSIM of one pair of (Y, X, 3) uint8 images.

        Raises:
            ValueError: not uint8 RGB of one shape, or of a size the protocol is not defined at.
        """
        if generated.shape != target.shape or generated.dtype != np.uint8 or target.dtype != np.uint8:
            raise ValueError(
                f"{self.name}: images must be uint8 of one shape; got {generated.dtype} {generated.shape} and "
                f"{target.dtype} {target.shape}"
            )
        if generated.ndim != 3 or generated.shape[2] != 3:
            raise ValueError(f"{self.name}: images must be (Y, X, 3); got {generated.shape}")
        reason = self.reason_against(Size(*generated.shape[:2]))
        if reason:
            raise ValueError(reason)
        generated, target = self._look(generated), self._look(target)
        options: dict[str, Any] = {"channel_axis": 2, "data_range": self._range(generated)}
        if self.gaussian:
            options |= {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        else:
            options |= {"win_size": self.window}
        return float(structural_similarity(target, generated, **options))

    def _seen(self, size: Size) -> Size:
        return {"all": size, "centre176": _NARROW, "repadded": _SQUARE}[self.region]

    def _look(self, image: Image) -> Image:
        if self.region == "all":
            return image
        centre = image if image.shape[1] == _NARROW.cols else image[:, _BORDER : _BORDER + _NARROW.cols]
        if self.region == "centre176":
            return centre
        return np.pad(centre, ((0, 0), (_BORDER, _BORDER), (0, 0)), constant_values=_WHITE)

    def _range(self, generated: Image) -> float:
        if self.data_range == "255":
            return 255.0
        # A constant image has no range, and SSIM with range 0 is 0/0.
        return float(int(generated.max()) - int(generated.min())) or 255.0


def _family(*protocols: SSIMProtocol) -> Mapping[str, SSIMProtocol]:
    return MappingProxyType({protocol.name: protocol for protocol in protocols})


SSIM_PROTOCOLS = _family(
    # PATN tool/getMetrics_fashion.py; XingGAN and DIOR the same: the number that papers quote
    SSIMProtocol("ssim_patn", 11, True, "generated", "repadded"),
    SSIMProtocol("ssim_patn_range255", 11, True, "255", "repadded"),
    # DSC test.py on 256x256; GFLA's "SSIM_256" at the size given
    SSIMProtocol("ssim_gaussian", 11, True, "generated"),
    SSIMProtocol("ssim_gaussian_176", 11, True, "generated", "centre176"),
    # scikit-image's defaults: PG2 and BFT on 256x256
    SSIMProtocol("ssim_default", 7, False),
    SSIMProtocol("ssim_default_176", 7, False, "255", "centre176"),
    # GFLA script/metrics.py
    SSIMProtocol("ssim_window51", 51, False),
    SSIMProtocol("ssim_window51_176", 51, False, "255", "centre176"),
)
"""Every SSIM protocol by name."""
