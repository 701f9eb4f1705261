"""AdversarialTask: a generator, an optional discriminator, lazy R1 and an averaged generator, on manual optimisation.

Non-saturating logistic loss and lazy R1 as StyleGAN2 (Karras et al. 2020). One step trains the generator, then the
discriminator on the same generated images (StyleGAN2 generates them again; sharing them saves a pass and is ours).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from saccade.losses.adversarial import logistic_discriminator, nonsaturating_generator, r1_penalty
from saccade.tasks.base import Ema, OptimiserFactory, Task

Terms = dict[str, Tensor]


class AdversarialTask(Task):
    """Train a generator by named loss terms, adversarially if a discriminator is given.

    Subclasses yield generator passes; each is run backward by itself, so only one graph is alive at a time.

    Args:
        generator: the network to train.
        discriminator: its opponent; None trains on the other terms alone.
        generator_optimiser: factory of the generator's optimiser.
        discriminator_optimiser: factory of the discriminator's; needed with a discriminator.
        weights: weight of each named term of `terms`; one that is not named counts 1, a weight of 0 leaves it out.
        r1_gamma: weight of gamma/2 * |grad D(real)|^2.
        r1_interval: the penalty runs every so many steps, scaled up by the same number.
        ema_half_life: of the averaged generator, in images.
        ema_rampup: see `Ema`.
        base: the arguments of `Task`.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module | None,
        *,
        generator_optimiser: OptimiserFactory,
        discriminator_optimiser: OptimiserFactory | None = None,
        weights: Mapping[str, float],
        r1_gamma: float = 10.0,
        r1_interval: int = 16,
        ema_half_life: float = 10_000,
        ema_rampup: float | None = 0.05,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        if discriminator is not None and discriminator_optimiser is None:
            raise ValueError("task: a discriminator needs discriminator_optimiser")
        self.generator, self.discriminator = generator, discriminator
        self.ema = Ema(generator, half_life=ema_half_life, rampup=ema_rampup)
        self.generator_optimiser, self.discriminator_optimiser = generator_optimiser, discriminator_optimiser
        unknown = sorted(set(weights) - set(self.terms))
        if unknown:
            raise ValueError(
                f"task: no loss term is called {', '.join(unknown)}; valid in weights: {', '.join(self.terms)}"
            )
        self.weights = {name: float(weights.get(name, 1.0)) for name in self.terms}
        self.r1_gamma, self.r1_interval = r1_gamma, r1_interval
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last_r1", torch.zeros(()))  # logged at every step, so a resumed run logs the same

    steps: Tensor
    last_r1: Tensor
    terms: tuple[str, ...] = ("gan", "d_real", "d_fake", "r1")

    @abstractmethod
    def generator_passes(self, batch: Any) -> Iterator[Callable[[], Terms]]:
        """Each pass generates once and returns its named loss terms."""

    @abstractmethod
    def discriminator_inputs(self, batch: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The discriminator's arguments on the real side and, detached, on the generated side; images first."""

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        optimisers = [self.with_initial_lr(self.generator_optimiser(self.generator.parameters()))]
        if self.discriminator is not None and self.discriminator_optimiser is not None:
            optimisers.append(self.with_initial_lr(self.discriminator_optimiser(self.discriminator.parameters())))
        return optimisers

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.begin_step(len(batch))
        optimisers = self._optimisers()
        self._train_generator(batch, optimisers[0])
        if self.discriminator is not None:
            self._train_discriminator(batch, self.discriminator, optimisers[1])
        images = self.end_step(len(batch))
        self.steps += 1
        self.ema.update(self.generator, images_seen=int(self.images_seen), images_step=images)

    def _train_generator(self, batch: Any, optimiser: Any) -> None:
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)
        finite = True
        for generate in self.generator_passes(batch):
            finite = self.backward_terms(generate(), self.weights) and finite
        self.guarded_step("generator", optimiser, list(self.generator.parameters()), finite)

    def _train_discriminator(self, batch: Any, discriminator: nn.Module, optimiser: Any) -> None:
        discriminator.requires_grad_(True)
        real, fake = self.discriminator_inputs(batch)
        finite = self.backward_terms(logistic_discriminator(discriminator(*real), discriminator(*fake)), self.weights)
        if self.r1_gamma > 0 and int(self.steps) % self.r1_interval == 0:
            with torch.autocast(self.device.type, enabled=False):
                images = real[0].detach().float().requires_grad_()
                penalty = r1_penalty(discriminator(images, *real[1:]), images, gamma=self.r1_gamma)
                finite = self.backward_terms(penalty, self.weights, scale=float(self.r1_interval)) and finite
                self.last_r1.copy_(penalty["r1"].detach())
        else:  # between its steps the curve holds the last value
            self.log("loss/r1", self.last_r1)
        self.guarded_step("discriminator", optimiser, list(discriminator.parameters()), finite)

    def adversarial_terms(self, *arguments: Tensor) -> Terms:
        """The generator's non-saturating term; empty without a discriminator."""
        return {} if self.discriminator is None else nonsaturating_generator(self.discriminator(*arguments))
