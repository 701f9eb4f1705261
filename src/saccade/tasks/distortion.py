"""The distortion task: G(M, B, tau(B)) = tau(M) for random affine maps tau (GPA, arXiv 2107.03742, L_self and Fig. 5).

tau is the identity plus U(-0.15, 0.15) on its matrix entries, drawn for each picture and step, on the device, and moves
picture and heatmaps alike. The evaluation uses fixed maps on held-out pictures and compares with leaving the source
unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from saccade.data.affine import Padding, random_affine, warp, warp_keypoints
from saccade.data.batches import PoseBatch
from saccade.data.pose import figure_mask, heatmaps
from saccade.geometry import Size
from saccade.losses.perceptual import VGGPerceptual
from saccade.losses.reconstruction import l1
from saccade.losses.terms import weighted_sum
from saccade.tasks.adversarial import AdversarialTask, Terms
from saccade.tasks.base import step_seed

PICTURES = 8


class DistortionTask(AdversarialTask):
    """L_self alone: learn to copy detail to where an affine map moves it.

    Loss terms: `self_l1` and `self_vgg` (summed over the layers of the perceptual loss, each logged).

    Args:
        generator: (source image, source heatmaps, target heatmaps) -> image.
        discriminator: None for this task.
        perceptual: distance in a feature space, returning named terms; None leaves it out.
        sigma: of the heatmaps, in pixels; None scales 6 px by rows / 256.
        affine: magnitude of tau's noise.
        moved_heatmaps: "warped" moves the heatmaps as pictures; "redrawn" draws them anew at the moved points.
        padding: what tau brings in from beyond the picture's border.
        adversarial: the other arguments, of `AdversarialTask` and `Task`.
    """

    headline: str | None = "distortion/ratio_figure"
    attention_views = ("source", "generated")
    terms: tuple[str, ...] = ("self_l1", "self_vgg")

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module | None = None,
        *,
        perceptual: VGGPerceptual | None = None,
        sigma: float | None = None,
        affine: float = 0.15,
        moved_heatmaps: Literal["warped", "redrawn"] = "warped",
        padding: Padding = "border",
        **adversarial: Any,
    ) -> None:
        super().__init__(generator, discriminator, **adversarial)
        if moved_heatmaps not in ("warped", "redrawn"):
            raise ValueError(f"moved_heatmaps must be 'warped' or 'redrawn'; got {moved_heatmaps!r}")
        self.perceptual = perceptual
        self.sigma, self.affine, self.moved_heatmaps, self.padding = sigma, affine, moved_heatmaps, padding
        self._sums: dict[str, float] = {}

    # ------------------------------------------------------------------ training

    def generator_passes(self, batch: PoseBatch) -> Iterator[Callable[[], Terms]]:
        yield lambda: self.self_terms(batch)

    def discriminator_inputs(self, batch: PoseBatch) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        raise RuntimeError("the distortion task has no discriminator; choose task=pose_transfer for one")

    def self_terms(self, batch: PoseBatch) -> Terms:
        """L_self on freshly drawn maps."""
        theta = random_affine(len(batch), self.affine, device=self.device)
        source, moved, target = self.moved(batch, theta)
        generated = self.generator(batch.source_image, source, moved)
        return self.image_terms("self", generated, target)

    def image_terms(self, prefix: str, generated: Tensor, target: Tensor) -> Terms:
        """`<prefix>_l1` and, if a perceptual loss is set and weighted, `<prefix>_vgg`."""
        terms: Terms = {}
        if self.weights[f"{prefix}_l1"] != 0:
            terms[f"{prefix}_l1"] = l1(generated, target)["l1"]
        if self.perceptual is not None and self.weights[f"{prefix}_vgg"] != 0:
            layers = self.perceptual(generated, target)
            self.log_dict({f"loss/{prefix}_{name}": value.detach() for name, value in layers.items()})
            terms[f"{prefix}_vgg"] = weighted_sum(layers, self.perceptual.term_weights)
        return terms

    def pose(self, keypoints: Tensor, image: Tensor) -> Tensor:
        """(B, 18, Y, X) heatmaps at the size of the pictures."""
        return heatmaps(keypoints, Size(*image.shape[-2:]), self.sigma)

    def moved(self, batch: PoseBatch, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Source heatmaps, tau's heatmaps and tau's picture."""
        image = batch.source_image
        source = self.pose(batch.source_keypoints, image)
        if self.moved_heatmaps == "warped":
            moved = warp(source, theta, padding="zeros")
        else:
            points = warp_keypoints(batch.source_keypoints, theta, Size(*image.shape[-2:]))
            moved = self.pose(points, image)
        return source, moved, warp(image, theta, padding=self.padding)

    def provenance(self) -> dict[str, Any]:
        return {} if self.perceptual is None else {"perceptual": dict(self.perceptual.provenance)}

    # ------------------------------------------------------------------ evaluation

    def fixed_affine(self, batch: PoseBatch, index: int) -> Tensor:
        """The evaluation's map of each picture: a function of the batch's place in the test list alone."""
        generator = torch.Generator().manual_seed(step_seed(0xD157, index))
        return random_affine(len(batch), self.affine, generator, device=self.device)

    def on_validation_epoch_start(self) -> None:
        self._sums = {}

    def validation_step(self, batch: PoseBatch, batch_idx: int) -> None:
        self.add_distortion(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self.log_evaluation(self.distortion_metrics())

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def add_distortion(self, batch: PoseBatch, batch_idx: int) -> None:
        """Errors of the averaged generator, and of the unchanged source, on fixed maps."""
        source, moved, target = self.moved(batch, self.fixed_affine(batch, batch_idx))
        generated = self.ema.network(batch.source_image, source, moved).float().clamp(-1, 1)
        mask = self.moved_mask(batch, batch_idx)
        for name, picture in (("", generated), ("_unchanged", batch.source_image)):
            error = (picture - target).abs().mean(1, keepdim=True)  # (B, 1, Y, X)
            self._add(f"l1{name}", float(error.sum()), error.numel())
            self._add(f"l1_figure{name}", float((error * mask).sum()), float(mask.sum()))

    def moved_mask(self, batch: PoseBatch, batch_idx: int) -> Tensor:
        """The figure's mask, moved by the evaluation's map: (B, 1, Y, X) of 0 and 1."""
        mask = figure_mask(batch.source_keypoints, Size(*batch.source_image.shape[-2:])).float()
        return (warp(mask, self.fixed_affine(batch, batch_idx), padding="zeros") > 0.5).float()

    def distortion_metrics(self) -> dict[str, float]:
        """`distortion/l1*` in [-1, 1] units, in the figure and in all, and their ratios to the unchanged source."""
        means = {
            f"distortion/{name}": self._mean(name)
            for name in ("l1", "l1_figure", "l1_unchanged", "l1_figure_unchanged")
        }
        means["distortion/ratio"] = means["distortion/l1"] / max(means["distortion/l1_unchanged"], 1e-12)
        means["distortion/ratio_figure"] = means["distortion/l1_figure"] / max(
            means["distortion/l1_figure_unchanged"], 1e-12
        )
        return means

    def _add(self, name: str, value: float, count: float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value
        self._sums[f"{name}#"] = self._sums.get(f"{name}#", 0.0) + count

    def _mean(self, name: str) -> float:
        totals = torch.tensor([self._sums.get(name, 0.0), self._sums.get(f"{name}#", 0.0)], dtype=torch.float64)
        if self.trainer.world_size > 1:
            totals = self.trainer.strategy.reduce(totals.to(self.device), reduce_op="sum").cpu()
        return float(totals[0] / totals[1].clamp(min=1e-12))

    # ------------------------------------------------------------------ pictures

    def picture_batch(self) -> PoseBatch:
        """The same few test pairs every time."""
        return self.trainer.datamodule.preview(PICTURES)  # type: ignore[attr-defined,no-any-return]

    def samples(self, batch: PoseBatch) -> dict[str, dict[str, Tensor]]:
        """Sample pictures by name of the task they show, the main one first."""
        return {"distortion": self.distortion_sample(batch)}

    def distortion_sample(self, batch: PoseBatch) -> dict[str, Tensor]:
        """source, target, generated, keypoints of both and the figure's mask, for the batch moved by fixed maps."""
        with torch.no_grad():
            theta = self.fixed_affine(batch, 0)
            source, moved, target = self.moved(batch, theta)
            generated = self.ema.network(batch.source_image, source, moved).float().clamp(-1, 1)
        size = Size(*batch.source_image.shape[-2:])
        return {
            "source": batch.source_image,
            "target": target,
            "generated": generated,
            "source_keypoints": batch.source_keypoints,
            "target_keypoints": warp_keypoints(batch.source_keypoints, theta, size),
            "mask": self.moved_mask(batch, 0),
        }
