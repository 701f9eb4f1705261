"""Pose transfer: L_per + L_self + L_GAN (GPA, arXiv 2107.03742, section 3.3 and Table 1).

L_per compares G(M1, B1, B2) with the true picture M2, L_self is the distortion task's term on the same batch, and the
discriminator sees (M1, B1) as real and (G(M1, B1, B2), B2) as generated. Unpaired batches (Fig. 8) carry a random pose
as B2 and no true picture: L_per is left out for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from saccade.data.batches import PoseBatch
from saccade.data.pose import figure_mask
from saccade.geometry import Size
from saccade.metrics.pairs import PLAIN_METRICS
from saccade.tasks.adversarial import AdversarialTask, Terms
from saccade.tasks.distortion import DistortionTask
from saccade.tasks.scores import TransferScores


class PoseTransferTask(DistortionTask):
    """Train a pose-morphing generator on pairs.

    Loss terms: those of `DistortionTask` (L_self), `per_l1`, `per_vgg` (L_per), `gan` and the discriminator's.

    Args:
        scores: metrics of generated against true pictures; None takes those that need no network weights.
        distortion: the other arguments, of `DistortionTask`, `AdversarialTask` and `Task`.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module | None = None,
        *,
        scores: TransferScores | None = None,
        **distortion: Any,
    ) -> None:
        super().__init__(generator, discriminator, **distortion)
        self.scores = scores or TransferScores()
        self.baseline = TransferScores(names=PLAIN_METRICS)  # what leaving the source unchanged scores
        self._generated: Tensor | None = None

    terms = (*AdversarialTask.terms, *DistortionTask.terms, "per_l1", "per_vgg")

    @property
    def trains_transfer(self) -> bool:
        """Whether any term beside L_self has a weight."""
        return any(self.weights[name] for name in ("per_l1", "per_vgg", "gan"))

    def generator_passes(self, batch: PoseBatch) -> Iterator[Callable[[], Terms]]:
        if self.weights["self_l1"] or self.weights["self_vgg"]:
            yield lambda: self.self_terms(batch)
        if self.trains_transfer:
            yield lambda: self.transfer_terms(batch)

    def transfer_terms(self, batch: PoseBatch) -> Terms:
        """L_per, where a true picture exists, and the generator's side of L_GAN, of one generated batch."""
        source, target = self.poses(batch)
        generated = self.generator(batch.source_image, source, target)
        self._generated = generated.detach()
        terms = self.image_terms("per", generated, batch.target_image) if batch.paired else {}
        return {**terms, **self.adversarial_terms(generated, target)}

    def discriminator_inputs(self, batch: PoseBatch) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        if self._generated is None:
            raise RuntimeError("the discriminator trains on the generator's pictures of the same step")
        generated, self._generated = self._generated, None
        source, target = self.poses(batch)
        return (batch.source_image, source), (generated, target)

    def poses(self, batch: PoseBatch) -> tuple[Tensor, Tensor]:
        """Heatmaps of source and target, (B, 18, Y, X) each."""
        source = self.pose(batch.source_keypoints, batch.source_image)
        return source, self.pose(batch.target_keypoints, batch.source_image)

    # ------------------------------------------------------------------ evaluation

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        for scores in (self.scores, self.baseline):
            scores.begin(self.trainer.datamodule, self.device)  # type: ignore[attr-defined]

    def validation_step(self, batch: PoseBatch, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        sample = self.transfer_sample(batch)
        self.scores.update(sample["generated"], sample["target"], sample["mask"], batch.keys)
        self.baseline.update(sample["source"], sample["target"], sample["mask"], batch.keys)

    def on_validation_epoch_end(self) -> None:
        transfer = {f"transfer/{name}": value for name, value in self.scores.compute().items()}
        baseline = {f"transfer/{name}_unchanged": value for name, value in self.baseline.compute().items()}
        self.log_evaluation({**self.distortion_metrics(), **transfer, **baseline})

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def provenance(self) -> dict[str, Any]:
        return {**super().provenance(), "metrics": self.scores.provenance()}

    # ------------------------------------------------------------------ pictures

    def transfer_sample(self, batch: PoseBatch) -> dict[str, Tensor]:
        """source, target, generated, keypoints of both and the target figure's mask."""
        with torch.no_grad():
            generated = self.ema.network(batch.source_image, *self.poses(batch)).float().clamp(-1, 1)
        return {
            "source": batch.source_image,
            "target": batch.target_image,
            "generated": generated,
            "source_keypoints": batch.source_keypoints,
            "target_keypoints": batch.target_keypoints,
            "mask": figure_mask(batch.target_keypoints, Size(*batch.source_image.shape[-2:])).float(),
        }

    def samples(self, batch: PoseBatch) -> dict[str, dict[str, Tensor]]:
        transfer, distortion = {"transfer": self.transfer_sample(batch)}, super().samples(batch)
        return {**transfer, **distortion} if self.trains_transfer else {**distortion, **transfer}
