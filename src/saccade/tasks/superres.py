"""SuperResolutionTask: pictures s times as large, as CSNLN is trained and scored (arXiv 2006.01424; PSAL, Table 7).

The loss is L1 in [0, 1]. Scores are those of the literature (`saccade.metrics.superres`), and beside them the same of
MATLAB's bicubic, which is what doing nothing clever scores.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from saccade.data.bicubic import matlab_resize
from saccade.data.editing_batches import ResolutionBatch
from saccade.layers.tiling import CHOPS, Chop, upscale
from saccade.losses.reconstruction import l1
from saccade.metrics.pixels import to_uint8
from saccade.metrics.rows import Rows, require_finite
from saccade.metrics.superres import scores
from saccade.tasks.regression import RegressionTask, Terms

GROUP, BASELINE = "superres", "_bicubic"


class SuperResolutionTask(RegressionTask):
    """Train and score a super-resolution network.

    Loss terms: `l1`, the mean absolute error over pixels and colours, pictures in [0, 1].

    Scores, under `superres/`: `psnr_y_shave<s>`, `ssim_y_shave<s>`, `psnr_rgb_shave<s + 6>`, each also `_bicubic`; and
    the headline `mse_y_shave<s>_ratio`: the error over bicubic's, as 10 ** (-gain / 10) of the mean gain in PSNR
    (0.955 is 0.2 dB).

    Args:
        generator: (B, 3, Y, X) in [0, 1] -> (B, 3, sY, sX); offers `scale`.
        discriminator: None.
        chop: how whole pictures are divided when they are scored: "released" or "none" (`saccade.layers.tiling`).
        self_ensemble: score the mean over eight mirrorings.
        regression: the other arguments, of `RegressionTask` and `Task`.

    Raises:
        ValueError: unknown chop, and what `RegressionTask` refuses.
    """

    terms: tuple[str, ...] = ("l1",)
    attention_views = ("low", "network")

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module | None = None,
        *,
        chop: Chop = "released",
        self_ensemble: bool = False,
        **regression: Any,
    ) -> None:
        super().__init__(generator, discriminator, **regression)
        if chop not in CHOPS:
            raise ValueError(f"task.module.chop={chop} is unknown; valid: {', '.join(CHOPS)}")
        self.chop, self.self_ensemble = chop, self_ensemble
        self.scale = int(generator.scale)  # type: ignore[arg-type]
        self.headline = f"{GROUP}/mse_y_shave{self.scale}_ratio"

    def setup(self, stage: str) -> None:
        """Compare the data's scale with the network's.

        Raises:
            ValueError: they differ.
        """
        scale = getattr(getattr(self.trainer, "datamodule", None), "scale", self.scale)
        if scale != self.scale:
            raise ValueError(
                f"task: the network enlarges {self.scale} times, the data are for {scale} times; "
                f"set data.module.scale={self.scale}"
            )

    def loss_terms(self, batch: ResolutionBatch) -> Terms:
        return {"l1": l1(self.generator(_unit(batch.low)), _unit(batch.high))["l1"]}

    def enlarged(self, low: Tensor, chop: Chop | None = None) -> Tensor:
        """The averaged network's pictures (B, 3, sY, sX) of (B, 3, Y, X), both in [-1, 1]."""
        with torch.no_grad():
            high = upscale(
                self.ema.network, _unit(low), self.scale, chop=chop or self.chop, self_ensemble=self.self_ensemble
            )
        return (high.float() * 2 - 1).clamp(-1, 1)

    def score(self, batch: ResolutionBatch) -> Rows:
        target, made = to_uint8(batch.high), self.enlarged(batch.low)
        require_finite("super-resolution scores", made, batch.keys)
        ours = scores(to_uint8(made), target, self.scale)
        plain = scores(bicubic(batch.low, self.scale), target, self.scale)
        columns = {**ours, **{f"{name}{BASELINE}": values for name, values in plain.items()}}
        return {key: {name: float(v[i]) for name, v in columns.items()} for i, key in enumerate(batch.keys)}

    def summary(self, rows: Rows) -> dict[str, float]:
        means = super().summary(rows)
        name = f"psnr_y_shave{self.scale}"
        ratio = 10 ** (-(means[name] - means[f"{name}{BASELINE}"]) / 10)
        found = {f"{GROUP}/{key}": value for key, value in means.items()}
        return {str(self.headline): ratio, **found}

    def samples(self, batch: ResolutionBatch) -> dict[str, dict[str, Tensor]]:
        """The low resolution (its pixels as squares), bicubic, the network's picture, the true one."""
        squares = batch.low.repeat_interleave(self.scale, -1).repeat_interleave(self.scale, -2)
        plain = bicubic(batch.low, self.scale).to(batch.low) * (2 / 255) - 1
        network = self.enlarged(batch.low, "none")
        return {GROUP: {"low": squares, "bicubic": plain, "network": network, "target": batch.high}}


def bicubic(low: Tensor, scale: int) -> Tensor:
    """MATLAB's bicubic enlargement of pictures in [-1, 1]: (B, 3, Y, X) -> (B, 3, sY, sX) uint8."""
    pictures = [matlab_resize(picture.permute(1, 2, 0).cpu().numpy(), scale) for picture in to_uint8(low)]
    return torch.stack([torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures]).to(low.device)


def _unit(images: Tensor) -> Tensor:
    """[-1, 1] as [0, 1]."""
    return (images + 1) / 2
