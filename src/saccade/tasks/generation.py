"""GenerationTask: images from noise and a class, as SAGAN and Your Local GAN train them (arXiv 1911.12287, section 6).

A step updates the discriminator (once, or `discriminator_steps` times), then the generator once, each on noise and
labels of its own: z ~ N(0, I), labels uniform and independent of the real ones. Real and generated images pass the
discriminator one after the other, as in the released code; spectral norm's estimates move with every pass.

What a step draws belongs to the whole batch of all ranks and is sliced among them: two ranks do what one process with
the doubled batch does, batch normalisation over all ranks provided.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from saccade.layers.latents import check_truncation, latents_at
from saccade.losses.adversarial import (
    hinge_discriminator,
    hinge_generator,
    logistic_discriminator,
    nonsaturating_generator,
)
from saccade.tasks.base import Ema, OptimiserFactory, Task, step_seed
from saccade.tasks.collapse import CollapseGuard, class_diversity, diversity
from saccade.tasks.generation_scores import GenerationScores

Terms = dict[str, Tensor]
LossName = Literal["hinge", "logistic"]
_LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Terms], Callable[[Tensor], Terms]]] = {
    "hinge": (hinge_discriminator, hinge_generator),
    "logistic": (logistic_discriminator, nonsaturating_generator),
}
_DRAWS = 0x6E6F697365  # keeps the noise apart from the other random numbers of a step
PICTURE_CLASSES, PICTURE_COLUMNS = 10, 8
DIVERSITIES = ("diversity_to_real", "class_diversity_to_real")
SELECTABLE = ("fid", "frechet")  # how names of metrics begin that the best checkpoint can be chosen by


class Scores(Protocol):
    """What judges generated images: `saccade.tasks.generation_scores.GenerationScores`."""

    def begin(self, data: Any, device: torch.device, *, truncation: float | None) -> None:
        """Start over, for latents truncated at so many sigma."""

    def update(self, images: Tensor, positions: Tensor) -> None:
        """Add (B, 3, Y, X) images in [-1, 1] of some evaluation positions."""

    def compute(self) -> dict[str, float]:
        """Every metric under the name of its protocol, over all ranks."""

    def provenance(self) -> dict[str, Any]:
        """Networks, weights and references behind the numbers."""


@dataclass(frozen=True)
class GeneratorInputs:
    """What a generator is given: latents (B, latent) and labels (B,) long, None without classes."""

    latents: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.latents)

    def to(self, device: torch.device | str | int) -> GeneratorInputs:
        """The same on `device`."""
        labels = None if self.labels is None else self.labels.to(device)
        return GeneratorInputs(self.latents.to(device), labels)

    def part(self, start: int, count: int) -> GeneratorInputs:
        """`count` of them from `start`."""
        labels = None if self.labels is None else self.labels[start : start + count]
        return GeneratorInputs(self.latents[start : start + count], labels)


class GenerationTask(Task):
    """Train a class-conditional or unconditional GAN.

    Loss terms: `d_real` and `d_fake` of the discriminator, `gan` of the generator.

    Args:
        generator: (latents, labels or None) -> images; offers `latent` and `classes`.
        discriminator: (images, labels or None) -> logits.
        generator_optimiser, discriminator_optimiser: factories of the optimisers.
        loss: hinge | logistic (non-saturating).
        accumulate: micro-batches that the gradients of one update are summed over. Batch statistics are those of a
            micro-batch.
        discriminator_steps: updates of the discriminator before one of the generator. A loader's batch holds the real
            images of all of them and is split into discriminator_steps * accumulate parts.
        ema_half_life: of the averaged generator, in images; 0 averages nothing.
        ema_from: images before which the average just follows.
        ema_rampup: see `Ema`.
        scores: judges the images; None takes the metrics that need no network weights.
        select: metric by which the best checkpoint is kept; None takes the first Frechet distance of the scores.
        score_start: the headline is that metric over its value before training, where a run scores itself.
        truncation: of the evaluation's latents, in sigma; None (the paper's) has none.
        evaluation_seed: with the position, it decides latent and label of an evaluation's image.
        collapse: when to give up; None never does.
        base: the arguments of `Task`.

    Raises:
        ValueError: an option out of its range, or networks of different classes.
    """

    steps: Tensor
    start_score: Tensor
    lossless_steps: Tensor
    uniform_evaluations: Tensor
    varied: Tensor
    terms: tuple[str, ...] = ("d_real", "d_fake", "gan")
    exported = ("generator", "discriminator")

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module | None,
        *,
        generator_optimiser: OptimiserFactory,
        discriminator_optimiser: OptimiserFactory,
        loss: LossName = "hinge",
        accumulate: int = 1,
        discriminator_steps: int = 1,
        ema_half_life: float = 0.0,
        ema_from: float = 0.0,
        ema_rampup: float | None = None,
        scores: Scores | None = None,
        select: str | None = None,
        score_start: bool = False,
        truncation: float | None = None,
        evaluation_seed: int = 0,
        collapse: CollapseGuard | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.discriminator = _checked(generator, discriminator)
        self.generator = generator
        if loss not in _LOSSES:
            raise ValueError(f"task: loss={loss} is unknown; valid: {', '.join(_LOSSES)}")
        if accumulate < 1 or discriminator_steps < 1:
            raise ValueError(
                f"task: accumulate and discriminator_steps are 1 or more; got {accumulate} and {discriminator_steps}"
            )
        self.ema = Ema(generator, half_life=ema_half_life, rampup=ema_rampup, start=ema_from)
        self.generator_optimiser, self.discriminator_optimiser = generator_optimiser, discriminator_optimiser
        self.discriminator_loss, self.generator_loss = _LOSSES[loss]
        self.weights = dict.fromkeys(self.terms, 1.0)
        self.accumulate, self.discriminator_steps = accumulate, discriminator_steps
        self.scores: Scores = GenerationScores() if scores is None else scores
        self.select, self.score_start = select, score_start
        self.truncation, self.evaluation_seed = check_truncation(truncation), evaluation_seed
        self.collapse = collapse
        self.classes: int | None = generator.classes  # type: ignore[assignment]
        self._latent: int = generator.latent  # type: ignore[assignment]
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("start_score", torch.zeros(()))  # 0: not known
        for count in ("lossless_steps", "uniform_evaluations", "varied"):  # in a row; in a row; in all
            self.register_buffer(count, torch.zeros((), dtype=torch.int64))
        self._start_metric: str | None = None  # of start_score: those of other counts or sets do not compare
        self._real_diversity: list[float] | None = None
        # what attention=none left frozen stays so
        self._trained = [weight for weight in self.discriminator.parameters() if weight.requires_grad]

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [
            self.with_initial_lr(self.generator_optimiser(self.generator.parameters())),
            self.with_initial_lr(self.discriminator_optimiser(self.discriminator.parameters())),
        ]

    def on_fit_start(self) -> None:
        """Compare the data's classes with the networks', and look for the real sets that will be compared with.

        Raises:
            ValueError: the classes differ, or the data have no such split.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        for split in getattr(self.scores, "splits", ()) if hasattr(data, "reference") else ():
            data.reference(split)  # not found only at the first evaluation otherwise, days later
        names = getattr(data, "class_names", None)
        if self.classes is not None and names is not None and len(names) != self.classes:
            raise ValueError(
                f"task: the networks have {self.classes} classes, the data {len(names)}; "
                f"set model.classes={len(names)} (or null for none)"
            )

    # ------------------------------------------------------------------ one step

    def training_step(self, batch: Any, batch_idx: int) -> None:
        count = self._part_size(len(batch))
        self.begin_step(len(batch))
        generator_optimiser, discriminator_optimiser = self._optimisers()
        self._freeze_discriminator(False)
        inputs = self.draw(len(batch), purpose=0)
        for step in range(self.discriminator_steps):
            self._train_discriminator(batch, inputs, step * self.accumulate * count, count, discriminator_optimiser)
        self._freeze_discriminator(True)
        self._train_generator(self.draw(self.accumulate * count, purpose=1), count, generator_optimiser)
        self._log_sigmas()
        images = self.end_step(len(batch))
        self.steps += 1
        now = int(self.images_seen)
        self.ema.update(self.generator, images_seen=now, images_step=images)
        if self.collapse is not None:
            self.collapse.check_loss(int(self.lossless_steps), now)

    def draw(self, count: int, *, purpose: int) -> GeneratorInputs:
        """This rank's share of latents and labels for a batch of `count` images on every rank.

        They are a function of (seed, images seen, purpose) and of their place in the batch of all ranks.
        """
        random = torch.Generator().manual_seed(step_seed(self.seed ^ _DRAWS, int(self.images_seen), purpose))
        whole, first = count * self.trainer.world_size, count * self.global_rank
        latents = torch.randn(whole, self._latent, generator=random)
        labels = None if self.classes is None else torch.randint(self.classes, (whole,), generator=random)
        return GeneratorInputs(latents, labels).part(first, count).to(self.device)

    def _freeze_discriminator(self, frozen: bool) -> None:
        for weight in self._trained:
            weight.requires_grad_(not frozen)

    def _part_size(self, batch_size: int) -> int:
        parts = self.accumulate * self.discriminator_steps
        if batch_size % parts:
            raise ValueError(
                f"task: a batch of {batch_size} images does not split into accumulate={self.accumulate} times "
                f"discriminator_steps={self.discriminator_steps} equal parts; choose a multiple of {parts}"
            )
        return batch_size // parts

    def _train_discriminator(self, batch: Any, inputs: GeneratorInputs, first: int, count: int, optimiser: Any) -> None:
        def terms(index: int) -> Terms:
            start = first + index * count
            real, labels = batch.images[start : start + count], self._labels(batch, start, count)
            given = inputs.part(start, count)
            with torch.no_grad():
                fake = self.generator(given.latents, given.labels)
            return self.discriminator_loss(self.discriminator(real, labels), self.discriminator(fake, given.labels))

        finite, means = self._accumulated(terms)
        if self.collapse is not None:
            loss = self.trainer.strategy.reduce(means["d_real"] + means["d_fake"], reduce_op="mean")
            self.lossless_steps.copy_((self.lossless_steps + 1) * (loss < self.collapse.loss_below))
        self.guarded_step("discriminator", optimiser, list(self.discriminator.parameters()), finite)

    def _train_generator(self, inputs: GeneratorInputs, count: int, optimiser: Any) -> None:
        def terms(index: int) -> Terms:
            given = inputs.part(index * count, count)
            return self.generator_loss(self.discriminator(self.generator(given.latents, given.labels), given.labels))

        finite, _ = self._accumulated(terms)
        self.guarded_step("generator", optimiser, list(self.generator.parameters()), finite)

    def _accumulated(self, terms: Callable[[int], Terms]) -> tuple[bool, Terms]:
        """Sum the gradients of all micro-batches; whether all were finite, and the logged means of the terms."""
        finite, means = True, dict[str, Tensor]()
        for index in range(self.accumulate):
            last = index == self.accumulate - 1
            found = terms(index)
            with nullcontext() if last else self._without_sync():
                finite = self.backward_terms(found, self.weights, 1.0 / self.accumulate, log=False) and finite
            for name, term in found.items():
                means[name] = means.get(name, 0.0) + term.detach().float() / self.accumulate
        self.log_dict({f"loss/{name}": value for name, value in means.items()})
        return finite, means

    def _without_sync(self) -> AbstractContextManager[Any]:
        """Ranks exchange gradients with the last micro-batch alone."""
        block = getattr(self.trainer.strategy, "block_backward_sync", None)
        return nullcontext() if block is None else block()

    def _labels(self, batch: Any, start: int, count: int) -> Tensor | None:
        return None if self.classes is None else batch.labels[start : start + count]

    def _log_sigmas(self) -> None:
        """The weight of every attention layer; it starts at 0 and may take either sign."""
        for network in (self.generator, self.discriminator):
            for slot, block in getattr(network, "attention_blocks", {}).items():
                if isinstance(getattr(block, "sigma", None), Tensor):
                    self.log(f"sigma/{slot}", block.sigma.detach().float().reshape(()))

    # ------------------------------------------------------------------ evaluation

    def inputs_at(self, positions: Tensor) -> GeneratorInputs:
        """Latents and labels of evaluation positions (P,): functions of the evaluation's seed and the position."""
        places = positions.tolist()
        latents = latents_at(self.evaluation_seed, places, self._latent, truncation=self.truncation)
        if self.classes is None:
            return GeneratorInputs(latents, None).to(self.device)
        labels = torch.tensor([step_seed(self.evaluation_seed, place, 1) % self.classes for place in places])
        return GeneratorInputs(latents, labels).to(self.device)

    def generate(self, inputs: GeneratorInputs) -> Tensor:
        """Images of the averaged generator, (B, 3, Y, X) float32 in [-1, 1]."""
        with torch.no_grad():
            images: Tensor = self.ema.network(inputs.latents, inputs.labels)
        return images.float().clamp(-1, 1)

    def on_validation_epoch_start(self) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self.scores.begin(data, self.device, truncation=self.truncation)

    def validation_step(self, positions: Tensor, batch_idx: int) -> None:
        self.scores.update(self.generate(self.inputs_at(positions)), positions)

    def on_validation_epoch_end(self) -> None:
        metrics = self.scores.compute()
        self.headline = self.selection = self._selection(metrics)
        if self.selection is not None and self.score_start:
            if self.trainer.state.fn == "fit":
                self._start_metric = self.selection
                if int(self.images_seen) == 0:
                    self.start_score.fill_(metrics[self.selection])
            if self.selection == self._start_metric and float(self.start_score) > 0:
                self.headline = f"{self.selection}_ratio_to_start"
                metrics[self.headline] = metrics[self.selection] / float(self.start_score)
        metrics |= self._diversities()
        self.log_evaluation(metrics)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["start_metric"] = self._start_metric

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._start_metric = checkpoint.get("start_metric")

    def on_validation_end(self) -> None:
        """Give up if the samples have lost their variety; now, with record and pictures of this evaluation written.

        Raises:
            TrainingCollapsed: in training, after enough such evaluations in a row.
        """
        images = int(self.images_seen)
        if self.collapse is None or self.trainer.state.fn != "fit" or images == 0:
            return
        least = min(self.evaluation[name] for name in DIVERSITIES if name in self.evaluation)
        own = torch.tensor(least, dtype=torch.float64, device=self.device)
        found = float(self.trainer.strategy.reduce(own, reduce_op="mean"))  # so that all ranks decide alike
        uniform = found < self.collapse.diversity_below
        self.varied += not uniform
        self.uniform_evaluations.copy_((self.uniform_evaluations + 1) * uniform)
        self.collapse.check_diversity(found, int(self.uniform_evaluations), images, varied=bool(self.varied))

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def provenance(self) -> dict[str, Any]:
        return {"metrics": self.scores.provenance()}

    def _selection(self, metrics: Mapping[str, float]) -> str | None:
        if self.select is None:
            return next((name for begin in SELECTABLE for name in metrics if name.startswith(begin)), None)
        if self.select not in metrics:
            raise ValueError(f"task: select={self.select} is not computed; valid: {', '.join(metrics)}")
        return self.select

    def _diversities(self) -> dict[str, float]:
        """Variety of fixed samples over that of real images: among them all, and within a class."""
        count = 64 if self.collapse is None else self.collapse.samples
        pictures = self.picture_batch().to(self.device)
        if self._real_diversity is None:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            shown = None if pictures.labels is None else sorted(set(pictures.labels.tolist()))
            some, alike = data.preview(count), data.preview(len(pictures), labels=shown)
            self._real_diversity = [diversity(some.images), class_diversity(alike.images, alike.labels)]
        found = [diversity(self.generate(self.inputs_at(torch.arange(count))))]
        if pictures.labels is not None and self._real_diversity[1] > 0:
            found.append(class_diversity(self.generate(pictures), pictures.labels))
        pairs = zip(DIVERSITIES, found, self._real_diversity, strict=False)
        return {name: value / max(real, 1e-12) for name, value, real in pairs}

    # ------------------------------------------------------------------ pictures

    def picture_batch(self) -> GeneratorInputs:
        """The same latents for every class, class by class; classes are spread over the list."""
        rows = PICTURE_CLASSES if self.classes is None else min(self.classes, PICTURE_CLASSES)
        if self.classes is None:
            return self.inputs_at(torch.arange(rows * PICTURE_COLUMNS))
        latents = latents_at(self.evaluation_seed, range(PICTURE_COLUMNS), self._latent, truncation=self.truncation)
        labels = torch.tensor([row * self.classes // rows for row in range(rows)])
        return GeneratorInputs(latents.repeat(rows, 1), labels.repeat_interleave(PICTURE_COLUMNS))

    def samples(self, batch: GeneratorInputs) -> dict[str, dict[str, Tensor]]:
        """The generated images (B, 3, Y, X) and, with classes, their labels (B,)."""
        generated = self.generate(batch)
        if batch.labels is None:
            return {"samples": {"generated": generated}}
        return {"classes": {"generated": generated, "labels": batch.labels}}


def _checked(generator: nn.Module, discriminator: nn.Module | None) -> nn.Module:
    if discriminator is None:
        raise ValueError("task: generation needs a discriminator (task.adversarial=true)")
    classes = [getattr(network, "classes", None) for network in (generator, discriminator)]
    if classes[0] != classes[1]:
        raise ValueError(
            f"task: generator and discriminator have one number of classes; got {classes[0]}, {classes[1]}"
        )
    return discriminator
