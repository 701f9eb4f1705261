"""Inpainting with a two-stage network and WGAN-GP critics (Yu et al., arXiv 1801.07892), as PSAL trains it.

PSAL (arXiv 2202.03163, section 4.4) retrains with the PyTorch port of that code: 800,000 iterations of batch 16, each a
critic step, every fifth of them a generator step as well. Images seen count every iteration, so those are 12.8 million
images, 800,000 critic steps and 160,000 generator steps; both numbers are logged.

Like the port, the generator's step uses the forward pass of its iteration; unlike it, the critics judge it after their
own step (the port differentiates through weights that were changed in between, which PyTorch refuses).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from saccade.data.editing_batches import ImageBatch
from saccade.data.masks import Holes, HoleSource
from saccade.geometry import Size
from saccade.losses.discounted import discounted_l1
from saccade.losses.reconstruction import masked_l1
from saccade.losses.wasserstein import gradient_penalty, wasserstein_critic, wasserstein_generator
from saccade.metrics.inpainting import BASELINE, inpainting_rows
from saccade.metrics.rows import Rows, column_means
from saccade.tasks.base import OptimiserFactory, step_seed
from saccade.tasks.regression import RegressionTask, Terms

Recipe = Literal["pytorch", "tensorflow"]
RECIPES: tuple[Recipe, ...] = ("pytorch", "tensorflow")
_MIX = 0x6D6978  # keeps the penalty's random numbers apart from the other ones of a step
WHITE = 1.0

WEIGHTS: Mapping[str, float] = {
    "l1_coarse": 1.44,  # 1.2 of the l1 terms times 1.2 of the coarse stage, as both released codes
    "l1_fine": 1.2,
    "ae_coarse": 1.44,
    "ae_fine": 1.2,
    "gan_local": 0.001,
    "gan_whole": 0.001,
    "critic_local": 1.0,
    "critic_whole": 1.0,
    "penalty_local": 10.0,
    "penalty_whole": 10.0,
}
GENERATOR_TERMS = tuple(WEIGHTS)[:6]


class Inpainted(Protocol):
    """What an inpainting network returns: (B, 3, Y, X) each, in [-1, 1].

    Attributes:
        coarse, fine: the predictions of both stages for all pixels.
        completed: `fine` in the hole and the given picture elsewhere.
    """

    coarse: Tensor
    fine: Tensor
    completed: Tensor


class InpaintingTask(RegressionTask):
    """Train an inpainting network, against a local and a global critic if they are given.

    Loss terms: `l1_*`, the discounted l1 of each stage in the box; `ae_*`, its l1 on the known pixels; `gan_*`, what
    each critic makes of the completed picture; `critic_*` and `penalty_*`, the critics' own.

    Args:
        generator: (pictures, masks) -> `Inpainted`; the pictures come with 0 in the hole.
        discriminator: offers `local` (what a box holds) and `whole` (a picture), each -> one value a picture; None
            trains on the l1 terms alone, and every step is a generator step.
        generator_optimiser, discriminator_optimiser: factories; the second is needed with a discriminator.
        holes: draws the holes of the training.
        test_holes: draws those of evaluations and sample pictures, for each picture by its name.
        weights: of the terms; those that are not named count as in `WEIGHTS`, the released ones.
        critic_steps: iterations for one generator step; each is a critic step.
        gamma: discount of the l1 with the depth in the box; 1 has none.
        recipe: "pytorch" is the port: l1 of the pasted predictions, ae as a mean over all pixels, the penalty's norm
            over all pixels. "tensorflow" is the authors' code: l1 of the bare predictions in the whole box, ae as a
            mean over known pixels, the norm over the hole.
        evaluation_seed: with a picture's name, it decides its test hole.
        base: `ema_half_life`, `ema_rampup`, `ema_from` of `RegressionTask`, and the arguments of `Task`.

    Raises:
        ValueError: an option out of its range, or a missing optimiser.
    """

    steps: Tensor
    generator_steps: Tensor
    last_terms: Tensor
    headline: str | None = f"l2_hole_ratio_to_{BASELINE}"
    terms: tuple[str, ...] = tuple(WEIGHTS)
    attention_views = ("input", "completed")

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module | None = None,
        *,
        generator_optimiser: OptimiserFactory,
        holes: HoleSource,
        test_holes: HoleSource,
        discriminator_optimiser: OptimiserFactory | None = None,
        weights: Mapping[str, float] | None = None,
        critic_steps: int = 5,
        gamma: float = 0.9,
        recipe: Recipe = "pytorch",
        evaluation_seed: int = 0,
        **base: Any,
    ) -> None:
        super().__init__(
            generator, generator_optimiser=generator_optimiser, weights={**WEIGHTS, **(weights or {})}, **base
        )
        if discriminator is not None and discriminator_optimiser is None:
            raise ValueError("task: the critics need an optimiser; set task.module.discriminator_optimiser")
        if critic_steps < 1:
            raise ValueError(f"task: critic_steps is 1 or more; got {critic_steps}")
        if not 0 < gamma <= 1:
            raise ValueError(f"task: gamma is above 0 and at most 1 (no discount); got {gamma}")
        if recipe not in RECIPES:
            raise ValueError(f"task: recipe={recipe} is unknown; valid: {', '.join(RECIPES)}")
        self.discriminator, self.discriminator_optimiser = discriminator, discriminator_optimiser
        self.holes, self.test_holes, self.evaluation_seed = holes, test_holes, evaluation_seed
        self.critic_steps = critic_steps if discriminator is not None else 1
        self.gamma, self.recipe = gamma, recipe
        for counter in ("steps", "generator_steps"):
            self.register_buffer(counter, torch.zeros((), dtype=torch.int64))
        # of the last generator step, logged at every step: a curve whose steps are few keeps its value in between
        self._logged = GENERATOR_TERMS[: 4 if discriminator is None else None]
        self.register_buffer("last_terms", torch.zeros(len(self._logged)))

    # ------------------------------------------------------------------ training

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        optimisers = [self.with_initial_lr(self.generator_optimiser(self.generator.parameters()))]
        if self.discriminator is not None and self.discriminator_optimiser is not None:
            optimisers.append(self.with_initial_lr(self.discriminator_optimiser(self.discriminator.parameters())))
        return optimisers

    def training_step(self, batch: ImageBatch, batch_idx: int) -> None:
        self.begin_step(len(batch))
        holes = self.training_holes(batch)
        generates = (int(self.steps) + 1) % self.critic_steps == 0
        with torch.set_grad_enabled(generates):
            output = self.complete(self.generator, batch.images, holes)
        optimisers = self._optimisers()
        if self.discriminator is not None:
            self._train_critics(self.discriminator, batch.images, output.completed.detach(), holes, optimisers[1])
        if generates:
            self._train_generator(batch.images, output, holes, optimisers[0])
        images = self.end_step(len(batch))
        self.steps += 1
        self.generator_steps += generates
        self._log_steps(generates)
        if generates:
            self.ema.update(self.generator, images_seen=int(self.images_seen), images_step=images * self.critic_steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["gradient_norms"] = dict(self.gradient_norms)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.gradient_norms = dict(checkpoint.get("gradient_norms", {}))

    def _log_steps(self, generates: bool) -> None:
        self.log("generator_steps", self.generator_steps.double())
        if not generates and "generator" in self.gradient_norms:
            self.log("gradient_norm/generator", self.gradient_norms["generator"])  # as `last_terms`
        if self.discriminator is not None:
            self.log("critic_steps", self.steps.double())
        if self.generator_steps > 0:
            self.log_dict({f"loss/{name}": self.last_terms[index] for index, name in enumerate(self._logged)})

    def training_holes(self, batch: ImageBatch) -> Holes:
        """The holes of this rank's part of the global batch: functions of the seed and of images seen."""
        seen, count = int(self.images_seen), len(batch)
        first = seen + self.global_rank * count
        size = Size(*batch.images.shape[2:])
        return self.holes.draw(size, range(first, first + count), seed=self.seed, batch=seen).to(self.device)

    def complete(self, network: Callable[..., Inpainted], images: Tensor, holes: Holes) -> Inpainted:
        """Run a network on pictures (B, 3, Y, X) without what their holes hide."""
        return network(holes.paste(torch.zeros_like(images), images), holes.masks)

    def loss_terms(self, batch: ImageBatch) -> Terms:
        """The generator's terms on freshly drawn holes."""
        holes = self.training_holes(batch)
        return self.generator_terms(batch.images, self.complete(self.generator, batch.images, holes), holes)

    def generator_terms(self, images: Tensor, output: Inpainted, holes: Holes) -> Terms:
        """`l1_*` and `ae_*` of both stages and, with critics, `gan_*`."""
        known = 1.0 - holes.masks
        share = known.mean() if self.recipe == "pytorch" else 1.0
        terms: Terms = {}
        for stage, predicted in (("coarse", output.coarse), ("fine", output.fine)):
            shown = holes.paste(predicted, images) if self.recipe == "pytorch" else predicted
            terms[f"l1_{stage}"] = discounted_l1(holes.crops(shown), holes.crops(images), self.gamma)["l1_discounted"]
            terms[f"ae_{stage}"] = masked_l1(predicted, images, known)["l1_masked"] * share
        if self.discriminator is not None:
            for name, view in self._views(output.completed, holes).items():
                terms |= _named(name, wasserstein_generator(getattr(self.discriminator, name)(view)))
        return terms

    def critic_terms(self, critics: nn.Module, images: Tensor, completed: Tensor, holes: Holes, mix: Tensor) -> Terms:
        """`critic_*` and `penalty_*`.

        Args:
            completed: detached.
            mix: (2, B) shares of the real picture, of the local and of the global penalty.
        """
        real, fake = self._views(images, holes), self._views(completed.to(images.dtype), holes)
        masks: dict[str, Tensor] = self._views(holes.masks, holes) if self.recipe == "tensorflow" else {}
        terms: Terms = {}
        for row, name in enumerate(real):
            critic = getattr(critics, name)
            terms |= _named(name, wasserstein_critic(critic(real[name]), critic(fake[name])))
            terms |= _named(name, gradient_penalty(critic, real[name], fake[name], mix[row], masks.get(name)))
        return terms

    def _views(self, maps: Tensor, holes: Holes) -> dict[str, Tensor]:
        return {"local": holes.crops(maps), "whole": maps}

    def _train_critics(
        self, critics: nn.Module, images: Tensor, completed: Tensor, holes: Holes, optimiser: Any
    ) -> None:
        critics.requires_grad_(True)
        terms = self.critic_terms(critics, images, completed, holes, self._mix(len(images)))
        finite = self.backward_terms(terms, self.weights)
        self.guarded_step("discriminator", optimiser, list(critics.parameters()), finite)

    def _train_generator(self, images: Tensor, output: Inpainted, holes: Holes, optimiser: Any) -> None:
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)
        terms = self.generator_terms(images, output, holes)
        finite = self.backward_terms(terms, self.weights, log=False)
        self.last_terms.copy_(torch.stack([terms[name].detach().float() for name in self._logged]))
        self.guarded_step("generator", optimiser, list(self.generator.parameters()), finite)

    def _mix(self, count: int) -> Tensor:
        """(2, B) uniform in [0, 1): this rank's part of what the whole batch draws."""
        random = torch.Generator().manual_seed(step_seed(self.seed ^ _MIX, int(self.images_seen)))
        whole, first = torch.rand(2, count * self.trainer.world_size, generator=random), count * self.global_rank
        return whole[:, first : first + count].to(self.device)

    # ------------------------------------------------------------------ evaluation

    def holes_of(self, batch: ImageBatch) -> Holes:
        """The test hole of each picture: a function of its name, whatever batch it comes in."""
        positions = [zlib.crc32(key.encode()) for key in batch.keys]
        size = Size(*batch.images.shape[2:])
        return self.test_holes.draw(size, positions, seed=self.evaluation_seed).to(batch.images.device)

    def score(self, batch: ImageBatch) -> Rows:
        holes = self.holes_of(batch)
        completed = self.complete(self.ema.network, batch.images, holes).completed.float()
        shown = holes.paste(completed, batch.images)
        return inpainting_rows(shown, batch.images, holes.masks, holes.boxes, batch.keys)

    def summary(self, rows: Rows) -> dict[str, float]:
        """The means over pictures, and how they compare with filling holes with the mean colour."""
        means = column_means(rows.values())
        ours, theirs = means["l2_hole_percent"], means[f"l2_hole_percent_{BASELINE}"]
        means[f"l2_hole_ratio_to_{BASELINE}"] = ours / max(theirs, 1e-12)
        means[f"psnr_hole_gain_over_{BASELINE}"] = means["psnr_hole"] - means[f"psnr_hole_{BASELINE}"]
        return means

    # ------------------------------------------------------------------ pictures

    def samples(self, batch: ImageBatch) -> dict[str, dict[str, Tensor]]:
        """What was given (holes white), both stages pasted into it, and the whole picture."""
        holes = self.holes_of(batch)
        with torch.no_grad():
            output = self.complete(self.ema.network, batch.images, holes)
        shown = {
            "input": torch.full_like(batch.images, WHITE),
            "coarse": output.coarse.float().clamp(-1, 1),
            "completed": output.completed.float().clamp(-1, 1),
        }
        columns = {name: holes.paste(picture, batch.images) for name, picture in shown.items()}
        return {"inpainting": {**columns, "target": batch.images}}


def _named(critic: str, terms: Terms) -> Terms:
    """The terms of one of the critics."""
    return {f"{name}_{critic}": term for name, term in terms.items()}
